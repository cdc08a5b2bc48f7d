"""From residuals to regions with the shape of an object."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Regions:
    """labels: [h, w] int32, 0 = static, 1..count. boxes: [count, 4] int (left, top, width, height)
    in grid pixels; index 0 is label 1."""

    labels: NDArray[np.int32]
    boxes: NDArray[np.int32]

    @property
    def count(self) -> int:
        return len(self.boxes)


def find_regions(chi2: Plane, weak: float, strong: float, smallest: int) -> Regions:
    """Connected regions above `weak` standard deviations that hold at least `smallest` pixels above
    `strong` (hysteresis).

    chi2: [h, w] squared residuals. Single pixels are voted down by their neighbours first (median
    over 3x3).
    """
    score = cv2.medianBlur(chi2, 3)
    candidates = (score > weak * weak).astype(np.uint8)
    count, labels, stats = components(
        cv2.morphologyEx(candidates, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
    )
    seeds = np.bincount(labels.ravel(), weights=(score > strong * strong).ravel(), minlength=count)
    keep = (seeds >= smallest) & (stats[:, cv2.CC_STAT_AREA] >= 2 * smallest)
    keep[0] = False
    return relabel(labels, keep, stats)


def join(regions: Regions, more: NDArray[np.bool_]) -> Regions:
    """Regions with the pixels of `more` [h, w], connected anew."""
    if not more.any():
        return regions
    _, labels, stats = components((regions.labels > 0) | more)
    return Regions(labels, stats[1:, :4])


def components(mask: NDArray[np.bool_]) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """Connected pixels (by sides) of a mask [h, w]: how many labels there are, 0 included; labels
    [h, w]; statistics [count, 5]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S
    )
    return count, np.asarray(labels, np.int32), np.asarray(stats, np.int32)


def relabel(
    labels: NDArray[np.int32], keep: NDArray[np.bool_], stats: NDArray[np.int32]
) -> Regions:
    """Only the labels in `keep` ([count] bool, 0 never), renumbered from 1."""
    number = np.zeros(len(keep), np.int32)
    number[keep] = np.arange(1, int(keep.sum()) + 1, dtype=np.int32)
    return Regions(number[labels], stats[keep, :4].astype(np.int32))


def fill_holes(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Everything inside the outer contours of a 0/1 mask."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED), np.uint8)


def affine_flow(u: Plane, v: Plane, weight: Plane) -> NDArray[np.float64]:
    """The affine motion [2, 3] (u = A (x, y, 1), window coordinates) nearest to flow u, v [h, w] in
    least squares; one Tukey round."""
    ys, xs = np.nonzero(weight > 0)
    design = np.column_stack([xs, ys, np.ones(len(xs))]).astype(np.float64)
    target = np.column_stack([u[ys, xs], v[ys, xs]]).astype(np.float64)
    w = weight[ys, xs].astype(np.float64)
    middle = np.median(target, axis=0)
    # Few pixels say nothing of the slopes: a prior draws these to zero, about the median.
    prior = np.diag([1.0, 1.0, 0.0]) * w.mean() * 40.0
    centre = design - np.array([xs.mean(), ys.mean(), 0.0])
    solution = np.vstack([np.zeros((2, 2)), middle])
    for _ in range(2):
        rest = np.hypot(*(target - centre @ solution).T)
        scale = 3 * (1.48 * np.median(rest) + 0.1)
        tukey = w * np.square(np.maximum(1 - np.square(rest / scale), 0))
        weighted = centre * tukey[:, None]
        solution = np.linalg.solve(
            centre.T @ weighted + prior + 1e-9 * np.eye(3), weighted.T @ target
        )
    solution[2] -= solution[:2].T @ np.array([xs.mean(), ys.mean()])
    return solution.T


def competing_shape(
    now: Plane,
    before: NDArray[np.uint8],
    box: tuple[int, int, int, int],
    mover: NDArray[np.float64],
    static_flow: NDArray[np.float32],
    prior: Plane,
    noise: float,
) -> NDArray[np.bool_]:
    """Pixels of a window that the dynamic object's motion explains better than a static world does.

    box: left, top, width, height of the window in the motion grid. mover: its affine flow in
    window coordinates. static_flow: [height, width, 2]. prior: [height, width], log-odds from the
    region itself. noise: grey levels. Both motions warp the previous image onto the current one;
    the difference of their squared errors, summed over 3x3, is a log-likelihood ratio."""
    left, top, width, height = box
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    here = now[top : top + height, left : left + width]

    def error(u: Plane, v: Plane) -> Plane:
        warped = cv2.remap(
            before,
            (xs + left + u).astype(np.float32),
            (ys + top + v).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.minimum(np.square((here - warped) / np.float32(noise)), 25)

    static = error(static_flow[..., 0], static_flow[..., 1])
    moving = error(
        mover[0, 0] * xs + mover[0, 1] * ys + mover[0, 2],
        mover[1, 0] * xs + mover[1, 1] * ys + mover[1, 2],
    )
    odds = cv2.blur(static - moving, (3, 3)) + prior
    return cv2.GaussianBlur(odds, (5, 5), 0) > 0
