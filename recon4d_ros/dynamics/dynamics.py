"""What moves in a frame: every camera looks, one tracker remembers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.rig_check import base_is_on_road
from recon4d_ros.dynamics.candidates import FIRST_LABEL, Candidates, Mover, named
from recon4d_ros.dynamics.clip import ClipWatcher
from recon4d_ros.dynamics.ground import FAR, LEVEL, find_level, refine_plane
from recon4d_ros.dynamics.learned import MOVES, LearnedMotion, Pair, enlarged
from recon4d_ros.dynamics.marking import fill
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import fill_holes
from recon4d_ros.dynamics.support import seen_by_partner
from recon4d_ros.dynamics.tracker import Detection, Tracker
from recon4d_ros.dynamics.views import STRIDE, make_views, partners
from recon4d_ros.dynamics.watcher import Surroundings, Watcher
from recon4d_ros.engine.choose import named_engine
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.types import (
    Calibration,
    DynamicObject,
    Frame,
    Geometry,
    Motion,
    PoseEstimate,
    Rig,
    Tracking,
)

WATCHERS: dict[str, type[Watcher] | type[ClipWatcher]] = {
    "residual": Watcher,
    "rigid_flow": ClipWatcher,
}
"""What looks for motion in one camera's images, by the parameter `source`."""

NETWORK = "network"
"""The `source` that looks at all cameras at once (learned.py)."""


