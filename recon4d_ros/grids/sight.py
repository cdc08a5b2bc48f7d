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
ROAD_MOVED = 0.03  # in the plane's numbers: m, or the sine of a lean
_AROUND = np.ones((3, 3), np.uint8)
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
        self._columns = columns
        # of every pixel that is looked at, the column it is in
        self._column = np.tile(np.arange(self._shape[1]), rows)
        border = np.unique([*range(0, columns, 8), columns - 1])
        self._T_base_camera = calibration.T_base_camera
        self._outlines: tuple[NDArray, NDArray, NDArray] | None = None  # first, the road for them
        self._border = looked[:, 0, border]  # [N, b, 3] of the lowest row
        self.half = int(np.ceil(max(p.max_range, 0.5 * p.local_size) / p.resolution))
        n = 2 * self.half + 1
        # written by every frame; one memory that stays in the caches
        self._images = np.empty((3, *self._shape), np.float32)
        self._ways = np.empty((3, *self._shape), np.float32)
        self._latest = np.empty(2 * n * n, np.int32)

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
        local = np.moveaxis(to_local @ T_map_camera, 0, 2)  # [3, 4, N]
        every = np.repeat(local, self._columns, axis=2)  # [3, 4, M] of every column
        start = every[:2, 3]  # [2, M] the camera, in cells
        turn = every.astype(np.float32)
        for out, image in zip(
            self._images, (geometry.depth, geometry.sigma, geometry.confidence), strict=True
        ):
            self._looked_at(image, out)
        z, sigma, confidence = self._images
        # from the camera to what is seen, NaN without depth
        ways = np.multiply(self._y, turn[:, 1, None], out=self._ways)
        ways += (turn[:, 0] * self._x + turn[:, 2])[:, None]
        ways *= z
        x, y, drop = ways
        above = turn[2, 3]  # of the cameras over the road
        height = drop + above
        distance = x * x  # in cells
        distance += y * y
        np.sqrt(distance, out=distance)
        known = sigma <= np.float32(MAX_SIGMA)
        known &= confidence >= np.float32(p.min_confidence)
        known &= height <= np.float32(p.max_height)
        low = height < np.float32(p.min_height)
        stands, is_road = known & ~low, known & low
        is_road &= height > np.float32(-BELOW)
        sure = stands & (distance <= np.float32(half))
        moves = None
        if mask.any():
            moves = self._looked_at(mask, np.empty(self._shape, bool))
            beside = cv2.dilate(moves.view(np.uint8), _AROUND).view(bool)
            is_road &= ~beside
            sure &= moves | ~beside
        standing, moving = self._cells(start, sure, moves, n)
        # what lies too deep is seen where its ray meets the road
        with np.errstate(divide="ignore", invalid="ignore"):
            on_road = np.divide(above, np.negative(drop, out=drop), out=height)
            np.minimum(on_road, np.float32(1), out=on_road)
            on_road *= distance
            # an obstacle is as near as its depth may be
            limit = np.divide(sigma, z, out=sigma)
            limit *= 2
            limit *= distance
            np.subtract(distance, limit, out=limit)
        on_road[~is_road] = 0
        limit[~stands] = np.inf
        rows, shares = self._road(on_road, distance, above, limit.min(axis=0))
        free = np.zeros((n, n), np.uint8)
        self._fill(free, start, rows, shares)
        return Sight(origin, free, self._view(T_map_base, road, n), standing, moving)

    def _view(self, T_map_base: NDArray[np.float64], road: NDArray[np.float64], n: int) -> NDArray:
        """[n, n] 1 where some camera would see the road if nothing hid it: outlines that are fixed
        to the car are drawn again, and made again where the road lies more than a little else."""
        if self._outlines is None or np.abs(road - self._outlines[0]).max() > ROAD_MOVED:
            self._outlines = road, *self._make_outlines(road)
        _, outlines, meets = self._outlines
        turn = T_map_base[:2, :2] / self._parameters.resolution
        at = T_map_base[:2, 3] / self._parameters.resolution
        at = at - np.floor(at) + self.half - 0.5
        points = outlines @ turn.T
        points += at
        points = np.clip(points, -n, 2 * n, out=points)
        points *= 1 << _SHIFT
        corners = np.rint(points, out=points).astype(np.int32)
        view = np.zeros((n, n), np.uint8)
        for camera in np.flatnonzero(meets).tolist():
            cv2.fillPoly(view, [corners[camera]], 1, shift=_SHIFT)
        return view

    def _make_outlines(
        self, road: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[N, 2 b, 2] of each camera's view of the road, in base_link, m: from where the lowest
        row's rays meet it to max_range; [N] of which cameras it does."""
        pose = self._T_base_camera
        height = pose[:, :3, 3] @ road[:3] + road[3]
        down = (self._border @ (np.swapaxes(pose[:, :3, :3], 1, 2) @ road[:3])[..., None])[..., 0]
        meets = (down < 0).all(axis=1) & (height > 0)
        ways = self._border @ np.swapaxes(pose[:, :2, :3], 1, 2)
        near = ways * (height[:, None] / -np.where(meets[:, None], down, -1.0))[..., None]
        across = np.linalg.norm(ways, axis=2, keepdims=True)
        far = ways / np.maximum(across, 1e-6) * self._parameters.max_range
        return np.concatenate([near, far[:, ::-1]], axis=1) + pose[:, None, :2, 3], meets

    def _looked_at(self, images: NDArray, out: NDArray) -> NDArray:
        """Writes the pixels of images [N, h, w] that are looked at into out [r, M]."""
        np.copyto(out.reshape(self._shape[0], self._cameras, -1), images[self._grid].swapaxes(0, 1))
        return out

    def _road(
        self,
        seen: NDArray[np.float32],
        distance: NDArray[np.float32],
        above: NDArray[np.float32],
        nearest: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of every column the first and the last pixel of road that is free: row, and share of the
        way to what that pixel shows, each [2, M]; shares 0 where there is none.

        seen: [r, M] range of the road, 0 where none is seen. distance: [r, M] of whatever is seen.
        above: [M] m, of the camera over the road. nearest: [M] up to where nothing stands. Ranges
        in cells.
        """
        p = self._parameters
        reached = _running_maximum(seen)
        nothing = reached == 0
        before = reached[:-1] + np.float32(1e9) * nothing[:-1]  # the first follows nothing
        bridged = above / np.maximum(above - np.float32(p.min_height), np.float32(1e-3))
        bridged[above <= p.min_height] = MOST_BRIDGED
        before *= np.minimum(bridged, np.float32(MOST_BRIDGED))
        before += 1
        hidden = seen[1:] > before
        # from the first pixel behind such a gap on, nothing is seen: as far as the one before it
        every = np.arange(seen.shape[1])
        cut = np.where(hidden.any(axis=0), hidden.argmax(axis=0), len(seen) - 1)
        far = reached[cut, every]
        rows = np.stack([nothing.sum(axis=0), (reached < far).sum(axis=0)])
        np.minimum(rows, len(seen) - 1, out=rows)
        near = seen[rows[0], every]
        end = np.minimum(far, np.minimum(nearest, p.max_range / p.resolution)) - 1  # a cell less
        # what stands between two columns that are looked at is seen by one of their neighbours
        end = end.reshape(self._cameras, -1)
        end[:, 1:-1] = np.minimum(np.minimum(end[:, :-2], end[:, 2:]), end[:, 1:-1])
        end = end.reshape(-1)
        good = (far > 0) & (end > near)
        shares = np.zeros((2, len(every)), np.float32)
        np.divide(np.stack([near, end]), distance[rows, every], out=shares, where=good)
        return rows, shares

    def _fill(
        self,
        free: NDArray[np.uint8],
        start: NDArray[np.float64],
        rows: NDArray[np.int64],
        shares: NDArray[np.float32],
    ) -> None:
        """Draws the free columns. start: [2, M] cells; rows, shares: as `_road` gives them."""
        good = shares[1] > 0
        # [x and y, near and far, M]
        seen = np.where(good, self._ways[:2, rows, np.arange(len(good))], 0) * shares
        ends = (seen + (start[:, None] - 0.5)) * (1 << _SHIFT)
        near, far = np.rint(ends, out=ends).astype(np.int32).transpose(1, 2, 0)
        # runs of free columns beside each other in one camera; a column of no camera on both sides
        held = np.zeros((self._cameras, self._columns + 2), bool)
        held[:, 1:-1] = good.reshape(self._cameras, -1)
        flat = held.reshape(-1)
        edge = np.flatnonzero(flat[1:] != flat[:-1])
        edge -= 2 * (edge // (self._columns + 2))
        for first, behind in zip(edge[::2].tolist(), edge[1::2].tolist(), strict=True):
            if behind - first > 1:
                outline = np.concatenate([near[first:behind], far[first:behind][::-1]])
                cv2.fillPoly(free, [outline], 1, shift=_SHIFT)

    def _cells(
        self,
        start: NDArray[np.float64],
        which: NDArray[np.bool_],
        moves: NDArray[np.bool_] | None,
        n: int,
    ) -> NDArray[np.bool_]:
        """[2, n, n] cells with at least two pixels of `which` [r, M]: of those that do not move,
        and of those that do. start: [2, M] cells."""
        pixel = np.flatnonzero(which)
        ways = self._ways[:2].reshape(2, -1).take(pixel, axis=1)
        ways += start.astype(np.float32).take(self._column.take(pixel), axis=1)
        column, row = np.floor(ways, out=ways).astype(np.int32)
        cell = row * np.int32(n) + column
        if moves is not None:
            cell += moves.reshape(-1).take(pixel) * np.int32(n * n)
        cell = cell[(column >= 0) & (column < n) & (row >= 0) & (row < n)]
        # of the pixels of a cell the last one's number stays; the others see that
        number = np.arange(len(cell), dtype=np.int32)
        self._latest[cell] = number
        out = np.zeros(2 * n * n, bool)
        out[cell[self._latest.take(cell) != number]] = True
        return out.reshape(2, n, n)


def _running_maximum(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Down the rows: np.maximum.accumulate, four times as fast."""
    out, done = rows.copy(), 1
    while done < len(out):
        np.maximum(out[done:], out[:-done].copy(), out=out[done:])
        done *= 2
    return out
