"""The grids as messages: what they hold, and what is sent when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("rclpy", reason="no ROS here")

from recon4d_ros.grids import GridParameters, LastingGrid
from recon4d_ros.ros import grid_output
from recon4d_ros.ros.grid_output import (
    DISTANCE,
    LOCAL,
    UPDATES,
    WHOLE,
    GridOutput,
    changed,
    distance_msg,
    grid_msg,
)
from recon4d_ros.types import OccupancyGrid

VALUES = np.array([[-1, 0, 100], [0, 0, -1]], np.int8)
GRID = OccupancyGrid(3_000_000_005, VALUES, 0.25, np.array([-7.5, 2.0]), -0.4)
SHAPE = (5, 7)
CELLS = arrays(np.int8, SHAPE, elements=st.sampled_from([-1, 0, 100]))


def test_a_grid_is_what_nav2_takes() -> None:
    message = grid_msg(GRID, "map")
    assert (message.header.frame_id, message.header.stamp.sec) == ("map", 3)
    info = message.info
    assert (info.width, info.height, info.resolution) == (3, 2, 0.25)
    assert (info.origin.position.x, info.origin.position.y) == (-7.5, 2.0)
    assert info.origin.position.z == pytest.approx(-0.4) and info.origin.orientation.w == 1.0
    assert list(message.data) == [-1, 0, 100, 0, 0, -1]


def test_distances_are_an_image_of_the_same_cells() -> None:
    message = distance_msg(GRID, "map")
    assert (message.encoding, message.width, message.height) == ("32FC1", 3, 2)
    assert message.header.stamp == grid_msg(GRID, "map").header.stamp
    metres = np.frombuffer(message.data, np.float32).reshape(2, 3)
    assert metres == pytest.approx(0.25 * np.array([[2, 1, 0], [5**0.5, 2**0.5, 1]]), abs=1e-5)


@settings(max_examples=50)
@given(CELLS, CELLS)
def test_what_changed_makes_the_old_grid_the_new_one(before, now) -> None:
    part = changed(before, now)
    if part is None:
        assert np.array_equal(before, now)
        return
    updated = before.copy()
    updated[part] = now[part]
    assert np.array_equal(updated, now)
    inner = (before != now)[part]
    for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]):
        assert edge.any()  # no smaller rectangle would do


class Heard:
    """Publishers that somebody listens to."""

    def __init__(self, *topics: str) -> None:
        self.topics, self.sent = topics, []

    def wanted(self, topic: str) -> bool:
        return topic in self.topics

    def send(self, topic: str, message: Any) -> None:
        self.sent.append((topic, message))


def seen(x: float) -> LastingGrid:
    """A lasting grid of a car at x, with one voxel beside it."""
    grid = LastingGrid(GridParameters())
    add(grid, x)
    return grid


def add(grid: LastingGrid, x: float) -> None:
    grid._follow(np.array([x, 0.0]))
    pose = np.eye(4)
    pose[0, 3] = x
    grid._see_road(pose, np.array([0.0, 0.0, 1.0, 0.0]))
    point = np.array([[x + 3.1, 1.1, 1.0]], np.float32)
    grid.read_map(point, np.array([x, 0.0]), 0.0, 0.2)


def test_updates_follow_the_whole_grid(monkeypatch) -> None:
    kinds = []
    monkeypatch.setattr(
        grid_output, "message_class", lambda name: kinds.append(name) or SimpleNamespace
    )
    heard = Heard(UPDATES)
    output = GridOutput(heard, "map")
    lasting = seen(0.0)
    assert output.due(1000.0)
    output.show(GRID, lasting)
    assert not heard.sent  # nobody has the whole one yet
    output.show_whole(lasting.around())
    output.show(GRID, lasting)
    assert [topic for topic, _ in heard.sent] == [WHOLE]  # and nothing changed since
    assert not output.due(1000.0)
    add(lasting, 0.55)
    output.show(GRID, lasting)
    topic, update = heard.sent[-1]
    assert topic == UPDATES and kinds == ["map_msgs/msg/OccupancyGridUpdate"]
    assert (update.width, update.height, list(update.data)) == (1, 1, [100])
    info = grid_msg(lasting.around(), "map").info
    assert info.origin.position.x + 0.2 * (update.x + 0.5) == pytest.approx(3.7)
    add(lasting, 500.0)  # other cells: the whole grid again
    output.show(GRID, lasting)
    assert heard.sent[-1][0] == WHOLE


def test_only_what_is_heard_is_made() -> None:
    lasting = seen(0.0)
    for topic in (LOCAL, DISTANCE):
        heard = Heard(topic)
        GridOutput(heard, "map").show(GRID, lasting)
        assert [name for name, _ in heard.sent] == [topic]
    silent = Heard(LOCAL, DISTANCE, UPDATES)
    GridOutput(silent, "map").show(None, lasting)
    assert not silent.sent
