"""What a running node published, read back from the recorded bag as the Reconstructions that it was
made from.

So that a run over DDS is written, drawn and scored by the same code as `recon4d replay`: from what
a listener heard, not from inside the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import messages as ros
from recon4d_ros.bags import BagReader, ImageEvent
from recon4d_ros.cameras.preprocess import Preprocessor
from recon4d_ros.errors import BagError
from recon4d_ros.evaluation.report import most_frequent
from recon4d_ros.mapping import Cloud, write_cloud
from recon4d_ros.types import (
    Calibration,
    DynamicObject,
    Frame,
    FrameSet,
    Geometry,
    MapDelta,
    Motion,
    PoseEstimate,
    RawImage,
    Reconstruction,
    Tracking,
)

_TRACKING = {
    0: Tracking.STARTING,
    1: Tracking.TRACKING,
    2: Tracking.LOST,
    4: Tracking.DEGRADED,
}
_NO_DELTA = MapDelta(
    0,
    0.0,
    np.empty((0, 3), np.int32),
    np.empty((0, 3), np.float32),
    np.empty((0, 3), np.uint8),
    np.empty(0, np.float32),
    np.empty((0, 3), np.int32),
)


@dataclass
class Recording:
    """The recorded outputs of one node. `frames` yields them set by set; afterwards `cloud` is the
    map as heard over the drive: the last one, and of those before what lay beyond its reach.

    source: the bag that was played, for the pictures; image_topics: camera -> topic there, where
    it was named. preprocessor: of the rig and engine that ran.
    A set is what the node's status said of a frame set, with the images published for it.
    """

    bag: Path
    source: Path
    preprocessor: Preprocessor
    calibration: Calibration
    node: str = "/recon4d"
    latency: list[float] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    cloud: Cloud = field(default_factory=lambda: _empty())
    image_topics: Mapping[str, str] = field(default_factory=dict)

    def frames(self) -> Iterator[Reconstruction]:
        """Reconstructions in the order of their stamps. Raises BagError if the recording has no
        frame set."""
        poses, objects, statuses = self._small_messages()
        if not statuses:
            raise BagError(
                f"{self.bag}: no frame set was recorded from {self.node}:"
                f" {most_frequent(self.drops)}"
            )
        working = _ImageStream(
            self.bag,
            [
                f"{self.node}/{name}/{what}"
                for what in ("depth", "dynamic_mask")
                for name in self.calibration.names
            ],
        )
        source = _SourceImages(self.source, self.calibration.names, self.image_topics)
        slack = int(np.median(np.diff(sorted(statuses)))) // 2 if len(statuses) > 1 else 10**9
        with closing(working), closing(source):
            for stamp in sorted(statuses):
                if stamp in poses:
                    yield self._reconstruction(
                        stamp,
                        poses[stamp],
                        objects.get(stamp, ()),
                        statuses[stamp],
                        working,
                        source,
                        slack,
                    )

    def _small_messages(
        self,
    ) -> tuple[dict[int, Any], dict[int, tuple[DynamicObject, ...]], dict[int, Any]]:
        poses, objects, statuses = {}, {}, {}
        topics = {f"{self.node}/{name}": name for name in ("odometry", "objects", "status", "map")}
        with BagReader(self.bag) as reader:
            for topic, _, message in reader.messages(
                [topic for topic in topics if topic in reader.topics]
            ):
                stamp = ros.stamp_ns(message.header.stamp)
                kind = topics[topic]
                if kind == "odometry":
                    poses[stamp] = message
                elif kind == "objects":
                    objects[stamp] = tuple(ros.dynamic_object(entry) for entry in message.objects)
                elif kind == "status":
                    self.drops = dict(
                        zip(message.drop_reasons, map(int, message.drop_counts), strict=True)
                    )
                    if message.frame_sets > 0:
                        statuses[stamp] = message
                        self.latency.append(float(message.latency))
                elif kind == "map" and poses:
                    position = ros.odometry_sample(poses[max(poses)]).T_odom_base[:3, 3]
                    self.cloud = _joined(self.cloud, _cloud(message), position)
        return poses, objects, statuses

    def _reconstruction(
        self,
        stamp: int,
        pose: Any,
        objects: tuple[DynamicObject, ...],
        status: Any,
        working: _ImageStream,
        source: _SourceImages,
        slack: int,
    ) -> Reconstruction:
        h, w = self.calibration.working_size
        count = len(self.calibration.names)
        depth = np.full((count, h, w), np.nan, np.float32)
        mask = np.zeros((count, h, w), bool)
        present, stamps = np.zeros(count, bool), np.full(count, stamp, np.int64)
        images: dict[str, RawImage] = {}
        for n, name in enumerate(self.calibration.names):
            found = (
                working.nearest(f"{self.node}/{name}/depth", stamp, slack)
                if status.present[n]
                else None
            )
            if found is None:
                continue
            own, message = found
            present[n], stamps[n] = True, own
            depth[n] = np.frombuffer(message.data, np.float32).reshape(h, w)
            marked = working.nearest(f"{self.node}/{name}/dynamic_mask", own, 0)
            if marked:
                mask[n] = np.frombuffer(marked[1].data, np.uint8).reshape(h, w) > 127
            picture = source.at(name, own)
            if picture is not None:
                images[name] = picture
        frame, _ = self.preprocessor(FrameSet(stamp, images))
        color = np.stack(
            [_rectified(frame.images[n], self.calibration.grid[n]) for n in range(count)]
        )
        T_map_base = ros.odometry_sample(pose).T_odom_base
        estimate = PoseEstimate(
            T_map_base,
            T_map_base @ self.calibration.T_base_camera,
            _TRACKING.get(status.tracking, Tracking.LOST),
            np.asarray(pose.pose.covariance, np.float64).reshape(6, 6),
            np.full((6, 6), np.nan),  # published as the twist's, over a time that is not
            np.zeros(6),
            reason=status.reason,
        )
        unheard = np.full_like(depth, np.nan)  # sigma and confidence are not published per pixel
        geometry = Geometry(depth, unheard, unheard, color)
        latency = dict(zip(status.stages, map(float, status.stage_latency), strict=True))
        return Reconstruction(
            FrameSet(stamp, images),
            Frame(stamp, frame.images, present, stamps),
            estimate,
            geometry,
            Motion(mask, objects),
            _NO_DELTA,
            latency,
            float(status.memory_fill),
        )

    def save(self, path: Path) -> int:
        """Write the map as heard; returns its number of points (0 and an empty file if no map was
        heard)."""
        write_cloud(path, self.cloud)
        return len(self.cloud)


class _ImageStream:
    """Messages of image topics by stamp, read forward through a bag with a short memory."""

    def __init__(self, bag: Path, topics: list[str], window_ns: int = 4_000_000_000) -> None:
        self._reader = BagReader(bag)
        self._messages = self._reader.messages(
            [topic for topic in topics if topic in self._reader.topics]
        )
        self._held: dict[str, dict[int, Any]] = {topic: {} for topic in topics}
        self._latest = -1
        self._window = window_ns

    def close(self) -> None:
        self._reader.close()

    def nearest(self, topic: str, stamp: int, slack: int) -> tuple[int, Any] | None:
        """The message stamped nearest to `stamp`, at most `slack` nanoseconds away."""
        while (
            self._latest < stamp + self._window // 2
            and (following := next(self._messages, None)) is not None
        ):
            name, _, message = following
            own = ros.stamp_ns(message.header.stamp)
            self._latest = max(self._latest, own)
            held = self._held[name]
            held[own] = message
            while held and min(held) < stamp - self._window:
                del held[min(held)]
        held = self._held[topic]
        best = min(held, key=lambda own: abs(own - stamp), default=None)
        return (best, held[best]) if best is not None and abs(best - stamp) <= slack else None


class _SourceImages:
    """The played bag's images by camera and stamp, read forward with a short memory."""

    def __init__(
        self,
        bag: Path,
        cameras: Sequence[str],
        image_topics: Mapping[str, str] | None = None,
        window_ns: int = 4_000_000_000,
    ) -> None:
        self._reader = BagReader(bag)
        self._events = (
            event
            for event in self._reader.events(cameras, image_topics=image_topics)
            if isinstance(event, ImageEvent)
        )
        self._held: dict[tuple[str, int], RawImage] = {}
        self._latest = -1
        self._window = window_ns

    def close(self) -> None:
        self._reader.close()

    def at(self, camera: str, stamp: int) -> RawImage | None:
        """None where the bag has no such image; then it is read no farther than where that would
        be, so that the later ones are found."""
        while (camera, stamp) not in self._held and self._latest < stamp + self._window // 2:
            event = next(self._events, None)
            if event is None:
                break
            self._held[event.camera, event.image.stamp_ns] = event.image
            self._latest = max(self._latest, event.image.stamp_ns)
        while self._held and next(iter(self._held))[1] < stamp - self._window:
            del self._held[next(iter(self._held))]
        return self._held.get((camera, stamp))


