"""Voxels that left the radius, kept on disk until the map is saved: the map's memory stays bounded,
its file does not forget."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse
from recon4d_ros.mapping import submaps
from recon4d_ros.mapping.cloud_files import PLY_POINT
from recon4d_ros.mapping.keys import pack

_RECORD = np.dtype([("key", "<i8"), ("submap", "<i4"), ("point", PLY_POINT)])
_BLOCK = 1 << 18
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs")
# where a file goes if the temporary folder (TMPDIR) is memory in disguise, first that will do
_ON_DISK = ("/var/tmp", "~/.cache", ".")


def folder_on_disk(mounts: str = "/proc/self/mounts") -> Path | None:
    """A folder to write to that is not memory: the temporary one, else one of _ON_DISK; None if
    there is none. mounts: the kernel's list of file systems."""
    for name in (tempfile.gettempdir(), *_ON_DISK):
        folder = Path(name).expanduser()
        if folder.is_dir() and os.access(folder, os.W_OK) and not in_memory(folder, mounts):
            return folder
    return None


def in_memory(folder: Path, mounts: str = "/proc/self/mounts") -> bool:
    """Whether what is written there stays in memory (tmpfs and the like): by the mount that the
    folder lies under."""
    path, best, kind = folder.resolve(), -1, ""
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:
        return False  # not Linux: nothing is known
    for line in lines:
        _, point, system = line.split()[:3]
        parts = len(Path(point).parts)
        if parts >= best and path.is_relative_to(point.replace("\\040", " ")):
            best, kind = parts, system
    return kind in _MEMORY_FILE_SYSTEMS


class Spill:
    """An unnamed temporary file of voxels: it vanishes with the process. A full disk stops the
    keeping, never the drive; where there is no disk at all (every folder is a tmpfs, whose pages
    are memory that no limit of the map counts) all is refused and counted as lost.

    anchors: [S, 4, 4], where the submaps are in map now.
    """

    def __init__(self, voxel_size: float = 1.0) -> None:
        folder = folder_on_disk()
        self._file = (
            open(os.devnull, "wb", buffering=0)
            if folder is None
            else tempfile.TemporaryFile(prefix="recon4d_map_", buffering=0, dir=folder)
        )
        self._refuses = folder is None
        self._voxel_size = voxel_size
        self.anchors: NDArray[np.float64] = np.eye(4)[None]
        self.count = 0
        self.lost = 0  # voxels that a full disk refused

    def add(
        self,
        keys: NDArray[np.int64],
        points: NDArray[np.void],
        submap: NDArray[np.int32] | None = None,
    ) -> None:
        """submap: [K] number of each point's anchor, -1 for what stays where it is; all 0 unless
        given."""
        if self._refuses:
            self.lost += len(keys)
            return
        records = np.empty(len(keys), _RECORD)
        records["key"], records["point"] = keys, points
        records["submap"] = 0 if submap is None else submap
        away = self._mine(records["submap"])
        if away.any():  # a point is kept in its submap's frame: it moves as that does
            records["point"]["xyz"][away] = submaps.placed(
                inverse(self.anchors), records["submap"][away], points["xyz"][away]
            )
        written = 0
        try:
            self._file.seek(self.count * _RECORD.itemsize)
            written = self._file.write(records.view(np.uint8).data) or 0
        except OSError:
            pass
        kept = written // _RECORD.itemsize  # a disk that fills up takes a part, and says no word
        self.count += kept
        self.lost += len(keys) - kept

    def close(self) -> None:
        """It is not asked again."""
        self._file.close()

    def clear(self) -> None:
        if not self._refuses:
            self._file.truncate(0)
        self.count = 0
        self.lost = 0

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.void]]]:
        """Keys and points in the order they left, in blocks."""
        for start in range(0, self.count, _BLOCK):
            count = min(_BLOCK, self.count - start)
            self._file.seek(start * _RECORD.itemsize)
            records = np.frombuffer(self._file.read(count * _RECORD.itemsize), _RECORD)
            yield self._in_map(records["key"], records["point"], records["submap"])

    def _in_map(
        self, keys: NDArray[np.int64], points: NDArray[np.void], submap: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """Keys and points where their submaps are now."""
        moved = self._mine(submap)
        if not moved.any():
            return keys, points
        keys, points = keys.copy(), points.copy()
        xyz = submaps.placed(self.anchors, submap[moved], points["xyz"][moved])
        points["xyz"][moved] = xyz
        keys[moved] = pack(np.floor(xyz / self._voxel_size).astype(np.int64))
        return keys, points

    def _mine(self, submap: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which records lie elsewhere than their numbers say: where the submap has an anchor that
        is not the identity."""
        away = (self.anchors != np.eye(4)).any((1, 2))
        return (submap >= 0) & away[np.maximum(submap, 0)]

    def latest(self) -> NDArray[np.int64]:
        """Sorted positions of the records that are the last of their voxel (a place that was driven
        by twice is there once)."""
        if self.count == 0:
            return np.zeros(0, np.int64)
        keys = np.concatenate([keys for keys, _ in self.blocks()])
        _, from_behind = np.unique(keys[::-1], return_index=True)
        return np.sort(self.count - 1 - from_behind)
