"""Where our own data files are: in a source checkout beside the package, in an installation under
share/recon4d_ros."""

from __future__ import annotations

import os
from pathlib import Path

from recon4d_ros.errors import Recon4dError


def user_path(path: str | Path) -> Path:
    """A path as a user writes it: `~` is the home folder, wherever it was written (an option's
    value after `=`, a YAML file, where no shell has seen it)."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody's home, or none: then it is a name like any other
        return Path(path)


def shown(path: str | Path) -> str:
    """A path as text that can be written anywhere: in a locale that is not UTF-8 Python has the
    bytes of other names as halves of characters, which no font and no file takes."""
    return os.fsencode(path).decode("utf-8", "replace")


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