def _rectified(image: NDArray[np.uint8], grid: NDArray[np.float32]) -> NDArray[np.uint8]:
    out = np.asarray(cv2.remap(image, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR), np.uint8)
    return np.repeat(out.reshape(*grid.shape[:2], -1), 3 if image.shape[-1] == 1 else 1, axis=-1)


def _empty() -> Cloud:
    return Cloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.float32))


def _joined(before: Cloud, now: Cloud, position: NDArray[np.float64]) -> Cloud:
    """The map now, and of the map before what lies beyond the reach of the one now: the node's map
    is bounded around the car."""
    if not len(now):
        return before
    reach = np.linalg.norm(now.xyz - position, axis=1).max()
    kept = np.linalg.norm(before.xyz - position, axis=1) > reach
    pairs = ((before.xyz, now.xyz), (before.rgb, now.rgb), (before.weight, now.weight))
    return Cloud(*(np.concatenate([old[kept], new]) for old, new in pairs))


def _cloud(message: Any) -> Cloud:
    """A PointCloud2 of x y z rgb weight as the node makes it."""
    rows = ros.point_rows(message, ("x", "y", "z", "rgb", "weight"))
    packed = np.ascontiguousarray(rows["rgb"]).view(np.uint32)
    rgb = np.stack([(packed >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)], axis=-1)
    return Cloud(
        np.stack([rows["x"], rows["y"], rows["z"]], axis=-1),
        rgb,
        np.ascontiguousarray(rows["weight"]),
    )
