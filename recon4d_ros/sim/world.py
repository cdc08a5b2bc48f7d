"""What stands in the world: houses, trees, lamps, signs, hedges and parked cars, made per chunk of
road from the seed.

Only the chunks around the car exist at any time, so that a drive may be of any length.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim import models
from recon4d_ros.sim.models import Body, Mover
from recon4d_ros.sim.road import CHUNK, PAVEMENT, SIDE_STREET, Road
from recon4d_ros.sim.solids import Solids, concatenate

BEHIND, AHEAD = 150.0, 230.0  # metres of road kept around the car
PARKED_LATERAL = 7.5
SLOT = 6.6  # metres of kerb per parked car
CROSSING_HALF = 11.0  # metres of road to each side of a crossing's middle that stay free
_KEPT_CHUNKS = 16
LAMP_HEAD = np.array([0.0, 1.6, 6.85, 1.0])  # in a lamp's own frame


@dataclass(frozen=True)
class Parked:
    """A parked car. side: +1 left (facing oncoming), -1 right. leaves: it pulls out as the ego
    vehicle comes."""

    id: int
    s: float
    side: int
    body: Body
    leaves: bool


@dataclass(frozen=True)
class Chunk:
    """Scenery of one chunk in world coordinates; parked cars are listed apart, because some of them
    leave. lamps: [L, 3] heads of street lamps."""

    scenery: Solids
    parked: tuple[Parked, ...]
    lamps: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))


class World:
    """The static world of a seed along a road: a city's. Other courses override what a chunk
    holds."""

    def __init__(self, seed: int, road: Road, traffic_seed: int | None = None) -> None:
        """traffic_seed: of what does not stand for good, parked cars included; the world's unless
        given."""
        self.seed = seed
        self.traffic_seed = seed if traffic_seed is None else traffic_seed
        self.road = road
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()

    def chunk(self, index: int) -> Chunk:
        """One chunk's content, made on first use."""
        if index not in self._chunks:
            self._chunks[index] = self._make(index)
            while len(self._chunks) > _KEPT_CHUNKS:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(index)
        return self._chunks[index]

    def around(self, s: float) -> range:
        """The chunks within sight of a car at s."""
        return range(int((s - BEHIND) // CHUNK), int((s + AHEAD) // CHUNK) + 1)

    def extra(self, index: int, t: float) -> tuple[Mover, ...]:
        """Those of a chunk that can move and belong to the place, at time t."""
        return ()

    def on_road(self, s: float, lateral: float, turn: float = 0.0) -> NDArray[np.float64]:
        """Pose [4, 4] on the ground at (s, lateral), its x axis along the road, turned left by
        `turn` radians."""
        xy, heading = self.road.place(np.array(s), np.array(lateral))
        return ground_pose(xy, float(heading) + turn)

    def _make(self, index: int) -> Chunk:
        rng = np.random.default_rng([self.seed, index + 1000, 2])
        parts: list[Solids] = []
        lamps: list[NDArray[np.float64]] = []
        for side in (1, -1):
            parts += self._row(index, side, rng)
            parts += self._street_furniture(index, side, rng, lamps)
        if self.road.has_crossing(index):
            parts += self._side_street(index, rng)
        heads = np.concatenate([*lamps, np.zeros((0, 3))])
        return Chunk(concatenate(parts), self.parked(index), heads)

    def _free(self, index: int, s: float, half: float) -> bool:
        """Whether s +- half along this chunk stays clear of its side street."""
        return (
            not self.road.has_crossing(index)
            or abs(s - (index + 0.5) * CHUNK) > CROSSING_HALF + half
        )

    def _row(self, index: int, side: int, rng: np.random.Generator) -> list[Solids]:
        """Houses, gardens and hedges beyond the pavement of one side."""
        parts = []
        s = index * CHUNK
        while s < (index + 1) * CHUNK - 6.0:
            width = min(rng.uniform(9.0, 17.0), (index + 1) * CHUNK - s)
            depth, storeys, setback = (
                rng.uniform(9.0, 14.0),
                int(rng.integers(1, 6)),
                rng.choice([0.3, 0.3, 2.5, 4.0]),
            )
            middle = s + width / 2
            s += width + rng.choice([0.0, 0.4, 3.0, 6.0])
            if not self._free(index, middle, width / 2):
                continue
            front = side * (PAVEMENT + setback)
            pose = self.on_road(middle, front, side * np.pi / 2)
            outline = np.array(
                [(x, y) for x in (0.0, depth) for y in np.linspace(-width / 2, width / 2, 5)]
            )
            fits = self.road.clearance(outline @ pose[:2, :2].T + pose[:2, 3]) > PAVEMENT - 0.6
            if fits and rng.random() < 0.84:
                parts.append(models.building(width - 0.1, depth, 3.2 * storeys, rng).moved(pose))
                if setback > 2.0:
                    parts.append(
                        models.hedge(width * 0.8, rng.uniform(0.8, 1.4), rng).moved(
                            self.on_road(middle, side * (PAVEMENT + 0.5))
                        )
                    )
            else:
                parts.append(
                    models.hedge(width * 0.9, rng.uniform(1.0, 2.0), rng).moved(
                        self.on_road(middle, side * (PAVEMENT + 0.6))
                    )
                )
                for _ in range(3):
                    along, out = rng.uniform(-width / 2, width / 2), rng.uniform(2.5, 12.0)
                    spot = self.on_road(middle + along, side * (PAVEMENT + out), rng.uniform(0, 6))
                    if self.road.clearance(spot[None, :2, 3]) > PAVEMENT:
                        parts.append(models.tree(rng).moved(spot))
        return parts

    def _street_furniture(
        self, index: int, side: int, rng: np.random.Generator, lamps: list[NDArray[np.float64]]
    ) -> list[Solids]:
        """Trees, lamps, signs and boxes at the kerb; the lamps' heads go into `lamps`."""
        parts = []
        for slot in range(6):
            s = index * CHUNK + 10.0 * slot + rng.uniform(0.5, 9.5)
            kind = rng.random()
            if not self._free(index, s, 1.0):
                continue
            if slot % 3 == 1:
                pose = self.on_road(s, side * 9.1, 0.0 if side < 0 else np.pi)
                parts.append(models.lamp().moved(pose))
                lamps.append((pose @ LAMP_HEAD)[None, :3])
            elif kind < 0.55:
                parts.append(
                    models.tree(rng).moved(self.on_road(s, side * 9.6, rng.uniform(0, 6.28)))
                )
            elif kind < 0.7:
                parts.append(
                    models.sign(rng).moved(self.on_road(s, side * 9.1, 0.0 if side < 0 else np.pi))
                )
            elif kind < 0.9:
                parts.append(
                    models.bin_or_box(rng).moved(self.on_road(s, side * rng.choice([9.3, 11.5])))
                )
        return parts

    def _side_street(self, index: int, rng: np.random.Generator) -> list[Solids]:
        """Houses and trees along the street that crosses in this chunk."""
        parts = []
        for side in (1, -1):
            for flank in (1, -1):
                out = 32.0
                while out < 95.0:
                    width, depth = rng.uniform(10.0, 16.0), rng.uniform(8.0, 11.0)
                    # The house's front (local -x) looks at the side street; its width runs along
                    # it.
                    start = self.on_road((index + 0.5) * CHUNK, side * (out + width / 2))
                    shift = np.eye(4)
                    shift[0, 3] = flank * (SIDE_STREET + 3.5)
                    pose = start @ shift @ _yaw(0.0 if flank > 0 else np.pi)
                    corners = (
                        pose
                        @ np.array(
                            [(x, y, 0, 1) for x in (0, depth) for y in (-width / 2, 0, width / 2)]
                        ).T
                    )[:2].T
                    if self.road.clearance(corners) > PAVEMENT + 2.0:
                        if rng.random() < 0.75:
                            parts.append(
                                models.building(
                                    width, depth, 3.2 * int(rng.integers(1, 5)), rng
                                ).moved(pose)
                            )
                        else:
                            parts.append(models.tree(rng).moved(pose))
                    out += width + rng.choice([0.3, 4.0])
        return parts

    def parked(self, index: int) -> tuple[Parked, ...]:
        """Parked cars of a chunk; in some chunks the left one that is nearest to its middle
        leaves."""
        rng = np.random.default_rng([self.traffic_seed, index + 1000, 3])
        slots = []
        for side in (1, -1):
            for slot in range(int(CHUNK // SLOT)):
                s = index * CHUNK + SLOT * (slot + 0.5) + rng.uniform(-0.5, 0.5)
                taken, variant, kind = rng.random() < 0.5, int(rng.integers(40)), rng.random()
                if taken and self._free(index, s, 3.5):
                    body = Body("van" if kind < 0.12 else "car", variant)
                    slots.append(
                        Parked(
                            2_000_000 + (index - 1) % 20000 * 100 + slot + (50 if side > 0 else 0),
                            s,
                            side,
                            body,
                            False,
                        )
                    )
        left = [car for car in slots if car.side > 0 and car.body.kind == "car"]
        if left and not self.road.has_crossing(index):
            leaver = min(left, key=lambda car: abs(car.s - (index + 0.4) * CHUNK))
            slots[slots.index(leaver)] = Parked(leaver.id, leaver.s, leaver.side, leaver.body, True)
        return tuple(slots)


def ground_pose(xy: NDArray, yaw: float) -> NDArray[np.float64]:
    """Pose [4, 4] on the ground."""
    pose = _yaw(yaw)
    pose[:2, 3] = xy
    return pose


def _yaw(angle: float) -> NDArray[np.float64]:
    pose, c, s = np.eye(4), np.cos(angle), np.sin(angle)
    pose[:2, :2] = (c, -s), (s, c)
    return pose
