"""Keyframes: where the car was, and what its cameras saw there, on disk but for an index."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import MapError
from recon4d_ros.localization.features import Features, Orb
from recon4d_ros.mapping.spill import folder_on_disk

Array = NDArray[np.float64]

FEATURE = np.dtype(
    [
        ("camera", "u1"),
        ("ray", "<f4", 2),
        ("sigma", "<f4"),
        ("rho", "<f4"),
        ("variance", "<f4"),
        ("descriptor", "u1", Orb.length),
    ]
)
"""A feature on disk."""


def packed(features: Features) -> NDArray[np.void]:
    """As one array of FEATURE."""
    out = np.empty(len(features), FEATURE)
    for name in FEATURE.names or ():
        out[name] = getattr(features, name)
    return out


def unpacked(records: NDArray[np.void]) -> Features:
    """The inverse of `packed`."""
    return Features(
        records["camera"].astype(np.int16),
        *(np.ascontiguousarray(records[name]) for name in FEATURE.names[1:]),  # type: ignore[index]
    )


@dataclass(frozen=True)
class Keyframe:
    """stamp_ns: of its frame set. T_map_base: [4, 4]. T_base_camera: [N, 4, 4] of the working
    images' frames, each at its own stamp. start, count: its features in the file. thumbnail: a
    JPEG, as a file or as its start and size among the thumbnails."""

    stamp_ns: int
    T_map_base: Array
    T_base_camera: Array
    start: int
    count: int
    thumbnail: Path | tuple[int, int] | None = None


class FeatureFile:
    """Features of keyframes, one after another: those of a loaded file (not written to), then those
    of a temporary one."""

    def __init__(self, loaded: BinaryIO | None = None, count: int = 0, name: str = "") -> None:
        """count: features in `loaded`; name: of its map, for sentences."""
        self._loaded, self._first, self._name = loaded, count, name
        self._file: BinaryIO | None = None
        self._thumbnails: BinaryIO | None = None
        self.count = count

    def append(self, features: Features) -> tuple[int, int]:
        """Start and count. Raises MapError where the disk takes no more."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(
                    prefix="recon4d_keyframes_", dir=folder_on_disk()
                )  # type: ignore[assignment]
            assert self._file is not None
            data = packed(features).tobytes()
            offset = (self.count - self._first) * FEATURE.itemsize
            if os.pwrite(self._file.fileno(), data, offset) != len(data):
                raise OSError(0, "no room")
        except OSError as error:
            raise MapError(f"a keyframe cannot be kept: {error.strerror}") from None
        start, self.count = self.count, self.count + len(features)
        return start, len(features)

    def append_thumbnail(self, data: bytes) -> tuple[int, int] | None:
        """Start and size; None where the disk takes no more."""
        try:
            if self._thumbnails is None:
                self._thumbnails = tempfile.TemporaryFile(  # type: ignore[assignment]
                    prefix="recon4d_keyframes_", dir=folder_on_disk()
                )
            assert self._thumbnails is not None
            start = self._thumbnails.seek(0, os.SEEK_END)
            self._thumbnails.write(data)
            return start, len(data)
        except OSError:  # they are for people
            return None

    def thumbnail(self, frame: Keyframe) -> bytes:
        """Empty where there is none: people tidy up."""
        try:
            if isinstance(frame.thumbnail, Path):
                return frame.thumbnail.read_bytes()
            if frame.thumbnail is not None and self._thumbnails is not None:
                self._thumbnails.seek(frame.thumbnail[0])
                return self._thumbnails.read(frame.thumbnail[1])
        except OSError:
            pass
        return b""

    def features(self, frame: Keyframe) -> Features:
        """Raises MapError where the file can no longer be read."""
        start, count = frame.start, frame.count
        mine = start >= self._first
        file = self._file if mine else self._loaded
        size = FEATURE.itemsize
        try:
            assert file is not None
            data = os.pread(
                file.fileno(), count * size, (start - (self._first if mine else 0)) * size
            )
        except OSError as error:
            raise MapError(f"map {self._name} can no longer be read: {error.strerror}") from None
        if len(data) != count * size:
            raise MapError(f"map {self._name} can no longer be read: its features are truncated")
        return unpacked(np.frombuffer(data, FEATURE))

    def blocks(self, frames: list[Keyframe]) -> Iterator[bytes]:
        """Of these keyframes, one after another. Raises MapError."""
        for frame in frames:
            yield packed(self.features(frame)).tobytes()
