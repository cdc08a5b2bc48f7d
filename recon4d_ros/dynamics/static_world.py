"""The static world as a camera sees it: the road along its rays, and where what does not move is
seen from elsewhere.

A pixel of the current image at normalised coordinates (x, y) with inverse depth q lies, if it does
not move, in the other camera at R (x, y, 1) + q t up to scale, (R, t) being the motion of the
camera.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.views import View

Plane = NDArray[np.float32]

LOWEST = 0.1
"""Metres over the road below which a camera's height is not believed."""


def inverse_depth(depth: Plane) -> Plane:
    """[h, w] 1/m of a depth [h, w] in metres; NaN stays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 / depth).astype(np.float32)


def road_in_camera(view: View, plane: NDArray[np.float64] | None) -> Plane:
    """[4] the road's normal in the camera's frame (x right, y down, z forward; it points up) and
    the camera's height over it in metres; zeros where no road is known. plane: [4] in base_link."""
    if plane is None:
        return np.zeros(4, np.float32)
    normal = view.T_base_camera[:3, :3].T @ plane[:3]
    height = float(plane[:3] @ view.T_base_camera[:3, 3] + plane[3])
    known = height > LOWEST
    return np.array([*normal, height] if known else np.zeros(4), np.float32)


def see_road(view: View, plane: NDArray[np.float64] | None) -> Plane:
    """[h, w] 1/m, inverse depth of the road along each ray of a camera; 0 at and above the horizon,
    and where no road is known. plane: [4] (n, d) in base_link, n . p + d = 0 with n up.

    A ray with direction r from height H over the plane meets it at inverse depth -(n . r) / H.
    """
    nx, ny, nz, height = road_in_camera(view, plane)
    if not height:
        return np.zeros_like(view.x)
    return np.maximum(-(nx * view.x + ny * view.y + nz) / height, 0)


def static_flow(
    view: View, q: Plane, T_previous_current: NDArray[np.float64]
) -> tuple[Plane, Plane]:
    """Flow [h, w] in grid pixels of points at inverse depth q that do not move. NaN q is taken as
    infinitely far."""
    r, t = T_previous_current[:3, :3].astype(np.float32), T_previous_current[:3, 3]
    x, y = view.x[:1], view.y[:, :1]  # x is the same in every row, y in every column
    a = [r[i, 0] * x + (r[i, 1] * y + r[i, 2]) for i in range(3)]
    tx, ty, tz = t.astype(np.float32)
    if not np.isfinite(q).all():
        q = np.nan_to_num(q, nan=0.0)
    per_z = 1 / np.maximum(a[2] + q * tz, np.float32(1e-3))
    return (
        ((a[0] + q * tx) * per_z - view.x) * np.float32(view.k[0, 0]),
        ((a[1] + q * ty) * per_z - view.y) * np.float32(view.k[1, 1]),
    )


def move(
    view: View, other: View, x: Plane, y: Plane, q: Plane, T: NDArray[np.float64]
) -> tuple[Plane, Plane, Plane]:
    """Pixel u, v and depth z (metres) in the other camera of points at normalised x, y and inverse
    depth q."""
    m = T.astype(np.float32)
    q = np.maximum(q, np.float32(1e-4))
    a = [m[i, 0] * x + m[i, 1] * y + m[i, 2] + q * m[i, 3] for i in range(3)]
    below = np.maximum(a[2], np.float32(1e-3))
    k = other.k.astype(np.float32)
    return a[0] / below * k[0, 0] + k[0, 2], a[1] / below * k[1, 1] + k[1, 2], a[2] / q
