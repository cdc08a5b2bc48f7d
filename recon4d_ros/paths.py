"""Where our own data files are: in a source checkout beside the package, in an installation under
share/recon4d_ros."""

from __future__ import annotations

import os
from pathlib import Path

from recon4d_ros.errors import Recon4dError


def share() -> Path:
    """The folder that holds launch/, config/ and engines/."""
    package = Path(__file__).resolve().parent
    candidates = [package.parent]
    candidates += [prefix / "share/recon4d_ros" for prefix in package.parents]
    candidates += [
        Path(prefix) / "share/recon4d_ros"
        for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        if prefix
    ]
    for folder in candidates:
        if (folder / "config").is_dir() and (folder / "engines").is_dir():
            return folder
    raise Recon4dError(
        "config/ and engines/ of recon4d_ros are in none of"
        f" {', '.join(str(c) for c in candidates)}: is the package installed?"
    )


def engines() -> Path:
    """The folder of the shipped engines."""
    return share() / "engines"


def rigs() -> Path:
    """The folder of the shipped rig files."""
    return share() / "config/rigs"


def cache() -> Path:
    """The folder for what can be made again: $XDG_CACHE_HOME/recon4d_ros, ~/.cache/recon4d_ros
    without."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()) / "recon4d_ros"
