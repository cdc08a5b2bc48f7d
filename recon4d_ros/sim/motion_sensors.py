"""An inertial sensor and wheel odometry beside the cameras, with the errors that they have.

Both sit in base_link. Errors follow from the seed; the sizes are those of what is built into cars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse, log

GRAVITY = 9.81  # m/s^2
IMU_RATE, ODOMETRY_RATE = 100.0, 50.0  # Hz
GYRO_NOISE, GYRO_BIAS = 0.0012, 0.003  # rad/s: of a sample, and of the drive
ACCELERATION_NOISE, ACCELERATION_BIAS = 0.02, 0.05  # m/s^2, likewise
WHEEL_SCALE, WHEEL_NOISE = 0.012, 0.02  # share; m/s of a sample while the wheels turn
YAW_SCALE, YAW_NOISE = 0.015, 0.003  # share; rad/s of a sample while the wheels turn
_STEP = 0.01  # seconds to each side for derivatives

Pose = Callable[[float], NDArray[np.float64]]


@dataclass(frozen=True)
class ImuSample:
    """t: seconds. gyro: [3] rad/s. acceleration: [3] m/s^2, at rest 9.81 upward."""

    t: float
    gyro: NDArray[np.float64]
    acceleration: NDArray[np.float64]


@dataclass(frozen=True)
class WheelSample:
    """t: seconds. T_odom_base: [4, 4] as integrated. velocity: [6] twist in base_link, m/s and
    rad/s."""

    t: float
    T_odom_base: NDArray[np.float64]
    velocity: NDArray[np.float64]


def twist_at(pose: Pose, t: float) -> NDArray[np.float64]:
    """[6] twist in base_link."""
    return log(inverse(pose(t - _STEP)) @ pose(t + _STEP)) / (2 * _STEP)


def imu(pose: Pose, seconds: float, seed: int) -> Iterator[ImuSample]:
    """Samples of a car whose T_world_base is `pose`."""
    rng = np.random.default_rng([seed, 18])
    gyro_bias = rng.normal(0.0, GYRO_BIAS, 3)
    acceleration_bias = rng.normal(0.0, ACCELERATION_BIAS, 3)
    for index in range(round(seconds * IMU_RATE)):
        t = index / IMU_RATE
        before, now, after = (pose(t + d) for d in (-_STEP, 0.0, _STEP))
        turning = log(inverse(before) @ after)[3:] / (2 * _STEP)
        force = (before[:3, 3] - 2 * now[:3, 3] + after[:3, 3]) / _STEP**2 + (0, 0, GRAVITY)
        yield ImuSample(
            t,
            turning + gyro_bias + rng.normal(0.0, GYRO_NOISE, 3),
            now[:3, :3].T @ force + acceleration_bias + rng.normal(0.0, ACCELERATION_NOISE, 3),
        )


def wheels(pose: Pose, seconds: float, seed: int) -> Iterator[WheelSample]:
    """Wheel odometry: speed with an error of scale, yaw rate from the difference of the wheels,
    integrated in the plane. While the wheels stand it says exactly zero."""
    rng = np.random.default_rng([seed, 19])
    scale, yaw_scale = 1.0 + rng.normal(0.0, WHEEL_SCALE), 1.0 + rng.normal(0.0, YAW_SCALE)
    x = y = heading = 0.0
    step = 1.0 / ODOMETRY_RATE
    for index in range(round(seconds * ODOMETRY_RATE)):
        t = index * step
        true = twist_at(pose, t)
        turns = float(abs(true[0]) > 0.01)
        speed = turns * (true[0] * scale + rng.normal(0.0, WHEEL_NOISE))
        rate = turns * (true[5] * yaw_scale + rng.normal(0.0, YAW_NOISE))
        if index:
            middle = heading + 0.5 * rate * step
            x, y = x + speed * step * np.cos(middle), y + speed * step * np.sin(middle)
            heading += rate * step
        T = np.eye(4)
        c, s = np.cos(heading), np.sin(heading)
        T[:2, :2], T[:2, 3] = ((c, -s), (s, c)), (x, y)
        yield WheelSample(t, T, np.array([speed, 0.0, 0.0, 0.0, 0.0, rate]))
