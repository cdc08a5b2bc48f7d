"""Voxel indices packed into one int64, so that sorting, comparing and hashing a voxel is one
machine word.

23 bits for x and y, 17 for z. Indices beyond that wrap; because the map is bounded around the car,
an index near the car is always told apart from its wrapped twin, so a drive may be of any length
(`unpack` is asked near which voxel it is).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = (23, 23, 17)
_SHIFT = (BITS[1] + BITS[2], BITS[2], 0)


def pack(index: NDArray[np.integer]) -> NDArray[np.int64]:
    """Keys [K] (never negative) of voxel indices [K, 3] (position / voxel size, floored)."""
    wide = index.astype(np.int64, copy=False)
    x, y, z = (wide[:, axis] & ((1 << BITS[axis]) - 1) for axis in range(3))
    return (x << _SHIFT[0]) | (y << _SHIFT[1]) | z


def unpack_relative(keys: NDArray[np.int64], center: NDArray[np.int64]) -> NDArray[np.int32]:
    """Voxel indices [K, 3] counted from the voxel `center` [3]: right where nearer to it than half
    the wrap (4.2 M voxels, 65 k in z)."""
    out = np.empty((len(keys), 3), np.int32)
    for axis in range(3):
        half = 1 << (BITS[axis] - 1)
        field = (keys >> _SHIFT[axis]) - int(center[axis]) + half
        out[:, axis] = (field & (2 * half - 1)) - half
    return out
