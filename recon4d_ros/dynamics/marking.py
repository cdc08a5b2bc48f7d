"""A candidate that moves as pixels: those within its box and its depth."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.candidates import Mover, window_of
from recon4d_ros.dynamics.pairs import Pair
from recon4d_ros.dynamics.views import View
from recon4d_ros.geometry import inverse

Array = NDArray[np.float64]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]


def fill(
    view: View,
    mover: Mover,
    depth: Plane,
    pair: Pair,
    marked: Mask,
) -> Mask:
    """[h, w] on the motion grid: what of the mover's outline is not something else.

    marked: [h, w] what was found without boxes. Of a box in an image the corners are most often not
    the thing: its outline is the ellipse that touches the box's sides, and the convex hull of that
    with what is marked inside the box.

    depth: [h, w] metres, NaN = none. Where another camera sees the same at the same time, depth is
    that of what is there, and decides. Elsewhere it comes from time, and is wrong for what moves:
    what is nearer than the mover stands before it and is right; what seems farther is the mover
    itself, unless its flow is nearer to that of a static thing at its depth than to the mover's.
    """
    out = np.zeros(view.x.shape, bool)
    window = window_of(view, mover.box)
    if not out[window].size:
        return out
    outline = mover.outline
    if mover.candidate.camera >= 0:
        rows, columns = np.nonzero(marked[window])
        found = np.stack([view.x[window][rows, columns], view.y[window][rows, columns]], -1)
        outline = np.concatenate([_ellipse(mover.box), found])
    inside = _within(view, outline)[window]
    z = depth[window]
    nearer, farther = z < mover.near, z > mover.far
    other = nearer | (farther & view.covered[window])
    x, y, before = view.x[window], view.y[window], pair.before.T_map_camera
    there = inverse(before) @ pair.now.T_map_camera
    moved = before[:3, :3].T @ (np.array([*mover.velocity, 0.0]) * pair.seconds)
    of_mover = _flow(view, x, y, np.full_like(x, mover.depth), there, moved)
    static = _flow(view, x, y, np.nan_to_num(z, nan=1e3), there, np.zeros(3))
    measured = np.stack([pair.flow.u[window], pair.flow.v[window]])
    to_mover, to_static = (np.square(measured - one).sum(0) for one in (of_mover, static))
    other |= farther & (to_static < to_mover)
    out[window] = inside & ~other
    return out


def _ellipse(box: Array) -> Array:
    """[32, 2] points of the ellipse that touches the sides of a box [4]."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return np.asarray(middle + half * np.stack([np.cos(angle), np.sin(angle)], -1))


def _within(view: View, outline: Array) -> Mask:
    """[h, w] pixels in the convex hull of points [K, 2] given as rays."""
    pixels = outline * view.k[[0, 1], [0, 1]] + view.k[:2, 2]
    limit = 4.0 * max(view.x.shape)
    hull = cv2.convexHull(np.clip(pixels, -limit, limit).astype(np.float32))
    fraction = 4  # bits of a pixel
    canvas = np.zeros(view.x.shape, np.uint8)
    cv2.fillConvexPoly(
        canvas, np.rint(hull * (1 << fraction)).astype(np.int32), 1, cv2.LINE_8, fraction
    )
    return canvas > 0


def _flow(
    view: View, x: Plane, y: Plane, z: NDArray, T_before_now: Array, moved: Array
) -> NDArray[np.float64]:
    """[2, h, w] flow in grid pixels of points at depth z that moved by `moved` [3] (metres, axes of
    the camera before) since."""
    points = np.stack([x * z, y * z, z]).astype(np.float64)
    there = np.einsum("ij,jhw->ihw", T_before_now[:3, :3], points)
    there += (T_before_now[:3, 3] - moved)[:, None, None]
    ahead = np.maximum(there[2], 1e-2)
    return np.stack(
        [
            (there[0] / ahead - x) * view.k[0, 0],
            (there[1] / ahead - y) * view.k[1, 1],
        ]
    )
