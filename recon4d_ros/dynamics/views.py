"""What is constant about each camera while a drive lasts: its grid of rays, and where its depth
does not come from time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse
from recon4d_ros.types import Calibration

STRIDE = 2
"""Motion is judged on every second pixel of the working image: flow is no finer than that."""

FLOW_WIDTH = 512
"""Flow is measured on the working image, or on its half if it is wider than this."""


@dataclass(frozen=True)
class View:
    """One camera on the motion grid, [h, w] = working size / STRIDE, rounded up; grid pixel i is
    working pixel i * STRIDE.

    k: [3, 3] intrinsics of the grid. x, y: [h, w] float32 normalised image coordinates. covered:
    [h, w] bool, another camera sees the same points at the same time from elsewhere, so that depth
    there does not rest on the assumption that nothing moves.
    """

    k: NDArray[np.float64]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    covered: NDArray[np.bool_]
    T_base_camera: NDArray[np.float64]

    @property
    def mostly_covered(self) -> bool:
        """A stereo camera, rather than one of a ring that overlaps a little with its neighbours."""
        return bool(self.covered.mean() > 0.5)

    @property
    def focal(self) -> float:
        return float(0.5 * (self.k[0, 0] + self.k[1, 1]))


def make_views(calibration: Calibration) -> tuple[View, ...]:
    """The grid of every camera in the rig's order."""
    h, w = calibration.working_size
    v, u = np.mgrid[0:h:STRIDE, 0:w:STRIDE].astype(np.float32)
    views = []
    for i, k in enumerate(calibration.k):
        x = ((u - k[0, 2]) / k[0, 0]).astype(np.float32)
        y = ((v - k[1, 2]) / k[1, 1]).astype(np.float32)
        grid_k = k.copy()
        grid_k[:2] /= STRIDE
        views.append(
            View(grid_k, x, y, _covered(calibration, i, x, y), calibration.T_base_camera[i])
        )
    return tuple(views)


def partners(calibration: Calibration, views: tuple[View, ...]) -> tuple[int | None, ...]:
    """For each camera the first camera before it that sees nearly the same (the leader of a stereo
    pair), or None."""
    leaders: list[int | None] = []
    for i, view in enumerate(views):
        others = [
            j
            for j in range(i)
            if leaders[j] is None and _seen_by(calibration, i, j, view.x, view.y).mean() > 0.6
        ]
        leaders.append(others[0] if others else None)
    return tuple(leaders)


def _covered(
    calibration: Calibration, index: int, x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Pixels that any other camera sees too."""
    covered = np.zeros(x.shape, bool)
    for other in range(len(calibration.k)):
        if other != index:
            covered |= _seen_by(calibration, index, other, x, y)
    return covered


def _seen_by(
    calibration: Calibration, index: int, other: int, x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Pixels whose points at 6 and at 40 m a camera sees that is at least 5 cm away and looks the
    same way (within 60 degrees)."""
    h, w = calibration.working_size
    relative = inverse(calibration.T_base_camera[other]) @ calibration.T_base_camera[index]
    if relative[2, 2] < 0.5 or np.linalg.norm(relative[:3, 3]) < 0.05:
        return np.zeros(x.shape, bool)
    k = calibration.k[other]
    seen = np.ones(x.shape, bool)
    for distance in (6.0, 40.0):
        points = (
            np.stack([x, y, np.ones_like(x)], -1) * distance @ relative[:3, :3].T + relative[:3, 3]
        )
        z = np.maximum(points[..., 2], 1e-6)
        u = k[0, 0] * points[..., 0] / z + k[0, 2]
        v = k[1, 1] * points[..., 1] / z + k[1, 2]
        seen &= (points[..., 2] > 0.1) & (u >= 0) & (u <= w - 1) & (v >= 0) & (v <= h - 1)
    return seen
