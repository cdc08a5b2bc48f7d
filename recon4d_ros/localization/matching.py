"""Which features of two frame sets are the same thing."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FARTHEST = 70  # bits of 256 in which two descriptors of one thing differ at most
RATIO = 0.85  # of the distances to the most and the second most alike


def matches(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[NDArray, NDArray]:
    """Indices into descriptors a [A, 32] and b [B, 32] of pairs that are each other's most alike,
    clearly so. (Lowe's ratio, IJCV 2004, section 7.1, seen from both sides.)"""
    if len(a) < 2 or len(b) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    distance, nearest = cv2.batchDistance(a, b, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=2)
    _, back = cv2.batchDistance(b, a, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=1)
    best = nearest[:, 0]
    good = (
        (distance[:, 0] <= FARTHEST)
        & (distance[:, 0] < RATIO * distance[:, 1])
        & (back[best, 0] == np.arange(len(a)))
    )
    index = np.flatnonzero(good)
    return index, best[index].astype(np.int64)
