"""Samples of odometry, imu or twist on their way to the next set: the door that lets no NaN and no
repeated stamp through, and a bounded buffer."""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, Protocol, TypeVar

from recon4d_ros.types import OdometrySample

NOT_FINITE = "not finite, or its quaternion is no rotation"
NOT_NEWER = "not newer than the last"
JUMPED = "time jumped backward"
FULL = "buffer full"
LEAPT = "its pose is farther from the last than a car drives or turns in that time"


class Sample(Protocol):
    """What any sensor beside the cameras says at one instant."""

    @property
    def stamp_ns(self) -> int: ...

    @property
    def finite(self) -> bool: ...


S = TypeVar("S", bound=Sample)


class SampleQueue(Generic[S]):
    """Samples in strictly increasing order of stamps, `limit` at most (the oldest goes first).
    dropped: where drops are counted."""

    def __init__(self, limit: int, backward_ns: int, dropped: Counter[str]) -> None:
        self._limit = limit
        self._backward = backward_ns
        self._dropped = dropped
        self._samples: deque[S] = deque()
        self._newest: int | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: S) -> None:
        """Take a sample, or count why not."""
        if not sample.finite:
            self._dropped[NOT_FINITE] += 1
            return
        if self._newest is not None and sample.stamp_ns < self._newest - self._backward:
            self._dropped[JUMPED] += len(self._samples)
            self._samples.clear()
        elif self._newest is not None and sample.stamp_ns <= self._newest:
            self._dropped[NOT_NEWER] += 1
            return
        self._newest = sample.stamp_ns
        self._samples.append(sample)
        if len(self._samples) > self._limit:
            self._samples.popleft()
            self._dropped[FULL] += 1

    def jump_backward(self, stamp_ns: int) -> None:
        """The images' time was set back to stamp_ns: samples newer than that are from before,
        unless odometry jumped first."""
        kept = [sample for sample in self._samples if sample.stamp_ns <= stamp_ns]
        self._dropped[JUMPED] += len(self._samples) - len(kept)
        self._samples = deque(kept)

    def take(self, stamp_ns: int) -> tuple[S, ...]:
        """Remove and return the samples up to a set's stamp, oldest first."""
        taken = []
        while self._samples and self._samples[0].stamp_ns <= stamp_ns:
            taken.append(self._samples.popleft())
        return tuple(taken)


class OdometryQueue(SampleQueue[OdometrySample]):
    """Without poses that leap: one that is alone (a wrong one) is dropped; where the next one goes
    on from it, the odometry began anew, and that next one is taken."""

    def __init__(self, limit: int, backward_ns: int, dropped: Counter[str]) -> None:
        super().__init__(limit, backward_ns, dropped)
        self._last: OdometrySample | None = None
        self._leapt: OdometrySample | None = None

    def add(self, sample: OdometrySample) -> None:
        """As `SampleQueue.add`."""
        if sample.finite and not self._follows(self._last, sample):
            leapt, self._leapt = self._leapt, sample
            if leapt is None or leapt.stamp_ns >= sample.stamp_ns:
                anew = False
            else:
                anew = sample.reachable_from(leapt)
            if not anew:
                self._dropped[LEAPT] += 1
                return
        super().add(sample)
        if self._newest == sample.stamp_ns and sample.finite:
            self._last, self._leapt = sample, None

    @staticmethod
    def _follows(last: OdometrySample | None, sample: OdometrySample) -> bool:
        """What is not newer is another's to judge."""
        return last is None or sample.stamp_ns <= last.stamp_ns or sample.reachable_from(last)
