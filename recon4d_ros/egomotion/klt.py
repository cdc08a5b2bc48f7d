"""Points followed from image to image by pyramidal Lucas-Kanade, looked for in the cameras that
look the same way, and found anew where an image has room for them.

Forwards and back, or, where no second camera looks the same way, roughly forwards only, to come to
rest on their patches (see patch_alignment.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.cameras.lens import Lens
from recon4d_ros.egomotion import ground_scale, landmarks, patch_alignment, pnp
from recon4d_ros.egomotion.camera_rig import Cameras, Grey, Images
from recon4d_ros.egomotion.landmarks import Landmarks
from recon4d_ros.egomotion.lean import Lean
from recon4d_ros.egomotion.pnp import Observations
from recon4d_ros.parallel import each
from recon4d_ros.types import Geometry, PoseEstimate

Array = NDArray[np.float64]

LEVELS = 3  # of the pyramid above the image


WINDOW, BACK = (
    15,
    11,
)  # pixels, to follow and to come back: larger ones follow no better and cost more


CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 0.02)


ROUGH_WINDOW, ROUGH_CRITERIA = (
    11,
    (CRITERIA[0], 8, 0.05),
)  # for points that then come to rest on their patch (see patches.py)


def _points(pixels: NDArray) -> NDArray[np.float32]:
    """A fresh [M, 1, 2]: OpenCV 5 refuses the odd strides that NumPy leaves on an axis of length
    one."""
    return np.array(pixels, np.float32, order="C", copy=True).reshape(-1).reshape(-1, 1, 2)


def there(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    pixels: NDArray[np.float32],
    guess: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where `pixels` [M, 2] of one image roughly are in another, from a guess, and which were found
    at all."""
    return _followed(before, after, _points(pixels), guess, ROUGH_WINDOW, LEVELS, ROUGH_CRITERIA)


