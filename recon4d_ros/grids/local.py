"""The rolling grid around the car: the lasting one, and over it what is seen now, dynamic objects
included."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import box_corners
from recon4d_ros.grids.parameters import GridParameters
from recon4d_ros.grids.sight import Sight
from recon4d_ros.types import FREE, OCCUPIED, UNKNOWN, DynamicObject

SURE = 1.0  # sightings that make an obstacle which the map does not have: the first does
MOST = 4.0
SHOWN = 0.5  # seconds for which a cell in view stays free that is not seen to be: depth fails, too
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
        self._seen = np.zeros((self.n, self.n), np.float32)
        self._shown = np.zeros((self.n, self.n), np.float32)  # seconds
        self._origin: NDArray[np.int64] | None = None
        self._stamp_ns = 0

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
        free = sight.free[inner, inner].view(bool)
        standing, moving = sight.standing[inner, inner], sight.moving[inner, inner]
        seen, shown = self._seen, self._shown
        shown -= np.float32(passed)
        shown[free] = SHOWN
        faded = np.float32(min(passed / self._parameters.decay, 1.0) * MOST)
        seen -= faded
        seen[free] = 0
        seen[standing] += SURE + faded
        seen[moving] = MOST
        np.clip(seen, 0, MOST, out=seen)
        values = lasting.copy()
        values[(values == FREE) & (shown <= 0) & (sight.view[inner, inner] != 0)] = UNKNOWN
        values[free & (values == UNKNOWN)] = FREE
        values[seen >= SURE] = OCCUPIED
        self._draw(values, origin, objects)
        return values, origin

    def _roll(self, origin: NDArray[np.int64]) -> None:
        """Moves what was seen along with the square."""
        if self._origin is not None and not np.array_equal(origin, self._origin):
            x, y = (origin - self._origin).tolist()
            self._seen, self._shown = (_shifted(old, x, y) for old in (self._seen, self._shown))
        self._origin = origin

    def _draw(
        self, values: NDArray[np.int8], origin: NDArray[np.int64], objects: Iterable[DynamicObject]
    ) -> None:
        """The boxes of tracked objects."""
        resolution = self._parameters.resolution
        for thing in objects:
            middle = thing.position[:2] / resolution - origin - 0.5
            reach = 0.5 * float(np.hypot(thing.size[0], thing.size[1])) / resolution
            if thing.missed > MISSED or not (
                -reach < middle[0] < self.n + reach and -reach < middle[1] < self.n + reach
            ):
                continue
            corners = box_corners(thing.position, thing.size, thing.yaw)[::2, :2]
            corners = (corners / resolution - origin - 0.5)[[0, 1, 3, 2]]
            cv2.fillConvexPoly(values, np.rint(corners * 16).astype(np.int32), OCCUPIED, shift=4)


def _shifted(old: NDArray[np.float32], x: int, y: int) -> NDArray[np.float32]:
    """[n, n] with cell (row, column) from (row + y, column + x), 0 where there is none."""
    fresh, n = np.zeros_like(old), len(old)
    if abs(x) < n and abs(y) < n:
        fresh[_to(-y, n), _to(-x, n)] = old[_to(y, n), _to(x, n)]
    return fresh


def _to(shift: int, n: int) -> slice:
    """The cells that are left of n after leaving out the first `shift` (or the last -shift)."""
    return slice(max(shift, 0), n + min(shift, 0))
