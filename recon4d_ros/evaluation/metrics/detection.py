"""Average precision of boxes by the distance of their centres on the ground plane, as nuScenes has
it (Caesar et al., CVPR 2020, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # metres
LEAST = 0.1  # recall and precision below this count for nothing
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Found:
    """Of all frames together: frame [K], label [K], xy [K, 2] metres; score [K] (of true boxes:
    not asked)."""

    frame: NDArray[np.int64]
    label: NDArray[np.int64]
    xy: NDArray[np.floating]
    score: NDArray[np.floating]


def mean_average_precision(
    found: Found, truth: Found, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[float, dict[int, float]]:
    """Over classes that the truth has and thresholds, and by class over thresholds; NaN without
    truth."""
    by_class = {}
    for label in np.unique(truth.label).tolist():
        ours, theirs = found.label == label, truth.label == label
        by_class[label] = float(
            np.mean(
                [
                    average_precision(
                        found.frame[ours],
                        found.xy[ours],
                        found.score[ours],
                        truth.frame[theirs],
                        truth.xy[theirs],
                        threshold,
                    )
                    for threshold in thresholds
                ]
            )
        )
    return float(np.mean(list(by_class.values()))) if by_class else float("nan"), by_class


def average_precision(
    frame: NDArray[np.int64],
    xy: NDArray[np.floating],
    score: NDArray[np.floating],
    true_frame: NDArray[np.int64],
    true_xy: NDArray[np.floating],
    threshold: float,
) -> float:
    """Of one class. Best first, each takes the nearest true box of its frame that is not taken; it
    is right if that is nearer than the threshold."""
    taken = np.zeros(len(true_frame), bool)
    right = np.zeros(len(frame), bool)
    for place, index in enumerate(np.argsort(-score, kind="stable")):
        free = np.flatnonzero((true_frame == frame[index]) & ~taken)
        if not len(free):
            continue
        apart = np.linalg.norm(true_xy[free] - xy[index], axis=1)
        nearest = int(apart.argmin())
        if apart[nearest] < threshold:
            right[place] = taken[free[nearest]] = True
    if not right.any():
        return 0.0
    hits = np.cumsum(right)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / len(true_frame)
    at = np.interp(RECALLS, recall, precision, right=0.0)
    return float(np.clip(at[RECALLS > LEAST + 1e-9] - LEAST, 0, None).mean() / (1 - LEAST))
