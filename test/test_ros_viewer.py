"""The node's viewer and the viewer of a running node."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import rclpy
from recon4d_msgs.msg import Status
from rrd import rows
from sensor_msgs.msg import Image

from recon4d_ros.ros import conversions
from recon4d_ros.ros.grid_output import grid_msg
from recon4d_ros.ros.viewer_output import ViewerOutput
from recon4d_ros.types import (
    Calibration,
    DynamicObject,
    Frame,
    FrameSet,
    Geometry,
    MapDelta,
    Motion,
    OccupancyGrid,
    PoseEstimate,
    Reconstruction,
    Tracking,
)

H, W = 12, 16
EYE = np.eye(4)
CALIBRATION = Calibration(
    ("front",),
    np.zeros((1, H, W, 2), np.float32),
    np.array([[[10.0, 0, 8], [0, 10, 6], [0, 0, 1]]]),
    EYE[None],
    (H, W),
    (H, W),
)
NONE = np.zeros((0, 3))
DELTA = MapDelta(0, 0.2, NONE, NONE, NONE, np.zeros(0), NONE)  # type: ignore[arg-type]
CAR = DynamicObject(7, EYE[0, :3], 0.3, np.ones(3), EYE[1, :3], np.eye(3), np.eye(3), 0.9, 4, 0)
GRID = OccupancyGrid(10**18, np.array([[0, 100]], np.int8), 0.5, np.zeros(2))


def pose(x: float) -> PoseEstimate:
    T = EYE.copy()
    T[0, 3] = x
    return PoseEstimate(T, T[None], Tracking.TRACKING, np.eye(6), np.eye(6), np.zeros(6))


def result(index: int) -> Reconstruction:
    depth = np.full((1, H, W), 5.0, np.float32)
    depth[0, 0] = np.nan
    stamp = 10**18 + index * 10**8
    return Reconstruction(
        FrameSet(stamp, {}),
        Frame(stamp, np.zeros((1, H, W, 3), np.uint8), np.array([True]), np.array([stamp])),
        pose(0.5 * index),
        Geometry(depth, depth, depth, np.zeros((1, H, W, 3), np.uint8)),
        Motion(np.zeros((1, H, W), bool), (CAR,)),
        DELTA,
        {"engine": 0.1},
        0.0,
        local_grid=GRID,
    )


def wait(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_the_node_writes_what_it_does(tmp_path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    said: list[tuple[str, bool]] = []
    output = ViewerOutput(str(tmp_path / "a.rrd"), "", 1, lambda *words: said.append(words))
    wait(lambda: said)
    assert said == [(f"viewer: {tmp_path / 'a.rrd'}", False)]
    output.put(CALIBRATION, result(0))
    wait(lambda: output._log is not None)
    output.put_map(np.ones((4, 3), np.float32), np.ones((4, 3), np.uint8))
    for index in range(1, 6):
        output.put(CALIBRATION, result(index))
    shown = 6 - output.skipped
    wait(lambda: output._worker._slot is None)
    output.close()
    counts = rows(tmp_path / "a.rrd")
    assert 1 <= counts["/world/car"] <= 6 and counts["/world/map"] == 1
    assert counts["/world/car"] >= shown - 5 and counts["/world/objects"] == counts["/world/car"]
    assert len(said) == 1


def test_without_rerun_the_node_says_so_and_goes_on(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    said: list[tuple[str, bool]] = []
    output = ViewerOutput("web", "127.0.0.1", 9090, lambda *words: said.append(words))
    wait(lambda: said)
    output.put(CALIBRATION, result(0))
    output.put_map(np.ones((4, 3), np.float32), np.ones((4, 3), np.uint8))
    output.close()
    (sentence, bad), *more = said
    assert bad and not more
    assert sentence.startswith("viewer: the viewer needs the package rerun-sdk")
    assert sentence.endswith("; the node goes on without it")


@pytest.fixture
def ros(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("ROS_DOMAIN_ID", "77")
    rclpy.init()
    yield
    rclpy.try_shutdown()


def test_a_running_node_is_shown(tmp_path, ros) -> None:
    """By what it publishes: of every kind one message."""
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    from recon4d_ros.ros.live_view import LiveView
    from recon4d_ros.viewer import Sinks, view_to

    view = view_to(Sinks(tmp_path / "live.rrd"), "test")
    node, other = LiveView("recon4d", view), rclpy.create_node("other")
    other.create_publisher(Image, "/recon4d/front/depth", 1)
    end = time.monotonic() + 20.0
    while node._cameras != {"front"} and time.monotonic() < end:
        node.look()
        time.sleep(0.05)
    ns = 10**18
    depth = np.full((H, W), 3.0, np.float32)
    node._on_info("front", conversions.camera_info_msg(CALIBRATION.k[0], (H, W), ns, "front"))
    node._on_status(
        Status(
            header=conversions.header(ns, "base_link"),
            tracking=Status.DEGRADED,
            reason="the road was not seen yet",
            stages=["engine"],
            stage_latency=[0.25],
        )
    )
    node._on_odometry(conversions.odometry_msg(pose(1.0), pose(1.0).T_map_base, 0.1, ns, "o", "b"))
    node._on_objects(conversions.objects_msg((CAR,), ns, "map"))
    node._on_grid(grid_msg(GRID, "map"))
    xyz, rgb = np.ones((3, 3), np.float32), np.full((3, 3), (10, 20, 30), np.uint8)
    node._on_map(conversions.cloud_msg(xyz, rgb, ns, "map", weight=np.ones(3, np.float32)))
    node._on_depth("front", conversions.image_msg(depth, "32FC1", ns, "front"))
    node._on_mask("front", conversions.image_msg(np.zeros((H, W), np.uint8), "mono8", ns, "front"))
    rgb8 = conversions.image_msg(np.zeros((H, W, 3), np.uint8), "rgb8", ns, "front")
    node._on_image("front", rgb8)
    assert node.heard == 8
    node.destroy_node()
    other.destroy_node()
    view.close()
    counts = rows(tmp_path / "live.rrd")
    for entity in (
        "/world/car",
        "/world/objects",
        "/world/local_grid",
        "/world/map",
        "/world/car/front/depth",
        "/world/car/front/dynamic_mask",
        "/world/car/front/image",
        "/latency/engine",
        "/tracking",
    ):
        assert counts[entity] == 1, entity


def test_a_node_that_is_silent_is_one_sentence(monkeypatch, capsys) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    from recon4d_ros.cli import main
    from recon4d_ros.ros import live_view

    monkeypatch.setattr(live_view, "PATIENCE", 0.3)
    monkeypatch.setenv("ROS_DOMAIN_ID", "78")
    assert main(["view", "--live", "--port", "19391"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [
        "recon4d view: node /recon4d: nothing was heard of it for 0.3 s (is it running, in this"
        " ROS_DOMAIN_ID?)"
    ]
