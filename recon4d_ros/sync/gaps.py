"""Images that never came: each camera's missing ones, by the gaps in its time stamps."""

from __future__ import annotations

from collections import deque

WINDOW = 60
"""Differences of stamps that the period is taken from."""
ENOUGH = 5
LONGEST_NS = 2_000_000_000
"""A longer gap is a camera that was off, or a recording that was paused, not images lost."""


class GapCounter:
    """Counts the images that are missing from one camera's stream.

    The period is that of the shortest tenth of the last differences, and of those like it: it holds
    while half of the images and more are lost.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._differences: deque[int] = deque(maxlen=WINDOW)
        self._stalled = False

    def add(self, stamp_ns: int) -> int:
        """The images that are missing between the last one and this, by its stamp in ns."""
        last, self._last_ns = self._last_ns, stamp_ns
        stalled, self._stalled = self._stalled, False
        if last is None or stamp_ns <= last:
            return 0
        difference = stamp_ns - last
        if difference <= LONGEST_NS:
            self._differences.append(difference)
        elif not stalled:
            return 0
        if len(self._differences) < ENOUGH:
            return 0
        ordered = sorted(self._differences)
        short = ordered[len(ordered) // 10]
        alike = [value for value in ordered if short / 1.5 < value < 1.5 * short]
        return max(round(difference * len(alike) / sum(alike)) - 1, 0)

    def stalled(self) -> None:
        """Whoever reads the images did not run for a while: the next gap is of images lost, however
        long it is."""
        self._stalled = True

    def restart(self) -> None:
        """Time jumped: what follows is not held against what was."""
        self._last_ns = None
