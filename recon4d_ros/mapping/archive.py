"""Voxels at rest on disk, in squares of the ground: a loaded map, or one that was set aside. Those
near the car are read back as it comes, so memory does not grow with the map."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import MapError
from recon4d_ros.mapping.cloud_files import PLY_POINT, ply_header
from recon4d_ros.mapping.spill import folder_on_disk

SQUARE = 16.0  # metres: edge of a square
Chunks = Callable[[], Iterator[NDArray[np.void]]]


@dataclass(frozen=True)
class Squares:
    """Where each square's points are in a file. corner: [B, 2] int64, square number (metres /
    SQUARE, floored). start, count: [B] int64, in points."""

    corner: NDArray[np.int64]
    start: NDArray[np.int64]
    count: NDArray[np.int64]

    @property
    def points(self) -> int:
        return int(self.count.sum())

    def table(self) -> NDArray[np.int64]:
        """[B, 4]: as a file has it."""
        return np.column_stack([self.corner, self.start, self.count]).astype(np.int64)

    @staticmethod
    def of(table: NDArray[np.int64]) -> Squares:
        """Raises ValueError where these are no squares one after another."""
        if table.ndim != 2 or table.shape[1] != 4 or table.dtype != np.int64:
            raise ValueError("the table of squares has another layout")
        squares = Squares(table[:, :2], table[:, 2], table[:, 3])
        ends = np.concatenate([[0], np.cumsum(squares.count)])
        if (squares.count < 0).any() or (squares.start != ends[:-1]).any():
            raise ValueError("its squares do not lie one after another")
        return squares


def write_squares(file: BinaryIO, chunks: Chunks) -> Squares:
    """Writes points as a PLY whose points are ordered by square, and returns the squares.

    chunks: gives blocks of PLY_POINT, and the same ones when it is asked again: they are gone
    through twice, so that no more than one block is in memory. Raises OSError.
    """
    counts: dict[tuple[int, int], int] = {}
    for points in chunks():
        corners, inverse = _corners(points)
        for corner, count in zip(corners.tolist(), np.bincount(inverse).tolist(), strict=True):
            counts[tuple(corner)] = counts.get(tuple(corner), 0) + count
    order = sorted(counts)
    count = np.array([counts[corner] for corner in order], np.int64)
    start = np.concatenate([[0], np.cumsum(count)])[:-1].astype(np.int64)
    header = ply_header(int(count.sum()))
    file.write(header)
    file.flush()
    place = dict(zip(order, start.tolist(), strict=True))
    for points in chunks():
        corners, inverse = _corners(points)
        sorted_points = points[np.argsort(inverse, kind="stable")]
        ends = np.concatenate([[0], np.cumsum(np.bincount(inverse, minlength=len(corners)))])
        for corner, a, b in zip(
            corners.tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True
        ):
            at = place[tuple(corner)]
            _write_all(
                file.fileno(),
                np.ascontiguousarray(sorted_points[a:b]).tobytes(),
                len(header) + at * PLY_POINT.itemsize,
            )
            place[tuple(corner)] = at + b - a
    return Squares(np.array(order, np.int64).reshape(-1, 2), start, count)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _corners(points: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The squares [B, 2] that points are in, and each point's [K]."""
    corner = np.floor(points["xyz"][:, :2] / SQUARE).astype(np.int64)
    corners, inverse = np.unique(corner, axis=0, return_inverse=True)
    return corners, inverse.reshape(-1)


