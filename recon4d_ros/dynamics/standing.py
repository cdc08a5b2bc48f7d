"""What stands on the road and where its foot is: the cue for motion along the epipolar line, which one camera alone cannot see.

A car that comes towards the camera is matched over time as if it were nearer and smaller: its picture then floats above the road
that is seen right under it. One that drives ahead is matched farther away, below the road. Nothing static does either.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.regions import Regions, components, join
from recon4d_ros.dynamics.residual import Road

Plane = NDArray[np.float32]

FLAT = 0.25
"""Metres above or below the road that still count as the road."""


@dataclass(frozen=True)
class Standing:
    """Pieces of one depth each. labels: [h, w] int32, 0 = road or nothing. stats: [count, 5] of OpenCV (left, top, width, height, area).

    floating: [count] metres between the foot as matched over time and the road seen under it, in standard deviations beyond what static
    things do; 0 where no road is seen under it.
    """

    labels: NDArray[np.int32]
    stats: NDArray[np.int32]
    floating: NDArray[np.float64]


def find_standing(q: Plane, sigma: Plane, road: Road, height: float, clearance: float) -> Standing:
    """Pieces of the depth image that rise from the road, each without a step in depth inside.

    q, sigma: [h, w] inverse depth, NaN = none. height: of the camera over the road, metres. clearance: metres that static things
    may have between the road and their lowest visible edge.
    """
    filled = np.asarray(cv2.medianBlur(np.nan_to_num(q, nan=0.0), 5), np.float32)
    known = filled > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.where(known, np.float32(height) * (1 - road.q / filled), np.float32(0))
    off_road = known & (np.abs(above) > FLAT)
    low, high = cv2.erode(filled, np.ones((2, 2), np.uint8)), cv2.dilate(filled, np.ones((2, 2), np.uint8))
    smooth = high - low < 0.2 * high
    # Matching blurs the step from a floating foot to the road: where depth grows downwards it is neither.
    body = np.ones(filled.shape, bool)
    body[3:] = filled[3:] >= 0.93 * filled[:-3]
    smooth &= body
    count, labels, stats = components(off_road & smooth)
    return Standing(labels, stats, _floating(labels, count, above, filled, sigma, road, height, clearance))


def _floating(labels: NDArray[np.int32], count: int, above: Plane, q: Plane, sigma: Plane, road: Road, height: float,
              clearance: float) -> NDArray[np.float64]:
    """Per label: (lower third of the feet's height - clearance) / its standard deviation, if most feet have road below them."""
    h, w = labels.shape
    result = np.zeros(count)
    vs, us = np.nonzero(labels)
    if len(vs) == 0:
        return result
    # np.nonzero goes row by row: the last write to a (label, column) is its lowest pixel.
    key = labels[vs, us].astype(np.int64) * w + us
    order = np.argsort(key, kind="stable")
    last = np.flatnonzero(np.diff(key[order], append=-1))
    foot = order[last]
    label, v, u = labels[vs[foot], us[foot]], vs[foot], us[foot]
    on_road = np.zeros(len(v), bool)
    for step in (2, 4, 6, 9):
        under = np.minimum(v + step, h - 1)
        on_road |= (np.abs(above[under, u]) < FLAT) & (q[under, u] > 0) & (q[under, u] < q[v, u])
    on_road &= road.q[v, u] > 0
    lifted = np.float32(height) * (1 - road.q[v, u] / q[v, u])
    doubt = np.float32(height) * road.q[v, u] / q[v, u] ** 2 * np.hypot(np.nan_to_num(sigma[v, u], nan=0.02), road.sigma[v, u])
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    ends = np.append(starts[1:], len(label))
    for a, b in zip(starts, ends, strict=True):
        use = on_road[a:b]
        if b - a < 3 or use.sum() < 0.5 * (b - a):
            continue
        foot_height = float(np.percentile(lifted[a:b][use], 33))
        result[label[a]] = max(foot_height - clearance, 0) / max(float(np.median(doubt[a:b][use])), 0.03)
    return result


def add_pieces(regions: Regions, standing: Standing, strong: float) -> Regions:
    """Regions with every piece joined to them that floats by over `strong` standard deviations, or of which a good part lies in one."""
    area = np.maximum(standing.stats[:, cv2.CC_STAT_AREA], 1)
    shared = np.bincount(standing.labels.ravel(), weights=(regions.labels > 0).ravel(), minlength=len(area)) / area
    chosen = (standing.floating > strong) | (shared > 0.4)
    chosen[0] = False
    return join(regions, chosen[standing.labels])
