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
from recon4d_ros.egomotion.lean import Lean

Array = NDArray[np.float64]

FARTHEST = 20.0  # metres along the optical axis
SHARE = 0.03  # that the road itself is uneven


def inverse_depth(rays: Array, T_base_camera: Array, lean: Lean) -> tuple[Array, Array]:
    """Inverse depth and variance [M] that rays [M, 2] (normalised) have if they end on the road,
    which lies as `lean` says; NaN where none can."""
    normal, height = lean.plane(T_base_camera[:3, 3])
    if min(height, T_base_camera[2, 3]) < camera_rig.LOWEST:
        return np.full(len(rays), np.nan), np.full(len(rays), np.nan)
    toward = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) @ T_base_camera[:3, :3].T
    rho = -(toward @ normal) / height
    rho = np.where(rho > 1.0 / FARTHEST, rho, np.nan)
    turned = np.einsum("mi,ij,mj->m", toward[:, :2], lean.spread, toward[:, :2]) / height**2
    return rho, (SHARE * rho) ** 2 + turned


GATE = 25.0  # squared deviation of a measurement that is of something else
# deviation of the scale at the start, beside what is not known of how the road lies, and what each
# frame adds
START, WALK = 0.02, 0.004
SLOW = 0.03  # m in a frame: a shorter way says nothing of a scale


class Scale:
    """How much too long the lengths of the map are, by the road: a scalar Kalman filter on how far
    points and road say that the car went. Cameras that look alone have no other metre. turned: what
    the lengths may be off by since it is not known how the road lies, as a share."""

    def __init__(self, turned: float) -> None:
        self._most = START**2 + turned**2
        self._variance = self._most

    @property
    def deviation(self) -> float:
        """Of the lengths, as a share of them, beside what the road itself is off by."""
        return float(np.sqrt(self._variance))

    def excess(self, went: float, variance: float, by_road: float, road_variance: float) -> float:
        """The share by which lengths are too long, as it is to be taken out of them now (0: nothing
        is known). went, by_road: metres along the car's axis in this frame, and their variances."""
        self._variance = min(self._variance + WALK**2, self._most)
        if abs(by_road) < SLOW:
            return 0.0
        measured = went / by_road - 1.0
        noise = (variance + road_variance) / by_road**2
        if measured**2 > GATE * (self._variance + noise):
            return 0.0
        gain = self._variance / (self._variance + noise)
        self._variance *= 1.0 - gain
        return float(gain * measured)
