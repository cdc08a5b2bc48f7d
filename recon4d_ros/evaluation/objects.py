"""Tracked objects of one frame set as arrays, for scores and files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.types import DynamicObject


@dataclass(frozen=True)
class ObjectsAt:
    """Tracked dynamic objects of one frame set, in map. ids: [K]. position, velocity, size: [K, 3].
    yaw: [K]."""

    stamp_ns: int
    ids: NDArray[np.int64]
    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    size: NDArray[np.float64]
    yaw: NDArray[np.float64]


def objects_at(stamp_ns: int, objects: tuple[DynamicObject, ...]) -> ObjectsAt:
    """Tracked dynamic objects of one frame set as arrays."""
    columns = {
        name: np.array([getattr(o, name) for o in objects], np.float64).reshape(-1, 3)
        for name in ("position", "velocity", "size")
    }
    return ObjectsAt(
        stamp_ns,
        np.array([o.id for o in objects], np.int64),
        yaw=np.array([o.yaw for o in objects], np.float64),
        **columns,
    )
