"""One camera's search for motion by Driv3R's rule, over a sliding clip: rigid flow against measured
flow, in place of watcher.py's tests.

The authors measure flow with RAFT, on which a mask's outline is then put by SAM 2. Neither is here:
flow is FlowMeter's, where it finds back, and the outline is the rule's own, with its holes filled.
What is done with a region is what watcher.py does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow, FlowMeter, Picture, make_picture
from recon4d_ros.dynamics.objects import Sight, find_extent, lift
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import components, fill_holes
from recon4d_ros.dynamics.residual import Depth, Road, make_depth, see_road, static_flow
from recon4d_ros.dynamics.rigid_flow import (
    NEWEST,
    flow_difference,
    motion_score,
    normalized,
    returning,
)
from recon4d_ros.dynamics.tracker import Detection
from recon4d_ros.dynamics.views import STRIDE, View
from recon4d_ros.dynamics.watcher import LONGEST_GAP, Surroundings
from recon4d_ros.geometry import inverse

Array = NDArray[np.float64]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

RETURN = 1.5
"""Pixels of the motion grid within which flow has to find back."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One image of one camera and what is kept of it."""

    stamp_ns: int
    picture: Picture
    T_map_camera: Array
    depth: Depth


class ClipWatcher:
    """Compares a camera's image with the one before and the one before that, `baseline` or more
    apart from each other."""

    def __init__(self, camera: int, view: View, parameters: DynamicsParameters) -> None:
        self.camera = camera
        self.view = view
        self._p = parameters
        self._meter = FlowMeter(parameters.flow_noise, parameters.image_noise)
        self._clip: list[Shot] = []

    def reset(self) -> None:
        """The next image is the first."""
        self._clip = []

    def look(
        self,
        stamp_ns: int,
        color: NDArray[np.uint8],
        depth: Plane,
        sigma: Plane,
        T_map_camera: Array,
        around: Surroundings,
    ) -> tuple[Mask, list[Detection]]:
        """What moves on the motion grid, [h, w] bool, and each region's detection. color, depth,
        sigma: the working image's."""
        now = Shot(
            stamp_ns,
            make_picture(color),
            T_map_camera,
            make_depth(depth[::STRIDE, ::STRIDE], sigma[::STRIDE, ::STRIDE]),
        )
        self._clip = [
            shot
            for shot in self._clip
            if 0 < (stamp_ns - shot.stamp_ns) * 1e-9 < len(NEWEST) * LONGEST_GAP
        ]
        before = self._older(now, 1)
        if before is None:
            self._clip.append(now)
            return np.zeros(self.view.x.shape, bool), []
        road = see_road(self.view, around.plane, self._p.ground_noise, self._p.ground_noise / 10)
        score, flow = self._score(now, before, road)
        found = self._accept(now, before, score, flow, road, around)
        # kept: the newest image, and the last that is old enough for each comparison of the next
        # one
        earlier = self._older(now, NEWEST[-1])
        self._clip = [*(self._clip[self._clip.index(earlier) :] if earlier else self._clip), now]
        return found

    def _older(self, now: Shot, steps: int) -> Shot | None:
        """The last image that is `steps` times the baseline older, or None."""
        old = [
            shot
            for shot in self._clip
            if (now.stamp_ns - shot.stamp_ns) * 1e-9 > steps * self._p.baseline - 0.02
        ]
        return old[-1] if old else None

    def _score(self, now: Shot, before: Shot, road: Road) -> tuple[Plane, Flow]:
        """How much moves at each pixel, 0..1, over all pairs of the newest image; and the flow to
        the last one."""
        flow = self._measure(now, before, road)
        others = [
            before,
            *(shot for steps in NEWEST[1:] if (shot := self._older(now, steps)) is not None),
        ]
        shares = []
        for other in others:
            there = flow if other is before else self._measure(now, other, road)
            back = self._measure(other, now, road)
            kept = returning(
                np.stack([there.u, there.v], -1), np.stack([back.u, back.v], -1), RETURN
            )
            T = inverse(other.T_map_camera) @ now.T_map_camera
            shares.append(
                normalized(
                    flow_difference(self.view, now.depth.q, T, kept),
                    self._p.clip_least,
                    self._p.clip_most,
                )
            )
        return motion_score(shares), flow

    def _measure(self, image: Shot, other: Shot, road: Road) -> Flow:
        """Flow, looked for from where a static world would go."""
        q = np.where(np.isfinite(image.depth.q), image.depth.q, road.q)
        start = np.stack(
            static_flow(self.view, q, inverse(other.T_map_camera) @ image.T_map_camera), -1
        )
        return self._meter.measure(image.picture, other.picture, start)

    def _accept(
        self, now: Shot, before: Shot, score: Plane, flow: Flow, road: Road, around: Surroundings
    ) -> tuple[Mask, list[Detection]]:
        """Regions over the threshold that are large and near enough, each lifted to an object."""
        p, view = self._p, self.view
        marked = cv2.medianBlur((score > p.clip_threshold).astype(np.uint8), 3)
        count, labels, stats = components(fill_holes(np.asarray(marked, np.uint8)) > 0)
        seconds = (now.stamp_ns - before.stamp_ns) * 1e-9
        own = (now.depth, before.depth) if view.mostly_covered else (None, None)
        sight = Sight(
            self.camera,
            view,
            now.T_map_camera,
            before.T_map_camera,
            seconds,
            flow,
            road,
            around.plane,
            *own,
        )
        found: list[Detection] = []
        keep = np.zeros(count, bool)
        for label in range(1, count):
            left, top, width, height = (int(b) for b in stats[label, :4])
            window = np.s_[top : top + height, left : left + width]
            inside = labels[window] == label
            extent = find_extent(sight, inside, stats[label, :4], p)
            if extent is None:
                continue
            keep[label] = True
            found.append(
                lift(
                    sight,
                    label,
                    inside,
                    stats[label, :4],
                    extent,
                    float(score[window][inside].mean()),
                )
            )
        return keep[labels], found
