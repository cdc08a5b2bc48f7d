"""What is recognised of an image: corners with a descriptor, spread over the image.

ORB (Rublee, Rabaud, Konolige and Bradski, ICCV 2011), as OpenCV has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.lens import ego_vehicle_at, lens_at
from recon4d_ros.egomotion.landmarks import inverse_depth, rays_to_pixels, sample
from recon4d_ros.types import Calibration, Geometry, Rig

_CELLS = (6, 10)  # rows and columns of the image that share its features
_LEVELS, _SCALE = 6, 1.25  # of the image pyramid: three octaves less a third
_THRESHOLD = 10  # of FAST: less is noise
_PIXELS = 1.0  # standard deviation of where a feature is, at full resolution


@dataclass(frozen=True)
class Features:
    """F features of a frame set. camera: [F] int16. ray: [F, 2] float32, normalised coordinates in
    the working image's frame. sigma: [F] float32, standard deviation of ray. rho, variance: [F]
    float32, inverse depth (1/m) and its variance, NaN where it is not known. descriptor: [F, 32]
    uint8."""

    camera: NDArray[np.int16]
    ray: NDArray[np.float32]
    sigma: NDArray[np.float32]
    rho: NDArray[np.float32]
    variance: NDArray[np.float32]
    descriptor: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.camera)

    def take(self, index: NDArray) -> Features:
        return Features(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Snapshot:
    """A frame set as it has to be kept until its features are looked for.

    images: grey [H, W] of the cameras that have one, else None. geometry: the engine's; None where
    the pose was not usable. mask: [N, h, w], True on dynamic objects.
    """

    images: tuple[NDArray[np.uint8] | None, ...]
    geometry: Geometry | None
    mask: NDArray[np.bool_]


class Orb:
    """Features of a rig's images. Not to be called from two threads at once."""

    name = "orb"
    length = 32

    def __init__(self, rig: Rig, calibration: Calibration, count: int) -> None:
        """count: of all cameras together."""
        self._calibration = calibration
        self._lenses = [lens_at(camera, calibration.input_size) for camera in rig.cameras]
        self._count = max(count // len(rig.cameras), 20)
        # a corner's patch must not reach into the ego-vehicle
        widen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (31, 31))
        self._allowed = [
            None
            if (mask := ego_vehicle_at(camera, calibration.input_size)) is None
            else np.asarray(255 * (1 - cv2.dilate(mask.astype(np.uint8), widen)), np.uint8)
            for camera in rig.cameras
        ]
        self._orb = cv2.ORB.create(
            nfeatures=4 * self._count,
            scaleFactor=_SCALE,
            nlevels=_LEVELS,
            fastThreshold=_THRESHOLD,
        )

    def __call__(self, snapshot: Snapshot) -> Features:
        """Of all cameras; none on dynamic objects."""
        parts = [
            self._of(number, image, snapshot)
            for number, image in enumerate(snapshot.images)
            if image is not None
        ]
        if not parts:
            return nothing()
        return Features(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(Features)
            )
        )

    def _of(self, number: int, image: NDArray[np.uint8], snapshot: Snapshot) -> Features:
        lens, k = self._lenses[number], self._calibration.k[number]
        height, width = lens.size  # beyond, the border's pixels are repeated
        found = self._orb.detect(image[:height, :width], self._mask(number, height, width))
        found = _spread(found, (height, width), self._count)
        found, descriptors = self._orb.compute(image[:height, :width], found)
        if not found:
            return nothing()
        pixels = np.array([point.pt for point in found], np.float64)
        rays = lens.rays(pixels)
        octave = np.array([point.octave for point in found])
        camera = np.full(len(found), number)
        working = rays_to_pixels(rays, k)
        rho = np.full(len(found), np.nan)
        variance = rho.copy()
        if snapshot.geometry is not None:
            rho, variance = inverse_depth(snapshot.geometry, camera, working)
        features = Features(
            camera.astype(np.int16),
            rays.astype(np.float32),
            (_PIXELS * _SCALE**octave / lens.focal).astype(np.float32),
            rho.astype(np.float32),
            variance.astype(np.float32),
            np.asarray(descriptors, np.uint8),
        )
        moving = sample(snapshot.mask, camera, working).astype(bool)
        return features.take(np.isfinite(rays).all(1) & ~moving)

    def _mask(self, number: int, height: int, width: int) -> NDArray[np.uint8] | None:
        allowed = self._allowed[number]
        return None if allowed is None else np.ascontiguousarray(allowed[:height, :width])


def nothing() -> Features:
    """No features."""
    none = np.zeros(0, np.float32)
    return Features(
        np.zeros(0, np.int16),
        np.zeros((0, 2), np.float32),
        none,
        none,
        none,
        np.zeros((0, Orb.length), np.uint8),
    )


def _spread(
    found: Sequence[cv2.KeyPoint], size: tuple[int, int], count: int
) -> tuple[cv2.KeyPoint, ...]:
    """The best `count`: first the best of every cell, then the second best of every cell, ..."""
    if len(found) <= count:
        return tuple(found)
    at = np.array([point.pt for point in found])
    response = np.array([point.response for point in found])
    row = np.minimum(at[:, 1] * _CELLS[0] / size[0], _CELLS[0] - 1).astype(int)
    column = np.minimum(at[:, 0] * _CELLS[1] / size[1], _CELLS[1] - 1).astype(int)
    cell = row * _CELLS[1] + column
    order = np.lexsort((-response, cell))
    begins = np.flatnonzero(np.diff(cell[order], prepend=-1))
    rank = np.empty(len(found), int)
    rank[order] = np.arange(len(found)) - np.repeat(begins, np.diff([*begins, len(found)]))
    best = np.lexsort((-response, rank))[:count]
    return tuple(found[i] for i in best.tolist())
