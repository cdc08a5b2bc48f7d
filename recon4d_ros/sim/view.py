"""A camera as the renderer needs it: the ray of every pixel, whatever its lens, and where in the
image a bundle of rays may fall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.distortion import to_rays
from recon4d_ros.types import Camera

MAX_TANGENT = np.tan(
    np.deg2rad(80.0)
)  # a fisheye's pixels beyond 80 degrees off axis have no z-depth worth the name


@dataclass(frozen=True)
class View:
    """Rays (x, y, 1) of a camera's pixels, in its optical frame.

    x, y: float32 [H, W], or [1, W] and [H, 1] where there is no distortion. valid: [H, W] bool or
    None where all are. x_low, x_high: [W] and y_low, y_high: [H] bounds of x per column and of y
    per row, increasing. focal: pixels per unit tangent.
    """

    camera: Camera
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    valid: NDArray[np.bool_] | None
    x_low: NDArray[np.float64]
    x_high: NDArray[np.float64]
    y_low: NDArray[np.float64]
    y_high: NDArray[np.float64]
    focal: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.camera.height, self.camera.width

    def pixels_per_ray(self, step: int = 1) -> NDArray[np.float32]:
        """Jacobian [h, w, 2, 2] of (u, v) by (x, y), of every step-th pixel."""
        if self.x.shape[0] == 1 and self.y.shape[1] == 1:
            out = np.zeros((1, 1, 2, 2), np.float32)
            out[..., 0, 0], out[..., 1, 1] = self.camera.k[0, 0], self.camera.k[1, 1]
            return out
        return _inverse_jacobian(self.x, self.y)[::step, ::step]

    def pixel_rectangles(self, low: NDArray, high: NDArray) -> NDArray[np.int64]:
        """[P, 4] (u0, u1, v0, v1), end exclusive, that contain all pixels whose rays lie between
        low and high [P, 2] (x, y)."""
        u0 = np.searchsorted(self.x_high, low[:, 0], "left")
        u1 = np.searchsorted(self.x_low, high[:, 0], "right")
        v0 = np.searchsorted(self.y_high, low[:, 1], "left")
        v1 = np.searchsorted(self.y_low, high[:, 1], "right")
        return np.stack([u0, u1, v0, v1], axis=1)


def make_view(camera: Camera) -> View:
    """The rays of all pixels, by inverting the lens."""
    k = camera.k
    if camera.distortion_model == "none":
        y = ((np.arange(camera.height) - k[1, 2]) / k[1, 1])[:, None]
        x = ((np.arange(camera.width) - k[0, 2]) / k[0, 0])[None]
        if k[0, 1]:
            x = x - k[0, 1] / k[0, 0] * y
        valid = None
    else:
        v, u = np.indices((camera.height, camera.width), dtype=np.float64)
        rays = to_rays(camera, np.stack([u, v], axis=-1))
        good = (
            np.hypot(rays[..., 0], rays[..., 1]) < MAX_TANGENT
        )  # NaN, where the lens sees nothing, fails too
        x, y = np.where(good, rays[..., 0], np.nan), np.where(good, rays[..., 1], np.nan)
        valid = None if good.all() else good
    x_low, x_high = _bounds(x, 0, camera.width)
    y_low, y_high = _bounds(y, 1, camera.height)
    if valid is not None:
        x, y = np.nan_to_num(x), np.nan_to_num(y)
    return View(
        camera,
        x.astype(np.float32),
        y.astype(np.float32),
        valid,
        x_low,
        x_high,
        y_low,
        y_high,
        float(0.5 * (k[0, 0] + k[1, 1])),
    )


def _inverse_jacobian(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W, 2, 2] d(u, v)/d(x, y) from the rays of neighbouring pixels."""
    xv, xu = np.gradient(x)
    yv, yu = np.gradient(y)
    determinant = xu * yv - xv * yu
    safe = np.where(np.abs(determinant) > 1e-12, determinant, np.float32(np.inf))
    every = np.stack([yv, -xv, -yu, xu], -1).reshape(*x.shape, 2, 2) / safe[..., None, None]
    return every.astype(np.float32)


def _bounds(
    values: NDArray, axis: int, size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value per column (axis 0) or row (axis 1), made monotone so that a
    search in them errs to the safe side."""
    low = np.where(np.isnan(values), np.inf, values).min(axis)
    high = np.where(np.isnan(values), -np.inf, values).max(axis)
    low, high = np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)
    return np.broadcast_to(low, size).copy(), np.broadcast_to(high, size).copy()
