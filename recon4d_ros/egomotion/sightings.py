"""Where the landmarks are in the new images: followed by their own camera, and looked for in those
that look the same way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import features, pnp, settling
from recon4d_ros.egomotion.cameras import Cameras
from recon4d_ros.egomotion.features import Landmarks
from recon4d_ros.egomotion.images import Grey, Images
from recon4d_ros.egomotion.pnp import Observations
from recon4d_ros.parallel import each

Array = NDArray[np.float64]

BLIND_SHARE, BLIND_COUNT = (
    0.2,
    10,
)  # a camera that finds a smaller share of so many points shows something else
BORDER = 3.0  # pixels
TOLERANCE = 1.0  # pixels between a point and where the way there and back ends
DEPTH_FLOOR = 0.002  # share of an inverse depth that sightings never narrow it below


@dataclass(frozen=True)
class Sightings:
    """pixel [L, 2], found [L]: the landmarks of a table in their own cameras. guess [L, 2]: where
    they were looked for.

    blind [N]: cameras that found next to none of theirs. observations: of the found ones; the last
    ones, from `second` on, are those on the supposed road once more, without that supposition.
    """

    pixel: NDArray[np.float32]
    guess: NDArray[np.float32]
    found: NDArray[np.bool_]
    blind: NDArray[np.bool_]
    observations: Observations
    second: int


@dataclass(frozen=True)
class Seen:
    """Landmarks index [M] of a table, seen by one camera along rays [M, 2]."""

    camera: int
    index: NDArray[np.int64]
    rays: Array


def sight(
    cameras: Cameras,
    images: Images,
    table: Landmarks,
    T_map_base: Array,
    T_camera_base: Array,
    noise: float,
) -> Sightings:
    """Follows every camera's points into its new image, and into the images of cameras that look
    the same way.

    T_map_base [4, 4], T_camera_base [N, 4, 4]: where the rig is expected. noise: standard deviation
    of a sighting in input pixels.
    """
    pixel, found = table.pixel.copy(), np.zeros(len(table), np.bool_)
    blind = np.zeros(len(cameras), np.bool_)
    expected = guess(
        cameras, table, np.arange(len(table)), table.camera, T_map_base, T_camera_base, table.pixel
    )
    asked = [
        camera
        for camera in range(len(cameras))
        if images.before[camera] is not None and (table.camera == camera).any()
    ]

    def follow(camera: int) -> None:
        """One camera; each writes only where its own landmarks are."""
        before, after, mine = images.before[camera], images.now[camera], table.camera == camera
        if before is None or after is None:
            return
        if cameras.alone(camera):
            pixel[mine], found[mine] = features.there(
                before, after, table.pixel[mine], expected[mine]
            )
        else:
            pixel[mine], found[mine] = features.there_and_back(
                before, after, table.pixel[mine], expected[mine], TOLERANCE
            )

    def tell(camera: int) -> list[Seen]:
        """What of one camera's landmarks is seen, by itself and by those beside it."""
        before, after, lens = images.before[camera], images.now[camera], cameras.lenses[camera]
        mine = np.flatnonzero(table.camera == camera)
        assert before is not None
        if after is None:  # absent: the cameras beside it look for its points
            return across(
                cameras,
                images,
                camera,
                before,
                table,
                mine,
                table.pixel[mine],
                T_map_base,
                T_camera_base,
            )
        found[mine] &= lens.inside(pixel[mine], BORDER)
        if len(mine) >= BLIND_COUNT and found[mine].mean() < BLIND_SHARE:
            blind[camera], found[mine] = True, False
            return across(
                cameras,
                images,
                camera,
                before,
                table,
                mine,
                table.pixel[mine],
                T_map_base,
                T_camera_base,
            )
        seen = mine[found[mine]]
        own = Seen(camera, seen, lens.rays(pixel[seen]))
        return [
            own,
            *across(
                cameras, images, camera, after, table, seen, pixel[seen], T_map_base, T_camera_base
            ),
        ]

    each(follow, asked)
    settling.settle(
        cameras,
        images,
        table,
        pixel,
        found,
        T_map_base @ geometry.inverse(T_camera_base),
        T_map_base,
    )
    seen = [one for each_camera in each(tell, asked) for one in each_camera]
    first = observations(cameras, table, seen, noise)
    doubtful = first.take(table.assumed[first.landmark])
    doubtful = replace(doubtful, variance=np.full(len(doubtful), features.UNKNOWN_VARIANCE))
    return Sightings(
        pixel, expected, found, blind, Observations.join([first, doubtful]), len(first)
    )