class Dynamics:
    """Finds what moves. State: each camera's last images and depths, the road plane, the tracks.

    A lost pose and an absent camera give an empty mask, and so does a camera's first image but for
    what another camera hands over: without motion of the camera nothing can be said about motion of
    the world. Of a stereo pair the first camera looks, and the second takes over what it found, by
    its own depth; cameras that look alone hand what they found to each other. Raises EngineError
    where the motion network's engine cannot be loaded or run.
    """

    def __init__(
        self,
        rig: Rig,
        calibration: Calibration,
        parameters: DynamicsParameters | None = None,
        runtime: str = "",
    ) -> None:
        """runtime: of the motion network's engine, its own by default."""
        p = self._parameters = parameters or DynamicsParameters()
        views = make_views(calibration)
        self._on_road = base_is_on_road(rig)
        self._partner = partners(calibration, views)
        self._size = calibration.working_size
        self._views = views
        self._learned = (
            LearnedMotion(views, p, str(named_engine(p.engine)), runtime)
            if p.source == NETWORK
            else None
        )
        self._watchers = (
            [] if self._learned else [WATCHERS[p.source](i, v, p) for i, v in enumerate(views)]
        )
        self._pool = ThreadPoolExecutor(len(views))
        self._tracker = Tracker(p.acceleration, p.confirm, p.keep_missing, p.minimum_speed)
        self.candidates = Candidates(rig, views, p)
        """Detections from elsewhere are given to it."""
        self._classes: dict[int, tuple[str, float]] = {}  # by id of the track
        self.reset()

    def reset(self) -> None:
        """Forget the last images, the road and every track."""
        for watcher in self._watchers:
            watcher.reset()
        if self._learned is not None:
            self._learned.reset()
        self._plane = LEVEL
        self._plane_seen = False
        self._last_ns: int | None = None
        self._tracker.reset()
        self.candidates.reset()
        self._classes = {}

    @property
    def forgotten(self) -> int:
        """How often the motion network's memory held what is not finite and was forgotten."""
        return self._learned.forgotten if self._learned is not None else 0

    def close(self) -> None:
        """Release the motion network's device memory."""
        if self._learned is not None:
            self._learned.close()

    def __call__(self, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> Motion:
        """Mask and objects of one frame. The mask marks everything that moves relative to the
        world, in each camera."""
        if pose.usable:
            if self._last_ns is not None:
                self._tracker.predict(max(frame.stamp_ns - self._last_ns, 0) * 1e-9)
            self._last_ns = frame.stamp_ns
            self._see_ground(geometry, frame.present)
            self.candidates.remember(frame, pose, geometry.depth, self.ground)
        if self._learned is not None:
            return self._ask_network(self._learned, frame, pose, geometry)
        mask = np.zeros((len(self._watchers), *self._size), bool)
        around = Surroundings(
            self._plane if self._plane_seen else None,
            self.ground,
            _pose_sigma(pose),
            self._tracker.moving(),
        )

        def look(i: int) -> tuple[NDArray[np.bool_], list[Detection]]:
            return self._watchers[i].look(
                int(frame.stamps_ns[i]),
                geometry.color[i],
                geometry.depth[i],
                geometry.sigma[i],
                pose.T_map_camera[i],
                around,
            )

        if not pose.usable:
            for i, watcher in enumerate(self._watchers):
                watcher.reset()
                if pose.tracking is Tracking.STARTING and frame.present[i]:
                    look(i)  # the first motion begins at this image: the next is compared with it
            return Motion(mask)
        # Cameras look side by side: OpenCV and NumPy let other threads run. Results are gathered in
        # the cameras' order.
        leaders = [
            i
            for i, partner in enumerate(self._partner)
            if frame.present[i] and (partner is None or not frame.present[partner])
        ]
        looks = dict(zip(leaders, self._pool.map(look, leaders), strict=True))
        detections: list[Detection] = []
        grids: dict[int, NDArray[np.bool_]] = {}
        for i, watcher in enumerate(self._watchers):
            leader = self._partner[i]
            if not frame.present[i]:
                watcher.reset()
            elif leader in grids:
                watcher.reset()
                grids[i] = self._take_over(i, leader, grids[leader], geometry)
            else:
                grids[i], found = looks[i]
                detections.extend(found)
        self._hand_over(grids, frame.present)
        movers = self._find_movers(frame, [grids.get(i) for i in range(len(self._views))])
        boxed: list[Detection] = []
        for i in movers:
            filled, found = self._mark(i, movers, pose, geometry, None, grids[i])
            grids[i] = grids[i] | filled
            wide = _widened(filled)
            detections = [d for d in detections if d.camera != i or not self._inside(d, pose, wide)]
            boxed += found
        for i, grid in grids.items():
            if grid.any():
                mask[i] = (
                    cv2.resize(
                        grid.astype(np.uint8), self._size[::-1], interpolation=cv2.INTER_NEAREST
                    )
                    > 0
                )
        return Motion(mask, self._track([*detections, *boxed], movers))

    def _ask_network(
        self, learned: LearnedMotion, frame: Frame, pose: PoseEstimate, geometry: Geometry
    ) -> Motion:
        mask = np.zeros((len(self._views), *self._size), bool)
        if not pose.usable:
            learned.reset()
            if pose.tracking is Tracking.STARTING:
                learned.start(frame, pose, geometry)
            return Motion(mask)
        probability, pairs = learned.look(frame, pose, geometry, self.ground, self._pool)
        known = [None if pair is None else probability[i] > MOVES for i, pair in enumerate(pairs)]
        movers = self._find_movers(frame, known)
        detections: list[Detection] = []
        for i, pair in enumerate(pairs):
            if pair is None or (probability[i].max() <= MOVES and i not in movers):
                continue
            by_itself = probability[i]
            if i in movers:
                filled, found = self._mark(i, movers, pose, geometry, pair, known[i])
                detections += found
                by_itself = np.where(_widened(filled), np.float32(0), probability[i])
                probability[i][filled] = 1.0
            mask[i] = enlarged(probability[i], STRIDE, self._size) > MOVES
            leader = self._partner[i]
            if leader is None or pairs[leader] is None:  # of a pair, one camera's regions do
                detections += learned.detect(i, pair, by_itself, self.ground)
        return Motion(mask, self._track(detections, movers))

    def _find_movers(
        self, frame: Frame, marked: list[NDArray[np.bool_] | None]
    ) -> dict[int, list[Mover]]:
        """By camera, the detections from elsewhere that move; none where none came."""
        if self.candidates.idle:
            return {}
        return self.candidates.judge(frame, marked)

    def _mark(
        self,
        camera: int,
        movers_of: dict[int, list[Mover]],
        pose: PoseEstimate,
        geometry: Geometry,
        pair: Pair | None,
        marked: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.bool_], list[Detection]]:
        """The pixels of a camera's movers on the motion grid, and what the tracks are told of them.
        marked: [h, w] what was found without boxes."""
        view, depth = self._views[camera], geometry.depth[camera, ::STRIDE, ::STRIDE]
        filled, found = np.zeros(view.x.shape, bool), []
        for index, mover in enumerate(movers_of[camera]):
            filled |= fill(
                view,
                mover,
                depth,
                pose.T_map_camera[camera],
                pair.before.T_map_camera if pair else None,
                pair.flow if pair else None,
                pair.seconds if pair else 0.0,
                marked,
            )
            if self._partner[camera] not in movers_of:  # of a pair, one camera's do
                found.append(self.candidates.region(camera, mover, FIRST_LABEL + index))
        return filled, found

    def _track(
        self, detections: list[Detection], movers: dict[int, list[Mover]]
    ) -> tuple[DynamicObject, ...]:
        """The objects after these detections, with the classes that detections from elsewhere give
        them."""
        owner = self._tracker.update(detections)
        for camera, seen in movers.items():
            for index, mover in enumerate(seen):
                one = mover.candidate
                if one.class_name and (camera, FIRST_LABEL + index) in owner:
                    identity = owner[camera, FIRST_LABEL + index]
                    self._classes[identity] = (one.class_name, min(one.class_score, 1.0))
        objects = self._tracker.objects()
        alive = {track.id for track in self._tracker.tracks}
        self._classes = {key: value for key, value in self._classes.items() if key in alive}
        return named(objects, self._classes)

    def _inside(self, region: Detection, pose: PoseEstimate, filled: NDArray[np.bool_]) -> bool:
        """Whether the middle of a region lies in what is filled [h, w]: it is the same thing."""
        view = self._views[region.camera]
        point = transform(inverse(pose.T_map_camera[region.camera]), region.position[None])[0]
        if point[2] <= 0:
            return False
        u, v = (view.k @ (point / point[2]))[:2].round().astype(int)
        h, w = filled.shape
        return bool(0 <= u < w and 0 <= v < h and filled[v, u])

    @property
    def ground(self) -> NDArray[np.float64] | None:
        """[4] the road in base_link as depth shows it, or until then by calibration (z = 0); None
        where base_link is not on the road."""
        return self._plane if self._plane_seen or self._on_road else None

    def _hand_over(self, grids: dict[int, NDArray[np.bool_]], present: NDArray[np.bool_]) -> None:
        """Mark in each camera that looks alone what the others found and it sees too. grids: masks
        [h, w] by camera, changed in place."""
        watchers = {
            i: watcher
            for i, watcher in enumerate(self._watchers)
            if present[i] and isinstance(watcher, Watcher)
        }
        for i in grids.keys() & watchers.keys():
            others = [
                watcher.found
                for j, watcher in watchers.items()
                if j != i and watcher.found is not None
            ]
            if others:
                grids[i] = grids[i] | watchers[i].take_in(np.concatenate(others))

    def _take_over(
        self, i: int, leader: int, found: NDArray[np.bool_], geometry: Geometry
    ) -> NDArray[np.bool_]:
        """What the leader of a stereo pair found, seen by its partner."""
        view, other = self._views[i], self._views[leader]
        if not found.any():
            return np.zeros(view.x.shape, bool)
        with np.errstate(divide="ignore"):
            q, q_leader = (
                (1 / geometry.depth[c, ::STRIDE, ::STRIDE]).astype(np.float32) for c in (i, leader)
            )
        seen = seen_by_partner(
            view, other, inverse(other.T_base_camera) @ view.T_base_camera, q, q_leader, found
        )
        closed = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        return fill_holes(np.asarray(closed, np.uint8)) > 0

    def _see_ground(self, geometry: Geometry, present: NDArray[np.bool_]) -> None:
        """Move the road plane towards what the lower halves of all cameras show, every eighth
        pixel."""
        first, step = self._size[0] // (2 * STRIDE), 4
        clouds = []
        for i in np.flatnonzero(present):
            view = self._views[i]
            z = geometry.depth[i, first * STRIDE :: STRIDE * step, :: STRIDE * step]
            near = z < FAR
            z = z[near]
            points = np.stack(
                [view.x[first::step, ::step][near] * z, view.y[first::step, ::step][near] * z, z],
                -1,
            )
            clouds.append(transform(view.T_base_camera, points))
        points = np.concatenate(clouds) if clouds else np.zeros((0, 3), np.float32)
        if not self._plane_seen:
            level = find_level(points)
            if level is None:
                return  # too little depth, as before the ego-vehicle has moved
            self._plane, self._plane_seen = refine_plane(level, points, 1.0), True
        self._plane = refine_plane(self._plane, points)


def _widened(filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Filled pixels and a margin, a tenth of the extent of what is filled: what is marked at the
    edge of a thing is its fringe, and no thing of its own."""
    if not filled.any():
        return filled
    side = max(3, round(0.1 * np.sqrt(filled.sum()))) | 1
    return cv2.dilate(filled.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def _pose_sigma(pose: PoseEstimate) -> tuple[float, float]:
    """Standard deviations of the motion between two frames, metres and radians, within what is
    plausible; depth and motion share the calibration's errors, so that these move nothing."""
    variance = np.diag(pose.motion_covariance - pose.calibration_covariance)
    return (
        float(np.clip(np.sqrt(variance[:3].max()), 0.005, 0.1)),
        float(np.clip(np.sqrt(variance[3:].max()), 0.0003, 0.005)),
    )
