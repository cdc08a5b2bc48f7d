"""Which engine is meant: the one that was named, or the shipped one that fits the rig. For the
commands and the node alike."""

from __future__ import annotations

from pathlib import Path

from recon4d_ros import paths
from recon4d_ros.engine import find_engine
from recon4d_ros.errors import EngineError
from recon4d_ros.types import Rig


class NoEngineFits(EngineError):
    """No shipped engine fits a rig; `export` makes one (exit code 3 so that `make` can install the
    exporter)."""

    exit_code = 3


def choose_engine(wanted: str, rig: Rig) -> Path:
    """The folder of the engine named, or of the shipped one that fits. Raises EngineError,
    NoEngineFits."""
    if wanted:
        folder = paths.user_path(wanted)
        return folder if folder.is_dir() or "/" in wanted else paths.engines() / wanted
    found = find_engine(rig, paths.engines())
    if found is None:
        sizes = sorted({f"{camera.width}x{camera.height}" for camera in rig.cameras})
        raise NoEngineFits(
            f"no shipped engine fits rig {rig.name} ({len(rig.cameras)} cameras of"
            f" {', '.join(sizes)}): `recon4d export --rig` makes one (see `recon4d export --help`)"
        )
    return found
