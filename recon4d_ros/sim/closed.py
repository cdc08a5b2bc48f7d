"""Closed courses: round a block, and a figure of eight, each 960 m and driven round after round.

A course is a road whose centre line comes back to its beginning, position and direction; metres
along it go on counting, what stands there is the same in every round, and who drives there is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from recon4d_ros.sim.road import CHUNK, STEP, Road
from recon4d_ros.sim.traffic import CITY
from recon4d_ros.sim.world import CROSSING_HALF, Chunk, World

TRAFFIC = replace(CITY, leavers=False)
_WIGGLE = np.deg2rad(14.0)  # heading changes along the sides of a block, at most
_SIDE = 3  # chunks of a side between two corners


class ClosedRoad(Road):
    """turns: heading change of each chunk, radians; such that the line closes. meets: metres along
    it where it crosses itself. length: metres that will be driven."""

    def __init__(
        self, seed: int, turns: Sequence[float], length: float, meets: tuple[float, ...] = ()
    ) -> None:
        self._lay(seed, np.asarray(turns, np.float64), 0, crossings=False)
        self.round = CHUNK * len(turns)
        self.meets = meets
        self._driven = length
        # the last sample is the first one again, a whole turn later
        self._xy = np.concatenate([self._xy, self._xy[:1]])
        self._heading = np.append(self._heading, self._heading[0] + float(np.sum(turns)))
        self._curvature = np.append(self._curvature, self._curvature[0])
        self._s = np.append(self._s, self.round)

    @property
    def s_max(self) -> float:
        return self._driven

    def place(
        self, s: NDArray, lateral: NDArray
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return super().place(np.mod(s, self.round), lateral)

    def curvature(self, s: NDArray) -> NDArray[np.float64]:
        return super().curvature(np.mod(s, self.round))

    @property
    def _end(self) -> float:
        return self.round


class ClosedWorld(World):
    """A city's houses along a closed road, the same in every round."""

    road: ClosedRoad

    def chunk(self, index: int) -> Chunk:
        laps, base = divmod(index, round(self.road.round / CHUNK))
        chunk = super().chunk(base)
        if not laps:
            return chunk
        way = laps * self.road.round
        return replace(chunk, parked=tuple(replace(car, s=car.s + way) for car in chunk.parked))

    def _free(self, index: int, s: float, half: float) -> bool:
        away = [
            abs((s - meet + self.road.round / 2) % self.road.round - self.road.round / 2)
            for meet in self.road.meets
        ]
        return all(metres > CROSSING_HALF + half for metres in away)


def block(seed: int, length: float) -> ClosedRoad:
    """Four sides that are alike, and four corners to the left."""
    rng = np.random.default_rng([seed, 31])
    side = rng.uniform(-_WIGGLE, _WIGGLE, _SIDE)
    side -= side.mean()
    return ClosedRoad(seed, [*side, np.pi / 2] * 4, length)


def eight(seed: int, length: float) -> ClosedRoad:
    """A loop to the left and one to the right; they meet where the round begins."""
    loop = _loop()
    return ClosedRoad(seed, [*loop, *(-turn for turn in loop)], length, (0.0, CHUNK * len(loop)))


@lru_cache(1)
def _loop() -> tuple[float, ...]:
    """Three quarters of a turn that end where they began, and leave at a right angle."""

    def turns(first: float) -> list[float]:
        rest = (1.5 * np.pi - 2 * first) / 4
        return [0.0, first, rest, rest, rest, rest, first, 0.0]

    def missed(first: float) -> float:
        road = Road.__new__(Road)
        road._lay(0, np.array(turns(first)), 0, crossings=False)
        end = road._xy[-1] + STEP * np.array([np.cos(road._heading[-1]), np.sin(road._heading[-1])])
        return float(end @ (1.0, -1.0))  # the rest is zero by symmetry

    return tuple(turns(float(brentq(missed, -0.6, 1.4, xtol=1e-9))))
