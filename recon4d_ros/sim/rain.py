"""Rain: drops and streaks that stay with the lens, streaks in the air, and a wet road that mirrors.

A drop is a small lens of very short focal length: it shows the scene upside down, wide and blurred.
Truth is untouched: depth and masks are those of the world behind the water.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.raster import GROUND, Hits
from recon4d_ros.sim.textures import Atlas
from recon4d_ros.sim.view import View, make_view

_DROPS = 60  # on a lens at a time, on average
_LIFE = (6.0, 40.0)  # seconds until a drop runs off
_RADIUS = (0.006, 0.03)  # of the image's width, most of them near the lesser
_TRAIL_LIFE = 5.0  # seconds that the trail of a drop stays
_WIDE = 5.0  # a drop shows so many times its own width of the scene
_STREAKS = 90  # in the air, per frame
_SMALL = 4  # what a drop shows is blurred: a picture of a fraction of the size is enough
_MIRROR = 3  # the road's mirror is rough: likewise
_WET_ROAD = 0.55  # a wet road is so much darker than a dry one
_PUDDLES = 0.02  # the share of macro texels per metre
_UP = np.diag([1.0, 1.0, -1.0, 1.0])


class Lens:
    """The water on one camera's lens. index: the camera's place in the rig."""

    def __init__(self, view: View, seed: int, index: int, amount: float) -> None:
        self._height, self._width = view.shape
        rng = np.random.default_rng([seed, index, 14])
        slots = max(round(_DROPS * amount), 1)
        self._phase = rng.uniform(0.0, 1.0, slots)
        self._life = rng.uniform(*_LIFE, slots)
        self._seed = (seed, index)
        self._key: tuple[int, ...] = ()
        self._maps: tuple[NDArray[np.float32], ...] = ()

    def wet(self, light: NDArray[np.float32], t: float) -> NDArray[np.float32]:
        """What reaches the sensor at time t of the light [H, W, 3] before the lens."""
        turns = t / self._life + self._phase
        ages = (turns - np.floor(turns)) * self._life
        key = tuple(np.floor(turns).astype(int)) + tuple(np.flatnonzero(ages < _TRAIL_LIFE))
        if key != self._key:
            self._key, self._maps = key, self._draw(np.floor(turns).astype(int), ages)
        u, v, alpha, gain = self._maps
        small = cv2.resize(
            light, None, fx=1.0 / _SMALL, fy=1.0 / _SMALL, interpolation=cv2.INTER_AREA
        )
        small = cv2.GaussianBlur(small, (0, 0), 1.3)
        water = cv2.remap(small, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(light + alpha[..., None] * (water * gain[..., None] - light), np.float32)

    def _draw(self, turns: NDArray[np.int64], ages: NDArray) -> tuple[NDArray[np.float32], ...]:
        """Where each pixel's light comes from (u, v of the small picture), the share of water, and
        its gain."""
        v, u = np.indices((self._height, self._width), dtype=np.float32)
        alpha, gain = np.zeros_like(u), np.ones_like(u)
        source_u, source_v = u.copy(), v.copy()
        for slot, turn in enumerate(turns.tolist()):
            rng = np.random.default_rng([*self._seed, slot, turn + 1_000_000, 15])
            x, y = rng.uniform(0, self._width), rng.uniform(0, self._height)
            low, high = _RADIUS
            radius = self._width * (low + (high - low) * rng.random() ** 3)
            if rng.random() < 0.35 and ages[slot] < _TRAIL_LIFE:
                self._trail(source_u, alpha, rng, x, y, 0.5 * radius)
            self._drop(u, v, (source_u, source_v, alpha, gain), rng, x, y, radius)
        scale, shift = np.float32(1.0 / _SMALL), np.float32(0.5 / _SMALL - 0.5)
        return source_u * scale + shift, source_v * scale + shift, alpha, gain

    def _drop(
        self,
        u: NDArray[np.float32],
        v: NDArray[np.float32],
        maps: tuple[NDArray[np.float32], ...],
        rng: np.random.Generator,
        x: float,
        y: float,
        radius: float,
    ) -> None:
        stretch, lobes, turn = rng.uniform(0.9, 1.5), rng.uniform(0.0, 0.16), rng.uniform(0, 6.28)
        reach = radius * 1.8 + 1
        window = (
            slice(max(int(y - reach), 0), max(int(y + reach) + 1, 0)),
            slice(max(int(x - reach), 0), max(int(x + reach) + 1, 0)),
        )
        dx, dy = (u[window] - x) / radius, (v[window] - y) / (radius * stretch)
        if not dx.size:
            return
        angle = np.arctan2(dy, dx)
        rho = np.hypot(dx, dy) / (1.0 + lobes * np.sin(3 * angle + turn))
        cover = np.clip((1.08 - rho) * np.float32(min(radius, 8.0) * 0.4), 0.0, 1.0)
        inside = cover > 0
        source_u, source_v, alpha, gain = (part[window] for part in maps)
        source_u[inside] = (x - _WIDE * radius * dx)[inside]
        source_v[inside] = (y - _WIDE * radius * dy)[inside]
        alpha[inside] = np.maximum(alpha, cover)[inside]
        # Dark at the rim; the sky's light gathers at the lower edge.
        gain[inside] = (1.05 - 0.5 * rho**4 + 0.25 * np.clip(dy, 0.0, 1.0) * rho)[inside]

    def _trail(
        self,
        source_u: NDArray[np.float32],
        alpha: NDArray[np.float32],
        rng: np.random.Generator,
        x: float,
        y: float,
        half: float,
    ) -> None:
        """The film that a drop leaves above it where it ran."""
        top = max(0, int(y - rng.uniform(0.15, 0.6) * self._height))
        rows = np.arange(top, min(int(y), self._height))
        middle = x + 1.5 * half * np.sin(rows / (9.0 * half + 1.0) + rng.uniform(0, 6.28))
        left, right = max(int(x - 4 * half), 0), min(int(x + 4 * half) + 1, self._width)
        if left >= right or not len(rows):
            return
        offset = np.arange(left, right)[None] - middle[:, None]
        cover = np.clip((1.2 - np.abs(offset) / half) * 1.5, 0.0, 0.75).astype(np.float32)
        window = (slice(rows[0], rows[-1] + 1), slice(left, right))
        np.maximum(alpha[window], cover, out=alpha[window])
        source_u[window] += np.where(cover > 0, 2.5 * offset, 0.0).astype(np.float32)


def streaks(
    light: NDArray[np.float32], seed: int, index: int, t: float, amount: float, brightness: float
) -> None:
    """Falling drops in the air, blurred to lines by the shutter, in place."""
    height, width = light.shape[:2]
    rng = np.random.default_rng([seed, index, round(t * 1e6), 16])
    canvas = np.zeros((height, width), np.uint8)
    count = round(_STREAKS * amount)
    starts = rng.uniform(0, 1, (count, 2)) * (width, height)
    lengths = height * rng.uniform(0.02, 0.10, count)
    slants = rng.normal(0.0, 0.06, count)
    for (x, y), length, slant, value in zip(
        starts, lengths, slants, rng.integers(40, 160, count), strict=True
    ):
        end = (int(x + slant * length), int(y + length))
        cv2.line(canvas, (int(x), int(y)), end, int(value), 1, cv2.LINE_AA)
    share = cv2.GaussianBlur(canvas, (3, 3), 0.7).astype(np.float32) * np.float32(0.5 / 255)
    light += share[..., None] * np.float32(brightness)


def mirror_view(view: View) -> View:
    """The view in which the mirror is rendered."""
    camera = view.camera
    k = camera.k / _MIRROR
    k[2, 2] = 1.0
    k[:2, 2] = (camera.k[:2, 2] + 0.5) / _MIRROR - 0.5
    width, height = -(-camera.width // _MIRROR), -(-camera.height // _MIRROR)
    small = replace(camera, width=width, height=height, k=k, ego_vehicle=None, rolling_shutter=0.0)
    return make_view(small)


def mirrored(T_world_camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """The camera's image below the ground: what it sees is what the road mirrors."""
    return _UP @ T_world_camera


