"""The folder of a demo: an earlier demo in it is replaced, and a folder that is anybody else's is
refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from recon4d_ros.errors import OutputError
from recon4d_ros.runs.output import writing
from recon4d_ros.runs.writer import FILES, FOLDERS

MARKER = ".recon4d_demo"
CONTENTS = ("drive", "bag", "logs", "engine", "report.md", *FILES, *FOLDERS)


def check(out: Path, inputs: Iterable[Path]) -> None:
    """Changes nothing. Raises OutputError if `out` holds what no demo wrote, or one of the inputs
    that the demo is asked to take."""
    with writing(out):
        if out.exists() and not out.is_dir():
            raise OutputError(f"output folder {out} is a file: expected a folder, or none yet")
        if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
            raise OutputError(
                f"output folder {out} is not empty, and no demo wrote it: expected a new one, or"
                " that of an earlier demo"
            )
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise OutputError(
                f"{path} lies in the output folder {out}, which is emptied: expected another --out"
            )


def empty(out: Path) -> None:
    """A place for the results: what an earlier demo left is removed. Raises OutputError."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("`recon4d demo --out` of this folder replaces what is in it.\n")
        for name in CONTENTS:
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
