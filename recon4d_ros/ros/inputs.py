"""What the node subscribes to: images, camera_info, odometry, imu and twist in, the core's
nouns out; what cannot be used is counted, never raised."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import message_filters
import numpy as np
import tf2_ros
from geometry_msgs.msg import TwistWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu
from std_msgs.msg import Header

from recon4d_ros.bags.topics import CAMERA_INFO, DETECTIONS_2D, IMAGES, VIDEOS
from recon4d_ros.bags.topics import COMPRESSED_IMAGE as COMPRESSED
from recon4d_ros.bags.topics import IMAGE as RAW
from recon4d_ros.cameras import video
from recon4d_ros.cameras.image_header import compressed_size
from recon4d_ros.errors import MessageError, ParameterError, Recon4dError
from recon4d_ros.messages import (
    StandingPose,
    frame_name,
    image_boxes,
    imu_sample,
    is_calibrated,
    odometry_sample,
    size_fault,
    twist_sample,
)
from recon4d_ros.ros.conversions import raw_image, transform_matrix
from recon4d_ros.ros.discovery import listed, published
from recon4d_ros.ros.entities import making
from recon4d_ros.ros.message_types import message_class
from recon4d_ros.ros.offered import (
    BEST_EFFORT,
    EVERY_BEST_EFFORT,
    EVERY_RELIABLE,
    LATCHED,
    RELIABLE,
    image_qos,
    is_latched,
)
from recon4d_ros.types import ImageBoxes, OdometrySample, RawImage

VIDEO_PLUGINS = ("ffmpeg", "foxglove")  # image_transport's names of them
PAIR_QUEUE = 10


def overridable() -> QoSOverridingOptions:
    return QoSOverridingOptions.with_default_policies()


def overridden(node: Node, topic: str) -> bool:
    """Whether the user chose a subscription's QoS, by `qos_overrides` parameters."""
    prefix = f"qos_overrides.{node.resolve_topic_name(topic)}.subscription."
    return any(name.startswith(prefix) for name in node._parameter_overrides)


def subscribe(
    node: Node, kind: type, topic: str, qos: QoSProfile = BEST_EFFORT, *, fitted: bool = False
) -> message_filters.Subscriber:
    """fitted: the QoS is fitted to the publishers', and may be another one the next time: rclpy
    keeps that of the first time in parameters, which only a user's own may be. Raises
    ParameterError."""
    options = None if fitted and not overridden(node, topic) else overridable()
    qos = copy(qos)  # overrides are written into it, and it is everybody's
    with making(f"{topic} cannot be subscribed to"):
        return message_filters.Subscriber(
            node, kind, topic, qos_profile=qos, qos_overriding_options=options
        )


@dataclass(frozen=True)
class CameraSource:
    """Topics of one camera, before remapping; transport: auto, raw, compressed, video. *_given:
    whether the user named the topic, so that no other is looked for. detections: of boxes in its
    images, empty = none."""

    image: str
    camera_info: str
    transport: str = "auto"
    image_given: bool = True
    info_given: bool = True
    detections: str = ""


