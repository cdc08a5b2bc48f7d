"""A running node seen by another process: its topics, put on the viewer's timeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import rclpy
from nav_msgs.msg import OccupancyGrid, Odometry
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from recon4d_msgs.msg import DynamicObjectArray, Status
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from recon4d_ros import messages as ros
from recon4d_ros import types
from recon4d_ros.errors import Recon4dError
from recon4d_ros.ros.offered import LATCHED, RELIABLE
from recon4d_ros.ros.process import ros_process
from recon4d_ros.types import Tracking
from recon4d_ros.viewer import View, ViewLog

LOOK = 1.0  # seconds between two looks for cameras
PATIENCE = 20.0  # seconds until a node that is not there is said to be missing
TRACKING = {
    Status.STARTING: Tracking.STARTING,
    Status.TRACKING: Tracking.TRACKING,
    Status.LOST: Tracking.LOST,
    Status.DEGRADED: Tracking.DEGRADED,
}


class LiveView(Node):
    """Subscribes to all that the viewer shows of `name`, a camera at a time as they appear."""

    def __init__(self, name: str, view: View) -> None:
        super().__init__("recon4d_view", start_parameter_services=False)
        self._name = "/" + name.strip("/")
        self._view = view
        self._log: ViewLog | None = None
        self._cameras: set[str] = set()
        self._posed: set[str] = set()
        self._tracking, self._reason = Tracking.STARTING, ""
        self._pose: NDArray[np.float64] | None = None
        self.heard = 0
        for kind, topic, qos, show in (
            (Odometry, "odometry", RELIABLE, self._on_odometry),
            (Status, "status", RELIABLE, self._on_status),
            (DynamicObjectArray, "objects", RELIABLE, self._on_objects),
            (OccupancyGrid, "local_grid", RELIABLE, self._on_grid),
            (PointCloud2, "map", LATCHED, self._on_map),
        ):
            self.create_subscription(kind, f"{self._name}/{topic}", show, qos)
        self._looker = self.create_timer(LOOK, self.look)

    def look(self) -> None:
        """The cameras that the node publishes depth of; each found once."""
        start, end = f"{self._name}/", "/depth"
        for topic, _ in self.get_topic_names_and_types():
            name = topic[len(start) : -len(end)]
            if not (topic.startswith(start) and topic.endswith(end)) or name in self._cameras:
                continue
            self._cameras.add(name)
            self._log = None  # made anew, with this camera in its layout
            for kind, what, show in (
                (Image, "depth", self._on_depth),
                (Image, "dynamic_mask", self._on_mask),
                (Image, "image", self._on_image),
                (CameraInfo, "camera_info", self._on_info),
            ):
                self.create_subscription(kind, f"{start}{name}/{what}", partial(show, name), 5)

    @property
    def log(self) -> ViewLog:
        if self._log is None:
            self._log = ViewLog(self._view.recording, sorted(self._cameras))
        return self._log

    def _at(self, message: Any) -> ViewLog:
        self.heard += 1
        self.log.at(ros.stamp_ns(message.header.stamp))
        return self.log

    def _on_odometry(self, message: Odometry) -> None:
        pose = ros.odometry_sample(message).T_odom_base
        if np.isfinite(pose).all():
            self._at(message).pose(pose, self._tracking, self._reason)

    def _on_status(self, message: Status) -> None:
        self._tracking = TRACKING.get(message.tracking, Tracking.LOST)
        self._reason = message.reason
        stages = zip(message.stages, map(float, message.stage_latency), strict=False)
        if message.header.stamp.sec:
            self._at(message).latency(dict(stages))

    def _on_objects(self, message: DynamicObjectArray) -> None:
        self._at(message).objects([ros.dynamic_object(one) for one in message.objects])

    def _on_grid(self, message: OccupancyGrid) -> None:
        info = message.info
        values = np.array(message.data, np.int8).reshape(info.height, info.width)
        origin = info.origin.position
        grid = types.OccupancyGrid(
            0, values, info.resolution, np.array([origin.x, origin.y]), origin.z
        )
        self._at(message).grid("world/local_grid", grid)

    def _on_map(self, message: PointCloud2) -> None:
        rows = np.frombuffer(message.data, np.float32).reshape(-1, message.point_step // 4)
        packed = rows[:, 3].copy().view(np.uint32)
        rgb = np.column_stack([packed >> 16, packed >> 8, packed]).astype(np.uint8)
        self._at(message).add_map(rows[:, :3].copy(), rgb)

    def _on_depth(self, name: str, message: Image) -> None:
        depth = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        self._at(message).camera(name, depth=depth)

    def _on_mask(self, name: str, message: Image) -> None:
        mask = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)
        self._at(message).camera(name, mask=mask > 127)

    def _on_image(self, name: str, message: Image) -> None:
        color = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        self._at(message).camera(name, color=color)

    def _on_info(self, name: str, message: CameraInfo) -> None:
        if name not in self._posed:
            self._posed.add(name)
            k = np.array(message.k).reshape(3, 3)
            self.log.calibrate_camera(name, k, (message.height, message.width), None)


def show_node(name: str, view: View, stopped: Callable[[], bool] = lambda: False) -> None:
    """Until the user interrupts. Raises Recon4dError if the node says nothing."""
    with ros_process(None) as stop:
        node = LiveView(name, view)
        begun = time.monotonic()
        try:
            while not (stop.is_set() or stopped()):
                rclpy.spin_once(node, timeout_sec=0.1)
                if not node.heard and time.monotonic() - begun > PATIENCE:
                    raise Recon4dError(
                        f"node {name}: nothing was heard of it for {PATIENCE:g} s (is it running,"
                        " in this ROS_DOMAIN_ID?)"
                    )
        except ExternalShutdownException:
            pass
        finally:
            node.destroy_node()
