"""The node in the test's own process, without others around it: what it refuses, what it counts, and what it says when it cannot go on."""
from __future__ import annotations

import os
import threading
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
from recon4d_ros.ros.worker import Worker
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


# --- images -----------------------------------------------------------------------------------------------------------------------------

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


# --- what cannot go on says why, and leaves nothing behind ------------------------------------------------------------------------------

class Reconstructor:
    """Stands in for the real one where a test needs the node to have one."""

    class mapper:
        size = 0

        @staticmethod
        def points() -> tuple[np.ndarray, ...]:
            return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.float32)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def entities(node: Recon4dNode) -> tuple[int, int]:
    return len(list(node.publishers)), len(list(node.subscriptions))


@pytest.mark.parametrize("name", ["left.image_topic", "left.camera_info_topic", "odom_topic"])
@pytest.mark.parametrize("topic, why", [("/a topic", "alphanumerics"), ("/left//image", "repeated '/'"), ("/1st", "start with a number")])
def test_a_name_that_no_topic_can_have_is_one_sentence(make, name, topic, why):
    node = make(**{name.replace(".", "__"): topic})
    node.start()
    assert node.failure.startswith(f"parameter {name} is {topic!r}: expected the name of a topic") and why in node.failure
    assert node._state == "unconfigured"


@pytest.mark.parametrize("topic, how, reader", [
    ("/camera/left/image_raw", "subscription", "left"), ("/camera/left/camera_info", "subscription", ""), ("/odom", "subscription", ""),
    ("/recon4d/map", "publisher", "")])
@pytest.mark.parametrize("policy, value", [("reliability", "wrong"), ("reliability", 3)])
def test_qos_overrides_that_cannot_be_are_one_sentence(make, topic, how, reader, policy, value):
    override = {f"qos_overrides.{topic}.{how}.{policy}": value}
    node = make(odom_topic="/odom", left__transport="raw", **override)
    before = entities(node)
    node.start()
    if reader:  # images are subscribed to by the timer, once there is something to do with them
        assert not node.failure
        node._session._reconstructor = Reconstructor()
        node._tick()
    assert node.failure.startswith((topic, topic.replace("/recon4d", "~"))) and "cannot be" in node.failure and policy in node.failure
    assert node._state == "unconfigured" and node._session is None
    assert entities(node) == before


def test_a_bug_in_a_transition_is_told_with_its_traceback(make, monkeypatch, capfd):
    node = make()
    node.start()

    def broken() -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(node._session, "deactivate", broken)
    node.trigger_deactivate()
    assert "ZeroDivisionError: by nothing" in node.failure and node._state == "unconfigured"
    monkeypatch.undo()
    assert "in broken" in capfd.readouterr().err
    node.start()
    assert node._state == "active" and not node.failure


def test_a_bug_in_the_timer_does_not_end_the_process(make, monkeypatch):
    node = make()
    node.start()
    monkeypatch.setattr(node._session._source, "rig", lambda: 1 / 0)
    node._tick()
    assert "ZeroDivisionError" in node.failure and node._state == "unconfigured"


def test_a_session_that_cannot_be_made_leaves_nothing_open(make, monkeypatch):
    node = make()
    before, threads = entities(node), threading.active_count()
    monkeypatch.setattr(Worker, "call", lambda worker, function: 1 / 0)
    rig = REPOSITORY / "config/rigs/kitti_like.yaml"
    node.set_parameters([Parameter("rig_file", value=str(rig))])
    node.start()
    assert "ZeroDivisionError" in node.failure
    assert entities(node) == before and threading.active_count() == threads
