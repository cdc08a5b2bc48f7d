"""The lens models' formulas: ideal rays (x / z, y / z) to distorted ones, still normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float64

# models that are not a pinhole times a polynomial: their range is told in angles
ANGULAR = ("equidistant", "thin_prism_fisheye", "fov", "double_sphere", "eucm")


def distorted(model: str, d: Sequence[float] | Array, rays: Array) -> Array:
    """[M, 2] of rays [M, 2], by a model of `Camera` and its coefficients."""
    return rays if model == "none" else _MODELS[model](np.asarray(d, np.float64), rays)


def _polynomial(d: Array, rays: Array) -> Array:
    """OpenCV's: radial, rational, tangential, thin prism, tilted sensor."""
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
    return np.asarray(cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), d)[0])[:, 0]


def _equidistant(d: Array, rays: Array) -> Array:
    """Kannala and Brandt, A generic camera model (2006), as OpenCV's fisheye has it."""
    d = d if len(d) else np.zeros(4)
    return np.asarray(cv2.fisheye.distortPoints(rays[:, None], np.eye(3), d))[:, 0]


def _thin_prism_fisheye(d: Array, rays: Array) -> Array:
    """COLMAP's THIN_PRISM_FISHEYE: k1 k2 p1 p2 k3 k4 sx1 sy1, of points at the angle's distance
    from the centre."""
    k1, k2, p1, p2, k3, k4, sx, sy = d if len(d) else np.zeros(8)
    length = np.linalg.norm(rays, axis=1, keepdims=True)
    flat = rays * (np.arctan(length) / np.maximum(length, 1e-12))
    u, v = flat.T
    square = u**2 + v**2
    radial = np.polynomial.polynomial.polyval(square, [0.0, k1, k2, k3, k4])
    return flat + np.stack(
        [
            u * radial + 2 * p1 * u * v + p2 * (square + 2 * u**2) + sx * square,
            v * radial + 2 * p2 * u * v + p1 * (square + 2 * v**2) + sy * square,
        ],
        axis=1,
    )


def _fov(d: Array, rays: Array) -> Array:
    """Devernay and Faugeras, Straight lines have to be straight (2001), equation 13: omega."""
    (omega,) = d
    length = np.linalg.norm(rays, axis=1, keepdims=True)
    return rays * (np.arctan(2 * np.tan(omega / 2) * length) / (omega * np.maximum(length, 1e-12)))


def _double_sphere(d: Array, rays: Array) -> Array:
    """Usenko et al., The double sphere camera model (2018), equations 40 to 42: xi, alpha."""
    xi, alpha = d
    square = np.sum(rays**2, axis=1, keepdims=True)
    first = np.sqrt(square + 1.0)
    along = xi * first + 1.0
    return rays / (alpha * np.sqrt(square + along**2) + (1 - alpha) * along)


def _eucm(d: Array, rays: Array) -> Array:
    """Khomutenko et al., An enhanced unified camera model (2016): alpha, beta."""
    alpha, beta = d
    square = np.sum(rays**2, axis=1, keepdims=True)
    return rays / (alpha * np.sqrt(beta * square + 1.0) + (1 - alpha))


_MODELS: dict[str, Callable[[Array, Array], Array]] = {
    "plumb_bob": _polynomial,
    "rational_polynomial": _polynomial,
    "equidistant": _equidistant,
    "thin_prism_fisheye": _thin_prism_fisheye,
    "fov": _fov,
    "double_sphere": _double_sphere,
    "eucm": _eucm,
}


def radius(model: str, d: Sequence[float], tangents: Array) -> Array:
    """How far from the centre rays [T] of these tangents of their angle come to lie, without what
    bends them to the side; not finite where the model ends."""
    whole = np.zeros(14)  # of a polynomial thin prism and tilt, the last six, bend it by little
    whole[: len(d)] = d
    if model == "thin_prism_fisheye":
        whole[[2, 3, 6, 7]] = 0.0
    if model in ANGULAR:
        rays = np.stack([tangents, np.zeros_like(tangents)], axis=1)
        return distorted(model, whole[: len(d)], rays)[:, 0]
    square = tangents**2
    above = np.polynomial.polynomial.polyval(square, [1.0, whole[0], whole[1], whole[4]])
    below = np.polynomial.polynomial.polyval(square, [1.0, whole[5], whole[6], whole[7]])
    with np.errstate(divide="ignore", invalid="ignore"):
        # a denominator that crosses zero ends the range
        return np.where(below > 0, tangents * above / below, -np.inf)
