"""Where our own data files are: in a source checkout beside the package, in an installation under
share/recon4d_ros; and how files are put into their place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recon4d_ros.errors import OutputError, Recon4dError


def user_path(path: str | Path) -> Path:
    """A path as a user writes it: `~` is the home folder, wherever it was written (an option's
    value after `=`, a YAML file, where no shell has seen it)."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody's home, or none: then it is a name like any other
        return Path(path)


def make_folder(path: Path) -> Path:
    """`path`, which is a folder now. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


@contextmanager
def beside(path: Path, what: str) -> Iterator[Path]:
    """A file beside `path` to be written, which is then put into its place (atomic), or taken away
    if that fails. what: for the sentence. Raises OutputError."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield new
        os.replace(new, path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise OutputError(
            f"cannot write {what} {path}: {error.strerror or error} (expected a folder that exists,"
            " can be written and has room)"
        ) from None


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


def cache() -> Path:
    """The folder for what can be made again: $XDG_CACHE_HOME/recon4d_ros, ~/.cache/recon4d_ros
    without."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()) / "recon4d_ros"
