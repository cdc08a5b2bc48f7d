"""What one camera found, shown to the others: where two fields of view overlap, a mover that enters one image is followed in the other.

A camera that looks backwards cannot compare what enters its image, for it was not in the last one; its neighbour saw it there. Range is
that of the region's foot on the road, so the place in the other image is right to a few pixels, as good as the mask itself.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.residual import move
from recon4d_ros.dynamics.views import View
from recon4d_ros.geometry import inverse

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

NEAREST = 0.3
"""Metres in front of a camera from which a point is seen."""

FEWEST = 12
"""Pixels of the motion grid below which nothing is handed over."""


@dataclass(frozen=True, eq=False)
class Found:
    """Movers in one camera's image. q: [h, w] 1/m, inverse range along the optical axis of the region each pixel belongs to, 0 = none."""

    view: View
    T_map_camera: NDArray[np.float64]
    q: Plane


def seen_from(view: View, T_map_camera: NDArray[np.float64], found: Sequence[Found]) -> Mask:
    """Pixels [h, w] bool of a view at T_map_camera that lie on what other cameras found to move."""
    h, w = view.x.shape
    seen = np.zeros((h, w), np.uint8)
    for other in found:
        at = np.flatnonzero(other.q)
        if len(at) < FEWEST:
            continue
        u, v, z = move(other.view, view, other.view.x.ravel()[at], other.view.y.ravel()[at], other.q.ravel()[at],
                       inverse(T_map_camera) @ other.T_map_camera)
        inside = (z > NEAREST) & (u > -0.5) & (u < w - 0.5) & (v > -0.5) & (v < h - 0.5)
        if np.count_nonzero(inside) < FEWEST:
            continue
        seen[np.rint(v[inside]).astype(np.intp), np.rint(u[inside]).astype(np.intp)] = 1
    # Pixels grow on their way to a camera that is nearer: gaps of one are closed.
    return np.asarray(cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))) > 0
