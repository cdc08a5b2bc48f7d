"""Engines that give objects: boxes with class, velocity and id in place of depth.

The host's side of one: where the cameras see from at their own stamps, how the car moved since the
frame before, and from the network's lidar frame to base_link and map.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros.cameras.calibration import overlap
from recon4d_ros.engine import check_rig, start_runtime
from recon4d_ros.engine.base import OBJECTS, EngineSpec, check_fits, load_spec
from recon4d_ros.engine.hosted import Runtime, empty_outputs
from recon4d_ros.errors import EngineError
from recon4d_ros.geometry import inverse, se3
from recon4d_ros.types import Calibration, Detection, Detections, Frame, Rig

MOUNTING = ("lidar_x", "lidar_y", "lidar_z", "lidar_yaw")
LEAST_CLASS_SCORE = 0.2  # below it the authors' tracking evaluation does not count an object


def load_objects(
    folder: str | os.PathLike[str],
    rig: Rig | None = None,
    runtime: str = "",
    threads: int = 0,
    least_class_score: float = LEAST_CLASS_SCORE,
) -> ObjectEngine:
    """An engine of objects, ready to step. runtime: the engine's own by default; threads: 0 lets
    the runtime choose; least_class_score: objects below it are left out.

    Raises EngineError as engine.load does, and where the engine gives depth, or does not say where
    its lidar frame is.
    """
    folder = Path(folder)
    spec, where = load_spec(folder), f"engine {folder}"
    if spec.config != OBJECTS:
        raise EngineError(
            f"{where}: {spec.network} gives depth and no objects: expected an engine of sparse4d"
        )
    T_base_lidar = mounting(spec, where)
    if rig is not None:
        check_rig(spec, rig, where)
    started = start_runtime(folder, spec, runtime, threads)
    return ObjectEngine(spec, started, where, T_base_lidar, least_class_score)


def mounting(spec: EngineSpec, where: str) -> NDArray[np.float64]:
    """T_base_lidar [4, 4]: the frame of the network's boxes in base_link. Raises EngineError."""
    try:
        x, y, z, yaw = (float(spec.options[name]) for name in MOUNTING)
    except (KeyError, TypeError, ValueError):
        raise EngineError(
            f"{where}: engine.yaml does not say where the lidar frame of its boxes is in base_link:"
            f" expected the options {', '.join(MOUNTING)} (metres, and degrees from x of base_link"
            " to x of the lidar; nuScenes' car has 0.943713, 0, 1.84023 and -90)"
        ) from None
    return se3(Rotation.from_euler("z", yaw, degrees=True).as_matrix(), np.array([x, y, z]))


