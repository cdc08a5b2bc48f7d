"""Point clouds against the truth: how near is what is there, how much is missing, and does anything
stand where dynamic objects drove."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_CHUNK = 256


@dataclass(frozen=True)
class CloudScore:
    """accuracy: median m from a map point to the truth; precision: share of map points within
    `threshold`. completion: median m from a true point to the map; recall: share of true points
    within it."""

    accuracy: float
    precision: float
    completion: float
    recall: float
    threshold: float


def score_cloud(
    points: NDArray[np.floating], truth: NDArray[np.floating], threshold: float = 0.3
) -> CloudScore:
    """points [K, 3] against truth [T, 3], in one frame, m."""
    if not len(points) or not len(truth):
        nan = float("nan")
        return CloudScore(nan, nan, nan, nan, threshold)
    to_truth = cKDTree(truth).query(points, workers=-1)[0]
    to_points = cKDTree(points).query(truth, workers=-1)[0]
    return CloudScore(
        float(np.median(to_truth)),
        float(np.mean(to_truth <= threshold)),
        float(np.median(to_points)),
        float(np.mean(to_points <= threshold)),
        threshold,
    )


@dataclass(frozen=True)
class Boxes:
    """Upright boxes. center, size: [B, 3] m (length, width, height). yaw: [B] rad about z."""

    center: NDArray[np.float64]
    size: NDArray[np.float64]
    yaw: NDArray[np.float64]


def inside_boxes(
    points: NDArray[np.floating], boxes: Boxes, shrink: float = 0.1, lift: float = 0.25
) -> NDArray[np.bool_]:
    """[K] True for points [K, 3] within any box. shrink: m taken off every side, lift: m off the
    bottom, where the road is."""
    hit = np.zeros(len(points), bool)
    if not len(points):
        return hit
    tree = cKDTree(points[:, :2])
    half = np.maximum(0.5 * boxes.size - shrink, 0.0)
    reach = np.hypot(half[:, 0], half[:, 1])
    for start in range(0, len(boxes.center), _CHUNK):
        part = slice(start, start + _CHUNK)
        found = tree.query_ball_point(boxes.center[part, :2], reach[part])
        box = start + np.repeat(np.arange(len(found)), [len(near) for near in found])
        point = np.concatenate([np.asarray(near, np.int64) for near in found])
        offset = points[point] - boxes.center[box]
        cos, sin = np.cos(boxes.yaw[box]), np.sin(boxes.yaw[box])
        along = np.abs(cos * offset[:, 0] + sin * offset[:, 1])
        across = np.abs(cos * offset[:, 1] - sin * offset[:, 0])
        bottom = -0.5 * boxes.size[box, 2] + lift
        inside = (
            (along <= half[box, 0])
            & (across <= half[box, 1])
            & (offset[:, 2] >= bottom)
            & (offset[:, 2] <= half[box, 2])
        )
        hit[point[inside]] = True
    return hit
