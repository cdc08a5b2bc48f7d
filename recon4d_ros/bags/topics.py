"""Which topics of a bag are cameras, and what belongs to each: found from names and types alone, as
image_transport pairs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recon4d_ros.messages import is_rectified

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
ODOMETRY = "nav_msgs/msg/Odometry"
TF_MESSAGE = "tf2_msgs/msg/TFMessage"
TF_STATIC = "/tf_static"
TRUTH = "/ground_truth/"
_NO_PICTURES = (
    "depth",
    "disparity",
    "mask",
    "confidence",
    "label",
    "semantic",
)  # images of numbers, not of the world


@dataclass(frozen=True)
class TopicInfo:
    """A topic's message type and its number of messages."""

    type: str
    count: int


@dataclass(frozen=True)
class CameraTopic:
    """One camera as a bag has it. camera_info: the topic beside the image, None if there is none.
    rectified: the image already is."""

    name: str
    image: str
    type: str
    count: int
    camera_info: str | None
    rectified: bool


def find_cameras(topics: Mapping[str, TopicInfo]) -> dict[str, CameraTopic]:
    """Cameras by name, in the order of the bag's topics.

    A camera's name is the namespace part before the image (`left` in
    /camera/left/image_raw/compressed), the whole namespace where two cameras would share it. Of a
    camera's several image topics the one with most messages is taken, raw before compressed. Depth,
    masks and /ground_truth/* are not cameras.
    """
    best: dict[str, str] = {}  # namespace -> topic
    for topic, info in topics.items():
        if info.type not in (IMAGE, COMPRESSED_IMAGE) or topic.startswith(TRUTH):
            continue
        namespace, base = _split(topic, info.type)
        if any(word in f"{namespace.rsplit('/', 1)[-1]}/{base}".lower() for word in _NO_PICTURES):
            continue
        if namespace not in best or _preference(info) > _preference(topics[best[namespace]]):
            best[namespace] = topic
    short = [namespace.rsplit("/", 1)[-1] for namespace in best]
    cameras = {}
    for (namespace, topic), last in zip(best.items(), short, strict=True):
        name = (
            last if short.count(last) == 1 else namespace.strip("/").replace("/", "_")
        ) or "camera"
        cameras[name] = camera_at(name, topic, topics)
    return cameras


def camera_at(name: str, topic: str, topics: Mapping[str, TopicInfo]) -> CameraTopic:
    """The camera of one image topic, with the camera_info beside it."""
    namespace, _ = _split(topic, topics[topic].type)
    info = f"{namespace}/camera_info"
    found = info if info in topics and topics[info].type == CAMERA_INFO else None
    return CameraTopic(
        name, topic, topics[topic].type, topics[topic].count, found, is_rectified(topic)
    )


def _split(topic: str, message_type: str) -> tuple[str, str]:
    """Namespace and base name of an image topic, its transport's suffix left away."""
    if message_type == COMPRESSED_IMAGE and topic.rsplit("/", 1)[-1] in (
        "compressed",
        "compressedDepth",
    ):
        base = topic.rsplit("/", 1)[0]
        suffix = "_depth" if topic.endswith("compressedDepth") else ""
        return base.rsplit("/", 1)[0], base.rsplit("/", 1)[-1] + suffix
    return topic.rsplit("/", 1)[0], topic.rsplit("/", 1)[-1]


def _preference(info: TopicInfo) -> tuple[int, bool]:
    return info.count, info.type == IMAGE
