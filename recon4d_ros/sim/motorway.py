"""A motorway: two carriageways of three lanes and a shoulder, guard rails, gantries, bridges, and a
tunnel where wanted. The road's centre line is the middle of the central reservation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim import models
from recon4d_ros.sim.ground import GRASS, SMOOTH_ASPHALT, Lie, Zone, line, phase, strips
from recon4d_ros.sim.road import CHUNK, Road
from recon4d_ros.sim.solids import Skin, Solids, concatenate
from recon4d_ros.sim.textures import Layer
from recon4d_ros.sim.traffic import Column, Company, Pace, TrafficPlan
from recon4d_ros.sim.world import Chunk, World

TURN = (0.01, 0.05)  # radians per chunk: curves of 600 m and more
LANES = (3.4, 7.15, 10.9)  # metres from the centre line: the middle of each lane
EDGE = 15.0  # metres: the paved part ends
_RESERVATION = 1.3  # half the width of what lies between the carriageways
_RAIL = 15.6
_PIECE = 15.0  # metres of rail or wall that are straight

TRAFFIC = TrafficPlan(
    ego_lateral=-LANES[1],
    columns=(
        Column(1, ("car", "van"), -LANES[0], 4.0, 75.0, 20.0, 0.7, Pace.OVERTAKES),
        Column(2, ("lorry", "lorry", "truck", "car"), -LANES[2], 24.0, 48.0, 10.0, 0.75),
        Column(3, ("car", "van"), LANES[0], -38.0, 90.0, 30.0, 0.7),
        Column(4, ("car", "car", "van"), LANES[1], -33.0, 70.0, 20.0, 0.7),
        Column(5, ("lorry", "truck"), LANES[2], -24.0, 60.0, 12.0, 0.75),
    ),
    lead=Company("car", 28.0, 0.9),
    tail=Company("van", -16.0, -0.8),
    sight=230.0,
)


@dataclass(frozen=True)
class MotorwayGround:
    """New asphalt with little texture, lane markings of 6 m in every 18, grass beside it."""

    zones: tuple[Zone, ...] = (
        Zone(Layer.GRASS, (0.12, 0.125, 0.07), 64.0),
        SMOOTH_ASPHALT,
        GRASS,
    )

    def lay(
        self, at: Lie, origin: NDArray[np.float64]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        zone = strips(at.away, (_RESERVATION, EDGE))
        paint = line(at.away - np.float32(1.5), 0.09, at.fine_l)
        np.maximum(paint, line(at.away - np.float32(12.85), 0.12, at.fine_l), out=paint)
        dash = line(phase(at.s, 18.0), 3.0, at.fine_s)
        for between in (5.28, 9.03):
            np.maximum(
                paint, line(at.away - np.float32(between), 0.075, at.fine_l) * dash, out=paint
            )
        return zone, paint


class MotorwayWorld(World):
    """Rails, posts, gantries and bridges; trees, banks and noise barriers far out."""

    def _make(self, index: int) -> Chunk:
        rng = np.random.default_rng([self.seed, index + 1000, 21])
        parts = [*self._rails(index)]
        for side in (1, -1):
            parts += self._roadside(index, side, rng)
        if index % 7 == 3:
            pose = self.on_road((index + 0.3) * CHUNK, 0.0)
            parts.append(models.gantry(rng, -16.5, -1.0).moved(pose))
        if index % 9 == 5:
            parts.append(_bridge().moved(self.on_road((index + 0.6) * CHUNK, 0.0)))
        return Chunk(concatenate(parts), ())

    def _rails(self, index: int) -> list[Solids]:
        rail = models.guard_rail(_PIECE)
        return [
            rail.moved(self.on_road(index * CHUNK + _PIECE * (piece + 0.5), lateral))
            for piece in range(int(CHUNK / _PIECE))
            for lateral in (0.0, _RAIL, -_RAIL)
        ]

    def _roadside(self, index: int, side: int, rng: np.random.Generator) -> list[Solids]:
        parts = [models.delineator().moved(self.on_road((index + 0.5) * CHUNK, side * 14.4))]
        stretch = np.random.default_rng([self.seed, (index + 1000) // 4, side + 1, 22]).random()
        if stretch < 0.3:  # a noise barrier along several chunks
            skin = Skin(Layer.PLANKS, (0.28, 0.3, 0.27), 40)
            return parts + [
                models.slab((0, 0, 0), (_PIECE, 0.25, 3.6), skin).moved(
                    self.on_road(index * CHUNK + _PIECE * (piece + 0.5), side * 19.0)
                )
                for piece in range(int(CHUNK / _PIECE))
            ]
        for _ in range(int(rng.integers(1, 9))):
            s, out = (index + rng.random()) * CHUNK, rng.uniform(20.0, 70.0)
            parts.append(models.tree(rng).moved(self.on_road(s, side * out, rng.uniform(0, 6))))
        if stretch > 0.7:
            parts.append(
                models.hedge(CHUNK * 0.9, rng.uniform(1.0, 2.2), rng).moved(
                    self.on_road((index + 0.5) * CHUNK, side * 22.0)
                )
            )
        if rng.random() < 0.12:
            house = models.building(rng.uniform(10, 20), 11.0, 6.4, rng)
            parts.append(
                house.moved(
                    self.on_road(
                        (index + 0.5) * CHUNK, side * rng.uniform(45, 90), side * np.pi / 2
                    )
                )
            )
        return parts


def motorway_road(seed: int, length: float) -> Road:
    return Road(seed, length, TURN, crossings=False)


def _bridge() -> Solids:
    """A road bridge across the motorway (along y)."""
    concrete = Skin(Layer.PLASTER, (0.36, 0.35, 0.33), 40)
    parts = [
        models.slab((0, 0, 5.4), (9.0, 44.0, 1.1), concrete),
        models.slab((-4.4, 0, 6.5), (0.2, 44.0, 1.0), concrete),
        models.slab((4.4, 0, 6.5), (0.2, 44.0, 1.0), concrete),
    ]
    parts += [models.slab((0, y, 0), (7.0, 0.9, 5.4), concrete) for y in (-18.0, 0.0, 18.0)]
    return concatenate(parts)
