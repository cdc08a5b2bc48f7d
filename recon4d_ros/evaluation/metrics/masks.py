"""Moving masks against the truth: are dynamic objects found, is the static world left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

# of a dynamic object in the source image: smaller ones are neither asked for nor held against the
# estimate
MIN_PIXELS = 300


@dataclass(frozen=True)
class MaskScore:
    """iou, precision, recall: over the pixels of dynamic objects large and fast enough; every wrong
    pixel of the static world counts against iou and precision. static_marked: share of the static
    world's pixels that are marked. movers: dynamic objects asked for, summed over frames."""

    iou: float
    precision: float
    recall: float
    static_marked: float
    movers: int


@dataclass
class MaskAccumulator:
    """`add` a camera's mask at a time, then ask for `score`. counts: [N, 5] true positives, false
    positives, misses, static, movers."""

    cameras: Sequence[str]
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.cameras), 5), np.int64)

    def add(
        self,
        camera: int,
        mask: NDArray[np.bool_],
        truth: NDArray[np.bool_],
        ignore: NDArray[np.bool_] | None = None,
    ) -> None:
        """mask, truth: [h, w] at the source image's size. ignore: pixels that do not count (dynamic
        objects too slow to be asked for)."""
        asked, ignored, movers = split_movers(truth)
        if ignore is not None:
            ignored |= ignore & ~asked
        static = ~asked & ~ignored
        hit, wrong, missed = (
            np.count_nonzero(mask & asked),
            np.count_nonzero(mask & static),
            np.count_nonzero(~mask & asked),
        )
        self.counts[camera] += (hit, wrong, missed, np.count_nonzero(static), movers)

    def score(self, camera: str | None = None) -> MaskScore:
        chosen = self.counts if camera is None else self.counts[[list(self.cameras).index(camera)]]
        hit, wrong, missed, static, movers = (int(value) for value in chosen.sum(axis=0))
        iou, marked = _share(hit, hit + wrong + missed), _share(wrong, static)
        return MaskScore(iou, _share(hit, hit + wrong), _share(hit, hit + missed), marked, movers)


def split_movers(
    truth: NDArray[np.bool_], min_pixels: int = MIN_PIXELS
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Of the truth's mask [h, w]: pixels of connected dynamic objects of at least `min_pixels`,
    those of smaller ones, and how many are large."""
    if not truth.any():
        return np.zeros_like(truth), np.zeros_like(truth), 0
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(
        truth.astype(np.uint8), connectivity=8
    )
    large = statistics[:, cv2.CC_STAT_AREA] >= min_pixels
    large[0] = False  # the background
    asked = large[labels]
    return asked, truth & ~asked, int(np.count_nonzero(large))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
