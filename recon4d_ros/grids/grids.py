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
from recon4d_ros.types import Calibration, Geometry, Motion, OccupancyGrid, PoseEstimate

BASELINE = 0.25  # m: frames nearer together repeat each other's errors, as the static map has it


class StaticMap(Protocol):
    """What has the static world's voxels: the Mapper."""

    @property
    def reach(self) -> float:
        """Metres around the car within which it has all of them."""
        ...

    @property
    def voxel_size(self) -> float: ...

    def points(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
        """Positions [K, 3] in map, colours, weights."""
        ...


class Grids:
    """`grids(pose, geometry, motion, road, static_map, stamp_ns)` once per frame set: the grid
    around the car, dynamic objects included. `lasting` is the static world's. Not thread-safe."""

    def __init__(self, calibration: Calibration, parameters: GridParameters | None = None) -> None:
        """Raises ParameterError if the height band is none."""
        parameters = self._parameters = parameters or GridParameters()
        if parameters.min_height >= parameters.max_height:
            raise ParameterError(
                f"parameter grids.min_height is {parameters.min_height:g}: expected below"
                f" grids.max_height, {parameters.max_height:g}"
            )
        self._look = Looker(calibration, parameters)
        self.lasting = LastingGrid(parameters)
        self._local = LocalGrid(parameters)
        self.reset()

    def reset(self) -> None:
        """Forgets everything: map begins anew."""
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

    def around(self, stamp_ns: int) -> OccupancyGrid:
        """The lasting grid around the car."""
        return self.lasting.around(stamp_ns, self._height)

    def read(self, static_map: StaticMap) -> None:
        """Takes over what the static map has now."""
        if self._position is not None:
            self.lasting.read_map(
                static_map.points()[0],
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