class VoxelArchive:
    """Points of a file in squares. `near` gives those around the car that were not asked for yet;
    from then on they are the caller's. `rest` gives all others."""

    def __init__(self, file: BinaryIO, squares: Squares, name: str) -> None:
        """name: for sentences."""
        self._file, self._squares, self._name = file, squares, name
        self._header = len(ply_header(squares.points))
        self._middle = (squares.corner + 0.5) * SQUARE
        self._kept = np.ones(len(squares.count), np.bool_)
        self._here = self._kept.copy()

    @staticmethod
    def set_aside(chunks: Chunks) -> VoxelArchive | None:
        """An archive in a temporary file; None where no disk takes it."""
        folder = folder_on_disk()
        if folder is None:
            return None
        file = tempfile.TemporaryFile(prefix="recon4d_map_", dir=folder)
        try:
            return VoxelArchive(file, write_squares(file, chunks), "the map of before")  # type: ignore[arg-type]
        except OSError:
            file.close()
            return None

    @property
    def count(self) -> int:
        """Points that are still here."""
        return int(self._squares.count[self._here].sum())

    def near(
        self, position: NDArray[np.float64], radius: float, budget: int
    ) -> Iterator[NDArray[np.void]]:
        """Points of squares within radius (m) of a position [3], nearest first, until there are
        `budget` of them. Raises MapError where the file cannot be read."""
        index = np.flatnonzero(self._here)
        distance = np.abs(self._middle[index] - position[:2]).max(axis=1)
        close = distance < radius + SQUARE / 2
        for i in index[close][np.argsort(distance[close], kind="stable")].tolist():
            points = self._read(i)
            self._here[i] = False
            yield points
            budget -= len(points)
            if budget <= 0:
                return

    def rest(self) -> Iterator[NDArray[np.void]]:
        """Raises MapError."""
        for i in np.flatnonzero(self._here).tolist():
            yield self._read(i)

    def whole(self) -> VoxelArchive:
        """Another one of the same file, of which nothing was asked yet."""
        return VoxelArchive(self._file, self._squares, self._name)

    def all_back(self) -> None:
        """As if nothing had been asked for since the last `without_those_read`."""
        self._here[:] = self._kept

    def without_those_read(self) -> None:
        """What was asked for is elsewhere now, for good."""
        self._kept[:] = self._here

    def close(self) -> None:
        self._file.close()

    def _read(self, i: int) -> NDArray[np.void]:
        size = PLY_POINT.itemsize
        wanted = int(self._squares.count[i]) * size
        try:
            data = os.pread(
                self._file.fileno(), wanted, self._header + int(self._squares.start[i]) * size
            )
        except OSError as error:
            raise MapError(f"map {self._name} can no longer be read: {error.strerror}") from None
        if len(data) != wanted:
            raise MapError(f"map {self._name} can no longer be read: its voxels are truncated")
        return np.frombuffer(data, PLY_POINT)


class Archive:
    """Voxels at rest in several files, as one. A map that is set aside keeps what lies in its files
    where it is, and gets another one for what was in memory."""

    def __init__(self, layers: Sequence[VoxelArchive]) -> None:
        self._layers = list(layers)

    def and_another(self) -> Archive:
        """What is here still, as a new one, to which a layer can be added."""
        for layer in self._layers:
            layer.without_those_read()
        return Archive(self._layers)

    def add(self, layer: VoxelArchive) -> None:
        self._layers.append(layer)

    @property
    def count(self) -> int:
        """As `VoxelArchive.count`."""
        return sum(layer.count for layer in self._layers)

    def near(
        self, position: NDArray[np.float64], radius: float, budget: int
    ) -> Iterator[NDArray[np.void]]:
        """As `VoxelArchive.near`, layer by layer."""
        for layer in self._layers:
            for points in layer.near(position, radius, budget):
                yield points
                budget -= len(points)
            if budget <= 0:
                return

    def rest(self) -> Iterator[NDArray[np.void]]:
        """Raises MapError."""
        for layer in self._layers:
            yield from layer.rest()

    def all_back(self) -> None:
        """As `VoxelArchive.all_back`."""
        for layer in self._layers:
            layer.all_back()


def read_squares(folder: Path, table: str, points: str) -> tuple[BinaryIO, Squares]:
    """A file of write_squares and its table (.npy), checked against each other. Raises OSError,
    ValueError."""
    squares = Squares.of(np.load(folder / table, allow_pickle=False))
    file = open(folder / points, "rb")
    expected = len(ply_header(squares.points)) + squares.points * PLY_POINT.itemsize
    if os.fstat(file.fileno()).st_size != expected:
        file.close()
        raise ValueError(f"{points} has not the {squares.points} points that {table} tells of")
    return file, squares
