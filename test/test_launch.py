"""The launch files, run by the real `ros2 launch`. Where launch_ros is not installed (it has no
wheel) only their text is checked."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH_FILES = sorted((REPOSITORY / "launch").glob("*.launch.py"))
needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None or shutil.which("ros2") is None,
    reason="launch_ros is not installed here (it has no wheel on PyPI)",
)


def test_the_three_launch_files_are_there():
    assert [path.name for path in LAUNCH_FILES] == [
        "demo.launch.py",
        "recon4d.launch.py",
        "replay.launch.py",
    ]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_executables_and_files_that_they_name_exist(path):
    text = path.read_text()
    tree = ast.parse(text)
    scripts = set(re.findall(r'f"(recon4d\w*) = ', (REPOSITORY / "setup.py").read_text()))
    executables = {
        keyword.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "executable" and isinstance(keyword.value, ast.Constant)
    } - {"rviz2"}
    assert executables <= scripts
    for folder, name in re.findall(r'"(launch|config)", "([\w.]+)"', text):
        assert (REPOSITORY / folder / name).is_file()


def ros2(*words: str, log: Path, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        ["ros2", *words],
        env=environment,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    from recon4d_ros.ros.graph import graph_environment

    return {**graph_environment(), "ROS_LOG_DIR": str(tmp_path / "log")}


def wait_for(log: Path, words: str, process: subprocess.Popen, timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while words not in log.read_text(errors="replace"):
        assert process.poll() is None and time.monotonic() < end, (
            f"no {words!r} in:\n{log.read_text(errors='replace')}"
        )
        time.sleep(0.1)


def end_group(process: subprocess.Popen) -> None:
    """Whatever a failed test left of its own session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@needs_launch
@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_arguments_are_described(path):
    shown = subprocess.run(
        ["ros2", "launch", str(path), "--show-args"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "rviz" in shown and "no description given" not in shown


@needs_launch
def test_the_node_is_brought_up_and_ended_by_launch(environment, tmp_path):
    log = tmp_path / "launch.txt"
    process = ros2(
        "launch",
        str(REPOSITORY / "launch/recon4d.launch.py"),
        f"rig:={REPOSITORY / 'config/rigs/kitti_like.yaml'}",
        "namespace:=car",
        log=log,
        environment=environment,
    )
    try:
        wait_for(log, "for 2 camera(s)", process)
        wait_for(log, "[car.recon4d]: active", process)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert "process has finished cleanly" in log.read_text()
    finally:
        end_group(process)


@needs_launch
def test_a_node_that_cannot_configure_ends_the_launch_with_its_sentence(environment, tmp_path):
    log = tmp_path / "launch.txt"
    process = ros2(
        "launch",
        str(REPOSITORY / "launch/recon4d.launch.py"),
        "rig:=/nowhere/rig.yaml",
        log=log,
        environment=environment,
    )
    try:
        process.wait(60)
        assert "rig file /nowhere/rig.yaml cannot be read" in log.read_text()
    finally:
        end_group(process)


def defaults(path: Path) -> dict[str, str | None]:
    """ARGUMENTS of a launch file: name -> default."""
    tree = ast.parse(path.read_text())
    value = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS"
    )
    return {name: default for name, default, _ in ast.literal_eval(value)}


def test_only_what_was_given_to_the_launch_comes_after_the_parameter_file():
    pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
    from recon4d_ros.ros.graph import launch_parameters

    nothing = defaults(REPOSITORY / "launch/recon4d.launch.py")
    assert launch_parameters(nothing) == {}
    given = {
        "rig": "my.yaml",
        "cameras": "left, right",
        "engine": "one",
        "odom_topic": "/odom",
        "publish_tf": "none",
        "output_folder": "/maps",
        "use_sim_time": "True",
        "runtime": "tensorrt-rtx",
        "engine_cache": "/opt/engines",
        "object_engine": "/opt/objects",
        "occupancy_engine": "/opt/occupancy",
        "build_only": "True",
        "compute_capabilities": "8.6, 8.9",
    }
    expected = {**given, "rig_file": "my.yaml", "cameras": ["left", "right"], "use_sim_time": True}
    expected |= {"build_only": True, "compute_capabilities": ["8.6", "8.9"]}
    del expected["rig"]
    assert launch_parameters({**nothing, **given}) == expected


def test_the_launch_files_hand_their_arguments_on():
    files = {path.name.split(".")[0]: defaults(path) for path in LAUNCH_FILES}
    assert {"rig", "odom_topic", "engine", "parameters"} <= set(files["replay"]) and {
        "engine",
        "parameters",
    } <= set(files["demo"])
    for outer, inner in (
        ("demo", "replay"),
        ("replay", "recon4d"),
    ):  # neither's default overrides what is in a parameter file
        assert all(files[outer][name] == files[inner][name] for name in ("engine", "parameters"))


@needs_launch
def test_a_parameter_file_keeps_what_the_launch_was_not_given(environment, tmp_path):
    log, file = tmp_path / "launch.txt", tmp_path / "parameters.yaml"
    file.write_text(
        f"/**:\n  ros__parameters:\n    rig_file: {REPOSITORY / 'config/rigs/kitti_like.yaml'}\n   "
        " engine: /nowhere/mine\n"
    )
    process = ros2(
        "launch",
        str(REPOSITORY / "launch/recon4d.launch.py"),
        f"parameters:={file}",
        log=log,
        environment=environment,
    )
    try:
        process.wait(60)
        assert "/nowhere/mine" in log.read_text()
    finally:
        end_group(process)


@needs_launch
def test_a_simulated_drive_is_played_and_leaves_nothing_behind(environment, tmp_path):
    log, room = tmp_path / "launch.txt", tmp_path / "room"
    room.mkdir()
    file = tmp_path / "parameters.yaml"
    file.write_text("/**:\n  ros__parameters:\n    publish_tf: none\n")
    process = ros2(
        "launch",
        str(REPOSITORY / "launch/demo.launch.py"),
        "rig:=kitti_like",
        "seconds:=0.5",
        "rviz:=false",
        "rate:=1.0",
        "engine:=geometric_stereo",
        f"parameters:={file}",
        log=log,
        environment={**environment, "TMPDIR": str(room)},
    )
    try:
        process.wait(120)
        text = log.read_text()
        assert (
            "engine geometric_stereo" in text and text.count("process has finished cleanly") == 3
        ), text
        assert not list(room.glob("recon4d_*"))
    finally:
        end_group(process)


@needs_launch
def test_a_bag_is_replayed_to_its_end(environment, tmp_path, kitti_bag):
    log = tmp_path / "launch.txt"
    process = ros2(
        "launch",
        str(REPOSITORY / "launch/replay.launch.py"),
        f"bag:={kitti_bag}",
        "rviz:=false",
        "rate:=2.0",
        f"record:={tmp_path / 'bag'}",
        log=log,
        environment=environment,
    )
    try:
        process.wait(90)
        text = log.read_text()
        assert text.count("process has finished cleanly") == 3, text
    finally:
        end_group(process)
    from recon4d_ros.bags import BagReader

    with BagReader(tmp_path / "bag") as reader:
        assert reader.topics["/recon4d/map"].count > 0 and reader.topics["/tf"].count > 3
