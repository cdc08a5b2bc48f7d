"""The stage: one frame set into both grids."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import ParameterError
from recon4d_ros.grids.lasting import SURE, LastingGrid
from recon4d_ros.grids.local import LocalGrid
from recon4d_ros.grids.parameters import GridParameters
from recon4d_ros.grids.sight import Looker
from recon4d_ros.types import (
    Calibration,
    Geometry,
    GridTiles,
    MapMotion,
    Motion,
    OccupancyGrid,
    PoseEstimate,
)

BASELINE = 0.25  # m: frames nearer together repeat each other's errors, as the static map has it
MOST_CELLS = 8192  # along an edge of the lasting grid: 200 MB


class StaticMap(Protocol):
    """What has the static world's voxels: the Mapper."""

    @property
    def reach(self) -> float:
        """Metres around the car within which it has all of them."""
        ...

    @property
    def voxel_size(self) -> float: ...

    def positions(self) -> NDArray[np.float32]:
        """[K, 3] m in map."""
        ...


class Grids:
    """`grids(pose, geometry, motion, road, static_map, stamp_ns)` once per frame set: the grid
    around the car, dynamic objects included. `lasting` is the static world's. Not thread-safe."""

    def __init__(self, calibration: Calibration, parameters: GridParameters | None = None) -> None:
        """Raises ParameterError if the height band is none, or a grid would not fit into memory."""
        parameters = self._parameters = parameters or GridParameters()
        if parameters.min_height >= parameters.max_height:
            raise ParameterError(
                f"parameter grids.min_height is {parameters.min_height:g}: expected below"
                f" grids.max_height, {parameters.max_height:g}"
            )
        for name, metres, most in (
            ("size", parameters.size, MOST_CELLS),
            ("local_size", parameters.local_size, MOST_CELLS // 4),
            ("max_range", 2 * parameters.max_range, MOST_CELLS // 4),
        ):
            if parameters.enabled and metres / parameters.resolution > most:
                raise ParameterError(
                    f"parameters grids.{name} and grids.resolution make"
                    f" {metres / parameters.resolution:.0f} cells along an edge: expected at most"
                    f" {most}"
                )
        self._look = Looker(calibration, parameters)
        self.lasting = LastingGrid(parameters)
        self._local = LocalGrid(parameters)
        self._aside: GridTiles | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets what was seen: map begins anew."""
        self.lasting.reset()
        self._local.reset()
        self._read_ns: int | None = None
        self._position: NDArray[np.float64] | None = None  # the car's at the last frame
        self._height = 0.0  # m in map: the road's below it
        self._looked_at: NDArray[np.float64] | None = None

    def __call__(
        self,
        pose: PoseEstimate,
        geometry: Geometry,
        motion: Motion,
        road: NDArray[np.float64] | None,
        static_map: StaticMap,
        stamp_ns: int,
    ) -> OccupancyGrid | None:
        """road: [4] plane in base_link. None where the pose is not usable or no road is known: the
        grids then stay as they are."""
        p = self._parameters
        if not p.enabled or not pose.usable or road is None:
            return None
        position = self._position = pose.T_map_base[:3, 3]
        sight = self._look(geometry, motion.mask, pose.T_map_base, pose.T_map_camera, road)
        self.lasting.see(sight, self._gain(position), pose.T_map_base, road)
        if self._read_ns is None or abs(stamp_ns - self._read_ns) >= p.map_period * 1e9:
            self._read_ns = stamp_ns
            self.read(static_map)
        edge = self._look.half - self._local.half
        under = self.lasting.window(sight.origin + edge, self._local.n)
        values, origin = self._local(sight, under, motion.objects, stamp_ns)
        self._height = float(pose.T_map_base[2, 3] - road[3] / (pose.T_map_base[2, :3] @ road[:3]))
        corner = np.asarray(origin * p.resolution, np.float64)
        return OccupancyGrid(stamp_ns, values, p.resolution, corner, self._height)

    def tiles(self) -> GridTiles:
        """The lasting grid of the whole drive, to be saved."""
        return self.lasting.tiles()

    def around(self, stamp_ns: int) -> OccupancyGrid:
        """The lasting grid around the car."""
        return self.lasting.around(stamp_ns, self._height)

    def use(self, tiles: GridTiles | None) -> None:
        """Another map, in which the car is not found yet (see `attach`), and its grid if it has
        one; what was seen until now is forgotten. Raises ValueError if its cells are of another
        size: it is then done without."""
        self.reset()
        self._aside = None
        if tiles is not None:
            self.lasting.check(tiles)
            self._aside = tiles

    def attach(self) -> None:
        """The car is in that map: what was seen until now lies there (`moved` says where), and what
        the other grid knows is added."""
        if self._aside is not None and self._parameters.enabled:
            self.lasting.add(self._aside)

    def set_aside(self) -> None:
        """Where the car is in the map of until now is not known any more: that map's grid waits for
        `attach`."""
        self._aside = self.lasting.tiles()
        self.reset()

    def moved(self, motion: MapMotion) -> None:
        """The map moved (a loop closed): the lasting grid goes along, as `LastingGrid.moved`; what
        the static map has around the car is read anew with the next frame set, and what the local
        grid saw is forgotten."""
        self.lasting.moved(motion)
        self._local.reset()
        if self._position is not None:
            T = motion.at(self._position[None])[0]
            self._position = T[:3, :3] @ self._position + T[:3, 3]
        self._read_ns = self._looked_at = None

    def read(self, static_map: StaticMap) -> None:
        """Takes over what the static map has now."""
        if self._position is not None:
            self.lasting.read_map(
                static_map.positions(),
                self._position[:2],
                static_map.reach,
                static_map.voxel_size,
            )

    def _gain(self, position: NDArray[np.float64]) -> int:
        """How much this frame's free space adds to what the last one said."""
        before = self._looked_at
        moved = np.inf if before is None else float(np.linalg.norm(position - before))
        if moved >= BASELINE:
            self._looked_at = position.copy()
            return SURE
        return max(1, round(SURE * moved / BASELINE))
