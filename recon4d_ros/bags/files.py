"""What is wrong with a bag's files, before anything is read from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recon4d_ros.errors import BagError

_MCAP_MAGIC = b"\x89MCAP0\r\n"
_SQLITE_MAGIC = b"SQLite format 3\x00"


def check_files(path: Path) -> None:
    """Raises BagError, with one sentence, for the faults that have a name: missing, not a bag,
    empty, truncated."""
    if not path.exists():
        raise BagError(
            f"bag {path} does not exist: expected a rosbag2 folder or an .mcap or .db3 file"
        )
    checks: dict[str, Callable[[Path], str]] = {".mcap": _mcap_fault, ".db3": _sqlite_fault}
    if path.is_file() and path.suffix not in checks:
        raise BagError(
            f"bag {path} has an unknown suffix: expected a rosbag2 folder or an .mcap or .db3 file"
            f"{_ros1_hint(path)}"
        )
    files = _storage_files(path)
    named = path.is_file() or (path / "metadata.yaml").exists()
    if not files and not named and not list(path.glob("*.zstd")):
        raise BagError(
            f"bag {path} holds no .mcap or .db3 file: expected a rosbag2"
            f" folder{_folders_hint(path)}{_ros1_hint(path)}"
        )
    for file in files:
        try:
            fault = checks[file.suffix](file)
        except OSError as error:
            raise BagError(f"bag {file} cannot be read: {error.strerror}") from error
        if fault:
            raise BagError(f"bag {file} {fault}")


def _storage_files(path: Path) -> list[Path]:
    return sorted([*path.glob("*.mcap"), *path.glob("*.db3")]) if path.is_dir() else [path]


def _folders_hint(path: Path) -> str:
    inside = sorted(file.parent.name for file in path.glob("*/metadata.yaml"))
    more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
    return f", as those in it: {', '.join(inside[:5])}{more}" if inside else ""


def _ros1_hint(path: Path) -> str:
    ros1 = path.suffix == ".bag" or (path.is_dir() and any(path.glob("*.bag")))
    return " (`rosbags-convert` makes one of a ROS 1 bag)" if ros1 else ""


def _mcap_fault(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        stream.seek(max(0, size - 8))
        end = stream.read(8)
    if not size:
        return "is empty: expected an MCAP file"
    if start != _MCAP_MAGIC[: len(start)]:
        return "is not an MCAP file: its first bytes are wrong"
    if end != _MCAP_MAGIC or size < 16:
        return (
            "is truncated: the end that its recorder writes on closing is missing (`mcap recover`"
            " saves what is there)"
        )
    return ""


def _sqlite_fault(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = stream.read(100)  # SQLite file format 1.3: page size at 16, number of pages at 28
    if not size:
        return "is empty: expected an SQLite file"
    if not header.startswith(_SQLITE_MAGIC[: len(header)]):
        return "is not an SQLite file: its first bytes are wrong"
    page = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    if size < max(expected, 100):
        return (
            f"is truncated: it has {size} of {expected} bytes (`sqlite3 FILE .recover` saves what"
            " is there)"
        )
    return ""
