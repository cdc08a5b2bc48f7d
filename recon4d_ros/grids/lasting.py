"""The grid that lasts: of the static world, over the whole drive.

A cell knows whether the static map has something in the height band over it (`occupied`), how well
it was seen to be free (`free`), and how often something stood in it (`stood`), for the map's voxels
are small: a wall that is seen with a doubt of half a metre is spread over many, and none of them
is sure of itself. The map goes before what was seen, free goes before stood (what one frame takes
for an obstacle others look through); a cell of none is unknown.

The height band stands on the road as it was estimated when the car was nearest (per block of
cells), so that a hill ahead is no wall; of a place whose road was never nearer than ROAD_RANGE the
map says nothing.

Cells are counted from map's origin and lie in tiles of TILE x TILE. Those around the car are one
array (the canvas) that moves tile by tile; the others are packed (zlib: a tile takes a few hundred
bytes to some kilobytes). The farthest are dropped beyond MOST_TILES.

When the map moves (a loop closes), `moved` carries the canvas' tiles by their own rigid motions; of
those that are packed it only notes the motion, and they are put in their place when the car comes
near: a drive of kilometres costs hardly more than one of metres. What is within the map's reach is
read from the moved voxels again at the next `read_map` (`Grids.moved` does both). `tiles` gives all
of it, to be saved; `add` takes such tiles of another drive.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.grids.parameters import GridParameters
from recon4d_ros.grids.sight import Sight
from recon4d_ros.types import FREE, OCCUPIED, UNKNOWN, GridTiles, MapMotion, OccupancyGrid

TILE = 128  # cells
BLOCK = 8  # cells that share a height of the road
BLOCKS = TILE // BLOCK
ROAD_RANGE = 25.0  # m: as far as the road's plane is fitted (dynamics/ground.py)
SURE = 20  # evidence of free space that one frame gives
MOST = 120  # evidence at most: six frames
STOOD = SURE  # evidence from which what was seen to stand there counts: one frame's
MOST_TILES = 20_000  # packed: about 90 km of street, cells of 0.2 m, in 60 MB
MOST_CELLS = 1 << 26  # of a grid that is written as one
# by stood (1), free (2) and occupied (4)
_VALUES = np.full(256, OCCUPIED, np.int8).view(np.uint8)
_VALUES[:4] = np.array([UNKNOWN, OCCUPIED, FREE, FREE], np.int8).view(np.uint8)
Array = NDArray[np.float64]


@dataclass
class _Layers:
    """What a rectangle of cells knows, rows along y. free, stood: uint8, evidence; occupied: bool.
    road, nearest: float32, per block, height of the road in map (NaN: not known), and from how far
    away it was estimated, metres."""

    free: NDArray[np.uint8]
    stood: NDArray[np.uint8]
    occupied: NDArray[np.bool_]
    road: NDArray[np.float32]
    nearest: NDArray[np.float32]

    @classmethod
    def blank(cls, tiles: int) -> _Layers:
        n, b = tiles * TILE, tiles * BLOCKS
        return cls(
            np.zeros((n, n), np.uint8),
            np.zeros((n, n), np.uint8),
            np.zeros((n, n), bool),
            np.full((b, b), np.nan, np.float32),
            np.full((b, b), np.inf, np.float32),
        )

    def tile(self, row: int, column: int) -> _Layers:
        """A view of one tile."""
        cells = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
        blocks = (
            slice(row * BLOCKS, (row + 1) * BLOCKS),
            slice(column * BLOCKS, (column + 1) * BLOCKS),
        )
        return _Layers(
            self.free[cells],
            self.stood[cells],
            self.occupied[cells],
            self.road[blocks],
            self.nearest[blocks],
        )

    def take(self, other: _Layers) -> None:
        self.free[:], self.stood[:] = other.free, other.stood
        self.occupied[:] = other.occupied
        self.road[:], self.nearest[:] = other.road, other.nearest

    def merge(self, other: _Layers) -> None:
        """Where two overlap, occupied goes before free, the larger evidence before the smaller, the
        road that was seen nearer before the other."""
        np.maximum(self.free, other.free, out=self.free)
        np.maximum(self.stood, other.stood, out=self.stood)
        self.occupied |= other.occupied
        nearer = other.nearest < self.nearest
        self.nearest[nearer] = other.nearest[nearer]
        self.road[nearer] = other.road[nearer]

    @property
    def level(self) -> float:
        """Height of the road, m in map; 0 where it is not known."""
        height = self.road[np.isfinite(self.road)]
        return float(np.median(height)) if len(height) else 0.0

    @property
    def empty(self) -> bool:
        return not (
            np.isfinite(self.road).any()
            or self.free.any()
            or self.stood.any()
            or self.occupied.any()
        )

    def packed(self) -> bytes:
        parts = (self.free, self.stood, np.packbits(self.occupied), self.road, self.nearest)
        return zlib.compress(b"".join(np.ascontiguousarray(part).tobytes() for part in parts), 1)

    @classmethod
    def unpacked(cls, data: bytes) -> _Layers:
        """Raises ValueError where these are no packed layers."""
        try:
            raw = np.frombuffer(zlib.decompress(data), np.uint8)
        except zlib.error as error:
            raise ValueError(f"a tile of the grid is damaged: {error}") from None
        cells, blocks = TILE * TILE, BLOCKS * BLOCKS
        free, stood, bits, road, nearest = np.split(
            raw, np.cumsum([cells, cells, cells // 8, blocks * 4])
        )
        return cls(
            free.reshape(TILE, TILE),
            stood.reshape(TILE, TILE),
            np.unpackbits(bits).reshape(TILE, TILE).astype(bool),
            road.view(np.float32).reshape(BLOCKS, BLOCKS),
            nearest.view(np.float32).reshape(BLOCKS, BLOCKS),
        )


@dataclass(frozen=True)
class _Packed:
    """A tile where its index says. level: height of its road, m in map."""

    data: bytes
    level: float


class LastingGrid:
    """Not thread-safe."""

    def __init__(self, parameters: GridParameters) -> None:
        self._parameters = parameters
        p = parameters
        least = max(0.5 * p.size, p.max_range, 0.5 * p.local_size) / p.resolution
        self._reach = int(np.ceil(np.ceil(least) / TILE))  # tiles to each side of the car's
        self._tiles = 2 * self._reach + 1
        self.dropped = 0  # tiles that found no room
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._canvas = _Layers.blank(self._tiles)
        self._corner = np.zeros(2, np.int64)  # tile (x, y) of the canvas' first
        self._packed: dict[tuple[int, int], _Packed] = {}
        self._away = _tiles(self._parameters.resolution, [])  # not put where they lie yet
        self._centred = False

    # ---- what comes in

    def see(self, sight: Sight, gain: int, T_map_base: Array, road: Array) -> None:
        """One frame. gain: evidence of a cell that is seen to be free, SURE for a frame that says
        something new. road: [4] plane in base_link."""
        self._follow(T_map_base[:2, 3])
        self._see_road(T_map_base, road)
        cells = self._window(sight.origin, sight.free.shape[0])
        more, less = np.uint8(gain), np.uint8(2 * gain)
        clear, standing = sight.free, sight.standing.view(np.uint8)
        for evidence, seen, against in (
            (self._canvas.free[cells], clear, standing & (clear ^ 1)),
            (self._canvas.stood[cells], standing, clear & (standing ^ 1)),
        ):  # OpenCV's sums end at 0 and 255
            total = cv2.add(evidence, seen * more)
            _, total = cv2.threshold(total, MOST, MOST, cv2.THRESH_TRUNC)
            evidence[:] = cv2.subtract(total, against * less)

    def read_map(
        self, points: NDArray[np.float32], center: Array, reach: float, voxel_size: float
    ) -> None:
        """The static map's points [K, 3] (m, in map), which are all that it has within `reach` of
        `center` [2]: what is there no more is taken out, farther away the grid keeps what it
        knows."""
        p, n = self._parameters, self._canvas.free.shape[0]
        cell = np.floor(points[:, :2].astype(np.float64) / p.resolution).astype(np.int64)
        cell -= self._corner * TILE
        inside = np.flatnonzero(((cell >= 0) & (cell < n)).all(axis=1))
        x, y = cell[inside].T
        height = points[inside, 2] - self._canvas.road[y // BLOCK, x // BLOCK]
        band = (height >= p.min_height) & (height <= p.max_height)  # False where NaN
        found = np.zeros((n, n), np.uint8)
        found[y[band], x[band]] = 1
        if voxel_size > 1.5 * p.resolution:  # one point stands for a voxel of several cells
            wide = round(voxel_size / p.resolution)
            found = np.asarray(cv2.dilate(found, np.ones((wide, wide), np.uint8)))
        middle = np.asarray(center) / p.resolution - self._corner * TILE
        radius = max(reach - 2 * voxel_size, 0.0) / p.resolution
        rows = np.arange(n) + 0.5 - middle[1]
        half = np.sqrt(np.maximum(radius**2 - rows**2, 0.0))
        # of each row, the columns within the circle: from `first` to before `last`
        first, last = (
            np.clip(np.ceil(middle[0] + edge - 0.5), 0, n).astype(np.int16)
            for edge in (-half, half)
        )
        column = np.arange(n, dtype=np.int16)
        beyond = (column < first[:, None]) | (column >= last[:, None])
        np.logical_and(self._canvas.occupied, beyond, out=self._canvas.occupied)
        self._canvas.occupied |= found.view(bool)

    def _see_road(self, T_map_base: Array, road: Array) -> None:
        """The road's height of the blocks that the car has never been nearer to."""
        size = BLOCK * self._parameters.resolution
        start = self._corner * BLOCKS
        b = self._canvas.road.shape[0]
        reach = np.array([[-ROAD_RANGE], [ROAD_RANGE + size]])
        bounds = np.floor((T_map_base[:2, 3] + reach) / size).astype(np.int64) - start
        first, last = np.minimum(np.maximum(bounds, 0), b)
        x, y = (
            (np.arange(first[axis], last[axis]) + start[axis] + 0.5) * size - T_map_base[axis, 3]
            for axis in (0, 1)
        )
        distance = np.sqrt(x * x + (y * y)[:, None]).astype(np.float32)
        normal = T_map_base[:3, :3] @ road[:3]
        height = T_map_base[2, 3] - (road[3] + normal[0] * x + normal[1] * y[:, None]) / normal[2]
        here = slice(first[1], last[1]), slice(first[0], last[0])
        # as near as before, too: a car that stands learns better where the road is
        nearer = (distance <= self._canvas.nearest[here] + 0.1) & (distance <= ROAD_RANGE)
        self._canvas.road[here][nearer] = height[nearer]
        self._canvas.nearest[here][nearer] = distance[nearer]

    # ---- what goes out

    def window(self, origin: NDArray[np.int64], n: int) -> NDArray[np.int8]:
        """[n, n] values from cell `origin` (x, y) on; within the canvas."""
        return self._values(*self._window(origin, n))

    def around(self, stamp_ns: int = 0, height: float = 0.0) -> OccupancyGrid:
        """The square around the car. height: of the road below it, m in map."""
        every = slice(None)
        grid = self._grid(self._values(every, every), self._corner * TILE, stamp_ns)
        return replace(grid, height=height)

    def whole(self, stamp_ns: int = 0) -> OccupancyGrid:
        """All of the drive, cut to what is known; of a drive too long for MOST_CELLS with cells
        twice, four times, ... as wide (occupied if any part is, free if all parts are)."""
        self._settle(np.ones(len(self._away), bool))
        known = [index for index, layers in self._canvas_tiles() if not layers.empty]
        known += list(self._packed)  # each is the one or the other
        if not known:
            return self._grid(np.full((1, 1), UNKNOWN, np.int8), np.zeros(2, np.int64), stamp_ns)
        low = np.min(known, axis=0)
        count = np.max(known, axis=0) - low + 1
        factor = 1
        while np.prod(count * (TILE // factor)) > MOST_CELLS and factor < TILE:
            factor *= 2
        t = TILE // factor
        values = np.full((count[1] * t, count[0] * t), UNKNOWN, np.int8)
        for (x, y), layers in self._all():
            if layers.empty:
                continue
            blocks = self._values_of(layers).reshape(t, factor, t, factor)
            part = np.asarray(blocks.swapaxes(1, 2)).reshape(t, t, -1)
            coarse = np.where((part == FREE).all(-1), FREE, UNKNOWN)
            coarse[(part == OCCUPIED).any(-1)] = OCCUPIED
            row, column = (y - low[1]) * t, (x - low[0]) * t
            values[row : row + t, column : column + t] = coarse
        rows, columns = (np.flatnonzero((values != UNKNOWN).any(axis)) for axis in (1, 0))
        if not len(rows):
            return self._grid(values[:1, :1], low * t, stamp_ns, factor)
        cut = values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        corner = low * t + np.array([columns[0], rows[0]])
        return self._grid(np.ascontiguousarray(cut), corner, stamp_ns, factor)

    def tiles(self) -> GridTiles:
        """Everything, to be saved."""
        here = [
            (index, _Packed(layers.packed(), layers.level))
            for index, layers in self._canvas_tiles()
            if not layers.empty
        ]
        resolution = self._parameters.resolution
        return _joined(self._away, _tiles(resolution, [*self._packed.items(), *here]))

    def check(self, tiles: GridTiles) -> None:
        """Raises ValueError if the cells of tiles are of another size."""
        if abs(tiles.resolution - self._parameters.resolution) > 1e-9:
            raise ValueError(
                f"the grid's cells are {tiles.resolution:g} m: expected"
                f" {self._parameters.resolution:g} m (parameter grids.resolution)"
            )

    def add(self, tiles: GridTiles) -> None:
        """What another drive knew of the same map. Raises ValueError as `check`."""
        self.check(tiles)
        self._away = _joined(self._away, tiles)
        self._settle_near()

    def moved(self, motion: MapMotion) -> None:
        """The map moved: every tile goes along by its own rigid motion, of which the turn about z
        and the way of the tile's middle are taken. Where tiles then overlap: `_Layers.merge`."""
        size = self._parameters.resolution * TILE
        packed = _tiles(self._parameters.resolution, list(self._packed.items()))
        away = _joined(self._away, packed)
        self._packed = {}
        middle = _moved_middles(away)
        self._away = replace(away, motion=_level(motion.at(middle), middle) @ away.motion)
        if not self._centred:
            return
        old = [(index, layers) for index, layers in self._canvas_tiles() if not layers.empty]
        index = np.array([one for one, _ in old], np.int64).reshape(-1, 2)
        level = np.array([layers.level for _, layers in old])
        middle = np.column_stack([(index + 0.5) * size, level])
        T = _level(motion.at(middle), middle)
        centre = np.array([*(self._corner + 0.5 * self._tiles) * size, 0.0])
        reached = motion.at(centre[None])[0]
        self._canvas, self._centred = _Layers.blank(self._tiles), False
        self._follow(reached[:2, :3] @ centre + reached[:2, 3])
        for (one, layers), way in zip(old, T, strict=True):
            self._carry(layers, np.array(one), way)

    # ---- the canvas and the tiles beside it

    def _follow(self, position: Array) -> None:
        """Moves the canvas so that the car's tile is its middle one."""
        tile = np.floor(position / (TILE * self._parameters.resolution)).astype(np.int64)
        corner = tile - self._reach
        if self._centred and np.array_equal(corner, self._corner):
            return
        leaving = list(self._canvas_tiles()) if self._centred else []
        self._canvas = _Layers.blank(self._tiles)
        self._corner, self._centred = corner, True
        for index, layers in leaving:
            place = np.array(index) - corner
            if (place >= 0).all() and (place < self._tiles).all():
                self._canvas.tile(place[1], place[0]).take(layers)
            else:
                self._keep(index, layers)
        for row in range(self._tiles):
            for column in range(self._tiles):
                key = (int(corner[0]) + column, int(corner[1]) + row)
                if (packed := self._packed.pop(key, None)) is not None:
                    self._canvas.tile(row, column).take(_Layers.unpacked(packed.data))
        self._settle_near()

    def _settle_near(self) -> None:
        """Puts those tiles where they lie that reach into the canvas."""
        if not (self._centred and len(self._away)):
            return
        size = TILE * self._parameters.resolution
        centre = (self._corner + 0.5 * self._tiles) * size
        reach = (0.5 * self._tiles + np.sqrt(0.5)) * size
        off = _moved_middles(self._away)[:, :2] - centre
        self._settle((np.abs(off) < reach).all(axis=1))

    def _settle(self, which: NDArray[np.bool_]) -> None:
        """Puts some of the tiles that are away where they lie."""
        away, self._away = self._away, _taken(self._away, ~which)
        for i in np.flatnonzero(which).tolist():
            try:
                layers = _Layers.unpacked(away.data[i])
            except ValueError:  # of a file that was written by somebody else
                self.dropped += 1
                continue
            self._carry(layers, away.index[i], away.motion[i])

    def _carry(self, layers: _Layers, index: NDArray[np.int64], T: Array) -> None:
        """A tile by T [4, 4] into those that it then lies on."""
        for key, part in _carried(layers, index, T, self._parameters.resolution):
            place = np.array(key) - self._corner
            if self._centred and (place >= 0).all() and (place < self._tiles).all():
                self._canvas.tile(place[1], place[0]).merge(part)
            else:
                self._keep(key, part)

    def _keep(self, index: tuple[int, int], layers: _Layers) -> None:
        if (there := self._packed.get(index)) is not None:
            layers.merge(_Layers.unpacked(there.data))
        if layers.empty:
            return
        self._packed[index] = _Packed(layers.packed(), layers.level)
        if len(self._packed) + len(self._away) > MOST_TILES:
            self._drop_farthest()

    def _drop_farthest(self) -> None:
        middle = self._corner + self._reach
        far = max(self._packed, key=lambda key: float(np.abs(np.array(key) - middle).max()))
        del self._packed[far]
        self.dropped += 1

    def _canvas_tiles(self) -> Iterator[tuple[tuple[int, int], _Layers]]:
        if not self._centred:
            return
        for row in range(self._tiles):
            for column in range(self._tiles):
                index = (int(self._corner[0]) + column, int(self._corner[1]) + row)
                yield index, self._canvas.tile(row, column)

    def _all(self) -> Iterator[tuple[tuple[int, int], _Layers]]:
        for index, packed in self._packed.items():
            yield index, _Layers.unpacked(packed.data)
        yield from self._canvas_tiles()

    def _window(self, origin: NDArray[np.int64], n: int) -> tuple[slice, slice]:
        x, y = (origin - self._corner * TILE).tolist()
        return slice(y, y + n), slice(x, x + n)

    def _values(self, rows: slice, columns: slice) -> NDArray[np.int8]:
        layers = _Layers(
            self._canvas.free[rows, columns],
            self._canvas.stood[rows, columns],
            self._canvas.occupied[rows, columns],
            self._canvas.road,
            self._canvas.nearest,
        )
        return self._values_of(layers)

    def _values_of(self, layers: _Layers) -> NDArray[np.int8]:
        seen = min(self._parameters.free_frames * SURE, MOST)
        code = (layers.stood >= STOOD).view(np.uint8)
        code |= (layers.free >= seen).view(np.uint8) << np.uint8(1)
        code |= layers.occupied.view(np.uint8) << np.uint8(2)
        return np.asarray(cv2.LUT(code, _VALUES)).view(np.int8)

    def _grid(
        self, values: NDArray[np.int8], corner: NDArray[np.int64], stamp_ns: int, factor: int = 1
    ) -> OccupancyGrid:
        resolution = self._parameters.resolution * factor
        return OccupancyGrid(
            stamp_ns, values, resolution, np.asarray(corner * resolution, np.float64)
        )


def _tiles(resolution: float, packed: list[tuple[tuple[int, int], _Packed]]) -> GridTiles:
    """Of tiles that lie where their index says."""
    return GridTiles(
        resolution,
        np.array([index for index, _ in packed], np.int64).reshape(-1, 2),
        np.tile(np.eye(4), (len(packed), 1, 1)),
        np.array([one.level for _, one in packed], np.float64),
        tuple(one.data for _, one in packed),
    )


def _joined(a: GridTiles, b: GridTiles) -> GridTiles:
    return GridTiles(
        a.resolution,
        np.concatenate([a.index, b.index]),
        np.concatenate([a.motion, b.motion]),
        np.concatenate([a.level, b.level]),
        a.data + b.data,
    )


def _taken(tiles: GridTiles, which: NDArray[np.bool_]) -> GridTiles:
    return GridTiles(
        tiles.resolution,
        tiles.index[which],
        tiles.motion[which],
        tiles.level[which],
        tuple(tiles.data[i] for i in np.flatnonzero(which).tolist()),
    )


def _moved_middles(tiles: GridTiles) -> Array:
    """[K, 3] where the middles of tiles are in map."""
    then = np.column_stack([(tiles.index + 0.5) * TILE * tiles.resolution, tiles.level])
    moved = np.einsum("kij,kj->ki", tiles.motion[:, :3, :3], then) + tiles.motion[:, :3, 3]
    return np.asarray(moved, np.float64)


def _level(T: Array, middle: Array) -> Array:
    """Motions [K, 4, 4] without their tilt: each takes its `middle` [K, 3] where T does, and turns
    about z alone."""
    yaw = np.arctan2(T[:, 1, 0], T[:, 0, 0])
    flat = np.tile(np.eye(4), (len(T), 1, 1))
    flat[:, 0, 0] = flat[:, 1, 1] = np.cos(yaw)
    flat[:, 1, 0] = np.sin(yaw)
    flat[:, 0, 1] = -flat[:, 1, 0]
    turned = np.einsum("kij,kj->ki", T[:, :3, :3] - flat[:, :3, :3], middle)
    flat[:, :3, 3] = turned + T[:, :3, 3]
    return flat


def _carried(
    layers: _Layers, index: NDArray[np.int64], T: Array, resolution: float
) -> Iterator[tuple[tuple[int, int], _Layers]]:
    """One tile by T [4, 4], which turns about z alone: the parts of the tiles that it then lies
    on."""
    turn = T[:2, :2]
    size = TILE * resolution
    corner = np.asarray(index * size, np.float64)
    square = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * size + corner
    reached = square @ turn.T + T[:2, 3]
    low = np.floor(reached.min(axis=0) / size + 1e-9).astype(np.int64)
    high = np.floor(reached.max(axis=0) / size - 1e-9).astype(np.int64)
    cells = cv2.merge([layers.free, layers.stood, layers.occupied.view(np.uint8)])
    road = cv2.merge([layers.road, layers.nearest])
    for x in range(low[0], high[0] + 1):
        for y in range(low[1], high[1] + 1):
            moved, heights = (
                cv2.warpAffine(
                    image,
                    _back(np.array([x, y]) * size, turn, T[:2, 3], corner, step),
                    (count, count),
                    flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                    borderValue=outside,
                )
                for image, step, count, outside in (
                    (cells, resolution, TILE, (0, 0, 0)),
                    (road, resolution * BLOCK, BLOCKS, (np.nan, np.inf)),
                )
            )
            yield (
                (x, y),
                _Layers(
                    np.array(moved[..., 0], np.uint8),
                    np.array(moved[..., 1], np.uint8),
                    moved[..., 2] != 0,
                    heights[..., 0] + np.float32(T[2, 3]),
                    np.array(heights[..., 1], np.float32),
                ),
            )


def _back(new: Array, turn: Array, shift: Array, old: Array, step: float) -> Array:
    """[2, 3]: from a pixel of the tile whose corner is at `new` to the pixel of the tile whose
    corner was at `old` that lies there. step: edge of a cell."""
    across = turn.T
    first = across @ (new + 0.5 * step - shift) - old
    return np.column_stack([across, first / step - 0.5])
