"""The rolling grid around the car: the lasting one, and over it what is seen now, dynamic objects
included."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.grids.parameters import GridParameters
from recon4d_ros.grids.sight import Sight
from recon4d_ros.types import FREE, OCCUPIED, UNKNOWN, DynamicObject

SURE = 60  # evidence that makes an obstacle which the map does not have: one frame's
MOST = 4 * SURE
SHOWN = 0.5  # seconds for which a cell in view stays free that is not seen to be: depth fails, too
TICKS = 250  # which are counted in as many steps
# by what is there: seen now (1), free now (2), hidden (4), and two bits of the lasting grid's value
_LASTING = 0xC0
_VALUES = np.array(
    [
        OCCUPIED
        if code & 1
        else FREE
        if code & 2 and lasting != OCCUPIED
        else UNKNOWN
        if code & 4 and lasting == FREE
        else lasting
        for lasting, code in (({0: FREE, 1: OCCUPIED}.get(c >> 6, UNKNOWN), c) for c in range(256))
    ],
    np.int8,
).view(np.uint8)
MISSED = 2  # frame sets for which a track that is not seen still stands in the grid


class LocalGrid:
    """A square of [n, n] cells along map's axes whose middle cell the car's position is in.

    A cell that the lasting grid calls free, that cameras look at and do not see, is unknown here: a
    dynamic object may hide it, or stand in it. Out of view the lasting grid's word stands. Not
    thread-safe.
    """

    def __init__(self, parameters: GridParameters) -> None:
        self._parameters = parameters
        self.half = int(np.ceil(0.5 * parameters.local_size / parameters.resolution))
        self.n = 2 * self.half + 1
        self.reset()

    def reset(self) -> None:
        # evidence of an obstacle; ticks for which a cell stays free
        self._memory = np.zeros((2, self.n, self.n), np.uint8)
        self._spare = np.zeros_like(self._memory)
        self._origin: NDArray[np.int64] | None = None
        self._stamp_ns = 0
        self._rest = np.zeros(2)  # of both, the part of a step that is not taken away yet

    def __call__(
        self,
        sight: Sight,
        lasting: NDArray[np.int8],
        objects: Iterable[DynamicObject],
        stamp_ns: int,
    ) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        """Values [n, n] and the index (x, y) of the first cell. lasting: [n, n] values of the
        lasting grid there."""
        edge = (sight.free.shape[0] - self.n) // 2
        inner = slice(edge, edge + self.n)
        origin = sight.origin + edge
        self._roll(origin)
        passed = max(stamp_ns - self._stamp_ns, 0) * 1e-9 if self._stamp_ns else 0.0
        self._stamp_ns = stamp_ns
        free, view = sight.free[inner, inner], sight.view[inner, inner]
        standing = sight.standing[inner, inner].view(np.uint8)
        moving = sight.moving[inner, inner].view(np.uint8)
        self._rest += np.minimum(passed / np.array([self._parameters.decay, SHOWN]), 1.0) * (
            MOST,
            TICKS,
        )
        faded, late = np.rint(self._rest)
        self._rest -= faded, late
        seen, shown = self._memory  # OpenCV's sums end at 0 and 255
        shown[:] = cv2.max(cv2.subtract(shown, late), free * np.uint8(TICKS))
        kept = cv2.subtract(seen, (standing ^ 1) * np.uint8(faded)) * (free ^ 1)
        kept = cv2.add(kept, standing * np.uint8(SURE))
        _, kept = cv2.threshold(kept, MOST, MOST, cv2.THRESH_TRUNC)
        seen[:] = cv2.max(kept, moving * np.uint8(MOST))
        hidden = (shown == 0) & view.view(bool)
        code = (seen >= SURE).view(np.uint8)
        code |= free << np.uint8(1)
        code |= hidden.view(np.uint8) << np.uint8(2)
        code |= lasting.view(np.uint8) & np.uint8(_LASTING)
        values = np.asarray(cv2.LUT(code, _VALUES)).view(np.int8)
        self._draw(values, origin, objects)
        return values, origin

    def _roll(self, origin: NDArray[np.int64]) -> None:
        """Moves what was seen along with the square."""
        if self._origin is not None and not np.array_equal(origin, self._origin):
            x, y = (origin - self._origin).tolist()
            _shift(self._memory, x, y, self._spare)
            self._memory, self._spare = self._spare, self._memory
        self._origin = origin

    def _draw(
        self, values: NDArray[np.int8], origin: NDArray[np.int64], objects: Iterable[DynamicObject]
    ) -> None:
        """The boxes of tracked objects."""
        seen = [thing for thing in objects if thing.missed <= MISSED]
        if not seen:
            return
        scale = 1 / self._parameters.resolution
        middle = np.array([thing.position[:2] for thing in seen]) * scale - (origin + 0.5)
        half = np.array([thing.size[:2] for thing in seen]) * (0.5 * scale)
        yaw = np.array([thing.yaw for thing in seen])
        reach = np.hypot(half[:, 0], half[:, 1])[:, None]
        inside = ((middle > -reach) & (middle < self.n + reach)).all(axis=1)
        ahead = np.column_stack([np.cos(yaw), np.sin(yaw)])
        left = np.column_stack([-ahead[:, 1], ahead[:, 0]])
        along, across = ahead * half[:, :1], left * half[:, 1:]
        corners = np.stack([along + across, along - across, -along - across, across - along], 1)
        points = np.rint((middle[:, None] + corners) * 16)
        for one in np.flatnonzero(inside).tolist():
            cv2.fillConvexPoly(values, points[one].astype(np.int32), OCCUPIED, shift=4)


def _shift(old: NDArray[np.uint8], x: int, y: int, out: NDArray[np.uint8]) -> None:
    """[..., n, n] with cell (row, column) from (row + y, column + x), 0 where there is none."""
    n = old.shape[-1]
    out[:] = 0
    if abs(x) < n and abs(y) < n:
        out[..., _to(-y, n), _to(-x, n)] = old[..., _to(y, n), _to(x, n)]


def _to(shift: int, n: int) -> slice:
    """The cells that are left of n after leaving out the first `shift` (or the last -shift)."""
    return slice(max(shift, 0), n + min(shift, 0))
