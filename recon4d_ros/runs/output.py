"""Files that are written for a user: what the file system refuses becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recon4d_ros.errors import OutputError


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Whatever the file system refuses in there (no permission, no room) is an OutputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write output folder {folder}: {reason} (expected one that can be written and"
            " has room)"
        ) from error
