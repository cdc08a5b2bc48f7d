"""Cameras on different clocks: what a clock is ahead by is told, taken off, or learned, from stamps
held against the times of reception."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from statistics import median

from recon4d_ros.errors import ParameterError
from recon4d_ros.types import RawImage

AUTO = "auto"
# names that stand for these beside the cameras'
ODOMETRY, IMU, TWIST = "odometry", "imu", "twist"
SENSORS = frozenset((ODOMETRY, IMU, TWIST))
SECOND = 1_000_000_000
# Messages of a stream that its clock is told from: few, so that a short bag will do, and all have
# to say the same, so that a jump of time or a stalled network does not.
LEARNED_FROM = 5
STEADY = SECOND // 10
# What one clock may seem ahead of another by through latency alone.
APART = SECOND // 5
SENSOR_APART = SECOND // 2
# How long images are held while an offset is learned: then the others go on without.
PATIENCE = 3 * SECOND
# Cameras that fire within this share of a period of each other are taken to fire at once.
TOGETHER = 0.25
# Stamps that go so much slower or faster than the images come are not seconds and nanoseconds; a
# bag that was recorded while another was played slowly is within.
PACE = 20
PACED = 10  # images it is told from
LEAST = 3 * SECOND // 10  # over which these have to come


def parse_offsets(text: str, names: Sequence[str]) -> dict[str, float | None]:
    """Seconds by name out of `auto` or `right=37.0,front=auto`; None stands for auto. Raises
    ParameterError."""
    known = (*names, ODOMETRY, IMU, TWIST)
    if text.strip() == AUTO:
        return dict.fromkeys(known)
    offsets: dict[str, float | None] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or name not in known:
            raise ParameterError(
                f"parameter sync.offset is {text!r}: expected {AUTO}, or seconds by camera"
                f" ({', '.join(f'{one}=0.0' for one in known[:2])}); the names are"
                f" {', '.join(known)}"
            )
        try:
            offsets[name] = None if value == AUTO else float(value)
        except ValueError:
            raise ParameterError(
                f"parameter sync.offset.{name} is {value!r}: expected seconds or {AUTO}"
            ) from None
        seconds = offsets[name]
        if seconds is not None and not abs(seconds) < 1e10:
            raise ParameterError(f"parameter sync.offset.{name} is {value}: expected seconds")
    return offsets


@dataclass
class _Clock:
    """One stream's. ahead: by what its stamps lead reception, of its last messages. stamps: of
    these."""

    ahead: deque[int] = field(default_factory=lambda: deque(maxlen=LEARNED_FROM))
    stamps: deque[int] = field(default_factory=lambda: deque(maxlen=LEARNED_FROM))
    first: tuple[int, int] = (0, 0)  # stamp and reception
    count: int = 0

    def add(self, stamp_ns: int, now_ns: int) -> None:
        self.first = self.first if self.count else (stamp_ns, now_ns)
        self.count += 1
        self.ahead.append(stamp_ns - now_ns)
        self.stamps.append(stamp_ns)

    def lead(self, fewest: int = LEARNED_FROM) -> int | None:
        """Nanoseconds; None while it is not known."""
        if len(self.ahead) < fewest or max(self.ahead) - min(self.ahead) > STEADY:
            return None
        return round(median(self.ahead))

    def period(self) -> int:
        """Nanoseconds; 0 while it is not known."""
        gaps = [b - a for a, b in zip(self.stamps, list(self.stamps)[1:], strict=False)]
        return max(round(median(gaps)), 0) if gaps else 0


@dataclass(frozen=True)
class Received:
    """An image, and when it came."""

    camera: str
    image: RawImage
    now_ns: int


class ClockOffsets:
    """The door before the synchronizer's: images come out with their offsets taken off.

    offsets: seconds by name, None = to be learned. findings: sentences, each said once: clocks that
    differ and are not corrected, offsets that were learned.
    """

    def __init__(self, cameras: Sequence[str], offsets: Mapping[str, float | None]) -> None:
        self.findings: list[str] = []
        self._cameras = tuple(cameras)
        self._offset = {
            name: round(seconds * SECOND)
            for name, seconds in offsets.items()
            if seconds is not None
        }
        self._given = set(self._offset)
        self._unknown = {name for name, seconds in offsets.items() if seconds is None}
        # what the others are held against: the first camera whose clock is not in question
        sure = [name for name in self._cameras if name not in self._unknown]
        self._reference = (sure or self._cameras)[0]
        self._unknown.discard(self._reference)
        self._clocks = {name: _Clock() for name in (*self._cameras, *sorted(SENSORS))}
        self._told: set[str] = set()
        self._waiting: list[Received] = []
        self._since: int | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, camera: str) -> int:
        """Images of a camera that are held until its clock is known."""
        return sum(one.camera == camera for one in self._waiting)

    def image(self, camera: str, image: RawImage, now_ns: int) -> list[Received]:
        """Take an image; what may go on, in order of reception."""
        self._since = now_ns if self._since is None else self._since
        clock = self._clocks[camera]
        clock.add(image.stamp_ns - self._offset.get(camera, 0), now_ns)
        if clock.count == PACED:
            self._pace(camera, image.stamp_ns - self._offset.get(camera, 0), now_ns)
        learning = self._unknown - SENSORS
        if not learning:
            self._watch(camera)
            return [self._corrected(Received(camera, image, now_ns))]
        self._waiting.append(Received(camera, image, now_ns))
        for name in sorted(learning):
            self._learn(name)
        learning = self._unknown - SENSORS
        late = now_ns - self._since > PATIENCE  # who has not come holds nobody up
        return self.release(keep=learning) if late or not learning else []

    def sensor(self, name: str, stamp_ns: int, now_ns: int | None) -> int | None:
        """The stamp of a sample of odometry, imu or twist with the offset taken off; None where its
        clock is another one, or not yet known. now_ns: of its reception; None: its clock is not
        looked at."""
        offset = self._offset.get(name, 0)
        if now_ns is None:
            return stamp_ns - offset
        self._clocks[name].add(stamp_ns - offset, now_ns)
        if name in self._unknown:
            self._learn(name)
        if name in self._unknown or name in self._told:
            return None
        if name not in self._given and self._differs(name, SENSOR_APART):
            return None
        return stamp_ns - self._offset.get(name, 0)

    def release(self, keep: Set[str] = frozenset()) -> list[Received]:
        """What waits and may go on. keep: cameras whose images go on waiting."""
        out = [self._corrected(one) for one in self._waiting if one.camera not in keep]
        self._waiting = [one for one in self._waiting if one.camera in keep]
        return out

    def flush(self) -> list[Received]:
        """Everything that waits, with what can be learned from so few."""
        for name in sorted(self._unknown - SENSORS):
            if not self._learn(name, fewest=1):
                self.findings.append(
                    f"sync.offset.{name} is {AUTO}, and there were too few images to learn it from"
                )
        return self.release()

    def _corrected(self, one: Received) -> Received:
        offset = self._offset.get(one.camera, 0)
        if not offset:
            return one
        return replace(one, image=replace(one.image, stamp_ns=one.image.stamp_ns - offset))

    def _learn(self, name: str, fewest: int = LEARNED_FROM) -> bool:
        clock, reference = self._clocks[name], self._clocks[self._reference]
        lead, its = clock.lead(fewest), reference.lead(fewest)
        if lead is None or its is None:
            return False
        offset = lead - its
        if abs(offset) < (SENSOR_APART if name in SENSORS else APART):
            offset = 0  # latency says as much: there is one clock
        elif name not in SENSORS:
            rest = [
                min((stamp - offset - other for other in reference.stamps), key=abs)
                for stamp in clock.stamps
            ]
            if abs(median(rest)) < TOGETHER * reference.period():
                offset += round(median(rest))
        self._unknown.discard(name)
        self._offset[name] = offset
        self._clocks[name] = _Clock()  # from now on its stamps are held against what was taken off
        self.findings.append(
            f"sync.offset.{name} is learned: {offset / SECOND:.3f} s against {self._reference}"
            if offset
            else f"sync.offset.{name} is learned: one clock with {self._reference}"
        )
        return True

    def _pace(self, camera: str, stamp_ns: int, now_ns: int) -> None:
        """Says that a camera's stamps do not go as time does."""
        stamp, now = self._clocks[camera].first
        stamped, came = stamp_ns - stamp, now_ns - now
        if came > LEAST and stamped >= 0 and not came < PACE * stamped < PACE**2 * came:
            self.findings.append(
                f"stamps of {camera} advance by {stamped * 1e-6 / (PACED - 1):.3f} ms from image to"
                f" image though they arrive {came * 1e-6 / (PACED - 1):.0f} ms apart: expected"
                " seconds and nanoseconds of one clock (milliseconds or ticks in their place?)"
            )

    def _watch(self, camera: str) -> None:
        """Says, once, that a camera's clock is another one."""
        if camera == self._reference:
            others: Iterator[str] = iter(self._cameras)
        else:
            others = iter([camera])
        for name in others:
            if name not in self._told and name != self._reference:
                self._differs(name, APART)

    def _differs(self, name: str, apart: int) -> bool:
        lead, its = self._clocks[name].lead(), self._clocks[self._reference].lead()
        if lead is None or its is None or abs(lead - its) < apart:
            return False
        self._told.add(name)
        seconds = (lead - its + self._offset.get(name, 0)) / SECOND
        what = "cameras" if name in SENSORS else self._reference
        end = f"{name} is not used; " if name in SENSORS else ""
        self.findings.append(
            f"clocks of {what} and {name} differ by {abs(lead - its) / SECOND:.2f} s though they"
            f" arrive together: {end}sync.offset.{name}={seconds:.2f} takes it off,"
            f" sync.offset.{name}={AUTO} learns it"
        )
        return True
