"""From residuals to regions with the shape of an object."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Regions:
    """labels: [h, w] int32, 0 = static, 1..count. boxes: [count, 4] int (left, top, width, height) in grid pixels; index 0 is label 1."""

    labels: NDArray[np.int32]
    boxes: NDArray[np.int32]

    @property
    def count(self) -> int:
        return len(self.boxes)


def find_regions(chi2: Plane, weak: float, strong: float, smallest: int) -> Regions:
    """Connected regions above `weak` standard deviations that hold at least `smallest` pixels above `strong` (hysteresis).

    chi2: [h, w] squared residuals. Single pixels are voted down by their neighbours first (median over 3x3).
    """
    score = cv2.medianBlur(chi2, 3)
    candidates = (score > weak * weak).astype(np.uint8)
    candidates = cv2.morphologyEx(candidates, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(candidates, connectivity=4, ltype=cv2.CV_32S)
    seeds = np.bincount(labels.ravel(), weights=(score > strong * strong).ravel(), minlength=count)
    keep = (seeds >= smallest) & (stats[:, cv2.CC_STAT_AREA] >= 2 * smallest)
    keep[0] = False
    return relabel(labels, keep, stats)


def relabel(labels: NDArray[np.int32], keep: NDArray[np.bool_], stats: NDArray[np.int32]) -> Regions:
    """Only the labels in `keep` ([count] bool, 0 never), renumbered from 1."""
    number = np.zeros(len(keep), np.int32)
    number[keep] = np.arange(1, int(keep.sum()) + 1, dtype=np.int32)
    return Regions(number[labels], stats[keep, :4].astype(np.int32))


def fill_holes(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Everything inside the outer contours of a 0/1 mask."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)
