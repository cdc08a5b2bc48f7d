"""What shines into the lens: lamps and the sun, and what the lens scatters of them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.distortion import to_pixels
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.sim.light import Light, Points
from recon4d_ros.sim.raster import SKY, Hits
from recon4d_ros.sim.view import MAX_TANGENT, View

_LEAST = 0.7  # pixels: a smaller disc is drawn that large and darker
_VEIL = 4  # scattered light is drawn at a fraction of the size
_SUN_RADIUS = 0.0047  # tangent
_GHOSTS = ((-0.35, 0.05, 0.10), (-0.8, 0.09, 0.05), (0.45, 0.03, 0.12), (1.5, 0.14, 0.03))


def draw_points(
    light: NDArray[np.float32],
    hits: Hits,
    view: View,
    T_world_camera: NDArray[np.float64],
    points: Points,
    scatter: float,
) -> None:
    """Draw lamps into an image [H, W, 3], in place: their discs, and what the lens scatters.

    A lamp is hidden where the picture's depth at its pixel is less than its own. scatter: 1 for a
    clean lens, more for a wet one.
    """
    if not len(points.place):
        return
    local = transform(inverse(T_world_camera), points.place)
    if np.linalg.det(T_world_camera[:3, :3]) < 0:  # the mirror's camera: `inverse` is of rotations
        local = (points.place - T_world_camera[:3, 3]) @ T_world_camera[:3, :3]
    z = local[:, 2]
    ray = local[:, :2] / np.where(z > 0.3, z, np.inf)[:, None]
    weight = _facing(points, T_world_camera) * ((z > 0.3) & (np.hypot(*ray.T) < MAX_TANGENT))
    pixels = np.nan_to_num(to_pixels(view.camera, ray), nan=-1e4)
    height, width = view.shape
    inside = ((pixels > -0.5) & (pixels < (width - 0.5, height - 0.5))).all(1)
    u, v = (np.where(inside, np.rint(pixels[:, i]), 0).astype(int) for i in range(2))
    weight *= inside & (hits.inverse_depth[v, u] < 1.0 / np.maximum(z - 0.5, 0.1))
    veil = np.zeros((-(-height // _VEIL), -(-width // _VEIL), 3), np.float32)
    for i in np.flatnonzero(weight > 0.01):
        radius = view.focal * points.size[i] / z[i]
        color = points.color[i] * np.float32(points.power[i] * weight[i])
        energy = np.float32(np.pi * radius**2 / _VEIL**2)
        veil[v[i] // _VEIL, u[i] // _VEIL] += color * energy
        share = np.float32(min(1.0, (radius / _LEAST) ** 2))
        centre = round(float(pixels[i, 0]) * 16), round(float(pixels[i, 1]) * 16)
        size = round(max(radius, _LEAST) * 16)
        cv2.circle(light, centre, size, (color * share).tolist(), -1, cv2.LINE_8, 4)
    if veil.any():
        near, far = (cv2.GaussianBlur(veil, (0, 0), width / s) for s in (400.0, 70.0))
        glow = np.float32(0.20 * scatter) * near + np.float32(0.22 * scatter) * far
        light += cv2.resize(glow, (width, height), interpolation=cv2.INTER_LINEAR)


def _facing(points: Points, T_world_camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each lamp shines towards the camera, 0..1."""
    to_camera = T_world_camera[:3, 3] - points.place
    to_camera[:, 2] = np.abs(to_camera[:, 2])  # the mirror's camera lies below the ground
    to_camera /= np.maximum(np.linalg.norm(to_camera, axis=1, keepdims=True), 1e-6)
    cosine = (to_camera * points.facing).sum(1)
    return np.where((points.facing == 0).all(1), 1.0, np.clip(cosine, 0.0, 1.0) ** 3)


def dazzle(
    light: NDArray[np.float32],
    hits: Hits,
    view: View,
    T_world_camera: NDArray[np.float64],
    lit: Light,
    strength: float,
) -> None:
    """A sun in the lens, in place: its disc, a veil around it, and ghosts on the line through the
    middle. Hidden behind a house it leaves a little of the veil."""
    ray = T_world_camera[:3, :3].T @ lit.sun
    if ray[2] < 0.1:
        return
    height, width = view.shape
    pixel = np.nan_to_num(to_pixels(view.camera, (ray[:2] / ray[2])[None])[0], nan=-1e4)
    u, v = np.rint(pixel).astype(int)
    inside = 0 <= u < width and 0 <= v < height
    reach = max(round(2 * view.focal * _SUN_RADIUS), 1)
    seen = 0.0
    if inside:
        around = hits.surface[max(v - reach, 0) : v + reach + 1, max(u - reach, 0) : u + reach + 1]
        seen = float((around == SKY).mean())
    rows, columns = -(-height // _VEIL), -(-width // _VEIL)
    y, x = np.indices((rows, columns), dtype=np.float32) * _VEIL
    distance2 = ((x - pixel[0]) ** 2 + (y - pixel[1]) ** 2) / np.float32(width**2)
    share = strength * (0.12 + 0.88 * seen)
    veil = share * (0.012 / (distance2 + 0.004) + 0.0006 / (distance2 + 0.0002))
    if seen:
        middle = np.array([width, height]) / 2
        for along, size, power in _GHOSTS:
            gu, gv = middle + along * (pixel - middle)
            ring = np.sqrt((x - gu) ** 2 + (y - gv) ** 2) / np.float32(size * width)
            veil += np.float32(seen * power) * np.clip((1.0 - ring) * 12.0, 0.0, 1.0)
    full = cv2.resize(veil.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    light += full[..., None] * np.array([1.0, 0.88, 0.68], np.float32)
    if inside:
        disc = np.zeros((height, width), np.uint8)
        cv2.circle(disc, (int(u), int(v)), max(round(view.focal * _SUN_RADIUS * 1.6), 2), 1, -1)
        light[(disc > 0) & (hits.surface == SKY)] = 40.0
