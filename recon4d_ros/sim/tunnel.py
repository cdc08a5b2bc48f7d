"""A motorway through tunnels: walls, a ceiling with lamps, and daylight that fades behind the
portals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim import models
from recon4d_ros.sim.motorway import EDGE, TRAFFIC, MotorwayWorld
from recon4d_ros.sim.road import CHUNK
from recon4d_ros.sim.solids import Skin, concatenate
from recon4d_ros.sim.textures import Layer
from recon4d_ros.sim.traffic import Company
from recon4d_ros.sim.world import Chunk

PLAN = replace(TRAFFIC, lead=Company("car", 22.0, 0.9), tail=Company("van", -16.0, -0.9))
_FIRST, _PERIOD, _LENGTH = 75.0, 420.0, 210.0  # metres along the road
_HEIGHT = 5.8
_WALL = EDGE + 0.9
_PIECE = 15.0
_LAMPS = 8.0  # metres between lamps
_FADES = 7.0  # metres behind the portal at which daylight is down to 37 %


def _into(s: NDArray | float) -> NDArray:
    """Metres behind the nearest portal; negative outside."""
    u = np.mod(np.asarray(s) - np.float32(_FIRST), np.float32(_PERIOD))
    return np.minimum(u, np.float32(_LENGTH) - u)


class Tunnels:
    """Where daylight does not come."""

    def daylight(
        self, s: NDArray[np.float32], lateral: NDArray[np.float32], z: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        into = _into(s)
        under = (into > 0) & (np.abs(lateral) < _WALL + 0.1) & (z < _HEIGHT + 0.1)
        share = np.exp(-np.maximum(into, 0.0) * np.float32(1.0 / _FADES))
        return np.where(under, share, np.float32(1.0)).astype(np.float32)

    def lamps(self, s: float) -> NDArray[np.float64]:
        places = np.arange(np.floor((s - 60.0) / _LAMPS), (s + 220.0) / _LAMPS) * _LAMPS
        places = places[_into(places) > 1.0]
        rows = (-11.0, -5.0, 5.0, 11.0)
        return np.array([(at, row, _HEIGHT - 0.25) for at in places for row in rows]).reshape(-1, 3)


class TunnelWorld(MotorwayWorld):
    """Tunnels of 210 m in every 420."""

    def _make(self, index: int) -> Chunk:
        chunk = super()._make(index)
        tiles = Skin(Layer.PAVERS, (0.36, 0.36, 0.34), 64)
        concrete = Skin(Layer.PLASTER, (0.25, 0.25, 0.24), 40)
        grass = Skin(Layer.GRASS, (0.085, 0.125, 0.035), 64)
        steel = Skin(Layer.METAL, (0.7, 0.7, 0.65), 100)
        parts = [chunk.scenery]
        for piece in range(int(CHUNK / _PIECE)):
            s = index * CHUNK + _PIECE * (piece + 0.5)
            if _into(s) < 0:
                continue
            pose = self.on_road(s, 0.0)
            walls = [
                models.slab((0, y, 0), (_PIECE + 0.2, 0.8, _HEIGHT), tiles)
                for y in (-_WALL - 0.4, _WALL + 0.4)
            ]
            middle = models.slab((0, 0, 0), (_PIECE + 0.2, 0.9, _HEIGHT), tiles)
            ceiling = models.slab((0, 0, _HEIGHT), (_PIECE + 0.2, 2 * _WALL + 2, 0.7), concrete)
            bank = models.slab((0, 0, _HEIGHT + 0.7), (_PIECE + 0.2, 2 * _WALL + 6, 0.6), grass)
            parts += [part.moved(pose) for part in (*walls, middle, ceiling, bank)]
        for s, lateral, z in self._fittings(index):
            lamp = models.slab((0, 0, z), (1.2, 0.3, 0.15), steel)
            parts.append(lamp.moved(self.on_road(s, lateral)))
        return Chunk(concatenate(parts), (), chunk.lamps)

    def _fittings(self, index: int) -> NDArray[np.float64]:
        """The housings of a chunk's lamps."""
        lamps = Tunnels().lamps((index + 0.5) * CHUNK)
        return lamps[(lamps[:, 0] >= index * CHUNK) & (lamps[:, 0] < (index + 1) * CHUNK)]
