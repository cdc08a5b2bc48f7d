"""An engine that gives occupancy in place of depth (UniScene): its host's side.

The graph knows no poses and no cameras, only tables that are made of them here (../bev.py); its
memory, the bird's-eye-view features of the step before, stays in the runtime.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import bev
from recon4d_ros.engine import requirement, start_runtime
from recon4d_ros.engine.base import EngineSpec, check_fits, fits_rig, load_spec
from recon4d_ros.engine.hosted import Runtime, empty_outputs
from recon4d_ros.errors import EngineError
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.types import Calibration, Frame, Occupancy, Rig

OCCUPANCY = "occupancy"
AT_REST = np.array(
    [0.0, 0.0, bev.GRAVITY]
)  # what an accelerometer says of a car that keeps its pace


def load_occupancy(
    folder: str | os.PathLike[str],
    rig: Rig | Calibration | None = None,
    runtime: str = "",
    threads: int = 0,
) -> OccupancyEngine:
    """An engine ready to step; arguments and errors as `recon4d_ros.engine.load`."""
    folder = Path(folder)
    spec = load_spec(folder)
    where = f"engine {folder}"
    if spec.config != OCCUPANCY:
        raise EngineError(f"{where}: {spec.network} ({spec.config}) gives no occupancy")
    if isinstance(rig, Rig) and not fits_rig(spec, rig):
        raise EngineError(
            f"{where} does not fit rig {rig.name}: it is made for {requirement(spec)}; this rig has"
            f" {len(rig.cameras)}"
        )
    engine = OccupancyEngine(spec, start_runtime(folder, spec, runtime, threads), where)
    if isinstance(rig, Calibration):
        engine.use(rig)
    return engine


class OccupancyEngine:
    """One loaded engine with its memory. Not thread-safe: one caller steps it, in the order of the
    frames. The published weights were trained on two frame sets a second: at other rates the car's
    motion between steps is another than they know."""

    def __init__(self, spec: EngineSpec, runtime: Runtime, where: str) -> None:
        self.spec = spec
        self.forgotten = 0
        """How often the memory held what is not finite, and was therefore forgotten."""
        self._runtime, self._where = runtime, where
        self._grid = grid_of(spec)
        self._before: NDArray[np.float64] | None = None
        self._calibration: Calibration | None = None
        self._constant: dict[str, NDArray] = {}
        self._seen: NDArray[np.bool_] = np.zeros((spec.cameras, 0, 0, 0), bool)
        self._size, self._origin = voxels_of(spec)

    @property
    def device(self) -> str:
        """What runs it on what."""
        return self._runtime.device

    def reset(self) -> None:
        """Forgets everything seen: as after loading; for jumps in time or place."""
        self._runtime.reset()
        self._before = None

    def use(self, calibration: Calibration) -> None:
        """Takes a calibration as the rig's. Raises EngineError if the engine was made for another
        rig."""
        if calibration is self._calibration:
            return
        check_fits(self.spec, calibration, self._where)
        try:
            self._constant = rig_inputs(self.spec, calibration)
        except EngineError as error:
            raise EngineError(f"{self._where}: {error}") from None
        shape = self.spec.extra_outputs[OCCUPANCY]
        self._seen = seen_voxels(calibration, shape, self._size, self._origin)
        self._calibration = calibration

    def step(
        self,
        frame: Frame,
        calibration: Calibration,
        T_map_base: NDArray[np.float64],
        velocity: NDArray[np.float64],
        acceleration: NDArray[np.float64] = AT_REST,
    ) -> Occupancy:
        """Occupancy of one frame set, and the memory's next state.

        T_map_base: [4, 4] at the frame's stamp, in a map that stays what it is until `reset`.
        velocity: [6] twist in base_link, m/s and rad/s. acceleration: [3] m/s^2 in base_link, as an
        accelerometer says it. The arrays of the result are the caller's. Raises EngineError if a
        shape is not the engine's or a number is not finite.
        """
        self.use(calibration)
        expected = (self.spec.cameras, *self.spec.input_size, self.spec.channels)
        for name, array, shape in (
            ("images", frame.images, expected),
            ("T_map_base", T_map_base, (4, 4)),
            ("velocity", velocity, (6,)),
            ("acceleration", acceleration, (3,)),
        ):
            if np.shape(array) != shape:
                raise EngineError(
                    f"{self._where}: {name} has shape {list(np.shape(array))}: expected"
                    f" {list(shape)}"
                )
            if array.dtype != np.uint8 and not np.isfinite(array).all():
                raise EngineError(f"{self._where}: {name} has a number that is not finite")
        state = bev.can_bus(T_map_base, velocity, acceleration)
        given = bev.streamed(state, self._before)
        outputs = empty_outputs(self.spec)
        self._runtime.run(
            {
                "images": np.ascontiguousarray(frame.images),
                "present": frame.present.astype(np.float32),
                **motion_inputs(self.spec, given, self._grid),
                **self._constant,
            },
            outputs,
        )
        self._before = state
        score = outputs[OCCUPANCY]
        known = self._seen[frame.present].any(0) & np.isfinite(score)
        if self._forgets_what_is_not_finite():
            known[:] = False
        score[~known] = np.nan
        return Occupancy(frame.stamp_ns, score, self._size, self._origin)

    def close(self) -> None:
        self._runtime.close()

    def _forgets_what_is_not_finite(self) -> bool:
        """Whether all was forgotten: a number that is not finite would stay in the memory and
        spread. The memory is looked at in every step, because OpenVINO makes finite scores of it;
        that costs milliseconds beside seconds."""
        if np.isfinite(self._runtime.memory("bev")).all():
            return False
        self.forgotten += 1
        self.reset()
        return True


def grid_of(spec: EngineSpec) -> bev.BevGrid:
    o = spec.options
    low, high = ((float(x), float(y), float(z)) for x, y, z in (o["low"], o["high"]))
    return bev.BevGrid(int(o["rows"]), int(o["columns"]), low, high)


def in_lidar(spec: EngineSpec) -> bool:
    """Whether the grid lies in the lidar's frame, and not in base_link. Engines from before it was
    written down are of the published geometry."""
    published = "base_link" if spec.config == OCCUPANCY else "lidar"
    return spec.options.get("grid_frame", published) == "lidar"


def rig_inputs(spec: EngineSpec, calibration: Calibration) -> dict[str, NDArray]:
    """Those inputs of the graph that stay as they are over a drive. Raises EngineError if the rig's
    cameras see more of the grid than the engine's tables hold."""
    grid = grid_of(spec)
    lidar = spec.options["lidar"] if in_lidar(spec) else None
    points, seen = bev.project_pillars(
        grid, bev.image_from_grid(calibration, lidar), spec.working_size
    )
    room = int(spec.options["cells_in_view"]), int(spec.options["cameras_per_cell"])
    needed = bev.needed(seen)
    if needed[0] > room[0] or needed[1] > room[1]:
        raise EngineError(
            f"has room for {room[0]} cells in a camera's view and {room[1]} cameras that see a"
            f" cell: this rig needs {needed[0]} and {needed[1]}; export it again with --rig"
        )
    return rig_tables(spec, calibration, points, seen)


