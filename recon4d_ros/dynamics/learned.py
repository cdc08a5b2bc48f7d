"""What moves, by the motion network: flow is measured on the host, all else is in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Displacement
from recon4d_ros.dynamics.motion_inputs import (
    Shot,
    make_grid,
    make_meter,
    make_shot,
    measure_flow,
    on_grid,
    road_in_camera,
)
from recon4d_ros.dynamics.objects import Sight, find_extent, lift
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import components
from recon4d_ros.dynamics.residual import Depth, make_depth, see_road
from recon4d_ros.dynamics.tracker import Detection
from recon4d_ros.dynamics.views import View
from recon4d_ros.dynamics.watcher import SMALLEST, comparable
from recon4d_ros.engine.motion import MotionEngine, load_motion
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Frame, Geometry, PoseEstimate

Array = NDArray[np.float64]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

MOVES = 0.5
"""Probability from which a pixel is marked. Fixed before any score was seen."""


SURE = 0.8
"""Probability of the pixels that say where an object is. Masks have fringes: what an object has
just uncovered takes part of its flow, and a foot behind it is another range. Two tuning drives (one
camera by day, a pair at night): precision of objects 0.18 and 0.49 at MOVES, 0.48 and 0.98 at 0.8,
0.48 and 0.82 at 0.95."""


@dataclass(frozen=True, eq=False)
class Pair:
    """An image of a camera, the one it is compared with, and the flow between them. share: of the
    flow that leads to the camera's last image."""

    now: Shot
    before: Shot
    flow: Displacement
    share: float

    @property
    def seconds(self) -> float:
        return (self.now.stamp_ns - self.before.stamp_ns) * 1e-9


