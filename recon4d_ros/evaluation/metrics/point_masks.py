"""Moving masks against lidar points whose tracks are known: points of boxes that move should lie
under the mask, all others not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.distortion import to_pixels
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.types import Camera

_NEAR, _FAR = 1.0, 80.0  # metres along the optical axis
_WIDEST = 3.0  # tangent: points farther to the side are left out
_MOVING = 1.0  # m/s over ground


@dataclass(frozen=True)
class PointMaskScore:
    """moving_points, static_points: how many were asked for. recall, precision, iou: over points.
    static_marked: share of the static points that lie under a mask. NaN where nothing can be
    said."""

    frames: int
    moving_points: int
    static_points: int
    recall: float
    precision: float
    iou: float
    static_marked: float


@dataclass
class PointMaskAccumulator:
    """`add` a camera's mask at a time, then ask for `score`. counts: true positives, misses, false
    positives, true negatives."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    frames: int = 0

    def add(
        self,
        mask: NDArray[np.bool_],
        points: NDArray[np.floating],
        tracks: NDArray[np.integer],
        moving: NDArray[np.integer],
        camera: Camera,
    ) -> None:
        """mask: [height, width] of the source image. points: [K, 3] in base_link. tracks: [K] id of
        the box that each lies in, -1 for none. moving: ids of the boxes that move."""
        local = transform(inverse(camera.T_base_camera), np.asarray(points, np.float64))
        asked = (local[:, 2] > _NEAR) & (local[:, 2] < _FAR)
        asked &= np.abs(local[:, 0]) < _WIDEST * local[:, 2]
        local, tracks = local[asked], tracks[asked]
        pixels = to_pixels(camera, local[:, :2] / local[:, 2:])
        known = np.asarray(np.isfinite(pixels).all(axis=1))
        u, v = np.rint(np.where(known[:, None], pixels, -1.0)).astype(np.int64).T
        inside = known & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
        marked = mask[v[inside], u[inside]]
        moves = np.isin(tracks[inside], moving)
        self.counts += [
            np.count_nonzero(marked & moves),
            np.count_nonzero(~marked & moves),
            np.count_nonzero(marked & ~moves),
            np.count_nonzero(~marked & ~moves),
        ]
        self.frames += 1

    def score(self) -> PointMaskScore:
        hit, missed, wrong, right = (int(value) for value in self.counts)
        return PointMaskScore(
            self.frames,
            hit + missed,
            wrong + right,
            _share(hit, hit + missed),
            _share(hit, hit + wrong),
            _share(hit, hit + missed + wrong),
            _share(wrong, wrong + right),
        )


def moving_tracks(frame: Mapping[str, Any]) -> NDArray[np.int64]:
    """Ids of the boxes of one frame of a NAME_boxes.json that move."""
    return np.array(
        [
            box["id"]
            for box in frame["boxes"]
            if box.get("moving")
            and box["velocity_world"] is not None
            and np.hypot(*box["velocity_world"][:2]) > _MOVING
        ],
        np.int64,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
