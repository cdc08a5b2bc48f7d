"""Submaps: parts of the map that move as one, each by its anchor's pose in map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse

Array = NDArray[np.float64]

REACH = 40.0  # metres from its anchor at which a submap's voxels lie


def placed(T: Array, submap: NDArray[np.int32], points: NDArray) -> Array:
    """Points [K, 3], each by the pose of its submap: T [S, 4, 4], submap [K]."""
    out = np.empty((len(points), 3))
    for one in np.unique(submap).tolist():
        mine = submap == one
        out[mine] = points[mine].astype(np.float64) @ T[one, :3, :3].T + T[one, :3, 3]
    return out


def displacement(before: Array, after: Array) -> Array:
    """[S] metres by which what belongs to submaps moves at most, from anchors [S, 4, 4] on."""
    turn = after[:, :3, :3] @ np.swapaxes(before[:, :3, :3], 1, 2)
    cosine = np.clip((np.trace(turn, axis1=1, axis2=2) - 1.0) / 2.0, -1.0, 1.0)
    shift = np.linalg.norm(after[:, :3, 3] - before[:, :3, 3], axis=1)
    return shift + REACH * np.arccos(cosine)


def motions(before: Array, after: Array) -> Array:
    """[S, 4, 4] of map, that take what belongs to each submap along."""
    return np.asarray(after @ inverse(before), np.float64)
