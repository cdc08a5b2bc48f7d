"""New landmarks where an image has room for them: corners, and the first that is known of their
depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import features, ground, learning, pnp, sightings
from recon4d_ros.egomotion.cameras import Cameras
from recon4d_ros.egomotion.features import Landmarks
from recon4d_ros.egomotion.images import Images
from recon4d_ros.parallel import each
from recon4d_ros.types import Geometry, PoseEstimate

Array = NDArray[np.float64]

ROOM = 0.2  # share of its points that a camera may lack before new ones are looked for
# share of the road's inverse depth by which the engine's may differ from it where both speak of the
# same
ON_ROAD = 0.2


def corners(
    cameras: Cameras, images: Images, looking: NDArray[np.bool_], table: Landmarks
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Cameras [K] and pixels [K, 2] of new points, away from those of the table. looking [N]:
    cameras with an image to find them in."""
    wanted = cameras.quota - np.bincount(table.camera, minlength=len(looking))
    led = np.array(
        [looking[beside[beside < camera]].any() for camera, beside in enumerate(cameras.beside)]
    )
    finders = np.flatnonzero(
        looking & ~led & (wanted > ROOM * cameras.quota)
    )  # of cameras side by side the first one that sees leads

    def find(camera: int) -> NDArray[np.float32]:
        image, room = images.now[camera], features.spacing(cameras.lenses[camera], cameras.quota)
        assert image is not None
        taken = table.pixel[table.camera == camera]
        return features.detect(image, taken, int(wanted[camera]), room, cameras.own_car[camera])

    found = each(find, finders.tolist())
    if not found:
        return np.zeros(0, np.int64), np.zeros((0, 2), np.float32)
    return np.repeat(finders, [len(pixel) for pixel in found]), np.concatenate(found)


def planted(
    cameras: Cameras,
    images: Images,
    camera: NDArray[np.int64],
    pixel: NDArray[np.float32],
    engine: Geometry,
    pose: PoseEstimate,
    mask: NDArray[np.bool_],
    first: int,
    noise: float,
    road: bool,
) -> Landmarks:
    """Landmarks at pixels [M, 2] of cameras [M], but for those on movers (mask [N, h, w]) and those
    that the camera beside contradicts.

    first: their identities count from here. noise: standard deviation of a sighting in input
    pixels. road: whether it may give depth.
    """
    rays = cameras.rays(camera, pixel)
    working = features.rays_to_pixels(rays, cameras.k[camera])
    still = ~features.sample(mask, camera, working).astype(bool)
    camera, pixel, rays, working = camera[still], pixel[still], rays[still], working[still]
    rho, variance = learning.inverse_depth(engine, camera, working)
    assumed = np.zeros(len(rho), np.bool_)
    if road:
        rho, variance, assumed = _with_road(cameras, camera, rays, rho, variance)
    count = len(pixel)
    origin, bearing = learning.hung(camera, rays, pose.T_map_camera)
    new = Landmarks(
        camera,
        pixel,
        origin,
        bearing,
        np.where(np.isfinite(rho), rho, features.UNKNOWN_RHO),
        np.where(np.isfinite(rho), variance, features.UNKNOWN_VARIANCE),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        first + np.arange(count),
        assumed,
    )
    T_camera_base = geometry.inverse(pose.T_map_camera) @ pose.T_map_base
    seen = []
    for one in np.unique(camera).tolist():
        image, at = images.now[one], np.flatnonzero(camera == one)
        assert image is not None
        seen += sightings.across(
            cameras, images, one, image, new, at, pixel[at], pose.T_map_base, T_camera_base
        )
    if not seen:
        return new
    o = sightings.observations(cameras, new, seen, noise)
    distance = pnp.evaluate(pose.T_map_base[None], T_camera_base, o)[0]
    sightings.narrow(new, o.take(distance < pnp.GATE), pose.T_map_base, T_camera_base)
    wrong = np.zeros(count, np.bool_)
    wrong[o.landmark[distance >= pnp.GATE]] = True
    return new.keep(~wrong)


def _with_road(
    cameras: Cameras, camera: NDArray[np.int64], rays: Array, rho: Array, variance: Array
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Depths with the road's beside them, of cameras that have no second one to measure with; and
    which are the road's alone."""
    road, doubt = np.full(len(rho), np.nan), np.full(len(rho), np.nan)
    for one in np.unique(camera).tolist():
        if cameras.alone(one):
            road[camera == one], doubt[camera == one] = ground.inverse_depth(
                rays[camera == one], cameras.T_base_camera[one]
            )
    with np.errstate(invalid="ignore"):
        assumed = np.isnan(rho) & np.isfinite(road)
        both = np.abs(rho - road) < ON_ROAD * road
    weight = np.where(both, variance / (variance + doubt), 0.0)
    rho, variance = (
        np.where(both, rho + weight * (road - rho), rho),
        np.where(both, (1.0 - weight) * variance, variance),
    )
    return np.where(assumed, road, rho), np.where(assumed, doubt, variance), assumed
