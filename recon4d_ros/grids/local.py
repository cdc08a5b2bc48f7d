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

SURE = 2.0  # sightings that make a static obstacle which the map does not have yet
MOST = 4.0
MISSED = 2  # frame sets for which a track that is not seen still stands in the grid


class LocalGrid:
    """A square of [n, n] cells along map's axes whose middle cell the car's position is in. Not
    thread-safe."""

    def __init__(self, parameters: GridParameters) -> None:
        self._parameters = parameters
        self.half = int(np.ceil(0.5 * parameters.local_size / parameters.resolution))
        self.n = 2 * self.half + 1
        self.reset()

    def reset(self) -> None:
        self._seen = np.zeros((self.n, self.n), np.float32)
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
        seen = self._seen
        seen -= np.float32(min(passed / self._parameters.decay, 1.0) * MOST)
        seen[free] -= SURE
        seen[standing] += 1 + np.float32(min(passed / self._parameters.decay, 1.0) * MOST)
        seen[moving] = MOST
        np.clip(seen, 0, MOST, out=seen)
        values = lasting.copy()
        values[free & (values == UNKNOWN)] = FREE
        values[seen >= SURE] = OCCUPIED
        self._draw(values, origin, objects)
        return values, origin

    def _roll(self, origin: NDArray[np.int64]) -> None:
        """Moves what was seen along with the square."""
        if self._origin is not None and not np.array_equal(origin, self._origin):
            x, y = (origin - self._origin).tolist()
            fresh = np.zeros_like(self._seen)
            if abs(x) < self.n and abs(y) < self.n:
                fresh[_to(-y, self.n), _to(-x, self.n)] = self._seen[_to(y, self.n), _to(x, self.n)]
            self._seen = fresh
        self._origin = origin

    def _draw(
        self, values: NDArray[np.int8], origin: NDArray[np.int64], objects: Iterable[DynamicObject]
    ) -> None:
        """The boxes of tracked objects."""
        resolution = self._parameters.resolution
        for thing in objects:
            if thing.missed > MISSED or not np.isfinite(thing.position).all():
                continue
            corners = box_corners(thing.position, thing.size, thing.yaw)[::2, :2]
            corners = (corners / resolution - origin - 0.5)[[0, 1, 3, 2]]
            if (corners.max(axis=0) < 0).any() or (corners.min(axis=0) > self.n).any():
                continue
            cv2.fillConvexPoly(values, np.rint(corners * 16).astype(np.int32), OCCUPIED, shift=4)


def _to(shift: int, n: int) -> slice:
    """The cells that are left of n after leaving out the first `shift` (or the last -shift)."""
    return slice(max(shift, 0), n + min(shift, 0))
