"""What lights the world: sun, sky and haze by conditions, street lamps and headlights at night, and
tunnels, which keep the daylight out.

All light is linear RGB; the sun of a clear day is about 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.scenario import Conditions

_SUN_LIGHT = np.array([1.9, 1.8, 1.6])
_SKY_LIGHT = np.array([0.62, 0.72, 0.86])
_HAZE = np.array([0.72, 0.78, 0.86], np.float32)
_ZENITH = np.array([0.22, 0.38, 0.72], np.float32)
_LOW_SUN = np.array([1.05, 0.82, 0.55])  # what the air leaves of a sun 12 degrees above the horizon
_OVERCAST_SKY = np.array([0.80, 0.82, 0.84])
_OVERCAST_ZENITH = np.array([0.62, 0.65, 0.70], np.float32)
_NIGHT_SKY = np.array([0.004, 0.0045, 0.006])
_NIGHT_HAZE = np.array([0.010, 0.009, 0.009], np.float32)
_NIGHT_ZENITH = np.array([0.002, 0.0025, 0.005], np.float32)
_SODIUM = np.array([1.0, 0.74, 0.42], np.float32)
_HEADLIGHT = np.array([1.0, 0.95, 0.84], np.float32)
_BEAM = 70.0  # light at 1 m of the own headlights, on a surface that faces them
_BEAM_HALF_WIDTH = 0.42  # tangent
_BEAM_CUTOFF = -0.012  # tangent of the dipped beam's upper edge
_LAMP_POWER = 7.0
_MAP_CELL, _MAP_REACH = 0.5, 110.0  # metres


@dataclass(frozen=True)
class Light:
    """Light of sky and sun. sun: unit direction to it, in world. sun_light, sky_light: linear RGB.
    haze, zenith: colour of the sky at the horizon and above. haze_length: metres. cover: 0..1, how
    much of the sky is one grey cloud. dark: whether lamps are on."""

    sun: NDArray[np.float64]
    sun_light: NDArray[np.float64]
    sky_light: NDArray[np.float64]
    haze: NDArray[np.float32]
    zenith: NDArray[np.float32]
    haze_length: float
    cover: float
    dark: bool


def light_of(conditions: Conditions) -> Light:
    """The light of some conditions."""
    sun = np.array(conditions.sun)
    sun = sun / np.linalg.norm(sun)
    if conditions.night:
        haze = _NIGHT_HAZE
        return Light(
            sun, np.zeros(3), _NIGHT_SKY, haze, _NIGHT_ZENITH, conditions.visibility, 1.0, True
        )
    cover = conditions.overcast
    sun_light, sky_light = _SUN_LIGHT * (1.0 - cover), _SKY_LIGHT
    if sun[2] < 0.3:
        sun_light, sky_light = sun_light * _LOW_SUN, sky_light * 0.55
    sky_light = sky_light + cover * (_OVERCAST_SKY - sky_light)
    zenith = (_ZENITH + np.float32(cover) * (_OVERCAST_ZENITH - _ZENITH)).astype(np.float32)
    return Light(sun, sun_light, sky_light, _HAZE, zenith, conditions.visibility, cover, False)


class Shelter(Protocol):
    """Where daylight does not come: tunnels."""

    def daylight(
        self, s: NDArray[np.float32], lateral: NDArray[np.float32], z: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Share of sun and sky, 0..1, at n places in road coordinates and height (m)."""
        ...

    def lamps(self, s: float) -> NDArray[np.float64]:
        """[L, 3] (s, lateral, z) of the lamps within sight of s."""
        ...


@dataclass(frozen=True)
class Points:
    """Lamps that are seen themselves. place: [L, 3] world. color: [L, 3]. size: [L] radius, m.
    power: [L] brightness of the lamp's face. facing: [L, 3] where it shines, zero for all round."""

    place: NDArray[np.float64]
    color: NDArray[np.float32]
    size: NDArray[np.float64]
    power: NDArray[np.float64]
    facing: NDArray[np.float64]


def no_points() -> Points:
    return Points(
        np.zeros((0, 3)), np.zeros((0, 3), np.float32), np.zeros(0), np.zeros(0), np.zeros((0, 3))
    )


def joined(parts: Sequence[Points]) -> Points:
    return Points(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("place", "color", "size", "power", "facing")
        )
    )


def street_lamps(places: NDArray[np.float64], size: float = 0.16, power: float = 14.0) -> Points:
    """Lamp heads [L, 3] that shine down."""
    count = len(places)
    return Points(
        places,
        np.repeat(_SODIUM[None], count, 0),
        np.full(count, size),
        np.full(count, power),
        np.zeros((count, 3)),
    )


