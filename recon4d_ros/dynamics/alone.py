"""What a camera that has no second view can tell: flow against the road, against what stands on it,
and what was known before."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.evidence import Evidence
from recon4d_ros.dynamics.flow import INDEPENDENT, Flow, FlowMeter, Picture, ends
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.residual import static_flow
from recon4d_ros.dynamics.spreading import spread_near
from recon4d_ros.dynamics.stixels import judge_runs, usable_depth
from recon4d_ros.dynamics.views import View

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

HORIZON = 0.02
"""Inverse depth of the road, 1/m, below which no pixel is held against it."""

LIKELY = 4.0
"""Chi-square up to which the road explains a pixel as well as flow does."""

ON_ROAD = -1.5
"""Evidence of a pixel that is the road, in the units of `believe`'s."""

AT_REST = 0.01
"""Metres that a camera moved between two images below which no depth matters: flow of what stands
is that of the rotation alone, within a pixel even a metre away."""

CARRIED = 0.1
"""Evidence of a pixel that was believed to move in the last image, in the units of `believe`'s."""

KEPT = 0.9
"""Share of the distance between belief and "stands" that is the prior of the next image: what moves
goes on moving, even out of sight of its foot, but is doubted in half a second unless evidence
renews it."""

OTHER = 0.3
"""Relative change of inverse depth by flow from image to image that makes it another thing, whose
belief is not taken over."""

RECENT = 0.3
"""Belief in the last image from which a pixel without evidence of its own is not taken to stand."""

AROUND = 15
"""Side in pixels of the window whose farthest thing is what a dynamic object may have hidden."""

MATCHED, ALIKE = (0.8, 0.1), (2.0, 0.3)
"""Shares of the image's noise and of a window's contrast: flow that errs by less than either fits
well, or may fit."""

UNKNOWN = np.float32(10)
"""Inverse depth, 1/m, beyond all that is known."""

SMOOTHED = 0.3
"""Share of the last image's evidence of what stands or floats: a single image's may be chance."""


@dataclass(frozen=True, eq=False)
class Belief:
    """What is believed of one image, [h, w] each. standing: evidence of floating (> 0) or standing
    (< 0). moves: in -1..1. mask: bool.

    q: inverse depth by flow, 1/m, 0 where it says too little.
    """

    standing: Plane
    moves: Plane
    mask: Mask
    q: Plane


@dataclass(frozen=True, eq=False)
class RoadTest:
    """Pixels [h, w] held against the road as the previous image would show it.

    seen: they are the road, by their texture. possible: they may be. worse: chi-square of the road
    against flow, inf where not asked. u, v: flow of the road. contrast: grey levels.
    """

    seen: Mask
    possible: Mask
    worse: Plane
    u: Plane
    v: Plane
    contrast: Plane


def hold_against_road(
    view: View, meter: FlowMeter, now: Picture, before: Picture, evidence: Evidence
) -> RoadTest:
    """Warp the previous image as the road would move, and compare with what flow explains."""
    flow, road = evidence.flow, evidence.road
    grey = now.grid.astype(np.float32)
    h, w = grey.shape
    u, v = static_flow(view, road.q, evidence.T)
    xs, ys = ends(u, v)
    asked = (road.q > HORIZON) & (xs > 0) & (xs < w - 1) & (ys > 0) & (ys < h - 1)
    error = meter.error(grey, before.grid, u, v)
    noise = np.maximum(flow.error, np.float32(meter.image_noise))
    worse = (
        np.maximum(error * error - flow.error * flow.error, 0)
        / (noise * noise)
        * np.float32(INDEPENDENT)
    )
    mean = cv2.boxFilter(grey, -1, (5, 5))
    contrast = np.sqrt(np.maximum(cv2.boxFilter(grey * grey, -1, (5, 5)) - mean * mean, 0))
    possible = asked & (worse < LIKELY)
    seen = possible & (error < 2 * meter.image_noise) & (contrast > 0.8 * meter.image_noise)
    return RoadTest(seen, possible, np.where(asked, worse, np.float32(np.inf)), u, v, contrast)


