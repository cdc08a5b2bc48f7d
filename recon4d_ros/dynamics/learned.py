"""What moves, by the motion network: flow is measured on the host, all else is in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.motion_inputs import (
    NetworkShot,
    make_grid,
    make_meter,
    make_shot,
    measure_flow,
    on_grid,
)
from recon4d_ros.dynamics.pairs import Pair, comparable
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.static_world import road_in_camera
from recon4d_ros.dynamics.views import View
from recon4d_ros.engine.motion import MotionEngine, load_motion
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Frame, Geometry, PoseEstimate

Array = NDArray[np.float64]
Plane = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class NetworkPair(Pair):
    """share: of the flow that leads to the camera's last image."""

    now: NetworkShot
    before: NetworkShot
    share: float


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
        self._meters = [make_meter() for _ in views]
        self._engine: MotionEngine = load_motion(
            engine_folder, len(views), self._grid.padded, runtime
        )
        self._constant = {
            "k": np.stack([self._grid.intrinsics(view) for view in views]).astype(np.float32),
            "covered": np.stack([self._grid.take(view.covered.astype(np.uint8)) for view in views]),
        }
        self._shots: list[list[NetworkShot]] = [[] for _ in views]
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
    ) -> tuple[Plane, Sequence[Pair | None]]:
        """Probability [N, h, w] on the motion grid that a pixel moves, 0 where nothing is known;
        and what each camera's image was compared with. ground: [4] the road in base_link, or
        None."""

        def measure(i: int) -> NetworkPair | None:
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

    def _shoot(self, i: int, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> NetworkShot:
        return make_shot(
            self._grid,
            int(frame.stamps_ns[i]),
            geometry.color[i],
            geometry.depth[i],
            geometry.sigma[i],
            geometry.confidence[i],
            pose.T_map_camera[i],
        )

    def _measure(self, i: int, now: NetworkShot, ground: Array | None) -> NetworkPair | None:
        """The newest image against the last one, or an older one if images come faster than
        `baseline`."""
        shots = comparable(self._shots[i], now.stamp_ns, self._p.baseline)
        self._shots[i] = [*shots, now]
        if not shots:
            return None
        before, last = shots[0], shots[-1]
        view = self._views[i]
        flow = measure_flow(view, self._meters[i], now, before, ground)
        share = (now.stamp_ns - last.stamp_ns) / (now.stamp_ns - before.stamp_ns)
        return NetworkPair(now, before, flow, share)

    def _inputs(
        self, pairs: Sequence[NetworkPair | None], ground: Array | None
    ) -> dict[str, NDArray]:
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
            out["q"][i], out["q_before"][i] = now.near, before.near
            out["sigma"][i], out["confidence"][i] = now.sigma, now.confidence
            out["flow"][i] = on_grid(self._grid, pair.flow)
            out["T_before_now"][i] = inverse(before.T_map_camera) @ now.T_map_camera
            out["road"][i] = road_in_camera(self._views[i], ground)
            out["seconds"][i], out["share"][i] = pair.seconds, pair.share
            out["keep"][i] = self._believes[i]
        return out | self._constant


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
