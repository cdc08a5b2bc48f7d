"""Transforms between frames over time: a tree of frames, each with the recent poses in its
parent."""

from __future__ import annotations

import bisect
import threading
import time as clock
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.logging import get_logger
from rclpy.time import Time
from scipy.spatial.transform import Rotation


class TransformException(Exception):
    """Base of what a lookup can raise."""


class LookupException(TransformException):
    """A frame is not known."""


class ConnectivityException(TransformException):
    """Two frames are in different trees."""


class ExtrapolationException(TransformException):
    """The time asked for is outside of what is stored."""


@dataclass(frozen=True)
class _Pose:
    """Takes points in the child frame to points in the parent frame."""

    translation: NDArray[np.float64]
    rotation: Rotation

    def __matmul__(self, other: _Pose) -> _Pose:
        return _Pose(
            self.translation + self.rotation.apply(other.translation),
            self.rotation * other.rotation,
        )

    def inverse(self) -> _Pose:
        rotation = self.rotation.inv()
        return _Pose(-rotation.apply(self.translation), rotation)

    def towards(self, other: _Pose, fraction: float) -> _Pose:
        """Straight line in position, constant turn rate in rotation."""
        turn = (self.rotation.inv() * other.rotation).as_rotvec()
        translation = (1 - fraction) * self.translation + fraction * other.translation
        return _Pose(translation, self.rotation * Rotation.from_rotvec(fraction * turn))


_IDENTITY = _Pose(np.zeros(3), Rotation.identity())


@dataclass
class _Frame:
    """A frame's poses in its parent, ordered by stamp (ns); a static one has a single pose that
    holds at any time."""

    name: str
    parent: str
    static: bool
    stamps: list[int] = field(default_factory=list)
    poses: list[_Pose] = field(default_factory=list)

    def insert(self, stamp: int, pose: _Pose, keep: int) -> bool:
        """False where the pose is older than what is kept."""
        if self.static:
            self.stamps, self.poses = [stamp], [pose]
            return True
        if self.stamps and stamp < self.stamps[-1] - keep:
            return False
        at = bisect.bisect_left(self.stamps, stamp)
        if at < len(self.stamps) and self.stamps[at] == stamp:
            self.poses[at] = pose
        else:
            self.stamps.insert(at, stamp)
            self.poses.insert(at, pose)
        old = bisect.bisect_left(self.stamps, self.stamps[-1] - keep)
        del self.stamps[:old], self.poses[:old]
        return True

    def at(self, stamp: int) -> _Pose:
        if self.static:
            return self.poses[0]
        after = bisect.bisect_left(self.stamps, stamp)
        if after < len(self.stamps) and self.stamps[after] == stamp:
            return self.poses[after]
        if after == 0 or after == len(self.stamps):
            raise ExtrapolationException(
                f"Lookup of [{self.name}] in [{self.parent}] would require extrapolation: requested"
                f" time {stamp / 1e9:.6f}, but the data is from {self.stamps[0] / 1e9:.6f} to"
                f" {self.stamps[-1] / 1e9:.6f}"
            )
        start, end = self.stamps[after - 1], self.stamps[after]
        return self.poses[after - 1].towards(self.poses[after], (stamp - start) / (end - start))


