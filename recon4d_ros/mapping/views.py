"""What one frame tells the map, per camera and before any voxel: points that are there, points that
moved, and how far one sees."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.types import Calibration, Geometry

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Samples:
    """Pixels chosen from one camera. points: [K, 3] float32 in the optical frame, m. colors: [K, 3]
    uint8. sigma: [K] m of the depth.

    confidence: [K] 0..1. moving: [K] bool, True where the pixel is on a dynamic object (the rest is
    static and outside the mask's margin)."""

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    sigma: NDArray[np.float32]
    confidence: NDArray[np.float32]
    moving: NDArray[np.bool_]


@dataclass(frozen=True)
class Gate:
    """Which pixels are worth a place in the map: metres, and confidence in 0..1. edge: largest
    relative step of inverse depth."""

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
    """Row and column steps with which at most about `budget` pixels of an image (h, w) are taken;
    columns are skipped first."""
    ratio = max(1.0, size[0] * size[1] / budget)
    column = int(np.ceil(np.sqrt(ratio)))
    return int(np.ceil(ratio / column)), column


def sample(
    geometry: Geometry,
    mask: NDArray[np.bool_],
    camera: int,
    directions: Image,
    gate: Gate,
    step: tuple[int, int],
    phase: tuple[int, int],
    dense: float = 0.0,
) -> Samples:
    """Every step-th pixel of one camera that passes the gate, from `phase` on (which turns with the
    frames: all pixels have their say).

    Where a surface is nearer than `dense` (m) every second of them in rows and columns is enough,
    for they fall into the same voxels.

    Pixels beside a depth discontinuity are left out: there depth is a mixture of near and far
    ("flying pixels"). The outermost pixels, which lack a neighbour, are left out too. Only the
    pixels taken are touched, however large the image.
    """
    h, w = geometry.depth.shape[1:]
    r = max(
        1, round(w / 500)
    )  # pixels to a neighbour: a large image's depth is smooth over more than one
    grid = (slice(r + phase[0], h - r, step[0]), slice(r + phase[1], w - r, step[1]))
    depth = geometry.depth[camera][grid].copy()
    good = (depth >= gate.min_range) & (depth <= gate.max_range)
    good &= (geometry.confidence[camera][grid] >= gate.min_confidence) & (
        geometry.sigma[camera][grid] <= gate.max_sigma
    )
    thin = depth < np.float32(dense)
    thin[::2, ::2] = False
    rows, columns = np.nonzero(good & ~thin)
    z = depth[rows, columns]
    index = (r + phase[0] + step[0] * rows) * w + (
        r + phase[1] + step[1] * columns
    )  # from here on only pixels that passed
    every = geometry.depth[camera].reshape(-1)
    # |1/a - 1/b| > edge / z of the two neighbours a, b in a row or column, without the divisions;
    # False where one has no depth
    kept = np.ones(len(index), bool)
    with np.errstate(invalid="ignore", over="ignore"):
        for offset in (r, r * w):
            a, b = every[index - offset], every[index + offset]
            kept &= ~(np.abs(a - b) * z > np.float32(gate.edge) * a * b)
    moving = np.zeros(len(index), bool)
    if mask[camera].any():
        moving = mask[camera].reshape(-1)[index]
        kept &= moving | ~_widened(mask[camera], gate.mask_margin).reshape(-1)[index]
    index = index[kept]
    return Samples(
        points=directions.reshape(-1, 3)[index] * z[kept, None],
        colors=geometry.color[camera].reshape(-1, 3)[index],
        sigma=geometry.sigma[camera].reshape(-1)[index],
        confidence=geometry.confidence[camera].reshape(-1)[index],
        moving=moving[kept],
    )


def free_until(
    depth: Image, sigma: Image, confidence: Image, min_confidence: float, slack: float
) -> Image:
    """[h, w] z-depth up to which one looks through empty space with certainty, 0 where nothing is
    known.

    The measured depth less 3 %, less two sigma or `slack` (m), and the least of the 3x3
    neighbourhood, so that neither a thin pole beside the pixel nor a slanted surface counts as seen
    through. The images may be every s-th pixel of larger ones.
    """
    doubt = np.maximum(sigma * np.float32(2.0), np.float32(slack))
    limit = depth * np.float32(0.97)
    limit -= doubt
    limit *= confidence >= min_confidence
    np.fmax(limit, np.float32(0.0), out=limit)  # fmax: NaN (no depth) becomes 0
    return np.asarray(
        cv2.erode(limit, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE), np.float32
    )


def _widened(moving: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """[h, w] the mask and a ring around it that is neither surely static nor surely moving."""
    if pixels == 0:
        return moving
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return np.asarray(cv2.dilate(moving.view(np.uint8), kernel)).view(np.bool_)
