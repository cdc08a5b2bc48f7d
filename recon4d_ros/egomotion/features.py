"""Points followed from image to image, and where they are in the map.

Each camera follows its own points by pyramidal Lucas-Kanade: forwards and back, or, where no second
camera looks the same way, roughly forwards only, to come to rest on their patches (see patches.py).
A point's place is an inverse depth along the ray of its first sighting; it begins with the engine's
depth, or unknown, and every later sighting narrows it (scalar Kalman update: Civera, Davison and
Montiel, T-RO 2008, with the ray held fixed).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.lens import Lens

Array = NDArray[np.float64]

LEVELS = 3  # of the pyramid above the image
WINDOW, BACK = (
    15,
    11,
)  # pixels, to follow and to come back: larger ones follow no better and cost more
UNKNOWN_RHO, UNKNOWN_VARIANCE = (
    0.05,
    0.3**2,
)  # a point of unknown depth: 20 m, anything from 2 m to infinity
CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 0.02)
ROUGH_WINDOW, ROUGH_CRITERIA = (
    11,
    (CRITERIA[0], 8, 0.05),
)  # for points that then come to rest on their patch (see patches.py)


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

    def extend(self, other: Landmarks) -> Landmarks:
        return Landmarks(
            *(
                np.concatenate([getattr(self, field.name), getattr(other, field.name)])
                for field in fields(self)
            )
        )


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W] of [H, W, C], grey or RGB."""
    if image.shape[-1] == 1:
        return np.ascontiguousarray(image[..., 0])
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


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
    own_car: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Up to `count` new corners [K, 2] of an image, `distance` pixels from the `taken` [M, 2] and
    each other, strongest first.

    own_car: [H, W] where not to look.

    They are looked for at half size: a corner's exact place does not matter to a tracker, its
    texture does.
    """
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    free = np.full(half.shape, 255, np.uint8)
    if own_car is not None:
        free[
            cv2.resize(own_car.view(np.uint8), half.shape[::-1], interpolation=cv2.INTER_NEAREST)
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


def spacing(lens: Lens, count: int) -> float:
    """Distance between `count` corners spread over the image, with room to choose."""
    return max(6.0, 0.55 * float(np.sqrt(lens.size[0] * lens.size[1] / max(count, 1))))
