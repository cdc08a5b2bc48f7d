"""Counts of what was not used, and why: bounded, whatever numbers the reasons carry."""

from __future__ import annotations

import re
import threading

LIMIT = 100  # kinds kept; what comes beyond is counted as OTHER
OTHER = "other reasons"
_NUMBER = re.compile(
    r"(?<![\w.])\d[\d.]*(?:e[-+]?\d+)?(?:x\d+)*(?!\w)"
)  # 48213, 0.05, 1e-3, 1242x375; but not the 8 of rgb8


def kind(reason: str) -> str:
    """A reason without its numbers: what two of them have in common that are of one kind."""
    return _NUMBER.sub("#", reason)


class Tally:
    """Counts by source (a camera, `odometry`, ...) and kind of reason; each kind goes by the first
    of its reasons. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], str] = {}

    def count(self, source: str, reason: str) -> bool:
        """True if this kind of reason is new for the source: worth a line in the log."""
        key = (source, kind(reason))
        with self._lock:
            if key not in self._counts and len(self._counts) >= LIMIT:
                key, reason = (source, OTHER), OTHER
            self._examples.setdefault(key, reason)
            self._counts[key] = self._counts.get(key, 0) + 1
            return self._counts[key] == 1

    def __call__(self) -> dict[tuple[str, str], int]:
        """(source, reason) -> how often."""
        with self._lock:
            return {(key[0], self._examples[key]): count for key, count in self._counts.items()}
