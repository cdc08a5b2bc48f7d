"""A map on disk.

    map.json        format, version, what it was made with; size and SHA-256 of the other files
    rig.yaml        the calibration
    voxels.ply      the static world, ordered by squares of the ground; any viewer of PLY opens it
    squares.npy     [B, 4] int64: each square's corner, and where its points begin and how many
    keyframes.npz   poses, mounts, stamps and numbers of features
    features.bin    the keyframes' features (keyframes.FEATURE)
    vocabulary.npy  [V, 32] uint8: the words that keyframes are looked up by
    grid.npz        the occupancy grid (types.GridTiles; its tiles' bytes one after another)
    thumbnails/     what the cameras saw, for people; not checked

It is written beside its place and renamed, so nobody ever sees half of one. A file beside it
(`.NAME.lock`) says who may write it.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.rig import load_rig, save_rig
from recon4d_ros.errors import CalibrationError, MapError, OutputError
from recon4d_ros.localization.features import Orb
from recon4d_ros.localization.keyframes import FEATURE, Keyframe
from recon4d_ros.localization.relocalizer import apart
from recon4d_ros.localization.vocabulary import Vocabulary
from recon4d_ros.mapping.archive import Chunks, VoxelArchive, read_squares, write_squares
from recon4d_ros.types import GridTiles, Rig

FORMAT, VERSION = "recon4d map", 2
MAP, RIG, VOXELS, SQUARES = "map.json", "rig.yaml", "voxels.ply", "squares.npy"
FRAMES, FEATURES, WORDS, GRID, THUMBNAILS = (
    "keyframes.npz",
    "features.bin",
    "vocabulary.npy",
    "grid.npz",
    "thumbnails",
)
CHECKED = (RIG, VOXELS, SQUARES, FRAMES, FEATURES, WORDS, GRID)
_LARGEST = 1_000_000  # bytes that a map.json has at most
# by how much a calibration may have been improved since, and it is still the same rig
_FOCAL, _SHIFT, _TURN = 0.05, 0.2, np.radians(5.0)
_AT_CWD, _EXCHANGE = -100, 2  # of renameat2(2)


@dataclass(frozen=True)
class MapFolder:
    """A map that was opened: its keyframes, the file of their features, its voxels and its grid
    (None where it was saved without one). read_only: why it may not be written, empty if it
    may."""

    path: Path
    frames: list[Keyframe]
    features: BinaryIO
    feature_count: int
    vocabulary: Vocabulary
    archive: VoxelArchive
    grid: GridTiles | None
    lock: Lock

    @property
    def read_only(self) -> str:
        return self.lock.refused

    def close(self) -> None:
        self.features.close()
        self.archive.close()
        self.lock.close()


class Lock:
    """Who may write a map folder: the first who holds its lock, until it is closed or the process
    ends. refused: why this is not the one, or empty."""

    def __init__(self, folder: Path) -> None:
        self.refused = ""
        self._descriptor = -1
        folder = folder.absolute()
        path = folder.parent / f".{folder.name}.lock"
        try:
            if folder.exists() and not os.access(folder, os.W_OK):
                raise PermissionError(0, "Permission denied")
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            self.refused = "another process has it open for writing"
        except OSError as error:
            self.close()
            self.refused = f"it cannot be written: {error.strerror}"

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_map(path: Path) -> bool:
    """Whether a folder looks like a map of ours."""
    return (path / MAP).is_file()


def open_map(path: Path, rig: Rig) -> MapFolder:
    """Raises MapError with one sentence if there is none, or it is damaged, of another version, or
    of another rig than `rig`."""
    try:
        told = _told(path)
        _check_files(path, told)
        _check_rig(path, rig)
        frames, count = _frames(path, len(rig.cameras))
        features = open(path / FEATURES, "rb")
        if os.fstat(features.fileno()).st_size != count * FEATURE.itemsize:
            raise ValueError(f"{FEATURES} has not the {count} features that {FRAMES} tells of")
        words = np.load(path / WORDS, allow_pickle=False)
        if words.ndim != 2 or words.shape[1] != Orb.length or words.dtype != np.uint8:
            raise ValueError(f"{WORDS} has another layout")
        if not len(words) or not frames:
            raise ValueError("it has no keyframe")
        grid = _grid(path)
        voxels, squares = read_squares(path, SQUARES, VOXELS)
    except MapError:
        raise
    except OSError as error:
        file = Path(str(error.filename or path))
        if file.parent == path and is_map(path):
            raise MapError(
                f"map {path} is damaged: {file.name} cannot be read: {error.strerror}"
            ) from None
        raise MapError(
            f"map {path} cannot be read: {error.strerror or error} (expected a folder that"
            " ~/save_map or `recon4d replay --save-map` wrote)"
        ) from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise MapError(f"map {path} is damaged: {' '.join(str(error).split())}") from None
    return MapFolder(
        path,
        frames,
        features,
        count,
        Vocabulary(words),
        VoxelArchive(voxels, squares, str(path)),
        grid,
        Lock(path),
    )


def _told(path: Path) -> dict[str, Any]:
    """What map.json says."""
    if path.is_dir() and not (path / MAP).exists():
        raise MapError(f"{path} is no map: it has no {MAP}")
    with open(path / MAP, "rb") as file:
        text = file.read(_LARGEST)
    try:
        told = json.loads(text)
        if told["format"] != FORMAT:
            raise ValueError(f"its format is {told['format']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MapError(f"map {path} is damaged: {MAP} cannot be understood: {error}") from None
    if told.get("version") != VERSION:
        raise MapError(
            f"map {path} is of version {told.get('version')}: expected {VERSION}, which this"
            " version of recon4d_ros reads"
        )
    if told.get("descriptor") != Orb.name:
        raise MapError(
            f"map {path} has descriptors of kind {told.get('descriptor')!r}: expected {Orb.name!r}"
        )
    return told


def _check_files(path: Path, told: dict[str, Any]) -> None:
    for name in CHECKED:
        expected = told["files"][name]
        size, digest = _digest(path / name)
        if size != int(expected["bytes"]):
            raise MapError(
                f"map {path} is damaged: {name} has {size} bytes, {MAP} says {expected['bytes']}"
            )
        if digest != expected["sha256"]:
            raise MapError(f"map {path} is damaged: the checksum of {name} is another")


def _digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _check_rig(path: Path, rig: Rig) -> None:
    try:
        theirs = load_rig(path / RIG)
    except CalibrationError as error:
        raise ValueError(str(error)) from None
    if theirs.names != rig.names:
        raise MapError(
            f"map {path} is of another rig: its cameras are {', '.join(theirs.names)}, those here"
            f" are {', '.join(rig.names)}"
        )
    for ours, other in zip(rig.cameras, theirs.cameras, strict=True):
        what = ""
        metres, radians = apart(ours.T_base_camera, other.T_base_camera)
        if (ours.width, ours.height) != (other.width, other.height):
            what = f"{other.width}x{other.height} pixels, here {ours.width}x{ours.height}"
        elif ours.distortion_model != other.distortion_model:
            what = f"a {other.distortion_model} lens, here {ours.distortion_model}"
        elif np.abs(np.diag(ours.k) / np.diag(other.k) - 1.0).max() > _FOCAL:
            what = f"a focal length of {other.k[0, 0]:.0f} pixels, here {ours.k[0, 0]:.0f}"
        elif metres > _SHIFT or radians > _TURN:
            what = f"another mount, {metres:.2f} m and {np.degrees(radians):.0f} degrees away"
        if what:
            raise MapError(f"map {path} is of another rig: its camera {other.name} has {what}")


def _frames(path: Path, cameras: int) -> tuple[list[Keyframe], int]:
    """The keyframes, and how many features they have."""
    with np.load(path / FRAMES, allow_pickle=False) as file:
        stamps, poses, mounts, counts = (
            file[name] for name in ("stamp_ns", "T_map_base", "T_base_camera", "features")
        )
    number = len(stamps)
    if (
        stamps.shape != (number,)
        or counts.shape != (number,)
        or poses.shape != (number, 4, 4)
        or mounts.shape != (number, cameras, 4, 4)
        or not (np.isfinite(poses).all() and np.isfinite(mounts).all())
        or (counts < 0).any()
    ):
        raise ValueError(f"{FRAMES} has another layout")
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(int).tolist()
    images = [path / THUMBNAILS / f"{i:06d}.jpg" for i in range(number)]
    frames = [
        Keyframe(int(stamp), pose, mount, start, int(count), image)
        for stamp, pose, mount, start, count, image in zip(
            stamps, poses, mounts, starts, counts, images, strict=False
        )
    ]
    return frames, starts[-1]


def _grid(path: Path) -> GridTiles | None:
    with np.load(path / GRID, allow_pickle=False) as file:
        resolution, index, motion, level, sizes, data = (
            file[name] for name in ("resolution", "index", "motion", "level", "sizes", "data")
        )
    number = len(sizes)
    if (
        sizes.shape != (number,)
        or index.shape != (number, 2)
        or motion.shape != (number, 4, 4)
        or level.shape != (number,)
        or resolution.shape != ()
        or data.dtype != np.uint8
        or not (np.isfinite(motion).all() and np.isfinite(level).all())
        or (sizes < 0).any()
        or data.shape != (sizes.sum(),)
    ):
        raise ValueError(f"{GRID} has another layout")
    if not number:
        return None
    ends = np.cumsum(sizes).tolist()
    whole = data.tobytes()
    tiles = tuple(whole[a:b] for a, b in zip([0, *ends], ends, strict=False))
    return GridTiles(float(resolution), index.astype(np.int64), motion, level, tiles)


def _write_grid(path: Path, grid: GridTiles | None) -> None:
    tiles = grid.data if grid is not None else ()
    np.savez(
        path,
        resolution=np.float64(grid.resolution if grid is not None else 0.0),
        index=grid.index if grid is not None else np.zeros((0, 2), np.int64),
        motion=grid.motion if grid is not None else np.zeros((0, 4, 4)),
        level=grid.level if grid is not None else np.zeros(0),
        sizes=np.array([len(tile) for tile in tiles], np.int64),
        data=np.frombuffer(b"".join(tiles), np.uint8),
    )


@dataclass(frozen=True)
class Contents:
    """What a map folder is written from. features: bytes of each keyframe's features. thumbnails:
    of each, empty for none. voxel_size: m. grid: None for none."""

    rig: Rig
    frames: list[Keyframe]
    features: Iterable[bytes]
    thumbnails: Iterable[bytes]
    vocabulary: Vocabulary
    voxels: Chunks
    voxel_size: float
    grid: GridTiles | None = None


def save_map(path: Path, contents: Contents, lock: Lock | None = None) -> int:
    """Writes a map folder, in the place of one that is there; returns how many voxels. lock: of
    this folder, if the caller has it. Raises OutputError, and leaves what was there as it was."""
    mine = None
    path = path.absolute()
    beside = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        if lock is None:
            lock = mine = _lock_to_write(path)
        _check_held(lock, path)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        count = _write(beside, contents)
        _check_held(lock, path)  # writing takes a while, in which it may be given to another
        _put_in_place(beside, path)
        return count
    except OSError as error:
        raise OutputError(
            f"map {path} is not saved: {error.strerror or error} (expected a folder that can be"
            " written and has room)"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if mine is not None:
            mine.close()


def _check_held(lock: Lock, path: Path) -> None:
    """Raises OutputError."""
    if not lock.held:
        why = lock.refused or "its lock was given up, so that another one may write it"
        raise OutputError(f"map {path} is not saved: {why}")


def check_place(path: Path) -> None:
    """Raises OutputError where a map could not be saved there now."""
    _lock_to_write(path.absolute()).close()


def _lock_to_write(path: Path) -> Lock:
    """Raises OutputError where something else is there, or it may not be written."""
    try:
        if path.is_dir() and any(path.iterdir()) and not is_map(path):
            raise OutputError(f"map {path} is not saved: the folder has other things in it")
        if path.exists() and not path.is_dir():
            raise OutputError(f"map {path} is not saved: a file of that name is there")
    except OSError as error:
        raise OutputError(f"map {path} is not saved: {error.strerror or error}") from None
    lock = Lock(path)
    if lock.refused:
        raise OutputError(f"map {path} is not saved: {lock.refused}")
    return lock


def _write(folder: Path, contents: Contents) -> int:
    rig, frames = contents.rig, contents.frames
    save_rig(rig, folder / RIG)
    with open(folder / VOXELS, "wb") as file:
        squares = write_squares(file, contents.voxels)
        os.fsync(file.fileno())
    np.save(folder / SQUARES, squares.table())
    np.savez(
        folder / FRAMES,
        stamp_ns=np.array([frame.stamp_ns for frame in frames], np.int64),
        T_map_base=_stacked([frame.T_map_base for frame in frames], (4, 4)),
        T_base_camera=_stacked([frame.T_base_camera for frame in frames], (len(rig.cameras), 4, 4)),
        features=np.array([frame.count for frame in frames], np.int64),
    )
    with open(folder / FEATURES, "wb") as file:
        for block in contents.features:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / WORDS, contents.vocabulary.words)
    _write_grid(folder / GRID, contents.grid)
    (folder / THUMBNAILS).mkdir()
    for number, thumbnail in enumerate(contents.thumbnails):
        if thumbnail:
            (folder / THUMBNAILS / f"{number:06d}.jpg").write_bytes(thumbnail)
    files = {}
    for name in CHECKED:
        size, digest = _digest(folder / name)
        files[name] = {"bytes": size, "sha256": digest}
    told = {
        "format": FORMAT,
        "version": VERSION,
        "descriptor": Orb.name,
        "rig": rig.name,
        "cameras": list(rig.names),
        "voxel_size": contents.voxel_size,
        "voxels": squares.points,
        "keyframes": len(frames),
        "first_stamp_ns": min((frame.stamp_ns for frame in frames), default=0),
        "last_stamp_ns": max((frame.stamp_ns for frame in frames), default=0),
        "files": files,
    }
    with open(folder / MAP, "w", encoding="utf-8") as text:
        text.write(json.dumps(told, indent=1) + "\n")
        text.flush()
        os.fsync(text.fileno())
    return squares.points


def _stacked(arrays: list[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.stack(arrays) if arrays else np.zeros((0, *shape))


def _put_in_place(beside: Path, path: Path) -> None:
    """At no time is there no map: the two change places at once, where the file system can."""
    if not path.exists():
        os.replace(beside, path)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):
        names = os.fsencode(beside), os.fsencode(path)
        if libc.renameat2(_AT_CWD, names[0], _AT_CWD, names[1], _EXCHANGE) == 0:
            return
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    try:
        os.replace(beside, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
