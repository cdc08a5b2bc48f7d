"""What lies on the ground: asphalt, lane markings, crossings, parking strips, pavement, grass, and
the shadows on all of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.road import (
    CARRIAGEWAY,
    CYCLE_LANE,
    KERB,
    LANE,
    PARKING,
    PAVEMENT,
    SIDE_STREET,
    Crossing,
    Road,
)
from recon4d_ros.sim.solids import ELLIPSOID, Solids
from recon4d_ros.sim.textures import Layer

_CELL = 1.0  # metres between nodes of the lattice that holds the road's coordinates
_REACH = 200.0  # metres to each side of the window's middle
# the window moves in such steps, on the world's lattice, so that every window gives the same
# numbers
_SNAP = 50.0
SHADOW_CELL, SHADOW_REACH = 0.15, 66.0


@dataclass(frozen=True)
class Zone:
    """A strip of ground. color: linear. density: texels per metre. along: whether the texture lies
    along the road (or on the world's own grid)."""

    layer: Layer
    color: tuple[float, float, float]
    density: float
    along: bool = False


ASPHALT = Zone(Layer.ASPHALT, (0.115, 0.115, 0.12), 64.0)
SMOOTH_ASPHALT = Zone(Layer.PLASTER, (0.105, 0.105, 0.11), 48.0)  # new: hardly any texture
GRASS = Zone(Layer.GRASS, (0.085, 0.125, 0.035), 64.0)
PAVERS = Zone(Layer.PAVERS, (0.26, 0.25, 0.235), 128.0, True)
KERBSTONE = Zone(Layer.PLASTER, (0.34, 0.33, 0.31), 64.0, True)
# metres along the road in which all markings (1.2, 2.4, 6.6, 9, 18, 36 m) and tiles (4, 8 m)
# repeat: the origin of s moves in such steps, so that nothing on the ground moves with it
_REPEAT = 792.0


@dataclass(frozen=True)
class Lie:
    """Where n points of the ground lie to the road. s (from `Ground.s_origin`, which is a multiple
    of _REPEAT), lateral, away = |lateral|: m. fine_s, fine_l: a pixel's extent along and across
    the road, m. x, y: metres from `Ground.origin`; dx, dy: unit viewing direction; minor, major: a
    pixel's extent, m."""

    s: NDArray[np.float32]
    lateral: NDArray[np.float32]
    away: NDArray[np.float32]
    fine_s: NDArray[np.float32]
    fine_l: NDArray[np.float32]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    dx: NDArray[np.float32]
    dy: NDArray[np.float32]
    minor: NDArray[np.float32]
    major: NDArray[np.float32]


class GroundPlan(Protocol):
    """What is painted and laid where. zones: what zone numbers mean."""

    @property
    def zones(self) -> tuple[Zone, ...]: ...

    def lay(
        self, at: Lie, origin: NDArray[np.float64]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Zone number [n] and the share that is painted [n]. origin: [2] world metres of `at.x`,
        `at.y`."""
        ...


_NO_SECOND_MAP: Any = (
    None  # cv2.remap takes None where the first map holds both coordinates; its stubs do not say so
)
_PAINT = np.array((0.62, 0.62, 0.60), np.float32)


@dataclass(frozen=True)
class Surface:
    """The ground at n points. u, v: metres in the texture's plane; du, dv: the viewing direction
    there (unit). layer [n], density [n] texels per metre, color [3, n] linear."""

    u: NDArray[np.float32]
    v: NDArray[np.float32]
    du: NDArray[np.float32]
    dv: NDArray[np.float32]
    layer: NDArray[np.int16]
    density: NDArray[np.float32]
    color: NDArray[np.float32]


@lru_cache(8)  # half a second each; cameras beside a step of the window ask for two in turn
def _window(road: Road, middle: tuple[float, float]) -> tuple[NDArray[np.float32], float]:
    """The lattice around a world point, [n, n, 4]: s from the s that is given beside it, lateral,
    and the road's direction there."""
    nodes = np.arange(int(2 * _REACH / _CELL) + 1) * _CELL - _REACH
    gx, gy = np.meshgrid(middle[0] + nodes, middle[1] + nodes)
    s, lateral, heading = road.locate(np.stack([gx, gy], -1))
    s_origin = float(np.floor(road.locate(np.array(middle))[0] / _REPEAT) * _REPEAT)
    fields = np.stack([s - s_origin, lateral, np.cos(heading), np.sin(heading)], -1)
    return fields.astype(np.float32), s_origin


class Ground:
    """Road coordinates for world points near the car, by interpolation in a lattice of exact
    ones."""

    def __init__(self, road: Road, plan: GroundPlan) -> None:
        self.road = road
        self.plan = plan
        self._middle: tuple[float, float] | None = None
        self._fields = np.zeros((1, 1, 4), np.float32)
        self.origin = np.zeros(2)
        self.s_origin = 0.0

    def move_to(self, xy: NDArray[np.float64]) -> None:
        """Have the lattice around a world point."""
        middle = float(np.round(xy[0] / _SNAP) * _SNAP), float(np.round(xy[1] / _SNAP) * _SNAP)
        if middle == self._middle:
            return
        self._middle = middle
        self.origin = np.array(middle) - _REACH
        self._fields, self.s_origin = _window(self.road, middle)

    def coordinates(
        self, x: NDArray[np.float32], y: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(s, lateral) of points in metres from `origin`."""
        fields = sample(self._fields, x / np.float32(_CELL), y / np.float32(_CELL))
        return fields[:, 0] + np.float32(self.s_origin), fields[:, 1]

    def surface(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        dx: NDArray[np.float32],
        dy: NDArray[np.float32],
        minor: NDArray[np.float32],
        major: NDArray[np.float32],
    ) -> Surface:
        """The ground at x, y (metres from `origin`) seen along the unit direction dx, dy; minor,
        major: a pixel's extent there, m."""
        fields = sample(self._fields, x / np.float32(_CELL), y / np.float32(_CELL))
        s, lateral, cos, sin = (np.ascontiguousarray(fields[:, i]) for i in range(4))
        along = dx * cos + dy * sin
        across = dy * cos - dx * sin
        stretch = major - minor
        fine_s, fine_l = minor + stretch * np.abs(along), minor + stretch * np.abs(across)
        away = np.abs(lateral)
        at = Lie(s, lateral, away, fine_s, fine_l, x, y, dx, dy, minor, major)
        zone, paint = self.plan.lay(at, self.origin)
        zones = self.plan.zones
        road_wise = np.array([one.along for one in zones]).take(zone)
        bare = np.array([one.color for one in zones]).T.astype(np.float32).take(zone, axis=1)
        color = np.stack(
            [own + paint * (white - own) for own, white in zip(bare, _PAINT, strict=True)]
        )
        return Surface(
            np.where(road_wise, s, x),
            np.where(road_wise, lateral, y),
            np.where(road_wise, along, dx),
            np.where(road_wise, across, dy),
            np.array([one.layer for one in zones]).astype(np.int16).take(zone),
            np.array([one.density for one in zones]).astype(np.float32).take(zone),
            color,
        )


@dataclass(frozen=True)
class CityGround:
    """Three lanes, cycle lanes, parking, pavements, and a side street at each crossing."""

    crossings: tuple[Crossing, ...]
    zones: tuple[Zone, ...] = (
        ASPHALT,
        Zone(Layer.ASPHALT, (0.21, 0.10, 0.08), 64.0),
        Zone(Layer.COBBLE, (0.15, 0.145, 0.14), 128.0, True),
        KERBSTONE,
        PAVERS,
        GRASS,
    )

    def lay(
        self, at: Lie, origin: NDArray[np.float64]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        zone = strips(at.away, (CARRIAGEWAY, CYCLE_LANE, PARKING, KERB, PAVEMENT))
        paint = line(at.away - np.float32(CARRIAGEWAY), 0.08, at.fine_l)
        for more in (
            line(np.abs(at.lateral - np.float32(LANE / 2)) - np.float32(0.14), 0.06, at.fine_l),
            line(at.lateral + np.float32(LANE / 2), 0.07, at.fine_l)
            * line(phase(at.s, 9.0), 1.5, at.fine_s),
            line(at.away - np.float32(CYCLE_LANE), 0.06, at.fine_l)
            * line(phase(at.s, 1.2), 0.35, at.fine_s),
            line(phase(at.s, 6.6), 0.05, at.fine_s)
            * line(at.away - np.float32(0.5 * (CYCLE_LANE + PARKING)), 1.1, at.fine_l),
        ):
            np.maximum(paint, more, out=paint)
        for crossing in self.crossings:
            middle = crossing.origin - origin
            if np.abs(middle - _REACH).max() > _REACH:
                continue
            tx, ty = crossing.tangent.astype(np.float32)
            q = (at.x - np.float32(middle[0])) * tx + (at.y - np.float32(middle[1])) * ty
            r = (at.y - np.float32(middle[1])) * tx - (at.x - np.float32(middle[0])) * ty
            _cross(q, r, at.away, zone, paint, at.dx * tx + at.dy * ty, at.minor, at.major)
        return zone, paint


def _cross(
    q: NDArray,
    r: NDArray,
    away: NDArray,
    zone: NDArray,
    paint: NDArray,
    along: NDArray,
    minor: NDArray,
    major: NDArray,
) -> None:
    """A side street and its zebra crossings, in place. q: metres along the main road from the
    crossing's middle; r: across it."""
    beside, out = np.abs(q), np.abs(r)
    near = (beside < 14.0) & (out < 130.0)
    stretch = major - minor
    fine_q = minor + stretch * np.abs(along)
    fine_r = minor + stretch * np.sqrt(np.maximum(1.0 - along * along, 0.0))
    street = near & (beside < SIDE_STREET) & (out > CARRIAGEWAY - 0.1)
    zone[near & (zone == 5) & (beside < SIDE_STREET + 3.0) & (out > PAVEMENT)] = 4
    zone[near & (zone == 2) & (beside < 9.5)] = 4
    zone[near & (zone == 1) & (beside < SIDE_STREET)] = 0
    zone[street] = 0
    paint[near & (beside < SIDE_STREET + 1.0)] = 0.0
    zebra = (
        line(beside - np.float32(6.5), 1.5, fine_q)
        * line(phase(r, 1.0), 0.25, fine_r)
        * (near & (out < CYCLE_LANE))
    )
    stop = line(q + np.float32(9.2), 0.2, fine_q) * (near & (r < LANE / 2) & (r > -CARRIAGEWAY))
    stop += line(q - np.float32(9.2), 0.2, fine_q) * (near & (r > LANE / 2) & (r < CARRIAGEWAY))
    dash = (
        line(r * 0, 1.0, fine_r)
        * line(q, 0.06, fine_q)
        * line(phase(r, 6.0), 1.2, fine_r)
        * (street & (out > PAVEMENT))
    )
    np.maximum(paint, np.maximum(zebra, np.maximum(stop, dash)), out=paint)
    zone[(zebra > 0) & (zone == 1)] = 0


def strips(away: NDArray, edges: tuple[float, ...]) -> NDArray[np.int8]:
    """Number of the strip that each point lies in, by the strips' outer edges."""
    zone = np.zeros(len(away), np.int8)
    for edge in edges:
        zone += away > np.float32(edge)
    return zone


def phase(s: NDArray, period: float) -> NDArray:
    """Distance to the nearest multiple of a period, signed."""
    return s - np.float32(period) * np.rint(s * np.float32(1.0 / period))


def line(distance: NDArray, half_width: float, fine: NDArray) -> NDArray[np.float32]:
    """Share of a pixel of extent `fine` that a stripe of +-half_width covers."""
    half = np.float32(half_width)
    covered = np.clip((half + 0.5 * fine - np.abs(distance)) / fine, 0.0, 1.0)
    return covered * np.minimum(1.0, 2 * half / fine)


class Shadows:
    """Shadows of everything on the ground, drawn from above as the hulls of the solids' projections
    along the sun's rays."""

    def __init__(self, sun: NDArray[np.float64]) -> None:
        self._slope = sun[:2] / sun[2]
        self._key: tuple | None = None
        self._still = np.zeros((1, 1), np.uint8)
        self.origin = np.zeros(2)

    def draw(
        self, middle: NDArray[np.float64], still: Solids, still_key: tuple, moving: Solids
    ) -> NDArray[np.uint8]:
        """Image from above, 255 = full shadow, SHADOW_CELL metres per pixel, its first pixel at
        `origin`.

        still_key: what names the set of still solids, whose shadows are kept while it and the
        window stay.
        """
        corner = np.round((middle - SHADOW_REACH) / 12.0) * 12.0
        key = (still_key, corner[0], corner[1])
        if key != self._key:
            self._key, self.origin = key, corner
            self._still = self._fill(
                np.zeros((int(2 * SHADOW_REACH / SHADOW_CELL),) * 2, np.uint8), still
            )
        image = self._fill(self._still.copy(), moving)
        return np.asarray(cv2.GaussianBlur(image, (5, 5), 1.0), np.uint8)

    def _fill(self, image: NDArray[np.uint8], solids: Solids) -> NDArray[np.uint8]:
        points = np.where(
            (solids.kind == ELLIPSOID)[:, None, None],
            _silhouettes(solids),
            np.repeat(solids.corners, 4, axis=1),
        )
        flat = (points[..., :2] - points[..., 2:] * self._slope - self.origin) / SHADOW_CELL
        inside = (flat.max(1) > 0).all(1) & (flat.min(1) < len(image)).all(1)
        for outline in np.rint(flat[inside] * 16).astype(np.int32):
            cv2.fillConvexPoly(image, cv2.convexHull(outline), 255, cv2.LINE_8, 4)
        return image


def _silhouettes(solids: Solids) -> NDArray[np.float64]:
    """[P, 32, 3] points on the ellipsoids inscribed in the solids."""
    i = np.arange(32)
    z = 1 - (2 * i + 1) / 32.0
    ring = np.sqrt(1 - z * z)
    sphere = np.stack([ring * np.cos(2.4 * i), ring * np.sin(2.4 * i), z], -1)
    return solids.corners.mean(1)[:, None] + np.einsum(
        "ni,pi,pij->pnj", sphere, solids.radii, solids.frame[:, :, :3]
    )


def sample(
    image: NDArray,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    border: int = cv2.BORDER_REPLICATE,
) -> NDArray:
    """Bilinear samples [n, c] of an image at n points (a list, which cv2.remap takes as an
    image)."""
    n, width = len(x), 4096
    rows = max(-(-n // width), 1)
    grid = np.zeros((rows * width, 2), np.float32)
    grid[:n, 0], grid[:n, 1] = x, y
    out = cv2.remap(
        image, grid.reshape(rows, width, 2), _NO_SECOND_MAP, cv2.INTER_LINEAR, borderMode=border
    )
    return out.reshape(rows * width, -1)[:n]
