"""What the picture of a run shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ObjectView:
    """A dynamic object in one camera. edges: [12, K, 2] pixels along its box's edges. speed:
    m/s."""

    id: int
    edges: NDArray[np.float64]
    speed: float


@dataclass(frozen=True)
class CameraView:
    """One camera of the shown frame, at any one size. image: [h, w, 3] RGB. mask: [h, w] bool.
    depth: [h, w] m, NaN = none."""

    name: str
    image: Pixels
    mask: NDArray[np.bool_]
    depth: NDArray[np.float32]
    objects: Sequence[ObjectView]


@dataclass(frozen=True)
class Trail:
    """A dynamic object's way over the map. positions: [K, 3] oldest first. velocity: [3] m/s, size:
    [3] m, yaw: rad, at the last of them."""

    id: int
    positions: NDArray[np.float64]
    velocity: NDArray[np.float64]
    size: NDArray[np.float64]
    yaw: float


@dataclass(frozen=True)
class OverviewData:
    """All that the picture shows, in map. points: [K, 3], colors: [K, 3]. trajectory: [F, 4, 4].
    summary: what summary.json holds.

    shown_pose: T_map_base of the frame whose cameras are shown. truth: [T, 4, 4], the first pose
    aligned. distance, errors: [T] m.
    """

    cameras: Sequence[CameraView]
    points: NDArray[np.float32]
    colors: Pixels
    trajectory: NDArray[np.float64]
    trails: Sequence[Trail]
    summary: Mapping[str, Any]
    shown_pose: NDArray[np.float64] | None = None
    truth: NDArray[np.float64] | None = None
    distance: NDArray[np.float64] | None = None
    errors: NDArray[np.float64] | None = None
