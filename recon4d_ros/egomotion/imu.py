"""A gyro beside the cameras: how the car turned between two frames, held against what the images
say of it.

It is never trusted blindly. Its bias is estimated from the images (a scalar Kalman filter per
axis), and it is used only once it has agreed with them through a turn: a gyro whose axes are not
those that /tf_static says, or that is stuck, agrees while the car drives straight. One that
contradicts the images is told and left out until it agrees again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.types import ImuSample

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImuThresholds:
    """Of sensors as they are built into cars (data sheets of MEMS gyros), not from drives."""

    keep_ns: int = 3_000_000_000
    gap_ns: int = 60_000_000  # longest time between samples that a turn is integrated over
    stuck: int = 25  # readings in a row that are the same to the last bit
    bias: float = 0.02  # rad/s at the start
    walk: float = 2e-4  # rad/s, per second
    noise: float = (
        0.004  # rad/s of the mean over a frame: vibration, axes and scale off by a little
    )
    floor: float = 0.0004  # rad, of any turn
    gate: float = 21.1  # squared deviation of three degrees of freedom: 99.99 %
    window: int = 20  # comparisons with the images that count
    least: int = 8  # of them before it is used
    agree: float = 0.8  # share of them that have to agree
    drop: float = 0.5  # share of them below which it is told to be wrong
    turn: float = 0.04  # rad that it has to have turned along with the images: 2.3 degrees
    turning: float = 0.02  # rad/s: faster, the car does not stand


THRESHOLDS = ImuThresholds()


class Imu:
    """The last seconds of a gyro, its bias, and whether it can be believed."""

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._gyro: list[Array] = []
        self._same = 0
        self._bias = np.zeros(3)
        self._variance = np.full(3, THRESHOLDS.bias**2)
        self._agreed: deque[bool] = deque(maxlen=THRESHOLDS.window)
        self._turned = 0.0  # rad, of turns in which it agreed
        self._came = False

    def add(self, samples: Iterable[ImuSample]) -> None:
        """Takes samples in order of their stamps; a clock that runs backward starts anew."""
        t = THRESHOLDS
        for sample in samples:
            if not sample.finite:
                continue
            self._came = True
            if self._stamps and sample.stamp_ns <= self._stamps[-1]:
                if sample.stamp_ns > self._stamps[-1] - t.keep_ns:
                    continue
                self._stamps, self._gyro = [], []
            if self._gyro and np.array_equal(sample.gyro, self._gyro[-1]):
                self._same += 1
            else:
                self._same = 0
            self._stamps.append(sample.stamp_ns)
            self._gyro.append(np.asarray(sample.gyro, np.float64))
        old = 0
        while old < len(self._stamps) and self._stamps[old] < self._stamps[-1] - t.keep_ns:
            old += 1
        del self._stamps[:old], self._gyro[:old]

    @property
    def believed(self) -> bool:
        """Whether it has agreed with the images long enough, and through a turn."""
        t = THRESHOLDS
        agreed = self._agreed
        return (
            self._same < t.stuck
            and len(agreed) >= t.least
            and float(np.mean(agreed)) >= t.agree
            and self._turned > t.turn
        )

    @property
    def trouble(self) -> str:
        """What is wrong with it, for a user; empty if nothing is known."""
        t = THRESHOLDS
        if self._same >= t.stuck:
            return "imu is stuck: it repeats one reading, and is left out"
        if len(self._agreed) >= t.least and float(np.mean(self._agreed)) < t.drop:
            return (
                "imu contradicts the images and is left out: is its frame, its clock or its unit"
                " (rad/s) wrong?"
            )
        return ""

    def raw(self, from_ns: int, to_ns: int) -> Array | None:
        """Rotation vector [3], rad, as the gyro has it, bias and all; None where samples are
        missing."""
        t = THRESHOLDS
        stamps = np.array(self._stamps, np.int64)
        if len(stamps) < 2 or to_ns <= from_ns:
            return None
        first = max(int(np.searchsorted(stamps, from_ns, "right")) - 1, 0)
        last = min(int(np.searchsorted(stamps, to_ns, "left")), len(stamps) - 1)
        used = stamps[first : last + 1]
        edges = np.concatenate([[from_ns], used, [to_ns]])
        if used[0] > from_ns + t.gap_ns or used[-1] < to_ns - t.gap_ns:
            return None
        if np.diff(edges[(edges >= from_ns) & (edges <= to_ns)]).max() > t.gap_ns:
            return None
        gyro = np.stack(self._gyro[first : last + 1])
        inner = used[(used > from_ns) & (used < to_ns)]
        at = np.concatenate([[from_ns], inner, [to_ns]])
        seconds = (at - from_ns) * 1e-9
        rate = np.column_stack([np.interp(at, used, gyro[:, axis]) for axis in range(3)])
        return np.asarray(np.trapezoid(rate, seconds, axis=0), np.float64)

    def turn(self, from_ns: int, to_ns: int) -> tuple[Array, Array] | None:
        """Rotation vector [3] from one frame to the next, and its covariance [3, 3]; None where it
        is not known or not to be believed."""
        raw = self.raw(from_ns, to_ns) if self.believed else None
        if raw is None:
            return None
        seconds = (to_ns - from_ns) * 1e-9
        return raw - self._bias * seconds, np.diag(self._spread(seconds))

    def _spread(self, seconds: float) -> Array:
        t = THRESHOLDS
        return (t.noise * seconds) ** 2 + t.floor**2 + self._variance * seconds**2

    def turning(self, from_ns: int, to_ns: int) -> bool:
        """Whether a believed gyro says that the car turns: then it does not stand."""
        found = self.turn(from_ns, to_ns)
        seconds = (to_ns - from_ns) * 1e-9
        return found is not None and bool(np.linalg.norm(found[0]) > THRESHOLDS.turning * seconds)

    def learn(self, from_ns: int, to_ns: int, seen: Array, covariance: Array) -> bool | None:
        """Hold it against the turn [3], rad, that the images say, with its covariance [3, 3].
        Whether they agree; None where there is nothing to compare."""
        t = THRESHOLDS
        raw = self.raw(from_ns, to_ns)
        if raw is None:
            return None
        seconds = (to_ns - from_ns) * 1e-9
        self._variance = np.minimum(self._variance + t.walk**2 * seconds, t.bias**2)
        off = raw - self._bias * seconds - seen
        spread = covariance + np.diag(self._spread(seconds))
        agree = bool(off @ np.linalg.solve(spread, off) < t.gate)
        self._agreed.append(agree)
        if agree:
            self._turned += float(np.linalg.norm(seen))
            noise = np.diag(covariance) + (t.noise * seconds) ** 2 + t.floor**2
            gain = self._variance * seconds / (self._variance * seconds**2 + noise)
            self._bias = self._bias + gain * off
            self._variance = self._variance * (1.0 - gain * seconds)
        elif float(np.mean(self._agreed)) < t.drop:
            self._turned = 0.0  # to be shown anew
        return agree
