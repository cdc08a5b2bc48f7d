"""The road as the measure of all lengths: cameras that look alone know no metre but their height
above it.

Landmarks of the road are known by their own sightings to a per cent of their depth, which is a per
cent of the camera's height. Where the plane through them lies too high or too low, every length of
the map is too short or too long by that share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import camera_rig
from recon4d_ros.egomotion.camera_rig import Cameras
from recon4d_ros.egomotion.landmarks import Landmarks

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


KNOWN, AGE = (
    0.03,
    2,
)  # relative deviation of a depth, sightings: a landmark that says anything of the road
REACH = 20.0  # metres from the car in which landmarks are looked at
UNEVEN = 0.01  # share of a camera's height that the road is off at any one point
LEAN, MOUNTED = (
    0.006,
    0.03,
    # rad: how far the car leans against the road, and how far off its cameras' calibration may be
    # in that
)
START, WALK = 0.04, 0.0007  # deviation of the scale at the start, and what each frame adds
HEAVE = 0.01  # share of its height that the car itself goes up and down
WIDE = 0.1  # deviation of the share before anything is measured: next to nothing is known
FEWEST = 8
ROUNDS = 6


class Ruler:
    """How much too long the lengths of the map are: a scalar Kalman filter on what the road
    says."""

    def __init__(self) -> None:
        self._variance = START**2

    def excess(self, cameras: Cameras, table: Landmarks, T_map_base: Array) -> float:
        """The share by which lengths around the car are too long, as it is to be taken out of them
        now (0: nothing is known)."""
        self._variance += WALK**2
        use = np.flatnonzero((table.age >= AGE) & (table.variance < (KNOWN * table.rho) ** 2))
        points = geometry.transform(
            geometry.inverse(T_map_base),
            table.origin[use] + table.bearing[use] / table.rho[use, None],
        )
        use, points = (
            values[np.square(points[:, :2]).sum(1) < REACH**2] for values in (use, points)
        )
        height = cameras.T_base_camera[table.camera[use], 2, 3]
        measured = plane(
            points,
            height,
            np.sqrt(table.variance[use]) / table.rho[use],
            float(np.sqrt(self._variance)),
        )
        if measured is None:
            return 0.0
        excess, variance = measured
        gain = self._variance / (self._variance + variance + HEAVE**2)
        self._variance *= 1.0 - gain
        return gain * excess


def plane(
    points: Array, height: Array, doubt: Array, expected: float
) -> tuple[float, float] | None:
    """The share by which depths of points [M, 3] (base_link) of the road are too long, and its
    variance; None if too few are on it.

    height [M]: of the cameras that they were measured from, m. doubt [M]: relative deviation of
    their depths. expected: deviation of the share. A depth too long by a share e puts a point e
    times the camera's height under the road. What stands on the road is left out: first what is
    higher than a car that leans and a wrong scale can explain, then by a loss that redescends as it
    narrows.
    """
    rows = np.column_stack([-height, points[:, :2]])
    noise = height * np.hypot(doubt, UNEVEN)
    spread = np.sqrt(
        np.square(rows) @ np.array([expected**2 + HEAVE**2, LEAN**2, LEAN**2]) + np.square(noise)
    )
    near = (height > camera_rig.LOWEST) & (np.abs(points[:, 2]) < 3.0 * spread)
    if near.sum() < FEWEST:
        return None
    rows, noise, spread, up = rows[near], noise[near], spread[near], points[near, 2]
    prior = np.diag([1 / WIDE**2, 1 / MOUNTED**2, 1 / MOUNTED**2])
    found = np.zeros(3)
    for index in range(ROUNDS):
        width = 3.0 * np.maximum(noise, spread / 2**index)
        off = up - rows @ found
        weight = np.square(1.0 / (1.0 + np.square(off / width)) / noise)
        normal = (rows * weight[:, None]).T @ rows + prior
        found = np.linalg.solve(normal, rows.T @ (weight * up))
    if (np.abs(off) < width).sum() < FEWEST:
        return None
    return float(found[0]), float(np.linalg.inv(normal)[0, 0])
