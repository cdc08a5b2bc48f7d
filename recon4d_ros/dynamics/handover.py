"""What one camera found, shown to the others: where two fields of view overlap, a dynamic object
that enters one image is followed in the other.

A camera that looks backwards cannot compare what enters its image, for it was not in the last one;
its neighbour saw it there. Range is that of the region's foot on the road, so the place in the
other image is right to a few pixels, as good as the mask itself.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.views import View
from recon4d_ros.geometry import inverse, transform

Array = NDArray[np.float64]

NEAREST = 0.3
"""Metres in front of a camera from which a point is seen."""

FEWEST = 12
"""Pixels of the motion grid below which nothing is handed over."""


def points_of(view: View, T_map_camera: Array, q: NDArray[np.float32]) -> Array:
    """Points [K, 3] in map of the pixels of a view at inverse depth q [h, w], 1/m, 0 = none."""
    at = np.flatnonzero(q)
    z = 1 / q.ravel()[at]
    return np.asarray(
        transform(T_map_camera, np.stack([view.x.ravel()[at] * z, view.y.ravel()[at] * z, z], -1)),
        np.float64,
    )


def seen_from(view: View, T_map_camera: Array, points: Array) -> NDArray[np.bool_]:
    """Pixels [h, w] bool of a view at T_map_camera that show points [K, 3] in map."""
    h, w = view.x.shape
    seen = np.zeros((h, w), np.uint8)
    if len(points) < FEWEST:
        return seen > 0
    x, y, z = transform(inverse(T_map_camera), points).T
    ahead = z > NEAREST
    u = np.rint(view.k[0, 0] * x[ahead] / z[ahead] + view.k[0, 2])
    v = np.rint(view.k[1, 1] * y[ahead] / z[ahead] + view.k[1, 2])
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    if np.count_nonzero(inside) < FEWEST:
        return seen > 0
    seen[v[inside].astype(np.intp), u[inside].astype(np.intp)] = 1
    # Pixels grow on their way to a camera that is nearer: gaps of one are closed.
    return np.asarray(cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))) > 0
