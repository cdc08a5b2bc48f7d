"""One camera's search for motion: flow, residual, regions, outlines, detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.alone import Belief, believe, hold_against_road
from recon4d_ros.dynamics.evidence import Evidence
from recon4d_ros.dynamics.flow import Flow, FlowMeter, Picture, ends, make_picture
from recon4d_ros.dynamics.handover import points_of, seen_from
from recon4d_ros.dynamics.infill import fill_in
from recon4d_ros.dynamics.objects import Sight, find_extent, lift
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import (
    Regions,
    affine_flow,
    competing_shape,
    components,
    fill_holes,
    find_regions,
    join,
    relabel,
)
from recon4d_ros.dynamics.residual import (
    Depth,
    hidden_before,
    make_depth,
    see_road,
    static_alternative,
    static_flow,
    static_residual,
)
from recon4d_ros.dynamics.support import in_boxes
from recon4d_ros.dynamics.tracker import Detection, Track
from recon4d_ros.dynamics.views import STRIDE, View
from recon4d_ros.geometry import inverse

Array = NDArray[np.float64]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

LONGEST_GAP = 1.0
"""Images further apart than this many seconds are not compared: a dynamic object has left its place
by then."""

CHANCE = 2.0
"""Chi-square that chance gives to a pixel that does not move."""

SMALLEST = 12
"""Pixels of the motion grid that a dynamic object has at least."""

CERTAIN = 0.5
"""Mean belief from which a region of a camera that looks alone needs no second image: what passes
by is seen in few."""

TOLD = 0.8
"""Belief in what another camera found."""

ROAD_SKIN = 0.1
"""Metres above the road that stay the road, where depth is measured: flow bleeds from wheels and
shadows."""


@dataclass(eq=False)
class Shot:
    """One image of one camera and what is kept of it. q: [h, w] 1/m, all depth there is. depth:
    where it does not come from time, or None.

    candidates: [h, w] bool and score: [h, w], filled in when the image is judged: pixels with any
    sign of motion, and how much of it there was over the last images. belief: of a camera that
    looks alone, once judged. found: [K, 3] points in map that move, once judged.
    """

    stamp_ns: int
    picture: Picture
    T_map_camera: Array
    whole: Depth
    depth: Depth | None
    candidates: Mask
    score: Plane
    belief: Belief | None = None
    found: Array | None = None


@dataclass(frozen=True)
class Surroundings:
    """What a camera is told from outside. plane: [4] the road in base_link as depth shows it, or
    None. ground: [4] the same, or by calibration alone (z = 0): good enough for the range of what
    stands on it, not to say that something floats; None where base_link is not on the road.
    pose_sigma: metres, radians. tracks: that move."""

    plane: Array | None
    ground: Array | None
    pose_sigma: tuple[float, float]
    tracks: list[Track]


class Watcher:
    """Compares a camera's image with its last one, or an older one if images come faster than
    `baseline`."""

    def __init__(self, camera: int, view: View, parameters: DynamicsParameters) -> None:
        self.camera = camera
        self.view = view
        self._p = parameters
        # Outlines of a camera with a partner come from flow; alone they come from the picture, and
        # fewer patches do.
        stride, rounds = (4, 12) if view.mostly_covered else (5, 16)
        self._meter = FlowMeter(parameters.flow_noise, parameters.image_noise, stride, rounds)
        self._shots: list[Shot] = []

    def reset(self) -> None:
        """The next image is the first."""
        self._shots = []

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
        now = self._shoot(stamp_ns, color, depth, sigma, T_map_camera)
        shots = comparable(self._shots, stamp_ns, self._p.baseline)
        self._shots = [*shots, now]
        if not shots:
            return np.zeros(self.view.x.shape, bool), []
        before, last = shots[0], shots[-1]
        evidence = self._judge(now, before, last, around)
        if now.depth is not None:
            regions, sure = self._regions(now, evidence, around)
        else:
            regions, sure = (
                self._regions_alone(now, before, last, color, evidence, around),
                np.zeros(self.view.x.shape, bool),
            )
        return self._accept(now, before, last, evidence, regions, sure, around)

    @property
    def found(self) -> Array | None:
        """Points [K, 3] in map that move, of the last image; None without one that was compared."""
        return self._shots[-1].found if self._shots else None

    def take_in(self, found: Array) -> Mask:
        """Dynamic objects [h, w] of the last image among the points [K, 3] in map that other
        cameras found. A camera that looks alone believes them from now on."""
        now = self._shots[-1] if self._shots else None
        if now is None or now.depth is not None:
            return np.zeros(self.view.x.shape, bool)
        seen = seen_from(self.view, now.T_map_camera, found)
        if now.belief is not None:
            now.belief = replace(
                now.belief,
                moves=np.where(seen, np.maximum(now.belief.moves, TOLD), now.belief.moves),
                mask=now.belief.mask | seen,
            )
        np.logical_or(now.candidates, seen, out=now.candidates)
        return seen

    def _shoot(
        self,
        stamp_ns: int,
        color: NDArray[np.uint8],
        depth: Plane,
        sigma: Plane,
        T_map_camera: Array,
    ) -> Shot:
        whole = make_depth(depth[::STRIDE, ::STRIDE], sigma[::STRIDE, ::STRIDE])
        own = (
            Depth(np.where(self.view.covered, whole.q, np.float32(np.nan)), whole.sigma)
            if self.view.mostly_covered
            else None
        )
        return Shot(
            stamp_ns,
            make_picture(color),
            T_map_camera,
            whole,
            own,
            np.zeros(self.view.x.shape, bool),
            np.zeros(self.view.x.shape, np.float32),
        )

    def _judge(self, now: Shot, before: Shot, last: Shot, around: Surroundings) -> Evidence:
        """Measured against static motion. A single camera's depth comes from time and bends to what
        moves: there only flow is judged."""
        p, view = self._p, self.view
        T = inverse(before.T_map_camera) @ now.T_map_camera
        road = see_road(view, around.plane, p.ground_noise, p.ground_noise / 10)
        known = np.isfinite(now.whole.q)
        guess = np.where(known, now.whole.q, road.q)
        # Where a camera alone matched nothing the search starts from what lies around: smooth sides
        # of things keep together.
        static = np.stack(
            static_flow(
                view, guess if now.depth is not None or not known.any() else fill_in(now.whole.q), T
            ),
            -1,
        )
        flow = self._meter.measure(now.picture, before.picture, static)
        residual = static_residual(view, flow, T, around.pose_sigma, road, now.depth, before.depth)
        weak = p.weak_sigma**2
        if np.count_nonzero(residual.chi2 > weak) < 4:
            return Evidence(T, flow, road, static, residual, residual.chi2)
        grey = now.picture.grid.astype(np.float32)
        alternative = static_alternative(
            view,
            self._meter,
            grey,
            before.picture.grid,
            flow,
            residual,
            T,
            road,
            now.depth,
            before.depth,
            guess,
        )
        chi2 = np.minimum(residual.chi2, alternative)
        pixels = np.flatnonzero(chi2 > weak)
        hidden = hidden_before(view, pixels, guess.ravel()[pixels], T, now.whole.q, before.whole.q)
        chi2.ravel()[pixels[hidden]] = 0
        if now.depth is None:  # its memory is its belief
            return Evidence(T, flow, road, static, residual, chi2)
        share = np.float32((now.stamp_ns - last.stamp_ns) / (now.stamp_ns - before.stamp_ns))
        remembered = cv2.remap(last.score, *ends(share * flow.u, share * flow.v), cv2.INTER_NEAREST)
        # What moves goes on moving: the excess over chance is carried along the flow, and fades
        # where nothing renews it.
        chi2 = np.where(
            chi2 > CHANCE,
            chi2 + np.float32(p.memory) * np.maximum(remembered - np.float32(CHANCE), 0),
            chi2,
        )
        np.minimum(chi2, 100, out=now.score)
        return Evidence(T, flow, road, static, residual, chi2)

    def _regions(self, now: Shot, evidence: Evidence, around: Surroundings) -> tuple[Regions, Mask]:
        """Regions of a camera with a partner, and the pixels [h, w] that need no second image to be
        believed."""
        p, view = self._p, self.view
        weak = evidence.chi2 > p.weak_sigma**2
        now.candidates[:] = cv2.dilate(weak.astype(np.uint8), np.ones((5, 5), np.uint8))
        sure = in_boxes(view, now.T_map_camera, around.tracks, now.whole.q, weak)
        np.logical_or(now.candidates, sure, out=now.candidates)
        return join(find_regions(evidence.chi2, p.weak_sigma, p.strong_sigma, 3), sure), sure

    def _regions_alone(
        self,
        now: Shot,
        before: Shot,
        last: Shot,
        color: NDArray[np.uint8],
        evidence: Evidence,
        around: Surroundings,
    ) -> Regions:
        """Regions of a camera that looks alone. color: the working image."""
        p, view = self._p, self.view
        test = hold_against_road(view, self._meter, now.picture, before.picture, evidence)
        height = _height(view, around.plane) if around.plane is not None else 0.0
        share = (now.stamp_ns - last.stamp_ns) / (now.stamp_ns - before.stamp_ns)
        now.belief = believe(
            view,
            np.asarray(cv2.pyrDown(color), np.uint8),
            evidence,
            test,
            height,
            p,
            last.belief,
            before.belief,
            share,
        )
        now.candidates[:] = cv2.dilate(now.belief.mask.astype(np.uint8), np.ones((5, 5), np.uint8))
        _, labels, stats = components(now.belief.mask)
        large = stats[:, cv2.CC_STAT_AREA] >= SMALLEST
        large[0] = False
        return relabel(labels, large, stats)

    def _accept(
        self,
        now: Shot,
        before: Shot,
        last: Shot,
        evidence: Evidence,
        regions: Regions,
        sure: Mask,
        around: Surroundings,
    ) -> tuple[Mask, list[Detection]]:
        """Regions that are large and near enough and were there before, with the outline of their
        object."""
        p, view, flow = self._p, self.view, evidence.flow
        seconds = (now.stamp_ns - before.stamp_ns) * 1e-9
        share = (now.stamp_ns - last.stamp_ns) * 1e-9 / seconds
        sight = Sight(
            self.camera,
            view,
            now.T_map_camera,
            before.T_map_camera,
            seconds,
            flow,
            see_road(view, around.ground, p.ground_noise, p.ground_noise / 10)
            if around.plane is None
            else evidence.road,
            around.ground,
            now.depth,
            before.depth,
        )
        found: list[Detection] = []
        moving = np.zeros(view.x.shape, np.uint8)
        ranges = np.zeros(view.x.shape, np.float32)
        for label, box in enumerate(regions.boxes, start=1):
            left, top, width, high = (int(b) for b in box)
            window = np.s_[top : top + high, left : left + width]
            inside = regions.labels[window] == label
            if inside.sum() < 6:
                continue
            extent = find_extent(sight, inside, box, p)
            if extent is None:
                continue
            moves = -1.0 if now.belief is None else float(now.belief.moves[window][inside].mean())
            if (
                moves < CERTAIN
                and sure[window][inside].mean() < 0.3
                and not _seen_moving(last, flow, share, window, inside)
            ):
                continue
            belief = (
                float(1 - np.exp(-np.median(evidence.chi2[window][inside]) / 50))
                if now.belief is None
                else (moves + 1) / 2
            )
            found.append(
                lift(
                    sight,
                    label,
                    inside,
                    box,
                    extent,
                    max(belief, 0.5 if sure[window][inside].any() else 0.0),
                )
            )
            ranges[window][inside] = extent.q
            if now.depth is None:
                # Its outline is the picture's already; static flow follows matched depth, bent to
                # the dynamic object's motion: nothing competes.
                moving[window] |= inside
            else:
                self._outline(moving, now, before, evidence, inside, box, sure)
        now.found = points_of(view, now.T_map_camera, ranges)
        moving = fill_holes(moving)
        if now.depth is not None and around.plane is not None:
            height = np.float32(_height(view, around.plane))
            with np.errstate(invalid="ignore"):
                moving[
                    (now.whole.q - evidence.road.q) * height < np.float32(ROAD_SKIN) * now.whole.q
                ] = 0
        return moving.astype(bool), found

    def _outline(
        self,
        moving: NDArray[np.uint8],
        now: Shot,
        before: Shot,
        evidence: Evidence,
        region: Mask,
        box: NDArray[np.int32],
        sure: Mask,
    ) -> None:
        """Draw a region, grown and trimmed to its object's outline, into `moving` [h, w]. region:
        [bh, bw] inside box."""
        h, w = moving.shape
        left, top, width, height = (int(b) for b in box)
        border = 3 + int(0.25 * max(width, height))
        x0, x1, y0, y1 = (
            max(left - border, 0),
            min(left + width + border, w),
            max(top - border, 0),
            min(top + height + border, h),
        )
        window = np.s_[y0:y1, x0:x1]
        inside = np.zeros((y1 - y0, x1 - x0), bool)
        inside[top - y0 : top - y0 + height, left - x0 : left - x0 + width] = region
        core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if core.sum() < 6:
            core = inside
        flow = evidence.flow
        mover = affine_flow(
            flow.u[window], flow.v[window], np.where(core, (flow.wuu + flow.wvv)[window], 0)
        )
        distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 3)
        prior = np.where(inside, 1.5, -0.5 - distance).astype(np.float32)
        shape = competing_shape(
            now.picture.grid.astype(np.float32),
            before.picture.grid,
            (x0, y0, x1 - x0, y1 - y0),
            mover,
            evidence.static[window],
            prior,
            self._p.image_noise * 1.5,
        )
        moving[window] |= shape | (sure[window] & inside)


class _Stamped(Protocol):
    @property
    def stamp_ns(self) -> int: ...


S = TypeVar("S", bound=_Stamped)


def comparable(shots: Sequence[S], stamp_ns: int, baseline: float) -> list[S]:
    """Those of a camera's images, oldest first, that its image at `stamp_ns` and later ones may be
    compared with: the first is the one for this image, `baseline` seconds older if images come that
    fast, the last is the newest. Empty if none is new enough."""
    near = [shot for shot in shots if 0 < (stamp_ns - shot.stamp_ns) * 1e-9 < LONGEST_GAP]
    old = sum((stamp_ns - shot.stamp_ns) * 1e-9 > baseline - 0.02 for shot in near)
    return near[max(old - 1, 0) :]


def _height(view: View, plane: Array) -> float:
    """Of a camera over the road, metres."""
    return float(plane[:3] @ view.T_base_camera[:3, 3] + plane[3])


def _seen_moving(
    last: Shot, flow: Flow, share: float, window: tuple[slice, slice], inside: Mask
) -> bool:
    """Whether a region had candidates in the last image too, in place or `share` of its flow back:
    what flickers is noise."""
    h, w = last.candidates.shape
    vs, us = np.nonzero(inside)
    vs, us = vs + window[0].start, us + window[1].start
    x = np.clip(np.rint(us + share * flow.u[vs, us]), 0, w - 1).astype(np.intp)
    y = np.clip(np.rint(vs + share * flow.v[vs, us]), 0, h - 1).astype(np.intp)
    return bool(max(last.candidates[y, x].mean(), last.candidates[vs, us].mean()) > 0.4)