def rig_tables(
    spec: EngineSpec,
    calibration: Calibration,
    points: NDArray[np.float32],
    seen: NDArray[np.bool_],
) -> dict[str, NDArray]:
    """The graph's constant inputs for what bev.project_pillars gave."""
    room = int(spec.options["cells_in_view"]), int(spec.options["cameras_per_cell"])
    tables = bev.cells_in_view(points, seen, *room)
    trained = tuple(float(angle) for angle in spec.options["trained_cameras"])
    return {
        "grid": np.ascontiguousarray(calibration.grid, np.float32),
        "cell": tables.cell,
        "point": tables.point,
        "slot": tables.slot,
        "place": bev.trained_places(calibration.T_base_camera, trained),
    }


def motion_inputs(
    spec: EngineSpec, given: NDArray[np.float64], grid: bev.BevGrid
) -> dict[str, NDArray]:
    """What the graph is told of the car's motion since the step before; given: bev.streamed."""
    mended = bool(spec.options["mended_shift"])
    return {
        "can_bus": given.astype(np.float32),
        "shift": bev.history_shifts(given, grid, in_lidar(spec), mended).astype(np.float32),
        "from_cell": bev.turned_cells(given[bev.YAW_DEGREES], grid),
    }


def voxels_of(spec: EngineSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Size [3] of a voxel and the lower corner [3] of voxel (0, 0, 0) in base_link, metres.

    The training's labels are laid around its lidar, along its base_link's axes, and their last
    index is only reached at the range's very end: the range is divided by one less than the number
    of voxels (networks/occupancy_labels.py).
    """
    shape = np.array(spec.extra_outputs[OCCUPANCY])
    size = grid_of(spec).extent / (shape - 1)
    return size, np.add(spec.options["low"], spec.options["lidar"])


def seen_voxels(
    calibration: Calibration,
    shape: tuple[int, ...],
    size: NDArray[np.float64],
    origin: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """[N, X, Y, Z] whose centre a camera's working image shows, the ego-vehicle's mask left out.
    What lies behind something is shown as well: that is not known here."""
    h, w = calibration.working_size
    centres = (np.indices(shape).reshape(3, -1).T + 0.5) * size + origin
    seen = np.zeros((len(calibration.names), len(centres)), bool)
    for camera, T_camera_base in enumerate(inverse(calibration.T_base_camera)):
        points = transform(T_camera_base, centres)
        ahead = np.flatnonzero(points[:, 2] > 1e-3)
        pixel = points[ahead] @ calibration.k[camera].T
        pixel = np.rint(pixel[:, :2] / pixel[:, 2:])
        inside = np.logical_and(pixel >= 0, pixel <= (w - 1, h - 1)).all(1)
        u, v = pixel[inside].astype(np.int64).T
        seen[camera, ahead[inside]] = calibration.grid[camera, v, u, 0] > -2
    return seen.reshape(-1, *shape)
