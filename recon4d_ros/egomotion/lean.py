"""How the road lies under the rig: its slope in base_link.

Part of it passes: brakes, bends and bumps. Part of it stays: how the cameras are mounted, or the
car loaded. Both change the lengths that the road gives: of a patch at distance d below a camera at
height h, an angle e makes a length e d / h too long. The part that stays is seen by where the car
goes: it rolls along the road, so that the road is as steep in base_link as the way is, but for what
the body bounces, which averages out, and for crests and dips, which do so more slowly. (The focus
of expansion lies on the horizon of the plane that a camera moves along; Hartley and Zisserman, 8.6
and 9.5.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion.calibration import CALIBRATION

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LeanThresholds:
    """One standard deviation each. From vehicle dynamics, not from drives."""

    passing: float = 0.008  # rad: how far the car leans against the road
    middle: float = 1.35  # m before the rear axle: half a wheelbase, about which a car nods
    passing_seconds: float = 1.95  # after which a third of it is left: brakes and bumps pass
    # after which a third of what was seen to stay still holds: loads and tyres change
    stays_seconds: float = 2000.0
    # m/s up and down: the body of a car feels 0.5 m/s^2 at 1.2 Hz on usual roads (ISO 8608, B to C)
    heave: float = 0.07
    heave_share: float = 0.02  # of the speed, where that is less: the road makes it
    heave_seconds: float = 0.1  # for so long it goes on one way
    # rad between the way and the road that the cameras show: crests, dips, and what the points are
    # off by together
    bend: float = 0.003
    bend_seconds: float = 3.28  # after which a third of it is left
    least: float = 0.05  # m: a shorter way says nothing
    wild: float = 9.0  # squared deviation of a slope from which it counts less
    stretch: float = 10.0  # m of road that cameras measure by at once


THRESHOLDS = LeanThresholds()
NOD = np.array([THRESHOLDS.middle, 0.0])


@dataclass(frozen=True)
class Lean:
    """A Kalman filter's state. mean [5], rad: slope of the road along x and y in base_link now;
    that of it which stays; and how much steeper the way is than the road. covariance [5, 5]."""

    mean: Array
    covariance: Array

    @staticmethod
    def unknown() -> Lean:
        """As the mounts are stated to be (`CalibrationThresholds.mount`)."""
        stays, passes = CALIBRATION.mount**2 * np.eye(2), THRESHOLDS.passing**2 * np.eye(2)
        covariance = np.zeros((5, 5))
        covariance[:4, :4] = np.block([[stays + passes, stays], [stays, stays]])
        covariance[4, 4] = THRESHOLDS.bend**2
        return Lean(np.zeros(5), covariance)

    @property
    def slope(self) -> Array:
        """[2], as it is now."""
        return self.mean[:2]

    @property
    def stays(self) -> Array:
        """[2], of it."""
        return self.mean[2:4]

    @property
    def spread(self) -> Array:
        """[2, 2]: covariance of the slope."""
        return self.covariance[:2, :2]

    @property
    def lasting(self) -> Array:
        """[2, 2]: of the slope's covariance, what is the same in the next frames: it comes of all
        that stays."""
        across = self.covariance[:2, 2:]
        return np.asarray(across @ np.linalg.solve(self.covariance[2:, 2:], across.T), np.float64)

    def pivots(self, centre: Array) -> tuple[Array, Array]:
        """Where the plane turns if the slope is another one than the mean: the place [M, 2] in
        base_link, and its height there [M], for cameras at centre [M, 3].

        The body nods about its middle. A mount is turned about the camera itself, whose height is
        what the calibration says (and may be off by its own 2 %).
        """
        gain = np.linalg.solve(self.spread, self.covariance[:2, 2:4]).T  # what stays, by the slope
        arm = NOD - centre[..., :2]
        return NOD - arm @ gain, arm @ (self.stays - gain @ self.slope)

    def plane(self, centre: Array) -> tuple[Array, float]:
        """The road's normal [3] in base_link, up, and how high a camera at centre [3] is over it
        along z."""
        (pivot,), (height,) = self.pivots(centre[None])
        normal = np.array([-self.slope[0], -self.slope[1], 1.0])
        return normal, float(centre @ normal + pivot @ self.slope - height)

    def by_way(self, motion: Array, covariance: Array, seconds: float) -> Lean:
        """With a motion [4, 4] that took `seconds` and its covariance [6, 6]: the middle of the
        car went along the road, and up and down as it bounces."""
        t, twist = THRESHOLDS, geometry.log(motion)
        way = twist[:3] + np.cross(twist[3:], [t.middle, 0.0, 0.0])
        if np.linalg.norm(way[:2]) < t.least:
            return self
        by = np.array([0.0, 0.0, 1.0, 0.0, -t.middle, 0.0])
        speed = float(np.linalg.norm(way[:2])) / seconds
        heave = min(t.heave, t.heave_share * speed) ** 2 * seconds * max(seconds, t.heave_seconds)
        noise = float(by @ covariance @ by) + heave
        row = np.array([way[0], way[1], 0.0, 0.0, way[0]])
        off = float(way[2] - row @ self.mean)
        spread = self.covariance @ row
        total = float(row @ spread) + noise
        total += noise * max(0.0, off**2 / total / t.wild - 1.0)  # a kerb, or a wrong motion
        gain = spread / total
        return Lean(self.mean + gain * off, self.covariance - np.outer(gain, spread))

    def found(self, slope: Array, spread: Array, way: float = np.inf) -> Lean:
        """The slope has turned out to be this [2], with covariance [2, 2]: what is said of the rest
        follows. way: m since it was last measured; the bumps of a road that is seen again are the
        same, and say so much less."""
        fresh = min(1.0, way / THRESHOLDS.stretch)
        before, after = np.linalg.inv(self.spread), np.linalg.inv(spread)
        spread = np.asarray(np.linalg.inv(before + fresh * (after - before)), np.float64)
        slope = self.slope + fresh * spread @ after @ (slope - self.slope)
        gain = np.linalg.solve(self.spread, self.covariance[:2]).T  # [5, 2]
        covariance = self.covariance - gain @ (self.spread - spread) @ gain.T
        return Lean(self.mean + gain @ (slope - self.slope), covariance)

    def carried(self, seconds: float) -> Lean:
        """To the next frame, so much later. Each part goes back to what is stated of it (an
        Ornstein-Uhlenbeck process), so that what nothing measures is never less sure than that."""
        t, on, new = THRESHOLDS, np.eye(5), np.zeros(5)
        keep, stay, bend = np.exp(
            -seconds / np.array([t.passing_seconds, t.stays_seconds, t.bend_seconds])
        ).tolist()
        on[[0, 1], [0, 1]], on[[0, 1], [2, 3]] = keep, 1.0 - keep
        on[[2, 3], [2, 3]], on[4, 4] = stay, bend
        new[:2] = (1.0 - keep**2) * t.passing**2
        new[2:4] = (1.0 - stay**2) * CALIBRATION.mount**2
        new[4] = (1.0 - bend**2) * t.bend**2
        return Lean(on @ self.mean, on @ self.covariance @ on.T + np.diag(new))