def vehicle_lamps(
    poses: NDArray[np.float64], sizes: NDArray[np.float64], braking: NDArray[np.bool_]
) -> Points:
    """Two headlamps and two rear lamps of each vehicle. poses: [K, 4, 4] of the box's middle;
    sizes: [K, 3]; braking: [K]."""
    parts = []
    for end, color, height, radius in (
        (1.0, _HEADLIGHT, 0.66, 0.085),
        (-1.0, np.array([1.0, 0.05, 0.03], np.float32), 0.8, 0.07),
    ):
        for side in (-0.38, 0.38):
            local = np.stack(
                [
                    0.5 * end * sizes[:, 0] + 0.02 * end,
                    side * sizes[:, 1],
                    np.minimum(height, 0.6 * sizes[:, 2]) - 0.5 * sizes[:, 2],
                ],
                axis=1,
            )
            place = np.einsum("kij,kj->ki", poses[:, :3, :3], local) + poses[:, :3, 3]
            power = np.full(len(poses), 60.0) if end > 0 else np.where(braking, 9.0, 3.0)
            parts.append(
                Points(
                    place,
                    np.repeat(color[None], len(poses), 0),
                    np.full(len(poses), radius),
                    power,
                    end * poses[:, :3, 0],
                )
            )
    return joined(parts)


@dataclass
class LampMap:
    """Light of lamps on the ground, from above: [n, n, 3], _MAP_CELL metres per pixel, the first
    pixel at `origin`."""

    image: NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, 1, 3), np.float32))
    origin: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    cell: float = _MAP_CELL
    _key: tuple | None = None
    _still: NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, 1, 3), np.float32))

    def draw(
        self,
        middle: NDArray[np.float64],
        lamps: NDArray[np.float64],
        key: tuple,
        heads: NDArray[np.float64],
    ) -> None:
        """lamps: [L, 3] that stand, named by `key`; heads: [K, 4, 4] of vehicles' fronts, on the
        ground."""
        corner = np.round((middle - _MAP_REACH) / 20.0) * 20.0
        if (key, *corner) != self._key:
            self._key, self.origin = (key, *corner), corner
            count = int(2 * _MAP_REACH / _MAP_CELL)
            self._still = np.zeros((count, count, 3), np.float32)
            for lamp in lamps:
                self._add(self._still, lamp[:2], float(lamp[2]), _LAMP_POWER * _SODIUM)
        self.image = self._still.copy()
        for head in heads:
            for ahead, height, power in ((5.0, 2.5, 0.35), (11.0, 4.0, 0.4)):
                self._add(self.image, head[:2, 3] + ahead * head[:2, 0], height, power * _HEADLIGHT)

    def _add(
        self, image: NDArray[np.float32], xy: NDArray, height: float, color: NDArray[np.float32]
    ) -> None:
        """A lamp at a height above the ground: light by distance squared and slant."""
        reach = int(4.0 * height / _MAP_CELL) + 1
        middle = np.rint((xy - self.origin) / _MAP_CELL).astype(int)
        low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, len(image))
        if (low >= high).any():
            return
        x = (np.arange(low[0], high[0]) * _MAP_CELL + self.origin[0] - xy[0])[None]
        y = (np.arange(low[1], high[1]) * _MAP_CELL + self.origin[1] - xy[1])[:, None]
        falls = (height / np.sqrt(x * x + y * y + height * height) ** 3).astype(np.float32)
        image[low[1] : high[1], low[0] : high[0]] += falls[..., None] * color


def headlights(
    T_world_base: NDArray[np.float64], x: NDArray, y: NDArray, z: NDArray, cosine: NDArray
) -> NDArray[np.float32]:
    """Light [n] of the own dipped headlights at world points. cosine: of the angle at which they
    fall in."""
    r = T_world_base[:3, :3].astype(np.float32)
    dx, dy = x - np.float32(T_world_base[0, 3]), y - np.float32(T_world_base[1, 3])
    ahead = dx * r[0, 0] + dy * r[1, 0] - np.float32(3.6)
    across = dx * r[0, 1] + dy * r[1, 1]
    up = z - np.float32(0.65)
    far = np.maximum(ahead, np.float32(0.3))
    beam = np.exp(-np.square(across / far * np.float32(1 / _BEAM_HALF_WIDTH)))
    below = np.float32(_BEAM_CUTOFF) - up / far
    edge = np.clip(below * np.float32(40.0) + 0.5, 0.04, 1.0)
    # brightest just below the edge, so that the road is lit evenly
    edge *= np.float32(0.1) + np.float32(0.9) * np.exp(np.maximum(below, 0.0) * np.float32(-22.0))
    square = far * far + across * across + up * up + np.float32(4.0)
    return np.where(ahead > 0, np.float32(_BEAM) * beam * edge * cosine / square, np.float32(0.0))


def own_beam() -> NDArray[np.float32]:
    """Colour of the own headlights."""
    return _HEADLIGHT


def tunnel_lamp() -> NDArray[np.float32]:
    """Colour and strength of the light inside a tunnel."""
    return np.array([0.20, 0.17, 0.12], np.float32)