class CalibrationInput:
    """camera_info of all cameras, from configure on: the rig may depend on it. Passed on as
    `info(camera, message)`."""

    def __init__(
        self,
        node: Node,
        topics: Mapping[str, CameraSource],
        info: Callable[[str, CameraInfo], None],
    ) -> None:
        self._node, self._topics, self._info = node, topics, info
        self.subscribers: dict[str, message_filters.Subscriber] = {}
        self._latched: dict[str, Subscription] = {}
        self._others: dict[str, Subscription] = {}
        self._at = {name: topic.camera_info for name, topic in topics.items()}
        try:
            for name in topics:
                self._subscribe(name)
        except ParameterError:
            self.close()
            raise

    def _subscribe(self, name: str) -> None:
        subscriber = subscribe(self._node, CameraInfo, self._at[name])
        subscriber.registerCallback(lambda message: self._info(name, message))
        self.subscribers[name] = subscriber

    def look(self) -> None:
        """Ask for the last message of publishers that keep it: one that came before us sends it to
        nobody who does not ask. Beside the other subscription, which those that keep none match."""
        for name, topic in self._at.items():
            if name not in self._latched and is_latched(self._node, topic):
                self._latched[name] = self._node.create_subscription(
                    CameraInfo, topic, partial(self._info, name), LATCHED
                )

    def others(self, info: Callable[[str, CameraInfo], None]) -> list[str]:
        """Listen to the camera_info of all other cameras that somebody publishes, passed on as
        `info(topic, message)`; their topics."""
        ours = {self._node.resolve_topic_name(topic) for topic in self._at.values()}
        for topic, kind in published(self._node).items():
            if kind.type == CAMERA_INFO and topic not in ours and topic not in self._others:
                qos = LATCHED if is_latched(self._node, topic) else BEST_EFFORT
                self._others[topic] = self._node.create_subscription(
                    CameraInfo, topic, partial(info, topic), qos
                )
        return list(self._others)

    def topic(self, name: str) -> str:
        """Where a camera's camera_info is expected."""
        return self._at[name]

    def is_published(self, name: str) -> bool:
        return self._node.count_publishers(self._node.resolve_topic_name(self._at[name])) > 0

    def move(self, name: str, topic: str) -> None:
        """Listen on another topic."""
        self._node.destroy_subscription(self.subscribers[name].sub)
        if latched := self._latched.pop(name, None):
            self._node.destroy_subscription(latched)
        self._at[name] = topic
        self._subscribe(name)
        self.look()

    def close(self) -> None:
        for subscriber in self.subscribers.values():
            self._node.destroy_subscription(subscriber.sub)
        for subscription in (*self._latched.values(), *self._others.values()):
            self._node.destroy_subscription(subscription)


@dataclass(frozen=True)
class ImageSize:
    """What the pairing needs of an image: it keeps ten, and ten whole images would be 40 MB a
    camera."""

    header: Header
    width: int
    height: int


