"""The road as the measure of all lengths: cameras that look alone know no metre but their height
above it.

Landmarks of the road are known by their own sightings to a per cent of their depth, which is a per
cent of the camera's height. Where the plane through them lies too high or too low, every length of
the map is too short or too long by that share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.egomotion import camera_rig

Array = NDArray[np.float64]

FARTHEST = 20.0  # metres along the optical axis
TILT, SHARE = (
    0.006,
    0.03,
)  # rad that the car leans against the road, and the share that the road itself is uneven


def inverse_depth(rays: Array, T_base_camera: Array) -> tuple[Array, Array]:
    """Inverse depth and variance [M] that rays [M, 2] (normalised) have if they end on the ground
    (base_link z = 0); NaN where none can."""
    height = float(T_base_camera[2, 3])
    if height < camera_rig.LOWEST:
        return np.full(len(rays), np.nan), np.full(len(rays), np.nan)
    down = -(np.concatenate([rays, np.ones((len(rays), 1))], axis=1) @ T_base_camera[2, :3])
    rho = down / height
    rho = np.where(rho > 1.0 / FARTHEST, rho, np.nan)
    lean = TILT * np.sqrt(1.0 + (rays**2).sum(-1)) / height
    return rho, (SHARE * rho) ** 2 + lean**2


GATE = 25.0  # squared deviation of a measurement that is of something else
START, WALK = 0.05, 0.004  # deviation of the scale at the start, and what each frame adds
SLOW = 0.03  # m in a frame: a shorter way says nothing of a scale


class Scale:
    """How much too long the lengths of the map are, by the road: a scalar Kalman filter on how far
    points and road say that the car went. Cameras that look alone have no other metre."""

    def __init__(self) -> None:
        self._variance = START**2

    def excess(self, went: float, variance: float, by_road: float, road_variance: float) -> float:
        """The share by which lengths are too long, as it is to be taken out of them now (0: nothing
        is known). went, by_road: metres along the car's axis in this frame, and their variances."""
        self._variance = min(self._variance + WALK**2, START**2)
        if abs(by_road) < SLOW:
            return 0.0
        measured = went / by_road - 1.0
        noise = (variance + road_variance) / by_road**2
        if measured**2 > GATE * (self._variance + noise):
            return 0.0
        gain = self._variance / (self._variance + noise)
        self._variance *= 1.0 - gain
        return float(gain * measured)
