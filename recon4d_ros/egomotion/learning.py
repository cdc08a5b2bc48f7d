"""What landmarks learn of their places: from a solved frame's sightings, from the engine's depth,
from adjusted keyframes. All in place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import features, sightings
from recon4d_ros.egomotion.bundle import Adjusted
from recon4d_ros.egomotion.features import Landmarks
from recon4d_ros.egomotion.pnp import Observations, Solution
from recon4d_ros.egomotion.sightings import Sightings
from recon4d_ros.types import Geometry

Array = NDArray[np.float64]

VAGUE = 0.02  # relative deviation of an inverse depth above which the engine's is worth asking for
AROUND = np.array(
    [[0, 0], [-2, 0], [2, 0], [0, -2], [0, 2]]
)  # working pixels (u, v): where a depth must agree with the one at 0, 0


def from_sightings(
    table: Landmarks, seen: Sightings, solution: Solution, T_map_base: Array, T_camera_base: Array
) -> Observations:
    """Depths and misses by a pose that is believed; returns the sightings that agree with it."""
    main, second = np.arange(seen.second), np.arange(seen.second, len(seen.observations))
    o, good = seen.observations.take(main), solution.inlier[main]
    _drop_suppositions(
        table, o.landmark[~good], seen.observations.take(second), solution.inlier[second]
    )
    agreeing = o.take(good)
    sightings.narrow(table, agreeing, T_map_base, T_camera_base)
    wrong = np.bincount(o.landmark[~good], minlength=len(table)) > 0
    table.missed[:] = np.where(wrong, table.missed + 1, 0)
    table.age[seen.found] += 1
    return agreeing


def _drop_suppositions(
    table: Landmarks, wrong: NDArray, again: Observations, fits: NDArray[np.bool_]
) -> None:
    """Landmarks that are not on the road but would fit at another depth go on with an unknown
    one."""
    index = np.intersect1d(wrong[table.assumed[wrong]], again.landmark[fits])
    table.variance[index], table.assumed[index], table.missed[index] = (
        features.UNKNOWN_VARIANCE,
        False,
        -1,
    )


def from_adjustment(
    table: Landmarks, adjusted: Adjusted, T_map_base: Array, T_camera_base: Array
) -> None:
    """The adjusted landmarks become the current ones, and the rest moves along with the last pose,
    which was T_map_base [4, 4] before."""
    now = adjusted.T_map_base[-1]
    correction = now @ geometry.inverse(T_map_base)
    table.origin[:] = geometry.transform(correction, table.origin)
    table.bearing[:] = table.bearing @ correction[:3, :3].T
    order = np.argsort(table.identity)
    index = order[np.searchsorted(table.identity[order], adjusted.identity)]
    place = (now @ geometry.inverse(T_camera_base))[table.camera[index]]
    ray = adjusted.position - place[:, :3, 3]
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
) -> None:
    """Landmarks whose depth is less well known than the engine's take the engine's.

    mine [M]: those to ask for, now seen along rays [M, 2] and at working pixels [M, 2] of cameras
    at T_map_camera [N, 4, 4].
    """
    vague = table.variance[mine] > (VAGUE * table.rho[mine]) ** 2
    mine, rays, working = mine[vague], rays[vague], working[vague]
    rho, variance = inverse_depth(engine, table.camera[mine], working)
    with np.errstate(invalid="ignore"):
        better = np.isfinite(rho) & (variance < 0.5 * table.variance[mine])
    index = mine[better]
    # the same point, seen from now: a new anchor
    table.origin[index], table.bearing[index] = hung(
        table.camera[index], rays[better], T_map_camera
    )
    table.rho[index], table.variance[index], table.assumed[index] = (
        rho[better],
        variance[better],
        False,
    )


def hung(camera: NDArray[np.int64], rays: Array, T_map_camera: Array) -> tuple[Array, Array]:
    """Origin and bearing in map [M, 3] of rays [M, 2] of cameras [M], which stand at T_map_camera
    [N, 4, 4]."""
    place = T_map_camera[camera]
    bearing = np.einsum("mij,mj->mi", place[:, :3, :2], rays) + place[:, :3, 2]
    return place[:, :3, 3], bearing


def inverse_depth(
    engine: Geometry, camera: NDArray[np.int64], working: Array
) -> tuple[Array, Array]:
    """Inverse depth and its variance [M] at working pixels [M, 2] of cameras [M]; NaN where there
    is none or where the depth breaks off."""
    depths = features.sample(engine.depth, camera, working + AROUND[:, None]).astype(np.float64)
    sigma = features.sample(engine.sigma, camera, working).astype(np.float64)
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