class CameraInput:
    """Images of one camera.

    Each image goes on as it comes; message_filters pairs it with the camera_info of the same stamp,
    and a pair whose sizes disagree is reported. So a slow or latched camera_info holds no image
    back.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        topics: CameraSource,
        info: message_filters.Subscriber,
        *,
        image: Callable[[str, RawImage, str, tuple[int, int] | None], None],
        bad: Callable[[str, str], None],
        disagrees: Callable[[str], None],
    ) -> None:
        """image(camera, raw image, frame_id, (width, height) where it says so); bad(camera,
        sentence) of an image that is not used; disagrees(sentence) of an image and its
        camera_info."""
        self.name = name
        self._node, self._topics, self._image, self._bad = node, topics, image, bad
        self._disagrees = disagrees
        self._subscriber: message_filters.Subscriber | None = None
        self._source: tuple[str, type, QoSProfile] | None = None
        self._found = ""
        self._video = video.VideoDecoder()
        self._sizes = message_filters.SimpleFilter()
        self.pair_with(info)

    def pair_with(self, info: message_filters.Subscriber) -> None:
        """Hold the images' sizes against another camera_info."""
        self._pairs = message_filters.TimeSynchronizer([self._sizes, info], PAIR_QUEUE)
        self._pairs.registerCallback(self._on_pair)

    @property
    def connected(self) -> bool:
        return self._subscriber is not None

    @property
    def topic(self) -> str:
        """Where the images come from, or are expected, after remapping."""
        name = self._source[0] if self._source else self._found or self._topics.image
        return str(self._node.resolve_topic_name(name))

    def use(self, topic: str) -> None:
        """Take the images from this topic, found where none was named."""
        self._found = topic

    def connect(self) -> bool:
        """Subscribe, once the transport is known: `auto` looks at what is published. True when
        subscribed. Called again, it asks anew where the publishers now offer something else.
        Raises ParameterError."""
        if self._source is None:
            found = self._resolve()
            if found is None:
                return False
            topic, kind = found
        else:
            topic, kind, _ = self._source
        qos = image_qos(self._node, topic, self._source[2] if self._source else BEST_EFFORT)
        if kind not in (Image, CompressedImage):  # video: every packet counts
            qos = EVERY_RELIABLE if qos in (RELIABLE, EVERY_RELIABLE) else EVERY_BEST_EFFORT
        if self._source is None or qos is not self._source[2]:
            self.disconnect()
            self._subscriber = subscribe(self._node, kind, topic, qos, fitted=True)
            self._subscriber.registerCallback(self._on_image)
            self._source = topic, kind, qos
        return True

    @property
    def reliable(self) -> bool:
        """Whether lost images are sent again."""
        return self._source is not None and self._source[2] in (RELIABLE, EVERY_RELIABLE)

    def waits_for(self) -> str:
        topics = published(self._node)
        here = f"a publisher of {self._topics.image} (transport {self._topics.transport}"
        kinds = {name: topics[name].type for name in self._beside_all() if name in topics}
        if lacking := [
            f"{name} is {kind}, which is not installed here"
            for name, kind in kinds.items()
            if kind in VIDEOS and _class_of(kind) is None
        ]:
            return f"{here}; {lacking[0]})"
        others = listed(topics, IMAGES)
        return f"{here})" if others == "none" else f"{here}; published are {others})"

    def disconnect(self) -> None:
        if self._subscriber is not None:
            self._node.destroy_subscription(self._subscriber.sub)
            self._subscriber = self._source = None

    def _resolve(self) -> tuple[str, type] | None:
        """What to subscribe to: the name before remapping, which a subscription does itself, and
        the message's type."""
        topic = self._found or self._topics.image
        if self._topics.transport == "raw":
            return topic, Image
        beside = self._beside(topic)
        if self._topics.transport == "compressed":
            return (topic if topic.endswith("/compressed") else beside), CompressedImage
        types = dict(self._node.get_topic_names_and_types())
        pictures = [(topic, RAW), (topic, COMPRESSED), (beside, COMPRESSED)]
        films = [(name, kind) for name in (topic, *self._films(topic)) for kind in VIDEOS]
        for name, kind in films if self._topics.transport == "video" else [*pictures, *films]:
            resolved = self._node.resolve_topic_name(name)
            if kind in types.get(resolved, ()) and self._node.count_publishers(resolved):
                if found := _class_of(kind):
                    return name, found
        return None

    def _films(self, topic: str) -> list[str]:
        """Where image_transport's plugins for video put the images of a topic."""
        resolved = self._node.resolve_topic_name(topic)
        return [f"{resolved}/{plugin}" for plugin in VIDEO_PLUGINS]

    def _beside_all(self) -> list[str]:
        topic = self._found or self._topics.image
        return [self._node.resolve_topic_name(topic), *self._films(topic)]

    def _beside(self, topic: str) -> str:
        """The compressed images of a topic: beside what it is remapped to, unless they are remapped
        themselves."""
        beside = f"{topic}/compressed"
        if self._node.resolve_topic_name(beside) != self._node.resolve_topic_name(
            beside, only_expand=True
        ):
            return beside
        return f"{self._node.resolve_topic_name(topic)}/compressed"

    def _on_image(self, message: Any) -> None:
        try:
            image = raw_image(message, time.monotonic_ns())
            images = self._video(image) if video.is_video(image) else [image]
        except Recon4dError as error:
            self._bad(self.name, str(error))
            return
        for image in images:
            self._pass_on(image, message)

    def _pass_on(self, image: RawImage, message: Any) -> None:
        header = getattr(message, "header", None)
        size = (image.width, image.height) if image.width else compressed_size(image.data)
        if size and header is not None:
            self._sizes.signalMessage(ImageSize(header, *size))
        frame = header.frame_id if header is not None else message.frame_id
        self._image(self.name, image, frame_name(frame), size)

    def _on_pair(self, image: ImageSize, info: CameraInfo) -> None:
        if is_calibrated(info) and (fault := size_fault(info, (image.width, image.height))):
            self._disagrees(f"{self.name}: {fault}")


def _class_of(kind: str) -> type | None:
    try:
        return message_class(kind)
    except MessageError:
        return None


