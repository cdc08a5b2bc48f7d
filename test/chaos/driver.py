"""The car's sensors as processes of their own see them: three cameras (two compressed, one raw)
and, where it is asked for, odometry, published on a fixed beat, with a place where a fault can get
its hands on every message. Keeps the books of what was sent."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import cv2
import numpy as np
from car import Observer
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from recon4d_msgs.msg import Status
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from benchmarks.shuttle import Shuttle
from recon4d_ros.geometry import inverse
from recon4d_ros.messages import stamp_ns
from recon4d_ros.ros.conversions import header, pose_matrix, pose_msg, time_msg, transform_msg
from recon4d_ros.types import Camera

CAMERAS = ("front", "front_left", "front_right")
COMPRESSED, RAW = CAMERAS[:2], CAMERAS[2]
PERIOD = 0.4
PERIOD_NS = round(PERIOD * 1e9)
RELIABLE_QOS = QoSProfile(depth=10)


@dataclass
class Shot:
    """An image on its way. delay: seconds by which it comes late."""

    camera: str
    message: Any
    delay: float = 0.0


Spoil = Callable[[Shot], Iterable[Shot]]


def as_it_is(shot: Shot) -> list[Shot]:
    return [shot]


@dataclass(frozen=True)
class Answer:
    """A frame set, when and how it was answered. made, processed, drops: the books at its stamp:
    images up to then, and what became of them."""

    at: float
    stamp_ns: int
    status: Status
    made: Mapping[str, int]
    processed: Mapping[str, int]
    drops: Mapping[str, int]

    @property
    def whole(self) -> bool:
        return bool(self.status.tracking == Status.TRACKING and all(self.status.present))


@dataclass(order=True)
class _Due:
    at: float
    number: int
    publisher: Publisher = field(compare=False)
    message: Any = field(compare=False)


class Driver(Observer):
    """Time goes on by `turn`, which sends what is due.

    spoil: what a fault makes of an image. dead: cameras that are off. made: by camera, images that
    the node has to account for: each that a living camera took, and each that came twice.
    processed: images that were in a frame set that was answered with a ~/status.
    """

    def __init__(self, domain: int, drive: Shuttle) -> None:
        super().__init__(domain)
        self.drive = drive
        self.cameras = {camera.name: camera for camera in drive.rig.cameras}
        self.images: dict[str, Publisher] = {}
        self.infos: dict[str, Publisher] = {}
        self.open()
        self.spoil: Spoil = as_it_is
        self.spoil_info: Callable[[str, CameraInfo], Iterable[CameraInfo]] = lambda _, info: [info]
        self.spoil_odometry: Callable[[Odometry], Iterable[Odometry]] = lambda sample: [sample]
        self.dead: set[str] = set()
        self.driving = False
        self.with_odometry = False
        self.shift_ns = 0
        self.frame = 0
        self.made: Counter[str] = Counter()
        self.processed: Counter[str] = Counter()
        self.sets: list[Answer] = []
        self.poses: dict[int, NDArray[np.float64]] = {}
        """The node's, by stamp."""
        self.truth: dict[int, NDArray[np.float64]] = {}
        self._due: list[_Due] = []
        self._number = count()
        self._start = time.time_ns() // PERIOD_NS * PERIOD_NS
        self._beat = 0
        self._made_by: dict[int, dict[str, int]] = {}
        self._last: tuple[int, int] | None = None
        self.create_subscription(Status, "/recon4d/status", self._on_status, 50)
        self.create_subscription(Odometry, "/recon4d/odometry", self._on_pose, 50)

    def open(self, qos: QoSProfile = RELIABLE_QOS) -> None:
        """The cameras' driver starts (again)."""
        for publisher in (*self.images.values(), *self.infos.values()):
            self.destroy_publisher(publisher)
        for name in CAMERAS:
            kind, end = (Image, "") if name == RAW else (CompressedImage, "/compressed")
            self.images[name] = self.create_publisher(kind, f"/camera/{name}/image_raw{end}", qos)
            self.infos[name] = self.create_publisher(CameraInfo, f"/camera/{name}/camera_info", qos)

    def place_cameras(self, T_move: NDArray[np.float64] | None = None) -> None:
        """Say the extrinsics on /tf_static; T_move: moved by so much in base_link."""
        move = np.eye(4) if T_move is None else T_move
        transforms = [
            transform_msg(move @ camera.T_base_camera, self._start, "base_link", name)
            for name, camera in self.cameras.items()
        ]
        self.tf_static.publish(TFMessage(transforms=transforms))

    # --- time

    def turn(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0].at <= now:
            one = heapq.heappop(self._due)
            if one.publisher in (*self.images.values(), *self.infos.values()):
                one.publisher.publish(one.message)
        while self._start + self._beat * PERIOD_NS <= time.time_ns():
            if self.driving:
                self._shoot(self._start + self._beat * PERIOD_NS + self.shift_ns)
            self._beat += 1
        next_beat = (self._start + self._beat * PERIOD_NS - time.time_ns()) * 1e-9
        wait = min([0.02, next_beat] + [one.at - now for one in self._due[:1]])
        self._executor.spin_once(timeout_sec=max(wait, 0.0))

    def _shoot(self, stamp: int) -> None:
        jpegs, pose = self.drive.images(self.frame), self.drive.pose(self.frame)
        self.truth[stamp] = pose
        self.frame += 1
        if self.with_odometry:
            for sample in self.spoil_odometry(odometry(pose, stamp)):
                self.odometry.publish(sample)
        for name, jpeg in zip(CAMERAS, jpegs, strict=True):
            if name in self.dead:
                continue
            for info in self.spoil_info(name, camera_info(self.cameras[name], stamp)):
                self.infos[name].publish(info)
            shots = list(self.spoil(Shot(name, image(name, jpeg, stamp))))
            self.made[name] += max(len(shots), 1)
            for shot in shots:
                at = round(time.monotonic() + shot.delay, 2)  # at one time: as they were sent
                heapq.heappush(
                    self._due, _Due(at, next(self._number), self.images[shot.camera], shot.message)
                )
        self._made_by[stamp] = dict(self.made)

    # --- what the node says

    def _on_status(self, status: Status) -> None:
        self.said["/recon4d/status"] = [status]
        key = stamp_ns(status.header.stamp), status.frame_sets
        if status.frame_sets and key != self._last and status.tracking != Status.PAUSED:
            self._last = key
            self.processed.update(
                name for name, there in zip(status.cameras, status.present, strict=True) if there
            )
            made = self._made_by.get(key[0], {})
            self.sets.append(
                Answer(time.monotonic(), key[0], status, made, dict(self.processed), self.drops())
            )

    def _on_pose(self, message: Odometry) -> None:
        pose = message.pose.pose
        self.poses[stamp_ns(message.header.stamp)] = pose_matrix(
            pose.position, pose.orientation, "the pose"
        )


def image(camera: str, jpeg: bytes, stamp: int) -> Image | CompressedImage:
    if camera != RAW:
        return CompressedImage(header=header(stamp, camera), format="rgb8; jpeg", data=jpeg)
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    height, width = pixels.shape[:2]
    message = Image(header=header(stamp, camera), encoding="bgr8", width=width, height=height)
    message.step, message.data = 3 * width, pixels.tobytes()
    return message


def camera_info(camera: Camera, stamp: int) -> CameraInfo:
    info = CameraInfo(header=header(stamp, camera.name), width=camera.width, height=camera.height)
    info.distortion_model, info.k = "plumb_bob", camera.k.ravel()
    info.d = [0.0] * 5
    info.r = np.eye(3).ravel()
    info.p = np.hstack([camera.k, np.zeros((3, 1))]).ravel()
    return info


def odometry(pose: NDArray[np.float64], stamp: int) -> Odometry:
    message = Odometry(header=header(stamp, "odom"), child_frame_id="base_link")
    message.pose.pose = pose_msg(pose)
    return message


def restamped(message: Any, stamp: int) -> Any:
    message.header.stamp = time_msg(stamp)
    return message


def relative(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    return inverse(before) @ after
