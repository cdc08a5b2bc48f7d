"""What is wrong with a camera's images, whatever they show: dark, glaring, frozen, covered.

A small copy of each image is enough: what a lens has on it, or a sensor does, is wide. Drops and
dirt stand still in the image while the scene goes by: where the mean of many high-passed images is
nearly as strong as the images themselves, nothing of the scene is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class HealthThresholds:
    """In grey levels of 255 and shares of the image."""

    small: int = 96  # pixels across the copy: a drop of a fiftieth of the image is two of them
    dark: float = 28.0  # 99 % of a dark image are below: a street at night has lamps above
    glare: float = 250.0  # saturated
    glare_share: float = 0.35  # a bright sky is less, beside a road
    pattern: float = 2.5  # deviation of a high-passed copy that is more than noise
    keep: float = 0.93  # of the means from image to image: 14 of them
    moved: float = 0.3  # m between the images that go into the means: nearer ones look alike
    enough: int = 12  # images before anything is said
    fixed: float = 0.75  # mean over deviation of what stands still
    covered: float = 0.25  # share of the textured image that stands still
    frozen: int = 3  # images in a row that are the same to the last bit


THRESHOLDS = HealthThresholds()


@dataclass
class _Camera:
    last: Grey | None = None
    same: int = 0
    mean: NDArray[np.float32] | None = None
    strength: NDArray[np.float32] | None = None
    count: int = 0
    troubles: tuple[str, ...] = ()


class CameraHealth:
    """Troubles of N cameras, image by image: `dark`, `glare`, `frozen`, `covered (drops, dirt)`."""

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
        if np.quantile(small, 0.99) < t.dark:
            out.append("dark")
        if (small >= t.glare).mean() > t.glare_share:
            out.append("glare")
        # noise differs from image to image: one row in sixteen tells
        rows = image[::16]
        same = camera.last is not None and np.array_equal(camera.last, rows)
        camera.same, camera.last = (camera.same + 1 if same else 0), rows.copy()
        if camera.same >= t.frozen and rows.std() > 0:
            out.append("frozen")
        elif moved and not out:
            self._watch(camera, small)
        if not out and self._covered(camera) > t.covered:
            out.append("covered (drops, dirt)")
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
        """Share of the textured image that stands still while the car goes on."""
        t = self._t
        if camera.mean is None or camera.strength is None or camera.count < t.enough:
            return 0.0
        strength = np.sqrt(camera.strength)
        textured = strength > t.pattern
        fixed = textured & (np.abs(camera.mean) > t.fixed * strength)
        return float(fixed.sum() / max(textured.sum(), 0.1 * textured.size))


def told(names: tuple[str, ...], troubles: tuple[tuple[str, ...], ...]) -> str:
    """One phrase for a user: `dark: left; covered (drops, dirt): 3 of 4 cameras`."""
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
