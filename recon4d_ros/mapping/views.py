"""What one frame tells the map, per camera and before any voxel: points that are there, points that moved, and how far one sees."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.types import Calibration, Geometry

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Samples:
    """Pixels chosen from one camera. points: [K, 3] float32 in the optical frame, m. colors: [K, 3] uint8. sigma: [K] m of the depth.

    confidence: [K] 0..1. moving: [K] bool, True where the pixel is on a mover (the rest is static and outside the mask's margin).
    """

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    sigma: NDArray[np.float32]
    confidence: NDArray[np.float32]
    moving: NDArray[np.bool_]


@dataclass(frozen=True)
class Gate:
    """Which pixels are worth a place in the map: metres, and confidence in 0..1. edge: largest relative step of inverse depth."""

    min_range: float
    max_range: float
    min_confidence: float
    max_sigma: float
    edge: float
    mask_margin: int


def rays(calibration: Calibration) -> NDArray[np.float32]:
    """[N, h, w, 3] viewing directions in the optical frame with z = 1."""
    h, w = calibration.working_size
    v, u = np.indices((h, w), dtype=np.float64)
    x = (u - calibration.k[:, 0, 2, None, None]) / calibration.k[:, 0, 0, None, None]
    y = (v - calibration.k[:, 1, 2, None, None]) / calibration.k[:, 1, 1, None, None]
    return np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float32)


def steps(size: tuple[int, int], budget: int) -> tuple[int, int]:
    """Row and column steps with which at most about `budget` pixels of an image (h, w) are taken; columns are skipped first."""
    ratio = max(1.0, size[0] * size[1] / budget)
    column = int(np.ceil(np.sqrt(ratio)))
    return int(np.ceil(ratio / column)), column


def sample(geometry: Geometry, mask: NDArray[np.bool_], camera: int, directions: Image, gate: Gate, step: tuple[int, int],
           phase: tuple[int, int]) -> Samples:
    """Every step-th pixel of one camera that passes the gate, from `phase` on (which turns with the frames: all pixels have their say).

    Pixels beside a depth discontinuity are left out: there depth is a mixture of near and far ("flying pixels").
    """
    at = (slice(phase[0], None, step[0]), slice(phase[1], None, step[1]))
    depth, sigma, confidence = (image[camera][at] for image in (geometry.depth, geometry.sigma, geometry.confidence))
    good = (depth >= gate.min_range) & (depth <= gate.max_range) & (confidence >= gate.min_confidence) & (sigma <= gate.max_sigma)
    good &= ~_discontinuous(geometry.depth[camera], gate.edge)[at]
    moving = mask[camera]
    if moving.any():
        good &= ~_margin(moving, gate.mask_margin)[at]
    moving = moving[at]
    rows, columns = np.nonzero(good)
    return Samples(
        points=directions[at][rows, columns] * depth[rows, columns, None],
        colors=geometry.color[camera][at][rows, columns],
        sigma=sigma[rows, columns],
        confidence=confidence[rows, columns],
        moving=moving[rows, columns],
    )


def free_until(depth: Image, sigma: Image, confidence: Image, min_confidence: float, slack: float) -> Image:
    """[h, w] z-depth up to which one looks through empty space with certainty, 0 where nothing is known.

    The measured depth less 3 %, less three sigma or `slack` (m), and the least of the 3x3 neighbourhood, so that neither a thin pole
    beside the pixel nor a slanted surface counts as seen through.
    """
    limit = np.float32(0.97) * depth - np.maximum(np.float32(3.0) * sigma, np.float32(slack))
    limit = np.fmax(limit, np.float32(0.0))  # fmax: NaN (no depth) becomes 0
    limit[~(confidence >= min_confidence)] = 0.0
    return np.asarray(cv2.erode(limit, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE), np.float32)


def _discontinuous(depth: Image, edge: float) -> NDArray[np.bool_]:
    """[h, w] pixels whose two neighbours in a row or a column differ by more than `edge` of the pixel's own inverse depth."""
    inverse = 1.0 / depth
    limit = np.float32(edge) * inverse
    out = np.zeros(depth.shape, bool)
    out[:, 1:-1] |= np.abs(inverse[:, 2:] - inverse[:, :-2]) > limit[:, 1:-1]
    out[1:-1] |= np.abs(inverse[2:] - inverse[:-2]) > limit[1:-1]
    return out


def _margin(moving: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """[h, w] the ring around the mask: neither surely static nor surely moving."""
    if pixels == 0:
        return np.zeros_like(moving)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    wide = cv2.dilate(moving.view(np.uint8), kernel)
    return (wide != 0) & ~moving
