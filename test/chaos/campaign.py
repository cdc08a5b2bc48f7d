"""One fault after another into a running graph of driver, node and recorder, and what became of it:
alive, every image accounted for, back to normal in time, pose unharmed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from driver import CAMERAS, PERIOD, PERIOD_NS, Answer, Driver, Spoil, as_it_is
from recon4d_msgs.msg import Status

from benchmarks.shuttle import shuttle
from recon4d_ros import paths
from recon4d_ros.geometry import inverse, log
from recon4d_ros.ros.graph import Process, graph_environment, write_parameters

WIDTH, FRAMES = 240, 60
RECOVERY = 3.0  # seconds: the bar
PATIENCE = 15.0  # seconds for a recovery that comes too late
LATE = 1.2  # seconds after which an image that is missing is counted
NORMAL = 3  # frame sets in a row, tracked, complete, none missing between: back to normal
DRIFT, SHARE = 0.15, 0.05  # the pose's error over a fault: metres, and share of the way driven
BUGS = ("Traceback", "bug, please report", "terminate called", "Segmentation fault")


@dataclass(frozen=True)
class Fault:
    """words: as in the table. inject: runs it, and returns when it is over. counted: the images'
    books must balance (not where the node was told not to listen, or was not there). pose: two
    cameras were left, so the pose must hold. twice: gaps in a camera's stamps that the fault makes
    without an image being lost."""

    name: str
    group: str
    words: str
    inject: Callable[[Campaign], None]
    counted: bool = True
    pose: bool = True
    twice: int = 0


@dataclass
class Row:
    """What became of a fault. lost: by camera, images unaccounted for (negative: counted twice);
    None: not asked. drops: the reasons that were counted for it. recovery: seconds. error: metres;
    way: metres driven meanwhile. missed: bars."""

    fault: Fault
    alive: bool = False
    lost: Mapping[str, int] | None = None
    drops: Mapping[str, int] = field(default_factory=dict)
    recovery: float | None = None
    error: float | None = None
    way: float = 0.0
    tracking: frozenset[str] = frozenset()
    missed: list[str] = field(default_factory=list)


def follows(one: Answer, other: Answer) -> bool:
    return abs(other.stamp_ns - one.stamp_ns - PERIOD_NS) < 1e6


class Campaign:
    """random: of the seed. folder: for what the node writes. notes: by fault, what is worth
    knowing beside the bars."""

    def __init__(self, folder: Path, seed: int, frames: int = FRAMES) -> None:
        self.folder = folder
        self.random = np.random.default_rng(seed)
        self.environment = graph_environment()
        self.engine = folder / "engine"
        shutil.copytree(paths.engines() / "geometric_surround3", self.engine)
        self.engine_copy = paths.engines() / "geometric_surround3"
        self.notes: dict[str, str] = {}
        self._last: Answer | None = None  # the books after the last fault, where all was well
        self._parameters = write_parameters(
            folder / "parameters.yaml",
            {
                "cameras": list(CAMERAS),
                "engine": str(self.engine),
                "odom_topic": "/odom",
                "output_folder": str(folder),
                "map_publish_period": 0.5,
                "mapping.radius": 10.0,
                "egomotion.extrapolate": 5 * PERIOD,  # sets, as many as by default at 10 Hz
                "path_spacing": 0.0,
            },
        )
        for name, value in self.environment.items():
            if name.startswith(("ROS_", "FASTRTPS_", "FASTDDS_")):
                os.environ[name] = value
        drive = shuttle(CAMERAS, WIDTH, frames)
        self.processes: dict[str, Process] = {}
        self.started = 0
        self.start_node()
        self.start_recorder()
        self.driver = Driver(int(self.environment["ROS_DOMAIN_ID"]), drive)
        self.driver.place_cameras()
        self.driver.driving = True

    def close(self) -> dict[str, int]:
        """Exit codes by process."""
        self.driver.driving = False
        codes = {name: self.processes[name].end() for name in ("node", "recorder")}
        for process in self.processes.values():
            process.end(timeout=1.0)
        self.driver.leave()
        return codes

    # --- processes

    def launch(self, name: str, module: str, *arguments: str, shell: str = "") -> Process:
        """shell: what bash does before, in the process itself."""
        self.started += 1
        command = [sys.executable, "-m", module, *arguments]
        if shell:
            command = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
        log = self.folder / f"{name}_{self.started}.log"
        process = self.processes[name] = Process(name, command, log, self.environment)
        return process

    def start_node(self, name: str = "node", *arguments: str) -> Process:
        file = str(self._parameters)
        return self.launch(
            name, "recon4d_ros.ros.node", "--ros-args", "--params-file", file, *arguments
        )

    def start_recorder(self, name: str = "recorder", shell: str = "") -> Process:
        out = str(self.folder / f"{name}_bag_{self.started}")
        return self.launch(
            name, "recon4d_ros.ros.recorder", "--out", out, "--all-of", "recon4d", shell=shell
        )

    @property
    def node(self) -> Process:
        return self.processes["node"]

    def signal(self, process: Process, number: int) -> None:
        os.kill(process.pid, number)

    @contextmanager
    def stopped(self, process: Process) -> Iterator[None]:
        self.signal(process, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(process, signal.SIGCONT)

    def kill(self, name: str) -> None:
        process = self.processes[name]
        self.signal(process, signal.SIGKILL)
        process.end(5.0)

    def wait_for_node(self, timeout: float = 60.0) -> None:
        """Until it reads the images: its rig is complete and its engine loaded."""
        self.driver.wait(
            lambda: all(one.get_subscription_count() for one in self.driver.images.values()),
            "the node to read the images",
            timeout,
        )

    def mend_engine(self) -> None:
        shutil.rmtree(self.engine, ignore_errors=True)
        shutil.copytree(self.engine_copy, self.engine)

    # --- driving

    def drive(
        self, seconds: float, spoil: Spoil = as_it_is, *, dead: set[str] | None = None
    ) -> None:
        """Go on driving, with this done to the images, or these cameras off."""
        self.driver.spoil, self.driver.dead = spoil, dead or set()
        try:
            self.driver.rest(seconds)
        finally:
            self.driver.spoil, self.driver.dead = as_it_is, set()

    def recovered(self, since: float, timeout: float = PATIENCE) -> float | None:
        """Seconds from `since` to the first of NORMAL good sets in a row; None: not in time."""
        while time.monotonic() < since + timeout and self.node.code is None:
            run: list[Answer] = []
            for answer in self.driver.sets:
                good = answer.at > since and answer.whole
                run = [*run, answer] if good and (not run or follows(run[-1], answer)) else []
                run = run or ([answer] if good else [])
                if len(run) == NORMAL:
                    return run[0].at - since
            self.driver.turn()
        return None

    def books(self, since: float) -> Answer | None:
        """At a frame set LATE after `since`, after which nothing was lost: all images up to it are
        processed or counted, and none of those on their way is counted yet. None: there is none in
        time."""
        driver, end = self.driver, time.monotonic() + PATIENCE
        while time.monotonic() < end:
            late = [one for one in driver.sets if one.at >= since + LATE]
            for one, other in pairwise(late):
                calm = follows(one, other) and one.drops == other.drops and one.made
                if calm and one.whole and other.whole and one.stamp_ns in driver.poses:
                    return one
            driver.turn()
        return None

    # --- one fault

    def run(self, fault: Fault) -> Row:
        row = Row(fault)
        driver = self.driver
        before = self._last
        if before is None:
            driver.sets.clear()
            self.recovered(began := time.monotonic())
            before = self.books(began)
        self._last = None
        pid, words = self.node.pid, len(self.node.text())
        if before is None:
            row.alive = self.node.code is None
            row.missed.append(f"not normal before it began: {driver.words()[:300]}")
            return row
        driver.sets.clear()
        first_frame = driver.frame
        try:
            fault.inject(self)
        except Exception as error:  # the campaign goes on
            row.missed.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        over = time.monotonic()
        row.recovery = self.recovered(over)
        row.tracking = frozenset(_NAMES[answer.status.tracking] for answer in driver.sets)
        after = None if row.recovery is None else self.books(over + row.recovery)
        path = [driver.drive.pose(i)[:3, 3] for i in range(first_frame, driver.frame + 2)]
        row.way = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
        said = self.node.text()[words if self.node.pid == pid else 0 :]
        row.alive = all(self.processes[name].code is None for name in ("node", "recorder"))
        self._judge(row, before, after, said)
        self._last = None if row.missed else after  # one fault's end is the next one's beginning
        return row

    def ready(self) -> None:
        """Make sure of a graph for the next fault, whatever the last one left behind."""
        self.mend_engine()
        for name, start in (("node", self.start_node), ("recorder", self.start_recorder)):
            if self.processes[name].code is not None:
                start()
        for name in set(self.processes) - {"node", "recorder"}:
            self.processes.pop(name).end(5.0)
        if "recon4d" in self.driver.get_node_names() and self.driver.state() != "active":
            for identity in (1, 3):  # configure, activate
                self.driver.transition(identity)
        self.wait_for_node()

    def _judge(self, row: Row, before: Answer, after: Answer | None, said: str) -> None:
        fault = row.fault
        if not row.alive:
            row.missed.append("dead")
        row.missed += [f"the node's log has {bug!r}" for bug in BUGS if bug in said]
        if row.recovery is None:
            row.missed.append(f"not normal after {PATIENCE:.0f} s")
        elif row.recovery > RECOVERY:
            row.missed.append("slow")
        if after is None:
            return
        row.drops = {
            reason: n - before.drops.get(reason, 0)
            for reason, n in after.drops.items()
            if n > before.drops.get(reason, 0)
        }
        if fault.counted:
            row.lost = {
                name: after.made[name]
                - before.made[name]
                - (after.processed[name] - before.processed[name])
                - sum(n for reason, n in row.drops.items() if reason.startswith(f"{name}: "))
                for name in CAMERAS
            }
            if any(n > 0 for n in row.lost.values()):
                row.missed.append("uncounted")
            if any(n < -fault.twice for n in row.lost.values()):
                row.missed.append("counted twice")
        poses, truth = self.driver.poses, self.driver.truth
        moved = inverse(poses[before.stamp_ns]) @ poses[after.stamp_ns]
        really = inverse(truth[before.stamp_ns]) @ truth[after.stamp_ns]
        row.error = float(np.linalg.norm(log(inverse(really) @ moved)[:3]))
        if fault.pose and (row.error > DRIFT + SHARE * row.way or "lost" in row.tracking):
            row.missed.append("pose")


_NAMES = {
    Status.STARTING: "starting",
    Status.TRACKING: "tracking",
    Status.DEGRADED: "degraded",
    Status.LOST: "lost",
    Status.PAUSED: "paused",
}


def resources(pid: int) -> dict[str, Any]:
    process = psutil.Process(pid)
    return {
        "rss_MiB": round(process.memory_info().rss / 2**20, 1),
        "threads": process.num_threads(),
        "handles": process.num_fds(),
    }


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| fault | alive | images unaccounted for | counted as | s to normal | pose error, m (driven, m) | bars missed |",  # noqa: E501
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lost = "-" if row.lost is None else str(sum(map(abs, row.lost.values())))
        drops = "; ".join(f"{reason} {n}" for reason, n in sorted(row.drops.items())) or "-"
        recovery = "never" if row.recovery is None else f"{row.recovery:.1f}"
        error = (
            "-" if row.error is None or not row.fault.pose else f"{row.error:.2f} ({row.way:.1f})"
        )
        lines.append(
            f"| {row.fault.words} | {'yes' if row.alive else 'NO'} | {lost} | {drops} | {recovery}"
            f" | {error} | {', '.join(row.missed) or '-'} |"
        )
    return "\n".join(lines)


def run_process(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
