"""Lens models as maps between ideal rays and raw pixels: the forward model, and its inverse by
Newton's method.

OpenCV's own inverse is a fixed-point iteration that stops early or diverges on strong lenses;
Newton on the forward model is exact where the model is one-to-one, and says where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.lens_models import ANGULAR, distorted, radius
from recon4d_ros.types import Camera

Array = NDArray[Any]  # float64


def to_pixels(camera: Camera, rays: Array) -> Array:
    """Raw pixels [..., 2] of rays [..., 2] = (x / z, y / z) in the optical frame; NaN beyond the
    model's one-to-one range."""
    flat = np.ascontiguousarray(rays, np.float64).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        usable = np.hypot(flat[:, 0], flat[:, 1]) < widest_ray(camera)
    out = np.full_like(flat, np.nan)
    if usable.any():
        out[usable] = (
            distorted(camera.distortion_model, camera.d, flat[usable]) @ camera.k[:2, :2].T
            + camera.k[:2, 2]
        )
    return out.reshape(np.shape(rays))


def to_rays(camera: Camera, pixels: Array) -> Array:
    """Rays [..., 2] = (x / z, y / z) of raw pixels [..., 2]; NaN where no ray within the model's
    range reaches the pixel."""
    flat = np.ascontiguousarray(pixels, np.float64).reshape(-1, 2)
    target = np.linalg.solve(camera.k[:2, :2], (flat - camera.k[:2, 2]).T).T
    if camera.distortion_model == "none":
        return target.reshape(np.shape(pixels))
    rays, missed = undistorted(camera.distortion_model, camera.d, target, widest_ray(camera))
    rays[missed] = np.nan
    return rays.reshape(np.shape(pixels))


def widest_ray(camera: Camera) -> float:
    """The tangent of the angle up to which the model's radius grows, in other words is one-to-one;
    infinite for a pinhole."""
    model = camera.distortion_model
    if model == "none":
        return np.inf
    if model in ANGULAR:
        tangents = np.tan(np.linspace(0.0, np.pi / 2, 4097)[:-1])
    else:
        # 87 degrees: polynomial models are not meant for more
        tangents = np.linspace(0.0, 20.0, 20001)
    falling = np.flatnonzero(~(np.diff(radius(model, camera.d, tangents)) > 0))
    return float(tangents[falling[0]] if len(falling) else tangents[-1])


def undistorted(
    model: str, d: Sequence[float] | Array, target: Array, widest: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Rays [M, 2] of distorted ones [M, 2], by Newton's method on the model, and which [M] have
    none within its range, the tangent `widest`."""
    limit = min(widest, 1e3)
    rays = target.copy()
    if model in ("equidistant", "thin_prism_fisheye"):
        # the ideal fisheye's inverse is the start: angle = distance
        angle = np.linalg.norm(target, axis=1, keepdims=True)
        rays *= np.tan(np.minimum(angle, np.arctan(limit))) / np.maximum(angle, 1e-12)
    rays = _within(rays, limit)
    moving = np.arange(len(rays))  # those that have not converged: few are left after four steps
    for _ in range(30):
        error = distorted(model, d, rays[moving]) - target[moving]
        far = np.abs(error).max(axis=1, initial=0.0) > 1e-11
        moving, error = moving[far], error[far]
        if not len(moving):
            break
        step = np.linalg.solve(_jacobian(model, d, rays[moving]), error[..., None])[..., 0]
        rays[moving] = _within(rays[moving] - step, limit)
    # a ten-thousandth of a pixel at any real focal length
    missed = ~(np.abs(distorted(model, d, rays) - target).max(axis=1, initial=0.0) <= 1e-7)
    return rays, missed


def _jacobian(model: str, d: Sequence[float] | Array, rays: Array) -> Array:
    """[M, 2, 2] by central differences."""
    step = 1e-6 * (1.0 + np.abs(rays))
    columns = []
    for axis in range(2):
        offset = np.zeros_like(rays)
        offset[:, axis] = step[:, axis]
        columns.append(
            (distorted(model, d, rays + offset) - distorted(model, d, rays - offset))
            / (2 * step[:, axis : axis + 1])
        )
    jacobian = np.stack(columns, axis=-1)
    singular = (
        np.abs(np.linalg.det(jacobian)) < 1e-9
    )  # beyond the range: any step will do, the point is reported as missed
    jacobian[singular] = np.eye(2)
    return jacobian


def _within(rays: Array, limit: float) -> Array:
    """Newton may step out of the range where the model means anything: pull back to its edge."""
    length = np.linalg.norm(rays, axis=1, keepdims=True)
    return rays * np.minimum(1.0, limit / np.maximum(length, 1e-12))
