"""A camera's lens at the resolution the images come at, for a few hundred points per frame:
everything that `distortion` works out for a whole image is worked out once here, and the inverse is
polished to a hundredth of a pixel instead of to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.calibration import (
    quarter_turns,
    reduced_size,
    reduction,
    turned_pixels,
    upright,
)
from recon4d_ros.cameras.distortion import undistorted, widest_ray
from recon4d_ros.cameras.lens_models import distorted
from recon4d_ros.types import Camera

STEP = 1e-4  # of a normalised coordinate, to find derivatives by
# models that OpenCV has an inverse of
OPENCV = ("plumb_bob", "rational_polynomial", "equidistant")
ROUNDS = (
    12  # of undistortion: OpenCV's own five leave a wide lens more than a hundredth of a pixel off
)


@dataclass(frozen=True)
class Lens:
    """Intrinsics of one camera for an image of `size`. k: 3x3 in pixels of that image. size: (H,
    W). widest: tangent of its end. turn: 2x2, from rays in the frame of the working image to the
    camera's own (`calibration.upright`), and image: from its pixels to those of the turned image
    (`calibration.turned_pixels`); None where these are one. read_out: seconds from the first row's
    to the last one's of a rolling shutter."""

    k: NDArray[np.float64]
    d: NDArray[np.float64]
    model: str
    size: tuple[int, int]
    widest: float
    turn: NDArray[np.float64] | None = None
    image: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    read_out: float = 0.0

    @property
    def focal(self) -> float:
        return float(0.5 * (self.k[0, 0] + self.k[1, 1]))

    def rays(self, pixels: NDArray) -> NDArray[np.float64]:
        """Undistorted normalised coordinates [M, 2] (x/z, y/z) of distorted pixels [M, 2]."""
        points = np.ascontiguousarray(pixels, np.float64)
        if self.image is not None:
            points = (points - self.image[1]) @ self.image[0]
        points = points - self.k[:2, 2]
        y = points[:, 1] / self.k[1, 1]
        points = np.stack([(points[:, 0] - self.k[0, 1] * y) / self.k[0, 0], y], axis=1)
        if len(points) == 0 or self.model == "none":
            return points if self.turn is None else points @ self.turn
        if self.model not in OPENCV:
            rays, _ = undistorted(self.model, self.d, points, self.widest)
            return rays if self.turn is None else rays @ self.turn
        undistort = (
            cv2.fisheye.undistortPoints if self.model == "equidistant" else cv2.undistortPoints
        )
        rays = np.asarray(undistort(points[:, None], np.eye(3), self.d)[:, 0], np.float64)
        for _ in range(ROUNDS):
            change = distorted(self.model, self.d, rays) - points
            rays -= change
            if np.abs(change).max() < 1e-6:
                break
        return rays if self.turn is None else rays @ self.turn

    def pixels(self, rays: NDArray) -> NDArray[np.float64]:
        """Distorted pixels [M, 2] of normalised coordinates [M, 2]: the inverse of `rays`; NaN
        beyond the model's range."""
        points = np.ascontiguousarray(rays, np.float64)
        if self.turn is not None:
            points = points @ self.turn.T
        if len(points) and self.model != "none":
            beyond = ~(np.hypot(points[:, 0], points[:, 1]) < self.widest)
            points = np.where(
                beyond[:, None],
                np.nan,
                distorted(self.model, self.d, np.where(beyond[:, None], 0.0, points)),
            )
        points = points @ self.k[:2, :2].T + self.k[:2, 2]
        return points if self.image is None else points @ self.image[0].T + self.image[1]

    def derivative(self, rays: NDArray[np.float64]) -> NDArray[np.float64]:
        """[M, 2, 2]: how pixels change with normalised coordinates [M, 2], there; NaN beyond the
        model's range."""
        if self.model == "none":
            change = self.k[:2, :2] if self.turn is None else self.k[:2, :2] @ self.turn
            change = change if self.image is None else self.image[0] @ change
            return np.tile(change, (len(rays), 1, 1))
        sides = STEP * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
        right, left, below, above = np.split(
            self.pixels(np.concatenate([rays + side for side in sides])), 4
        )
        return np.stack([right - left, below - above], axis=-1) / (2 * STEP)

    def late(self, pixels: NDArray) -> NDArray[np.float64]:
        """Seconds [M] after the image's stamp, which is its middle row's, at which the rows of
        pixels [M, 2] were read out."""
        if not self.read_out:
            return np.zeros(len(pixels))
        down = np.array([0.0, 1.0]) if self.image is None else self.image[0][:, 1]
        middle = 0.5 * (np.array(self.size[::-1]) - 1.0)
        return np.asarray(
            (pixels - middle) @ down * (0.5 * self.read_out / (np.abs(down) @ middle)), np.float64
        )

    def inside(self, pixels: NDArray, margin: float) -> NDArray[np.bool_]:
        """Which pixels [M, 2] lie in the image, `margin` pixels from its border; NaN is outside."""
        height, width = self.size
        with np.errstate(invalid="ignore"):
            return (
                (pixels >= margin).all(-1)
                & (pixels[..., 0] <= width - 1 - margin)
                & (pixels[..., 1] <= height - 1 - margin)
            )


def lens_at(camera: Camera, size: tuple[int, int]) -> Lens:
    """The lens of `camera` for its image averaged down to fit an input of `size` (H, W). Raises
    CalibrationError."""
    reduce = reduction(camera, size)
    k = camera.k.copy()
    k[:2] /= reduce
    k[:2, 2] = (camera.k[:2, 2] + 0.5) / reduce - 0.5
    undistorted = camera.distortion_model == "none" or not any(camera.d)
    model = (
        "none"
        if undistorted and camera.distortion_model != "equidistant"
        else camera.distortion_model
    )
    return Lens(
        k,
        np.array(camera.d or (0.0,) * 4, np.float64),
        model,
        reduced_size(camera, reduce),
        widest_ray(camera),
        None if (turn := upright(camera)) is None else turn[:2, :2],
        turned_pixels(camera, reduce) if quarter_turns(camera) else None,
        camera.rolling_shutter,
    )


def ego_vehicle_at(camera: Camera, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """[H, W] of an input of that size, True where the camera's image shows the car itself; None
    where it does nowhere."""
    if camera.ego_vehicle is None:
        return None
    height, width = reduced_size(camera, reduction(camera, size))
    out = np.zeros(size, np.bool_)
    mask = np.ascontiguousarray(np.rot90(camera.ego_vehicle, quarter_turns(camera)), np.uint8)
    out[:height, :width] = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return out
