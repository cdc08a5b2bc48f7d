"""Occupancy labels from lidar by the rule of UniScene's published script: sweeps around a key frame
moved by the car's motion alone, thinned, and put into voxels. Pure functions on arrays.

What the rule does not do: dynamic objects leave trails, because sweeps are moved as if nothing else
did; what nobody looked at counts as free, because no ray is cast. Poses are 4x4 float64; points [n,
3] in metres in the lidar's frame (x right, y forward, z up) unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse, transform

Points = NDArray[np.float64]
Pose = NDArray[np.float64]


@dataclass(frozen=True)
class LabelRule:
    """low, high: [3] metres of the volume, along base_link's axes around the lidar. shape: voxels.
    neighbours: key frames before and after the labelled one. reach: [2] metres in x and y, and in
    z, that points are kept within. thinned: metres, edge of the cells whose points become one.
    own: [k, 2] metres: of sweeps between key frames, points nearer than this in both x and y are
    taken to be the ego-vehicle."""

    low: tuple[float, float, float] = (-51.2, -51.2, -5.0)
    high: tuple[float, float, float] = (51.2, 51.2, 3.0)
    shape: tuple[int, int, int] = (200, 200, 16)
    neighbours: int = 2
    reach: tuple[float, float] = (60.0, 10.0)
    thinned: float = 0.2
    own: tuple[tuple[float, float], ...] = ((1.0, 1.5), (1.0, 2.0))

    @property
    def voxel_size(self) -> NDArray[np.float64]:
        """[3] metres: the range divided by one less than the number of voxels."""
        return np.subtract(self.high, self.low) / np.subtract(self.shape, 1)


def occupancy_labels(
    sweeps: Sequence[Points],
    T_map_lidar: NDArray[np.float64],
    key_sweeps: Sequence[int],
    key: int,
    rule: LabelRule = LabelRule(),
) -> NDArray[np.uint8]:
    """[X, Y, Z] 1 where there is any point, of the key frame number `key`.

    sweeps: in order of time. T_map_lidar: [sweeps, 4, 4]. key_sweeps: which of them are key frames.
    """
    return voxelised(fused_points(sweeps, T_map_lidar, key_sweeps, key, rule), rule)


def fused_points(
    sweeps: Sequence[Points],
    T_map_lidar: NDArray[np.float64],
    key_sweeps: Sequence[int],
    key: int,
    rule: LabelRule = LabelRule(),
) -> Points:
    """[n, 3] thinned points of all sweeps around a key frame, in its lidar's frame."""
    return within(
        thinned(accumulated_points(sweeps, T_map_lidar, key_sweeps, key, rule), rule), rule
    )


def accumulated_points(
    sweeps: Sequence[Points],
    T_map_lidar: NDArray[np.float64],
    key_sweeps: Sequence[int],
    key: int,
    rule: LabelRule = LabelRule(),
) -> Points:
    """[n, 3] the points before they are thinned: key frames cropped, their ego-vehicle kept; sweeps
    between them without their ego-vehicle, not cropped."""
    here = inverse(T_map_lidar[key_sweeps[key]])
    around = range(max(0, key - rule.neighbours), min(len(key_sweeps), key + rule.neighbours + 1))
    keys = [key_sweeps[index] for index in around]
    whole = [
        transform(here @ T_map_lidar[index], np.asarray(sweeps[index], np.float64))
        for index in keys
    ]
    between = [
        transform(
            here @ T_map_lidar[index],
            without_ego_vehicle(np.asarray(sweeps[index], np.float64), rule),
        )
        for index in range(keys[0] + 1, keys[-1])
        if index not in keys
    ]
    return np.concatenate([within(np.concatenate(whole), rule), *between])


def without_ego_vehicle(points: Points, rule: LabelRule = LabelRule()) -> Points:
    return points[~is_ego_vehicle(points, rule)]


def is_ego_vehicle(
    points: NDArray[np.floating], rule: LabelRule = LabelRule()
) -> NDArray[np.bool_]:
    """[n]"""
    own = np.zeros(len(points), bool)
    for across, along in rule.own:
        own |= (np.abs(points[:, 0]) < across) & (np.abs(points[:, 1]) < along)
    return own


def within(points: Points, rule: LabelRule = LabelRule()) -> Points:
    flat, high = rule.reach
    return points[(np.abs(points) <= (flat, flat, high)).all(1)]


def thinned(points: Points, rule: LabelRule = LabelRule()) -> Points:
    """One point, their mean, for the points of each cell; cells start half an edge below the least
    of each coordinate (as Open3D's voxel_down_sample)."""
    if not len(points):
        return points
    start = points.min(0) - rule.thinned / 2
    cells = np.floor((points - start) / rule.thinned).astype(np.int64)
    _, cell, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(cell.reshape(-1), axis) for axis in points.T], 1)
    return sums / count[:, None]


def voxelised(points: Points, rule: LabelRule = LabelRule()) -> NDArray[np.uint8]:
    """[X, Y, Z] of points in the lidar's frame, with x forward and y left.

    Only the axes are turned: the origin stays at the lidar. Points outside the range are put on its
    border, so that voxels on the border mean something there or beyond; the last index of an axis
    holds nothing else.
    """
    ahead = np.stack([points[:, 1], -points[:, 0], points[:, 2]], 1)
    index = (ahead.clip(rule.low, rule.high) - rule.low) / rule.voxel_size
    occupied = np.zeros(rule.shape, np.uint8)
    occupied[tuple(np.floor(index).astype(np.int64).T)] = 1
    return occupied