def believe(
    view: View,
    color: NDArray[np.uint8],
    seen: Evidence,
    test: RoadTest,
    height: float,
    parameters: DynamicsParameters,
    last: Belief | None,
    before: Belief | None,
    share: float,
) -> Belief:
    """What moves in one image. color: [h, w, 3]. seen: against the earlier image, its residual by
    flow alone. height: of the camera, m.

    last: of the last image, which lies `share` of the flow back, or None. before: of the image that
    flow ends in, or None.
    """
    flow, residual, road, noise = seen.flow, seen.residual, seen.road, parameters.image_noise
    q, known = usable_depth(residual)
    over = (
        np.float32(height) * (1 - road.q / np.maximum(q, np.float32(1e-3))) > parameters.clearance
    )
    nearer = q - road.q
    rises = (
        known
        & over
        & (nearer > 0)
        & (
            nearer * nearer
            > 9 * (np.square(np.minimum(residual.sigma, np.float32(0.1))) + road.sigma**2)
        )
    )
    on_road = test.seen & ~rises
    standing = judge_runs(
        q, known, residual.sigma, road, on_road, test.possible, height, parameters.clearance
    )
    score = cv2.medianBlur(np.minimum(seen.chi2, test.worse).astype(np.float32), 3)
    evidence = np.clip((score - np.float32(parameters.weak_sigma**2)) / 16, 0, 3)
    xs, ys = ends(np.float32(share) * flow.u, np.float32(share) * flow.v)
    if last is not None:
        standing = (1 - SMOOTHED) * standing + SMOOTHED * cv2.remap(
            last.standing, xs, ys, cv2.INTER_NEAREST
        )
    if before is not None and before.mask.any():
        hidden, unmatched = _hidden_by(before.mask, view, q, known, seen, test, noise)
        evidence = np.where(hidden | unmatched, 0, evidence)
        standing = np.where(unmatched, 0, standing)
    evidence = evidence + standing / 5 + np.where(on_road, np.float32(ON_ROAD), 0)
    fits = residual.inside & (seen.chi2 < LIKELY)
    if np.linalg.norm(seen.T[:3, 3]) < AT_REST:
        # Nothing but standing explains texture that stays in its place, if it would have shown a
        # pixel of motion in any direction: an edge does not.
        stays = fits & (_least_information(flow) > parameters.weak_sigma**2)
        evidence = np.where(stays & (evidence < 0.2), np.float32(ON_ROAD), evidence)
    stands = evidence <= 0
    prior = np.full(q.shape, -1, np.float32)
    if last is not None:
        moved = _remembered(last, q, xs, ys)
        goes_on = evidence > -0.2
        evidence = evidence + np.where(goes_on, CARRIED * np.maximum(moved, 0), 0)
        prior = np.where(goes_on, KEPT * (moved + 1) - 1, prior).astype(np.float32)
        stands &= moved < RECENT
    moves = spread_near(color, q, known, np.asarray(evidence, np.float32), prior)
    # A superpixel may reach over an outline: pixels with texture of their own, which stand as far
    # as can be seen, are not the dynamic object.
    still = fits & (test.contrast > 2 * noise) & stands
    mask = ((moves > 0) & ~on_road & ~still).astype(np.uint8)
    return Belief(standing.astype(np.float32), moves, cv2.medianBlur(mask, 5) > 0, q)


def _least_information(flow: Flow) -> Plane:
    """Smaller eigenvalue [h, w] of the flow's information, 1/px^2."""
    half = (flow.wuu + flow.wvv) / 2
    return half - np.sqrt(np.square((flow.wuu - flow.wvv) / 2) + np.square(flow.wuv))


def _remembered(last: Belief, q: Plane, xs: Plane, ys: Plane) -> Plane:
    """Belief [h, w] of the last image at xs, ys, -1 outside; at most 0 where inverse depth q says
    that another thing was there."""
    moved = cv2.remap(
        last.moves, xs, ys, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=-1
    )
    before = cv2.remap(last.q, xs, ys, cv2.INTER_NEAREST)
    other = (
        (q > 0)
        & (before > 0)
        & (np.abs(q - before) > OTHER * np.maximum(np.maximum(q, before), np.float32(0.03)))
    )
    return np.asarray(np.where(other, np.minimum(moved, 0), moved), np.float32)


def _hidden_by(
    moving: Mask, view: View, q: Plane, known: Mask, seen: Evidence, test: RoadTest, noise: float
) -> tuple[Mask, Mask]:
    """Pixels [h, w] that `moving` hid from the image that flow ends in, and that look like
    nothing there: they are no dynamic objects.

    First what may be road and fits nothing well; then what may lie as far as the farthest thing
    around it, or on the road, and fits nothing at all: even its inverse depth is then the dynamic
    object's, whose flow reaches beyond its outline."""

    def fits(noise_share: float, contrast_share: float) -> Mask:
        return np.asarray(
            seen.flow.error
            < np.maximum(
                np.float32(noise_share * noise), np.float32(contrast_share) * test.contrast
            )
        )

    grown = cv2.dilate(moving.astype(np.uint8), np.ones((3, 3), np.uint8))
    on_road = cv2.remap(grown, *ends(test.u, test.v), cv2.INTER_NEAREST) > 0
    farthest = np.asarray(
        cv2.erode(np.where(known, q, UNKNOWN), np.ones((AROUND, AROUND), np.uint8)), np.float32
    )
    behind = np.maximum(np.where(farthest < UNKNOWN, farthest, np.float32(0)), seen.road.q)
    farther = cv2.remap(grown, *ends(*static_flow(view, behind, seen.T)), cv2.INTER_NEAREST) > 0
    return on_road & np.isfinite(test.worse) & ~fits(*MATCHED), farther & ~fits(*ALIKE)
