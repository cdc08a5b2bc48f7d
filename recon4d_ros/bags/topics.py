"""Which topics of a bag are cameras, and what belongs to each: found from names and types, as
image_transport pairs them, and as simulators and drivers with flat names do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from recon4d_ros.messages import is_rectified

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
FFMPEG_PACKET = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
COMPRESSED_VIDEO = "foxglove_msgs/msg/CompressedVideo"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
ODOMETRY = "nav_msgs/msg/Odometry"
IMU = "sensor_msgs/msg/Imu"
TWIST = "geometry_msgs/msg/TwistWithCovarianceStamped"
DETECTIONS_2D = "vision_msgs/msg/Detection2DArray"
TF_MESSAGE = "tf2_msgs/msg/TFMessage"
TF_STATIC = "/tf_static"
TRUTH = "/ground_truth/"
# pictures of types that are not read here, which are named
UNREAD_IMAGES = frozenset(
    (
        "theora_image_transport/msg/Packet",
        "foxglove_msgs/msg/CompressedImage",
        "foxglove_msgs/msg/RawImage",
    )
)
VIDEOS = (FFMPEG_PACKET, COMPRESSED_VIDEO)
IMAGES = (IMAGE, COMPRESSED_IMAGE, *VIDEOS)  # best first, where one camera has several
_TRANSPORTS = ("compressed", "compressedDepth", "ffmpeg", "foxglove", "zstd", "video", "h264")
_NO_PICTURES = (
    "depth",
    "disparity",
    "mask",
    "confidence",
    "label",
    "semantic",
    "segment",
    "normals",
    "flow",
)  # images of numbers, not of the world
# Words of an image topic that say how the image is, not which camera's it is.
_HOW = frozenset(
    "image img raw rect rectified color colour mono gray grey rgb bgr compressed video picture"
    " stream frame camera_info info scene".split()
)


# Parts of a namespace that say what was done to a camera's images, not which camera's they are
# (/zed/left/color/rect/image), and what may be above these.
_DONE = frozenset(("rect", "rectified", "raw", "unrectified"))
_COLORS = frozenset(("color", "colour", "gray", "grey", "mono"))


@dataclass(frozen=True)
class TopicInfo:
    """A topic's message type and its number of messages."""

    type: str
    count: int


@dataclass(frozen=True)
class CameraTopic:
    """One camera as a bag has it. camera_info: the topic that belongs to the image, None if there
    is none. rectified: the image already is."""

    name: str
    image: str
    type: str
    count: int
    camera_info: str | None
    rectified: bool


def find_cameras(topics: Mapping[str, TopicInfo]) -> dict[str, CameraTopic]:
    """Cameras by name, in the order of the bag's topics.

    A camera's name is the namespace part before the image (`left` in
    /camera/left/image_raw/compressed), the whole namespace where two cameras would share it, and
    what the topic itself is called where several are in one namespace (`front` in /front_image).
    Of a camera's several image topics the one with most messages is taken, raw before compressed
    before video, as it comes from the lens before rectified. Depth, masks and /ground_truth/* are
    not cameras.
    """
    groups: dict[tuple[str, str], str] = {}  # namespace and what tells it apart there -> topic
    for topic, info in topics.items():
        if info.type not in IMAGES or topic.startswith(TRUTH):
            continue
        namespace, base = split(topic)
        if any(word in f"{namespace.rsplit('/', 1)[-1]}/{base}".lower() for word in _NO_PICTURES):
            continue
        key = (_camera_space(namespace), "_".join(_which(base)))
        if key not in groups or _preference(topic, topics) > _preference(groups[key], topics):
            groups[key] = topic
    infos = pair_camera_infos(list(groups.values()), topics)
    spaces = [namespace for namespace, _ in groups]
    short: dict[tuple[str, str], str] = {}
    for namespace, which in groups:
        alone = spaces.count(namespace) == 1 or not which
        last = namespace.rsplit("/", 1)[-1]
        short[namespace, which] = (last if alone else which) or which or "camera"
    names = list(short.values())
    cameras = {}
    for (namespace, which), topic in groups.items():
        name = short[namespace, which]
        if names.count(name) > 1:
            whole = namespace.strip("/").replace("/", "_")
            alone = spaces.count(namespace) == 1 or not which
            name = "_".join(filter(None, (whole, "" if alone and whole else which))) or "camera"
        cameras[name] = _camera(name, topic, topics, infos.get(topic))
    return cameras


