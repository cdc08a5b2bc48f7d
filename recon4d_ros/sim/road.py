"""The road: one smooth centre line without end, made chunk by chunk from a seed, with a side street
every few chunks.

Coordinates along it: s, metres along the centre line, and lateral, metres to the left of it. Its
heading stays within +-55 degrees of world x, so it never meets itself, however long the drive.
World frame: z up, the ground is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

CHUNK = 60.0  # metres of road per chunk; curvature is zero at its ends
STEP = 0.25  # metres between samples of the centre line
FIRST_CHUNK = -4
HEADING_LIMIT = np.deg2rad(55.0)
CITY_TURN = (0.25, 0.8)  # radians per chunk

# The cross section, lateral metres of each zone's outer edge; the same to both sides.
LANE = 3.2
CARRIAGEWAY = 4.8  # three lanes: two our way, one oncoming
CYCLE_LANE = 6.4
PARKING = 8.6
KERB = 8.8
PAVEMENT = 12.0
SIDE_STREET = 3.6  # half the width of a side street


@dataclass(frozen=True)
class Crossing:
    """A side street crosses at `s`. origin: [2] its middle in world; tangent: [2] the main road's
    direction there."""

    chunk: int
    s: float
    origin: NDArray[np.float64]
    tangent: NDArray[np.float64]


class Road:
    """The centre line from chunk FIRST_CHUNK up to `length` metres. Same seed, same road, whatever
    the length.

    turn: least and greatest heading change of a chunk, radians. crossings: whether side streets
    cross it.
    """

    def __init__(
        self,
        seed: int,
        length: float,
        turn: tuple[float, float] = CITY_TURN,
        crossings: bool = True,
    ) -> None:
        last = int(np.ceil(length / CHUNK)) + 6
        chunks = np.arange(FIRST_CHUNK, last)
        self._lay(seed, _turns(seed, chunks, turn, crossings), FIRST_CHUNK, crossings)

    def _lay(
        self, seed: int, turns: NDArray[np.float64], first_chunk: int, crossings: bool
    ) -> None:
        """The centre line by the heading change of each chunk."""
        self.seed = seed
        self._crossed = crossings
        per_chunk = round(CHUNK / STEP)
        u = (np.arange(per_chunk) * STEP) / CHUNK
        bump = 1.0 - np.cos(2.0 * np.pi * u)  # integrates to 1 over a chunk
        self._curvature = (turns[:, None] * bump / CHUNK).ravel()
        start = np.concatenate([[0.0], np.cumsum(turns)[:-1]])
        self._heading = (
            start[:, None] + turns[:, None] * (u - np.sin(2.0 * np.pi * u) / (2.0 * np.pi))
        ).ravel()
        middle = self._heading + 0.5 * STEP * self._curvature
        xy = np.cumsum(np.stack([np.cos(middle), np.sin(middle)], -1) * STEP, axis=0)
        self._xy = np.concatenate([np.zeros((1, 2)), xy[:-1]])
        self.s_min = first_chunk * CHUNK
        self._s = self.s_min + STEP * np.arange(len(self._xy))
        self._xy -= self._xy[round(-self.s_min / STEP)]
        self._tree: cKDTree = cKDTree(self._xy)
        chunks = first_chunk + np.arange(len(turns))
        self.crossings = tuple(self._crossing(int(c)) for c in chunks if self.has_crossing(int(c)))

    def has_crossing(self, chunk: int) -> bool:
        """Whether a side street crosses in the middle of a chunk (such a chunk is straight)."""
        return self._crossed and _crossed(chunk)

    @property
    def s_max(self) -> float:
        return self._end

    @property
    def _end(self) -> float:
        return float(self._s[-1])

    def _crossing(self, chunk: int) -> Crossing:
        s = (chunk + 0.5) * CHUNK
        xy, heading = self.place(np.array([s]), np.zeros(1))
        return Crossing(chunk, s, xy[0], np.array([np.cos(heading[0]), np.sin(heading[0])]))

    def place(
        self, s: NDArray, lateral: NDArray
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """World xy [..., 2] and heading [...] (radians) at (s, lateral) [...]; beyond the ends the
        road goes on straight."""
        s = np.asarray(s, np.float64)
        lateral = np.asarray(lateral, np.float64)
        inside = np.clip(s, self.s_min, self._end - 1e-6)
        index = np.minimum(((inside - self.s_min) / STEP).astype(np.int64), len(self._s) - 2)
        u = (inside - self._s[index]) / STEP
        a, b = self._heading[index], self._heading[index + 1]
        h00, h10, h01, h11 = _hermite(u)
        heading = (
            h00 * a
            + h10 * STEP * self._curvature[index]
            + h01 * b
            + h11 * STEP * self._curvature[index + 1]
        )
        ta, tb = _direction(a), _direction(b)
        xy = (
            h00[..., None] * self._xy[index]
            + h10[..., None] * STEP * ta
            + h01[..., None] * self._xy[index + 1]
            + h11[..., None] * STEP * tb
        )
        along = _direction(heading)
        xy = (
            xy
            + (s - inside)[..., None] * along
            + lateral[..., None] * np.stack([-along[..., 1], along[..., 0]], -1)
        )
        return xy, heading

    def curvature(self, s: NDArray) -> NDArray[np.float64]:
        """1/m, positive to the left."""
        return np.interp(s, self._s, self._curvature)

    def locate(
        self, xy: NDArray
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(s, lateral, heading) of the nearest point of the centre line for world points [...,
        2]."""
        _, index = self._tree.query(xy)
        tangent = _direction(self._heading[index])
        offset = xy - self._xy[index]
        lateral = tangent[..., 0] * offset[..., 1] - tangent[..., 1] * offset[..., 0]
        ahead = (tangent * offset).sum(-1) / np.maximum(1.0 - self._curvature[index] * lateral, 0.2)
        ahead = np.clip(ahead, -STEP, STEP)
        lateral = lateral - 0.5 * self._curvature[index] * ahead**2
        return (
            self._s[index] + ahead,
            lateral,
            self._heading[index] + self._curvature[index] * ahead,
        )

    def clearance(self, xy: NDArray) -> float:
        """Smallest distance of world points [K, 2] to the centre line."""
        return float(self._tree.query(xy)[0].min())


def _crossed(chunk: int) -> bool:
    return (chunk - 1) % 3 == 0


def _turns(
    seed: int, chunks: NDArray[np.int64], turn_range: tuple[float, float], crossings: bool
) -> NDArray[np.float64]:
    """Heading change of each chunk in radians: bounded so that the heading stays within its
    limit."""
    heading, turns = 0.0, []
    for chunk in chunks:
        rng = np.random.default_rng([seed, int(chunk) + 1000, 1])
        size = rng.uniform(*turn_range) * (1 if rng.random() < 0.5 else -1)
        if abs(heading + size) > HEADING_LIMIT:
            size = -size
        turn = 0.0 if crossings and _crossed(int(chunk)) else size
        heading += turn
        turns.append(turn)
    return np.array(turns)


def _hermite(u: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    return (1 + 2 * u) * (1 - u) ** 2, u * (1 - u) ** 2, u * u * (3 - 2 * u), u * u * (u - 1)


def _direction(heading: NDArray) -> NDArray[np.float64]:
    return np.stack([np.cos(heading), np.sin(heading)], -1)
