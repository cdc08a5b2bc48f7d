"""Tracks of what moves, and objects that a network detects, as one list in which no thing is
twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from recon4d_ros.types import Detection, Detections, DynamicObject

Array = NDArray[np.float64]

OLD = 2_000_000_000  # ns: Sparse4D carries nothing over longer gaps, and neither is anything here
MARGIN = 1.0  # metres: a track's box is of what was seen of a thing, the network's is of all of it
DETECTED = 2**31  # ids from here on are the network's, below the tracks'
UNKNOWN = np.full((3, 3), np.nan)


class OneList:
    """`take` what the network detects, when it comes; `at` a frame set's stamp gives the list.

    A detection is carried by its velocity over ground from its own stamp to the list's. One whose
    centre lies in a track's box, or the other way round (boxes seen from above, a metre wider), is
    that track: the track gets its class, which it keeps, and its motion stays the track's. Every
    other detection is an object of its own, whether it moves or not, with DETECTED added to its id.
    The network says no covariance: there it is NaN. Safe to be called from two threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._detections: Detections | None = None
        self._world: Hashable = None
        self._looks: Counter[int] = Counter()  # by id of the network: how often it was detected
        self._since = 0  # lists since the network's last word
        self._classes: dict[int, tuple[str, float]] = {}  # by id of the track
        self.too_old = 0
        """Detections that came, or were still the last, when they were too old to be said."""

    def take(self, detections: Detections, world: Hashable) -> None:
        """world: which map these are in; they are not put into lists of another one."""
        with self._lock:
            if world != self._world:
                self._looks.clear()
                self._classes.clear()
            self._detections, self._world, self._since = detections, world, 0
            ids = {one.id for one in detections.objects}
            self._looks = Counter({one: self._looks[one] + 1 for one in ids})

    def at(
        self, stamp_ns: int, tracks: tuple[DynamicObject, ...], world: Hashable
    ) -> tuple[DynamicObject, ...]:
        """Tracks first, in their order, then what only the network sees, best first."""
        with self._lock:
            found, since = self._detections, self._since
            self._since += 1
            if found is None or world != self._world:
                return tracks
            dt = (stamp_ns - found.stamp_ns) * 1e-9
            if not 0 <= dt <= OLD * 1e-9:
                self.too_old += since == 0
                return self._named(tracks)
            carried = [
                self._carried(one, dt, since) for one in found.objects if one.id >= 0
            ]  # without an id it is not sure of it yet
            pairs = matched(tracks, carried)
            for track, detection in pairs.items():
                seen = carried[detection]
                self._classes[tracks[track].id] = (seen.class_name, seen.class_score)
            alone = set(range(len(carried))) - set(pairs.values())
            return (*self._named(tracks), *(carried[index] for index in sorted(alone)))

    def _named(self, tracks: tuple[DynamicObject, ...]) -> tuple[DynamicObject, ...]:
        known = {track.id: self._classes[track.id] for track in tracks if track.id in self._classes}
        self._classes = known
        return tuple(
            replace(track, class_name=known[track.id][0], class_score=known[track.id][1])
            if track.id in known
            else track
            for track in tracks
        )

    def _carried(self, one: Detection, dt: float, since: int) -> DynamicObject:
        velocity = one.velocity_map * (1.0, 1.0, 0.0)  # its z is not supervised in training
        return DynamicObject(
            id=DETECTED + one.id % DETECTED,
            position=one.box_map[:3] + dt * velocity,
            yaw=float(one.box_map[6]),
            size=one.box_map[3:6],
            velocity=velocity,
            position_covariance=UNKNOWN,
            velocity_covariance=UNKNOWN,
            confidence=one.score,
            age=self._looks[one.id],
            missed=since,
            class_name=one.class_name,
            class_score=one.class_score,
        )


def matched(tracks: tuple[DynamicObject, ...], detected: list[DynamicObject]) -> dict[int, int]:
    """Index of the track -> index of the detection that is the same thing: nearest first as a
    whole (assignment), of those that may be one."""
    if not tracks or not detected:
        return {}
    apart = np.array(
        [[float(np.linalg.norm((t.position - d.position)[:2])) for d in detected] for t in tracks]
    )
    may = np.array(
        [[_within(t.position, d) or _within(d.position, t) for d in detected] for t in tracks]
    )
    far = 1e3 + float(apart.max())
    rows, columns = linear_sum_assignment(np.where(may, apart, far))
    return {int(r): int(c) for r, c in zip(rows, columns, strict=True) if may[r, c]}


def _within(point: Array, box: DynamicObject) -> bool:
    """Whether a point lies in a box seen from above, MARGIN wider on each side."""
    cos, sin = np.cos(box.yaw), np.sin(box.yaw)
    x, y = (point - box.position)[:2]
    along, across = cos * x + sin * y, cos * y - sin * x
    return bool(abs(along) <= box.size[0] / 2 + MARGIN and abs(across) <= box.size[1] / 2 + MARGIN)
