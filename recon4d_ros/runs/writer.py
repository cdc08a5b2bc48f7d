"""The folder that a run leaves: trajectory, map, objects, summary, picture, and every frame's depth
and masks where asked for.

What is written does not depend on the clock of the machine, but for the latencies in summary.json.
Lines are flushed as they come, so a run that is stopped leaves what it had.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from recon4d_ros.cameras.preprocess import Preprocessor
from recon4d_ros.errors import OutputError
from recon4d_ros.evaluation import Evaluator
from recon4d_ros.geometry import inverse
from recon4d_ros.grids import write_map
from recon4d_ros.localization import in_odom, moved_objects
from recon4d_ros.mapping import Cloud, read_cloud, write_cloud
from recon4d_ros.overview.recorder import OverviewRecorder
from recon4d_ros.paths import user_path
from recon4d_ros.runs.files import object_entry, tum_line, without_nan, write_depth, write_mask
from recon4d_ros.runs.output import writing
from recon4d_ros.types import DynamicObject, Occupancy, OccupancyGrid, Reconstruction, Rig

GRID = "occupancy_grid"
FILES = (
    "trajectory.tum",
    "objects.jsonl",
    "tracking.jsonl",
    "map.ply",
    "summary.json",
    "overview.png",
    f"{GRID}.pgm",
    f"{GRID}.yaml",
)
FOLDERS = ("depth", "dynamic")
OCCUPANCY = "occupancy"


class SavesMap(Protocol):
    """What has a map to save: the Mapper of a run, or a recording that heard one."""

    def save(self, path: Path) -> int:
        """Write the map; returns its number of points."""
        ...


class RunWriter:
    """`add` every frame set's result, then `finish` once. Raises OutputError with one sentence
    where the folder cannot be written."""

    def __init__(
        self,
        out: str | Path,
        *,
        rig: Rig,
        save_frames: bool = False,
        force: bool = False,
        evaluator: Evaluator | None = None,
    ) -> None:
        """out: must be new or empty, unless `force` (then the files of a run in it are replaced,
        and nothing else is touched).

        evaluator: where given, it scores each frame as it comes (with depth and masks, saved or
        not) and `finish` adds its metrics.
        """
        self.out = user_path(out)
        self._rig = rig
        self._save_frames = save_frames
        self._evaluator = evaluator
        self._recorder = OverviewRecorder(rig)
        self._corrected = False  # whether map is not odometry's frame
        self._prepare(force)
        with writing(self.out):
            self._trajectory = open(self.out / "trajectory.tum", "w", 1, "utf-8")
            self._objects = open(self.out / "objects.jsonl", "w", 1, "utf-8")
            self._tracking = open(self.out / "tracking.jsonl", "w", 1, "utf-8")
        self._state = ""

    def add(
        self,
        result: Reconstruction,
        preprocessor: Preprocessor,
        objects: tuple[DynamicObject, ...] | None = None,
    ) -> None:
        """One frame set: a line of the trajectory and of the objects, one of tracking where it is
        another than before, its images if they are kept, and its scores. objects: what
        objects.jsonl gets, where that is not the movers alone."""
        stamp = result.frame.stamp_ns
        with writing(self.out):
            self._trajectory.write(tum_line(stamp, result.pose.T_map_base))
            listed = result.motion.objects if objects is None else objects
            state = {"tracking": result.pose.tracking.value, "reason": result.pose.reason}
            if json.dumps(state) != self._state:
                self._state = json.dumps(state)
                self._tracking.write(json.dumps({"stamp_ns": stamp, **state}) + "\n")
            entry = {"stamp_ns": stamp, "objects": [object_entry(o) for o in listed]}
            self._objects.write(json.dumps(entry, separators=(",", ":")) + "\n")
            if self._save_frames:
                for n in np.flatnonzero(result.frame.present).tolist():
                    name, own = self._rig.names[n], int(result.frame.stamps_ns[n])
                    write_depth(
                        self.out / "depth" / name / f"{own}.png",
                        preprocessor.to_source(result.geometry.depth[n], n),
                    )
                    write_mask(
                        self.out / "dynamic" / name / f"{own}.png",
                        preprocessor.to_source(result.motion.mask[n], n),
                    )
        self._recorder.add(result, preprocessor)
        self._corrected |= bool((result.T_map_odom != np.eye(4)).any())
        if self._evaluator:  # its truth is laid over the drive's first pose: it wants no jump
            self._evaluator.add_reconstruction(_in_odom(result), preprocessor)

    def add_occupancy(self, occupancy: Occupancy) -> None:
        """occupancy/<stamp_ns>.ply: centres of the occupied voxels in base_link, the score as
        weight."""
        points, score = occupancy.occupied()
        grey = np.repeat(np.rint(255 * score)[:, None], 3, axis=1).astype(np.uint8)
        with writing(self.out):
            (self.out / OCCUPANCY).mkdir(exist_ok=True)
        write_cloud(self.out / OCCUPANCY / f"{occupancy.stamp_ns}.ply", Cloud(points, grey, score))

    def finish(
        self,
        mapper: SavesMap,
        summary: dict[str, Any],
        metrics: dict | None = None,
        grid: OccupancyGrid | None = None,
    ) -> dict[str, Any]:
        """Writes map, grid, summary and picture; returns the summary as written (with `map_points`,
        and `metrics` where there is truth)."""
        with writing(self.out):
            self._trajectory.close()
            self._objects.close()
            self._tracking.close()
        summary = summary | {"map_points": mapper.save(self.out / "map.ply")}
        cloud = read_cloud(self.out / "map.ply")
        if grid is not None:
            write_map(self.out / GRID, grid)
        if self._evaluator:
            # poses of odometry say nothing of a map that was corrected
            scored = (None, None) if self._corrected else (cloud.xyz, grid)
            metrics = self._evaluator.finish(*scored)
        if metrics is not None:
            summary["metrics"] = metrics
        with writing(self.out):
            (self.out / "summary.json").write_text(
                json.dumps(without_nan(summary), indent=1) + "\n", encoding="utf-8"
            )
        history = self._evaluator.history if self._evaluator else None
        # matplotlib takes half a second to import: not before there is something to draw
        from recon4d_ros.overview.picture import draw_overview

        picture = draw_overview(self._recorder.data(cloud, summary, history))
        with writing(self.out):
            encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
            (self.out / "overview.png").write_bytes(encoded.tobytes())
        return summary

    def _prepare(self, force: bool) -> None:
        with writing(self.out):
            if self.out.is_dir() and any(self.out.iterdir()) and not force:
                raise OutputError(
                    f"output folder {self.out} is not empty: expected a new one, or --force to"
                    " replace the run in it"
                )
            self.out.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                (self.out / name).unlink(missing_ok=True)
            for name in (*FOLDERS, OCCUPANCY):
                if (self.out / name).is_dir():
                    shutil.rmtree(self.out / name)
            if self._save_frames:
                for folder in FOLDERS:
                    for camera in self._rig.names:
                        (self.out / folder / camera).mkdir(parents=True)


def _in_odom(result: Reconstruction) -> Reconstruction:
    """In odometry's frame, which never jumps."""
    objects = moved_objects(result.motion.objects, inverse(result.T_map_odom))
    still = bool((result.T_map_odom == np.eye(4)).all())
    return replace(
        result,
        local_grid=result.local_grid if still else None,
        pose=in_odom(result.pose, result.T_map_odom),
        motion=replace(result.motion, objects=objects),
    )
