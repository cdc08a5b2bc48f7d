"""Depth where there is none, from what lies around it: a start for the search, no measurement."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

SMALLEST = 3
"""Rows or columns of the coarsest level."""


def fill_in(q: Plane) -> Plane:
    """Inverse depth [h, w] with its gaps (NaN) closed smoothly: pull and push through a pyramid
    (Gortler et al., The Lumigraph, 1996)."""
    known = np.isfinite(q)
    levels = [
        np.stack([np.where(known, q, np.float32(0)), known], -1).astype(np.float32)
    ]  # sum and weight
    while min(levels[-1].shape[:2]) > SMALLEST:
        half = tuple((side + 1) // 2 for side in levels[-1].shape[1::-1])
        levels.append(
            np.asarray(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA), np.float32)
        )
    filled = levels[-1][..., 0] / np.maximum(levels[-1][..., 1], np.float32(1e-6))
    for level in levels[-2::-1]:
        coarse = cv2.resize(filled, level.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        trust = np.minimum(level[..., 1] * 2, np.float32(1))
        filled = (
            coarse + (level[..., 0] / np.maximum(level[..., 1], np.float32(1e-6)) - coarse) * trust
        )
    return np.asarray(filled, np.float32)
