"""What the cameras of one frame show of the ground plane: how far the road is seen to be free, and
what stands in the way.

Columns of an image are followed from the bottom up, as one follows a street with one's eyes. Pixels
are road, an obstacle (in the height band over the road), higher than the car, or not known. A
column is free from the first road pixel to the last before

- the nearest obstacle in it,
- a gap in which an obstacle could hide: between two road pixels in ranges a and b an obstacle of
  the band's lower edge z fits if b > a h / (h - z), for a camera at height h over the road
  (similar triangles). Smaller gaps, a textureless patch of road, are bridged.

What has no depth (sky, textureless walls) therefore never frees anything. Free columns beside each
other are joined to polygons that OpenCV fills.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.grids.parameters import GridParameters
from recon4d_ros.mapping.views import rays
from recon4d_ros.types import Calibration, Geometry

COLUMNS, ROWS = 100, 68  # of an image, about, are looked at
ALL_COLUMNS = 400  # of all images: the cost is the same for any rig
BELOW = 0.5  # m: what lies lower under the road is no road (a ditch, or depth that is wrong)
MAX_SIGMA = 1.2  # m: as the static map's
MOST_BRIDGED = 1.6  # ratio of ranges: for cameras hardly higher than the band's lower edge
LEAST_PIXELS = 2  # of those looked at, that make an obstacle in a cell
ROAD_MOVED = 0.03  # in the plane's numbers: m, or the sine of a lean
_SHIFT = 4  # bits of a cell that OpenCV's polygons are drawn to


@dataclass(frozen=True)
class Sight:
    """A square of [n, n] cells; row = y, column = x, both along map's axes.

    origin: [2] index (x, y) of its first cell: cells are counted from map's origin. free: uint8, 1
    where the road is seen. view: uint8, 1 where it would be, were nothing in the way. standing,
    moving: bool, cells with something in the height band: static, and on a dynamic object. What is
    on a mask's margin is in neither.
    """

    origin: NDArray[np.int64]
    free: NDArray[np.uint8]
    view: NDArray[np.uint8]
    standing: NDArray[np.bool_]
    moving: NDArray[np.bool_]


class Looker:
    """`looker(...) -> Sight`; what is constant over a drive is worked out once."""

    def __init__(self, calibration: Calibration, parameters: GridParameters) -> None:
        p = self._parameters = parameters
        h, w = calibration.working_size
        most = min(COLUMNS, ALL_COLUMNS / len(calibration.k))
        step = max(1, round(h / ROWS)), max(1, round(w / most))
        # from the lowest row up
        self._grid = (
            slice(None),
            slice(h - 1 - step[0] // 2, None, -step[0]),
            slice(step[1] // 2, None, step[1]),
        )
        looked = rays(calibration)[self._grid]  # [N, r, c, 3]: a pinhole's, so x is its column's
        self._cameras, rows, columns = looked.shape[:3]
        self._shape = rows, self._cameras * columns
        # Columns of all cameras lie beside each other: [r, N c], and so does whatever is of pixels.
        self._x = looked[:, 0, :, 0].reshape(-1).copy()
        self._y = np.repeat(looked[:, :, 0, 1].T, columns, axis=1)
        self._camera = np.repeat(np.arange(self._cameras), columns)
        border = np.unique([*range(0, columns, 8), columns - 1])
        self._T_base_camera = calibration.T_base_camera
        self._outlines: tuple[NDArray, list[NDArray]] | None = None  # and the road they are for
        self._border = looked[:, 0, border]  # [N, b, 3] of the lowest row
        self.half = int(np.ceil(max(p.max_range, 0.5 * p.local_size) / p.resolution))

    def __call__(
        self,
        geometry: Geometry,
        mask: NDArray[np.bool_],
        T_map_base: NDArray[np.float64],
        T_map_camera: NDArray[np.float64],
        road: NDArray[np.float64],
    ) -> Sight:
        """mask: [N, h, w] True on dynamic objects. T_map_base: [4, 4], T_map_camera: [N, 4, 4].
        road: [4] plane (n, d; n . p + d = 0, n up) in base_link."""
        p, half = self._parameters, self.half
        n = 2 * half + 1
        origin = np.floor(T_map_base[:2, 3] / p.resolution).astype(np.int64) - half
        # local: map's axes, cells instead of metres in x and y, height over the road in z
        normal = T_map_base[:3, :3] @ road[:3]
        to_local = np.zeros((3, 4))
        to_local[0, 0] = to_local[1, 1] = 1 / p.resolution
        to_local[:2, 3] = -origin
        to_local[2, :3], to_local[2, 3] = normal, road[3] - normal @ T_map_base[:3, 3]
        local = to_local @ T_map_camera  # [N, 3, 4]
        at = local[self._camera]  # [M, 3, 4] of every column
        z, sigma, confidence = map(
            self._looked_at, (geometry.depth, geometry.sigma, geometry.confidence)
        )
        # from the camera to what is seen, NaN without depth
        x, y, drop = (self._way(at[:, axis, :3], z) for axis in range(3))
        above = at[:, 2, 3].astype(np.float32)  # of the cameras over the road
        height = drop + above
        distance = np.sqrt(x * x + y * y)  # in cells
        known = (sigma <= np.float32(MAX_SIGMA)) & (confidence >= np.float32(p.min_confidence))
        known &= height <= np.float32(p.max_height)
        low = height < np.float32(p.min_height)
        stands, is_road = known & ~low, known & low
        is_road &= height > np.float32(-BELOW)
        moves = self._looked_at(mask) if mask.any() else None
        sure = stands & (distance <= np.float32(half))
        moving = np.zeros((n, n), bool)
        if moves is not None:
            moving = self._cells(x, y, at, sure & moves, n)
            beside = cv2.dilate(moves.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
            is_road &= ~beside
            sure &= ~beside
        # what lies too deep is seen where its ray meets the road
        with np.errstate(divide="ignore", invalid="ignore"):
            on_road = distance * np.minimum(above / -drop, np.float32(1))
            # an obstacle is as near as its depth may be
            limit = distance - distance * (2 * sigma / z)
        on_road[~is_road] = 0
        limit[~stands] = np.inf
        free = np.zeros((n, n), np.uint8)
        self._fill(free, at, x, y, *self._road(on_road, distance, above, limit.min(axis=0)))
        view = self._view(T_map_base, road, n)
        return Sight(origin, free, view, self._cells(x, y, at, sure, n), moving)

    def _view(self, T_map_base: NDArray[np.float64], road: NDArray[np.float64], n: int) -> NDArray:
        """[n, n] 1 where some camera would see the road if nothing hid it: outlines that are fixed
        to the car are drawn again, and made again where the road lies more than a little else."""
        if self._outlines is None or np.abs(road - self._outlines[0]).max() > ROAD_MOVED:
            self._outlines = road, self._make_outlines(road)
        turn = T_map_base[:2, :2] / self._parameters.resolution
        at = T_map_base[:2, 3] / self._parameters.resolution
        at = at - np.floor(at) + self.half - 0.5
        view = np.zeros((n, n), np.uint8)
        for outline in self._outlines[1]:
            points = np.clip(outline @ turn.T + at, -n, 2 * n) * (1 << _SHIFT)
            cv2.fillPoly(view, [np.rint(points).astype(np.int32)], 1, shift=_SHIFT)
        return view

    def _make_outlines(self, road: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Of each camera's view of the road, in base_link, m: from where the lowest row's rays meet
        it to max_range. None of a camera whose lowest row does not."""
        outlines = []
        for pose, lowest in zip(self._T_base_camera, self._border, strict=True):
            height = road[:3] @ pose[:3, 3] + road[3]
            down = lowest @ (road[:3] @ pose[:3, :3])
            if not (down < 0).all() or height <= 0:
                continue
            ways = lowest @ pose[:2, :3].T
            near = ways * (height / -down)[:, None]
            across = np.hypot(*ways.T)[:, None]
            far = ways / np.maximum(across, 1e-6) * self._parameters.max_range
            outlines.append(np.concatenate([near, far[::-1]]) + pose[:2, 3])
        return outlines

    def _looked_at(self, images: NDArray) -> NDArray:
        """[r, M] the pixels of images [N, h, w] that are looked at."""
        return np.ascontiguousarray(images[self._grid].swapaxes(0, 1)).reshape(self._shape)

    def _way(self, turn: NDArray[np.float64], z: NDArray[np.float32]) -> NDArray[np.float32]:
        """[r, M] one axis of the way from the camera to what is seen. turn: [M, 3] that axis in
        the camera's."""
        a, b, c = turn.astype(np.float32).T
        way = self._y * b
        way += a * self._x + c
        way *= z
        return way

    def _road(
        self,
        seen: NDArray[np.float32],
        distance: NDArray[np.float32],
        above: NDArray[np.float32],
        nearest: NDArray[np.float32],
    ) -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]:
        """Of every column the last and the first pixel of road that is free: (row, share of the way
        to what that pixel shows), each [M]; share 0 where there is none.

        seen: [r, M] range of the road, 0 where none is seen; is changed. distance: [r, M] of
        whatever is seen. above: [M] m, of the camera over the road. nearest: [M] up to where
        nothing stands. Ranges in cells.
        """
        p = self._parameters
        reached = np.maximum.accumulate(seen, axis=0)
        before = reached[:-1] + np.float32(1e9) * (reached[:-1] == 0)  # the first follows nothing
        bridged = above / np.maximum(above - np.float32(p.min_height), np.float32(1e-3))
        bridged[above <= p.min_height] = MOST_BRIDGED
        hidden = seen[1:] > before * np.minimum(bridged, np.float32(MOST_BRIDGED)) + 1
        seen[1:][np.logical_or.accumulate(hidden, axis=0)] = 0
        reached = np.maximum.accumulate(seen, axis=0)
        far = reached[-1]
        first = np.minimum((reached == 0).sum(axis=0), len(seen) - 1)
        last = np.minimum((reached < far).sum(axis=0), len(seen) - 1)
        every = np.arange(len(far))
        near = seen[first, every]
        end = np.minimum(far, np.minimum(nearest, p.max_range / p.resolution)) - 1  # a cell less
        # what stands between two columns that are looked at is seen by one of their neighbours
        end = end.reshape(self._cameras, -1)
        end[:, 1:-1] = np.minimum(np.minimum(end[:, :-2], end[:, 2:]), end[:, 1:-1])
        end = end.reshape(-1)
        good = (far > 0) & (end > near)
        shares = []
        for row, until in ((last, end), (first, near)):
            shares.append((row, np.where(good, until / np.where(good, distance[row, every], 1), 0)))
        return shares[0], shares[1]

    def _fill(
        self,
        free: NDArray[np.uint8],
        at: NDArray[np.float64],
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        far: tuple[NDArray, NDArray],
        near: tuple[NDArray, NDArray],
    ) -> None:
        """Draws the free columns. at: [M, 3, 4]; x, y: [r, M] from there to what is seen, cells."""
        every, good = np.arange(len(at)), far[1] > 0
        ends = np.zeros((2, 2, len(at)))  # [near and far, x and y, M]
        for end, (row, share) in zip(ends, (near, far), strict=True):
            for axis, way in enumerate((x, y)):
                end[axis] = at[:, axis, 3] + np.where(good, way[row, every] * share, 0)
        ends = np.rint((ends - 0.5) * (1 << _SHIFT)).astype(np.int32)
        same = np.diff(self._camera, prepend=-1) == 0  # as the column before
        starts = np.flatnonzero(good & ~(same & np.concatenate([[False], good[:-1]])))
        for start in starts.tolist():
            stop = start + 1
            while stop < len(good) and good[stop] and same[stop]:
                stop += 1
            if stop - start > 1:
                part = ends[:, :, start:stop]
                outline = np.concatenate([part[0], part[1, :, ::-1]], axis=1).T
                cv2.fillPoly(free, [np.ascontiguousarray(outline)], 1, shift=_SHIFT)

    def _cells(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        at: NDArray[np.float64],
        which: NDArray[np.bool_],
        n: int,
    ) -> NDArray[np.bool_]:
        """[n, n] cells with at least LEAST_PIXELS of `which` [r, M]."""
        pixel = np.flatnonzero(which)
        start = at[:, :2, 3].astype(np.float32).T.take(pixel % len(at), axis=1)
        column, row = (
            np.floor(way.reshape(-1).take(pixel) + start[axis]).astype(np.int64)
            for axis, way in enumerate((x, y))
        )
        inside = (column >= 0) & (column < n) & (row >= 0) & (row < n)
        count = np.bincount((row * n + column)[inside], minlength=n * n)
        return np.asarray(count >= LEAST_PIXELS).reshape(n, n)
