"""A hash table of voxel keys in flat arrays, for thousands of keys at a time and without a Python
loop over them.

Buckets of eight slots (one cache line of int64), two buckets a key may live in, as in bucketized
cuckoo hashing (Dietzfelbinger and Weidling 2007) without the moving: the second is used where the
first is full. A slot never moves while its key lives, so what belongs to a voxel sits in arrays
beside, at the same slot. Capacity is fixed: cost and memory are the same at the end of a drive as
at its start, and leaving is only an emptied slot (no tombstones, no rebuild).
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

LANES = 8
EMPTY = np.int64(-1)
# Odd multipliers with well-mixed bits: golden ratio (Knuth's multiplicative hashing) and an
# independent one.
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
# Eight booleans read as one integer are 256^lane, or 0: modulo 19 all nine are different, so a look
# into a table tells the lane.
_PRIME = np.uint64(19)
_LANE = np.full(19, -1)
_LANE[
    [int.from_bytes(one.tobytes(), sys.byteorder) % 19 for one in np.eye(LANES, dtype=np.bool_)]
] = np.arange(LANES)


class VoxelTable:
    """Keys (int64, not negative) to slots 0..capacity-1."""

    def __init__(self, capacity: int) -> None:
        """capacity: slots, rounded up to a power of two of at least 64."""
        bits = max(6, int(np.ceil(np.log2(max(capacity, 1)))))
        self.capacity = 1 << bits
        self.keys: NDArray[np.int64] = np.full(self.capacity, EMPTY)
        self._buckets = self.keys.reshape(-1, LANES)
        self._shift = np.uint64(64 - (bits - 3))
        self.size = 0

    def clear(self) -> None:
        self.keys[:] = EMPTY
        self.size = 0

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slot of each key, -1 where it is absent. [K] -> [K]"""
        slots = self._find_in(keys, self._bucket(keys, 0))
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            slots[missing] = self._find_in(keys[missing], self._bucket(keys[missing], 1))
        return slots

    def insert(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots for keys that are absent and each there once; -1 where both buckets are full."""
        slots = self._insert_in(keys, self._bucket(keys, 0))
        refused = np.flatnonzero(slots < 0)
        if len(refused):
            slots[refused] = self._insert_in(keys[refused], self._bucket(keys[refused], 1))
        self.size += int(np.count_nonzero(slots >= 0))
        return slots

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Empties occupied slots, each there once."""
        self.keys[slots] = EMPTY
        self.size -= len(slots)

    def _bucket(self, keys: NDArray[np.int64], which: int) -> NDArray[np.int64]:
        return ((keys.view(np.uint64) * _MULTIPLIERS[which]) >> self._shift).view(np.int64)

    def _find_in(self, keys: NDArray[np.int64], bucket: NDArray[np.int64]) -> NDArray[np.int64]:
        equal = self._buckets.take(bucket, axis=0) == keys[:, None]  # a key is there once at most
        lane = _LANE.take((equal.view(np.uint64)[:, 0] % _PRIME).view(np.int64))
        return np.where(lane >= 0, bucket * LANES + lane, -1)

    def _insert_in(self, keys: NDArray[np.int64], bucket: NDArray[np.int64]) -> NDArray[np.int64]:
        order = np.argsort(bucket, kind="stable")
        sorted_bucket = bucket[order]
        position = np.arange(len(order))
        first = np.maximum.accumulate(
            np.where(np.diff(sorted_bucket, prepend=-1) != 0, position, 0)
        )
        rank = position - first  # the how-manieth newcomer of its bucket
        wanted = (self._buckets[sorted_bucket] == EMPTY).cumsum(axis=1) == (rank + 1)[:, None]
        lane = wanted.argmax(
            axis=1
        )  # the first lane with rank + 1 free ones up to it is the rank-th free lane
        fits = np.take_along_axis(wanted, lane[:, None], axis=1)[:, 0]
        slots = np.full(len(keys), -1)
        slots[order] = np.where(fits, sorted_bucket * LANES + lane, -1)
        taken = slots >= 0
        self.keys[slots[taken]] = keys[taken]
        return slots
