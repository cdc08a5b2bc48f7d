"""What time does to a picture: rows that are read out one after another, and the blur of what moves
while the shutter is open.

A rolling shutter is exact: every row has its own pose of the camera, and its own place of every
mover, and its depth is along the optical axis of that pose. Blur is the average of the sharp
picture along each pixel's own motion; it does not touch the truth.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import exp
from recon4d_ros.sim.raster import Hits, Rows
from recon4d_ros.sim.view import View

_KNOTS = 9  # poses over a read-out; rows between them are interpolated
_TAP = 2.5  # pixels of blur per sample of it
_MOST_TAPS = 15
_SHARP = 0.25  # pixels: less blur than this is none
_COARSE = 2  # motion is computed at a fraction of the size
_AT_INFINITY = 1e-4  # inverse depth of the sky


def rows_of(view: View, twist: NDArray[np.float64], velocity: NDArray[np.float64]) -> Rows:
    """The rows of a camera that moves with a twist [6] (in its own frame, m/s and rad/s). velocity:
    [P, 3] of each solid, m/s in world."""
    span, rows = view.camera.rolling_shutter, view.camera.height
    time = (np.arange(rows) / max(rows - 1, 1) - 0.5) * span
    knots = np.linspace(-0.5, 0.5, _KNOTS) * span
    poses = np.stack([exp(twist * t)[:3] for t in knots]).reshape(_KNOTS, 12)
    every = np.stack([np.interp(time, knots, poses[:, i]) for i in range(12)], 1)
    every = every.reshape(rows, 3, 4)
    return Rows(time, every[..., :3], every[..., 3], velocity)


def camera_twist(T_base_camera: NDArray[np.float64], twist: NDArray[np.float64]) -> NDArray:
    """The twist [6] of a camera in its own frame, from base_link's in base_link."""
    rotation, lever = T_base_camera[:3, :3], T_base_camera[:3, 3]
    return np.concatenate(
        [
            rotation.T @ (twist[:3] + np.cross(twist[3:], lever)),
            rotation.T @ twist[3:],
        ]
    )


def pixel_motion(
    hits: Hits, view: View, twist: NDArray[np.float64], velocity: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Motion [h, w, 2] of what each pixel sees, in pixels per second, at 1 / _COARSE of the size.

    twist: the camera's own. velocity: [H, W, 3] of movers, m/s in the camera's frame.
    """
    thin = (slice(None, None, _COARSE),) * 2
    x, y = (np.broadcast_to(v, view.shape)[thin].astype(np.float32) for v in (hits.x, hits.y))
    w = np.maximum(np.broadcast_to(hits.inverse, view.shape)[thin], np.float32(_AT_INFINITY))
    v, omega = twist[:3].astype(np.float32), twist[3:].astype(np.float32)
    moves = velocity[thin]
    rates = [(moves[..., i] - v[i]) * w for i in range(3)]
    rates[0] -= omega[1] - omega[2] * y
    rates[1] -= omega[2] * x - omega[0]
    rates[2] -= omega[0] * y - omega[1] * x
    dx, dy = rates[0] - x * rates[2], rates[1] - y * rates[2]
    jacobian = view.pixels_per_ray(_COARSE)
    flow = np.stack(
        [
            jacobian[..., 0, 0] * dx + jacobian[..., 0, 1] * dy,
            jacobian[..., 1, 0] * dx + jacobian[..., 1, 1] * dy,
        ],
        axis=-1,
    )
    return np.nan_to_num(flow.astype(np.float32))


def blur(
    light: NDArray[np.float32], flow: NDArray[np.float32], seconds: float
) -> NDArray[np.float32]:
    """The picture [H, W, 3] with the shutter open for `seconds`. flow: as `pixel_motion` gives
    it."""
    height, width = light.shape[:2]
    way = flow * np.float32(seconds)
    length = float(np.percentile(np.abs(way).max(-1), 97))
    if length < _SHARP:
        return light
    taps = int(np.clip(np.ceil(length / _TAP), 3, _MOST_TAPS))
    limit = np.float32(_TAP * _MOST_TAPS)
    full = cv2.resize(np.clip(way, -limit, limit), (width, height), interpolation=cv2.INTER_NEAREST)
    v, u = np.indices((height, width), dtype=np.float32)
    total = np.zeros_like(light)
    for step in np.linspace(-0.5, 0.5, taps):
        share = np.float32(step)
        total += cv2.remap(
            light,
            u - full[..., 0] * share,
            v - full[..., 1] * share,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return total * np.float32(1.0 / taps)