def mirror(
    light: NDArray[np.float32],
    reflection: NDArray[np.float32],
    hits: Hits,
    T_world_camera: NDArray[np.float64],
    atlas: Atlas,
    haze_length: float,
    amount: float,
) -> None:
    """Lay the mirror image [h, w, 3] over the wet ground, in place: darker asphalt, Schlick's
    reflectance of water (1994), rougher where no puddle is."""
    height, width = light.shape[:2]
    rows, columns = np.nonzero(hits.surface == GROUND)
    if not len(rows):
        return
    x, y = (np.broadcast_to(part, (height, width))[rows, columns] for part in (hits.x, hits.y))
    depth = 1.0 / hits.inverse[rows, columns]
    r, t = T_world_camera[:3, :3].astype(np.float32), T_world_camera[:3, 3]
    wx, wy = (
        (r[i, 0] * x + r[i, 1] * y + r[i, 2]) * depth + np.float32(t[i] % 4096.0) for i in (0, 1)
    )
    cosine = np.clip(np.float32(t[2]) / (depth * np.sqrt(x * x + y * y + 1.0)), 0.0, 1.0)
    fresnel = np.float32(0.02) + np.float32(0.98) * (1.0 - cosine) ** 5
    size = np.float32(len(atlas.macro))
    cells = [
        np.mod(value * (size * np.float32(_PUDDLES)), size).astype(np.int32) % len(atlas.macro)
        for value in (wx, wy)
    ]
    puddle = np.clip((atlas.macro[cells[1], cells[0]] - 0.9) * 5.0, 0.25, 1.0)
    rough = cv2.GaussianBlur(reflection, (0, 0), sigmaX=0.8, sigmaY=3.0)
    full = cv2.resize(rough, (width, height), interpolation=cv2.INTER_LINEAR)[rows, columns]
    share = (np.float32(amount) * puddle * fresnel * np.exp(-depth / np.float32(haze_length)))[
        :, None
    ]
    dark = np.float32(1.0 - amount * (1.0 - _WET_ROAD) * 0.8)
    light[rows, columns] = light[rows, columns] * dark * (1.0 - share) + share * full
