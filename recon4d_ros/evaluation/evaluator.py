"""A run against the truth in its bag, frame by frame while it runs.

Memory is bounded: images are scored as they come and only sums are kept; of the drive there remain
poses, the boxes of dynamic objects, and a thinned cloud. Dynamic objects are compared in base_link
of their frame, and the truth's cloud and swept volumes are brought to the map by the run's own pose
of when the car was near them, so that each score says one thing: drift is the trajectory's matter
alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon4d_ros.cameras.distortion import to_rays
from recon4d_ros.cameras.preprocess import Preprocessor
from recon4d_ros.evaluation.metrics.clouds import Boxes, inside_boxes, score_cloud
from recon4d_ros.evaluation.metrics.depth import DepthAccumulator
from recon4d_ros.evaluation.metrics.grids import HIGH, LOW, REACH, GridScorer
from recon4d_ros.evaluation.metrics.masks import MaskAccumulator
from recon4d_ros.evaluation.metrics.tracking import Movers, TrackingAccumulator
from recon4d_ros.evaluation.metrics.trajectory import TrajectoryScore, align_first, score_trajectory
from recon4d_ros.evaluation.objects import ObjectsAt, objects_at
from recon4d_ros.evaluation.truth import TrueObjects, Truth, TruthSource
from recon4d_ros.evaluation.visibility import box_pixels, project_visible
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.mapping.keys import pack
from recon4d_ros.types import Camera, OccupancyGrid, Reconstruction, Rig

MOVING = 1.0  # m/s: slower dynamic objects are neither asked for nor held against the estimate
CONFIDENT = 0.5  # of the engine's confidence: "where it is confident"
NEAR = 40.0  # m
_OBJECT_RANGE = 40.0  # m: farther dynamic objects are not asked for
_STILL = 0.1  # m/s: below it an object is parked
_PIXELS = 150_000  # of an image are enough for its depth score
_CLOUD_RANGE = 30.0  # m: of the truth's cloud around each frame
_CLOUD_PIXELS = 4_000  # per camera and frame
_CLOUD_VOXEL = 0.1  # m: the truth's cloud is thinned to one point in each
NEAR_ROAD = 20.0  # m: of road that is asked for
_GRID_PIXELS = 20_000  # per camera and frame: 0.1 m apart 20 m away
_LIDAR_NS = 60_000_000  # a scan this near to an image is compared with it

ImageOf = Callable[[int], NDArray | None]


@dataclass(frozen=True)
class History:
    """What the picture shows of the errors. truth: [F, 4, 4] T_map_base of the truth, first pose
    aligned; trajectory: its scores."""

    truth: NDArray[np.float64]
    trajectory: TrajectoryScore


@dataclass
class _Cloud:
    """A growing cloud that keeps one point per voxel."""

    blocks: list[NDArray[np.float32]] = field(default_factory=list)
    pending: int = 0

    def add(self, points: NDArray[np.float32]) -> None:
        self.blocks.append(points)
        self.pending += len(points)
        if self.pending > 500_000:
            self.points()

    def points(self) -> NDArray[np.float32]:
        every = np.concatenate([*self.blocks, np.zeros((0, 3), np.float32)])
        first = np.unique(pack(np.floor(every / _CLOUD_VOXEL).astype(np.int64)), return_index=True)[
            1
        ]
        self.blocks, self.pending = [every[np.sort(first)]], 0
        return self.blocks[0]


class Evaluator:
    """Scores a run while it runs. `add` each frame set in order, then `finish` with the map."""

    def __init__(self, bag: str | Path | TruthSource, rig: Rig) -> None:
        """The truth of a bag, or of another source. Raises BagError if the bag cannot be read."""
        self._rig = rig
        self._truth: TruthSource = Truth(bag) if isinstance(bag, (str, Path)) else bag
        self.depth = DepthAccumulator(rig.names)
        self.confident = DepthAccumulator(rig.names)
        self.lidar = DepthAccumulator(rig.names)
        self.lidar_confident = DepthAccumulator(rig.names)
        self.masks = MaskAccumulator(rig.names)
        self.tracking = TrackingAccumulator()
        self._compared_objects = False
        self._poses: list[
            tuple[NDArray[np.float64], NDArray[np.float64]]
        ] = []  # T_map_base, T_world_base
        self._swept: list[NDArray[np.float64]] = []  # [1, 7] center size yaw in world
        self._swept_last: dict[int, NDArray[np.float64]] = {}
        self._cloud = _Cloud()
        self.grids = GridScorer()
        self._rays: dict[int, tuple[NDArray, NDArray, NDArray]] = {}  # by camera, for the grids

    def add_reconstruction(self, result: Reconstruction, preprocessor: Preprocessor) -> None:
        """One live result."""
        geometry, frame = result.geometry, result.frame

        def source(images: NDArray) -> ImageOf:
            return lambda n: preprocessor.to_source(images[n], n) if frame.present[n] else None

        heard = np.isfinite(geometry.confidence).any()  # a recording has none
        self.add(
            frame.stamp_ns,
            frame.stamps_ns,
            result.pose.T_map_base,
            source(geometry.depth),
            source(result.motion.mask),
            objects_at(frame.stamp_ns, result.motion.objects),
            source(geometry.confidence) if heard else None,
            result.local_grid,
        )

    def add(
        self,
        stamp_ns: int,
        stamps_ns: NDArray[np.int64],
        T_map_base: NDArray[np.float64],
        depth: ImageOf,
        mask: ImageOf,
        objects: ObjectsAt,
        confidence: ImageOf | None = None,
        local_grid: OccupancyGrid | None = None,
    ) -> None:
        """One frame set. depth, mask, confidence: camera index -> [height, width] at the source
        image's size, None = not there."""
        T_world_base = self._truth.pose(stamp_ns)
        if T_world_base is not None:
            self._poses.append((T_map_base, T_world_base))
        true_objects = self._truth.objects(stamp_ns)
        true_masks = {}
        standing: list[NDArray[np.float64]] = []
        for n, camera in enumerate(self._rig.cameras):
            stamp = int(stamps_ns[n])
            true_mask, true_depth = (
                self._truth.mask(camera.name, stamp),
                self._truth.depth(camera.name, stamp),
            )
            if true_mask is not None:
                true_masks[n] = true_mask
            if true_depth is not None and T_world_base is not None:
                standing.append(self._standing(n, true_depth, true_mask, T_world_base))
            self._add_camera(
                n,
                camera,
                stamp,
                T_map_base,
                true_mask,
                true_depth,
                true_objects,
                T_world_base,
                depth,
                mask,
                confidence,
            )
        if standing:
            self._add_grid(np.concatenate(standing), T_map_base, local_grid)
        if true_objects is not None and T_world_base is not None:
            self._add_objects(objects, true_objects, true_masks, T_map_base, T_world_base)

    def finish(
        self, map_points: NDArray[np.float32] | None, grid: OccupancyGrid | None = None
    ) -> dict:
        """All scores as plain numbers (for summary.json); a part that the bag has no truth for is
        absent. grid: the lasting one."""
        self._truth.close()
        metrics: dict = {}
        if history := self.history:
            score = asdict(history.trajectory)
            metrics["trajectory"] = {
                name: value for name, value in score.items() if name not in ("errors", "distance")
            }
        for name, every, confident in (
            ("depth", self.depth, self.confident),
            ("lidar_depth", self.lidar, self.lidar_confident),
        ):
            if every.sums.any():
                metrics[name] = _depth_metrics(every, confident)
        if self.masks.counts.any():
            metrics["masks"] = asdict(self.masks.score()) | {
                "cameras": {name: asdict(self.masks.score(name)) for name in self._rig.names}
            }
        if self._compared_objects:
            metrics["objects"] = asdict(self.tracking.score())
        if map_points is not None and len(map_points):
            if self._compared_objects:
                boxes = self.swept
                inside = int(np.count_nonzero(inside_boxes(map_points, boxes)))
                share = inside / len(map_points)
                metrics["map_swept"] = {
                    "points": len(map_points),
                    "inside": inside,
                    "share": share,
                    "boxes": len(boxes.yaw),
                }
            truth = self._cloud.points()
            if len(truth):
                metrics["cloud"] = asdict(score_cloud(map_points, truth))
        if grid is not None and (lasting := self.grids.score(grid)) is not None:
            metrics["grid"] = asdict(lasting)
        if (local := self.grids.local) is not None:
            metrics["local_grid"] = asdict(local)
        return metrics

    @property
    def history(self) -> History | None:
        """For the picture; None without true poses."""
        if not self._poses:
            return None
        estimate, truth = (np.stack(poses) for poses in zip(*self._poses, strict=True))
        return History(align_first(truth, estimate), score_trajectory(estimate, truth))

    @property
    def swept(self) -> Boxes:
        """Where dynamic objects were, in map.

        The map of a place is made while the car is near, so a place comes to the map by the run's
        pose of the frame in which the car was nearest to it. (By the pose of the frame that saw the
        dynamic object, from afar, half a degree of drift would put it into the walls.)
        """
        every = np.concatenate([*self._swept, np.zeros((0, 7))])
        if not len(every):
            return Boxes(every[:, :3], every[:, 3:6], every[:, 6])
        T_map_base, T_world_base = (np.stack(poses) for poses in zip(*self._poses, strict=True))
        nearest = cKDTree(T_world_base[:, :3, 3]).query(every[:, :3])[1]
        T_map_world = (T_map_base @ inverse(T_world_base))[nearest]
        center = (
            T_map_world
            @ np.concatenate([every[:, :3], np.ones((len(every), 1))], axis=1)[..., None]
        )[:, :3, 0]
        return Boxes(
            center,
            every[:, 3:6],
            every[:, 6] + np.arctan2(T_map_world[:, 1, 0], T_map_world[:, 0, 0]),
        )

    def _add_camera(
        self,
        n: int,
        camera: Camera,
        stamp: int,
        T_map_base: NDArray[np.float64],
        true_mask: NDArray[np.bool_] | None,
        true_depth: NDArray[np.float32] | None,
        true_objects: TrueObjects | None,
        T_world_base: NDArray[np.float64] | None,
        depth: ImageOf,
        mask: ImageOf,
        confidence: ImageOf | None,
    ) -> None:
        scan = self._truth.points(stamp, _LIDAR_NS)
        estimate = depth(n) if true_depth is not None or scan is not None else None
        sure = confidence(n) if confidence is not None and estimate is not None else None
        if estimate is not None and true_depth is not None:
            step = max(1, round(np.sqrt(true_depth.size / _PIXELS)))
            thin = (slice(step // 2, None, step), slice(step // 2, None, step))
            truth = true_depth[thin].copy()
            if true_mask is not None:
                truth[true_mask[thin]] = np.nan  # static pixels only
            self.depth.add(n, estimate[thin], truth)
            if sure is not None:
                self.confident.add(
                    n, np.where(sure[thin] >= CONFIDENT, estimate[thin], np.nan), truth
                )
            self._add_cloud_of_depth(camera, true_depth, true_mask, T_map_base)
        if estimate is not None and scan is not None:
            points = self._moved(*scan, stamp)
            self._cloud.add(
                transform(T_map_base, points[np.linalg.norm(points, axis=1) < _CLOUD_RANGE])
                if n == 0
                else points[:0]
            )
            pixels, ranges = project_visible(points, camera)
            self.lidar.add(n, estimate[pixels[:, 1], pixels[:, 0]], ranges)
            if sure is not None:
                confident = np.where(sure >= CONFIDENT, estimate, np.nan)
                self.lidar_confident.add(n, confident[pixels[:, 1], pixels[:, 0]], ranges)
        found = mask(n) if true_mask is not None else None
        if found is not None and true_mask is not None:
            ignore = None
            if true_objects is not None and T_world_base is not None:
                ignore = _slow_pixels(
                    true_objects, inverse(T_world_base @ camera.T_base_camera), camera
                )
            self.masks.add(n, found, true_mask, ignore)

    def _moved(self, scan_ns: int, points: NDArray[np.float32], stamp: int) -> NDArray[np.float32]:
        """A scan, in base_link of its own time, brought to base_link of another by the true
        poses."""
        then, now = self._truth.pose(scan_ns), self._truth.pose(stamp)
        return points if then is None or now is None else transform(inverse(now) @ then, points)

    def _add_cloud_of_depth(
        self,
        camera: Camera,
        depth: NDArray[np.float32],
        moving: NDArray[np.bool_] | None,
        T_map_base: NDArray[np.float64],
    ) -> None:
        if camera.distortion_model != "none":
            return
        v, u = _spread(depth.shape, _CLOUD_PIXELS)
        z = depth[v, u]
        good = z < _CLOUD_RANGE
        if moving is not None:
            good &= ~moving[v, u]
        z, u, v = z[good], u[good], v[good]
        rays = to_rays(camera, np.stack([u, v], axis=1))
        points = np.column_stack([rays * z[:, None], z])
        self._cloud.add(transform(T_map_base @ camera.T_base_camera, points).astype(np.float32))

    def _standing(
        self,
        n: int,
        depth: NDArray[np.float32],
        moving: NDArray[np.bool_] | None,
        T_world_base: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """[K, 5] x y z in base_link of what a camera truly sees in the height band over the road
        (the world's plane z = that of base_link's origin) and of the road, 1 where it moves, and 1
        where it is road."""
        camera = self._rig.cameras[n]
        if n not in self._rays:
            v, u = _spread(depth.shape, _GRID_PIXELS)
            self._rays[n] = v, u, to_rays(camera, np.stack([u, v], axis=1))
        v, u, rays = self._rays[n]
        z = depth[v, u]
        good = np.flatnonzero(z < REACH)
        z = z[good].astype(np.float64)
        points = np.column_stack([rays[good] * z[:, None], z])
        points = transform(camera.T_base_camera, points)
        height = points @ T_world_base[2, :3]
        road = np.abs(height) < 0.1
        band = (height > LOW) & (height < HIGH) | road
        moves = np.zeros(len(good)) if moving is None else moving[v[good], u[good]]
        return np.column_stack([points, moves, road])[band]

    def _add_grid(
        self,
        seen: NDArray[np.float64],
        T_map_base: NDArray[np.float64],
        local_grid: OccupancyGrid | None,
    ) -> None:
        points = transform(T_map_base, seen[:, :3])[:, :2]
        distance = np.hypot(seen[:, 0], seen[:, 1])
        moves, road = seen[:, 3] > 0, seen[:, 4] > 0
        self.grids.add(
            points[~road],
            distance[~road],
            moves[~road],
            local_grid,
            points[road & ~moves & (distance < NEAR_ROAD)],
        )

    def _add_objects(
        self,
        estimate: ObjectsAt,
        truth: TrueObjects,
        masks: dict[int, NDArray[np.bool_]],
        T_map_base: NDArray[np.float64],
        T_world_base: NDArray[np.float64],
    ) -> None:
        self._compared_objects = True
        T_base_world, T_base_map = inverse(T_world_base), inverse(T_map_base)
        speed = np.linalg.norm(truth.velocity, axis=1)
        position = transform(T_base_world, truth.boxes.center)
        asked = (speed > MOVING) & (np.linalg.norm(position[:, :2], axis=1) < _OBJECT_RANGE)
        for index in np.flatnonzero(asked).tolist():
            asked[index] = (
                any(
                    np.count_nonzero(
                        mask
                        & box_pixels(
                            truth.boxes,
                            index,
                            inverse(T_world_base @ self._rig.cameras[n].T_base_camera),
                            self._rig.cameras[n],
                        )
                    )
                    >= 300
                    for n, mask in masks.items()
                )
                if masks
                else True
            )
        kept = speed > _STILL
        every = np.ones(len(estimate.ids), bool)
        self.tracking.add(
            Movers(
                estimate.ids,
                transform(T_base_map, estimate.position),
                estimate.velocity @ T_base_map[:3, :3].T,
                every,
            ),
            Movers(
                truth.ids[kept],
                position[kept],
                truth.velocity[kept] @ T_base_world[:3, :3].T,
                asked[kept],
            ),
        )
        for index in np.flatnonzero(speed > MOVING).tolist():
            center = truth.boxes.center[index]
            last = self._swept_last.get(int(truth.ids[index]))
            if last is None or np.linalg.norm(center - last) > 0.25:
                self._swept_last[int(truth.ids[index])] = center
                self._swept.append(
                    np.concatenate([center, truth.boxes.size[index], [truth.boxes.yaw[index]]])[
                        None
                    ]
                )


def _slow_pixels(
    objects: TrueObjects, T_camera_world: NDArray[np.float64], camera: Camera
) -> NDArray[np.bool_] | None:
    """Pixels of objects that move, but too slowly to be asked for."""
    speed = np.linalg.norm(objects.velocity, axis=1)
    slow = np.flatnonzero((speed > _STILL) & (speed <= MOVING))
    if not slow.size:
        return None
    out = np.zeros((camera.height, camera.width), bool)
    for index in slow.tolist():
        out |= box_pixels(objects.boxes, index, T_camera_world, camera)
    return out


def _depth_metrics(every: DepthAccumulator, confident: DepthAccumulator) -> dict:
    ranges = list(zip(every.ranges[:-1], every.ranges[1:], strict=True))
    metrics = {
        "all": asdict(every.score()),
        "near": asdict(every.score(nearer=NEAR)),
        "ranges": {
            f"{low:g}-{high:g}": asdict(every.score(nearer=high, farther=low))
            for low, high in ranges
        },
        "cameras": {name: asdict(every.score(name, nearer=NEAR)) for name in every.cameras},
        "camera_ranges": {
            name: {
                f"{low:g}-{high:g}": asdict(every.score(name, nearer=high, farther=low))
                for low, high in ranges
            }
            for name in every.cameras
        },
    }
    if confident.sums.any():
        metrics["near_confident"] = asdict(confident.score(nearer=NEAR))
        metrics["confident_cameras"] = {
            name: asdict(confident.score(name, nearer=NEAR)) for name in every.cameras
        }
    return metrics


def _spread(shape: tuple[int, ...], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of about `count` pixels, evenly spread over an image."""
    step = max(1, round(np.sqrt(shape[0] * shape[1] / count)))
    v, u = np.mgrid[step // 2 : shape[0] : step, step // 2 : shape[1] : step]
    return v.reshape(-1), u.reshape(-1)
