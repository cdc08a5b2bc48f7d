"""The pose of the rig from features of known place, all cameras together.

Hypotheses come from one camera at a time (P3P in RANSAC, OpenCV's), are held against the
observations of all, and the best is refined with all of them by ego-motion's own solver
(egomotion/pnp.py), in which an uncertain depth says less.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import pnp
from recon4d_ros.egomotion.landmarks import hung
from recon4d_ros.egomotion.pnp import Observations, Prior
from recon4d_ros.localization.features import Features

Array = NDArray[np.float64]

FEWEST = 6  # pairs in a camera that a hypothesis is made of
_ITERATIONS = 300
_REACH = 4.0  # standard deviations within which a pair agrees with a hypothesis
# of a pose of which nothing is known but a hypothesis: metres and radians
_LOOSE = np.diag([10.0, 10.0, 10.0, 0.5, 0.5, 0.5]) ** 2


@dataclass(frozen=True)
class RigPose:
    """T_map_base: [4, 4]. covariance: [6, 6] of it, in base_link. inlier: [M] of the observations.
    cameras: how many cameras have inliers."""

    T_map_base: Array
    covariance: Array
    inlier: NDArray[np.bool_]
    cameras: int

    @property
    def inliers(self) -> int:
        return int(self.inlier.sum())


def observed(
    query: Features,
    seen: NDArray[np.int64],
    known: Features,
    index: NDArray[np.int64],
    T_map_camera: Array,
) -> Observations:
    """Features `seen` of a query as sightings of the features `index` of a keyframe whose cameras
    are at T_map_camera [N, 4, 4]."""
    place = known.take(index)
    origin, bearing = hung(
        place.camera.astype(np.int64), place.ray.astype(np.float64), T_map_camera
    )
    return Observations(
        origin,
        bearing,
        place.rho.astype(np.float64),
        place.variance.astype(np.float64),
        query.camera[seen].astype(np.int64),
        query.ray[seen].astype(np.float64),
        # where the keyframe's own ray is off shows in the query's image, too
        np.hypot(query.sigma[seen], place.sigma).astype(np.float64),
        index,
    )


def solve(T_camera_base: Array, o: Observations) -> RigPose | None:
    """The rig's pose from nothing but pairs, most of which may be wrong; None where no few of them
    make one. T_camera_base: [N, 4, 4]."""
    poses = [
        pose
        for camera in np.unique(o.camera).tolist()
        if (pose := _of_camera(o.take(np.flatnonzero(o.camera == camera)), T_camera_base[camera]))
        is not None
    ]
    if not poses:
        return None
    every = np.stack(poses)
    distance = np.minimum(pnp.evaluate(every, T_camera_base, o), pnp.GATE)
    return refined(T_camera_base, o, every[int(np.argmin(distance.sum(1)))])


def refined(T_camera_base: Array, o: Observations, start: Array) -> RigPose:
    """The pose near `start` [4, 4] that the observations agree on."""
    pose = start
    for _ in range(2):  # what agrees then is what the second round is about
        pose = pnp.solve(T_camera_base, o, Prior(pose, _LOOSE), start=pose).T_map_base
    solution = pnp.solve(T_camera_base, o, Prior(pose, _LOOSE), start=pose)
    share = solution.inliers / max(len(o), 1)
    information = solution.information / pnp.together(max(share, 0.5)) + 1e-6 * np.eye(6)
    return RigPose(
        solution.T_map_base,
        np.asarray(np.linalg.inv(information), np.float64),
        solution.inlier,
        len(np.unique(o.camera[solution.inlier])),
    )


def _of_camera(o: Observations, T_camera_base: Array) -> Array | None:
    """The base's pose by one camera's pairs."""
    if len(o) < FEWEST:
        return None
    points = o.origin + o.bearing / o.rho[:, None]
    try:
        found, turn, shift, inliers = cv2.solvePnPRansac(
            points,
            o.ray,
            np.eye(3),
            None,
            iterationsCount=_ITERATIONS,
            reprojectionError=_REACH * float(np.median(o.sigma)),
            confidence=0.999,
            flags=cv2.SOLVEPNP_AP3P,
        )
    except cv2.error:  # its polishing needs more points than agree
        return None
    if not found or inliers is None or len(inliers) < FEWEST:
        return None
    T_camera_map = geometry.se3(
        np.asarray(cv2.Rodrigues(turn)[0], np.float64), np.asarray(shift, np.float64).ravel()
    )
    if not np.isfinite(T_camera_map).all():
        return None
    return np.asarray(geometry.inverse(T_camera_map) @ T_camera_base, np.float64)
