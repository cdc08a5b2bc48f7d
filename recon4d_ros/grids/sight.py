"""What the cameras of one frame show of the ground plane: how far the road is seen to be free, and
what stands in the way.

Every few columns of an image are followed from the bottom up, as one follows a street with one's
eyes. Pixels are road, an obstacle (in the height band over the road), higher than the car, or not
known. A column is free from the first road pixel to the last before

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

COLUMNS, ROWS = 112, 72  # of an image, at most, are looked at
BELOW = 0.5  # m: what lies lower under the road is no road (a ditch, or depth that is wrong)
MAX_SIGMA = 1.2  # m: as the static map's
MOST_BRIDGED = 1.6  # ratio of ranges: for cameras hardly higher than the band's lower edge
LEAST_PIXELS = 2  # of those looked at, that make an obstacle in a cell
_SHIFT = 4  # bits of a cell that OpenCV's polygons are drawn to


@dataclass(frozen=True)
class Sight:
    """A square of [n, n] cells; row = y, column = x, both along map's axes.

    origin: [2] index (x, y) of its first cell: cells are counted from map's origin. free: uint8, 1
    where the road is seen. standing, moving: bool, cells with something in the height band: static,
    and on a dynamic object. What is on a mask's margin is in neither.
    """

    origin: NDArray[np.int64]
    free: NDArray[np.uint8]
    standing: NDArray[np.bool_]
    moving: NDArray[np.bool_]


class Looker:
    """`looker(...) -> Sight`; what is constant over a drive is worked out once."""

    def __init__(self, calibration: Calibration, parameters: GridParameters) -> None:
        p = self._parameters = parameters
        h, w = calibration.working_size
        step = max(1, round(h / ROWS)), max(1, round(w / COLUMNS))
        # from the lowest row up
        self._grid = (
            slice(None),
            slice(h - 1 - step[0] // 2, None, -step[0]),
            slice(step[1] // 2, None, step[1]),
        )
        looked = rays(calibration)[self._grid]  # [N, r, c, 3]
        self._shape = looked.shape[:3]
        self._rays = np.ascontiguousarray(
            np.moveaxis(looked, -1, 1).reshape(len(looked), 3, -1), np.float32
        )
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
        turn, place = local[:, :, :3].astype(np.float32), local[:, :, 3]

        z = geometry.depth[self._grid].reshape(len(turn), -1)
        sigma = geometry.sigma[self._grid].reshape(len(turn), -1)
        way = turn @ self._rays  # [N, 3, P] per metre of depth
        way *= z[:, None]  # from the camera to what is seen, NaN without depth
        distance = np.hypot(way[:, 0], way[:, 1])  # in cells
        above = place[:, 2, None].astype(np.float32)  # of the cameras over the road
        height = way[:, 2] + above
        with np.errstate(invalid="ignore"):
            known = geometry.confidence[self._grid].reshape(z.shape) >= p.min_confidence
            known &= (sigma <= MAX_SIGMA) & (height <= p.max_height)
            stands = known & (height >= p.min_height)
            is_road = known & (height < p.min_height) & (height > -BELOW)
        moves, unsure = self._moving(mask)
        is_road &= ~unsure
        # an obstacle is as near as its depth may be; a pixel that stands alone in its column is
        # believed as a limit, but makes no obstacle
        spread = distance * (2 * sigma / np.maximum(z, np.float32(0.1)))
        limit = np.where(stands, distance - spread, np.inf)
        limit[~(distance > 0)] = np.inf
        # what lies too deep is seen where its ray meets the road
        on_road = np.where(is_road, distance * np.minimum(above / -way[:, 2], 1), np.float32(0))
        columns = (-1, *self._shape[1:])
        far, near = self._road(
            on_road.reshape(columns), distance.reshape(columns), place[:, 2], limit.reshape(columns)
        )
        free = np.zeros((n, n), np.uint8)
        ways = way[:, :2].reshape(len(turn), 2, *self._shape[1:])
        for camera in range(len(turn)):
            ends = [(row[camera], share[camera]) for row, share in (far, near)]
            _fill(free, place[camera, :2], ways[camera], *ends)
        close = stands & (distance <= half)
        standing, moving = (self._cells(way, place, close & which, n) for which in (~unsure, moves))
        return Sight(origin, free, standing, moving)

    def _moving(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """[N, P] pixels on dynamic objects, and those on or beside them."""
        looked = mask[self._grid]
        if not looked.any():
            none = np.zeros((len(looked), looked[0].size), bool)
            return none, none
        wide = np.stack(
            [cv2.dilate(one.view(np.uint8), np.ones((3, 3), np.uint8)) for one in looked.copy()]
        )
        return looked.reshape(len(looked), -1), wide.view(bool).reshape(len(looked), -1)

    def _road(
        self,
        seen: NDArray[np.float32],
        distance: NDArray[np.float32],
        height: NDArray[np.float64],
        limit: NDArray[np.float32],
    ) -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]:
        """Of every column the last and the first pixel of road that is free: (row, share of the way
        to what that pixel shows), each [N, c]; share 0 where there is none.

        seen: [N, r, c] range of the road, 0 where none is seen; is changed. distance: of whatever
        is seen; limit: up to which nothing stands. Rows from the bottom up, cells. height: [N] m.
        """
        p = self._parameters
        reached = np.maximum.accumulate(seen, axis=1)
        before = np.concatenate([np.full_like(seen[:, :1], np.inf), reached[:, :-1]], axis=1)
        before[before == 0] = np.inf  # the first road pixel follows nothing
        bridged = np.where(
            height > 1.05 * p.min_height,
            height / np.maximum(height - p.min_height, 1e-3),
            MOST_BRIDGED,
        )
        bridged = np.minimum(bridged, MOST_BRIDGED).astype(np.float32)[:, None, None]
        hidden = np.logical_or.accumulate(seen > before * bridged + 1, axis=1)
        seen[hidden] = 0
        last, first = seen.argmax(axis=1), (seen > 0).argmax(axis=1)
        far = np.take_along_axis(seen, last[:, None], 1)[:, 0]
        near = np.take_along_axis(seen, first[:, None], 1)[:, 0]
        nearest = np.minimum(limit.min(axis=1), p.max_range / p.resolution)
        end = np.minimum(far, nearest) - 1  # a cell's margin
        # what stands between two columns that are looked at is seen by one of their neighbours
        end[:, 1:-1] = np.minimum(np.minimum(end[:, :-2], end[:, 2:]), end[:, 1:-1])
        good = (far > 0) & (end > near)
        shares = []
        for row, until in ((last, end), (first, near)):
            shown = np.take_along_axis(distance, row[:, None], 1)[:, 0]
            shares.append((row, np.where(good, until / np.where(good, shown, 1), 0)))
        return shares[0], shares[1]

    def _cells(
        self,
        way: NDArray[np.float32],
        place: NDArray[np.float64],
        which: NDArray[np.bool_],
        n: int,
    ) -> NDArray[np.bool_]:
        """[n, n] cells with at least LEAST_PIXELS of `which` [N, P]."""
        camera, pixel = np.nonzero(which)
        x, y = (
            np.floor(way[camera, axis, pixel] + place[camera, axis]).astype(np.int64)
            for axis in (0, 1)
        )
        inside = (x >= 0) & (x < n) & (y >= 0) & (y < n)
        count = np.bincount(y[inside] * n + x[inside], minlength=n * n)
        return np.asarray(count >= LEAST_PIXELS).reshape(n, n)


def _fill(
    free: NDArray[np.uint8],
    place: NDArray[np.float64],
    way: NDArray[np.float32],
    far: tuple[NDArray, NDArray],
    near: tuple[NDArray, NDArray],
) -> None:
    """Draws one camera's free columns. place: [2], way: [2, r, c] from there to what each pixel
    shows, cells."""
    good = far[1] > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    every = np.arange(way.shape[2])
    ends = [place[:, None] + way[:, row, every] * share - 0.5 for row, share in (far, near)]
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if stop - start < 2:
            continue
        outline = np.concatenate([ends[1][:, start:stop], ends[0][:, start:stop][:, ::-1]], 1).T
        points = np.rint(outline * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(free, [points], 1, shift=_SHIFT)
