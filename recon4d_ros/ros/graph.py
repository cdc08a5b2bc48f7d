"""The real thing as three processes over DDS: player, node, recorder. Started in order, ended in
order; the demo and the tests use it.

This module needs no rclpy: it only starts processes, which find each other on a domain of their
own, on this machine only.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recon4d_ros import paths
from recon4d_ros.bags import BagReader
from recon4d_ros.bags.rig import camera_topics
from recon4d_ros.cameras.rig import BASE_FRAME, save_rig
from recon4d_ros.errors import ParameterError, Recon4dError
from recon4d_ros.runs.output import writing

PROFILE_VARIABLES = (
    "FASTRTPS_DEFAULT_PROFILES_FILE",
    "FASTDDS_DEFAULT_PROFILES_FILE",
)  # Jazzy's Fast DDS 2, Kilted's 3
SHARED_MEMORY = 512 * 2**20  # bytes free in /dev/shm: 64 MiB for each process, and what others need
SETTLE = 1.5  # seconds after the last image for the last frame set to be published
START_TIMEOUT = 90.0  # an engine may take long to compile on a busy machine
END_TIMEOUT = 40.0


@dataclass(frozen=True)
class GraphResult:
    """exit_codes and logs: by process (`player`, `node`, `recorder`). bag: what was recorded.
    seconds: of the whole run."""

    exit_codes: Mapping[str, int]
    logs: Mapping[str, Path]
    bag: Path
    seconds: float

    @property
    def ok(self) -> bool:
        return all(code == 0 for code in self.exit_codes.values())

    def failure(self) -> str:
        """ "" or one sentence: which processes ended otherwise than they should, with their last
        words and logs."""
        return "; ".join(
            _ended(name, code, self.logs[name]) for name, code in self.exit_codes.items() if code
        )


class GraphError(Recon4dError):
    """A process of the graph ended early or did not get ready; the sentence has its last words."""


def graph_environment(domain: int | None = None) -> dict[str, str]:
    """This environment with a DDS domain of its own (random unless given), discovery on this
    machine only, and unbuffered logs."""
    return {
        **os.environ,
        **transport_environment(),
        "PYTHONUNBUFFERED": "1",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(free_domain() if domain is None else domain),
    }


def free_domain() -> int:
    """A random domain that nobody on this machine is in: its first participant's discovery port
    (DDSI-RTPS 9.6.1.1) is free."""
    candidates = list(range(1, 102))  # above, the ports are in Linux' ephemeral range
    random.SystemRandom().shuffle(candidates)
    for domain in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7410 + 250 * domain))
                return domain
            except OSError:
                continue
    return candidates[0]


def transport_environment() -> dict[str, str]:
    """What makes Fast DDS fit for images and clouds (config/fastdds.xml).

    Nothing if the user has a profile of his own, or the shared memory is too small for it.
    """
    if any(name in os.environ for name in PROFILE_VARIABLES):
        return {}
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shutil.disk_usage(shared_memory).free < SHARED_MEMORY:
        return {}
    return dict.fromkeys(PROFILE_VARIABLES, str(paths.share() / "config/fastdds.xml"))


def bag_parameters(
    bag: Path, folder: Path, base_frame: str = BASE_FRAME, **found: Any
) -> dict[str, Any]:
    """The node's parameters for a bag: its rig as seen from base_frame, as a rig file in `folder`,
    and its topics. found: what else `BagReader.rig` takes.

    Raises BagError, CalibrationError, OutputError.
    """
    with BagReader(bag) as reader:
        rig = reader.rig(base_frame=base_frame, **found)
        topics = camera_topics(reader, rig, **found)
    save_rig(rig, folder / "rig.yaml", topics)
    return {"rig_file": str((folder / "rig.yaml").resolve())}


def launch_parameters(arguments: Mapping[str, str]) -> dict[str, Any]:
    """The node's parameters of launch arguments: of those that were given, so that a parameter file
    keeps the others."""
    values: dict[str, Any] = {
        name: arguments[name]
        for name in (
            "engine",
            "runtime",
            "engine_cache",
            "object_engine",
            "occupancy_engine",
            "odom_topic",
            "imu_topic",
            "twist_topic",
            "publish_tf",
            "output_folder",
        )
        if arguments[name]
    }
    if arguments["rig"]:
        values["rig_file"] = arguments["rig"]
    if height := arguments["camera_height"]:
        try:
            values["camera_height"] = float(height)
        except ValueError as error:
            raise ParameterError(f"camera_height is {height!r}: expected metres") from error
    if arguments["build_only"].lower() == "true":
        values["build_only"] = True
    if targets := _split(arguments["compute_capabilities"]):
        values["compute_capabilities"] = targets
    if arguments["use_sim_time"]:
        values["use_sim_time"] = arguments["use_sim_time"].lower() == "true"
    if cameras := _split(arguments["cameras"]):
        values["cameras"] = cameras
    return values


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def write_parameters(path: Path, parameters: Mapping[str, Any]) -> Path:
    """A ROS parameter file for any node name. Dotted names stay dotted: rclpy takes both. Raises
    OutputError."""
    with writing(path.parent):
        path.write_text(
            yaml.safe_dump({"/**": {"ros__parameters": dict(parameters)}}, sort_keys=True),
            encoding="utf-8",
        )
    return path


class Process:
    """One child with its log. Its signals are ours to send: Ctrl-C in the terminal reaches only the
    parent, which ends all in order.

    Raises OutputError if the log cannot be written.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        show: bool = False,
    ) -> None:
        self.name, self.log = name, log
        with writing(log.parent):
            self._file = log.open("wb")
        self._child = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=self._file,
            stderr=None if show else subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def last_words(self) -> str:
        return _last_words(self.log)

    def interrupt(self) -> None:
        if self.code is None:
            self._child.send_signal(signal.SIGINT)

    def wait(self, timeout: float) -> int | None:
        """The exit code, or None if it still runs."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def end(self, timeout: float = END_TIMEOUT) -> int:
        """SIGINT, and SIGKILL if that does not help; returns the exit code."""
        self.interrupt()
        code = self.wait(timeout)
        if code is None:
            self._child.kill()
            code = self._child.wait()
        self._file.close()
        return code


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _ended(name: str, code: int | None, log: Path, when: str = "") -> str:
    return f"the {name} ended with {code}{when}: {_last_words(log)} (log: {log})"


def wait_until(
    ready: Callable[[], bool], processes: Sequence[Process], what: str, timeout: float
) -> None:
    """Raises GraphError if a process ends or time runs out first."""
    end = time.monotonic() + timeout
    while not ready():
        for process in processes:
            if process.code is not None:
                raise GraphError(_ended(process.name, process.code, process.log, f" before {what}"))
        if time.monotonic() > end:
            raise GraphError(
                f"{what}: not within {timeout:.0f} s (logs in {processes[0].log.parent})"
            )
        time.sleep(0.05)


def run_graph(
    bag: Path,
    out: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    rate: float = 1.0,
    record_topics: Sequence[str] = (),
    rig_from_bag: bool = True,
    found: Mapping[str, Any] | None = None,
    domain: int | None = None,
    player_arguments: Sequence[str] = (),
    show_progress: bool | None = None,
    timeout: float = 1800.0,
) -> GraphResult:
    """Play `bag` to the node and record what it publishes, in three processes.

    out: a folder; the recording becomes out/bag, logs and the node's parameters out/logs.
    parameters: of the node, by dotted name, on top of what the bag gives (its rig and topics;
    without rig_from_bag the caller gives cameras and topics, and the rig comes over DDS). found:
    what `BagReader.rig` takes beside the frame.
    record_topics: further topics for the recording, e.g. the input images. show_progress: the
    player's bar on this terminal (default: if it is one). The recorder is ready before the node is
    started to be fed, and the player starts when the node reads every image topic; at the end the
    node is told first, so that its last map is recorded. Raises BagError, CalibrationError,
    OutputError, GraphError (a process ended early; its sentence is in it).
    """
    logs = out / "logs"
    with writing(out):
        logs.mkdir(parents=True, exist_ok=True)
    given = dict(parameters or {})
    more_of_rig = {"base_frame": given.get("base_frame", BASE_FRAME), **(found or {})}
    from_bag = bag_parameters(bag, logs, **more_of_rig) if rig_from_bag else {}
    values = {**from_bag, "use_sim_time": True, "output_folder": str(out), **given}
    file = write_parameters(logs / "parameters.yaml", values)
    environment = graph_environment(domain)
    show = sys.stderr.isatty() if show_progress is None else show_progress
    python = [sys.executable, "-m"]
    start = time.monotonic()
    with ExitStack() as stack:

        def launch(name: str, command: list[str], show: bool = False) -> Process:
            process = Process(name, command, logs / f"{name}.log", environment, show=show)
            stack.callback(process.end)
            return process

        node = launch(
            "node", [*python, "recon4d_ros.ros.node", "--ros-args", "--params-file", str(file)]
        )
        more = ["--topics", *record_topics] if record_topics else []
        recorder = launch(
            "recorder",
            [
                *python,
                "recon4d_ros.ros.recorder",
                "--out",
                str(out / "bag"),
                "--all-of",
                "recon4d",
                *more,
                "--until-gone",
                "recon4d",
                "--use-sim-time",
            ],
        )
        if not record_topics:  # those are there only when the player is
            wait_until(
                lambda: "ready:" in recorder.text(),
                [node, recorder],
                "the recorder had found the node's topics",
                START_TIMEOUT,
            )
        player = launch(
            "player",
            [
                *python,
                "recon4d_ros.ros.player",
                str(bag),
                "--rate",
                str(rate),
                "--timeout",
                str(START_TIMEOUT),
                *player_arguments,
            ],
            show,
        )
        wait_until(lambda: player.code is not None, [node, recorder], "the bag was played", timeout)
        time.sleep(SETTLE)
        codes = {"player": player.end()}
        codes["node"] = node.end()
        if recorder.wait(10.0) is None:
            recorder.interrupt()
        codes["recorder"] = recorder.end()
    if codes["player"] != 0:
        raise GraphError(_ended("player", codes["player"], player.log))
    return GraphResult(
        codes, {name: logs / f"{name}.log" for name in codes}, out / "bag", time.monotonic() - start
    )
