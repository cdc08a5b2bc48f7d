"""Voxels that left the radius, kept on disk until the map is saved: the map's memory stays bounded,
its file does not forget."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.mapping.cloud_files import PLY_POINT
from recon4d_ros.mapping.keys import pack

_RECORD = np.dtype([("key", "<i8"), ("point", PLY_POINT)])
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
    are memory that no limit of the map counts) all is refused and counted as lost."""

    def __init__(self) -> None:
        folder = folder_on_disk()
        self._file = (
            open(os.devnull, "wb", buffering=0)
            if folder is None
            else tempfile.TemporaryFile(prefix="recon4d_map_", buffering=0, dir=folder)
        )
        self._refuses = folder is None
        self._moved: list[tuple[int, NDArray[np.float64]]] = []
        self._voxel_size = 1.0
        self.count = 0
        self.lost = 0  # voxels that a full disk refused

    def add(self, keys: NDArray[np.int64], points: NDArray[np.void]) -> None:
        if self._refuses:
            self.lost += len(keys)
            return
        records = np.empty(len(keys), _RECORD)
        records["key"], records["point"] = keys, points
        written = 0
        try:
            self._file.seek(self.count * _RECORD.itemsize)
            written = self._file.write(records.view(np.uint8).data) or 0
        except OSError:
            pass
        kept = written // _RECORD.itemsize  # a disk that fills up takes a part, and says no word
        self.count += kept
        self.lost += len(keys) - kept

    def clear(self) -> None:
        if not self._refuses:
            self._file.truncate(0)
        self._moved = []
        self.count = 0
        self.lost = 0

    def move(self, T: NDArray[np.float64], voxel_size: float) -> None:
        """What is here lies elsewhere, by a rigid motion [4, 4] of the map; done when it is read,
        for there may be much of it."""
        self._moved = [(end, T @ before) for end, before in self._moved]
        self._moved.append((self.count, T))
        self._voxel_size = voxel_size

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.void]]]:
        """Keys and points in the order they left, in blocks."""
        for start in range(0, self.count, _BLOCK):
            count = min(_BLOCK, self.count - start)
            self._file.seek(start * _RECORD.itemsize)
            records = np.frombuffer(self._file.read(count * _RECORD.itemsize), _RECORD)
            keys, points = records["key"], records["point"]
            yield self._where_now(start, keys, points) if self._moved else (keys, points)

    def _where_now(
        self, start: int, keys: NDArray[np.int64], points: NDArray[np.void]
    ) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """Records from `start` on after all motions that came since they were written."""
        keys, points = keys.copy(), points.copy()
        first = start
        for end, T in self._moved:
            part = slice(max(first, start) - start, max(min(end, start + len(keys)) - start, 0))
            if part.start < part.stop:
                xyz = points["xyz"][part].astype(np.float64) @ T[:3, :3].T + T[:3, 3]
                points["xyz"][part] = xyz
                keys[part] = pack(np.floor(xyz / self._voxel_size).astype(np.int64))
            first = end
        return keys, points

    def latest(self) -> NDArray[np.int64]:
        """Sorted positions of the records that are the last of their voxel (a place that was driven
        by twice is there once)."""
        if self.count == 0:
            return np.zeros(0, np.int64)
        keys = np.concatenate([keys for keys, _ in self.blocks()])
        _, from_behind = np.unique(keys[::-1], return_index=True)
        return np.sort(self.count - 1 - from_behind)
