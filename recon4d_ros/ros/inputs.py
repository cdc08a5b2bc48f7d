"""What the node subscribes to: images, camera_info, odometry, imu and twist in, the core's
nouns out; what cannot be used is counted, never raised."""

from __future__ import annotations

import time
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

from recon4d_ros.cameras.image_header import compressed_size
from recon4d_ros.errors import ParameterError, Recon4dError
from recon4d_ros.messages import (
    frame_name,
    image_size,
    imu_sample,
    odometry_sample,
    twist_sample,
)
from recon4d_ros.ros.conversions import raw_image, transform_matrix
from recon4d_ros.ros.entities import making
from recon4d_ros.ros.offered import BEST_EFFORT, LATCHED, RELIABLE, image_qos, is_latched
from recon4d_ros.types import OdometrySample, RawImage

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
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
    """Resolved topics of one camera; transport: auto, raw, compressed."""

    image: str
    camera_info: str
    transport: str = "auto"


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
        try:
            for name, topic in topics.items():
                subscriber = subscribe(node, CameraInfo, topic.camera_info)
                subscriber.registerCallback(lambda message, name=name: info(name, message))
                self.subscribers[name] = subscriber
        except ParameterError:
            self.close()
            raise

    def look(self) -> None:
        """Ask for the last message of publishers that keep it: one that came before us sends it to
        nobody who does not ask. Beside the other subscription, which those that keep none match."""
        for name, topic in self._topics.items():
            if name not in self._latched and is_latched(self._node, topic.camera_info):
                self._latched[name] = self._node.create_subscription(
                    CameraInfo, topic.camera_info, partial(self._info, name), LATCHED
                )

    def close(self) -> None:
        for subscriber in self.subscribers.values():
            self._node.destroy_subscription(subscriber.sub)
        for subscription in self._latched.values():
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
        image: Callable[[str, RawImage, str], None],
        bad: Callable[[str, str], None],
        disagrees: Callable[[str], None],
    ) -> None:
        """image(camera, raw image, frame_id); bad(camera, sentence) of an image that is not used;
        disagrees(sentence) of an image and its camera_info."""
        self.name = name
        self._node, self._topics, self._image, self._bad = node, topics, image, bad
        self._disagrees = disagrees
        self._subscriber: message_filters.Subscriber | None = None
        self._source: tuple[str, type, QoSProfile] | None = None
        self._sizes = message_filters.SimpleFilter()
        self._pairs = message_filters.TimeSynchronizer([self._sizes, info], PAIR_QUEUE)
        self._pairs.registerCallback(self._on_pair)

    @property
    def connected(self) -> bool:
        return self._subscriber is not None

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
        if self._source is None or qos is not self._source[2]:
            self.disconnect()
            self._subscriber = subscribe(self._node, kind, topic, qos, fitted=True)
            self._subscriber.registerCallback(self._on_image)
            self._source = topic, kind, qos
        return True

    @property
    def reliable(self) -> bool:
        """Whether lost images are sent again."""
        return self._source is not None and self._source[2] is RELIABLE

    def waits_for(self) -> str:
        return f"a publisher of {self._topics.image} (transport {self._topics.transport})"

    def disconnect(self) -> None:
        if self._subscriber is not None:
            self._node.destroy_subscription(self._subscriber.sub)
            self._subscriber = self._source = None

    def _resolve(self) -> tuple[str, type] | None:
        """What to subscribe to: the name before remapping, which a subscription does itself, and
        the message's type."""
        topic = self._topics.image
        if self._topics.transport == "raw":
            return topic, Image
        beside = self._beside(topic)
        if self._topics.transport == "compressed":
            return (topic if topic.endswith("/compressed") else beside), CompressedImage
        types = dict(self._node.get_topic_names_and_types())
        for name, message_type, kind in (
            (topic, RAW, Image),
            (topic, COMPRESSED, CompressedImage),
            (beside, COMPRESSED, CompressedImage),
        ):
            resolved = self._node.resolve_topic_name(name)
            if message_type in types.get(resolved, ()) and self._node.count_publishers(resolved):
                return name, kind
        return None

    def _beside(self, topic: str) -> str:
        """The compressed images of a topic: beside what it is remapped to, unless they are remapped
        themselves."""
        beside = f"{topic}/compressed"
        if self._node.resolve_topic_name(beside) != self._node.resolve_topic_name(
            beside, only_expand=True
        ):
            return beside
        return f"{self._node.resolve_topic_name(topic)}/compressed"

    def _on_image(self, message: Image | CompressedImage) -> None:
        try:
            image = raw_image(message, time.monotonic_ns())
        except Recon4dError as error:
            self._bad(self.name, str(error))
            return
        size = (image.width, image.height) if image.width else compressed_size(image.data)
        if size:
            self._sizes.signalMessage(ImageSize(message.header, *size))
        self._image(self.name, image, frame_name(message.header.frame_id))

    def _on_pair(self, image: ImageSize, info: CameraInfo) -> None:
        width, height = image_size(info)
        if (image.width, image.height) != (width, height):
            self._disagrees(
                f"{self.name}: image is {image.width}x{image.height} and its camera_info says"
                f" {width}x{height}"
            )


class OdometryInput:
    """Odometry as samples of the base's pose, whichever frame of the car it was measured in (that
    frame's place is on /tf_static)."""

    def __init__(
        self,
        node: Node,
        topic: str,
        base_frame: str,
        buffer: tf2_ros.Buffer,
        *,
        sample: Callable[[OdometrySample], None],
        bad: Callable[[str, str], None],
    ) -> None:
        self._node, self._base_frame, self._buffer, self._sample, self._bad = (
            node,
            base_frame,
            buffer,
            sample,
            bad,
        )
        qos = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
        with making(f"{topic} cannot be subscribed to"):
            self._subscription = node.create_subscription(
                Odometry, topic, self._on_odometry, qos, qos_overriding_options=overridable()
            )

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _on_odometry(self, message: Odometry) -> None:
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


class MotionInput:
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
        self._node, self._base_frame, self._buffer = node, base_frame, buffer
        self._what, self._sample, self._bad = what, sample, bad
        kind, self._convert = {
            "imu": (Imu, imu_sample),
            "twist": (TwistWithCovarianceStamped, twist_sample),
        }[what]
        qos = QoSProfile(depth=400, reliability=ReliabilityPolicy.BEST_EFFORT)
        with making(f"{topic} cannot be subscribed to"):
            self._subscription = node.create_subscription(
                kind, topic, self._on_message, qos, qos_overriding_options=overridable()
            )

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

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
