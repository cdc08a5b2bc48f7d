"""What moves in a frame: every camera looks, one tracker remembers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.rig_check import base_is_on_road
from recon4d_ros.dynamics.candidates import FIRST_LABEL, Candidates, Mover, named
from recon4d_ros.dynamics.clip import ClipMotion
from recon4d_ros.dynamics.ground import FAR, LEVEL, find_level, refine_plane
from recon4d_ros.dynamics.learned import LearnedMotion, enlarged
from recon4d_ros.dynamics.marking import fill
from recon4d_ros.dynamics.objects import detect, make_sight
from recon4d_ros.dynamics.pairs import Pair
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.tracker import Detection, Tracker
from recon4d_ros.dynamics.views import STRIDE, View, make_views, partners
from recon4d_ros.engine.choose import named_engine
from recon4d_ros.geometry import transform
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

MOVES = 0.5
"""Probability from which a pixel is marked. Fixed before any score was seen."""

SURE = 0.8
"""Probability of the pixels that say where an object is. Masks have fringes: what an object has
just uncovered takes part of its flow, and a foot behind it is another range. Two tuning drives (one
camera by day, a pair at night): precision of objects 0.18 and 0.49 at MOVES, 0.48 and 0.98 at 0.8,
0.48 and 0.82 at 0.95."""


class MotionSource(Protocol):
    """What says how probably each pixel moves. State: each camera's last images."""

    @property
    def forgotten(self) -> int:
        """How often its memory held what is not finite."""
        ...

    def reset(self) -> None:
        """Forget the last images."""
        ...

    def close(self) -> None:
        """Release what it holds on a device."""
        ...

    def start(self, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> None:
        """Take images that the next are to be compared with."""
        ...

    def look(
        self,
        frame: Frame,
        pose: PoseEstimate,
        geometry: Geometry,
        ground: NDArray[np.float64] | None,
        pool: ThreadPoolExecutor,
    ) -> tuple[NDArray[np.float32], Sequence[Pair | None]]:
        """Probability [N, h, w] on the motion grid that a pixel moves, 0 where nothing is known;
        and what each camera's image was compared with. ground: [4] the road in base_link, or
        None."""
        ...


def make_source(views: Sequence[View], p: DynamicsParameters, runtime: str) -> MotionSource:
    """By the parameter `source`. Raises EngineError where the motion network's engine cannot be
    loaded."""
    if p.source == "rigid_flow":
        return ClipMotion(views, p)
    return LearnedMotion(views, p, str(named_engine(p.engine)), runtime)


class Dynamics:
    """Finds what moves. State: each camera's last images, the road plane, the tracks.

    A lost pose and an absent camera give an empty mask, and so does a camera's first image: without
    motion of the camera nothing can be said about motion of the world. Raises EngineError where the
    motion network's engine cannot be loaded or run.
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
        self._source = make_source(views, p, runtime)
        self._pool = ThreadPoolExecutor(len(views))
        self._tracker = Tracker(p.acceleration, p.confirm, p.keep_missing, p.minimum_speed)
        self.candidates = Candidates(rig, views, p)
        """Detections from elsewhere are given to it."""
        self._classes: dict[int, tuple[str, float]] = {}  # by id of the track
        self.reset()

    def reset(self) -> None:
        """Forget the last images, the road and every track."""
        self._source.reset()
        self._plane = LEVEL
        self._plane_seen = False
        self._last_ns: int | None = None
        self._tracker.reset()
        self.candidates.reset()
        self._classes = {}

    @property
    def forgotten(self) -> int:
        """How often the motion network's memory held what is not finite and was forgotten."""
        return self._source.forgotten

    def close(self) -> None:
        """Release the motion network's device memory."""
        self._source.close()

    def __call__(self, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> Motion:
        """Mask and objects of one frame. The mask marks everything that moves relative to the
        world, in each camera."""
        if pose.usable:
            if self._last_ns is not None:
                self._tracker.predict(max(frame.stamp_ns - self._last_ns, 0) * 1e-9)
            self._last_ns = frame.stamp_ns
            self._see_ground(geometry, frame.present)
            self.candidates.remember(frame, pose, geometry.depth, self.ground)
        mask = np.zeros((len(self._views), *self._size), bool)
        if not pose.usable:
            self._source.reset()
            if pose.tracking is Tracking.STARTING:
                self._source.start(frame, pose, geometry)
            return Motion(mask)
        probability, pairs = self._source.look(frame, pose, geometry, self.ground, self._pool)
        known = [None if pair is None else probability[i] > MOVES for i, pair in enumerate(pairs)]
        movers = self._find_movers(frame, known)
        detections: list[Detection] = []
        for i, pair in enumerate(pairs):
            if pair is None or (probability[i].max() <= MOVES and i not in movers):
                continue
            by_itself = probability[i]
            if i in movers:
                filled, found = self._mark(i, movers, geometry, pair, by_itself > MOVES)
                detections += found
                by_itself = np.where(_widened(filled), np.float32(0), probability[i])
                probability[i][filled] = 1.0
            mask[i] = enlarged(probability[i], STRIDE, self._size) > MOVES
            leader = self._partner[i]
            if leader is None or pairs[leader] is None:  # of a pair, one camera's regions do
                sight = make_sight(i, self._views[i], pair, self.ground)
                detections += detect(sight, by_itself, SURE, self._parameters)
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
        geometry: Geometry,
        pair: Pair,
        marked: NDArray[np.bool_],
    ) -> tuple[NDArray[np.bool_], list[Detection]]:
        """The pixels of a camera's movers on the motion grid, and what the tracks are told of them.
        marked: [h, w] what was found without boxes."""
        view, depth = self._views[camera], geometry.depth[camera, ::STRIDE, ::STRIDE]
        filled, found = np.zeros(view.x.shape, bool), []
        for index, mover in enumerate(movers_of[camera]):
            filled |= fill(view, mover, depth, pair, marked)
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

    @property
    def ground(self) -> NDArray[np.float64] | None:
        """[4] the road in base_link as depth shows it, or until then by calibration (z = 0); None
        where base_link is not on the road."""
        return self._plane if self._plane_seen or self._on_road else None

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
