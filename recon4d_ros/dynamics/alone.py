"""What a camera that has no second view can tell: flow against the road, against what stands on it, and what was known before."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import INDEPENDENT, Flow, FlowMeter, Picture
from recon4d_ros.dynamics.residual import Residual, Road, static_flow
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
"""Evidence of a pixel that is the road, in the units of `Belief.evidence`."""

CARRIED = 0.4
"""Share of the belief that something moves that is carried from image to image."""

SMOOTHED = 0.3
"""Share of the last image's evidence of what stands or floats: a single image's may be chance."""


@dataclass(frozen=True, eq=False)
class Belief:
    """What is believed of one image, [h, w] each. standing: evidence of floating (> 0) or standing (< 0). moves: in -1..1. mask: bool."""

    standing: Plane
    moves: Plane
    mask: Mask


@dataclass(frozen=True, eq=False)
class RoadTest:
    """Pixels [h, w] held against the road as the previous image would show it.

    seen: they are the road, by their texture. possible: they may be. worse: chi-square of the road against flow, inf where not asked.
    u, v: flow of the road. contrast: grey levels.
    """

    seen: Mask
    possible: Mask
    worse: Plane
    u: Plane
    v: Plane
    contrast: Plane


def hold_against_road(view: View, meter: FlowMeter, now: Picture, before: Picture, flow: Flow, road: Road,
                      T_previous_current: NDArray[np.float64]) -> RoadTest:
    """Warp the previous image as the road would move, and compare with what flow explains."""
    grey = now.grid.astype(np.float32)
    h, w = grey.shape
    u, v = static_flow(view, road.q, T_previous_current)
    xs, ys = _moved(u, v)
    asked = (road.q > HORIZON) & (xs > 0) & (xs < w - 1) & (ys > 0) & (ys < h - 1)
    error = meter.error(grey, before.grid, u, v)
    noise = np.maximum(flow.error, np.float32(meter.image_noise))
    worse = np.maximum(error * error - flow.error * flow.error, 0) / (noise * noise) * np.float32(INDEPENDENT)
    mean = cv2.boxFilter(grey, -1, (5, 5))
    contrast = np.sqrt(np.maximum(cv2.boxFilter(grey * grey, -1, (5, 5)) - mean * mean, 0))
    possible = asked & (worse < LIKELY)
    seen = possible & (error < 2 * meter.image_noise) & (contrast > 0.8 * meter.image_noise)
    return RoadTest(seen, possible, np.where(asked, worse, np.float32(np.inf)), u, v, contrast)


def believe(color: NDArray[np.uint8], flow: Flow, residual: Residual, chi2: Plane, road: Road, test: RoadTest, height: float,
            clearance: float, weak: float, noise: float,
            last: Belief | None, before: Belief | None, share: float) -> Belief:
    """What moves in one image. color: [h, w, 3]. chi2: [h, w] that no static world explains. residual: by flow alone.

    height: of the camera over the road, metres. weak: standard deviations from which chi2 counts. noise: grey levels of the image.
    last: of the last image, which lies `share` of the flow back, or None. before: of the image that flow ends in, or None.
    """
    q, known = usable_depth(residual)
    over = np.float32(height) * (1 - road.q / np.maximum(q, np.float32(1e-3))) > clearance
    nearer = q - road.q
    rises = known & over & (nearer > 0) & (nearer * nearer > 9 * (np.square(np.minimum(residual.sigma, np.float32(0.1))) + road.sigma**2))
    on_road = test.seen & ~rises
    standing = judge_runs(q, known, residual.sigma, road, on_road, test.possible, height, clearance)
    score = cv2.medianBlur(np.minimum(chi2, test.worse).astype(np.float32), 3)
    evidence = np.clip((score - np.float32(weak**2)) / 16, 0, 3)
    xs, ys = _moved(np.float32(share) * flow.u, np.float32(share) * flow.v)
    if last is not None:
        standing = (1 - SMOOTHED) * standing + SMOOTHED * cv2.remap(last.standing, xs, ys, cv2.INTER_NEAREST)
    if before is not None:
        # Road that a mover hid in that image looks like nothing there, and is no mover.
        movers = cv2.dilate(before.mask.astype(np.uint8), np.ones((3, 3), np.uint8))
        covered = cv2.remap(movers, *_moved(test.u, test.v), cv2.INTER_NEAREST) > 0
        matched = flow.error < np.maximum(np.float32(0.8 * noise), np.float32(0.1) * test.contrast)
        evidence = np.where(covered & np.isfinite(test.worse) & ~matched, 0, evidence)
    evidence = evidence + standing / 5 + np.where(on_road, np.float32(ON_ROAD), 0)
    stands = evidence <= 0
    if last is not None:
        moved = np.maximum(cv2.remap(last.moves, xs, ys, cv2.INTER_NEAREST), 0)
        evidence = evidence + np.where(evidence > -0.2, CARRIED * moved, 0)
    standing = standing.astype(np.float32)
    moves = spread_near(color, q, known, np.asarray(evidence, np.float32))
    # A superpixel may reach over an outline: pixels with texture of their own, which stand as far as can be seen, are not the mover.
    still = residual.inside & (chi2 < LIKELY) & (test.contrast > 2 * noise) & stands
    mask = ((moves > 0) & ~on_road & ~still).astype(np.uint8)
    return Belief(standing, moves, cv2.medianBlur(mask, 5) > 0)


def _moved(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Pixel coordinates that flow [h, w] ends at."""
    h, w = u.shape
    return np.arange(w, dtype=np.float32)[None, :] + u, np.arange(h, dtype=np.float32)[:, None] + v
