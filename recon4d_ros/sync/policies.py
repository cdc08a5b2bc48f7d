"""The rules by which images become sets: all cameras matched by stamp (exact, approximate), or
resilient to late and dead cameras."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from recon4d_ros.types import RawImage

LATE = "late: its set was already out"
UNMATCHED = "no match within slop"
FULL = "queue full"

_HISTORY = 9  # stamp differences of which the median is a camera's period
_GAIN = 0.1  # of the slow average that learns a camera's phase


@dataclass(frozen=True)
class Group:
    """Images of one set by camera, and why the other cameras are not in it."""

    images: Mapping[str, RawImage]
    absent: Mapping[str, str] = field(default_factory=dict)


Drop = Callable[[str, str], None]


class Policy(Protocol):
    """What the Synchronizer asks of a rule. Times in ns."""

    def offer(self, camera: str, image: RawImage, now_ns: int) -> str | None:
        """Take an image that the door let in, or say why not."""

    def due(self, now_ns: int | None) -> list[Group]:
        """The groups that are complete or waited for long enough, oldest first; None: everything
        that is held."""

    def holds(self, camera: str, stamp_ns: int) -> bool:
        """Whether an image of this camera and stamp is held."""

    def count(self) -> int:
        """How many images are held."""

    def clear(self) -> list[str]:
        """Forget what is held; the camera of each image."""


@dataclass(order=True)
class _Held:
    stamp: int
    arrival: int
    image: RawImage = field(compare=False)


class MatchedPolicy:
    """All cameras in every set, their stamps at most `slop` apart; 0 is exact. The tightest match
    wins, what it skips is dropped."""

    def __init__(self, cameras: Sequence[str], drop: Drop, slop_ns: int, limit: int) -> None:
        self._held: dict[str, list[_Held]] = {camera: [] for camera in cameras}
        self._drop = drop
        self._slop = slop_ns
        self._limit = limit

    def offer(self, camera: str, image: RawImage, now_ns: int) -> str | None:
        held = self._held[camera]
        insort(held, _Held(image.stamp_ns, now_ns, image))
        if len(held) > self._limit:
            held.pop(0)
            self._drop(camera, FULL)
        return None

    def due(self, now_ns: int | None) -> list[Group]:
        groups = []
        while all(self._held.values()):
            oldest = min(self._held, key=lambda camera: self._held[camera][0].stamp)
            spread = self._spread()
            queue = self._held[oldest]
            if spread > self._slop or (
                len(queue) > 1 and self._spread({oldest: queue[1].stamp}) < spread
            ):
                queue.pop(0)  # no partner is near enough, or its next image is the better partner
                self._drop(oldest, UNMATCHED)
            else:
                groups.append(
                    Group({camera: queue.pop(0).image for camera, queue in self._held.items()})
                )
        if now_ns is None:
            for camera in self.clear():
                self._drop(camera, UNMATCHED)
        return groups

    def holds(self, camera: str, stamp_ns: int) -> bool:
        return any(held.stamp == stamp_ns for held in self._held[camera])

    def count(self) -> int:
        return sum(len(queue) for queue in self._held.values())

    def clear(self) -> list[str]:
        cameras = [camera for camera, queue in self._held.items() for _ in queue]
        for queue in self._held.values():
            queue.clear()
        return cameras

    def _spread(self, instead: Mapping[str, int] | None = None) -> int:
        stamps = {camera: queue[0].stamp for camera, queue in self._held.items()} | dict(
            instead or {}
        )
        return max(stamps.values()) - min(stamps.values())


@dataclass
class _Stream:
    """One camera as the resilient rule knows it. phase: how far its stamps lie behind the set's
    reference, learned."""

    held: list[_Held] = field(default_factory=list)  # by stamp
    newest: int | None = None
    last_arrival: int | None = None
    differences: deque[int] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    phase: float | None = None

    @property
    def period(self) -> float | None:
        return median(self.differences) if self.differences else None

    @property
    def offset(self) -> int:
        return round(self.phase or 0.0)


class ResilientPolicy:
    """Sets with bounded latency out of streams with jitter, drops, fixed phases, different rates,
    and cameras that die and come back.

    The oldest image held is the anchor of the next set. To it belongs each camera's first image
    that is nearer to the anchor than to the image after it: within half the (shortest) period,
    phases taken off. The set goes out when every camera is in it or known not to be: its next image
    is there already, is due only later (a slower camera), or the camera is dead; or at latest
    `max_wait` after the first image held came in.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        drop: Drop,
        slop_ns: int,
        max_wait_ns: int,
        reorder_ns: int,
        dead_after_ns: int,
        limit: int,
    ) -> None:
        self._streams = {camera: _Stream() for camera in cameras}
        self._drop = drop
        self._slop, self._max_wait, self._reorder, self._dead_after = (
            slop_ns,
            max_wait_ns,
            reorder_ns,
            dead_after_ns,
        )
        self._limit = limit
        self._started: int | None = None
        self._last_anchor: int | None = None
        self._last_members: frozenset[str] = frozenset()

    def offer(self, camera: str, image: RawImage, now_ns: int) -> str | None:
        stream = self._streams[camera]
        self._started = now_ns if self._started is None else self._started
        alive = stream.last_arrival is not None and now_ns - stream.last_arrival <= self._dead_after
        if stream.newest is not None and image.stamp_ns > stream.newest and alive:
            stream.differences.append(image.stamp_ns - stream.newest)
        stream.newest = max(
            image.stamp_ns, stream.newest if stream.newest is not None else image.stamp_ns
        )
        stream.last_arrival = now_ns
        if (
            self._last_anchor is not None
            and camera not in self._last_members
            and image.stamp_ns - stream.offset <= self._last_anchor + self._window(stream)
        ):
            return LATE
        insort(stream.held, _Held(image.stamp_ns, now_ns, image))
        return None

    def due(self, now_ns: int | None) -> list[Group]:
        groups = []
        while any(stream.held for stream in self._streams.values()):
            group = self._next(now_ns)
            if group is None:
                break
            groups.append(group)
        return groups

    def holds(self, camera: str, stamp_ns: int) -> bool:
        return any(held.stamp == stamp_ns for held in self._streams[camera].held)

    def count(self) -> int:
        return sum(len(stream.held) for stream in self._streams.values())

    def clear(self) -> list[str]:
        cameras = [camera for camera, stream in self._streams.items() for _ in stream.held]
        for stream in self._streams.values():
            stream.held.clear()
            stream.newest = None
        self._last_anchor = None
        return cameras

    def _next(self, now_ns: int | None) -> Group | None:
        """The oldest group, if it is due; it leaves the queues."""
        anchor = min(s.held[0].stamp - s.offset for s in self._streams.values() if s.held)
        members, absent, waiting = [], {}, False
        for camera, stream in self._streams.items():
            if stream.held and stream.held[0].stamp - stream.offset <= anchor + self._window(
                stream
            ):
                members.append(camera)
            else:
                absent[camera], wait = self._why_absent(stream, anchor, now_ns)
                waiting |= wait
        if waiting and now_ns is not None:
            oldest = min(held.arrival for s in self._streams.values() for held in s.held)
            full = any(len(s.held) > self._limit for s in self._streams.values())
            if now_ns < oldest + self._max_wait and not full:
                return None
        images = {camera: self._streams[camera].held.pop(0).image for camera in members}
        self._last_anchor, self._last_members = anchor, frozenset(members)
        self._learn_phases({camera: image.stamp_ns for camera, image in images.items()})
        return Group(images, absent)

    def _why_absent(self, stream: _Stream, anchor: int, now_ns: int | None) -> tuple[str, bool]:
        """The reason, and whether its image may still come."""
        if stream.held:
            return (
                "dropped: a newer image came instead",
                now_ns is not None and now_ns < stream.held[0].arrival + self._reorder,
            )
        since = stream.last_arrival if stream.last_arrival is not None else self._started
        if now_ns is not None and since is not None and now_ns - since > self._dead_after:
            return f"dead: no image for more than {self._dead_after * 1e-9:g} s", False
        if stream.newest is not None and stream.differences:
            window = self._window(stream)
            soonest = min(stream.differences)  # not the median: dropped images make that too long
            if (
                stream.newest - stream.offset + soonest - 0.5 * window > anchor + window
            ):  # half a window early is jitter
                return "slower: its next image is due later", False
        return "late: not there in time", True

    def _window(self, stream: _Stream) -> int:
        """How far behind the anchor an image of this camera may lie: half a period, a little more
        until its phase is known."""
        periods = [period for s in self._streams.values() if (period := s.period) is not None]
        share = 0.5 if stream.phase is not None else 0.6
        return min(self._slop, round(share * min(periods))) if periods else self._slop

    def _learn_phases(self, stamps: Mapping[str, int]) -> None:
        """Slow averages of each camera's distance from the set's middle; sets of one camera teach
        nothing."""
        if len(stamps) < 2:
            return
        corrected = {
            camera: stamp - self._streams[camera].offset for camera, stamp in stamps.items()
        }
        middle = median(corrected.values())
        for camera, value in corrected.items():
            stream = self._streams[camera]
            stream.phase = (
                value - middle if stream.phase is None else stream.phase + _GAIN * (value - middle)
            )