class LearnedMotion:
    """All cameras' images through the network. State: the last images, and the engine's memory.
    Raises EngineError if the engine cannot be loaded."""

    def __init__(
        self,
        views: Sequence[View],
        parameters: DynamicsParameters,
        engine_folder: str,
        runtime: str = "",
    ) -> None:
        self._p, self._views = parameters, tuple(views)
        self._grid = make_grid(self._views)
        self._meters = [make_meter(parameters.flow_noise, parameters.image_noise) for _ in views]
        self._engine: MotionEngine = load_motion(
            engine_folder, len(views), self._grid.padded, runtime
        )
        self._constant = {
            "k": np.stack([self._grid.intrinsics(view) for view in views]).astype(np.float32),
            "covered": np.stack([self._grid.take(view.covered.astype(np.uint8)) for view in views]),
        }
        self._shots: list[list[Shot]] = [[] for _ in views]
        self._believes = np.zeros(len(views), bool)

    def reset(self) -> None:
        """Forget the last images and what was believed of them."""
        self._shots = [[] for _ in self._views]
        self._believes[:] = False
        self._engine.reset()

    @property
    def forgotten(self) -> int:
        """How often the engine's memory held what is not finite."""
        return self._engine.forgotten

    def close(self) -> None:
        """Release the engine's device memory."""
        self._engine.close()

    def start(self, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> None:
        """Take images that the next are to be compared with."""
        for i in np.flatnonzero(frame.present):
            self._shots[i] = [self._shoot(int(i), frame, pose, geometry)]

    def look(
        self,
        frame: Frame,
        pose: PoseEstimate,
        geometry: Geometry,
        ground: Array | None,
        pool: ThreadPoolExecutor,
    ) -> tuple[Plane, list[Pair | None]]:
        """Probability [N, h, w] on the motion grid that a pixel moves, 0 where nothing is known;
        and what each camera's image was compared with. ground: [4] the road in base_link, or
        None."""

        def measure(i: int) -> Pair | None:
            if not frame.present[i]:
                self._shots[i] = []
                return None
            return self._measure(i, self._shoot(i, frame, pose, geometry), ground)

        pairs = list(pool.map(measure, range(len(self._views))))
        motion_size = self._views[0].x.shape
        out = np.zeros((len(pairs), *motion_size), np.float32)
        if any(pair is not None for pair in pairs):
            found = self._engine.step(self._inputs(pairs, ground))
            h, w = self._grid.size
            for i, pair in enumerate(pairs):
                if pair is not None:
                    out[i] = enlarged(found[i, :h, :w], self._grid.step, motion_size)
        self._believes[:] = [pair is not None for pair in pairs]
        return out, pairs

    def detect(
        self, camera: int, pair: Pair, probability: Plane, ground: Array | None
    ) -> list[Detection]:
        """The regions of one camera that are large and near enough, lifted to 3D."""
        p, view = self._p, self._views[camera]
        road = see_road(view, ground, p.ground_noise, p.ground_noise / 10)
        own: tuple[Depth | None, Depth | None] = (None, None)
        if view.mostly_covered:
            own = _depth(pair.now, view), _depth(pair.before, view)
        sight = Sight(
            camera,
            view,
            pair.now.T_map_camera,
            pair.before.T_map_camera,
            pair.seconds,
            pair.flow,
            road,
            ground,
            *own,
        )
        count, labels, stats = components(probability > SURE)
        found = []
        for label in range(1, count):
            if stats[label, cv2.CC_STAT_AREA] < SMALLEST:
                continue
            box = stats[label, :4]
            left, top, width, height = (int(b) for b in box)
            window = np.s_[top : top + height, left : left + width]
            inside = labels[window] == label
            extent = find_extent(sight, inside, box, p)
            if extent is None:
                continue
            sure = float(probability[window][inside].mean())
            found.append(lift(sight, label, inside, box, extent, sure))
        return found

    def _shoot(self, i: int, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> Shot:
        return make_shot(
            self._grid,
            int(frame.stamps_ns[i]),
            geometry.color[i],
            geometry.depth[i],
            geometry.sigma[i],
            geometry.confidence[i],
            pose.T_map_camera[i],
        )

    def _measure(self, i: int, now: Shot, ground: Array | None) -> Pair | None:
        """The newest image against the last one, or an older one if images come faster than
        `baseline`."""
        shots = comparable(self._shots[i], now.stamp_ns, self._p.baseline)
        self._shots[i] = [*shots, now]
        if not shots:
            return None
        before, last = shots[0], shots[-1]
        view = self._views[i]
        road = see_road(view, ground, 0.0, 0.0)
        flow = measure_flow(view, self._meters[i], now, before, road.q)
        share = (now.stamp_ns - last.stamp_ns) / (now.stamp_ns - before.stamp_ns)
        return Pair(now, before, flow, share)

    def _inputs(self, pairs: Sequence[Pair | None], ground: Array | None) -> dict[str, NDArray]:
        """By the names of networks.motion.Look; zeros for a camera without a pair."""
        n, (h, w) = len(pairs), self._grid.padded
        out: dict[str, NDArray] = {
            name: np.zeros((n, h, w), kind)
            for kind, names in (
                (np.uint8, ("grey", "grey_before")),
                (np.float32, ("q", "sigma", "confidence", "q_before")),
            )
            for name in names
        }
        out |= {
            "flow": np.zeros((n, 2, h, w), np.float32),
            "T_before_now": np.tile(np.eye(4, dtype=np.float32), (n, 1, 1)),
            "road": np.zeros((n, 4), np.float32),
            "seconds": np.full(n, self._p.baseline, np.float32),
            "share": np.ones(n, np.float32),
            "keep": np.zeros(n, np.float32),
        }
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            now, before = pair.now, pair.before
            out["grey"][i], out["grey_before"][i] = now.grey, before.grey
            out["q"][i], out["q_before"][i] = now.q, before.q
            out["sigma"][i], out["confidence"][i] = np.minimum(now.sigma, 1), now.confidence
            out["flow"][i] = on_grid(self._grid, pair.flow)
            out["T_before_now"][i] = inverse(before.T_map_camera) @ now.T_map_camera
            out["road"][i] = road_in_camera(self._views[i], ground)
            out["seconds"][i], out["share"][i] = pair.seconds, pair.share
            out["keep"][i] = self._believes[i]
        return out | self._constant


def _depth(shot: Shot, view: View) -> Depth:
    """Depth that does not come from time: of what another camera sees too."""
    depth = make_depth(shot.depth, shot.depth_sigma)
    return Depth(np.where(view.covered, depth.q, np.float32(np.nan)), depth.sigma)


def enlarged(plane: Plane, step: int, size: tuple[int, ...]) -> Plane:
    """[h, w] on a grid of `size` that is `step` times finer: every `step`-th pixel is the same."""
    if step == 1:
        return plane
    h, w = size
    at = [np.arange(side, dtype=np.float32) / step for side in (w, h)]
    x, y = np.meshgrid(*at)
    return np.asarray(
        cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
    )