def published_crop(rig: Rig, working_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of the view that make_calibration cuts away (left, top, right, bottom), as it was in
    training: whole rows are kept, and what is too high is cut off at the top (140 of 396 rows of
    nuScenes' images)."""
    height, width = working_size
    shares = [1 - height / width * camera.width / camera.height for camera in rig.cameras]
    return (0.0, min(0.9, max(0.0, min(shares))), 0.0, 0.0)


class ObjectEngine:
    """One loaded engine with its memory: the objects that it carries from frame to frame. Not
    thread-safe: one caller steps it, in the order of the frames."""

    def __init__(
        self,
        spec: EngineSpec,
        runtime: Runtime,
        where: str,
        T_base_lidar: NDArray[np.float64],
        least_class_score: float,
    ) -> None:
        self.spec, self.T_base_lidar = spec, T_base_lidar
        self.classes: tuple[str, ...] = tuple(map(str, spec.options.get("classes", ())))
        self.least_class_score = least_class_score
        self.forgotten = 0
        """How often what came out was not finite since the engine was loaded, so that everything
        was forgotten as by `reset`."""
        self._runtime, self._where = runtime, where
        self._id_base = int(spec.options.get("id_base", 1))
        self._calibration: Calibration | None = None
        self._grid = np.zeros((0, 0, 0, 2), np.float32)
        self._overlap = 0
        self._last: tuple[int, NDArray[np.float64]] | None = None  # stamp and T_map_lidar

    @property
    def device(self) -> str:
        """What runs it on what."""
        return self._runtime.device

    @property
    def warnings(self) -> tuple[str, ...]:
        """What everyone who sees the objects has to know first. More may be known once a
        calibration is used."""
        views = int(self.spec.options.get("views", 0))
        said = [self.spec.warning] if self.spec.warning else []
        if 0 < views < self._overlap:
            said.append(
                f"up to {self._overlap} cameras of this rig see the same place, of which the engine"
                f" looks into {views}: export it with --option views={self._overlap}"
            )
        return tuple(said)

    def reset(self) -> None:
        """Forgets all objects: as after loading, ids included."""
        self._runtime.reset()
        self._last = None

    def close(self) -> None:
        """Gives the runtime's memory back."""
        self._runtime.close()

    def use(self, calibration: Calibration) -> None:
        """Takes a calibration as the rig's. Raises EngineError if the engine was made for another
        rig."""
        if calibration is self._calibration:
            return
        check_fits(self.spec, calibration, self._where)
        self._grid = np.ascontiguousarray(calibration.grid, np.float32)
        self._overlap = overlap(calibration)
        self._calibration = calibration

    def step(
        self,
        frame: Frame,
        calibration: Calibration,
        T_map_base: NDArray[np.float64],
        T_map_camera: NDArray[np.float64],
    ) -> Detections:
        """The objects of one frame, best first, and the memory's next state.

        T_map_base: [4, 4] pose of the car at frame.stamp_ns; T_map_camera: [N, 4, 4] of the cameras
        at their own stamps. Both from ego-motion, smooth: objects are carried over by the car's
        motion, and a localizer that jumps would move them all. A frame of the same stamp as the one
        before is another look at the same time; one of an earlier stamp starts anew; after more
        than 2 s nothing is carried over. Absent cameras see nothing. Raises EngineError if a shape
        is not the engine's or a pose is not finite.
        """
        self.use(calibration)
        spec, n = self.spec, self.spec.cameras
        for name, array, shape in (
            ("images", frame.images, (n, *spec.input_size, spec.channels)),
            ("T_map_base", T_map_base, (4, 4)),
            ("T_map_camera", T_map_camera, (n, 4, 4)),
        ):
            if array.shape != shape:
                raise EngineError(
                    f"{self._where}: {name} has shape {list(array.shape)}: expected {list(shape)}"
                )
        if not (np.isfinite(T_map_base).all() and np.isfinite(T_map_camera).all()):
            raise EngineError(f"{self._where}: a pose is not finite")
        T_map_lidar = T_map_base @ self.T_base_lidar
        if self._last is not None and frame.stamp_ns < self._last[0]:
            self.reset()
        stamp, T_map_then = self._last or (frame.stamp_ns, T_map_lidar)
        outputs = empty_outputs(spec)
        self._runtime.run(
            {
                "images": np.ascontiguousarray(frame.images),
                "present": frame.present.astype(np.float32),
                "grid": self._grid,
                "projection": projections(calibration, T_map_camera, T_map_lidar),
                "lidar_motion": (inverse(T_map_lidar) @ T_map_then).astype(np.float32),
                "seconds": np.array([(frame.stamp_ns - stamp) * 1e-9], np.float32),
            },
            outputs,
        )
        self._last = frame.stamp_ns, T_map_lidar
        if not all(np.isfinite(array).all() for array in outputs.values()):
            self.forgotten += 1
            self.reset()
            return Detections(frame.stamp_ns, ())
        kept = np.flatnonzero(outputs["class_scores"] >= self.least_class_score)
        if not len(kept):
            return Detections(frame.stamp_ns, ())
        rows = {name: array[kept].astype(np.float64) for name, array in outputs.items()}
        box_base, velocity_base = seen_from(self.T_base_lidar, rows["boxes"], rows["velocity"])
        box_map, velocity_map = seen_from(T_map_lidar, rows["boxes"], rows["velocity"])
        digits = np.rint(rows["ids"]).astype(np.int64)
        ids = np.where(digits[:, 1] < 0, -1, digits[:, 0] * self._id_base + digits[:, 1])
        return Detections(
            frame.stamp_ns,
            tuple(
                Detection(
                    id=int(ids[i]),
                    class_name=self.classes[int(rows["labels"][i])],
                    class_score=float(rows["class_scores"][i]),
                    score=float(rows["scores"][i]),
                    box_base=box_base[i],
                    box_map=box_map[i],
                    velocity_base=velocity_base[i],
                    velocity_map=velocity_map[i],
                )
                for i in range(len(kept))
            ),
        )


def projections(
    calibration: Calibration, T_map_camera: NDArray[np.float64], T_map_lidar: NDArray[np.float64]
) -> NDArray[np.float32]:
    """[N, 4, 4] lidar -> pixels of the working images, times depth; the first pixel's centre is
    0.5, as the network counts them."""
    k = np.tile(np.eye(4), (len(T_map_camera), 1, 1))
    k[:, :3, :3] = calibration.k
    k[:, :2, 2] += 0.5
    return (k @ inverse(T_map_camera) @ T_map_lidar).astype(np.float32)


def seen_from(
    T_frame_lidar: NDArray[np.float64],
    boxes: NDArray[np.float64],
    velocity: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """boxes [D, 7] and velocity [D, 3] of the lidar frame in another frame; a yaw there is that of
    the length axis about the frame's z, -pi to pi."""
    turn = T_frame_lidar[:3, :3]
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], 1) @ turn.T
    centre = boxes[:, :3] @ turn.T + T_frame_lidar[:3, 3]
    yaw = np.arctan2(heading[:, 1], heading[:, 0])
    return np.concatenate([centre, boxes[:, 3:6], yaw[:, None]], 1), velocity @ turn.T
