"""Courses that are manoeuvres: a car park, and a road with a roundabout at either end.

Both lie along a straight road, so that (s, lateral) are world x and y.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from recon4d_ros.sim import models
from recon4d_ros.sim.ground import (
    ASPHALT,
    GRASS,
    KERBSTONE,
    PAVERS,
    Lie,
    Zone,
    line,
    phase,
    strips,
)
from recon4d_ros.sim.models import Body, Mover
from recon4d_ros.sim.path import Path, Piece, turn
from recon4d_ros.sim.progress import Progress
from recon4d_ros.sim.road import CHUNK, Road
from recon4d_ros.sim.solids import Skin, concatenate, cylinder
from recon4d_ros.sim.textures import Layer
from recon4d_ros.sim.traffic import (
    VARIANTS,
    Column,
    Company,
    Traffic,
    TrafficPlan,
    sprung,
)
from recon4d_ros.sim.world import LAMP_HEAD, Chunk, Parked, World, ground_pose

# --- car park: aisles along x, rows of bays between them, a cross aisle every 36 m
_AISLES, _BLOCK, _BAY = 16.0, 36.0, 2.4
_HALF_AISLE, _HALF_CROSS = 3.0, 4.8
_LOT = 40.0  # half its width
_BAY_MIDDLE = 5.5  # metres from an aisle's middle to that of a bay
_TURN_RADIUS, _TURN_RAMP = 5.6, 1.6
_OWN_BAY = 5  # the ego vehicle's, of each block


class Manoeuvre(Traffic):
    """Traffic whose ego vehicle drives a path. company: seconds by which others go before or after
    it."""

    def __init__(
        self,
        world: World,
        path: Path,
        way: Progress,
        plan: TrafficPlan,
        company: tuple[float, ...] = (),
    ) -> None:
        super().__init__(world, way, plan)
        self.path = path
        self._others = company

    def ego_pose(self, t: float) -> NDArray[np.float64]:
        h = 0.15
        ways = self.ego.s(np.array([t - h, t, t + h]))
        xy, heading, curvature, sign = self.path.at(float(ways[1]))
        speed = sign * (ways[2] - ways[0]) / (2 * h)
        acceleration = sign * (ways[2] - 2 * ways[1] + ways[0]) / h**2
        return sprung(ground_pose(xy, heading), speed, acceleration, curvature, t)

    def station(self, t: float) -> float:
        return float(self.ego_pose(t)[0, 3])

    def movers(self, t: float) -> list[Mover]:
        s = self.station(t)
        return [*self._company(t), *self._column_movers(t, s), *self._local_movers(t, s)]

    def _company(self, t: float) -> Iterator[Mover]:
        for number, seconds in enumerate(self._others):
            xy, heading, _, _ = self.path.at(float(self.ego.s(t + seconds)))
            body = Body("car", (self.world.traffic_seed * 7 + number) % VARIANTS)
            pose = ground_pose(xy, heading)
            pose[:2, 3] += 1.35 * pose[:2, 0]  # the path is its rear axle's, too
            yield Mover(101 + number, body, pose)

    def _local_movers(self, t: float, s: float) -> Iterator[Mover]:
        """Those of the place itself."""
        for chunk in self.world.around(s):
            yield from self.world.extra(chunk, t)


class ParkingWorld(World):
    """Bays, most of them taken; lamps and trees; hedges and houses around."""

    def _make(self, index: int) -> Chunk:
        rng = np.random.default_rng([self.seed, index + 1000, 23])
        parts, lamps = [], []
        for side in (1, -1):
            hedge = models.hedge(CHUNK, rng.uniform(1.0, 1.8), rng)
            parts.append(hedge.moved(self.on_road((index + 0.5) * CHUNK, side * (_LOT + 1.5))))
            for part in range(3):
                s = index * CHUNK + 20.0 * part + 10.0
                pose = self.on_road(s, side * (_LOT + rng.uniform(8.0, 16.0)), side * np.pi / 2)
                house = models.building(rng.uniform(12, 18), 11.0, rng.uniform(4, 14), rng)
                parts.append(house.moved(pose))
        for s in np.arange(index * CHUNK, (index + 1) * CHUNK, 12.0) + 6.0:
            for row in (-24.0, -8.0, 8.0, 24.0):
                if abs(_phase(s, _BLOCK)) < _HALF_CROSS:
                    continue
                if rng.random() < 0.3:
                    pose = self.on_road(s, row, 0.0)
                    parts.append(models.lamp().moved(pose))
                    lamps.append((pose @ LAMP_HEAD)[None, :3])
                elif rng.random() < 0.4:
                    parts.append(models.tree(rng).moved(self.on_road(s, row, rng.uniform(0, 6))))
        return Chunk(concatenate(parts), (), np.concatenate([*lamps, np.zeros((0, 3))]))

    def parked(self, index: int) -> tuple[Parked, ...]:
        return ()

    def extra(self, index: int, t: float) -> tuple[Mover, ...]:
        return self._cars(index)

    @lru_cache(64)  # noqa: B019 - as long as its world, which keeps its chunks too
    def _cars(self, index: int) -> tuple[Mover, ...]:
        rng = np.random.default_rng([self.traffic_seed, index + 1000, 24])
        cars = []
        first = int(np.ceil(index * CHUNK / _BAY - 0.5))
        for bay in range(first, first + int(CHUNK / _BAY)):
            s = (bay + 0.5) * _BAY
            inside = abs(_phase(s, _BLOCK)) > _HALF_CROSS
            own = abs(np.mod(s, _BLOCK) - own_bay()) < 1.6 * _BAY
            for row in range(-2, 3):
                for side in (1, -1):
                    taken, kind, variant, nose = rng.random(4)
                    if not inside or taken > 0.72 or (own and row == 0 and side < 0):
                        continue
                    body = Body("van" if kind < 0.1 else "car", int(variant * VARIANTS))
                    lateral = row * _AISLES + side * _BAY_MIDDLE
                    turned = np.pi / 2 * (1 if nose < 0.5 else -1) + rng.normal(0.0, 0.02)
                    number = 2_000_000 + index % 20000 * 400 + (bay - first) * 10 + row * 2 + 4
                    cars.append(Mover(number + (side > 0), body, self.on_road(s, lateral, turned)))
        return tuple(cars)


def own_bay() -> float:
    """Where the ego vehicle's bay is in each block, m."""
    return (_OWN_BAY + 0.5) * _BAY + round(_HALF_CROSS / _BAY) * _BAY


