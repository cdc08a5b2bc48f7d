"""What moves by Driv3R's rule, over a sliding clip: rigid flow against measured flow.

The authors measure flow with RAFT, on which a mask's outline is then put by SAM 2. Neither is here:
flow is FlowMeter's, where it finds back, and the outline is the rule's own, with its holes filled.
What is done with a region is what is done with the motion network's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow, FlowMeter, make_picture
from recon4d_ros.dynamics.objects import find_extent, make_sight
from recon4d_ros.dynamics.pairs import LONGEST_GAP, Pair, Shot
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import components, fill_holes
from recon4d_ros.dynamics.rigid_flow import (
    NEWEST,
    flow_difference,
    motion_score,
    normalized,
    returning,
)
from recon4d_ros.dynamics.static_world import inverse_depth, see_road, static_flow
from recon4d_ros.dynamics.views import STRIDE, View
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Frame, Geometry, PoseEstimate

Array = NDArray[np.float64]
Plane = NDArray[np.float32]

RETURN = 1.5
"""Pixels of the motion grid within which flow has to find back."""


class ClipMotion:
    """All cameras, each by itself. State: their last images. The rule says yes or no: a probability
    of 1 or 0."""

    forgotten = 0

    def __init__(self, views: Sequence[View], parameters: DynamicsParameters) -> None:
        self._watchers = [ClipWatcher(i, view, parameters) for i, view in enumerate(views)]
        self._size = views[0].x.shape

    def reset(self) -> None:
        """Forget the last images."""
        for watcher in self._watchers:
            watcher.reset()

    def close(self) -> None:
        """Nothing is held."""

    def start(self, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> None:
        """Take images that the next are to be compared with."""
        for i in np.flatnonzero(frame.present):
            self._watchers[i].look(_shoot(int(i), frame, pose, geometry), None)

    def look(
        self,
        frame: Frame,
        pose: PoseEstimate,
        geometry: Geometry,
        ground: Array | None,
        pool: ThreadPoolExecutor,
    ) -> tuple[Plane, Sequence[Pair | None]]:
        """As LearnedMotion.look."""

        def watch(i: int) -> tuple[Plane, Pair] | None:
            if not frame.present[i]:
                self._watchers[i].reset()
                return None
            return self._watchers[i].look(_shoot(i, frame, pose, geometry), ground)

        seen = list(pool.map(watch, range(len(self._watchers))))
        nothing = np.zeros(self._size, np.float32)
        found = np.stack([nothing if one is None else one[0] for one in seen])
        return found, [None if one is None else one[1] for one in seen]


def _shoot(i: int, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> Shot:
    return Shot(
        int(frame.stamps_ns[i]),
        make_picture(geometry.color[i]),
        pose.T_map_camera[i],
        inverse_depth(geometry.depth[i, ::STRIDE, ::STRIDE]),
    )


class ClipWatcher:
    """Compares a camera's image with the one before and the one before that, `baseline` or more
    apart from each other."""

    def __init__(self, camera: int, view: View, parameters: DynamicsParameters) -> None:
        self.camera = camera
        self.view = view
        self._p = parameters
        self._meter = FlowMeter()
        self._clip: list[Shot] = []

    def reset(self) -> None:
        """The next image is the first."""
        self._clip = []

    def look(self, now: Shot, ground: Array | None) -> tuple[Plane, Pair] | None:
        """What moves [h, w] on the motion grid, 1 or 0, and what the image was compared with; None
        of a first image. ground: [4] the road in base_link, or None."""
        stamp_ns = now.stamp_ns
        self._clip = [
            shot
            for shot in self._clip
            if 0 < (stamp_ns - shot.stamp_ns) * 1e-9 < len(NEWEST) * LONGEST_GAP
        ]
        before = self._older(now, 1)
        if before is None:
            self._clip.append(now)
            return None
        score, flow = self._score(now, before, see_road(self.view, ground))
        pair = Pair(now, before, flow)
        # kept: the newest image, and the last that is old enough for each comparison of the next
        # one
        earlier = self._older(now, NEWEST[-1])
        self._clip = [*(self._clip[self._clip.index(earlier) :] if earlier else self._clip), now]
        return self._accepted(score, pair, ground), pair

    def _older(self, now: Shot, steps: int) -> Shot | None:
        """The last image that is `steps` times the baseline older, or None."""
        old = [
            shot
            for shot in self._clip
            if (now.stamp_ns - shot.stamp_ns) * 1e-9 > steps * self._p.baseline - 0.02
        ]
        return old[-1] if old else None

    def _score(self, now: Shot, before: Shot, road: Plane) -> tuple[Plane, Flow]:
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
                    flow_difference(self.view, now.q, T, kept),
                    self._p.clip_least,
                    self._p.clip_most,
                )
            )
        return motion_score(shares), flow

    def _measure(self, image: Shot, other: Shot, road: Plane) -> Flow:
        """Flow, looked for from where a static world would go."""
        q = np.where(np.isfinite(image.q), image.q, road)
        start = np.stack(
            static_flow(self.view, q, inverse(other.T_map_camera) @ image.T_map_camera), -1
        )
        return self._meter(image.picture, other.picture, start)

    def _accepted(self, score: Plane, pair: Pair, ground: Array | None) -> Plane:
        """[h, w] 1 in the regions over the threshold that are large and near enough, else 0."""
        sight = make_sight(self.camera, self.view, pair, ground)
        marked = cv2.medianBlur((score > self._p.clip_threshold).astype(np.uint8), 3)
        count, labels, stats = components(fill_holes(np.asarray(marked, np.uint8)) > 0)
        keep = np.zeros(count, np.float32)
        for label in range(1, count):
            left, top, width, height = (int(b) for b in stats[label, :4])
            inside = labels[top : top + height, left : left + width] == label
            keep[label] = find_extent(sight, inside, stats[label, :4], self._p) is not None
        return np.asarray(keep[labels])
