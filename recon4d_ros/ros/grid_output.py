"""The grids for planners as messages: what is sent when, and how it is made.

Nav2's static layer takes nav_msgs/OccupancyGrid, and map_msgs/OccupancyGridUpdate for the part of
it that changed. The distance field goes as a 32FC1 image, which every ROS machine has a type for:
its pixel (row, column) is the cell (row, column) of the ~/local_grid of the same stamp, whose info
says where that is.
"""

from __future__ import annotations

import array
import time
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion
from nav_msgs.msg import MapMetaData, OccupancyGrid
from numpy.typing import NDArray
from sensor_msgs.msg import Image

from recon4d_ros import types
from recon4d_ros.grids import LastingGrid, distance_field
from recon4d_ros.ros import conversions
from recon4d_ros.ros.message_types import message_class
from recon4d_ros.ros.publishers import Publishers

WHOLE, LOCAL, DISTANCE = "~/occupancy_grid", "~/local_grid", "~/distance"
UPDATES = "~/occupancy_grid_updates"


class GridOutput:
    """`show` per frame set, `show_whole` when it is due. In the worker's thread. frame: of what is
    sent; the map's unless set otherwise."""

    def __init__(self, publishers: Publishers, map_frame: str) -> None:
        self._publishers, self.frame = publishers, map_frame
        self._sent: types.OccupancyGrid | None = None  # what readers of the updates have
        self._sent_frame = map_frame
        self._sent_ns: int | None = None  # monotonic time of the last whole one

    def show(self, local: types.OccupancyGrid | None, lasting: LastingGrid) -> None:
        """What is listened to: the grid around the car, its distances, and what changed of the
        lasting one. local: None where there is none for this frame set."""
        if local is None:
            return
        if self._publishers.wanted(LOCAL):
            self._publishers.send(LOCAL, grid_msg(local, self.frame))
        if self._publishers.wanted(DISTANCE):
            self._publishers.send(DISTANCE, distance_msg(local, self.frame))
        if self._publishers.wanted(UPDATES) and self._sent is not None:
            self._show_changes(lasting.around(local.stamp_ns, local.height))

    def _show_changes(self, grid: types.OccupancyGrid) -> None:
        assert self._sent is not None
        if self._sent_frame != self.frame or not _same_cells(grid, self._sent):
            self.show_whole(grid)
            return
        part = changed(self._sent.values, grid.values)
        if part is not None:
            self._publishers.send(UPDATES, update_msg(grid, part, self.frame))
            self._sent = grid

    def due(self, period: float) -> bool:
        """Whether the whole grid was last sent `period` seconds ago, or never."""
        return self._sent_ns is None or time.monotonic_ns() - self._sent_ns >= period * 1e9

    def show_whole(self, grid: types.OccupancyGrid) -> None:
        """Always sent, because it is latched for who comes late."""
        self._publishers.send(WHOLE, grid_msg(grid, self.frame))
        self._sent, self._sent_ns = grid, time.monotonic_ns()
        self._sent_frame = self.frame


def _same_cells(a: types.OccupancyGrid, b: types.OccupancyGrid) -> bool:
    return a.values.shape == b.values.shape and np.array_equal(a.origin, b.origin)


def changed(before: NDArray[np.int8], now: NDArray[np.int8]) -> tuple[slice, slice] | None:
    """Rows and columns of the smallest rectangle outside of which nothing changed; None where
    nothing did."""
    differs = before != now
    rows = np.flatnonzero(differs.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(differs[rows[0] : rows[-1] + 1].any(axis=0))
    return (
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )


def _cells(values: NDArray[np.int8]) -> array.array:
    data = array.array("b")
    data.frombytes(np.ascontiguousarray(values).reshape(-1).data)
    return data


def grid_msg(grid: types.OccupancyGrid, frame_id: str) -> OccupancyGrid:
    """As Nav2 takes it: rows along y from the origin, -1, 0 or 100."""
    rows, columns = grid.values.shape
    x, y = map(float, grid.origin)
    return OccupancyGrid(
        header=conversions.header(grid.stamp_ns, frame_id),
        info=MapMetaData(
            map_load_time=conversions.time_msg(grid.stamp_ns),
            resolution=float(grid.resolution),
            width=columns,
            height=rows,
            origin=Pose(position=Point(x=x, y=y, z=float(grid.height)), orientation=Quaternion()),
        ),
        data=_cells(grid.values),
    )


def update_msg(grid: types.OccupancyGrid, part: tuple[slice, slice], frame_id: str) -> Any:
    """map_msgs/OccupancyGridUpdate of a part (rows, columns) of the grid. Raises MessageError where
    map_msgs is not installed."""
    rows, columns = part
    return message_class("map_msgs/msg/OccupancyGridUpdate")(
        header=conversions.header(grid.stamp_ns, frame_id),
        x=columns.start,
        y=rows.start,
        width=columns.stop - columns.start,
        height=rows.stop - rows.start,
        data=_cells(grid.values[part]),
    )


def distance_msg(grid: types.OccupancyGrid, frame_id: str) -> Image:
    """32FC1, metres to the nearest occupied cell; inf where none is in the grid (REP-117)."""
    return conversions.image_msg(distance_field(grid), "32FC1", grid.stamp_ns, frame_id)