class DetectionInput:
    """Boxes in one camera's images (vision_msgs/Detection2DArray), best effort."""

    def __init__(
        self,
        node: Node,
        camera: str,
        topic: str,
        *,
        boxes: Callable[[str, ImageBoxes], None],
        bad: Callable[[str, str], None],
    ) -> None:
        """boxes(camera, what a message says). Raises MessageError where vision_msgs is not
        installed, ParameterError where the topic cannot be subscribed to."""
        self._node, self._camera, self._boxes, self._bad = node, camera, boxes, bad
        kind = message_class(DETECTIONS_2D)
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        with making(f"{topic} cannot be subscribed to"):
            self._subscription = node.create_subscription(
                kind, topic, self._on_message, qos, qos_overriding_options=overridable()
            )

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _on_message(self, message: Any) -> None:
        try:
            self._boxes(self._camera, image_boxes(message))
        except Exception as error:  # whatever a message holds, the node goes on
            self._bad(f"{self._camera} detections", f"{type(error).__name__}: {error}")


class SensorInput(ABC):
    """A sensor's topic, best effort; where the sensor sits on the car is on /tf_static."""

    def __init__(
        self,
        node: Node,
        base_frame: str,
        buffer: tf2_ros.Buffer,
        topic: str,
        kind: type,
        depth: int,
        *,
        sample: Callable[[Any], None],
        bad: Callable[[str, str], None],
    ) -> None:
        """sample(what a message says); bad(source, sentence) of a message that is not used."""
        self._node, self._base_frame, self._buffer = node, base_frame, buffer
        self._sample, self._bad = sample, bad
        qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        with making(f"{topic} cannot be subscribed to"):
            self._subscription = node.create_subscription(
                kind, topic, self._on_message, qos, qos_overriding_options=overridable()
            )

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    @abstractmethod
    def _on_message(self, message: Any) -> None:
        """Hands over what the message says, or says why not; never raises."""


class OdometryInput(SensorInput):
    """Odometry as samples of the base's pose, whichever frame of the car it was measured in (that
    frame's place is on /tf_static)."""

    def __init__(
        self,
        node: Node,
        base_frame: str,
        buffer: tf2_ros.Buffer,
        topic: str,
        *,
        sample: Callable[[OdometrySample], None],
        bad: Callable[[str, str], None],
    ) -> None:
        self._stands = StandingPose()
        super().__init__(node, base_frame, buffer, topic, Odometry, 200, sample=sample, bad=bad)

    def _on_message(self, message: Odometry) -> None:
        if self._stands(message):
            self._bad(
                "odometry", "its pose never changes, though its twist says that the car moves"
            )
            return
        try:
            sample, child = odometry_sample(message), frame_name(message.child_frame_id)
            if child and child != self._base_frame:
                T_child_base = transform_matrix(
                    self._buffer.lookup_transform(child, self._base_frame, Time())
                )
                sample = OdometrySample(sample.stamp_ns, sample.T_odom_base @ T_child_base)
            self._sample(sample)
        except Recon4dError as error:
            self._bad("odometry", str(error))
        except tf2_ros.TransformException:
            self._bad(
                "odometry",
                f"odometry is of frame {child!r}, and no transform from it to {self._base_frame!r}"
                " is known",
            )


class MotionInput(SensorInput):
    """An inertial sensor (`imu`) or wheel speed (`twist`) as samples along the axes of base_frame;
    where the sensor sits is on /tf_static."""

    def __init__(
        self,
        node: Node,
        base_frame: str,
        buffer: tf2_ros.Buffer,
        topic: str,
        what: Literal["imu", "twist"],
        *,
        sample: Callable[[Any], None],
        bad: Callable[[str, str], None],
    ) -> None:
        self._what = what
        kind, self._convert = {
            "imu": (Imu, imu_sample),
            "twist": (TwistWithCovarianceStamped, twist_sample),
        }[what]
        super().__init__(node, base_frame, buffer, topic, kind, 400, sample=sample, bad=bad)

    def _on_message(self, message: Any) -> None:
        frame = frame_name(message.header.frame_id)
        try:
            place = np.eye(4)
            if frame and frame != self._base_frame:
                place = transform_matrix(
                    self._buffer.lookup_transform(self._base_frame, frame, Time())
                )
            self._sample(self._convert(message, place))
        except tf2_ros.TransformException:
            self._bad(
                self._what,
                f"{self._what} is of frame {frame!r}, and no transform from it to"
                f" {self._base_frame!r} is known",
            )
