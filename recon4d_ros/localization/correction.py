"""What is said in odometry's frame, said in map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse
from recon4d_ros.types import DynamicObject, PoseEstimate

Array = NDArray[np.float64]


def moved_pose(pose: PoseEstimate, T: Array) -> PoseEstimate:
    """The pose in a, of one in b; T = T_a_b [4, 4]. Covariances and velocity are in base_link."""
    return replace(pose, T_map_base=T @ pose.T_map_base, T_map_camera=T @ pose.T_map_camera)


def moved_objects(objects: tuple[DynamicObject, ...], T: Array) -> tuple[DynamicObject, ...]:
    """Objects in a, of those in b; T = T_a_b [4, 4]."""
    turn = T[:3, :3]
    yaw = float(np.arctan2(turn[1, 0], turn[0, 0]))
    return tuple(
        replace(
            one,
            position=turn @ one.position + T[:3, 3],
            yaw=float(np.arctan2(np.sin(one.yaw + yaw), np.cos(one.yaw + yaw))),
            velocity=turn @ one.velocity,
            position_covariance=turn @ one.position_covariance @ turn.T,
            velocity_covariance=turn @ one.velocity_covariance @ turn.T,
        )
        for one in objects
    )


def in_odom(pose: PoseEstimate, T_map_odom: Array) -> PoseEstimate:
    """A pose in map, in odometry's frame."""
    return moved_pose(pose, inverse(T_map_odom))
