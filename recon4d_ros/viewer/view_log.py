"""Our nouns as Rerun's entities, on a timeline of the frame sets' stamps.

world                     map, z up
  car                     base_link, with one camera below it each: image, depth, dynamic_mask
  map, trajectory, objects, objects/velocity, local_grid
latency/<stage>           milliseconds
speed, tracking           m/s; what the pose is worth, and why
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros.geometry import quaternion
from recon4d_ros.types import (
    Calibration,
    DynamicObject,
    OccupancyGrid,
    Reconstruction,
    Tracking,
)
from recon4d_ros.viewer.sdk import rerun

TIMELINE, SETS = "time", "frame_set"
JPEG_QUALITY = 80
DEPTH_UNIT = 256.0  # values a metre, as in the depth files
TRAJECTORY_EVERY = 10  # frame sets between two copies of the whole line
TRAJECTORY_LENGTH = 5000  # poses of it at most: every second goes where there are more
MOVER, STANDING = (255, 120, 0), (120, 160, 200)
LEVELS = {
    Tracking.TRACKING: "INFO",
    Tracking.STARTING: "DEBUG",
    Tracking.DEGRADED: "WARN",
    Tracking.LOST: "ERROR",
}
MASK_OPACITY = 150


class ViewLog:
    """`add` every Reconstruction, `add_map` the map now and then; or the parts one by one, after
    `at`. Not thread-safe. Raises Recon4dError where rerun is not installed."""

    def __init__(self, recording: Any, names: Iterable[str]) -> None:
        """recording: Rerun's stream. names: of the cameras."""
        self._rr, self._recording = rerun(), recording
        self._names = tuple(names)
        self._way: list[NDArray[np.float64]] = []
        self._sets = 0
        self._segment = 0
        self._tracking: tuple[Tracking, str] | None = None
        rr = self._rr
        self._log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        self._log(
            "world/car/body",
            rr.Boxes3D(centers=[[1.4, 0.0, 0.75]], half_sizes=[[2.2, 0.9, 0.75]]),
            static=True,
        )
        self._recording.send_blueprint(self._layout())

    def calibrate(self, calibration: Calibration) -> None:
        """Where the cameras are, and how they look."""
        for n, name in enumerate(calibration.names):
            self.calibrate_camera(
                name,
                calibration.k[n],
                calibration.working_size,
                calibration.T_base_camera[n],
            )

    def calibrate_camera(
        self,
        name: str,
        k: NDArray[np.float64],
        size: tuple[int, int],
        T_base_camera: NDArray[np.float64] | None,
    ) -> None:
        """k: [3, 3] pinhole; size: (h, w) pixels."""
        rr = self._rr
        if T_base_camera is not None:
            self._log(f"world/car/{name}", self._pose(T_base_camera), static=True)
        h, w = size
        self._log(
            f"world/car/{name}",
            rr.Pinhole(image_from_camera=k, width=w, height=h, image_plane_distance=1.0),
            static=True,
        )

    def add(self, result: Reconstruction) -> None:
        """One frame set."""
        self.at(result.frame_set.stamp_ns, self._sets)
        self._sets += 1
        if result.pose.segment != self._segment:
            self._segment, self._way = result.pose.segment, []
        if result.map_motion is not None and self._way:
            way = np.stack(self._way)
            T = result.map_motion.at(way)
            self._way = list(np.einsum("kij,kj->ki", T[:, :3, :3], way) + T[:, :3, 3])
        self.pose(result.pose.T_map_base, result.pose.tracking, result.pose.reason)
        self._scalar("speed", float(np.linalg.norm(result.pose.velocity[:3])))
        for n in np.flatnonzero(result.frame.present).tolist():
            self.camera(
                self._names[n],
                result.geometry.color[n],
                result.geometry.depth[n],
                result.motion.mask[n],
            )
        self.objects(result.motion.objects)
        self.latency(result.latency)
        if result.local_grid is not None:
            self.grid("world/local_grid", result.local_grid)

    # ---- the parts

    def at(self, stamp_ns: int, index: int | None = None) -> None:
        """What follows belongs to this frame set. index: of it, where that is known."""
        self._recording.set_time(TIMELINE, timestamp=np.datetime64(stamp_ns, "ns"))
        if index is not None:
            self._recording.set_time(SETS, sequence=index)

    def pose(self, T_map_base: NDArray[np.float64], tracking: Tracking, reason: str) -> None:
        self._log("world/car", self._pose(T_map_base))
        self._way.append(T_map_base[:3, 3].copy())
        if len(self._way) % TRAJECTORY_EVERY == 2:
            self.trajectory(np.stack(self._way))
        if len(self._way) > 2 * TRAJECTORY_LENGTH:
            self._way = self._way[::2]
        if (tracking, reason) != self._tracking:
            self._tracking = tracking, reason
            text = f"{tracking.value}: {reason}" if reason else tracking.value
            self._log("tracking", self._rr.TextLog(text, level=LEVELS[tracking]))

    def trajectory(self, points: NDArray[np.float64]) -> None:
        """[K, 3] in map."""
        line = self._rr.LineStrips3D([points.astype(np.float32)], colors=[(255, 220, 0)], radii=0.1)
        self._log("world/trajectory", line)

    def camera(
        self,
        name: str,
        color: NDArray[np.uint8] | None = None,
        depth: NDArray[np.float32] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """color: [h, w, 3] RGB; depth: [h, w] m; mask: [h, w]; of the working images."""
        rr, where = self._rr, f"world/car/{name}"
        if color is not None:
            bgr = cv2.cvtColor(color, cv2.COLOR_RGB2BGR)
            encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            self._log(
                f"{where}/image",
                rr.EncodedImage(contents=encoded.tobytes(), media_type="image/jpeg"),
            )
        if depth is not None:
            steps = np.nan_to_num(depth * np.float32(DEPTH_UNIT), nan=0, posinf=0, neginf=0)
            image = np.clip(steps, 0, 65535).astype(np.uint16)
            self._log(
                f"{where}/depth",
                rr.DepthImage(image, meter=DEPTH_UNIT, depth_range=(0.0, 50.0 * DEPTH_UNIT)),
            )
        if mask is not None:
            picture = np.zeros((*mask.shape, 4), np.uint8)
            picture[mask] = (*MOVER[::-1], MASK_OPACITY)
            encoded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            self._log(
                f"{where}/dynamic_mask",
                rr.EncodedImage(contents=encoded.tobytes(), media_type="image/png", draw_order=1.0),
            )

    def objects(self, objects: Iterable[DynamicObject]) -> None:
        """Boxes with id, class and speed, and arrows one second long."""
        rr, every = self._rr, list(objects)
        position, size, velocity = (
            np.array([getattr(thing, name) for thing in every], np.float32).reshape(-1, 3)
            for name in ("position", "size", "velocity")
        )
        turns = [Rotation.from_euler("z", thing.yaw).as_quat() for thing in every]
        labels = [
            f"{thing.class_name or 'dynamic'} {thing.id}: {np.linalg.norm(thing.velocity):.1f} m/s"
            for thing in every
        ]
        self._log(
            "world/objects",
            rr.Boxes3D(
                centers=position,
                sizes=size,
                quaternions=[rr.Quaternion(xyzw=turn) for turn in turns],
                labels=labels,
                colors=[MOVER] * len(every),
            ),
        )
        self._log(
            "world/objects/velocity",
            rr.Arrows3D(origins=position, vectors=velocity, colors=[MOVER] * len(every)),
        )

    def add_map(self, xyz: NDArray[np.float32], rgb: NDArray[np.uint8]) -> None:
        """The static map as it is now: [K, 3] m in map, [K, 3] colours."""
        self._log("world/map", self._rr.Points3D(xyz, colors=rgb, radii=0.06))

    def grid(self, entity: str, grid: OccupancyGrid) -> None:
        """On the road, in RViz's colours."""
        rr = self._rr
        rows, columns = grid.values.shape
        picture = rr.components.ImageFormat(
            width=columns, height=rows, color_model="L", channel_datatype="U8"
        )
        self._log(
            entity,
            rr.GridMap(
                data=grid.values[::-1].tobytes(),  # a picture's first row is the highest
                format=picture,
                cell_size=grid.resolution,
                translation=[*grid.origin, grid.height],
                colormap=rr.components.Colormap.RvizMap,
                opacity=0.7,
            ),
        )

    def latency(self, stages: Mapping[str, float]) -> None:
        """Seconds by stage."""
        for stage, seconds in stages.items():
            self._scalar(f"latency/{stage}", 1e3 * seconds)

    def text(self, entity: str, text: str) -> None:
        """What holds for the whole run, as Markdown."""
        document = self._rr.TextDocument(text, media_type="text/markdown")
        self._log(entity, document, static=True)

    def _scalar(self, entity: str, value: float) -> None:
        self._log(entity, self._rr.Scalars([value]))

    def _pose(self, T: NDArray[np.float64]) -> Any:
        return self._rr.Transform3D(
            translation=T[:3, 3], quaternion=self._rr.Quaternion(xyzw=quaternion(T))
        )

    def _log(self, entity: str, what: Any, static: bool = False) -> None:
        self._recording.log(entity, what, static=static)

    def _layout(self) -> Any:
        """The world to the left; cameras, latency and tracking to the right."""
        import rerun.blueprint as rrb

        cameras = [
            rrb.Spatial2DView(
                origin=f"world/car/{name}",
                contents=["$origin/image", "$origin/dynamic_mask"],
                name=name,
            )
            for name in self._names
        ]
        depths = [
            rrb.Spatial2DView(
                origin=f"world/car/{name}", contents=["$origin/depth"], name=f"{name} depth"
            )
            for name in self._names
        ]
        flat = [  # in the world these would be clouds, and cover it
            f"- $origin/car/{name}/{what}"
            for name in self._names
            for what in ("depth", "dynamic_mask")
        ]
        world = rrb.Spatial3DView(origin="world", name="world", contents=["$origin/**", *flat])
        graphs = rrb.Horizontal(
            rrb.TimeSeriesView(origin="latency", name="latency, ms"),
            rrb.TextLogView(origin="tracking", name="tracking"),
        )
        seen = rrb.Tabs(rrb.Grid(*cameras, name="cameras"), rrb.Grid(*depths, name="depth"))
        right = rrb.Vertical(seen, graphs, row_shares=[3, 1]) if cameras else graphs
        return rrb.Blueprint(rrb.Horizontal(world, right), collapse_panels=True)