def there_and_back(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    pixels: NDArray[np.float32],
    guess: NDArray[np.float32],
    tolerance: float,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where `pixels` [M, 2] of one image are in another, from a guess, and which were found there
    and back within `tolerance` pixels."""
    place, found = _followed(before, after, _points(pixels), guess, WINDOW, LEVELS, CRITERIA)
    # Back from an offset start, so that a point that does not move at all cannot agree with itself
    # by default.
    back, returned = _followed(
        after, before, _points(place), pixels + np.float32(0.5), BACK, 1, CRITERIA
    )
    return place, found & returned & (np.abs(back - pixels).max(-1) < tolerance)


def _followed(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    points: NDArray[np.float32],
    guess: NDArray[np.float32],
    window: int,
    levels: int,
    criteria: tuple[int, int, float],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    if len(points) == 0:  # OpenCV takes none for an error
        return points[:, 0], np.zeros(0, np.bool_)
    size, flags, texture = (window, window), cv2.OPTFLOW_USE_INITIAL_FLOW, 1e-4
    place, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, points, _points(guess), None, None, size, levels, criteria, flags, texture
    )
    return np.asarray(place[:, 0], np.float32), found[:, 0] > 0


def detect(
    image: NDArray[np.uint8],
    taken: NDArray[np.float32],
    count: int,
    distance: float,
    ego_vehicle: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Up to `count` new corners [K, 2] of an image, `distance` pixels from the `taken` [M, 2] and
    each other, strongest first.

    ego_vehicle: [H, W] where not to look.

    They are looked for at half size: a corner's exact place does not matter to a tracker, its
    texture does.
    """
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    free = np.full(half.shape, 255, np.uint8)
    if ego_vehicle is not None:
        free[
            cv2.resize(
                ego_vehicle.view(np.uint8), half.shape[::-1], interpolation=cv2.INTER_NEAREST
            )
            > 0
        ] = 0
    border = WINDOW // 4 + 1
    free[:border], free[-border:], free[:, :border], free[:, -border:] = 0, 0, 0, 0
    for u, v in np.rint(taken / 2).astype(int).tolist():
        cv2.circle(free, (u, v), int(distance / 2), 0, -1)
    corners = cv2.goodFeaturesToTrack(half, count, 0.003, distance / 2, mask=free, blockSize=5)
    if corners is None:
        return np.zeros((0, 2), np.float32)
    return np.asarray(corners[:, 0] * 2 + 0.5, np.float32)


def spacing(lens: Lens, count: int) -> float:
    """Distance between `count` corners spread over the image, with room to choose."""
    return max(6.0, 0.55 * float(np.sqrt(lens.size[0] * lens.size[1] / max(count, 1))))


BLIND_SHARE, BLIND_COUNT = (
    0.2,
    10,
)  # a camera that finds a smaller share of so many points shows something else
BORDER = 3.0  # pixels
TOLERANCE = 1.0  # pixels between a point and where the way there and back ends


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
    """Landmarks index [M] of a table, seen by one camera along rays [M, 2], late [M] seconds after
    its stamp."""

    camera: int
    index: NDArray[np.int64]
    rays: Array
    late: Array


def sight(
    cameras: Cameras,
    images: Images,
    table: Landmarks,
    T_map_base: Array,
    T_camera_base: Array,
    twist: Array,
    noise: float,
) -> Sightings:
    """Follows every camera's points into its new image, and into the images of cameras that look
    the same way.

    T_map_base [4, 4], T_camera_base [N, 4, 4]: where the rig is expected, and twist [6]: how it
    moves there. noise: standard deviation of a sighting in input pixels.
    """
    pixel, found = table.pixel.copy(), np.zeros(len(table), np.bool_)
    blind = np.zeros(len(cameras), np.bool_)
    every = np.arange(len(table))
    expected = guess(
        cameras, table, every, table.camera, T_map_base, T_camera_base, twist, table.pixel
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
            pixel[mine], found[mine] = there(before, after, table.pixel[mine], expected[mine])
        else:
            pixel[mine], found[mine] = there_and_back(
                before, after, table.pixel[mine], expected[mine], TOLERANCE
            )

    def beside(camera: int, image: Grey, rows: NDArray, at: NDArray) -> list[Seen]:
        """What the cameras beside one see of its landmarks `rows`, at pixels `at` of its image."""
        return across(
            cameras, images, camera, image, table, rows, at, T_map_base, T_camera_base, twist
        )

    def tell(camera: int) -> list[Seen]:
        """What of one camera's landmarks is seen, by itself and by those beside it."""
        before, after, lens = images.before[camera], images.now[camera], cameras.lenses[camera]
        mine = np.flatnonzero(table.camera == camera)
        assert before is not None
        if after is None:  # absent: the cameras beside it look for its points
            return beside(camera, before, mine, table.pixel[mine])
        found[mine] &= lens.inside(pixel[mine], BORDER)
        if len(mine) >= BLIND_COUNT and found[mine].mean() < BLIND_SHARE:
            blind[camera], found[mine] = True, False
            return beside(camera, before, mine, table.pixel[mine])
        seen = mine[found[mine]]
        own = Seen(camera, seen, lens.rays(pixel[seen]), lens.late(pixel[seen]))
        return [
            own,
            *beside(camera, after, seen, pixel[seen]),
        ]

    each(follow, asked)
    patch_alignment.settle(
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
    doubtful = replace(doubtful, variance=np.full(len(doubtful), landmarks.UNKNOWN_VARIANCE))
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
    twist: Array,
    otherwise: NDArray,
) -> NDArray[np.float32]:
    """Pixels [M, 2] where landmarks should be in cameras [M]; `otherwise` [M, 2] where that is not
    in the image. twist [6]: of the car while rows are read out."""
    T_camera_map = T_camera_base @ geometry.inverse(T_map_base)
    place = T_camera_map[camera]
    pixels = _shown(cameras, table, index, camera, place, otherwise)
    if not cameras.read_out:
        return pixels
    late = cameras.late(camera, pixels)
    assert late is not None
    row = geometry.along(twist, -late) @ geometry.inverse(T_map_base)
    return _shown(cameras, table, index, camera, T_camera_base[camera] @ row, otherwise)


def _shown(
    cameras: Cameras,
    table: Landmarks,
    index: NDArray,
    camera: NDArray[np.int64],
    place: Array,
    otherwise: NDArray,
) -> NDArray[np.float32]:
    """As `guess`, with map to camera [M, 4, 4] for each."""
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
    twist: Array,
) -> float:
    """Pixels, in the median, between where the points were looked for and where they would be by
    another pose and twist [6]."""
    other = guess(
        cameras,
        table,
        np.arange(len(table)),
        table.camera,
        T_map_base,
        T_camera_base,
        twist,
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
    twist: Array,
) -> list[Seen]:
    """This instant's sightings in the cameras that look the same way, of points at `pixel` in
    `here`, an image of `camera`. twist [6]: of the car while rows are read out."""
    parts = []
    for other in cameras.beside[camera].tolist():
        there = images.now[other]
        if there is None or len(index) == 0:
            continue
        lens = cameras.lenses[other]
        nowhere = np.full((len(index), 2), -100.0)
        to = np.full(len(index), other)
        expected = guess(cameras, table, index, to, T_map_base, T_camera_base, twist, nowhere)
        inside = lens.inside(expected, BORDER)
        place, good = there_and_back(here, there, pixel[inside], expected[inside], TOLERANCE)
        good &= lens.inside(place, BORDER)
        at = place[good]
        parts.append(Seen(other, index[inside][good], lens.rays(at), lens.late(at)))
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
    late = np.concatenate([np.zeros(0), *(part.late for part in parts)])
    return Observations(
        table.origin[index],
        table.bearing[index],
        table.rho[index],
        table.variance[index],
        camera,
        ray,
        sigma,
        index,
        late if cameras.read_out else None,
    )


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
        image, room = images.now[camera], spacing(cameras.lenses[camera], cameras.quota)
        assert image is not None
        taken = table.pixel[table.camera == camera]
        return detect(image, taken, int(wanted[camera]), room, cameras.ego_vehicle[camera])

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
    road: Lean | None,
) -> Landmarks:
    """Landmarks at pixels [M, 2] of cameras [M], but for those on movers (mask [N, h, w]) and those
    that the camera beside contradicts.

    first: their identities count from here. noise: standard deviation of a sighting in input
    pixels. road: how it lies; None where it may not give depth.
    """
    rays = cameras.rays(camera, pixel)
    working = landmarks.rays_to_pixels(rays, cameras.k[camera])
    still = ~landmarks.sample(mask, camera, working).astype(bool)
    camera, pixel, rays, working = camera[still], pixel[still], rays[still], working[still]
    rho, variance = landmarks.inverse_depth(engine, camera, working)
    assumed = np.zeros(len(rho), np.bool_)
    if road is not None:
        rho, variance, assumed = _with_road(cameras, camera, rays, rho, variance, road)
    count = len(pixel)
    moved = landmarks.carried(pose.T_map_base, pose.velocity, cameras.late(camera, pixel))
    origin, bearing = landmarks.hung(camera, rays, pose.T_map_camera, moved)
    new = Landmarks(
        camera,
        pixel,
        origin,
        bearing,
        np.where(np.isfinite(rho), rho, landmarks.UNKNOWN_RHO),
        np.where(np.isfinite(rho), variance, landmarks.UNKNOWN_VARIANCE),
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
        place = pose.T_map_base, T_camera_base, pose.velocity
        seen += across(cameras, images, one, image, new, at, pixel[at], *place)
    if not seen:
        return new
    o = observations(cameras, new, seen, noise).moving(pose.velocity)
    distance = pnp.evaluate(pose.T_map_base[None], T_camera_base, o)[0]
    landmarks.narrow(new, o.take(distance < pnp.GATE), pose.T_map_base, T_camera_base)
    wrong = np.zeros(count, np.bool_)
    wrong[o.landmark[distance >= pnp.GATE]] = True
    return new.keep(~wrong)


def _with_road(
    cameras: Cameras,
    camera: NDArray[np.int64],
    rays: Array,
    rho: Array,
    variance: Array,
    lean: Lean,
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Depths with the road's beside them, of cameras that have no second one to measure with; and
    which are the road's alone."""
    road, doubt = np.full(len(rho), np.nan), np.full(len(rho), np.nan)
    for one in np.unique(camera).tolist():
        if cameras.alone(one):
            road[camera == one], doubt[camera == one] = ground_scale.inverse_depth(
                rays[camera == one], cameras.T_base_camera[one], lean
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