def guess(
    cameras: Cameras,
    table: Landmarks,
    index: NDArray,
    camera: NDArray[np.int64],
    T_map_base: Array,
    T_camera_base: Array,
    otherwise: NDArray,
) -> NDArray[np.float32]:
    """Pixels [M, 2] where landmarks should be in cameras [M]; `otherwise` [M, 2] where that is not
    in the image."""
    T_camera_map = T_camera_base @ geometry.inverse(T_map_base)
    place = T_camera_map[camera]
    at = table.bearing[index] + table.rho[index, None] * table.origin[index]
    q = np.einsum("mij,mj->mi", place[:, :3, :3], at) + table.rho[index, None] * place[:, :3, 3]
    ahead = q[:, 2] > 1e-3
    rays = q[:, :2] / np.where(ahead, q[:, 2], 1.0)[:, None]
    pixels = np.array(otherwise, np.float32)
    for one in np.unique(camera):
        which, lens = np.flatnonzero((camera == one) & ahead), cameras.lenses[one]
        there = lens.pixels(rays[which])
        inside = lens.inside(there, 0.0)
        pixels[which[inside]] = there[inside]
    return pixels


def shift(
    cameras: Cameras,
    table: Landmarks,
    sightings: Sightings,
    T_map_base: Array,
    T_camera_base: Array,
) -> float:
    """Pixels, in the median, between where the points were looked for and where they would be by
    another pose."""
    other = guess(
        cameras,
        table,
        np.arange(len(table)),
        table.camera,
        T_map_base,
        T_camera_base,
        sightings.guess,
    )
    there = (sightings.guess != table.pixel).any(-1)
    return (
        float(np.median(np.linalg.norm(other - sightings.guess, axis=1)[there]))
        if there.any()
        else np.inf
    )


def across(
    cameras: Cameras,
    images: Images,
    camera: int,
    here: Grey,
    table: Landmarks,
    index: NDArray,
    pixel: NDArray,
    T_map_base: Array,
    T_camera_base: Array,
) -> list[Seen]:
    """This instant's sightings in the cameras that look the same way, of points at `pixel` in
    `here`, an image of `camera`."""
    parts = []
    for other in cameras.beside[camera].tolist():
        there = images.now[other]
        if there is None or len(index) == 0:
            continue
        lens = cameras.lenses[other]
        nowhere = np.full((len(index), 2), -100.0)
        expected = guess(
            cameras, table, index, np.full(len(index), other), T_map_base, T_camera_base, nowhere
        )
        inside = lens.inside(expected, BORDER)
        place, good = features.there_and_back(
            here, there, pixel[inside], expected[inside], TOLERANCE
        )
        good &= lens.inside(place, BORDER)
        parts.append(Seen(other, index[inside][good], lens.rays(place[good])))
    return parts


def observations(
    cameras: Cameras, table: Landmarks, parts: list[Seen], noise: float
) -> Observations:
    """The landmarks of a table as they were seen, part by part."""
    index = np.concatenate([np.zeros(0, np.int64), *(part.index for part in parts)])
    camera = np.repeat(
        np.array([part.camera for part in parts], np.int64), [len(part.index) for part in parts]
    )
    ray = np.concatenate([np.zeros((0, 2)), *(part.rays for part in parts)])
    sigma = (noise / np.array([lens.focal for lens in cameras.lenses]))[camera]
    return Observations(
        table.origin[index],
        table.bearing[index],
        table.rho[index],
        table.variance[index],
        camera,
        ray,
        sigma,
        index,
    )


def narrow(table: Landmarks, o: Observations, T_map_base: Array, T_camera_base: Array) -> None:
    """The inverse depths of a table, in place, by what was seen of them from a pose."""
    linear = pnp.linearise(T_map_base[None], pnp.View.of(T_camera_base, o))
    features.refine(
        table,
        o.landmark,
        linear.residual[0] * linear.ahead,
        linear.along[0] * linear.ahead,
        o.sigma,
        DEPTH_FLOOR,
    )
