"""Engines beside the reconstruction: objects (Sparse4D), occupancy (UniScene) and a detector of
objects in images, of the same frame sets and the same ego-motion, each of which may leave frame
sets out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from recon4d_ros.cameras.calibration import reduced_size, reduction, turned_pixels
from recon4d_ros.cameras.preprocess import Preprocessor, make_calibration
from recon4d_ros.dynamics.one_list import OneList
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.detector import Detector
from recon4d_ros.engine.objects import ObjectEngine, load_objects, published_crop
from recon4d_ros.engine.occupancy import OccupancyEngine, load_occupancy
from recon4d_ros.geometry import inverse
from recon4d_ros.localization import in_odom, moved_objects
from recon4d_ros.types import (
    Calibration,
    Camera,
    Detections,
    DynamicObject,
    Frame,
    FrameSet,
    ImageBox,
    ImageBoxes,
    Jump,
    Occupancy,
    PoseEstimate,
    Reconstruction,
    Rig,
)

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Look:
    """What such an engine takes of a frame set that the reconstruction has been through. frame: as
    the reconstruction's engine has it. pose: in odometry's frame, which never jumps: what such an
    engine says is in that frame, too. era: counts how often everything began anew."""

    frame_set: FrameSet
    frame: Frame
    pose: PoseEstimate
    era: int = 0

    @classmethod
    def of(cls, result: Reconstruction, era: int = 0) -> Look:
        return cls(result.frame_set, result.frame, in_odom(result.pose, result.T_map_odom), era)

    @property
    def world(self) -> tuple[int, int]:
        """What is in map is only to be compared with what has the same."""
        return self.era, self.pose.segment


def all_objects(one_list: OneList, look: Look, result: Reconstruction) -> tuple[DynamicObject, ...]:
    """The tracks, and what an engine of objects detected, as one list in map. (The list itself is
    kept in odometry's frame.)"""
    tracks = moved_objects(result.motion.objects, inverse(result.T_map_odom))
    objects = one_list.at(look.frame_set.stamp_ns, tracks, look.world)
    return moved_objects(objects, result.T_map_odom)


def newest_look(older: Look | None, newer: Look) -> Look:
    """`newer`, with a jump in time that only the look it displaces tells of."""
    if older is None or older.frame_set.jump is not Jump.BACKWARD:
        return newer
    return replace(newer, frame_set=replace(newer.frame_set, jump=Jump.BACKWARD))


class _Engine(Protocol):
    spec: EngineSpec
    forgotten: int

    @property
    def device(self) -> str: ...
    def use(self, calibration: Calibration) -> None: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...


class _Says(Protocol):
    @property
    def network(self) -> str: ...
    @property
    def warning(self) -> str: ...


class _Runs(Protocol):
    @property
    def spec(self) -> _Says: ...
    @property
    def forgotten(self) -> int: ...
    @property
    def device(self) -> str: ...


class RunsBeside(Protocol):
    """What runs beside the reconstruction: an engine (`Beside`) or a detector."""

    @property
    def engine(self) -> _Runs: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    def __call__(self, look: Look) -> Any: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...


class Beside(ABC, Generic[Seen]):
    """One engine with images of its own sizes. Called with each look it takes; None where the
    car's pose is not usable: what an engine carries from step to step it carries by the car's
    motion. A new segment of the pose, or time that was set back, makes it begin anew.

    Raises EngineError or CalibrationError if the engine does not fit the rig, and, called, what the
    engine raises. Not thread-safe.
    """

    def __init__(
        self,
        rig: Rig,
        engine: _Engine,
        crop: tuple[float, float, float, float] | None,
        shared: Calibration | None = None,
    ) -> None:
        """crop: as in make_calibration. shared: of the reconstruction's engine, whose decoded
        images are taken where they have the right size."""
        spec = engine.spec
        self.engine = engine
        self.calibration = make_calibration(rig, spec.input_size, spec.working_size, crop)
        engine.use(self.calibration)
        self._preprocessor = Preprocessor(rig, self.calibration, spec.channels)
        self._shared = shared is not None and shared.input_size == spec.input_size
        self._segment = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What everyone who sees its results has to know first."""
        return (self.engine.spec.warning,) if self.engine.spec.warning else ()

    def __call__(self, look: Look) -> Seen | None:
        pose = look.pose
        if look.frame_set.jump is Jump.BACKWARD or pose.segment != self._segment:
            self.engine.reset()
            self._segment = pose.segment
        return self._step(self._frame(look), pose) if pose.usable else None

    def reset(self) -> None:
        """Forget everything seen."""
        self.engine.reset()
        self._segment = 0

    def close(self) -> None:
        self.engine.close()

    def _frame(self, look: Look) -> Frame:
        channels = self.engine.spec.channels
        if self._shared and look.frame.images.shape[-1] == channels:
            return look.frame
        return self._preprocessor(look.frame_set)[0]

    @abstractmethod
    def _step(self, frame: Frame, pose: PoseEstimate) -> Seen:
        """What the engine sees in a frame of a usable pose."""


class Objects(Beside[Detections]):
    """Boxes with class, velocity and id (engine/objects.py)."""

    engine: ObjectEngine

    def __init__(
        self, folder: Path, rig: Rig, threads: int = 0, shared: Calibration | None = None
    ) -> None:
        engine = load_objects(folder, rig, threads=threads)
        super().__init__(rig, engine, published_crop(rig, engine.spec.working_size), shared)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.engine.warnings

    def _step(self, frame: Frame, pose: PoseEstimate) -> Detections:
        return self.engine.step(frame, self.calibration, pose.T_map_base, pose.T_map_camera)


class ImageDetector:
    """A detector of objects in images (engine/detector.py) beside the reconstruction: each camera's
    images one by one, as the reconstruction has them decoded where they are in colour, else decoded
    once more at the same size. Needs no pose. Raises EngineError. Not thread-safe."""

    def __init__(
        self, model: Path, rig: Rig, threads: int, shared: Calibration, runtime: str = ""
    ) -> None:
        """shared: of the reconstruction's engine."""
        self.detector = Detector(model, runtime, threads)
        self.engine = _Loaded(_Named(self.detector.name), self.detector.device)
        self.warnings: tuple[str, ...] = ()
        self._rig, self._preprocessor = rig, Preprocessor(rig, shared, 3)
        self._reductions = [reduction(camera, shared.input_size) for camera in rig.cameras]

    def __call__(self, look: Look) -> dict[str, ImageBoxes]:
        """Boxes by camera, in pixels of the source images."""
        frame = look.frame
        if frame.images.shape[-1] != 3:
            frame = self._preprocessor(look.frame_set)[0]
        out = {}
        for i in np.flatnonzero(frame.present):
            camera, reduce = self._rig.cameras[i], self._reductions[i]
            height, width = reduced_size(camera, reduce)
            found = self.detector(frame.images[i, :height, :width])
            boxes = tuple(_of_source(one, camera, reduce) for one in found)
            out[camera.name] = ImageBoxes(int(frame.stamps_ns[i]), boxes)
        return out

    def reset(self) -> None:
        """It remembers nothing."""

    def close(self) -> None:
        """Nothing to give back but memory."""


@dataclass(frozen=True)
class _Named:
    network: str
    warning: str = ""


@dataclass(frozen=True)
class _Loaded:
    """What of an engine those beside the reconstruction are asked for."""

    spec: _Named
    device: str
    forgotten: int = 0


def _of_source(box: ImageBox, camera: Camera, reduce: int) -> ImageBox:
    """A box of the averaged and turned image in pixels of the source image."""
    turn, shift = turned_pixels(camera, reduce)
    corners = np.array([[box.left, box.top], [box.right, box.bottom]])
    corners = ((corners - shift) @ turn + 0.5) * reduce - 0.5
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return replace(box, left=left, top=top, right=right, bottom=bottom)


class OccupiedSpace(Beside[Occupancy]):
    """Occupied voxels around the car (engine/occupancy.py)."""

    engine: OccupancyEngine

    def __init__(
        self, folder: Path, rig: Rig, threads: int = 0, shared: Calibration | None = None
    ) -> None:
        super().__init__(rig, load_occupancy(folder, rig, threads=threads), None, shared)

    def _step(self, frame: Frame, pose: PoseEstimate) -> Occupancy:
        return self.engine.step(frame, self.calibration, pose.T_map_base, pose.velocity)