class Buffer:
    """Stores transforms and answers how one frame lies in another at a time. Safe from several
    threads.

    cache_time: how far back from the newest transform of a frame the older ones are kept (10 s
    where None).
    """

    def __init__(self, cache_time: Duration | None = None, node: Any = None) -> None:
        self._keep = 10_000_000_000 if cache_time is None else cache_time.nanoseconds
        self._frames: dict[str, _Frame] = {}
        self._changed = threading.Condition()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Add a pose of child_frame_id in header.frame_id. One that cannot be used is logged and
        left out."""
        self._set(transform, authority, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Add a pose that holds at any time."""
        self._set(transform, authority, static=True)

    def _set(self, transform: TransformStamped, authority: str, static: bool) -> None:
        child, parent = (
            transform.child_frame_id.removeprefix("/"),
            transform.header.frame_id.removeprefix("/"),
        )
        t, q = transform.transform.translation, transform.transform.rotation
        translation, xyzw = np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w])
        what = f"transform of [{child}] in [{parent}] from [{authority}] is left out"
        problem = ""
        if not child or not parent:
            problem = "a frame has no name"
        elif child == parent:
            problem = "both frames are the same"
        elif not (np.all(np.isfinite(translation)) and np.all(np.isfinite(xyzw))):
            problem = "a value is not finite"
        elif abs(xyzw @ xyzw - 1) > 1e-2:
            problem = "the quaternion is not of unit length"
        if problem:
            get_logger("tf2").error(f"{what}: {problem}")
            return
        stamp = transform.header.stamp.sec * 1_000_000_000 + transform.header.stamp.nanosec
        with self._changed:
            frame = self._frames.get(child)
            if frame is None or (frame.parent, frame.static) != (
                parent,
                static,
            ):  # a new parent: the poses in the old one say nothing now
                frame = self._frames[child] = _Frame(child, parent, static)
            if not frame.insert(stamp, _Pose(translation, Rotation.from_quat(xyzw)), self._keep):
                get_logger("tf2").warning(f"{what}: it is older than what is kept")
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget all but the static transforms."""
        with self._changed:
            self._frames = {name: frame for name, frame in self._frames.items() if frame.static}

    def can_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration | None = None
    ) -> bool:
        """Whether lookup_transform would answer, now or within the timeout (wall clock)."""
        try:
            self.lookup_transform(target_frame, source_frame, time, timeout)
        except TransformException:
            return False
        return True

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration | None = None
    ) -> TransformStamped:
        """The transform that takes points in source_frame to target_frame; Time() asks for the
        newest time that all on the way have.

        Waits up to the timeout (wall clock) for what is missing. Raises LookupException,
        ConnectivityException, ExtrapolationException.
        """
        deadline = clock.monotonic() + (0.0 if timeout is None else timeout.nanoseconds / 1e9)
        with self._changed:
            while True:
                try:
                    return self._lookup(target_frame, source_frame, time.nanoseconds)
                except TransformException:
                    remaining = deadline - clock.monotonic()
                    if remaining <= 0:
                        raise
                    self._changed.wait(remaining)

    def _lookup(self, target: str, source: str, stamp: int) -> TransformStamped:
        known = self._frames.keys() | {frame.parent for frame in self._frames.values()}
        for role, name in (("target_frame", target), ("source_frame", source)):
            if name not in known:
                raise LookupException(
                    f'"{name}" passed to lookupTransform argument {role} does not exist. '
                )
        up_source, up_target = self._ancestry(source), self._ancestry(target)
        if up_source[-1] != up_target[-1]:
            what = f"Could not find a connection between '{target}' and '{source}'"
            raise ConnectivityException(f"{what} because they are not part of the same tree.")
        common = next(name for name in up_source if name in up_target)
        from_source = [self._frames[name] for name in up_source[: up_source.index(common)]]
        from_target = [self._frames[name] for name in up_target[: up_target.index(common)]]
        if stamp == 0:
            on_the_way = from_source + from_target or [
                self._frames[name] for name in (source,) if name in self._frames
            ]
            stamp = min((frame.stamps[-1] for frame in on_the_way if not frame.static), default=0)
        pose = _up(from_target, stamp).inverse() @ _up(from_source, stamp)

        result = TransformStamped(child_frame_id=source)
        result.header.frame_id = target
        result.header.stamp = Time(nanoseconds=stamp).to_msg()
        translation, rotation = result.transform.translation, result.transform.rotation
        translation.x, translation.y, translation.z = pose.translation.tolist()
        rotation.x, rotation.y, rotation.z, rotation.w = pose.rotation.as_quat().tolist()
        return result

    def _ancestry(self, name: str) -> list[str]:
        """The frame and all above it, up to the root of its tree."""
        names = [name]
        while names[-1] in self._frames:
            parent = self._frames[names[-1]].parent
            if parent in names:
                raise ConnectivityException(f"the frames {', '.join(names)} form a loop")
            names.append(parent)
        return names


def _up(frames: list[_Frame], stamp: int) -> _Pose:
    """Pose of the first frame in the parent of the last."""
    pose = _IDENTITY
    for frame in frames:
        pose = frame.at(stamp) @ pose
    return pose
