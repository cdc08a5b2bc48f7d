"""Images that never came: each camera's missing ones, by the gaps in its time stamps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW = 60
"""Differences of stamps that the period is taken from."""
ENOUGH = 5
LONGEST_NS = 2_000_000_000
"""A longer gap is a camera that was off, or a recording that was paused, not images lost."""
LATE_NS = 500_000_000
"""A gap is open for so long, by the camera's stamps: what is missing may only be late."""


@dataclass
class _Gap:
    """missing: images that should have come between two stamps, and have not yet."""

    begin_ns: int
    end_ns: int
    missing: int


class GapCounter:
    """Counts the images that are missing from one camera's stream.

    The period is that of the shortest tenth of the last differences, and of those like it: it holds
    while half of the images and more are lost.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._differences: deque[int] = deque(maxlen=WINDOW)
        self._open: deque[_Gap] = deque()
        self._stalled = False
        self._astray = 0

    def add(self, stamp_ns: int) -> int:
        """An image came, by its stamp in ns, in its turn or late. Returns the images that are now
        known to be missing."""
        last = self._last_ns
        if last is not None and stamp_ns <= last:
            for gap in self._open:
                if gap.begin_ns < stamp_ns < gap.end_ns:
                    gap.missing = max(gap.missing - 1, 0)
            return 0
        self._last_ns = stamp_ns
        if last is not None and (missing := self._missing(stamp_ns - last)):
            self._open.append(_Gap(last, stamp_ns, missing))
        self._stalled, self._astray = False, 0
        return self._close(stamp_ns - LATE_NS)

    def astray(self) -> None:
        """An image came whose stamp is wrong: it is not missing as well."""
        self._astray += 1

    def stalled(self) -> None:
        """Whoever reads the images did not run for a while: the next gap is of images lost, however
        long it is."""
        self._stalled = True

    def restart(self) -> int:
        """Time jumped, or the stream ends: what follows is not held against what was. Returns the
        images that are missing from before."""
        self._last_ns, self._astray = None, 0
        return self._close(None)

    def _missing(self, difference: int) -> int:
        if difference <= LONGEST_NS:
            self._differences.append(difference)
        elif not self._stalled:
            return 0
        if len(self._differences) < ENOUGH:
            return 0
        ordered = sorted(self._differences)
        short = ordered[len(ordered) // 10]
        alike = [value for value in ordered if short / 1.5 < value < 1.5 * short]
        return max(round(difference * len(alike) / sum(alike)) - 1 - self._astray, 0)

    def _close(self, until_ns: int | None) -> int:
        """The images of gaps that ended before; None: of all."""
        missing = 0
        while self._open and (until_ns is None or self._open[0].end_ns <= until_ns):
            missing += self._open.popleft().missing
        return missing
