"""Where keyframes are, by all that is known between them: a pose graph, solved by GTSAM (Dellaert
and Kaess, Foundations and Trends in Robotics 2017, section 1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry

Array = NDArray[np.float64]

# loops: standard deviations from which an edge has less and less of a say
DOUBT = 2.0
GATE = 40.0  # squared Mahalanobis distance (six degrees of freedom) of a loop that is wrong
_TURN_FIRST = np.array([3, 4, 5, 0, 1, 2])  # GTSAM's twists are (w, v), ours (v, w)


@dataclass(frozen=True)
class Edge:
    """Keyframe b as seen from a: T_a_b [4, 4], covariance [6, 6] of it in b (v, w). loop: by
    recognition, so that it may be wrong."""

    a: int
    b: int
    T_a_b: Array
    covariance: Array
    loop: bool = False


def available() -> bool:
    """Whether GTSAM is installed (requirements/maps.txt)."""
    return find_spec("gtsam") is not None


def solved(poses: Array, edges: Sequence[Edge], fixed: Collection[int]) -> Array:
    """Poses [K, 4, 4] that fit the edges best, from poses that are near; those of `fixed`, and
    those that no edge knows, stay. A loop that does not fit all the rest is left out."""
    out = _solved(poses, edges, fixed)
    sound = [edge for edge in edges if not edge.loop or _off(edge, out) < GATE]
    return out if len(sound) == len(edges) else _solved(out, sound, fixed)


def _off(edge: Edge, poses: Array) -> float:
    """Squared Mahalanobis distance of an edge."""
    error = geometry.log(geometry.inverse(poses[edge.a] @ edge.T_a_b) @ poses[edge.b])
    return float(error @ np.linalg.solve(edge.covariance, error))


def _solved(poses: Array, edges: Sequence[Edge], fixed: Collection[int]) -> Array:
    import gtsam

    graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    known = sorted({edge.a for edge in edges} | {edge.b for edge in edges})
    for index in known:
        values.insert(index, gtsam.Pose3(poses[index]))
        if index in fixed:
            graph.add(gtsam.NonlinearEqualityPose3(index, gtsam.Pose3(poses[index])))
    for edge in edges:
        if edge.a in fixed and edge.b in fixed:
            continue
        covariance = edge.covariance[np.ix_(_TURN_FIRST, _TURN_FIRST)]
        noise: gtsam.noiseModel.Base = gtsam.noiseModel.Gaussian.Covariance(
            0.5 * (covariance + covariance.T)
        )
        if edge.loop:
            robust = gtsam.noiseModel.mEstimator.Cauchy.Create(DOUBT)
            noise = gtsam.noiseModel.Robust.Create(robust, noise)
        graph.add(gtsam.BetweenFactorPose3(edge.a, edge.b, gtsam.Pose3(edge.T_a_b), noise))
    result = gtsam.LevenbergMarquardtOptimizer(graph, values).optimize()
    out = poses.copy()
    for index in known:
        if index not in fixed:
            out[index] = result.atPose3(index).matrix()
    return out