def called_depth(topics: Mapping[str, TopicInfo]) -> list[str]:
    """Image topics that are left out for the one reason that the last part of their namespace says
    depth: a depth camera's colour images may lie there (/r200_depth/image_raw)."""
    found = []
    for topic, info in topics.items():
        namespace, base = split(topic)
        last = namespace.rsplit("/", 1)[-1].lower()
        words = (word for word in _NO_PICTURES if word in f"{last.replace('depth', '')}/{base}")
        if info.type in IMAGES and info.count and "depth" in last and not any(words):
            found.append(topic)
    return found


def camera_at(name: str, topic: str, topics: Mapping[str, TopicInfo]) -> CameraTopic:
    """The camera of one image topic, with the camera_info that goes with it."""
    return _camera(name, topic, topics, pair_camera_infos([topic], topics).get(topic))


def _camera(
    name: str, topic: str, topics: Mapping[str, TopicInfo], camera_info: str | None
) -> CameraTopic:
    info = topics[topic]
    return CameraTopic(name, topic, info.type, info.count, camera_info, is_rectified(topic))


def pair_camera_infos(images: list[str], topics: Mapping[str, TopicInfo]) -> dict[str, str]:
    """camera_info topic by image topic, where names leave no doubt.

    In this order: the one in the image's namespace, if no other image there has a better claim to
    it; the one below the image's own name (AirSim); the one whose name differs from the image's
    only in words for how an image is (/front_image and /front_camera_info); the only one in a
    namespace above that is nobody else's; and where the bag has one image and one camera_info,
    those.
    """
    infos = [topic for topic, info in topics.items() if info.type == CAMERA_INFO]
    found: dict[str, str] = {}
    for image in images:
        namespace, base = split(image)
        for info in (f"{namespace}/{base}/camera_info", f"{image}/camera_info"):
            if info in infos:
                found[image] = info
        named = [info for info in infos if _words(info) == _words(image) and _words(image)]
        same = [other for other in images if _words(other) == _words(image)]
        if image not in found and len(named) == 1 and len({split(one)[0] for one in same}) == 1:
            found[image] = named[0]
    for image in images:
        namespace, base = split(image)
        info = f"{namespace}/camera_info"
        rivals = [other for other in images if other != image and split(other)[0] == namespace]
        plain = not _which(base) and all(_which(split(other)[1]) for other in rivals)
        if image not in found and info in infos and (not rivals or plain):
            if info not in found.values():
                found[image] = info
    for image in images:
        above = split(image)[0]
        while image not in found and "/" in above:
            above = above.rsplit("/", 1)[0]
            info = f"{above}/camera_info"
            rivals = [other for other in images if other.startswith(f"{above}/")]
            if info in infos and info not in found.values() and rivals == [image]:
                found[image] = info
    if len(images) == 1 and len(infos) == 1:
        found.setdefault(images[0], infos[0])
    return found


def split(topic: str) -> tuple[str, str]:
    """Namespace and base name of an image topic, its transport's suffix left away."""
    parts = topic.rsplit("/", 1)
    if len(parts) == 2 and parts[1] in _TRANSPORTS and parts[0]:
        parts = parts[0].rsplit("/", 1)
    return parts[0], parts[-1]


def _camera_space(namespace: str) -> str:
    """A namespace without the parts at its end that say what was done to the images."""
    parts = namespace.split("/")
    if len(parts) < 3 or parts[-1] not in _DONE:
        return namespace
    while len(parts) > 2 and parts[-1] in _DONE:
        parts.pop()
    if len(parts) > 2 and parts[-1] in _COLORS:
        parts.pop()
    return "/".join(parts)


def _which(base: str) -> tuple[str, ...]:
    """The words of a base name that say which camera it is."""
    words = re.split(r"[_\-]+", base.lower())
    return tuple(word for word in words if word and word not in _HOW)


def _words(topic: str) -> tuple[str, ...]:
    """All words of a topic, those for how an image is left away."""
    name = topic.removesuffix("/camera_info") if topic.endswith("/camera_info") else topic
    namespace, base = split(name)
    name = f"{namespace}/{base}".lower().replace("camera_info", "")
    words = [word for word in re.split(r"[/_\-]+", name) if word and word not in _HOW]
    return tuple(sorted(words))


def _preference(topic: str, topics: Mapping[str, TopicInfo]) -> tuple[bool, int, int, bool]:
    info = topics[topic]
    still = info.type not in VIDEOS  # video takes a decoder of its own
    plain = not is_rectified(topic)
    return still and info.count > 0, info.count, -IMAGES.index(info.type), plain
