"""Where in an image something of the truth is, and whether it can be seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.distortion import to_pixels
from recon4d_ros.evaluation.metrics.clouds import Boxes
from recon4d_ros.geometry import box_corners, inverse, transform
from recon4d_ros.types import Camera


def project_visible(
    points: NDArray[np.floating], camera: Camera, cell: int = 16
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source pixels [K, 2] (u, v) and depth [K] of points in base_link that the camera sees.

    A lidar sits elsewhere than the camera and sees behind what the camera sees: in each cell of
    `cell` pixels, points more than 20 % and 1 m behind the nearest one are taken to be hidden.
    """
    local = transform(inverse(camera.T_base_camera), np.asarray(points, np.float64))
    local = local[local[:, 2] > 0.5]
    pixels = to_pixels(camera, local[:, :2] / local[:, 2:])
    inside = (
        (pixels[:, 0] > -0.5)
        & (pixels[:, 0] < camera.width - 0.5)
        & (pixels[:, 1] > -0.5)
        & (pixels[:, 1] < camera.height - 0.5)
    )
    pixels, depth = np.rint(pixels[inside]).astype(np.int64), local[inside, 2]
    cells = (pixels[:, 1] // cell) * (camera.width // cell + 1) + pixels[:, 0] // cell
    nearest = np.full((camera.width // cell + 1) * (camera.height // cell + 1), np.inf)
    np.minimum.at(nearest, cells, depth)
    seen = depth <= np.maximum(nearest[cells] * 1.2, nearest[cells] + 1.0)
    return pixels[seen], depth[seen]


def box_pixels(
    boxes: Boxes, index: int, T_camera_world: NDArray[np.float64], camera: Camera
) -> NDArray[np.bool_]:
    """The upright rectangle [height, width] around a box's corners in the image; nothing where all
    of it is behind the camera."""
    out = np.zeros((camera.height, camera.width), bool)
    corners = box_corners(boxes.center[index], boxes.size[index], boxes.yaw[index])
    local = transform(T_camera_world, corners)
    if (local[:, 2] < 0.1).all():
        return out
    local = local[local[:, 2] >= 0.1]
    pixels = to_pixels(camera, local[:, :2] / local[:, 2:])
    pixels = pixels[np.isfinite(pixels).all(axis=1)]
    if len(pixels):
        limits = (camera.width, camera.height)
        (u0, v0), (u1, v1) = (
            np.clip(edge, 0, limits).astype(int)
            for edge in (pixels.min(axis=0), pixels.max(axis=0) + 1)
        )
        out[v0:v1, u0:u1] = True
    return out
