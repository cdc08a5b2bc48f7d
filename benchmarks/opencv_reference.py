"""The baseline beside ours: OpenCV StereoSGBM + KLT + PnP visual odometry, frame to frame, on a
rectified stereo bag."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.preprocess import decode
from recon4d_ros.geometry import inverse, se3
from recon4d_ros.runs.replay import frame_sets
from recon4d_ros.sync import Synchronizer, SyncParameters


@dataclass(frozen=True)
class ReferenceRun:
    """stamps_ns: [T]; poses: [T, 4, 4] T_map_base; rate: frame sets/s, decoding included."""

    stamps_ns: NDArray[np.int64]
    poses: NDArray[np.float64]
    rate: float


def run(bag: Path) -> ReferenceRun:
    """Odometry of the bag's first two cameras (left, right)."""
    with BagReader(bag) as reader:
        rig = reader.rig()
        sets = list(frame_sets(reader, Synchronizer(rig.names, SyncParameters())))
    left, right = rig.cameras[:2]
    k = left.k
    baseline = float((inverse(left.T_base_camera) @ right.T_base_camera)[0, 3])
    matcher = cv2.StereoSGBM_create(
        0,
        128,
        5,
        8 * 25,
        32 * 25,
        disp12MaxDiff=1,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
    )
    T_map_base = np.eye(4)
    poses, before, points, depth = [], None, np.empty((0, 1, 2), np.float32), None
    start = time.perf_counter()
    for frame_set in sets:
        grey, other = (
            decode(frame_set.images[name], 1)[..., 0] for name in (left.name, right.name)
        )
        if before is not None and depth is not None and len(points):
            tracked, status, _ = cv2.calcOpticalFlowPyrLK(
                before, grey, points, None, winSize=(21, 21), maxLevel=3
            )
            z = depth[points[:, 0, 1].round().astype(int), points[:, 0, 0].round().astype(int)]
            good = (status.ravel() == 1) & (z > 1) & (z < 60)
            rays = (points[good, 0] - k[:2, 2]) / k[[0, 1], [0, 1]]
            xyz = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) * z[good, None]
            cv2.setRNGSeed(0)
            found, rotation, translation, _ = cv2.solvePnPRansac(
                xyz,
                tracked[good].astype(np.float64),
                k,
                None,
                iterationsCount=200,
                reprojectionError=1.0,
            )
            if found:
                T_now_before = se3(cv2.Rodrigues(rotation)[0], translation.ravel())
                T_map_base = (
                    T_map_base
                    @ left.T_base_camera
                    @ inverse(T_now_before)
                    @ inverse(left.T_base_camera)
                )
        disparity = matcher.compute(grey, other).astype(np.float32) / 16
        depth = np.where(disparity > 0.5, k[0, 0] * baseline / np.maximum(disparity, 0.5), 0)
        points = cv2.goodFeaturesToTrack(grey, 800, 0.01, 10)
        before = grey
        poses.append(T_map_base)
    return ReferenceRun(
        np.array([s.stamp_ns for s in sets]),
        np.stack(poses),
        len(sets) / (time.perf_counter() - start),
    )
