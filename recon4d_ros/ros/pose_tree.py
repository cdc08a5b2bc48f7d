"""Who owns which edge of map -> odom -> base_link (REP-105)."""

from __future__ import annotations

import numpy as np
import tf2_ros
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from recon4d_ros.errors import MessageError
from recon4d_ros.geometry import inverse
from recon4d_ros.ros.conversions import transform_matrix, transform_msg
from recon4d_ros.ros.publishers import Frames

Array = NDArray[np.float64]
LOOKUP_TIMEOUT = Duration(seconds=0.05)
IDENTITY: Array = np.eye(4)


def edges(
    mode: str,
    frames: Frames,
    T_map_base: Array,
    stamp_ns: int,
    T_odom_base: Array | None,
    T_map_odom: Array = IDENTITY,
    in_map: bool = True,
) -> list[TransformStamped]:
    """The transforms that are ours to send.

    map_odom_base: we are the odometry; map -> odom is T_map_odom, the identity unless the
    car was found in another map. in_map: whether it is known where it is in map: otherwise nobody
    is told where. map_odom: another node owns odom -> base (T_odom_base at the
    stamp), so T_map_odom = T_map_base T_odom_base^-1; while it is not known where the car is in
    map, what it is known in instead (Frames.apart) is sent below odom.
    """
    if mode == "map_odom_base":
        above = [transform_msg(T_map_odom, stamp_ns, frames.map, frames.odom)] if in_map else []
        T = inverse(T_map_odom) @ T_map_base
        return [*above, transform_msg(T, stamp_ns, frames.odom, frames.base)]
    if mode == "map_odom" and T_odom_base is not None:
        T = T_map_base @ inverse(T_odom_base)
        if in_map:
            return [transform_msg(T, stamp_ns, frames.map, frames.odom)]
        return [transform_msg(inverse(T), stamp_ns, frames.odom, frames.apart)]
    return []


class PoseTree:
    """Sends our edges to /tf."""

    def __init__(self, node: Node, mode: str, frames: Frames, buffer: tf2_ros.Buffer) -> None:
        self._mode, self._frames, self._buffer = mode, frames, buffer
        self._broadcaster = None if mode == "none" else tf2_ros.TransformBroadcaster(node)

    def close(self, node: Node) -> None:
        if self._broadcaster is not None:
            node.destroy_publisher(self._broadcaster.pub_tf)
            self._broadcaster = None

    def send(
        self,
        T_map_base: Array,
        stamp_ns: int,
        T_map_odom: Array = IDENTITY,
        in_map: bool = True,
    ) -> str:
        """Returns "" or the sentence why map -> odom could not be sent for this stamp. T_map_odom,
        in_map: as in `edges`."""
        if self._broadcaster is None:
            return ""
        T_odom_base = None
        if self._mode == "map_odom":
            try:
                T_odom_base = transform_matrix(
                    self._buffer.lookup_transform(
                        self._frames.odom,
                        self._frames.base,
                        Time(nanoseconds=stamp_ns),
                        timeout=LOOKUP_TIMEOUT,
                    )
                )
            except (tf2_ros.TransformException, MessageError) as error:
                return (
                    f"no {self._frames.odom} -> {self._frames.base} at the frame set's stamp:"
                    f" {error}"
                )
        self._broadcaster.sendTransform(
            edges(self._mode, self._frames, T_map_base, stamp_ns, T_odom_base, T_map_odom, in_map)
        )
        return ""
