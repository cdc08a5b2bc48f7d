"""The whole algorithm in one screen: FrameSet in, Reconstruction out. Node, command line and tests
all drive this class.

    sync -> preprocess -> ego-motion -> engine -> dynamics -> mapping -> grids -> publish

The engine's memory takes frame t-1's tokens at the start of step t, together with what dynamics
found moving in frame t-1: what it marked stays out of the memory, and nothing is delayed by it. Of
a frame whose pose is not usable, nothing enters memory and map. Where ego-motion begins a new
segment (it lost the car for too long, and no odometry bridges the gap) map, memory and tracks are
forgotten: where the old ones are from here is not known. With keyframes (localization/) the map is
set aside instead, until the car is found in it.

Ego-motion, engine and dynamics work in odometry's frame, which is smooth; the map, and what is
said, is in map. The two are one unless the car was found in another map (`Places.T_map_odom`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from recon4d_ros import engine as engines
from recon4d_ros.cameras.preprocess import Preprocessor, make_calibration
from recon4d_ros.cameras.rig_check import check_rig
from recon4d_ros.dynamics import Dynamics, DynamicsParameters
from recon4d_ros.egomotion import Egomotion, EgomotionParameters
from recon4d_ros.errors import EngineError, ParameterError
from recon4d_ros.grids import GridParameters, Grids
from recon4d_ros.localization import (
    LocalizationParameters,
    MapFolder,
    Places,
    Runner,
    moved_objects,
    moved_pose,
)
from recon4d_ros.mapping import Mapper, MappingParameters
from recon4d_ros.parallel import Beside
from recon4d_ros.sync import SyncParameters
from recon4d_ros.tally import Tally
from recon4d_ros.types import (
    Detections,
    FrameSet,
    ImageBoxes,
    Jump,
    OccupancyGrid,
    Reconstruction,
    Rig,
)


@dataclass(frozen=True)
class Parameters:
    """Every parameter of the algorithm, stage by stage; names are dotted for users
    (`mapping.voxel_size`)."""

    sync: SyncParameters = field(default_factory=SyncParameters)
    egomotion: EgomotionParameters = field(default_factory=EgomotionParameters)
    dynamics: DynamicsParameters = field(default_factory=DynamicsParameters)
    mapping: MappingParameters = field(default_factory=MappingParameters)
    localization: LocalizationParameters = field(default_factory=LocalizationParameters)
    grids: GridParameters = field(default_factory=GridParameters)


class Reconstructor:
    """Online 4D reconstruction for one rig.

    runtime: of the engines, their own by default; the motion network's keeps its own where it is
    not built for that one. runner: where keyframes are made and the car is looked for, between the
    frames by default. Raises CalibrationError if the rig cannot be one (`rig_check`), EngineError
    or CalibrationError if engine and rig do not fit each other.
    """

    def __init__(
        self,
        rig: Rig,
        engine_folder: Path,
        parameters: Parameters | None = None,
        runtime: str = "",
        runner: Runner | None = None,
    ) -> None:
        parameters = parameters or Parameters()
        self._rig_notes = check_rig(rig)
        self.rig = rig
        self.parameters = parameters
        self.engine = engines.load(engine_folder, rig, runtime)
        spec = self.engine.spec
        self.calibration = make_calibration(rig, spec.input_size, spec.working_size)
        self.preprocessor = Preprocessor(rig, self.calibration, spec.channels)
        self.egomotion = Egomotion(rig, self.calibration, parameters.egomotion)
        try:
            self.grids = Grids(self.calibration, parameters.grids)
            self.dynamics = Dynamics(rig, self.calibration, parameters.dynamics, runtime)
        except (EngineError, ParameterError):
            self.engine.close()
            raise
        self.mapper = Mapper(self.calibration, parameters.mapping)
        self._runner = runner
        self.places: Places | None = None
        if parameters.localization.mode in ("mapping", "localization"):
            self.keep_places()
        self._still = np.zeros((len(rig.cameras), *spec.working_size), bool)
        self._moving_before = self._still
        self._segment = 0
        self._grids_moved = False  # by what a save took up between two steps
        self._undecodable = Tally()

    def step(self, frame_set: FrameSet) -> Reconstruction:
        """One frame set through every room. A camera that is absent or cannot be decoded is marked;
        the others go on."""
        if frame_set.jump is Jump.BACKWARD:
            self.reset()
        latency: dict[str, float] = {}
        cpu: dict[str, float] = {}
        if self.places:
            self._begin_in_map(self.places)
        with _timed(latency, cpu, "preprocess"):
            frame, dropped = self.preprocessor(frame_set)
            for camera, reason in dropped.items():
                self._undecodable.count(camera, reason)
        with _timed(latency, cpu, "egomotion"):
            pose = self.egomotion.estimate(
                frame, frame_set.odometry, frame_set.jump, frame_set.imu, frame_set.twist
            )
        map_motion = self.places.motion if self.places else None
        if pose.segment != self._segment:
            map_motion = None
            self._segment = pose.segment  # first: what fails below fails once
            self._forget_the_world(new_segment=True)
        T_map_odom = self.places.T_map_odom if self.places else np.eye(4)
        with _timed(latency, cpu, "engine"):
            geometry = self.engine.step(
                frame, self.calibration, pose.T_map_camera, self._moving_before
            )
        with _timed(latency, cpu, "dynamics"):
            motion = self.dynamics(frame, pose, geometry)
        with _timed(latency, cpu, "mapping"):
            in_map, motion_in_map = pose, motion
            if self.places:
                in_map = moved_pose(pose, T_map_odom)
                objects = moved_objects(motion.objects, T_map_odom)
                motion_in_map = replace(motion, objects=objects)
            delta = self.mapper(in_map, geometry, motion.mask, frame.stamp_ns)
        # Neither needs the other. `grids` is then the time for which the frame waits for them.
        road, grids_cpu = self.dynamics.ground, 0.0

        def grids() -> OccupancyGrid | None:
            nonlocal grids_cpu
            start = time.thread_time()
            grid = self.grids(in_map, geometry, motion_in_map, road, self.mapper, frame.stamp_ns)
            grids_cpu = time.thread_time() - start
            return grid

        with Beside(grids) as beside:
            with _timed(latency, cpu, "landmarks"):
                self.egomotion.observe(frame, geometry, pose, motion.mask)
            with _timed(latency, cpu, "grids"):
                local_grid = beside.result()
        both = cpu["landmarks"] + cpu["grids"]
        cpu["landmarks"], cpu["grids"] = max(both - grids_cpu, 0.0), grids_cpu
        if self.places:
            with _timed(latency, cpu, "localization"):
                self.places.take(frame, pose, geometry, motion.mask)
        self._moving_before = motion.mask if pose.usable else ~self._still
        return Reconstruction(
            frame_set,
            frame,
            in_map,
            geometry,
            motion_in_map,
            delta,
            latency,
            self.engine.memory_fill,
            cpu,
            dropped,
            {
                name: troubles
                for name, troubles in zip(self.rig.names, self.egomotion.health, strict=True)
                if troubles
            },
            local_grid,
            T_map_odom,
            self.places.found if self.places else True,
            map_motion,
        )

    def _begin_in_map(self, places: Places) -> None:
        """What was found out of the map since, before the step."""
        places.begin()
        if not self._grids_moved:
            self._move_grids(places)
        self._grids_moved = False

    def _move_grids(self, places: Places) -> None:
        if places.anew:
            self._use_grid(places)
        elif places.motion is not None:
            self.grids.moved(places.motion)
        if places.entered:
            self.grids.attach()

    def offer_boxes(self, camera: str, boxes: ImageBoxes) -> None:
        """What a detector says of an image of a camera, whenever it comes; from any thread."""
        self.dynamics.candidates.offer(self.rig.names.index(camera), boxes)

    def offer_objects(self, detections: Detections) -> None:
        """What an engine of objects says of a frame set of this segment, likewise."""
        self.dynamics.candidates.offer_objects(detections)

    @property
    def forgotten(self) -> dict[str, int]:
        """By engine, how often its memory held what is not finite and was forgotten."""
        return {"engine": self.engine.forgotten, "motion engine": self.dynamics.forgotten}

    def whole_grid(self) -> OccupancyGrid | None:
        """The lasting grid of the whole drive, with all that the map has now; None where grids are
        off."""
        if not self.parameters.grids.enabled:
            return None
        self.grids.read(self.mapper)
        return self.grids.lasting.whole()

    @property
    def undecodable(self) -> dict[str, int]:
        """`<camera>: <reason>` -> images; of reasons that differ in their numbers only, the first
        stands for all."""
        return {
            f"{camera}: {reason}": count for (camera, reason), count in self._undecodable().items()
        }

    @property
    def notes(self) -> list[str]:
        """Sentences about what was made of the rig and its images, in the order they came up."""
        return [*self._rig_notes, *self.preprocessor.notes]

    @property
    def map_notes(self) -> list[str]:
        """Sentences about the map that the car is in, or is looked for in, in their order."""
        return self.places.notes if self.places else []

    def keep_places(self) -> Places:
        """Keyframes are kept from now on."""
        if self.places is None:
            p = self.parameters
            self.places = Places(
                self.rig,
                self.calibration,
                self.mapper,
                p.localization,
                self._runner,
            )
        return self.places

    def use_map(self, folder: MapFolder, mode: str = "") -> None:
        """The car is to be found in a map; what was seen until now is forgotten. mode: as in
        `Places.use`. Where this raises, the folder is closed, and there is no map."""
        places = self.keep_places()
        self._grids_moved = False
        try:
            places.use(folder, mode)
            self._use_grid(places)
        except Exception:
            folder.close()
            places.drop()
            self.grids.reset()
            raise

    def save_map(self, path: Path) -> tuple[int, int, str]:
        """Writes the map that the car is in, its lasting grid too; as `Places.save`."""
        places = self.keep_places()
        if not self._grids_moved:
            places.settle()
            self._move_grids(places)
            self._grids_moved = True
        return places.save(path, self.grids.tiles())

    def _use_grid(self, places: Places) -> None:
        """The grid of the loaded map, where there is one."""
        try:
            self.grids.use(places.grid)
        except ValueError as error:
            places.notes.append(f"the occupancy grid of map {places.folder} is left out: {error}")

    def reset(self) -> None:
        """Forget the drive: map, memory, tracks and pose start anew; a loaded map is as it was
        loaded."""
        self.egomotion.reset()
        self._segment = 0
        self._forget_the_world()

    def _forget_the_world(self, new_segment: bool = False) -> None:
        """Map, memory and tracks start anew."""
        self._grids_moved = False
        self.engine.reset()
        self.dynamics.reset()
        if self.places is None:
            self.mapper.reset()
            self.grids.reset()
        elif new_segment:
            if self.places.found:
                self.grids.set_aside()
            else:
                self.grids.reset()
            self.places.new_segment()
        else:
            self.places.reset()
            self._use_grid(self.places)
        self._moving_before = self._still

    def close(self) -> None:
        """Release the engines' device memory."""
        if self.places:
            self.places.close()
        self.engine.close()
        self.dynamics.close()


@contextmanager
def _timed(latency: dict[str, float], cpu: dict[str, float], stage: str) -> Iterator[None]:
    start, worked = time.perf_counter(), time.process_time()
    yield
    latency[stage], cpu[stage] = time.perf_counter() - start, time.process_time() - worked
