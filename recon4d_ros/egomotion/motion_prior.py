"""How far the car may have moved: constant velocity, odometry and wheel speed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion.pnp import Prior
from recon4d_ros.types import FASTEST, OdometrySample, TwistSample

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MotionThresholds:
    """What a car can do: one standard deviation each. From vehicle dynamics, not from drives."""

    any_speed: float = 25.0  # m/s, before anything is known
    acceleration: float = 5.0  # m/s^2: braking hard is 8
    noise: float = 0.01  # m, sideways and up, of a car that stands
    slip: float = 0.03  # sideways, as a share of the speed: slip angles of 2 degrees
    axle: float = (
        1.5  # m that base_link may be from the rear axle, which alone does not go sideways
    )
    heave: float = 0.02  # up and down, as a share of the speed: slopes and bumps
    nod_noise: float = 0.004  # rad, pitch and roll
    nod: float = 0.5  # rad/s^2
    yaw_noise: float = 0.004  # rad
    yaw_acceleration: float = 1.0  # rad/s^2
    still_yaw: float = 0.002  # rad: a car that stands does not turn
    tightest: float = 4.0  # m: radius of the tightest turn


THRESHOLDS = MotionThresholds()


class Unconfirmed:
    """The time since an image or odometry confirmed the motion, and what constant velocity may be
    off by then."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._told: Array = np.zeros(
            (6, 6)
        )  # what those seconds have added to the pose's covariance

    def prior(
        self,
        pose: Array,
        velocity: Array | None,
        seconds: float,
        unsure: Array | None = None,
        slope: float = 0.0,
    ) -> Prior:
        """Where the car is expected `seconds` after `pose` [4, 4].

        velocity: the last twist [6]; None if there is none. unsure: its covariance [6, 6]; a motion
        known badly does not become known by being carried on. slope: of the car's axis in
        base_link, as far as it is known. A car rolls along its own axis and turns about its rear
        axle: what of the last twist no car does (sideways, up, nodding) is noise of its measurement
        and not carried on, and it turns only as it rolls.
        """
        s, t = seconds + self.seconds, THRESHOLDS
        if velocity is None:
            deviation = np.array([0.03, 0.03, 0.03, 0.01, 0.01, 0.01])
            deviation += s * np.array([t.any_speed, 3.0, 2.0, 0.2, 0.2, 0.7])
            return Prior(pose, np.diag(np.minimum(deviation, 100.0) ** 2))
        speed, turn = abs(float(velocity[0])), abs(float(velocity[5]))
        steady = np.array([velocity[0], 0.0, slope * velocity[0], 0.0, 0.0, velocity[5]])
        yaw = min(
            t.yaw_noise + t.yaw_acceleration * s**2,
            t.still_yaw + (speed + t.acceleration * s) * s / t.tightest,
        )
        nod = t.nod_noise + t.nod * s**2
        rest = np.zeros(6)
        if unsure is not None:
            rest[[0, 5]] = np.diag(unsure)[[0, 5]] * s**2
        deviation = np.array(
            [
                t.noise + t.acceleration * s**2,
                t.noise + (t.slip * speed + t.axle * turn) * s + s**2,
                t.noise + t.heave * speed * s + s**2,
                nod,
                nod,
                yaw,
            ]
        )
        ahead = pose @ geometry.exp(steady * seconds)
        return Prior(ahead, np.diag(np.minimum(deviation**2 + rest, 1e4)))

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


def turned(prior: Prior, pose: Array, turn: Array, covariance: Array) -> Prior:
    """The prior with another rotation since `pose` [4, 4]: rotation vector [3] and covariance [3,
    3]."""
    motion = geometry.inverse(pose) @ prior.T_map_base
    motion[:3, :3] = geometry.exp(np.concatenate([np.zeros(3), turn]))[:3, :3]
    both = np.zeros((6, 6))
    both[:3, :3], both[3:, 3:] = prior.covariance[:3, :3], covariance
    return Prior(pose @ motion, both)


KEEP_NS = 5_000_000_000
REACH_NS = 250_000_000  # how far beyond the last sample its motion is carried on
# the motion that is carried on is measured over this time where there are samples for it
BASIS_NS = 150_000_000
HARDEST = 20.0  # m/s^2: no car does more; an odometry that does has jumped


