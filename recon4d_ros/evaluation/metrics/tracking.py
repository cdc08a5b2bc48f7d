"""Tracked dynamic objects against true ones: found, invented, mixed up (CLEAR MOT, Bernardin and
Stiefelhagen 2008), and their speed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Movers:
    """Dynamic objects at one time in one common frame. ids: [K]. position, velocity: [K, 3] m, m/s.
    asked: [K] bool, False = may be found or not."""

    ids: NDArray[np.int64]
    position: Array
    velocity: Array
    asked: NDArray[np.bool_]


@dataclass(frozen=True)
class TrackingScore:
    """mota: 1 - (misses + false positives + switches) / objects asked for. velocity_error:
    median m/s of the matches; position_error: median m (centres, on the ground plane). NaN where
    nothing was asked for or matched."""

    mota: float
    precision: float
    recall: float
    switches: int
    matches: int
    movers: int
    position_error: float
    velocity_error: float


@dataclass
class TrackingAccumulator:
    """`add` a frame at a time. radius: m on the ground plane within which an estimate is the
    dynamic object."""

    radius: float = 2.0
    _last: dict[int, int] = field(
        default_factory=dict
    )  # true id -> the track that followed it last
    _counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(4, np.int64)
    )  # matches, false positives, misses, switches
    _errors: list[tuple[float, float]] = field(default_factory=list)

    def add(self, estimate: Movers, truth: Movers) -> None:
        """Both in the same frame, of the same time."""
        distance = np.linalg.norm(
            estimate.position[:, None, :2] - truth.position[None, :, :2], axis=2
        )
        # Keep last frame's pairs where they still hold: a nearer stranger does not take over.
        kept = np.zeros_like(distance)
        for column, identity in enumerate(truth.ids.tolist()):
            kept[:, column] = np.where(
                estimate.ids == self._last.get(identity, -1), -self.radius, 0.0
            )
        cost = np.where(distance <= self.radius, distance + kept - 100.0 * self.radius, 0.0)
        rows, columns = linear_sum_assignment(cost)
        good = distance[rows, columns] <= self.radius
        rows, columns = rows[good], columns[good]
        asked = truth.asked[columns]
        explained = (distance <= self.radius + 1.0).any(
            axis=1
        )  # near a dynamic object that was not asked for: not invented
        explained[rows] = True
        near_asked = np.zeros(len(estimate.ids), bool)
        if truth.asked.any():
            near_asked = distance[:, truth.asked].min(axis=1, initial=np.inf) <= self.radius
        doubled = near_asked & ~np.isin(
            np.arange(len(estimate.ids)), rows
        )  # a second track on one dynamic object is an invented one
        false = int(np.count_nonzero(~explained | doubled))
        switches = 0
        for row, column in zip(rows[asked].tolist(), columns[asked].tolist(), strict=True):
            identity, track = int(truth.ids[column]), int(estimate.ids[row])
            switches += self._last.get(identity, track) != track
            self._last[identity] = track
            speed = float(np.linalg.norm(estimate.velocity[row, :2] - truth.velocity[column, :2]))
            self._errors.append((float(distance[row, column]), speed))
        matches = int(np.count_nonzero(asked))
        self._counts += (matches, false, int(np.count_nonzero(truth.asked)) - matches, switches)

    def score(self) -> TrackingScore:
        matches, false, missed, switches = (int(value) for value in self._counts)
        movers = matches + missed
        nan = float("nan")
        position, velocity = (
            np.median(np.array(self._errors), axis=0).tolist() if self._errors else (nan, nan)
        )
        return TrackingScore(
            mota=1.0 - (missed + false + switches) / movers if movers else nan,
            precision=matches / (matches + false) if matches + false else nan,
            recall=matches / movers if movers else nan,
            switches=switches,
            matches=matches,
            movers=movers,
            position_error=position,
            velocity_error=velocity,
        )
