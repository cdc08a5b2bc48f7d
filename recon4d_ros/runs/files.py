"""The files of a run's folder, both ways: what is written is what is read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros.depth_png import decode_depth, encode_depth
from recon4d_ros.errors import Recon4dError
from recon4d_ros.evaluation.objects import ObjectsAt
from recon4d_ros.geometry import quaternion
from recon4d_ros.types import DynamicObject, Tracking


def tum_line(stamp_ns: int, pose: NDArray[np.float64]) -> str:
    """`seconds x y z qx qy qz qw`, with all nanoseconds."""
    values = (
        " ".join(f"{value:.6f}" for value in pose[:3, 3])
        + " "
        + " ".join(f"{value:.9f}" for value in quaternion(pose))
    )
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d} {values}\n"


def read_trajectory(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Stamps [F] in ns and poses [F, 4, 4] of a TUM file. The stamps keep their nanoseconds. Raises
    Recon4dError."""
    stamps, rows = [], []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip() and not line.startswith("#"):
                first, *rest = line.split()
                if len(rest) != 7:
                    raise Recon4dError(
                        f"trajectory {path}, line {number}: expected seconds x y z qx qy qz qw, got"
                        f" {len(rest) + 1} values"
                    )
                whole, _, fraction = first.partition(".")
                stamps.append(int(whole) * 1_000_000_000 + int((fraction + "0" * 9)[:9]))
                rows.append([float(value) for value in rest])
    except OSError as error:
        raise Recon4dError(
            f"trajectory {path} cannot be read: {error.strerror} (expected the folder of a run)"
        ) from None
    except ValueError as error:
        raise Recon4dError(f"trajectory {path} is damaged: {error}") from None
    values = np.array(rows).reshape(-1, 7)
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    if len(values):
        poses[:, :3, :3] = Rotation.from_quat(values[:, 3:]).as_matrix()
        poses[:, :3, 3] = values[:, :3]
    return np.array(stamps, np.int64), poses


def object_entry(o: DynamicObject) -> dict[str, Any]:
    """One object in map as objects.jsonl has it: metres, m/s, radians; null where a covariance is
    not known."""

    def numbers(array: NDArray) -> Any:
        return without_nan(np.round(np.asarray(array, np.float64), 4).tolist())

    return {
        "id": o.id,
        "position": numbers(o.position),
        "yaw": round(float(o.yaw), 4),
        "size": numbers(o.size),
        "velocity": numbers(o.velocity),
        "position_covariance": numbers(o.position_covariance),
        "velocity_covariance": numbers(o.velocity_covariance),
        "confidence": round(float(o.confidence), 4),
        "age": int(o.age),
        "missed": int(o.missed),
    } | (
        {"class_name": o.class_name, "class_score": round(float(o.class_score), 4)}
        if o.class_name
        else {}
    )


def read_objects(path: Path) -> Iterator[ObjectsAt]:
    """One entry per line of objects.jsonl. Raises Recon4dError."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = json.loads(line)
                    every = entry["objects"]
                    names = ("position", "velocity", "size")
                    columns = {
                        name: np.array([o[name] for o in every], np.float64).reshape(-1, 3)
                        for name in names
                    }
                    yield ObjectsAt(
                        int(entry["stamp_ns"]),
                        np.array([o["id"] for o in every], np.int64),
                        yaw=np.array([o["yaw"] for o in every], np.float64),
                        **columns,
                    )
                except (ValueError, KeyError, TypeError) as error:
                    raise Recon4dError(
                        f"objects {path}, line {number} is damaged: {error}"
                    ) from None
    except OSError as error:
        raise Recon4dError(f"objects {path} cannot be read: {error.strerror}") from None


def read_tracking(path: Path) -> dict[int, tuple[Tracking, str]]:
    """Stamp (ns) -> state of the pose from there on, and its reason, of tracking.jsonl; empty where
    there is none. Raises Recon4dError."""
    states: dict[int, tuple[Tracking, str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return states
    except (OSError, ValueError) as error:
        raise Recon4dError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            state = Tracking(entry["tracking"]), str(entry["reason"])
            states[int(entry["stamp_ns"])] = state
        except (ValueError, KeyError, TypeError) as error:
            raise Recon4dError(f"{path}, line {number} is damaged: {error}") from None
    return states


def write_depth(path: Path, depth: NDArray[np.float32]) -> None:
    """16 bit PNG with metres x 256; 0 where there is no depth or it is beyond 255.99 m. Raises
    OSError."""
    path.write_bytes(encode_depth(depth))


def read_depth(path: Path) -> NDArray[np.float32] | None:
    """Depth [height, width] in m, NaN = none, of a 16 bit PNG with m x 256; None where there is no
    such file."""
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.exists() else None
    return None if values is None else decode_depth(np.asarray(values))


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """8 bit PNG, 255 = moving. Raises OSError."""
    path.write_bytes(cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255))[1].tobytes())


def read_mask(path: Path) -> NDArray[np.bool_] | None:
    """Mask [height, width], True on dynamic objects; None where there is no such file."""
    values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.exists() else None
    return None if values is None else np.asarray(values) > 127


def without_nan(value: Any) -> Any:
    """The same tree with null for numbers that are not finite: JSON has none."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
