"""The truth of a bag (/ground_truth/*), streamed beside a run: poses at any time, and what else
there is at a frame's stamp."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import messages as ros
from recon4d_ros.bags import BagReader
from recon4d_ros.depth_png import decode_depth
from recon4d_ros.evaluation.metrics.clouds import Boxes
from recon4d_ros.geometry import interpolate

_PREFIX = "/ground_truth/"
# a recorder may have the truth of a stamp up to a second after the images of that stamp
_SLACK_NS = 1_000_000_000
_SAME_NS = 20_000_000  # truth and image are of the same time if their stamps are this near


@dataclass(frozen=True)
class TrueObjects:
    """Every object of the world at one time, in world. ids: [K]. velocity: [K, 3] m/s."""

    ids: NDArray[np.int64]
    boxes: Boxes
    velocity: NDArray[np.float64]


class TruthSource(Protocol):
    """What an evaluator asks for, with stamps that grow."""

    def close(self) -> None: ...

    def pose(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """T_world_base."""
        ...

    def depth(self, camera: str, stamp_ns: int) -> NDArray[np.float32] | None:
        """[height, width] m along the optical axis in the raw image's geometry, NaN = none."""
        ...

    def mask(self, camera: str, stamp_ns: int) -> NDArray[np.bool_] | None:
        """[height, width] True on what moves."""
        ...

    def objects(self, stamp_ns: int) -> TrueObjects | None:
        """Everything that moves."""
        ...

    def points(self, stamp_ns: int, within_ns: int) -> tuple[int, NDArray[np.float32]] | None:
        """Stamp and lidar points [K, 3] in base_link."""
        ...


class Truth:
    """The /ground_truth/* topics of a bag. Asked for stamps that grow, it reads the bag once and
    keeps about two seconds of it."""

    def __init__(self, bag: str | Path) -> None:
        """Raises BagError if the bag cannot be read."""
        self._reader = BagReader(bag)
        self._topics = [topic for topic in self._reader.topics if topic.startswith(_PREFIX)]
        self._stamps, self._poses = self._odometry()
        streamed = [topic for topic in self._topics if topic != _PREFIX + "odom"]
        self._stream: Iterator[tuple[str, int, Any]] = iter(
            self._reader.messages(streamed) if streamed else ()
        )
        self._kept: dict[str, deque[tuple[int, Any]]] = {topic: deque() for topic in streamed}
        self._read_until = -1

    def close(self) -> None:
        self._reader.close()

    def pose(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """T_world_base, between the two samples around the stamp; None outside the truth's time."""
        after = int(np.searchsorted(self._stamps, stamp_ns))
        if after < len(self._stamps) and self._stamps[after] == stamp_ns:
            return self._poses[after]
        if not 0 < after < len(self._stamps):
            return None
        span = self._stamps[after] - self._stamps[after - 1]
        return interpolate(
            self._poses[after - 1],
            self._poses[after],
            float(stamp_ns - self._stamps[after - 1]) / float(span),
        )

    def depth(self, camera: str, stamp_ns: int) -> NDArray[np.float32] | None:
        """[height, width] m along the optical axis in the raw image's geometry, NaN = none."""
        message = self._at(f"{_PREFIX}{camera}/depth", stamp_ns)
        if message is None:
            return None
        return decode_depth(np.asarray(cv2.imdecode(message.data, cv2.IMREAD_UNCHANGED)))

    def mask(self, camera: str, stamp_ns: int) -> NDArray[np.bool_] | None:
        """[height, width] True on what moves."""
        message = self._at(f"{_PREFIX}{camera}/dynamic_mask", stamp_ns)
        return (
            None
            if message is None
            else np.asarray(cv2.imdecode(message.data, cv2.IMREAD_GRAYSCALE)) > 127
        )

    def objects(self, stamp_ns: int) -> TrueObjects | None:
        """Everything that can move, whether it does or not."""
        message = self._at(_PREFIX + "objects", stamp_ns)
        if message is None:
            return None
        every = [ros.dynamic_object(entry) for entry in message.objects]
        position, size, velocity = (
            np.array([getattr(o, name) for o in every]).reshape(-1, 3)
            for name in ("position", "size", "velocity")
        )
        boxes = Boxes(position, size, np.array([o.yaw for o in every]))
        return TrueObjects(np.array([o.id for o in every], np.int64), boxes, velocity)

    def points(self, stamp_ns: int, within_ns: int) -> tuple[int, NDArray[np.float32]] | None:
        """Stamp and lidar points [K, 3] in base_link of the scan nearest to the stamp, if there is
        one within `within_ns`."""
        message = self._at(_PREFIX + "points", stamp_ns, within_ns)
        return (
            None
            if message is None
            else (ros.stamp_ns(message.header.stamp), ros.cloud_points(message))
        )

    def _at(self, topic: str, stamp_ns: int, within_ns: int = _SAME_NS) -> Any | None:
        if topic not in self._kept:
            return None
        self._advance(stamp_ns + _SLACK_NS)
        best = min(self._kept[topic], key=lambda entry: abs(entry[0] - stamp_ns), default=None)
        return best[1] if best is not None and abs(best[0] - stamp_ns) <= within_ns else None

    def _advance(self, until_ns: int) -> None:
        while self._read_until < until_ns:
            entry = next(self._stream, None)
            if entry is None:
                return
            topic, receive_ns, message = entry
            stamp = ros.stamp_ns(message.header.stamp)
            self._read_until = max(receive_ns, self._read_until)
            kept = self._kept[topic]
            kept.append((stamp, message))
            while kept[0][0] < until_ns - 3 * _SLACK_NS:
                kept.popleft()

    def _odometry(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        topic = _PREFIX + "odom"
        if topic not in self._topics:
            return np.zeros(0, np.int64), np.zeros((0, 4, 4))
        samples = [ros.odometry_sample(message) for _, _, message in self._reader.messages([topic])]
        stamps, first = np.unique(
            np.array([sample.stamp_ns for sample in samples], np.int64), return_index=True
        )
        return stamps, np.stack([samples[index].T_odom_base for index in first])
