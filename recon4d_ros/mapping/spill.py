"""Voxels that left the radius, kept on disk until the map is saved: the map's memory stays bounded,
its file does not forget."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.mapping.cloud_files import PLY_POINT

_RECORD = np.dtype([("key", "<i8"), ("point", PLY_POINT)])
_BLOCK = 1 << 18


class Spill:
    """An unnamed temporary file of voxels: it vanishes with the process. A full disk stops the
    keeping, never the drive."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="recon4d_map_", buffering=0)
        self.count = 0
        self.lost = 0  # voxels that a full disk refused

    def add(self, keys: NDArray[np.int64], points: NDArray[np.void]) -> None:
        records = np.empty(len(keys), _RECORD)
        records["key"], records["point"] = keys, points
        try:
            self._file.seek(self.count * _RECORD.itemsize)
            self._file.write(records.view(np.uint8).data)
            self.count += len(keys)
        except OSError:
            self.lost += len(keys)

    def clear(self) -> None:
        self._file.truncate(0)
        self.count = 0
        self.lost = 0

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.void]]]:
        """Keys and points in the order they left, in blocks."""
        for start in range(0, self.count, _BLOCK):
            count = min(_BLOCK, self.count - start)
            self._file.seek(start * _RECORD.itemsize)
            records = np.frombuffer(self._file.read(count * _RECORD.itemsize), _RECORD)
            yield records["key"], records["point"]

    def latest(self) -> NDArray[np.int64]:
        """Sorted positions of the records that are the last of their voxel (a place that was driven
        by twice is there once)."""
        if self.count == 0:
            return np.zeros(0, np.int64)
        keys = np.concatenate([keys for keys, _ in self.blocks()])
        _, from_behind = np.unique(keys[::-1], return_index=True)
        return np.sort(self.count - 1 - from_behind)
