"""How the cameras are mounted, held against the motion that they see.

A camera that is turned by an angle against what /tf_static says sees the car go another way: its
points ask for a motion of their own, at right angles to that of the car, in proportion to it. Over
many frames each camera's wish is gathered (least squares with forgetting) and compared with what
the rig as a whole says. Cameras that look the same way are compared at every instant. A rig that is
turned as a whole goes sideways on a straight road, which no car does. A turn about the way the car
goes cannot be seen by a camera that looks alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import pnp
from recon4d_ros.egomotion.calibration import CALIBRATION
from recon4d_ros.egomotion.camera_rig import Cameras
from recon4d_ros.egomotion.pnp import Observations

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MountThresholds:
    """The limit is the one that a user is told of; the rest is what makes a claim sure."""

    limit: float = float(np.radians(0.3))
    sure: float = 4.0  # standard deviations that a turn has to be over the limit's half
    expected: float = float(np.radians(2.0))  # deviation of a turn before anything is seen
    keep: float = 0.99  # of what was gathered, from motion to motion: a hundred of them count
    least: int = 15  # motions before anything is said
    travel: float = 0.1  # m: a shorter motion says nothing
    young: float = 2.2  # motions since a point was found: older ones have taken the error on
    together: float = 12.0  # points of one frame err together by so much more (MeasureThresholds)
    wide: float = 36.0  # squared deviation from which a sighting counts little
    slip: float = 0.03  # m/s sideways of one motion, as a share of the speed


THRESHOLDS = MountThresholds()


class MountCheck:
    """Turns of N cameras about their own centres, rotation vectors [N, 3] in base_link, rad; and of
    the whole rig about z."""

    def __init__(self, cameras: Cameras) -> None:
        self._cameras = cameras
        count = len(cameras)
        self._information, self._pull = np.zeros((count, 3, 3)), np.zeros((count, 3))
        self._motions = 0
        self._slip_information, self._slip_pull = np.zeros((2, 2)), np.zeros(2)

    def add(
        self,
        o: Observations,
        own: NDArray[np.bool_],
        T_map_base: Array,
        T_camera_base: Array,
        motion: Array,
    ) -> None:
        """A motion [4, 4] that is believed, and all that was seen then, wrong or right. own [M]:
        whether the camera that saw a landmark is the one that follows it. T_camera_base [N, 4, 4]:
        as calibrated."""
        t = THRESHOLDS
        if np.linalg.norm(motion[:3, 3]) < t.travel or len(o) == 0:
            return
        self._motions += 1
        view = pnp.View.of(T_camera_base, o)
        linear = pnp.linearise(T_map_base[None], view)
        distance, share = pnp.whiten(linear.residual, linear.along, view)
        weight = linear.ahead[0] * np.square(t.wide / (t.wide + distance[0])) / np.square(o.sigma)
        by_motion, by_turn = linear.jacobian[0, :3], linear.jacobian[0, 3:]  # [3, 2, M]
        centre = geometry.inverse(T_camera_base)[:, :3, 3][o.camera]
        if o.row is not None:  # where the camera was when the row was read out
            there = geometry.inverse(o.row)
            centre = (there[:, :3, :3] @ centre[..., None])[..., 0] + there[:, :3, 3]
        since = (geometry.transform(geometry.inverse(T_map_base), o.origin) - centre) * -1.0
        lever = np.where(own[:, None], since, centre)
        old = np.linalg.norm(since, axis=1) > t.young * np.linalg.norm(motion[:3, 3])
        weight = np.where(own & old, 0.0, weight)
        slope = np.empty((3, 2, len(o)))
        for axis in range(3):
            one = np.zeros(3)
            one[axis] = 1.0
            step = np.cross(lever, one)
            slope[axis] = np.einsum("kim,mk->im", by_motion, step)
            slope[axis] += by_turn[axis] * ~own
        along, residual = linear.along[0], linear.residual[0]
        pulled = (slope * along).sum(1)  # [3, M]
        off = (along * residual).sum(0)
        lost = weight * share[0]
        for camera in range(len(self._cameras)):
            mine = o.camera == camera
            self._information[camera] *= t.keep
            self._pull[camera] *= t.keep
            if not mine.any():
                continue
            d, w = slope[:, :, mine], weight[mine]
            self._information[camera] += np.einsum("aim,bim,m->ab", d, d, w)
            self._information[camera] -= np.einsum(
                "am,bm,m->ab", pulled[:, mine], pulled[:, mine], lost[mine]
            )
            self._pull[camera] += np.einsum("aim,im,m->a", d, residual[:, mine], w)
            self._pull[camera] -= (pulled[:, mine] * off[mine] * lost[mine]).sum(1)
        twist = geometry.log(motion)
        row = np.array([-twist[0], twist[5]])  # turned by one radian; and metres to the rear axle
        scatter = (t.slip * float(np.linalg.norm(twist[:3]))) ** 2
        self._slip_information = t.keep * self._slip_information + np.outer(row, row) / scatter
        self._slip_pull = t.keep * self._slip_pull + row * twist[1] / scatter

    def turns(self, expected: float = THRESHOLDS.expected) -> tuple[Array, Array]:
        """Rotation vectors [N, 3] and covariances [N, 3, 3]. expected: deviation of a turn before
        anything is seen."""
        t = THRESHOLDS
        prior = np.eye(3) / expected**2
        covariance = np.linalg.inv(self._information / t.together + prior)
        turns = (covariance @ (self._pull / t.together)[..., None])[..., 0]
        return turns, np.asarray(covariance, np.float64)

    def doubt(self) -> Array:
        """How the cameras may be turned against the rig as a whole, [N, 3, 3]: what is not known of
        it, and what is, since nothing is corrected by it."""
        found, covariance = self.turns(CALIBRATION.single)
        return np.asarray(covariance + found[:, :, None] * found[:, None], np.float64)

    def rig_yaw(self) -> tuple[float, float]:
        """Turn of the whole rig about z and its standard deviation, rad."""
        prior = np.diag([1.0 / THRESHOLDS.expected**2, 1.0])
        covariance = np.linalg.inv(self._slip_information + prior)
        return float((covariance @ self._slip_pull)[0]), float(np.sqrt(covariance[0, 0]))

    def troubles(self) -> tuple[str, ...]:
        """For each camera what is wrong with its mount, empty if nothing is known."""
        t = THRESHOLDS
        count = len(self._cameras)
        if self._motions < t.least:
            return ("",) * count
        yaw, deviation = self.rig_yaw()
        if abs(yaw) > t.limit and abs(yaw) - 0.5 * t.limit > t.sure * deviation:
            text = f"mount turned by {np.degrees(abs(yaw)):.1f} degrees, as all cameras of the rig"
            return (text,) * count
        found, covariance = self.turns()
        out = []
        for turn, spread in zip(found, covariance, strict=True):
            angle = float(np.linalg.norm(turn))
            direction = turn / max(angle, 1e-9)
            deviation = float(np.sqrt(direction @ spread @ direction))
            sure = angle > t.limit and angle - 0.5 * t.limit > t.sure * deviation
            out.append(f"mount turned by {np.degrees(angle):.1f} degrees" if sure else "")
        return tuple(out)