class OdometryBuffer:
    """The last seconds of odometry, interpolated at any stamp."""

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._poses: list[Array] = []
        self._leap: tuple[int, float] | None = None  # stamp of the first sample after it, metres

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, samples: Iterable[OdometrySample]) -> None:
        """Takes samples that follow the ones before; a clock that runs backward starts anew, and so
        does a pose that leaps; what is not finite is passed over."""
        for sample in samples:
            if not np.isfinite(sample.T_odom_base).all():
                continue
            if self._stamps and sample.stamp_ns < self._stamps[-1] - KEEP_NS:
                self._stamps, self._poses = [], []
            if self._stamps and sample.stamp_ns > self._stamps[-1]:
                last = OdometrySample(self._stamps[-1], self._poses[-1])
                if not sample.reachable_from(last):
                    metres = np.linalg.norm(sample.T_odom_base[:3, 3] - last.T_odom_base[:3, 3])
                    self._leap = (sample.stamp_ns, float(metres))
                    self._stamps, self._poses = [], []
            place = bisect_left(self._stamps, sample.stamp_ns)
            if place < len(self._stamps) and self._stamps[place] == sample.stamp_ns:
                self._poses[place] = sample.T_odom_base
            else:
                self._stamps.insert(place, sample.stamp_ns)
                self._poses.insert(place, sample.T_odom_base)
        while self._stamps and self._stamps[0] < self._stamps[-1] - KEEP_NS:
            del self._stamps[0], self._poses[0]

    def at(self, stamp_ns: int) -> Array | None:
        """T_odom_base at a stamp; None where nothing is known.

        Beyond the ends the motion is carried on for at most REACH_NS, and for no more than twice
        the time that it was measured over: two samples a few milliseconds apart say nothing of a
        tenth of a second.
        """
        if not self._stamps:
            return None
        place = bisect_left(self._stamps, stamp_ns)
        if place < len(self._stamps) and self._stamps[place] == stamp_ns:
            return self._poses[place]
        if not self._stamps[0] - REACH_NS <= stamp_ns <= self._stamps[-1] + REACH_NS:
            return None
        if len(self._stamps) == 1:
            return None
        first, second = place - 1, place
        if place == len(self._stamps):
            first, second = (
                min(bisect_left(self._stamps, self._stamps[-1] - BASIS_NS), place - 2),
                place - 1,
            )
        elif place == 0:
            first, second = 0, max(bisect_right(self._stamps, self._stamps[0] + BASIS_NS) - 1, 1)
        a, b = self._stamps[first], self._stamps[second]
        if max(a - stamp_ns, stamp_ns - b) > 2 * (b - a):
            return None
        return geometry.interpolate(
            self._poses[first], self._poses[second], (stamp_ns - a) / (b - a)
        )

    def motion(self, from_ns: int, to_ns: int, velocity: Array | None) -> tuple[Array | None, str]:
        """Pose of base at `to_ns` in base at `from_ns`, or None with a reason. velocity: the last
        twist [6], if it is known."""
        if self._leap is not None and from_ns < self._leap[0] <= to_ns:
            seconds = (to_ns - from_ns) * 1e-9
            return None, f"odometry jumped by {self._leap[1]:.1f} m in {seconds:.2f} s"
        before, after = self.at(from_ns), self.at(to_ns)
        if before is None or after is None:
            if not self._stamps:
                return None, ""  # nobody ever promised any
            return None, "odometry stopped" if self._stamps[
                -1
            ] < to_ns else "odometry has not reached this frame yet"
        motion = geometry.inverse(before) @ after
        seconds = max((to_ns - from_ns) * 1e-9, 1e-3)
        twist = geometry.log(motion) / seconds
        if np.linalg.norm(twist[:3]) > FASTEST:
            return (
                None,
                f"odometry jumped by {np.linalg.norm(motion[:3, 3]):.1f} m in {seconds:.2f} s",
            )
        if (
            velocity is not None
            and np.linalg.norm(twist[:3] - velocity[:3]) > HARDEST * seconds + 4.0
        ):
            slow, fast = np.linalg.norm(velocity[:3]), np.linalg.norm(twist[:3])
            return None, f"odometry jumped from {slow:.1f} to {fast:.1f} m/s in {seconds:.2f} s"
        return motion, ""


class TwistBuffer:
    """Wheel speed integrated to odometry, sample by sample. turns: whether it has ever told a
    turning rate; many cars tell their speed alone."""

    def __init__(self) -> None:
        self._odometry = OdometryBuffer()
        self._last: TwistSample | None = None
        self._pose: Array = np.eye(4)
        self.turns = False

    def add(self, samples: Iterable[TwistSample]) -> None:
        """Takes samples in order of their stamps; over a gap nothing is integrated."""
        for sample in samples:
            if not sample.finite:
                continue
            last, self._last = self._last, sample
            self.turns |= bool(np.abs(sample.twist[3:]).max() > 1e-6)
            if last is not None and 0 < sample.stamp_ns - last.stamp_ns <= REACH_NS:
                seconds = (sample.stamp_ns - last.stamp_ns) * 1e-9
                mean = 0.5 * (last.twist + sample.twist)
                self._pose = self._pose @ geometry.exp(mean * seconds)
            else:
                self._odometry = OdometryBuffer()
            self._odometry.add([OdometrySample(sample.stamp_ns, self._pose)])

    def motion(self, from_ns: int, to_ns: int, velocity: Array | None) -> tuple[Array | None, str]:
        """As `OdometryBuffer.motion`."""
        motion, why = self._odometry.motion(from_ns, to_ns, velocity)
        return motion, why.replace("odometry", "twist")
