"""What is wrong with a camera's images, whatever they show: too dark, glaring, frozen, blocked,
blurred, torn.

A small copy of each image is enough: what a lens has on it, or a sensor does, is wide. Drops and
dirt stand still in the image while the scene goes by: where the mean of many high-passed images is
nearly as strong as the images themselves, nothing of the scene is seen. Blur and tears are told
from rows and columns at full size: how wide edges are, and a row where the image breaks off.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class HealthThresholds:
    """In grey levels of 255 and shares of the image."""

    small: int = 96  # pixels across the copy: a drop of a fiftieth of the image is two of them
    dark: int = 28  # 99 % of a dark image are below: a street at night has lamps above
    glare: int = 250  # saturated
    glare_share: float = 0.35  # a bright sky is less, beside a road
    pattern: float = 2.5  # deviation of a high-passed copy that is more than noise
    keep: float = 0.96  # of the means from image to image: 25 of them
    moved: float = 1.5  # m between the images that go into the means: nearer ones look alike
    enough: int = 25  # images before anything is said: 37 m
    fixed: float = 0.75  # mean over deviation of what stands still
    # share of the image that has texture and stands still: the car ahead, or the lines of a
    # motorway, are less
    covered: float = 0.35
    frozen: int = 3  # images in a row that are the same to the last bit
    blurred: float = 7.0  # pixels of the width of edges, of both directions
    slope: float = 1.5  # deviation of slopes, noise taken out, below which no edge is seen
    blurred_every: int = 4  # images between two looks at it
    blurred_for: int = 3  # looks in a row: a moment's motion blur is no trouble
    lines: int = 16  # one row and column in so many is looked at
    break_over: float = 3.5  # how much more a torn row differs from the next than rows around do
    break_least: float = 9.0  # in grey levels
    break_wide: float = 0.5  # share of the columns that break off there
    break_near: int = 12  # rows to each side that it is held against
    parts: int = 4  # of a row, half of which have to be found beside their place
    shift: int = 60  # pixels
    same: float = 0.85  # correlation where they are found
    other: float = 0.6  # and at their place
    empty: float = 0.7  # deviation of rows that never came
    break_memory: int = 20  # images in which at least two broke off
    break_moves: int = 2  # rows between these breaks


THRESHOLDS = HealthThresholds()


@dataclass
class _Camera:
    last: Grey | None = None
    same: int = 0
    mean: NDArray[np.float32] | None = None
    strength: NDArray[np.float32] | None = None
    count: int = 0
    looked: int = 0
    blurred: int = 0  # looks in a row
    # rows where the last images broke off, -1 where they did not
    breaks: deque[int] = field(default_factory=lambda: deque(maxlen=THRESHOLDS.break_memory))
    troubles: tuple[str, ...] = ()


class CameraHealth:
    """Troubles of N cameras, image by image: `too dark`, `glare`, `frozen`, `lens blocked`,
    `blurred`, `torn image`."""

    def __init__(self, cameras: int, thresholds: HealthThresholds = THRESHOLDS) -> None:
        self._t = thresholds
        self._cameras = [_Camera() for _ in range(cameras)]
        self._travelled = 0.0

    def look(self, images: list[Grey | None], travel: float) -> tuple[tuple[str, ...], ...]:
        """The troubles of each camera's newest image; one that is absent keeps its last ones.

        travel: metres that the car went since the last call.
        """
        self._travelled += travel
        moved = self._travelled > self._t.moved
        if moved:
            self._travelled = 0.0
        for camera, image in zip(self._cameras, images, strict=True):
            if image is not None:
                camera.troubles = self._troubles(camera, image, moved)
        return tuple(camera.troubles for camera in self._cameras)

    def _troubles(self, camera: _Camera, image: Grey, moved: bool) -> tuple[str, ...]:
        t = self._t
        width = min(t.small, image.shape[1])
        height = max(round(image.shape[0] * width / image.shape[1]), 8)
        small = np.asarray(
            cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
        out = []
        levels = np.bincount(small.reshape(-1), minlength=256)
        if levels[t.dark :].sum() < 0.01 * small.size:
            out.append("too dark")
        if levels[t.glare :].sum() > t.glare_share * small.size:
            out.append("glare")
        # noise differs from image to image: one row in sixteen tells
        rows = image[::16]
        same = camera.last is not None and np.array_equal(camera.last, rows)
        camera.same, camera.last = (camera.same + 1 if same else 0), rows.copy()
        if camera.same >= t.frozen and rows.std() > 0:
            out.append("frozen")
        elif moved and not out:
            self._watch(camera, small)
        if camera.looked % t.blurred_every == 0:
            wide = edge_width(image, t.lines, t.slope)
            camera.blurred = camera.blurred + 1 if wide is not None and wide > t.blurred else 0
        camera.looked += 1
        if not out and camera.blurred >= t.blurred_for:
            out.append("blurred")
        if not out and self._covered(camera) > t.covered:
            out.append("lens blocked")
        camera.breaks.append(breaks_off(image, t))
        broken = [row for row in camera.breaks if row >= 0]
        # an edge of the car itself is at the same row in every image, and one break is a chance
        if not out and broken and max(broken) - min(broken) > t.break_moves:
            out.append("torn image")
        return tuple(out)

    def _watch(self, camera: _Camera, small: Grey) -> None:
        """One more image into the means of what stands still and of how strong it is."""
        grey = small.astype(np.float32)
        high = grey - cv2.GaussianBlur(grey, (0, 0), 3.0)
        if camera.mean is None or camera.strength is None:
            camera.mean, camera.strength, camera.count = high, np.square(high), 1
            return
        keep = min(self._t.keep, camera.count / (camera.count + 1.0))
        camera.mean = keep * camera.mean + (1 - keep) * high
        camera.strength = keep * camera.strength + (1 - keep) * np.square(high)
        camera.count += 1

    def _covered(self, camera: _Camera) -> float:
        """Share of the image that has texture and stands still while the car goes on."""
        t = self._t
        if camera.mean is None or camera.strength is None or camera.count < t.enough:
            return 0.0
        strength = np.sqrt(camera.strength)
        textured = strength > t.pattern
        fixed = textured & (np.abs(camera.mean) > t.fixed * strength)
        return float(fixed.mean())


def edge_width(image: Grey, every: int, slope: float) -> float | None:
    """Width in pixels of the edges of an image [H, W], of the sharper direction; None where there
    are none above the noise.

    A ramp of width w has slopes 1 / w over w pixels, and two bends of 1 / w: twice the energy of
    slopes over that of bends is w. Noise adds to both what its own deviation says (Immerkaer, CVIU
    1996).
    """
    found = []
    for lines in (image[::every], image[:, ::every].T):
        rows = lines.astype(np.float32)
        first = np.diff(rows, axis=1)
        second = np.diff(first, axis=1)
        # of white noise n the fourth difference is 70 n^2, and of an image that is smooth next to 0
        fourth = np.diff(second, n=2, axis=1)
        noise = float(np.square(np.median(np.abs(fourth)) / 0.6745)) / 70.0
        slopes = float(np.square(first).mean()) - 2.0 * noise
        bends = float(np.square(second).mean()) - 6.0 * noise
        if slopes > slope**2:
            found.append(2.0 * slopes / max(bends, 1e-3 * slopes))
    return min(found) if found else None


def breaks_off(image: Grey, t: HealthThresholds = THRESHOLDS) -> int:
    """The row [H] after which an image breaks off, as where two images are mixed or the rest never
    came; -1: none. There the next row differs far more than rows around do, all along."""
    columns = np.ascontiguousarray(image[:, :: t.lines])
    step = cv2.absdiff(columns[1:], columns[:-1])
    mean = cv2.reduce(step, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[:, 0]
    row = int(np.argmax(mean))
    if mean[row] < t.break_least:
        return -1
    near = np.r_[max(row - t.break_near, 0) : row, row + 1 : min(row + t.break_near, len(mean) - 1)]
    if len(near) < t.break_near or mean[row] < t.break_over * mean[near].mean():
        return -1
    usual = step[near].mean(0) + 2.0
    if (step[row] > 2.0 * usual).mean() <= t.break_wide:
        return -1
    rest = image[row + 2 :: t.lines]
    never_came = len(rest) > 0 and float(rest.std(axis=1).max()) < t.empty
    return row if never_came or _shifted(image[row], image[row + 1], t) else -1


def _shifted(above: Grey, below: Grey, t: HealthThresholds) -> bool:
    """Whether two rows show the same things beside each other's place, as where two images are
    mixed; a real edge (a bridge, a tunnel's mouth) shows other things below."""
    found = 0
    for part in range(t.parts):
        width = len(above) // t.parts
        here = above[part * width : (part + 1) * width].astype(np.float32)
        there = below[part * width : (part + 1) * width].astype(np.float32)
        reach = min(t.shift, width // 4)
        middle = here[None, reach : width - reach]
        if middle.shape[1] < 16 or middle.std() < t.slope:
            continue
        alike = cv2.matchTemplate(there[None], middle, cv2.TM_CCOEFF_NORMED)[0]
        best = int(np.argmax(alike))
        found += alike[best] > t.same and alike[reach] < t.other and abs(best - reach) > 1
    return found >= t.parts // 2


def told(names: tuple[str, ...], troubles: tuple[tuple[str, ...], ...]) -> str:
    """One phrase for a user: `too dark: left; lens blocked: 3 of 4 cameras`."""
    kinds: dict[str, list[str]] = {}
    for name, mine in zip(names, troubles, strict=True):
        for trouble in mine:
            kinds.setdefault(trouble, []).append(name)
    parts = []
    for trouble, cameras in kinds.items():
        many = len(cameras) > 2
        who = f"{len(cameras)} of {len(names)} cameras" if many else ", ".join(cameras)
        parts.append(f"{trouble}: {who}")
    return "; ".join(parts)
