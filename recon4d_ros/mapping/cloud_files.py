"""Point clouds on disk: PLY (binary little endian) and PCD (binary), written so that a reader never
sees half a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import OutputError, Recon4dError
from recon4d_ros.paths import beside

SUFFIXES = (".ply", ".pcd")
PLY_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("weight", "<f4")])  # packed: 19 bytes
_PCD_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4"), ("weight", "<f4")])
_PLY_PROPERTIES = (
    "float x",
    "float y",
    "float z",
    "uchar red",
    "uchar green",
    "uchar blue",
    "float weight",
)


@dataclass(frozen=True)
class Cloud:
    """xyz: [K, 3] float32 metres. rgb: [K, 3] uint8. weight: [K] float32, how much was seen of each
    point."""

    xyz: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.xyz)


def points_of(cloud: Cloud) -> NDArray[np.void]:
    """The cloud as one packed array of PLY_POINT."""
    packed = np.empty(len(cloud), PLY_POINT)
    packed["xyz"], packed["rgb"], packed["weight"] = cloud.xyz, cloud.rgb, cloud.weight
    return packed


def check_suffix(path: Path) -> None:
    """Raises OutputError where the suffix says no format that we write."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"cannot write map {path}: the suffix is {path.suffix or 'missing'!r}, expected"
            f" {' or '.join(SUFFIXES)}"
        )


def write_cloud(path: str | Path, cloud: Cloud) -> None:
    """Writes a cloud as the suffix says (.ply or .pcd). Raises OutputError with one sentence where
    it cannot."""
    write_points(path, (points_of(cloud),), len(cloud))


def write_points(path: str | Path, blocks: Iterable[NDArray[np.void]], count: int) -> None:
    """Writes `count` points that come in blocks of PLY_POINT, beside the file first and then into
    its place (atomic)."""
    path = Path(path)
    check_suffix(path)
    with beside(path, "map") as new, open(new, "wb") as file:
        if path.suffix.lower() == ".ply":
            _write_ply(file, blocks, count)
        else:
            _write_pcd(file, blocks, count)
        file.flush()
        os.fsync(file.fileno())


def ply_header(count: int) -> bytes:
    """Of a PLY of `count` PLY_POINTs."""
    properties = "\n".join(f"property {name}" for name in _PLY_PROPERTIES)
    return (
        "ply\nformat binary_little_endian 1.0\ncomment recon4d_ros static map, metres\n"
        f"element vertex {count}\n{properties}\nend_header\n"
    ).encode()


def _write_ply(file: BinaryIO, blocks: Iterable[NDArray[np.void]], count: int) -> None:
    file.write(ply_header(count))
    for block in blocks:
        file.write(np.ascontiguousarray(block).view(np.uint8).data)


def _write_pcd(file: BinaryIO, blocks: Iterable[NDArray[np.void]], count: int) -> None:
    file.write(
        "# .PCD v0.7 - recon4d_ros static map, metres\nVERSION 0.7\nFIELDS x y z rgb weight\n"
        "SIZE 4 4 4 4 4\nTYPE F F F U F\nCOUNT 1 1 1 1 1\n"
        f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA binary\n".encode()
    )
    for block in blocks:
        packed = np.empty(len(block), _PCD_POINT)
        rgb = block["rgb"].astype(np.uint32)
        packed["xyz"], packed["weight"] = block["xyz"], block["weight"]
        packed["rgb"] = (rgb[:, 0] << 16) | (rgb[:, 1] << 8) | rgb[:, 2]
        file.write(packed.view(np.uint8).data)


def read_cloud(path: str | Path) -> Cloud:
    """Reads what `write_cloud` wrote. Raises Recon4dError where the file is missing, truncated or
    of another layout."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _read_ply(file, path) if path.suffix.lower() == ".ply" else _read_pcd(file, path)
    except OSError as error:
        raise Recon4dError(f"cannot read cloud {path}: {error.strerror}") from None


def _header(file: BinaryIO, last: str) -> Iterator[str]:
    for _ in range(100):  # a header is a dozen lines: anything longer is another kind of file
        line = file.readline(1000).decode("ascii", "replace").strip()
        yield line
        if line.startswith(last):
            return


def _count(lines: list[str], word: str) -> int | None:
    """The number of points that a header says after `word`; None if it says none."""
    said = [line.removeprefix(word) for line in lines if line.startswith(word)]
    return int(said[0]) if said and said[0].isascii() and said[0].isdigit() else None


def _body(file: BinaryIO, dtype: np.dtype, count: int, path: Path) -> NDArray[np.void]:
    data = file.read(min(count * dtype.itemsize, os.fstat(file.fileno()).st_size))
    if len(data) < count * dtype.itemsize:
        raise Recon4dError(
            f"cloud {path} is truncated: {len(data) // dtype.itemsize} points are there, its header"
            f" says {count}"
        )
    return np.frombuffer(data, dtype, count)


def _read_ply(file: BinaryIO, path: Path) -> Cloud:
    lines = list(_header(file, "end_header"))
    properties = tuple(
        line.removeprefix("property ") for line in lines if line.startswith("property ")
    )
    count = _count(lines, "element vertex ")
    if (
        lines[:2] != ["ply", "format binary_little_endian 1.0"]
        or properties != _PLY_PROPERTIES
        or count is None
    ):
        raise Recon4dError(
            f"cloud {path} is no PLY of ours: expected binary_little_endian with"
            f" {', '.join(_PLY_PROPERTIES)}"
        )
    body = _body(file, PLY_POINT, count, path)
    return Cloud(body["xyz"].copy(), body["rgb"].copy(), body["weight"].copy())


def _read_pcd(file: BinaryIO, path: Path) -> Cloud:
    lines = list(_header(file, "DATA"))
    count = _count(lines, "POINTS ")
    if "FIELDS x y z rgb weight" not in lines or lines[-1] != "DATA binary" or count is None:
        raise Recon4dError(
            f"cloud {path} is no PCD of ours: expected binary data with x y z rgb weight"
        )
    body = _body(file, _PCD_POINT, count, path)
    rgb = np.stack([body["rgb"] >> 16, body["rgb"] >> 8, body["rgb"]], axis=1).astype(np.uint8)
    return Cloud(body["xyz"].copy(), rgb, body["weight"].copy())