@dataclass(frozen=True)
class ParkingGround:
    """Asphalt with painted bays."""

    zones: tuple[Zone, ...] = (ASPHALT, GRASS)

    def lay(
        self, at: Lie, origin: NDArray[np.float64]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        beside = np.abs(phase(at.lateral, _AISLES))
        block = np.abs(phase(at.s, _BLOCK)) - np.float32(_HALF_CROSS)
        bays = (beside > _HALF_AISLE) & (block > -0.05) & (at.away < _LOT)
        between = line(phase(at.s, _BAY), 0.05, at.fine_s)
        back = line(beside - np.float32(0.5 * _AISLES), 0.06, at.fine_l)
        arrow = line(phase(at.s, 12.0), 1.0, at.fine_s) * line(beside, 0.07, at.fine_l)
        paint = np.where(bays, np.maximum(between, back), arrow * (block > 0) * (at.away < _LOT))
        return strips(at.away, (_LOT,)), paint.astype(np.float32)


PARKING_TRAFFIC = TrafficPlan(
    ego_lateral=0.0,
    columns=(
        Column(1, ("car", "van"), -_AISLES, 2.2, 40.0, 8.0, 0.8),
        Column(2, ("car",), 2 * _AISLES, -2.6, 55.0, 8.0, 0.8),
        Column(3, ("pedestrian",), -_AISLES + 2.2, 1.2, 14.0, 4.0, 0.8),
        Column(4, ("pedestrian",), -2.3, 1.1, 31.0, 6.0, 0.0),
        Column(5, ("pedestrian",), 8.0, -1.3, 16.0, 5.0, 0.5),
    ),
    lead=Company("car", 0.0, 0.0),
    tail=Company("car", 0.0, 0.0),
)


def parking_path(horizon_s: float) -> Path:
    """Round a block again and again, each time backwards into a bay and out of it."""
    reach = _turn_reach(_TURN_RADIUS, _TURN_RAMP)
    left = turn(np.pi / 2, _TURN_RADIUS, _TURN_RAMP, 2.2)
    bay, back = own_bay(), 7.0 - reach
    loop = [
        Piece(bay, speed=3.0, pause=2.0),
        turn(np.pi / 2, _TURN_RADIUS, _TURN_RAMP, -1.2),
        Piece(back, speed=-0.9, pause=3.0),
        Piece(back, speed=1.5),
        turn(-np.pi / 2, _TURN_RADIUS, _TURN_RAMP, 1.8),
        Piece(_BLOCK - bay - 2 * reach, speed=3.5),
        left,
        Piece(_AISLES - 2 * reach, speed=3.0),
        left,
        Piece(_BLOCK - 2 * reach, speed=4.0),
        left,
        Piece(_AISLES - 2 * reach, speed=3.0),
        left,
    ]
    rounds = int((horizon_s + 60.0) / 45.0) + 1
    return Path(loop * rounds, (_BLOCK + reach, 0.0, 0.0))


def parking_start(seed: int) -> float:
    """Where on the path a seed's drive begins: before the bay, or before a turn."""
    return (8.0, 12.0, 36.0)[seed % 3]


def _turn_reach(radius: float, ramp: float) -> float:
    """Metres that a quarter turn advances, and goes to the side."""
    return float(Path([turn(np.pi / 2, radius, ramp, 1.0)], (0.0, 0.0, 0.0)).xy[-1, 0])


# --- roundabouts
RINGS = (90.0, 230.0)  # where on the road
_RING, _ISLAND, _OUTER = 16.5, 10.5, 19.5  # metres: the ego vehicle's radius, and the edges
_INNER_LANE = 12.7
_HALF_ROAD, _OWN_LANE = 3.6, 1.8
_ENTRY_RADIUS, _RING_RAMP = 14.0, 4.0
_PAVED = (_HALF_ROAD, _HALF_ROAD + 0.2, 6.4)


class RoundaboutWorld(World):
    """A city's houses along a road; at its roundabouts only an island and trees."""

    def _free(self, index: int, s: float, half: float) -> bool:
        return all(abs(s - ring) > 42.0 + half for ring in RINGS)

    def _make(self, index: int) -> Chunk:
        chunk = super()._make(index)
        rng = np.random.default_rng([self.seed, index + 1000, 25])
        parts = [chunk.scenery]
        for ring in RINGS:
            if int(ring // CHUNK) != index:
                continue
            stone = Skin(Layer.BRICK, (0.4, 0.35, 0.3), 100)
            parts.append(cylinder((ring, 0, 0.5), 4.0, 1.0, stone))
            for angle in np.arange(7) * 0.9:
                out = rng.uniform(2.0, 8.0)
                pose = ground_pose(
                    np.array([ring + out * np.cos(angle), out * np.sin(angle)]), angle
                )
                parts.append((models.tree(rng) if angle < 3 else models.sign(rng)).moved(pose))
            for angle in np.arange(0.5, 6.2, 0.35):
                if abs(np.sin(angle)) < 0.35:
                    continue
                out = rng.uniform(24.0, 36.0)
                spot = np.array([ring + out * np.cos(angle), out * np.sin(angle)])
                if rng.random() < 0.6:
                    parts.append(models.tree(rng).moved(ground_pose(spot, angle)))
                else:
                    house = models.building(rng.uniform(9, 14), 9.0, rng.uniform(4, 16), rng)
                    parts.append(house.moved(ground_pose(spot * 1.0, angle)))
        return Chunk(concatenate(parts), (), chunk.lamps)

    def parked(self, index: int) -> tuple[Parked, ...]:
        return ()

    def extra(self, index: int, t: float) -> tuple[Mover, ...]:
        """Two cars go round on the inner lane of each roundabout."""
        movers = []
        for number, ring in enumerate(RINGS):
            if int(ring // CHUNK) != index:
                continue
            for half in (0, 1):
                angle = 5.0 / _INNER_LANE * t + np.pi * half + self.traffic_seed + number
                xy = np.array([ring + _INNER_LANE * np.cos(angle), _INNER_LANE * np.sin(angle)])
                body = Body(
                    "van" if half else "car", (self.traffic_seed + 5 * number + half) % VARIANTS
                )
                movers.append(
                    Mover(301 + 2 * number + half, body, ground_pose(xy, angle + np.pi / 2))
                )
        return tuple(movers)


@dataclass(frozen=True)
class RoundaboutGround:
    """A road of two lanes with pavements, and a ring of two lanes at either end."""

    zones: tuple[Zone, ...] = (ASPHALT, KERBSTONE, PAVERS, GRASS)

    def lay(
        self, at: Lie, origin: NDArray[np.float64]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        zone = strips(at.away, _PAVED)
        paint = line(at.away - np.float32(_HALF_ROAD - 0.2), 0.06, at.fine_l)
        dash = line(phase(at.s, 9.0), 1.5, at.fine_s)
        np.maximum(paint, line(at.lateral, 0.06, at.fine_l) * dash, out=paint)
        for ring in RINGS:
            x = at.x - np.float32(ring - origin[0])
            r = np.hypot(x, at.lateral)
            fine = at.major
            inside = r < np.float32(_OUTER + 2.6)
            if not inside.any():
                continue
            own = np.full(len(r), 2, np.int8)
            own[r < _OUTER + 0.2] = 1
            own[r < _OUTER] = 0
            own[r < _ISLAND] = 1
            own[r < _ISLAND - 0.3] = 3
            road = (at.away < _HALF_ROAD) & (r > _ISLAND)
            own[road] = 0
            zone[inside] = own[inside]
            around = np.arctan2(at.lateral, x) * np.float32(0.5 * (_RING + _INNER_LANE))
            lane = line(r - np.float32(14.6), 0.06, fine) * line(phase(around, 3.0), 0.6, fine)
            edge = line(r - np.float32(_ISLAND + 0.3), 0.06, fine)
            give = line(r - np.float32(_OUTER), 0.15, fine) * line(
                phase(at.lateral, 1.0), 0.25, fine
            )
            mine = np.maximum(np.maximum(lane, edge), give * (at.away < _HALF_ROAD))
            paint[inside] = (mine * (own == 0))[inside]
        return zone, paint


ROUNDABOUT_TRAFFIC = TrafficPlan(
    ego_lateral=-_OWN_LANE,
    columns=(
        Column(1, ("pedestrian",), 22.8, -1.3, 15.0, 5.0, 0.6),
        Column(2, ("pedestrian",), -22.8, 1.4, 19.0, 6.0, 0.7),
    ),
    lead=Company("car", 0.0, 0.0),
    tail=Company("car", 0.0, 0.0),
)
ROUNDABOUT_COMPANY = (2.6, -2.6)  # seconds


def roundabout_path(horizon_s: float) -> Path:
    """To and fro between two roundabouts; every second time once more around."""
    angle = brentq(lambda a: _ring_exit(a)[1] - 2 * _OWN_LANE, 0.5, 1.3)
    before, _ = _ring_exit(angle)
    straight = RINGS[1] - RINGS[0] - 2 * before
    pieces: list[Piece] = []
    for number in range(int((horizon_s + 60.0) / 30.0) + 2):
        pieces += [Piece(straight, speed=9.0), *_ring(angle, 2 * np.pi * (number % 2))]
    return Path(pieces, (RINGS[0] + before, -_OWN_LANE, 0.0))


def roundabout_start(seed: int) -> float:
    """Where on the path a seed's drive begins: some metres before the first roundabout."""
    angle = brentq(lambda a: _ring_exit(a)[1] - 2 * _OWN_LANE, 0.5, 1.3)
    return RINGS[1] - RINGS[0] - 2 * _ring_exit(angle)[0] - (14.0, 20.0, 26.0)[seed % 3]


def _ring(angle: float, more: float = 0.0) -> list[Piece]:
    """In by a right turn of `angle`, around, and out by another, back where one came from."""
    out = turn(-angle, _ENTRY_RADIUS, _RING_RAMP, 7.0)
    around = turn(np.pi + 2 * angle + more, _RING, _RING_RAMP, 6.0)
    return [out, around, out]


def _ring_exit(angle: float) -> tuple[float, float]:
    """Metres from the entry's start to the ring's middle along the road, and from the way in to the
    way out across it."""
    path = Path(_ring(angle), (0.0, 0.0, 0.0))
    middle = len(path.sign) // 2
    return float(path.xy[middle, 0] - _RING), float(path.xy[-1, 1])


def _phase(s: float, period: float) -> float:
    """Signed metres to the nearest multiple of a period."""
    return float(s - period * np.rint(s / period))


def straight_road(seed: int, length: float) -> Road:
    """Along world x."""
    return Road(seed, length, (0.0, 0.0), crossings=False)
