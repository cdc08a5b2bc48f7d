"""Points of the world: where they are in the map, and what they learn of it from a solved frame's
sightings, from the engine's depth and from adjusted keyframes.

A point's place is an inverse depth along the ray of its first sighting; it begins with the engine's
depth, or unknown, and every later sighting narrows it (scalar Kalman update: Civera, Davison and
Montiel, T-RO 2008, with the ray held fixed).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import pnp
from recon4d_ros.egomotion.pnp import Observations, Solution
from recon4d_ros.types import Geometry

Array = NDArray[np.float64]

UNKNOWN_RHO, UNKNOWN_VARIANCE = (
    0.05,
    0.3**2,
)  # a point of unknown depth: 20 m, anything from 2 m to infinity


@dataclass
class Landmarks:
    """L landmarks as arrays. camera [L]: who follows it. pixel [L, 2] float32: where it was in that
    camera's last good image.

    origin, bearing [L, 3]: in map; the point is origin + bearing / rho. rho, variance [L]: inverse
    depth, 1/m. age [L]: sightings. missed [L]: times in a row that it was an outlier. identity [L]:
    a number of its own, never given twice. assumed [L]: the depth is that of the road below, which
    may prove wrong.
    """

    camera: NDArray[np.int64]
    pixel: NDArray[np.float32]
    origin: Array
    bearing: Array
    rho: Array
    variance: Array
    age: NDArray[np.int64]
    missed: NDArray[np.int64]
    identity: NDArray[np.int64]
    assumed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rho)

    @staticmethod
    def empty() -> Landmarks:
        camera, age, missed, identity = np.zeros((4, 0), np.int64)
        place, number = np.zeros((0, 3)), np.zeros(0)
        pixel = np.zeros((0, 2), np.float32)
        return Landmarks(
            camera,
            pixel,
            place,
            place.copy(),
            number,
            number.copy(),
            age,
            missed,
            identity,
            np.zeros(0, np.bool_),
        )

    def keep(self, which: NDArray) -> Landmarks:
        return Landmarks(*(getattr(self, field.name)[which] for field in fields(self)))

    def move(self, by: Array) -> None:
        """All of them, in place, by a rigid motion [4, 4] of the map."""
        self.origin[:] = geometry.transform(by, self.origin)
        self.bearing[:] = self.bearing @ by[:3, :3].T

    def extend(self, other: Landmarks) -> Landmarks:
        return Landmarks(
            *(
                np.concatenate([getattr(self, field.name), getattr(other, field.name)])
                for field in fields(self)
            )
        )


def sample(fields_: NDArray, camera: NDArray[np.int64], at: Array) -> NDArray:
    """Nearest values of [N, h, w] at pixels [..., 2] of cameras [...]; NaN (or False) outside."""
    height, width = fields_.shape[1:]
    with np.errstate(invalid="ignore"):
        u, v = np.rint(at[..., 0]), np.rint(at[..., 1])
        inside = (u >= 0) & (v >= 0) & (u < width) & (v < height)
    row, column = np.where(inside, v, 0).astype(int), np.where(inside, u, 0).astype(int)
    return np.where(
        inside, fields_[camera, row, column], np.nan if fields_.dtype.kind == "f" else False
    )


def refine(
    landmarks: Landmarks,
    index: NDArray[np.int64],
    residual: Array,
    along: Array,
    sigma: Array,
    floor: float,
) -> None:
    """Narrows inverse depths in place from sightings.

    index [M]: the landmark; residual, along [2, M]: measured minus predicted, derivative of the
    prediction by rho; sigma [M]. floor: a share of rho that the standard deviation never goes below
    (poses and landmarks are correlated, the filter does not know).
    """
    count = len(landmarks)
    gain = np.bincount(index, (along**2).sum(0) / sigma**2, count)
    pull = np.bincount(index, (along * residual).sum(0) / sigma**2, count)
    information = 1.0 / landmarks.variance + gain
    change = pull / information
    landmarks.rho[:] = np.clip(landmarks.rho + change, 1e-4, 10.0)
    landmarks.variance[:] = np.maximum(1.0 / information, (floor * landmarks.rho) ** 2)


def rays_to_pixels(rays: Array, k: Array) -> Array:
    """Pinhole pixels [M, 2] of normalised coordinates; k: [3, 3], or one each [M, 3, 3]."""
    return rays * k[..., [0, 1], [0, 1]] + k[..., :2, 2]


DEPTH_FLOOR = 0.002  # share of an inverse depth that sightings never narrow it below
VAGUE = 0.02  # relative deviation of an inverse depth above which the engine's is worth asking for
AROUND = np.array(
    [[0, 0], [-2, 0], [2, 0], [0, -2], [0, 2]]
)  # working pixels (u, v): where a depth must agree with the one at 0, 0


def from_sightings(
    table: Landmarks,
    seen: Observations,
    again: int,
    found: NDArray[np.bool_],
    solution: Solution,
    T_map_base: Array,
    T_camera_base: Array,
) -> Observations:
    """Depths and misses by a pose that is believed; returns the sightings that agree with it.

    seen: what was seen of the table; from `again` on, what is supposed to be road once more without
    that supposition. found [L]: by their own camera.
    """
    main, second = np.arange(again), np.arange(again, len(seen))
    o, good = seen.take(main), solution.inlier[main]
    _drop_suppositions(table, o.landmark[~good], seen.take(second), solution.inlier[second])
    agreeing = o.take(good)
    narrow(table, agreeing, T_map_base, T_camera_base)
    wrong = np.bincount(o.landmark[~good], minlength=len(table)) > 0
    table.missed[:] = np.where(wrong, table.missed + 1, 0)
    table.age[found] += 1
    return agreeing


def _drop_suppositions(
    table: Landmarks, wrong: NDArray, again: Observations, fits: NDArray[np.bool_]
) -> None:
    """Landmarks that are not on the road but would fit at another depth go on with an unknown
    one."""
    index = np.intersect1d(wrong[table.assumed[wrong]], again.landmark[fits])
    table.variance[index], table.assumed[index], table.missed[index] = (
        UNKNOWN_VARIANCE,
        False,
        -1,
    )


def from_adjustment(
    table: Landmarks, identity: NDArray[np.int64], position: Array, T_map_camera: Array
) -> None:
    """Landmarks of these identities [M] are at position [M, 3] in map, seen from cameras at
    T_map_camera [N, 4, 4]."""
    order = np.argsort(table.identity)
    index = order[np.searchsorted(table.identity[order], identity)]
    place = T_map_camera[table.camera[index]]
    ray = position - place[:, :3, 3]
    depth = (ray * place[:, :3, 2]).sum(-1)
    ahead = depth > 0.3
    index, ray, depth = index[ahead], ray[ahead], depth[ahead]
    table.variance[index] *= 1.0 / (table.rho[index] * depth) ** 4
    table.origin[index], table.bearing[index], table.rho[index] = (
        place[ahead, :3, 3],
        ray / depth[:, None],
        1.0 / depth,
    )


def from_engine(
    table: Landmarks,
    mine: NDArray,
    rays: Array,
    working: Array,
    engine: Geometry,
    T_map_camera: Array,
    moved: Array | None = None,
) -> None:
    """Landmarks whose depth is less well known than the engine's take the engine's.

    mine [M]: those to ask for, now seen along rays [M, 2] and at working pixels [M, 2] of cameras
    at T_map_camera [N, 4, 4], moved [M, 4, 4] as in `hung`.
    """
    vague = table.variance[mine] > (VAGUE * table.rho[mine]) ** 2
    mine, rays, working = mine[vague], rays[vague], working[vague]
    moved = None if moved is None else moved[vague]
    rho, variance = inverse_depth(engine, table.camera[mine], working)
    with np.errstate(invalid="ignore"):
        better = np.isfinite(rho) & (variance < 0.5 * table.variance[mine])
    index = mine[better]
    # the same point, seen from now: a new anchor
    table.origin[index], table.bearing[index] = hung(
        table.camera[index], rays[better], T_map_camera, None if moved is None else moved[better]
    )
    table.rho[index], table.variance[index], table.assumed[index] = (
        rho[better],
        variance[better],
        False,
    )


def carried(T_map_base: Array, twist: Array, late: Array | None) -> Array | None:
    """The car's motions [M, 4, 4] in map within `late` [M] seconds from T_map_base [4, 4] on, by a
    twist [6]; None where nothing is late."""
    if late is None:
        return None
    moved = T_map_base @ geometry.along(twist, late) @ geometry.inverse(T_map_base)
    return np.asarray(moved, np.float64)


def hung(
    camera: NDArray[np.int64], rays: Array, T_map_camera: Array, moved: Array | None = None
) -> tuple[Array, Array]:
    """Origin and bearing in map [M, 3] of rays [M, 2] of cameras [M], which stand at T_map_camera
    [N, 4, 4]. moved [M, 4, 4]: how the car has moved in map when their rows were read out."""
    place = T_map_camera[camera]
    if moved is not None:
        place = moved @ place
    bearing = np.einsum("mij,mj->mi", place[:, :3, :2], rays) + place[:, :3, 2]
    return place[:, :3, 3], bearing


def inverse_depth(
    engine: Geometry, camera: NDArray[np.int64], working: Array
) -> tuple[Array, Array]:
    """Inverse depth and its variance [M] at working pixels [M, 2] of cameras [M]; NaN where there
    is none or where the depth breaks off."""
    depths = sample(engine.depth, camera, working + AROUND[:, None]).astype(np.float64)
    sigma = sample(engine.sigma, camera, working).astype(np.float64)
    with np.errstate(invalid="ignore"):
        depth = np.where(depths[0] > 0.1, depths[0], np.nan)
        spread = np.abs(1.0 / depths[1:] - 1.0 / depth)
        rho = np.where(
            np.where(np.isfinite(spread), spread, 0.0).max(axis=0) < 0.15 / depth + 0.01,
            1.0 / depth,
            np.nan,
        )
        variance = np.maximum(sigma / depth**2, 0.01 * rho) ** 2
    return rho, variance


def narrow(table: Landmarks, o: Observations, T_map_base: Array, T_camera_base: Array) -> None:
    """The inverse depths of a table, in place, by what was seen of them from a pose."""
    linear = pnp.linearise(T_map_base[None], pnp.View.of(T_camera_base, o))
    refine(
        table,
        o.landmark,
        linear.residual[0] * linear.ahead,
        linear.along[0] * linear.ahead,
        o.sigma,
        DEPTH_FLOOR,
    )
