"""From what each pixel sees to light: texture, sun, shadow, haze and sky. Linear RGB, before any
camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.ground import SHADOW_CELL, Ground, sample
from recon4d_ros.sim.light import (
    LampMap,
    Light,
    Shelter,
    headlights,
    own_beam,
    tunnel_lamp,
)
from recon4d_ros.sim.raster import FIRST, GROUND, SKY, Hits
from recon4d_ros.sim.solids import FACES, PLANES, Solids
from recon4d_ros.sim.textures import LEVELS, SIZE, Atlas
from recon4d_ros.sim.view import View

TAPS = 3  # texture samples along the direction in which a pixel's footprint is longest
MACRO = 1024  # texels of the atlas's slow variation
MACRO_RATIO = 0.071  # its texels per texel of the layer
_BLOCK = 49152  # pixels
_SHARPER = 0.35  # mip levels below the one of the exact footprint


@dataclass(frozen=True)
class Lamps:
    """What lights the scene beside sun and sky. map: of street lamps and others' headlights, None
    by day. T_world_base: of the car whose headlights are on, None: off. shelter: tunnels."""

    map: LampMap | None = None
    T_world_base: NDArray[np.float64] | None = None
    shelter: Shelter | None = None

    @property
    def any(self) -> bool:
        return not (self.map is None and self.T_world_base is None and self.shelter is None)


@dataclass(frozen=True)
class Setting:
    """What a scene is shaded with. shadow: image from above, and the place of its first pixel (see
    ground.Shadows)."""

    ground: Ground
    atlas: Atlas
    shadow: NDArray[np.uint8]
    shadow_origin: NDArray[np.float64]
    light: Light
    lamps: Lamps


def shade(
    hits: Hits, view: View, T_world_camera: NDArray[np.float64], setting: Setting
) -> NDArray[np.float32]:
    """Light at each pixel, [H, W, 3] float32 linear RGB."""
    light = np.empty((*view.shape, 3), np.float32)
    table = _Table(hits.solids, T_world_camera[:3, :3].T @ setting.light.sun, setting.light)
    x, y = (np.broadcast_to(value, view.shape) for value in (hits.x, hits.y))
    rows = max(_BLOCK // view.shape[1], 1)
    for top in range(0, view.shape[0], rows):  # in blocks that stay in the processor's cache
        band = slice(top, top + rows)
        _shade_band(
            light[band].reshape(-1, 3),
            hits.surface[band].ravel(),
            hits.inverse[band].ravel(),
            x[band].ravel(),
            y[band].ravel(),
            table,
            view.focal,
            T_world_camera,
            setting,
        )
    return light


def _shade_band(
    light: NDArray[np.float32],
    surface: NDArray[np.int32],
    inverse: NDArray[np.float32],
    full_x: NDArray[np.float32],
    full_y: NDArray[np.float32],
    table: _Table,
    focal: float,
    T_world_camera: NDArray[np.float64],
    setting: Setting,
) -> None:
    """`shade` for n pixels, into light [n, 3]."""
    atlas = setting.atlas
    things = np.flatnonzero(surface >= FIRST)
    floor = np.flatnonzero(surface == GROUND)
    sky = np.flatnonzero(surface == SKY)
    if len(sky):
        light[sky] = _sky(full_x[sky], full_y[sky], T_world_camera, atlas, setting.light)
    if len(sky) == len(surface):
        return

    x, y = full_x[things], full_y[things]
    depth = 1.0 / inverse[things]
    a = table.look_up(surface[things] - FIRST, x, y, depth, focal)

    gx, gy = full_x[floor], full_y[floor]
    g_depth = 1.0 / inverse[floor]
    b, lit = _floor(gx, gy, g_depth, focal, T_world_camera, setting)

    u, v, du, dv, minor, major, layer, mu, mv = (
        np.concatenate(pair) for pair in zip(a[:9], b[:9], strict=True)
    )
    texture = _texture(atlas, u, v, du, dv, minor, major, layer)
    macro = sample(
        atlas.macro,
        mu - np.float32(MACRO) * np.floor(mu * np.float32(1 / MACRO)),
        mv - np.float32(MACRO) * np.floor(mv * np.float32(1 / MACRO)),
        cv2.BORDER_WRAP,
    )[:, 0]
    every = np.concatenate([depth, g_depth])
    clear = np.exp(every * np.float32(-1.0 / setting.light.haze_length))
    macro = macro * clear * np.float32(2.0 / 255.0 / TAPS)
    clear = 1.0 - clear
    seen = np.concatenate([things, floor])
    colors = [np.concatenate([a[9][channel], b[9][channel] * lit[channel]]) for channel in range(3)]
    if setting.lamps.any:
        albedo = np.concatenate([table.albedo.T.take(surface[things] - FIRST, axis=1), b[9]], 1)
        along = np.stack([np.concatenate([x, gx]), np.concatenate([y, gy])])
        slant = minor / np.maximum(major, np.float32(1e-6))
        _light_lamps(colors, albedo, along, every, slant, T_world_camera, setting)
    for channel in range(3):  # channel by channel, because NumPy is slow at inner axes of three
        color = colors[channel]
        color *= texture[:, channel]
        color *= macro
        color += clear * setting.light.haze[channel]
        light[seen, channel] = color


def _light_lamps(
    colors: list[NDArray[np.float32]],
    albedo: NDArray[np.float32],
    ray: NDArray[np.float32],
    depth: NDArray[np.float32],
    slant: NDArray[np.float32],
    T_world_camera: NDArray[np.float64],
    setting: Setting,
) -> None:
    """Take daylight from what is under cover, in place, and add lamps. colors: three of [n], lit by
    sun and sky. albedo: [3, n]. ray: [2, n] (x, y). slant: [n] cosine of the angle of sight."""
    r, t = T_world_camera[:3, :3].astype(np.float32), T_world_camera[:3, 3]
    ground, lamps = setting.ground, setting.lamps
    x, y = (
        (r[i, 0] * ray[0] + r[i, 1] * ray[1] + r[i, 2]) * depth
        + np.float32(t[i] - ground.origin[i])
        for i in range(2)
    )
    z = (r[2, 0] * ray[0] + r[2, 1] * ray[1] + r[2, 2]) * depth + np.float32(t[2])
    extra = np.zeros((3, len(depth)), np.float32)
    if lamps.shelter is not None:
        s, lateral = ground.coordinates(x, y)
        share = lamps.shelter.daylight(s, lateral, z)
        for color in colors:
            color *= share
        waves = np.float32(0.8) + np.float32(0.2) * np.cos(s * np.float32(2 * np.pi / 8.0))
        extra += tunnel_lamp()[:, None] * ((np.float32(1.0) - share) * waves)
    if lamps.map is not None:
        shift = ((ground.origin - lamps.map.origin) / lamps.map.cell).astype(np.float32)
        scale = np.float32(1.0 / lamps.map.cell)
        found = sample(
            lamps.map.image, x * scale + shift[0], y * scale + shift[1], cv2.BORDER_CONSTANT
        )
        # A wall gets less of a lamp than the ground below it, and nothing above the lamp.
        extra += found.T * np.where(
            z > 0.05, np.float32(0.55) * np.clip(1.2 - z / 8.0, 0.05, 1.0), np.float32(1.0)
        )
    if lamps.T_world_base is not None:
        local = lamps.T_world_base.copy()
        local[:2, 3] -= ground.origin
        extra += own_beam()[:, None] * headlights(local, x, y, z, slant)
    for channel, color in enumerate(colors):
        color += albedo[channel] * extra[channel]


def _texture(
    atlas: Atlas,
    u: NDArray,
    v: NDArray,
    du: NDArray,
    dv: NDArray,
    minor: NDArray,
    major: NDArray,
    layer: NDArray,
) -> NDArray[np.uint16]:
    """Filtered texture [n, 3] uint16, 0..255 x TAPS. u, v, minor, major in texels of the finest
    level; du, dv a unit direction.

    Anisotropic filtering by TAPS samples along du, dv; the taps' levels are staggered, which blends
    neighbouring levels without sampling each twice.
    """
    level = np.log2(
        np.maximum(np.maximum(minor, major * np.float32(1 / TAPS)), np.float32(1e-3))
    ) - np.float32(_SHARPER)
    reach = np.minimum(major, minor * (3 * TAPS))
    total = np.zeros((len(u), 3), np.uint16)
    top = atlas.origin.reshape(-1, 2)
    row = layer.astype(np.int32) * LEVELS
    for tap in range(TAPS):
        step = reach * np.float32((tap - (TAPS - 1) / 2) / TAPS)
        chosen = np.clip(level + np.float32((tap + 0.5) / TAPS), 0, LEVELS - 2).astype(np.int32)
        shrink = np.ldexp(np.float32(1), -chosen)
        index = row + chosen
        coordinates = []
        for axis, (place, direction) in enumerate(((u, du), (v, dv))):
            texel = place + direction * step
            texel -= np.float32(SIZE) * np.floor(texel * np.float32(1 / SIZE))
            coordinates.append(texel * shrink + (top[:, axis].take(index) - np.float32(0.5)))
        total += sample(atlas.image, coordinates[0], coordinates[1])
    return total


class _Table:
    """One row per face of the solids in view: all that a pixel needs to know of the face it
    sees."""

    def __init__(self, solids: Solids, sun: NDArray[np.float64], light: Light) -> None:
        count = len(solids)
        planes = np.concatenate([solids.planes, np.zeros((count, 1, 4))], axis=1)
        uv = np.concatenate([solids.uv, solids.frame[:, None, :2]], axis=1)
        self.linear = np.ascontiguousarray(uv[..., :3].reshape(-1, 6).T.astype(np.float32))
        offset = uv[..., 3]
        self.offset = np.ascontiguousarray(np.mod(offset, SIZE).reshape(-1, 2).T.astype(np.float32))
        self.macro = np.ascontiguousarray(
            np.mod(offset * MACRO_RATIO, MACRO).reshape(-1, 2).T.astype(np.float32)
        )
        self.distance = np.abs(planes[..., 3]).reshape(-1).astype(np.float32)
        self.density = solids.density.reshape(-1).astype(np.float32)
        self.layer = solids.layer.reshape(-1)
        up_ness = np.einsum("pki,i->pk", planes[..., :3], sun)
        lit = light.sky_light * 0.85 + light.sun_light * np.maximum(up_ness, 0.0)[..., None]
        lit[:, PLANES] = 1.0
        self.color = np.ascontiguousarray((solids.color * lit).reshape(-1, 3).T.astype(np.float32))
        self.albedo = solids.color.reshape(-1, 3).astype(np.float32)
        self.kind = solids.kind
        self.frame = solids.frame.astype(np.float32)
        self.radii = solids.radii.astype(np.float32)
        self.sun = sun.astype(np.float32)
        self.light = light

    def look_up(
        self, row: NDArray[np.int32], x: NDArray, y: NDArray, depth: NDArray, focal: float
    ) -> tuple[NDArray, ...]:
        """u, v, du, dv (texels), minor, major (texels), layer, macro u, macro v, lit color [3,
        n]."""
        du = self.linear[0].take(row) * x + self.linear[1].take(row) * y + self.linear[2].take(row)
        dv = self.linear[3].take(row) * x + self.linear[4].take(row) * y + self.linear[5].take(row)
        pu, pv = du * depth, dv * depth
        u, v = pu + self.offset[0].take(row), pv + self.offset[1].take(row)
        mu = pu * np.float32(MACRO_RATIO) + self.macro[0].take(row)
        mv = pv * np.float32(MACRO_RATIO) + self.macro[1].take(row)
        density = self.density.take(row)
        minor = depth * density * np.float32(1.0 / focal)
        cosine = self.distance.take(row) / (depth * np.sqrt(x * x + y * y + 1.0))
        color = self.color.take(row, axis=1)
        layer = self.layer.take(row)
        scale = 1.0 / np.maximum(np.sqrt(du * du + dv * dv), np.float32(1e-9))
        du *= scale
        dv *= scale
        curved = np.flatnonzero(row % FACES == PLANES)
        if len(curved):
            owner = row[curved] // FACES
            d = depth[curved]
            p = np.stack([x[curved] * d, y[curved] * d, d, np.ones_like(d)], -1)
            local = np.einsum("nij,nj->ni", self.frame[owner], p)
            radii = self.radii[owner]
            around = np.arctan2(local[:, 1], local[:, 0]) * radii[:, 0]
            rise = -local[:, 2]
            u[curved], v[curved] = around * density[curved], rise * density[curved]
            mu[curved], mv[curved] = (
                u[curved] * MACRO_RATIO + owner * 31,
                v[curved] * MACRO_RATIO + owner * 17,
            )
            normal = local / radii**2
            normal[:, 2] *= self.kind[owner] == 1
            normal /= np.linalg.norm(normal, axis=1, keepdims=True)
            facing = np.einsum("ni,nij,j->n", normal, self.frame[owner][:, :, :3], self.sun)
            along = np.stack([x[curved], y[curved], np.ones_like(d)], -1)
            seen = np.abs(
                np.einsum("ni,nij,nj->n", normal, self.frame[owner][:, :, :3], along)
            ) / np.linalg.norm(along, axis=1)
            cosine[curved] = np.maximum(seen, 0.3)
            du[curved], dv[curved] = 1.0, 0.0
            lit = (
                self.light.sky_light.astype(np.float32) * 0.8
                + self.light.sun_light.astype(np.float32) * np.maximum(facing, 0.0)[:, None]
            )
            color[:, curved] = (self.albedo[row[curved]] * lit).T
        major = minor / np.clip(cosine, np.float32(0.04), np.float32(1.0))
        return u, v, du, dv, minor, major, layer, mu, mv, color


def _floor(
    x: NDArray,
    y: NDArray,
    depth: NDArray,
    focal: float,
    T_world_camera: NDArray[np.float64],
    setting: Setting,
) -> tuple[tuple[NDArray, ...], NDArray[np.float32]]:
    """As `_Table.look_up`, for the ground (color unlit), and the light on it [3, n]."""
    ground, light = setting.ground, setting.light
    r = T_world_camera[:3, :3].astype(np.float32)
    eye = (T_world_camera[:2, 3] - ground.origin).astype(np.float32)
    dx, dy = r[0, 0] * x + r[0, 1] * y + r[0, 2], r[1, 0] * x + r[1, 1] * y + r[1, 2]
    wx, wy = dx * depth + eye[0], dy * depth + eye[1]
    scale = 1.0 / np.maximum(np.sqrt(dx * dx + dy * dy), np.float32(1e-6))
    dx *= scale
    dy *= scale
    minor = depth * np.float32(1.0 / focal)
    cosine = np.float32(T_world_camera[2, 3]) / (depth * np.sqrt(x * x + y * y + 1.0))
    major = minor / np.clip(cosine, np.float32(0.01), np.float32(1.0))
    at = ground.surface(wx, wy, dx, dy, minor, major)
    shift = ((ground.origin - setting.shadow_origin) / SHADOW_CELL).astype(np.float32)
    shaded = sample(
        setting.shadow,
        wx * np.float32(1 / SHADOW_CELL) + shift[0],
        wy * np.float32(1 / SHADOW_CELL) + shift[1],
        cv2.BORDER_CONSTANT,
    )
    sun = 1.0 - shaded[:, 0].astype(np.float32) * np.float32(1 / 255)
    lit = np.stack(
        [
            np.float32(sky) + np.float32(strength * light.sun[2]) * sun
            for sky, strength in zip(light.sky_light, light.sun_light, strict=True)
        ]
    )
    # World metres to macro texels, on the world's own grid: the lattice's origin is a multiple of
    # metres, so mod keeps it exact.
    macro = 64.0 * MACRO_RATIO
    base = np.mod(ground.origin * macro, MACRO).astype(np.float32)
    u, v = at.u * at.density, at.v * at.density
    return (
        u,
        v,
        at.du,
        at.dv,
        minor * at.density,
        major * at.density,
        at.layer,
        wx * np.float32(macro) + base[0],
        wy * np.float32(macro) + base[1],
        at.color,
    ), lit


def _sky(
    x: NDArray, y: NDArray, T_world_camera: NDArray[np.float64], atlas: Atlas, light: Light
) -> NDArray[np.float32]:
    """Sky, clouds and far hills: all at infinity."""
    r = T_world_camera[:3, :3].astype(np.float32)
    d = np.stack([r[i, 0] * x + r[i, 1] * y + r[i, 2] for i in range(3)], -1)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    up = np.maximum(d[:, 2], 0.0)
    color = light.haze + (np.sqrt(up)[:, None]) * (light.zenith - light.haze)
    flat = np.float32(110.0) / (up + np.float32(0.12))
    cloud = sample(
        atlas.macro, np.mod(d[:, 0] * flat, MACRO), np.mod(d[:, 1] * flat, MACRO), cv2.BORDER_WRAP
    )
    if light.cover:  # one grey cloud, here brighter, there darker
        grey = np.float32(0.35 * light.cover) * (cloud - 1.0) * np.minimum(up * 4.0, 1.0)[:, None]
        color *= 1.0 + grey
    share = (
        np.float32(1.0 - light.cover)
        * np.clip((cloud - 1.02) * 3.5, 0.0, 0.85)
        * np.minimum(up * 6.0, 1.0)[:, None]
    )
    color += share * (np.array([1.05, 1.05, 1.07], np.float32) - color)
    azimuth = np.arctan2(d[:, 1], d[:, 0]) * np.float32(MACRO / (2 * np.pi))
    ridge = sample(
        atlas.macro, np.mod(azimuth, MACRO), np.full(len(x), 7.0, np.float32), cv2.BORDER_WRAP
    )
    hill = np.clip((0.045 + 0.07 * (ridge - 1.0) - d[:, 2:]) * 400.0, 0.0, 1.0)
    # Far hills, which fog and rain hide.
    hill *= np.float32(min(1.0, np.exp(2.0 - 1800.0 / light.haze_length)))
    dim = np.float32(0.02 if light.dark else 1.0)
    color += hill * (np.array([0.36, 0.45, 0.50], np.float32) * dim - color)
    return color
