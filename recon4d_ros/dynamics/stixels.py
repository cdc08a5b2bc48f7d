"""What stands on the road, column by column: the cue for motion along the epipolar line, which one
camera alone cannot see.

Flow alone gives every pixel the depth that it would have if nothing moved. A run of like depth in
one column (a stixel: Badino, Franke and Pfeiffer, The Stixel World, 2009) ends at a foot, and where
the foot meets the road says how far away the run really is. What comes towards the camera seems
nearer than its foot: it floats. What drives along seems farther: it is sunk into the road. What
stands still seems as far as its foot, and that is evidence too.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.residual import Residual, Road

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

NEAREST, FARTHEST = 2.0, 1e-3
"""Inverse depths, 1/m, beyond which nothing is told apart."""

STEP = 0.15
"""Relative step of inverse depth from one pixel to the next that ends a run; farther than 250 m all
is one."""

FLAT = 0.25
"""Metres above or below the road that still count as the road."""

SHORTEST = 3
"""Pixels of a run, and pixels of it below the road, that say something."""

WIDTH = 2
"""Pixels of the motion grid from one column that is judged to the next: things are wider than
one."""

UNDER = (2, 4, 6)
"""Pixels below a foot at which the road is looked for; two of the three must be it."""

DIPS = 0.2
"""Metres that the road may lie lower than its plane: what is deeper is sunk."""

CORRELATED = 6.0
"""Neighbouring flows err together: so many pixels count as one."""

MOST = 5.0
"""Standard deviations above which more of them add nothing."""

STANDS = -6.0
"""Evidence of a run that stands where its foot is."""


def usable_depth(residual: Residual) -> tuple[Plane, Mask]:
    """Inverse depth [h, w] by flow alone, 1/m, 0 where it says too little; and where it is
    known."""
    known = (
        residual.sigma < 0.4 * np.maximum(np.abs(residual.q), np.float32(0.03))
    ) & residual.inside
    q = np.where(known, np.clip(residual.q, FARTHEST, NEAREST), 0).astype(np.float32)
    return np.asarray(cv2.medianBlur(q, 3), np.float32), known


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of like depth, column by column, each column from the top. at: [K] flat indices, into
    [h, w], of the pixels of all runs.

    number: [K] int, run of each pixel, from 0. last: [R] position in `at` of each run's lowest
    pixel.
    """

    at: NDArray[np.intp]
    number: NDArray[np.intp]
    last: NDArray[np.intp]


def find_runs(q: Plane, body: Mask) -> Runs:
    """Runs of inverse depth q [h, w] among the pixels `body` [h, w]."""
    h, w = q.shape
    column, row = np.divmod(np.flatnonzero(body.T), h)
    at = row * w + column
    values = q.ravel()[at]
    ends = np.ones(len(at), bool)
    below, above = values[1:], values[:-1]
    ends[:-1] = (np.diff(at) != w) | (
        np.abs(below - above) > STEP * np.maximum(below, above) + np.float32(0.004)
    )
    number = np.cumsum(ends) - ends
    return Runs(at, number, np.flatnonzero(ends))


def judge_runs(
    q: Plane,
    known: Mask,
    sigma: Plane,
    road: Road,
    road_seen: Mask,
    road_possible: Mask,
    height: float,
    clearance: float,
) -> Plane:
    """`judge_columns` on every second column, for its neighbour too. Nothing where the road is not
    known: height 0."""
    if height <= 0:
        return np.zeros_like(q)
    some = np.s_[:, ::WIDTH]
    here = Road(road.q[some], road.sigma[some])
    found = judge_columns(
        q[some],
        known[some],
        sigma[some],
        here,
        road_seen[some],
        road_possible[some],
        height,
        clearance,
    )
    return np.repeat(found, WIDTH, axis=1)[:, : q.shape[1]]


def judge_columns(
    q: Plane,
    known: Mask,
    sigma: Plane,
    road: Road,
    road_seen: Mask,
    road_possible: Mask,
    height: float,
    clearance: float,
) -> Plane:
    """Evidence [h, w] in standard deviations, at most 2 * MOST: above zero for what floats or is
    sunk, below for what stands, else zero.

    q, known, sigma: as flow alone has it, 1/m. road_seen, road_possible: [h, w] bool, pixels that
    are the road, and that may be. height: of the camera over the road, metres. clearance: metres
    that static things may have between the road and their lowest visible edge.
    """
    h = q.shape[0]
    above = np.where(
        known,
        np.float32(height) * (1 - road.q / np.maximum(q, np.float32(FARTHEST))),
        np.float32(np.inf),
    )
    flat = np.abs(above) < FLAT
    # What rises like the road is the road, but a wall or a car passes its height too.
    rises, road_rises = np.zeros_like(q), np.zeros_like(q)
    rises[2:-2], road_rises[2:-2] = q[4:] - q[:-4], road.q[4:] - road.q[:-4]
    body = known & (q > 0) & ~road_seen & ~(flat & (rises > 0.5 * road_rises) & (road_rises > 0))
    runs = find_runs(q, body)
    at, number, count = runs.at, runs.number, len(runs.last)
    depths, road_q = q.ravel()[at], road.q.ravel()[at]
    information = 1 / np.square(sigma.ravel()[at])
    total = np.bincount(number, information, count)
    mean = np.maximum(np.bincount(number, information * depths, count) / total, FARTHEST)
    doubt = np.sqrt(CORRELATED / total)
    solid = np.bincount(number, minlength=count) >= SHORTEST

    v, u = np.divmod(at[runs.last], q.shape[1])
    contact = np.minimum(v + 1, h - 1), u
    like_road = road_seen | (known & flat) | (road_possible & ~known)
    under = sum(like_road[np.minimum(v + step, h - 1), u].astype(np.int32) for step in UNDER)
    foot = solid & (under >= 2) & (road.q[contact] > 0.03) & (v < h - 3)
    lift = height * (1 - road.q[contact] / mean)
    lift_doubt = np.maximum(
        height * road.q[contact] / mean**2 * np.hypot(doubt, road.sigma[contact]), 0.05
    )
    floats = np.where(foot, np.clip((lift - clearance) / lift_doubt, 0, MOST), 0)

    # Only below the horizon, and only runs whose foot is below where they would stand, can be sunk.
    low = np.flatnonzero((road_q > depths * np.float32(0.9)) & (road_q > 0))
    here, nearer = number[low], road_q[low]
    far = mean[here]
    deep = (
        (height * (nearer / far - 1) > DIPS)
        & (np.abs(depths[low] - far) < 0.12 * far)
        & (nearer - far > 2 * np.hypot(doubt[here] + 0.02 * far, road.sigma.ravel()[at[low]]))
    )
    depth = np.bincount(here, deep, count)
    sinks = np.where(solid & (depth >= SHORTEST), np.minimum(depth, MOST), 0)

    stands = foot & (np.abs(lift) < FLAT) & (lift_doubt < 0.3)
    found = np.where(floats + sinks > 0, floats + sinks, np.where(stands, STANDS, 0)).astype(
        np.float32
    )
    evidence = np.zeros_like(q)
    evidence.ravel()[at] = found[number]
    # One column may err; its neighbours vote.
    return np.asarray(cv2.medianBlur(evidence, 3), np.float32)
