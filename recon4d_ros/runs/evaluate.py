"""A run's folder against the truth in its bag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.rig import BASE_FRAME
from recon4d_ros.errors import Recon4dError
from recon4d_ros.evaluation.evaluator import Evaluator
from recon4d_ros.evaluation.objects import objects_at
from recon4d_ros.grids import read_map
from recon4d_ros.mapping import read_cloud
from recon4d_ros.runs.files import read_depth, read_mask, read_objects, read_trajectory
from recon4d_ros.runs.writer import GRID
from recon4d_ros.types import Rig


def evaluate_run(
    folder: str | Path,
    bag: str | Path,
    rig: Rig | None = None,
    base_frame: str = BASE_FRAME,
    **found: Any,
) -> dict:
    """Scores of a run's folder against the truth in its bag; depth and masks where the run kept its
    frames (--save-frames).

    rig: the one that the run used, by default the bag's as seen from base_frame; found: what else
    `BagReader.rig` takes. Raises Recon4dError with one sentence if folder or bag cannot be read.
    """
    folder = Path(folder)
    stamps, poses = read_trajectory(folder / "trajectory.tum")
    with BagReader(bag) as reader:
        if not reader.info().has_ground_truth:
            raise Recon4dError(
                f"bag {bag} has no truth to compare with: expected topics /ground_truth/*"
            )
        rig = rig or reader.rig(base_frame=base_frame, **found)
    evaluator = Evaluator(bag, rig)
    saved = [_saved_stamps(folder / "depth" / name) for name in rig.names]
    objects = (
        {entry.stamp_ns: entry for entry in read_objects(folder / "objects.jsonl")}
        if (folder / "objects.jsonl").exists()
        else {}
    )
    for stamp, pose in zip(stamps.tolist(), poses, strict=True):
        own = np.array([_nearest(have, stamp) for have in saved], np.int64)
        files = [
            f"{name}/{image_stamp}.png"
            for name, image_stamp in zip(rig.names, own.tolist(), strict=True)
        ]
        evaluator.add(
            stamp,
            own,
            pose,
            partial(_read_nth, read_depth, folder / "depth", files),
            partial(_read_nth, read_mask, folder / "dynamic", files),
            objects.get(stamp, objects_at(stamp, ())),
        )
    map_file = next(
        (path for path in (folder / "map.ply", folder / "map.pcd") if path.exists()), None
    )
    grid_file = folder / f"{GRID}.yaml"
    return evaluator.finish(
        read_cloud(map_file).xyz if map_file else None,
        read_map(grid_file) if grid_file.exists() else None,
    )


def _read_nth(
    read: Callable[[Path], NDArray | None], folder: Path, files: Sequence[str], n: int
) -> NDArray | None:
    return read(folder / files[n])


def _saved_stamps(folder: Path) -> NDArray[np.int64]:
    return np.sort(
        np.array([int(path.stem) for path in folder.glob("*.png") if path.stem.isdigit()], np.int64)
    )


def _nearest(stamps: NDArray[np.int64], stamp: int) -> int:
    """The saved image of a frame set: images may be stamped a little apart from their set."""
    if not len(stamps):
        return stamp
    best = int(stamps[np.argmin(np.abs(stamps - stamp))])
    return best if abs(best - stamp) <= 50_000_000 else stamp
