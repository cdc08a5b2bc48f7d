"""Occupancy grids against true depth: what is said to be free and is not, and what is found.

Truth is what true depth shows in the height band over the road (LOW to HIGH: the default band less
a margin, so that what is as high as its edge is neither asked for nor held against a grid), brought
to map by the run's own pose of the same frame: drift is the trajectory's matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.types import FREE, OCCUPIED, OccupancyGrid

LOW, HIGH = 0.4, 2.0  # m over the road
NEAR = 20.0  # m: what was nearer to the car once is asked for
REACH = 40.0  # m: farther away nothing is compared
SEEN = 5  # frame sets in which a true cell was near and in view, from which on it is asked for
_FINE = 0.05  # m: truth is thinned to as much
_CELL = 0.2  # m: in how many frame sets a place was seen is counted in such cells


@dataclass(frozen=True)
class GridScore:
    """free: cells; free_occupied: share of them in which something stands. occupied: true cells
    that were within NEAR and in view in SEEN frame sets; found, found_beside: share of them that
    are occupied in the grid, and that are or have an occupied neighbour. glimpsed, glimpsed_beside:
    the same (cells, and share found) of those seen at least once. blocked: share of the cells of
    road in view, with nothing true in them, that the grid calls occupied."""

    free: int
    free_occupied: float
    occupied: int
    found: float
    found_beside: float
    glimpsed: int
    glimpsed_beside: float
    blocked: float


@dataclass(frozen=True)
class LocalScore:
    """All frames' grids together, against what was true in that very frame. free: cells;
    free_occupied: share of them in which something is, dynamic or not. movers: true cells of
    dynamic objects within NEAR; movers_found: share that are occupied or beside it."""

    frames: int
    free: int
    free_occupied: float
    movers: int
    movers_found: float


class GridScorer:
    """`add` each frame's true points, then `score` the lasting grid; `local` of those that were
    given with the frames."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.int64]] = []
        self._pending = 0
        self._road: list[NDArray[np.int64]] = []  # [K] codes of fine cells
        self._near: list[NDArray[np.int64]] = []  # [K, 3] cell (x, y), frame sets
        self._local = np.zeros(5, np.int64)

    def add(
        self,
        points: NDArray[np.float64],
        distance: NDArray[np.float64],
        moving: NDArray[np.bool_],
        local: OccupancyGrid | None,
        road: NDArray[np.float64] | None = None,
    ) -> None:
        """points: [K, 2] m in map, of what stands in the band; distance: [K] m from the car. road:
        [J, 2] m in map, of the road in view."""
        if road is not None:
            cells = np.floor(road / _FINE).astype(np.int64)
            self._road.append(np.unique(_code(cells)))
        static = ~moving & (distance < REACH)
        cell = np.floor(points[static] / _FINE).astype(np.int64)
        self._blocks.append(_unique(np.column_stack([cell, distance[static] < NEAR])))
        near = np.unique(
            np.floor(points[static & (distance < NEAR)] / _CELL).astype(np.int64), axis=0
        )
        self._near.append(np.column_stack([near, np.ones(len(near), np.int64)]))
        self._pending += len(self._blocks[-1])
        if self._pending > 2_000_000:
            self._compact()
        if local is None:
            return
        shape, inside = local.values.shape, distance < REACH
        every = cells_of(points[inside], local)
        movers = cells_of(points[moving & (distance < NEAR)], local)
        free, occupied = local.values == FREE, local.values == OCCUPIED
        truth, wanted = _drawn(every, shape), _drawn(movers, shape)
        found = cv2.dilate(occupied.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
        self._local += (
            1,
            int(free.sum()),
            int((free & truth).sum()),
            int(wanted.sum()),
            int((wanted & found).sum()),
        )

    @property
    def local(self) -> LocalScore | None:
        frames, free, wrong, movers, found = self._local.tolist()
        if not frames:
            return None
        return LocalScore(frames, free, _share(wrong, free), movers, _share(found, movers))

    def score(self, grid: OccupancyGrid) -> GridScore | None:
        """None where nothing true was seen."""
        self._compact()
        truth = self._blocks[0]
        if not len(truth):
            return None
        points = np.asarray((truth[:, :2] + 0.5) * _FINE, np.float64)
        # a margin, so that what the grid does not reach is asked for, too
        low = np.floor((points.min(0) - grid.origin) / grid.resolution).astype(np.int64) - 3
        high = np.ceil((points.max(0) - grid.origin) / grid.resolution).astype(np.int64) + 3
        values = _padded(grid, low, high)
        shape = values.values.shape
        every = _drawn(cells_of(points, values), shape)
        glimpsed = _drawn(cells_of(points[truth[:, 2] > 0], values), shape)
        long = self._near[0][self._near[0][:, 2] >= SEEN, :2]
        often = np.isin(_code(np.floor(points / _CELL).astype(np.int64)), _code(long))
        wanted = _drawn(cells_of(points[often & (truth[:, 2] > 0)], values), shape)
        free, occupied = values.values == FREE, values.values == OCCUPIED
        beside = cv2.dilate(occupied.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
        road = np.asarray((_decoded(self._road[0]) + 0.5) * _FINE, np.float64)
        lane = _drawn(cells_of(road, values), shape) & ~every
        return GridScore(
            int(free.sum()),
            _share(int((free & every).sum()), int(free.sum())),
            int(wanted.sum()),
            _share(int((wanted & occupied).sum()), int(wanted.sum())),
            _share(int((wanted & beside).sum()), int(wanted.sum())),
            int(glimpsed.sum()),
            _share(int((glimpsed & beside).sum()), int(glimpsed.sum())),
            _share(int((lane & occupied).sum()), int(lane.sum())),
        )

    def _compact(self) -> None:
        every = np.concatenate([*self._blocks, np.zeros((0, 3), np.int64)])
        self._blocks, self._pending = [_unique(every)], 0
        self._road = [np.unique(np.concatenate([*self._road, np.zeros(0, np.int64)]))]
        near = np.concatenate([*self._near, np.zeros((0, 3), np.int64)])
        cells, place = np.unique(near[:, :2], axis=0, return_inverse=True)
        count = np.bincount(place.reshape(-1), near[:, 2], len(cells)).astype(np.int64)
        self._near = [np.column_stack([cells, count])]


def cells_of(points: NDArray[np.float64], grid: OccupancyGrid) -> NDArray[np.int64]:
    """[J, 2] (row, column) of the points [K, 2] that lie in the grid."""
    cell = np.floor((points - grid.origin) / grid.resolution).astype(np.int64)[:, ::-1]
    inside = (cell >= 0).all(axis=1) & (cell < grid.values.shape).all(axis=1)
    return cell[inside]


def _code(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """[K] one number for each cell [K, 2]."""
    return (cells[:, 0] << 32) + cells[:, 1]


def _decoded(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """[K, 2] the cells of `_code`."""
    low = ((codes + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
    return np.column_stack([(codes - low) >> 32, low]).astype(np.int64)


def _drawn(cells: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    out = np.zeros(shape, bool)
    out[cells[:, 0], cells[:, 1]] = True
    return out


def _padded(grid: OccupancyGrid, low: NDArray[np.int64], high: NDArray[np.int64]) -> OccupancyGrid:
    """The grid, with unknown cells around it so that it reaches from cell `low` to `high` (x,
    y)."""
    rows, columns = grid.values.shape
    before = np.maximum(-low, 0)
    after = np.maximum(high - (columns, rows), 0)
    values = np.pad(grid.values, ((before[1], after[1]), (before[0], after[0])), constant_values=-1)
    origin = grid.origin - before * grid.resolution
    return OccupancyGrid(grid.stamp_ns, values, grid.resolution, origin)


def _unique(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """[K, 3] (x, y, near): each cell once, near if it was ever."""
    order = np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))
    rows = rows[order]
    first = np.ones(len(rows), bool)
    first[1:] = (np.diff(rows[:, :2], axis=0) != 0).any(axis=1)
    return rows[first]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
