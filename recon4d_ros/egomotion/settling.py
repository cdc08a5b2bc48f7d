"""Landmarks that were followed roughly, brought to rest on their patches: what each looks like from
its camera's new place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import ground, patches
from recon4d_ros.egomotion.cameras import Cameras
from recon4d_ros.egomotion.features import Landmarks
from recon4d_ros.egomotion.images import Images

Array = NDArray[np.float64]

KNOWN, LOW = (
    0.2,
    0.2,
    # relative deviation of an inverse depth and metres from the ground: a patch that is taken to
    # lie on it
)
WILD = 1.5  # change of a patch that is not to be believed


def settle(
    cameras: Cameras,
    images: Images,
    table: Landmarks,
    pixel: NDArray,
    found: NDArray[np.bool_],
    T_map_camera: Array,
    T_map_base: Array,
) -> None:
    """Pixels [L, 2] of what cameras that look alone have found [L] come to rest, in place; what
    does not look as it should is not found.

    T_map_camera [N, 4, 4], T_map_base [4, 4]: where the rig is expected.
    """
    index, pairs, last = [], [], 0
    for camera, (before, after) in enumerate(zip(images.before, images.now, strict=True)):
        mine = np.flatnonzero((table.camera == camera) & found)
        if before is not None and after is not None and len(mine) and cameras.alone(camera):
            index.append(mine)
            pairs.append(patches.Pair(before, after, last, last := last + len(mine)))
    if not pairs:
        return
    which = np.concatenate(index)
    warp = _looks(cameras, table, which, images.T_map_camera, T_map_camera, T_map_base)
    pixel[which], alike = patches.settle(pairs, table.pixel[which], pixel[which], warp)
    found[which] = alike > patches.ALIKE


def _looks(
    cameras: Cameras,
    table: Landmarks,
    index: NDArray,
    T_map_before: Array,
    T_map_now: Array,
    T_map_base: Array,
) -> Array:
    """How patches of landmarks change, pixels to pixels, from their cameras' places [N, 4, 4]
    before to those now [M, 2, 2]: what lies on the ground as the ground does, all else as if it
    faced its camera."""
    camera, up = table.camera[index], T_map_base[:3, 2]
    position = table.origin[index] + table.bearing[index] / table.rho[index, None]
    T_before_map = geometry.inverse(T_map_before)
    at = (
        np.einsum("mij,mj->mi", T_before_map[camera, :3, :3], position)
        + T_before_map[camera, :3, 3]
    )
    at[:, 2] = np.maximum(at[:, 2], 0.1)
    high = (T_map_before[:, :3, 3] - T_map_base[:3, 3]) @ up > ground.LOWEST
    flat = (np.abs((position - T_map_base[:3, 3]) @ up) < LOW) & high[camera]
    flat &= table.variance[index] < (KNOWN * table.rho[index]) ** 2
    normal = np.where(
        flat[:, None], (T_before_map[:, :3, :3] @ up)[camera], np.array([0.0, 0.0, 1.0])
    )
    T_now_before = (geometry.inverse(T_map_now) @ T_map_before)[camera]
    there = np.einsum("mij,mj->mi", T_now_before[:, :3, :3], at) + T_now_before[:, :3, 3]
    there[:, 2] = np.where(there[:, 2] > 0.0, there[:, 2], np.nan)
    before, now = (cameras.derivatives(camera, q[:, :2] / q[:, 2:]) for q in (at, there))
    warp = now @ patches.warps(at, normal, T_now_before) @ _inverse(before)
    sane = np.abs(warp - np.eye(2)).max((1, 2)) < WILD  # NaN is not
    return np.where(sane[:, None, None], warp, np.eye(2))


def _inverse(matrix: Array) -> Array:
    """Of [M, 2, 2]; infinite or NaN where there is none."""
    (a, b), (c, d) = np.moveaxis(matrix, 0, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            np.stack([d, -b, -c, a], axis=-1).reshape(-1, 2, 2) / (a * d - b * c)[:, None, None],
            np.float64,
        )
