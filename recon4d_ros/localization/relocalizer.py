"""Where a frame set was taken, by keyframes alone: no prior, one answer or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion.pnp import Observations
from recon4d_ros.localization import rig_pose
from recon4d_ros.localization.features import Features
from recon4d_ros.localization.keyframes import Keyframe
from recon4d_ros.localization.matching import matches
from recon4d_ros.localization.rig_pose import RigPose

Array = NDArray[np.float64]
Read = Callable[[Keyframe], Features]

ALONE = 12  # pairs of one keyframe that have to agree before it has a say
SAME_PLACE, SAME_TURN = 1.5, np.radians(4.0)  # metres and radians between two answers that are one
ANOTHER = 5.0  # metres between two answers of which one has to be wrong
RIVAL = 0.6  # share of the best answer's pairs with which another place contradicts it
TILT, RISE, SLOPE = np.radians(8.0), 0.6, 0.08  # of the car against a keyframe near by: it is a car
REACH = 40.0  # metres from a keyframe at which it is still recognised
# largest standard deviation of a pose that is an answer: metres and radians
SURE, SURE_TURN = 0.4, np.radians(1.2)
TOGETHER = 4  # keyframes whose features are taken together for the answer
FLOOR = np.diag([0.05, 0.05, 0.05, 0.002, 0.002, 0.002]) ** 2
"""Covariance that no answer goes below: keyframes' own poses and depths are not perfect."""


@dataclass(frozen=True)
class Answer:
    """T_map_base: [4, 4]. covariance: [6, 6], in base_link. inliers: pairs that agree. keyframes:
    indices of those that say so, each by itself."""

    T_map_base: Array
    covariance: Array
    inliers: int
    keyframes: tuple[int, ...]


@dataclass(frozen=True)
class _Vote:
    keyframe: int
    pose: RigPose
    known: Features


def find(
    query: Features,
    T_camera_base: Array,
    frames: Sequence[Keyframe],
    candidates: Sequence[int],
    read: Read,
    min_inliers: int,
) -> tuple[Answer | None, str]:
    """The pose of a frame set with these features among keyframes, or None and why.

    T_camera_base: [N, 4, 4] of the query's cameras. candidates: indices of keyframes, most likely
    first. read: a keyframe's features; may raise MapError.
    """
    votes = []
    for index in candidates:
        known = read(frames[index])
        pose = _by(query, T_camera_base, [(frames[index], known)])
        if pose is not None and pose.inliers >= ALONE and plausible(pose.T_map_base, frames[index]):
            votes.append(_Vote(index, pose, known))
    if not votes:
        return None, f"none of {len(candidates)} keyframes that look alike agrees with what is seen"
    best = max(votes, key=lambda vote: vote.pose.inliers)
    for vote in votes:
        far = apart(vote.pose.T_map_base, best.pose.T_map_base)[0] > ANOTHER
        if far and vote.pose.inliers >= RIVAL * best.pose.inliers:
            return None, "two places look alike: neither is believed"
    agreeing = [
        vote for vote in votes if _one(vote.pose.T_map_base, best.pose.T_map_base) or vote is best
    ]
    agreeing = sorted(agreeing, key=lambda vote: -vote.pose.inliers)[:TOGETHER]
    pose = _by(
        query,
        T_camera_base,
        [(frames[vote.keyframe], vote.known) for vote in agreeing],
        best.pose.T_map_base,
    )
    if pose is None or not plausible(pose.T_map_base, frames[best.keyframe]):
        return None, "the keyframes that look alike do not agree with each other"
    deviation = np.sqrt(np.diag(pose.covariance))
    if pose.inliers < min_inliers:
        return None, f"{pose.inliers} features agree: too few"
    if deviation[:3].max() > SURE or deviation[3:].max() > SURE_TURN:
        return None, f"the pose is known to {deviation[:3].max():.1f} m only"
    return (
        Answer(
            pose.T_map_base,
            pose.covariance + FLOOR,
            pose.inliers,
            tuple(vote.keyframe for vote in agreeing),
        ),
        "",
    )


def _by(
    query: Features,
    T_camera_base: Array,
    known: Sequence[tuple[Keyframe, Features]],
    start: Array | None = None,
) -> RigPose | None:
    """By the features of these keyframes together."""
    parts = []
    for frame, features in known:
        seen, index = matches(query.descriptor, features.descriptor)
        parts.append(
            rig_pose.observed(query, seen, features, index, frame.T_map_base @ frame.T_base_camera)
        )
    o = Observations.join(parts)
    if len(o) < rig_pose.FEWEST:
        return None
    if start is not None:
        return rig_pose.refined(T_camera_base, o, start)
    return rig_pose.solve(T_camera_base, o)


def apart(a: Array, b: Array) -> tuple[float, float]:
    """Metres and radians between two poses [4, 4]."""
    xi = geometry.log(geometry.inverse(a) @ b)
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.linalg.norm(xi[3:]))


def _one(a: Array, b: Array) -> bool:
    metres, radians = apart(a, b)
    return metres < SAME_PLACE and radians < SAME_TURN


def plausible(T_map_base: Array, frame: Keyframe) -> bool:
    """Whether a car can stand there: upright, and at the height of the road, as it did at a
    keyframe near by. A wrong pose hardly ever does."""
    relative = geometry.inverse(frame.T_map_base) @ T_map_base
    distance = float(np.linalg.norm(relative[:2, 3]))
    tilt = float(np.arccos(np.clip(relative[2, 2], -1.0, 1.0)))
    return distance < REACH and tilt < TILT and abs(float(relative[2, 3])) < RISE + SLOPE * distance
