"""How far a motion that is only predicted may be off: constant velocity, and odometry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry

Array = NDArray[np.float64]


class Unconfirmed:
    """The time since an image or odometry confirmed the motion, and what constant velocity may be
    off by then."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._told: Array = np.zeros(
            (6, 6)
        )  # what those seconds have added to the pose's covariance

    def covariance(self, seconds: float, known: bool) -> Array:
        """[6, 6] after `seconds` more. known: whether there is a velocity at all."""
        seconds = seconds + self.seconds
        if known:
            deviation = np.concatenate(
                [
                    0.03 + seconds**2 * np.array([4.0, 1.5, 1.5]),
                    0.004 + seconds**2 * np.array([0.5, 0.5, 1.0]),
                ]
            )
        else:
            deviation = np.concatenate(
                [
                    0.03 + seconds * np.array([25.0, 3.0, 2.0]),
                    0.01 + seconds * np.array([0.2, 0.2, 0.7]),
                ]
            )
        return np.diag(np.minimum(deviation, 100.0) ** 2)

    def confirmed(self) -> None:
        """The motion is confirmed: seconds without confirmation, and what they added to the
        covariance, start anew."""
        self.seconds, self._told = 0.0, np.zeros((6, 6))

    def carried_on(self, seconds: float, covariance: Array) -> Array:
        """`seconds` more without confirmation, predicted with this covariance: what they add to the
        pose's [6, 6]."""
        self.seconds += seconds
        growth = np.maximum(covariance - self._told, 1e-8 * np.eye(6))
        self._told = covariance
        return np.diag(np.diag(growth))


def of_odometry(motion: Array, noise: float) -> Array:
    """Covariance [6, 6] of a motion [4, 4] that odometry tells. noise: standard deviation as a
    share of it."""
    twist = geometry.log(motion)
    travel, turn = (
        noise * np.linalg.norm(twist[:3]) + 0.005,
        noise * np.linalg.norm(twist[3:]) + 0.001,
    )
    return np.diag(np.repeat([travel, turn], 3) ** 2)
