"""Driv3R's alignment of all cameras into the world (Fei et al., 2024, section 3.4): closed forms on what is known, no optimization.

Each camera's point maps are in the frame that it had at its first image, up to one factor. The rig's calibration and the car's motion say
where that frame is in the world, so only the factor is open. It follows from the rays: at pixel r (unit, from the calibration) of a camera
that has moved by d (metres) from the origin, a point p (units) lies on the ray if (I - r r^T)(p - u d) = 0 for u units per metre: linear
in u. (The authors take factor and shift from lidar depth.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros.alignment import NEAR, Scale, weighted_median
from recon4d_ros.geometry import Array, inverse, se3, transform

SHORTEST = 0.1  # metres a camera has to have moved before its points say anything of the scale


@dataclass(frozen=True)
class Similarity:
    """target = scale * rotation @ source + translation."""

    scale: float
    rotation: Array
    translation: Array

    def __call__(self, points: NDArray) -> NDArray:
        """Points [..., 3]; keeps their dtype."""
        return transform(se3(self.scale * self.rotation, self.translation), points)


@dataclass(frozen=True)
class Aligned:
    """points: [N, F, h, w, 3] float32, metres in the world, NaN for cameras without scale. scales: of each camera, None where its motion
    does not tell it."""

    points: NDArray[np.float32]
    scales: tuple[Scale | None, ...]


def align(
    points: NDArray[np.float32], k: Array, T_world_camera: Array, weight: NDArray[np.float32], one_scale: bool = False
) -> Aligned:
    """N cameras, F images each, the same F for all.

    points: [N, F, h, w, 3] in the frame of each camera's first image, network units (NaN = none). k: [N, 3, 3]. T_world_camera: [N, F, 4,
    4] by calibration and ego-motion, metres. weight: [N, F, h, w], the confidence in each point, 0 where something moves. one_scale: all
    cameras share one, else each has its own (Driv3R's memories are separate, and nothing ties their units together).
    """
    n = len(points)
    T_origin_camera = inverse(T_world_camera[:, :1]) @ T_world_camera
    observed = [_observe(points[i], k[i], T_origin_camera[i], weight[i]) for i in range(n)]
    if one_scale:
        scales: list[Scale | None] = [_scale(*(np.concatenate(parts) for parts in zip(*observed, strict=True)))] * n
    else:
        scales = [_scale(*each) for each in observed]
    world = np.full(points.shape, np.nan, np.float32)
    for i, scale in enumerate(scales):
        if scale is not None:
            world[i] = to_world(points[i], scale.metres_per_unit, T_world_camera[i, 0])
    return Aligned(world, tuple(scales))


def to_world(points: NDArray[np.float32], metres_per_unit: float, T_world_origin: Array) -> NDArray[np.float32]:
    """Points [..., 3] of a camera, in the frame of its first image, in network units -> metres in the world."""
    return transform(T_world_origin, points.astype(np.float64) * metres_per_unit).astype(np.float32)


def similarity(source: NDArray, target: NDArray, weight: NDArray) -> Similarity | None:
    """The weighted least-squares similarity from points [K, 3] to points [K, 3] (Umeyama, PAMI 1991, equations 40 to 42).

    It joins, for one, two clips that share an image, where no pose does. None where fewer than three points that have weight, or only
    points on one line, leave it open.
    """
    good = (weight > 0) & np.isfinite(source).all(-1) & np.isfinite(target).all(-1)
    if good.sum() < 3:
        return None
    share = weight[good].astype(np.float64)
    share /= share.sum()
    a, b = source[good].astype(np.float64), target[good].astype(np.float64)
    middle_a, middle_b = share @ a, share @ b
    a, b = a - middle_a, b - middle_b
    spread = np.linalg.svd(np.sqrt(share)[:, None] * a, compute_uv=False)
    if spread[1] <= 1e-9 * max(spread[0], 1e-30):
        return None
    rotation = Rotation.align_vectors(b, a, weights=share)[0].as_matrix()
    scale = float((share * (b * (a @ rotation.T)).sum(1)).sum() / np.square(spread).sum())
    return Similarity(scale, rotation, middle_b - scale * rotation @ middle_a)


def _observe(points: NDArray[np.float32], k: Array, T_origin_camera: Array, weight: NDArray[np.float32]) -> tuple[Array, Array, Array]:
    """Units per metre of each pixel, its weight, and its image's number, of one camera: [K] each."""
    frames, h, w = points.shape[:3]
    v, u = np.indices((h, w), np.float64)
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    values, weights, numbers = [], [], []
    for frame in range(frames):
        d = T_origin_camera[frame, :3, 3]
        if np.linalg.norm(d) < SHORTEST:
            continue
        r = rays @ T_origin_camera[frame, :3, :3].T
        across = d - (r @ d)[..., None] * r  # of the motion, seen along each ray
        square = np.square(across).sum(-1)
        p = points[frame].astype(np.float64)
        good = np.isfinite(p).all(-1) & (weight[frame] > 0) & (square > 1e-12)
        values.append((p[good] * across[good]).sum(-1) / square[good])
        # errors grow with the distance, and what lies near says more
        weights.append(weight[frame][good] * square[good] / np.maximum(np.square(p[good]).sum(-1), 1e-12))
        numbers.append(np.full(good.sum(), frame, np.float64))
    if not values:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    return np.concatenate(values), np.concatenate(weights), np.concatenate(numbers)


def _scale(units: Array, weight: Array, image: Array) -> Scale | None:
    """The weighted mean of what lies near the weighted median of units per metre [K].

    Pixels of one image share their errors: the standard deviation is that of the images' own means, one image alone does not know its own.
    """
    if not len(units):
        return None
    middle = weighted_median(units, weight)
    spread = 1.4826 * weighted_median(np.abs(units - middle), weight)
    near = np.abs(units - middle) <= max(NEAR * spread, 1e-9 * abs(middle))
    units, weight, image = units[near], weight[near], image[near]
    mean = float(np.average(units, weights=weight))
    if mean <= 0:
        return None
    numbers, which = np.unique(image, return_inverse=True)
    per_image = np.bincount(which, weight)
    means = np.bincount(which, weight * units) / per_image
    if len(numbers) < 2:
        relative = 0.2
    else:
        relative = float(np.sqrt(np.average((means - mean) ** 2, weights=per_image) / (len(numbers) - 1))) / mean
    return Scale(1 / mean, relative / mean, len(units))
