"""A camera's lens at the resolution the images come at: distorted pixels to rays and back, for points instead of whole images."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.types import Camera

ROUNDS = 8  # of undistortion: OpenCV's own five leave a wide lens more than a hundredth of a pixel off (and its option differs by version)


@dataclass(frozen=True)
class Lens:
    """Intrinsics of one camera for an image of `size`. k: 3x3 in pixels of that image. size: (H, W)."""

    k: NDArray[np.float64]
    d: NDArray[np.float64]
    fisheye: bool
    size: tuple[int, int]

    @property
    def focal(self) -> float:
        return float(0.5 * (self.k[0, 0] + self.k[1, 1]))

    def rays(self, pixels: NDArray) -> NDArray[np.float64]:
        """Undistorted normalised coordinates [M, 2] (x/z, y/z) of distorted pixels [M, 2]."""
        if len(pixels) == 0:
            return np.empty((0, 2))
        points = np.ascontiguousarray(pixels, np.float64)
        if not self.d.any() and not self.fisheye:
            return (points - self.k[:2, 2]) / self.k[[0, 1], [0, 1]]
        if self.fisheye:
            return np.asarray(cv2.fisheye.undistortPoints(points[:, None], self.k, self.d)[:, 0], np.float64)
        rays = np.asarray(cv2.undistortPoints(points[:, None], self.k, self.d)[:, 0], np.float64)
        for _ in range(ROUNDS):
            rays -= (self.pixels(rays) - points) / self.k[[0, 1], [0, 1]]
        return rays

    def pixels(self, rays: NDArray) -> NDArray[np.float64]:
        """Distorted pixels [M, 2] of normalised coordinates [M, 2]: the inverse of `rays`; NaN in, NaN out."""
        if len(rays) == 0:
            return np.empty((0, 2))
        points = np.ascontiguousarray(rays, np.float64)
        if not self.d.any() and not self.fisheye:
            return points * self.k[[0, 1], [0, 1]] + self.k[:2, 2]
        if self.fisheye:
            return np.asarray(cv2.fisheye.distortPoints(points[:, None], self.k, self.d)[:, 0], np.float64)
        ones = np.concatenate([points, np.ones((len(points), 1))], axis=1)
        return np.asarray(cv2.projectPoints(ones, np.zeros(3), np.zeros(3), self.k, self.d)[0][:, 0], np.float64)

    def inside(self, pixels: NDArray, margin: float) -> NDArray[np.bool_]:
        """Which pixels [M, 2] lie in the image, `margin` pixels from its border; NaN is outside."""
        height, width = self.size
        with np.errstate(invalid="ignore"):
            return (pixels >= margin).all(-1) & (pixels[..., 0] <= width - 1 - margin) & (pixels[..., 1] <= height - 1 - margin)


def lens_at(camera: Camera, size: tuple[int, int]) -> Lens:
    """The lens of `camera` for its image reduced to `size` (H, W) by averaging: u_small = (u + 0.5) / r - 0.5."""
    scale = np.array([size[1] / camera.width, size[0] / camera.height])
    k = np.eye(3)
    k[[0, 1], [0, 1]] = camera.k[[0, 1], [0, 1]] * scale
    k[:2, 2] = (camera.k[:2, 2] + 0.5) * scale - 0.5
    return Lens(k, np.array(camera.d if any(camera.d) else (0.0,) * 4, np.float64), camera.distortion_model == "equidistant", size)
