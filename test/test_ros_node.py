"""The node in the test's own process, without others around it: what it refuses, what it counts, and what it says when it cannot go on."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
pytest.importorskip("recon4d_msgs.msg", reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh")

from rclpy.context import Context
from rclpy.parameter import Parameter

from recon4d_ros.ros.graph import graph_environment
from recon4d_ros.ros.node import Recon4dNode
from recon4d_ros.types import RawImage

REPOSITORY = Path(__file__).resolve().parent.parent
START = 1_700_000_000_000_000_000
PIXELS = np.zeros(12, np.uint8)
Make = Callable[..., Recon4dNode]


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    environment = graph_environment()
    for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        if name in environment:
            os.environ[name] = environment[name]
    context = Context()
    context.init(domain_id=int(environment["ROS_DOMAIN_ID"]))
    yield context
    context.try_shutdown()


@pytest.fixture
def make(context) -> Iterator[Make]:
    """make(*remappings, **parameters) gives a node of two cameras that nobody spins; `__` in a name stands for a dot."""
    nodes = []

    def one(*remappings: str, **values: Any) -> Recon4dNode:
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in {"cameras": ["left", "right"], **values}.items()]
        words = [word for rule in remappings for word in ("-r", rule)]
        nodes.append(Recon4dNode(context=context, parameter_overrides=overrides, cli_args=["--ros-args", *words] if words else None))
        return nodes[-1]

    yield one
    for node in nodes:
        node.finish()
        node.destroy_node()


def image(stamp: int) -> RawImage:
    return RawImage(stamp, "mono8", PIXELS, 4, 3, 4)


def camera_words(node: Recon4dNode, camera: str) -> str:
    message = node._session.health.diagnostics_msg(0, "recon4d", state="active", waiting=[], paused=False, silence=60.0)
    return next(status.message for status in message.status if status.name == f"recon4d: camera {camera}")


# --- images -------------------------------------------------------------------------------------------------------------------------------

def test_an_image_without_a_time_stamp_has_its_receptions_and_is_counted(make):
    node = make()
    node.start()
    sets = []
    node._session._worker.put = sets.append
    for _ in range(3):
        now = node.get_clock().now().nanoseconds
        for camera, stamp in (("left", now), ("right", 0)):
            node._session._on_image(camera, image(stamp), "")
    stamps = [taken.stamp_ns for frame_set in sets for taken in frame_set.images.values()]
    assert stamps and all(abs(stamp - now) < 60e9 for stamp in stamps)
    assert node._session._synchronizer.statistics.jumps == 0
    assert "3 without a time stamp" in camera_words(node, "right") and "without" not in camera_words(node, "left")
