"""Manoeuvres: a path of straights and turns, forward and in reverse, driven as a car drives it.

The path is that of the middle of the rear axle: its direction is the car's, and its curvature is
the steering's, which changes at a bounded rate (clothoids). So there is no sideways slip, by
construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.progress import BEYOND, DT, Progress, smooth

_CELL = 0.02  # metres between the path's samples
_ACCELERATION = 1.3  # m/s^2, braking likewise
_SIDEWAYS = 1.8  # m/s^2 in turns


@dataclass(frozen=True)
class Piece:
    """Part of a path. length: metres. curvature: 1/m, positive to the left, reached and left over
    `ramp` metres at both ends. speed: m/s at most, negative is reverse. pause: seconds that the car
    stands at the end; where the direction changes it has to."""

    length: float
    curvature: float = 0.0
    ramp: float = 0.0
    speed: float = 5.0
    pause: float = 0.0


def turn(angle: float, radius: float, ramp: float, speed: float, pause: float = 0.0) -> Piece:
    """A turn by `angle` radians (of the heading, positive to the left), also in reverse."""
    curvature = np.copysign(1.0 / radius, angle) * np.sign(speed)
    return Piece(abs(angle) * radius + ramp, float(curvature), ramp, speed, pause)


class Path:
    """Pieces one after another from a start pose (x, y, heading)."""

    def __init__(self, pieces: Sequence[Piece], start: tuple[float, float, float]) -> None:
        curvature, signs, limits, pauses = [], [], [], []
        for piece in pieces:
            count = max(round(piece.length / _CELL), 1)
            at = (np.arange(count) + 0.5) * (piece.length / count)
            ends = np.minimum(at, piece.length - at)
            shape = np.clip(ends / piece.ramp, 0.0, 1.0) if piece.ramp else np.ones(count)
            # scaled so that a whole number of cells turns as far as the piece says
            curvature.append(piece.curvature * shape * (piece.length / count / _CELL))
            signs.append(np.full(count, np.sign(piece.speed)))
            limits.append(np.full(count, abs(piece.speed)))
            stop = np.zeros(count)
            stop[-1] = piece.pause
            pauses.append(stop)
        self.curvature = np.concatenate(curvature)
        self.sign = np.concatenate(signs)
        self._limit, self._pause = np.concatenate(limits), np.concatenate(pauses)
        turned = np.cumsum(self.sign * self.curvature) * _CELL
        heading = start[2] + np.concatenate([[0.0], turned])
        middle = 0.5 * (heading[1:] + heading[:-1])
        steps = _CELL * self.sign[:, None] * np.stack([np.cos(middle), np.sin(middle)], -1)
        self.heading = heading
        self.xy = np.array(start[:2]) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])
        self.length = _CELL * len(self.sign)

    def at(self, way: float) -> tuple[NDArray[np.float64], float, float, float]:
        """xy [2], heading, signed curvature and direction (+1, -1) after `way` metres."""
        x = np.clip(way / _CELL, 0.0, len(self.sign) - 1e-6)
        i = int(x)
        u = x - i
        return (
            self.xy[i] + u * (self.xy[i + 1] - self.xy[i]),
            float(self.heading[i] + u * (self.heading[i + 1] - self.heading[i])),
            float(self.curvature[i]),
            float(self.sign[i]),
        )

    def progress(self, horizon_s: float, start: float) -> Progress:
        """The way over time, from `start` metres on: as fast as limits, turns and halts allow."""
        first = int(start / _CELL)
        sideways = np.sqrt(_SIDEWAYS / np.maximum(np.abs(self.curvature), 1e-4))
        nodes = np.append(np.minimum(self._limit, sideways), 0.0) ** 2
        halts = np.flatnonzero(self._pause > 0) + 1
        nodes[halts] = 0.0
        nodes = _bounded(_bounded(nodes)[::-1])[::-1]
        speed = np.sqrt(nodes)
        spent = 2.0 * _CELL / np.maximum(speed[1:] + speed[:-1], 1e-3) + self._pause
        time = np.concatenate([[0.0], np.cumsum(spent[first:])])
        moving = time[1:] - self._pause[first:]  # when the end of a cell is reached
        ways = first * _CELL + _CELL * np.arange(len(time))
        knots = np.stack([np.append(time[:1], moving), time], 1).ravel()
        steps = np.arange(int((horizon_s + BEYOND) / DT)) * DT
        way = np.interp(steps, knots, np.repeat(ways, 2))
        return Progress(smooth(np.diff(way, append=way[-1]) / DT), horizon_s, first * _CELL)


def _bounded(square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared speeds that grow by no more than the acceleration allows, from the first on."""
    rise = 2.0 * _ACCELERATION * _CELL * np.arange(len(square))
    return np.minimum.accumulate(square - rise) + rise
