"""Lens models as maps between ideal rays and raw pixels: OpenCV's forward model, and its inverse by
Newton's method.

OpenCV's own inverse is a fixed-point iteration that stops early or diverges on strong lenses;
Newton on the forward model is exact where the model is one-to-one, and says where it is not.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

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
        out[usable] = _distort(camera, flat[usable]) @ camera.k[:2, :2].T + camera.k[:2, 2]
    return out.reshape(np.shape(rays))


def to_rays(camera: Camera, pixels: Array) -> Array:
    """Rays [..., 2] = (x / z, y / z) of raw pixels [..., 2]; NaN where no ray within the model's
    range reaches the pixel."""
    flat = np.ascontiguousarray(pixels, np.float64).reshape(-1, 2)
    target = np.linalg.solve(camera.k[:2, :2], (flat - camera.k[:2, 2]).T).T
    if camera.distortion_model == "none":
        return target.reshape(np.shape(pixels))
    limit = min(widest_ray(camera), 1e3)
    rays = target.copy()
    if (
        camera.distortion_model == "equidistant"
    ):  # the ideal fisheye's inverse is the start: angle = distance
        angle = np.linalg.norm(target, axis=1, keepdims=True)
        rays *= np.tan(np.minimum(angle, np.arctan(limit))) / np.maximum(angle, 1e-12)
    rays = _within(rays, limit)
    moving = np.arange(len(rays))  # those that have not converged: few are left after four steps
    for _ in range(30):
        error = _distort(camera, rays[moving]) - target[moving]
        far = np.abs(error).max(axis=1, initial=0.0) > 1e-11
        moving, error = moving[far], error[far]
        if not len(moving):
            break
        step = np.linalg.solve(_jacobian(camera, rays[moving]), error[..., None])[..., 0]
        rays[moving] = _within(rays[moving] - step, limit)
    missed = (
        np.abs(_distort(camera, rays) - target).max(axis=1) > 1e-7
    )  # a ten-thousandth of a pixel at any real focal length
    rays[missed] = np.nan
    return rays.reshape(np.shape(pixels))


def widest_ray(camera: Camera) -> float:
    """The tangent of the angle up to which the model's radius grows, in other words is one-to-one;
    infinite for a pinhole."""
    if camera.distortion_model == "none":
        return np.inf
    if camera.distortion_model == "equidistant":
        angles = np.linspace(0.0, np.pi / 2, 4097)[:-1]
        radii = angles * (1 + np.polynomial.polynomial.polyval(angles**2, [0.0, *camera.d]))
        tangents = np.tan(angles)
    else:
        tangents = np.linspace(
            0.0, 20.0, 20001
        )  # 87 degrees: polynomial models are not meant for more
        radii = _radial(camera, tangents)
    falling = np.flatnonzero(~(np.diff(radii) > 0))
    return float(tangents[falling[0]] if len(falling) else tangents[-1])


def _radial(camera: Camera, radius: Array) -> Array:
    d = np.zeros(14)  # thin prism and tilt, the last six, bend the radius by little
    d[: len(camera.d)] = camera.d
    square = radius**2
    above = np.polynomial.polynomial.polyval(square, [1.0, d[0], d[1], d[4]])
    below = np.polynomial.polynomial.polyval(square, [1.0, d[5], d[6], d[7]])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(
            below > 0, radius * above / below, -np.inf
        )  # a denominator that crosses zero ends the range


def _distort(camera: Camera, rays: Array) -> Array:
    """[M, 2] distorted, still normalised."""
    if camera.distortion_model == "none":
        return rays
    d = np.asarray(camera.d, np.float64)
    if camera.distortion_model == "equidistant":
        return np.asarray(cv2.fisheye.distortPoints(rays[:, None], np.eye(3), d))[:, 0]
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
    return np.asarray(cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), d)[0])[:, 0]


def _jacobian(camera: Camera, rays: Array) -> Array:
    """[M, 2, 2] by central differences."""
    step = 1e-6 * (1.0 + np.abs(rays))
    columns = []
    for axis in range(2):
        offset = np.zeros_like(rays)
        offset[:, axis] = step[:, axis]
        columns.append(
            (_distort(camera, rays + offset) - _distort(camera, rays - offset))
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
