"""A followed point brought to rest: its patch, seen as it must look from the new place, aligned
with the new image.

A tracker that moves a window as it is finds a point of the road to a pixel or two only: between two
frames the road below a car grows by half and shears. Where the point is known to be, and the
surface around it is taken to lie as the road or to face the camera, the change is known beforehand
(a plane's homography, to first order), and what is left is a shift. Alignment is
inverse-compositional (Baker and Matthews, IJCV 2004, section 3.2), on patches normalised for gain
and offset, all points of a camera at once.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion.camera_rig import LOWEST, Cameras, Images
from recon4d_ros.egomotion.landmarks import Landmarks

Array = NDArray[np.float64]

SIDE, STEP = 8, 1.5  # samples along a patch's side, pixels between them
SAMPLES = SIDE * SIDE
ROUNDS = 4
REACH = 4.0  # samples that a point may be off
ALIKE, CHANCE = (
    0.8,
    0.5,
    # normalised correlation of a match, as a share of what noise leaves of it; what no match is
    # below
)
# pixels, one standard deviation, to which noise leaves a patch's place along the way it may move:
# the energy of its slopes is then three times what their noise varies by
ALONG = 0.35
# noise's share of the squared slopes of a patch [SAMPLES], as a multiple of its variance, and what
# sampling between pixels leaves of that variance: central differences (one-sided at the edges) of
# values that are bilinear means of four pixels, a quarter of one off
SAMPLED = 0.4
SLOPED = SAMPLES * SAMPLED * (0.75 * 0.5 + 0.25 * 2.0)
TEXTURE, QUIET = 2.0, 1.0  # deviation of a patch over the noise's, grey levels of noise at least
UNSEEN = 100.0  # pixels: deviation of a place along a direction that a patch does not show
ROWS = 16  # one row in so many tells an image's noise
# grey levels between which a sensor has noise: not beside a fisheye's circle, nor in a lamp
BLACK, WHITE = 4, 250
SHOWN = 0.8  # share of a patch that lies between them
U, V = (
    ((axis.reshape(-1) - (SIDE - 1) / 2) * STEP).astype(np.float32)
    for axis in np.indices((SIDE, SIDE))[::-1]
)  # pixels, [SAMPLES]
WIDE_U, WIDE_V = (
    ((axis.reshape(-1) - (SIDE + 1) / 2) * STEP).astype(np.float32)
    for axis in np.indices((SIDE + 2, SIDE + 2))[::-1]
)


@dataclass(frozen=True)
class Pair:
    """Two images of one camera, and which of the points, from `first` to before `last`, are to be
    found in the second."""

    here: NDArray[np.uint8]
    there: NDArray[np.uint8]
    first: int
    last: int


def warps(at: Array, normal: Array, T_there_here: Array) -> tuple[Array, Array]:
    """How a step in one view becomes one in another, both in normalised coordinates (not pixels):
    matrix W [M, 2, 2] and bend g [M, 2]: a step u becomes W u / (1 + g u), exactly.

    at [M, 3]: points in the first camera; normal [M, 3]: of the surfaces that they lie on, there.
    T_there_here [M, 4, 4].
    """
    plane = normal / (normal * at).sum(-1, keepdims=True)
    homography = T_there_here[:, :3, :3] + T_there_here[:, :3, 3:] * plane[:, None]
    q = (homography @ (at / at[:, 2:])[..., None])[..., 0]
    xy = q[:, :2] / q[:, 2:]
    warp = (homography[:, :2, :2] - xy[..., None] * homography[:, 2:, :2]) / q[:, 2:, None]
    return warp, homography[:, 2, :2] / q[:, 2:]


def _steps(
    warp: NDArray[np.float32], bend: Array | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where a patch's samples lie in the other image, from its middle: u, v [M, SAMPLES]."""
    u, v = (warp[:, axis, :1] * U + warp[:, axis, 1:] * V for axis in (0, 1))
    if bend is None:
        return u, v
    g = bend.astype(np.float32)
    over = 1.0 / np.clip(1.0 + g[:, :1] * U + g[:, 1:] * V, 0.5, 2.0)
    return u * over, v * over


