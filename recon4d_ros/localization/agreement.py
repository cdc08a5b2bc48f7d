"""When answers are believed: never one alone.

An answer sets or moves map -> odom only if another one, of an earlier frame set, says the same by
the odometry between the two, and if the car has moved between them, or more than one keyframe
stands for them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion.pnp import Prior, fused
from recon4d_ros.localization.relocalizer import Answer, apart

Array = NDArray[np.float64]

KEPT = 8  # answers that wait for another one
MOVED = 0.5  # metres driven between two frame sets that see something different
# metres, share of the way between, and radians by which two answers that agree differ at most
AGREE, AGREE_SHARE, AGREE_TURN = 0.4, 0.03, np.radians(1.2)
GATE = 25.0  # squared Mahalanobis distance (six degrees of freedom) of an answer that is followed


@dataclass(frozen=True)
class Said:
    """An answer, and where odometry was when its images were taken. way: metres driven by then."""

    answer: Answer
    T_odom_base: Array
    way: float

    @property
    def T_map_odom(self) -> Array:
        return self.answer.T_map_base @ geometry.inverse(self.T_odom_base)


def independent(a: Said, b: Said) -> bool:
    """Whether the car has moved between two answers, or more than one keyframe stands for them:
    what looks alike from one place hardly does from another."""
    keyframes = {*a.answer.keyframes, *b.answer.keyframes}
    return abs(b.way - a.way) >= MOVED or len(keyframes) > 1


def agree(a: Said, b: Said) -> bool:
    """Whether two answers say the same by odometry."""
    way = abs(b.way - a.way)
    metres, radians = apart(a.T_map_odom @ b.T_odom_base, b.answer.T_map_base)
    return metres < AGREE + AGREE_SHARE * way and radians < AGREE_TURN


class Agreement:
    """What is believed of map -> odom. `found` says whether it is known."""

    def __init__(self) -> None:
        self.found = False
        self.T_map_odom: Array = np.eye(4)
        self._covariance: Array = np.eye(6)  # of the car's pose in map, in base_link
        self._waiting: deque[Said] = deque(maxlen=KEPT)

    def hear(self, said: Said, growth: Array) -> str:
        """`found`, `followed`, `moved`, or `waiting`, for an answer that another one has to confirm
        first. growth: [6, 6], covariance of odometry's error since the last answer that was
        believed."""
        if self.found and self._follows(said, growth):
            self._waiting.clear()
            return "followed"
        for other in reversed(self._waiting):
            if independent(other, said) and agree(other, said):
                event = "moved" if self.found else "found"
                self._believe(other, said)
                return event
        self._waiting.append(said)
        return "waiting"

    def _follows(self, said: Said, growth: Array) -> bool:
        """Takes an answer that what is believed does not contradict (Kalman's update)."""
        expected = self.T_map_odom @ said.T_odom_base
        covariance = self._covariance + growth
        error = geometry.log(geometry.inverse(expected) @ said.answer.T_map_base)
        both = covariance + said.answer.covariance
        if error @ np.linalg.solve(both, error) > GATE:
            return False
        self._fuse(Prior(expected, covariance), said)
        return True

    def _believe(self, a: Said, b: Said) -> None:
        way = abs(b.way - a.way)
        drift = np.diag([AGREE_SHARE * way / 2] * 3 + [0.002] * 3) ** 2
        self._fuse(Prior(a.T_map_odom @ b.T_odom_base, a.answer.covariance + drift), b)
        self.found = True
        self._waiting.clear()

    def _fuse(self, prior: Prior, said: Said) -> None:
        information = np.asarray(np.linalg.inv(said.answer.covariance), np.float64)
        both = fused(prior, said.answer.T_map_base, information, np.zeros(6))
        self.T_map_odom = both.T_map_base @ geometry.inverse(said.T_odom_base)
        self._covariance = both.covariance