def align(
    pairs: list[Pair], pixel: NDArray, near: NDArray, warp: Array, bend: Array | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Pixels [M, 2] of the second images of what is at `pixel` [M, 2] of the first, from `near` [M,
    2], how alike it is there [M], and the covariance [M, 2, 2] of the place by both images' noise,
    squared pixels.

    Alike is the normalised correlation (before the last step) as a share of what the second image's
    noise leaves of it: to be held against ALIKE. warp [M, 2, 2]: how a step in pixels of the first
    image becomes one in pixels of the second, bend [M, 2] as in `warps`, per pixel.
    """
    at = pixel.astype(np.float32)
    wide = _sampled(
        [(pair.here, pair) for pair in pairs], at[:, :1] + WIDE_U, at[:, 1:] + WIDE_V
    ).reshape(-1, SIDE + 2, SIDE + 2)
    patch = wide[:, 1:-1, 1:-1].reshape(-1, SAMPLES)
    patch = patch - _mean(patch)
    slope = np.stack(np.gradient(patch.reshape(-1, SIDE, SIDE), axis=(2, 1)), axis=1).reshape(
        len(patch), 2, SAMPLES
    )
    # Neither light nor contrast is a shift: what of the slopes looks like one of these is taken out
    # of them.
    energy = np.maximum(np.square(patch).sum(1), 1.0)
    slope -= slope.mean(axis=2, keepdims=True)
    slope -= ((slope @ patch[..., None]) / energy[:, None, None]) * patch[:, None]
    hessian = slope @ np.swapaxes(slope, 1, 2)
    gain = _pseudo_inverse(hessian) @ slope
    w = warp.astype(np.float32)
    u, v = _steps(w, bend)
    shift, place = np.zeros((len(patch), 2), np.float32), near.astype(np.float32)
    second = [(pair.there, pair) for pair in pairs]
    for _ in range(ROUNDS):
        now = _sampled(second, place[:, :1] + u, place[:, 1:] + v)
        move = -np.minimum(np.maximum(gain @ now[..., None], -1.0), 1.0)
        shift += move[..., 0]
        place += (w @ move)[..., 0] * np.float32(STEP)
    now -= _mean(now)
    energy_now = np.maximum(np.square(now).sum(1), 1.0)
    alike = (now * patch).sum(1) / np.sqrt(energy_now * energy)
    # Patches of deviation s under noise of deviation n are no more alike than s^2 / (s^2 + n^2).
    counts = [pair.last - pair.first for pair in pairs]
    here, variance = (
        np.repeat(np.array([noise(image) ** 2 for image in images], np.float32), counts)
        for images in ([pair.here for pair in pairs], [pair.there for pair in pairs])
    )
    noisy = SAMPLES * variance
    left = np.sqrt(
        np.maximum(1.0 - noisy / energy, 0.0) * np.maximum(1.0 - noisy / energy_now, 0.0)
    )
    alike /= np.maximum(left, CHANCE / ALIKE)
    spread = w @ _covariance(hessian, here, variance) @ np.swapaxes(w, 1, 2)
    inside = np.abs(shift).max(-1) < REACH
    return place, np.where(inside, alike, -1.0).astype(np.float32), spread.astype(np.float32)


class Reference:
    """Patches of one image, to be compared with others at many places: pixel [M, 2] of it.

    textured [M]: which have more in them than noise, along the ways [M, 2] (unit vectors) that they
    may move: what looks the same all along its way, as a lane marking does, tells nothing of it.
    """

    def __init__(self, image: NDArray[np.uint8], pixel: NDArray, way: Array) -> None:
        at = pixel.astype(np.float32)
        pair = Pair(image, image, 0, len(at))
        patch = _sampled([(image, pair)], at[:, :1] + U, at[:, 1:] + V)
        self.patch = patch - _mean(patch)
        self.energy = np.square(self.patch).sum(1)
        self.noise = noise(image)
        self.textured = self.energy > SAMPLES * np.float32(TEXTURE**2 * max(self.noise, QUIET) ** 2)
        self.textured &= ((patch > BLACK) & (patch < WHITE)).mean(1) > SHOWN
        least = np.maximum(self.energy, 1.0)
        square = self.patch.reshape(-1, SIDE, SIDE)
        down, across = np.gradient(square, axis=(1, 2))
        toward = way.astype(np.float32)[:, :, None, None]
        slope = (across * toward[:, 0] + down * toward[:, 1]).reshape(-1, SAMPLES)
        slope -= (slope * self.patch).sum(1, keepdims=True) / least[:, None] * self.patch
        energy = np.square(slope).sum(1) - SLOPED * np.float32(max(self.noise, QUIET) ** 2)
        both = 2.0 * SAMPLED * np.float32(max(self.noise, QUIET) ** 2)
        self.textured &= energy * np.float32(ALONG**2) > STEP**2 * both

    def alike(
        self,
        image: NDArray[np.uint8],
        which: NDArray,
        place: NDArray,
        warp: Array,
        bend: Array | None = None,
    ) -> NDArray[np.float32]:
        """Normalised correlation of patches which [K] with another image at place [K, 2], seen by
        warp [K, 2, 2] and bend [K, 2], as a share of what noise leaves of it."""
        w, at = warp.astype(np.float32), place.astype(np.float32)
        u, v = _steps(w, bend)
        pair = Pair(image, image, 0, len(at))
        now = _sampled([(image, pair)], at[:, :1] + u, at[:, 1:] + v)
        now -= _mean(now)
        energy, here = np.maximum(np.square(now).sum(1), 1.0), np.maximum(self.energy[which], 1.0)
        left = 1.0 - SAMPLES * np.float32(self.noise**2) / here
        same = (now * self.patch[which]).sum(1) / np.sqrt(energy * here)
        return np.asarray(same / np.maximum(left, CHANCE), np.float32)


def _sampled(
    images: list[tuple[NDArray[np.uint8], Pair]], u: NDArray[np.float32], v: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values [M, S] at pixels u, v [M, S], each pair's points in its image."""
    out = np.empty(u.shape, np.uint8)
    for image, pair in images:
        mine = slice(pair.first, pair.last)
        if not u[mine].size:  # OpenCV takes none for an error
            continue
        out[mine] = cv2.remap(
            image, u[mine], v[mine], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return out.astype(np.float32)


_NOISES: deque[tuple[weakref.ref[NDArray[np.uint8]], float]] = deque(maxlen=32)


def noise(image: NDArray[np.uint8]) -> float:
    """Standard deviation of an image's noise in grey levels, from the median of what no slope
    explains (Immerkaer, CVIU 1996). Each image is asked for its own several times in a frame: the
    newest ones' are kept."""
    for known, value in tuple(_NOISES):
        if known() is image:
            return value
    value = _noise(image)
    _NOISES.append((weakref.ref(image), value))
    return value


def _noise(image: NDArray[np.uint8]) -> float:
    rows = [image[start : len(image) - 2 + start : ROWS].astype(np.int16) for start in range(3)]
    across = rows[0] - 2 * rows[1] + rows[2]
    rest = across[:, :-2] - 2 * across[:, 1:-1] + across[:, 2:]
    level = rows[1][:, 1:-1]
    shown = np.abs(rest[(level > BLACK) & (level < WHITE)])
    if not len(shown):
        return 0.0
    # the median by counting: values are small whole numbers, and sorting them costs ten times more
    below = np.cumsum(np.bincount(shown))
    middle = np.searchsorted(below, [(len(shown) - 1) // 2, len(shown) // 2], side="right")
    return float(middle.mean()) / (6.0 * 0.6745)


def _mean(patch: NDArray[np.float32]) -> NDArray[np.float32]:
    return (patch @ np.full(SAMPLES, 1.0 / SAMPLES, np.float32))[:, None]


def _pseudo_inverse(hessian: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of symmetric [M, 2, 2]; what is flat is left nearly where it is."""
    a, b, c = hessian[:, 0, 0] + 1.0, hessian[:, 0, 1], hessian[:, 1, 1] + 1.0
    return np.stack([c, -b, -b, a], axis=-1).reshape(-1, 2, 2) / (a * c - b * b)[:, None, None]


def _covariance(
    hessian: NDArray[np.float32], here: NDArray[np.float32], there: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of shifts [M, 2, 2] by the images' noise, squared pixels of the first one, for squared slopes
    `hessian` [M, 2, 2] and the noise's variances [M].

    Noise has slopes too: without them taken off, a patch that is flat along one direction (the
    edge of a lane marking) would seem to be found along it, wherever it was looked for.
    """
    quiet = np.float32(QUIET**2)
    here, there = np.maximum(here, quiet), np.maximum(there, quiet)
    size, axes = np.linalg.eigh(hessian)
    size = np.maximum(size - (SLOPED * here)[:, None], 0.0) / (SAMPLED * (here + there))[:, None]
    variance = STEP**2 / np.maximum(size, STEP**2 / UNSEEN**2)
    return np.asarray((axes * variance[:, None]) @ np.swapaxes(axes, 1, 2), np.float32)


KNOWN, LOW = (
    0.2,
    0.2,
    # relative deviation of an inverse depth and metres from the ground: a patch that is taken to
    # lie on it
)
WILD = 1.5  # change of a patch that is not to be believed


def settle(
    cameras: Cameras,
    images: Images,
    table: Landmarks,
    pixel: NDArray,
    found: NDArray[np.bool_],
    T_map_camera: Array,
    T_map_base: Array,
) -> None:
    """Pixels [L, 2] of what cameras that look alone have found [L] come to rest, in place; what
    does not look as it should is not found.

    T_map_camera [N, 4, 4], T_map_base [4, 4]: where the rig is expected.
    """
    index, pairs, last = [], [], 0
    for camera, (before, after) in enumerate(zip(images.before, images.now, strict=True)):
        mine = np.flatnonzero((table.camera == camera) & found)
        if before is not None and after is not None and len(mine) and cameras.alone(camera):
            index.append(mine)
            pairs.append(Pair(before, after, last, last := last + len(mine)))
    if not pairs:
        return
    which = np.concatenate(index)
    warp = _looks(cameras, table, which, images.T_map_camera, T_map_camera, T_map_base)
    pixel[which], alike, _ = align(pairs, table.pixel[which], pixel[which], warp)
    found[which] = alike > ALIKE


def _looks(
    cameras: Cameras,
    table: Landmarks,
    index: NDArray,
    T_map_before: Array,
    T_map_now: Array,
    T_map_base: Array,
) -> Array:
    """How patches of landmarks change, pixels to pixels, from their cameras' places [N, 4, 4]
    before to those now [M, 2, 2]: what lies on the ground as the ground does, all else as if it
    faced its camera."""
    camera, up = table.camera[index], T_map_base[:3, 2]
    position = table.origin[index] + table.bearing[index] / table.rho[index, None]
    T_before_map = geometry.inverse(T_map_before)
    at = (
        np.einsum("mij,mj->mi", T_before_map[camera, :3, :3], position)
        + T_before_map[camera, :3, 3]
    )
    at[:, 2] = np.maximum(at[:, 2], 0.1)
    high = (T_map_before[:, :3, 3] - T_map_base[:3, 3]) @ up > LOWEST
    flat = (np.abs((position - T_map_base[:3, 3]) @ up) < LOW) & high[camera]
    flat &= table.variance[index] < (KNOWN * table.rho[index]) ** 2
    normal = np.where(
        flat[:, None], (T_before_map[:, :3, :3] @ up)[camera], np.array([0.0, 0.0, 1.0])
    )
    T_now_before = (geometry.inverse(T_map_now) @ T_map_before)[camera]
    there = np.einsum("mij,mj->mi", T_now_before[:, :3, :3], at) + T_now_before[:, :3, 3]
    there[:, 2] = np.where(there[:, 2] > 0.0, there[:, 2], np.nan)
    before, now = (cameras.derivatives(camera, q[:, :2] / q[:, 2:]) for q in (at, there))
    warp = now @ warps(at, normal, T_now_before)[0] @ inverted(before)
    sane = np.abs(warp - np.eye(2)).max((1, 2)) < WILD  # NaN is not
    return np.where(sane[:, None, None], warp, np.eye(2))


def inverted(matrix: Array) -> Array:
    """Of [M, 2, 2]; infinite or NaN where there is none."""
    (a, b), (c, d) = np.moveaxis(matrix, 0, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            np.stack([d, -b, -c, a], axis=-1).reshape(-1, 2, 2) / (a * d - b * c)[:, None, None],
            np.float64,
        )
