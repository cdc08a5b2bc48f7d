"""How far a trajectory is from the truth. Poses [F, 4, 4] of base_link, the same frames in both,
each in its own fixed frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros.geometry import inverse, se3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrajectoryScore:
    """path: metres driven (truth). ate: RMSE of the position after the best rigid alignment
    (Umeyama 1991, scale fixed at 1); ate_first: after aligning the first pose only. end_drift:
    position error of the last pose over the path, first pose aligned, percent. segment_drift: mean
    translation error over all segments of the KITTI kind, percent (NaN if the path is shorter than
    the shortest segment). rpe: RMSE of the motion between consecutive frames, metres and degrees.
    errors: [F] position error per frame, first pose aligned, m. distance: [F] m driven.
    """

    frames: int
    path: float
    ate: float
    ate_first: float
    end_drift: float
    segment_drift: float
    segment_rotation: float
    rpe_translation: float
    rpe_rotation: float
    errors: Array
    distance: Array


def score_trajectory(estimate: Array, truth: Array) -> TrajectoryScore:
    """All of `TrajectoryScore` for at least one frame."""
    distance = path_length(truth)
    first = align_first(estimate, truth)
    errors = np.linalg.norm(first[:, :3, 3] - truth[:, :3, 3], axis=1)
    best = umeyama(estimate[:, :3, 3], truth[:, :3, 3]) @ estimate
    residual = np.linalg.norm(best[:, :3, 3] - truth[:, :3, 3], axis=1)
    translation, rotation = relative_errors(estimate, truth)
    segment = segment_errors(estimate, truth, distance)
    total = float(distance[-1])
    return TrajectoryScore(
        frames=len(truth),
        path=total,
        ate=_rms(residual),
        ate_first=_rms(errors),
        end_drift=100.0 * float(errors[-1]) / total if total > 0 else float("nan"),
        segment_drift=segment[0],
        segment_rotation=segment[1],
        rpe_translation=_rms(translation),
        rpe_rotation=_rms(rotation),
        errors=errors,
        distance=distance,
    )


def path_length(poses: Array) -> Array:
    """[F] metres driven up to each frame."""
    return np.concatenate(
        [[0.0], np.cumsum(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1))]
    )


def align_first(estimate: Array, truth: Array) -> Array:
    """The estimate moved rigidly so that its first pose is the truth's."""
    return truth[0] @ inverse(estimate[0]) @ estimate


def umeyama(source: Array, target: Array) -> Array:
    """4x4 rigid motion that takes points [K, 3] nearest to `target` in the least squares (Umeyama
    1991, without scale)."""
    a, b = source.mean(axis=0), target.mean(axis=0)
    u, _, vt = np.linalg.svd((target - b).T @ (source - a))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    rotation = u @ sign @ vt
    return se3(rotation, b - rotation @ a)


def relative_errors(estimate: Array, truth: Array) -> tuple[Array, Array]:
    """Error of the motion between consecutive frames: metres and degrees, [F - 1] each."""
    return _pose_errors(
        inverse(inverse(truth[:-1]) @ truth[1:]) @ inverse(estimate[:-1]) @ estimate[1:]
    )


def segment_errors(estimate: Array, truth: Array, distance: Array) -> tuple[float, float]:
    """Mean drift in percent and in degrees per metre over all segments of 100..800 m that fit, as
    KITTI's odometry benchmark has it.

    Drives shorter than 200 m take a tenth of those lengths (10..80 m), so that a clip has a number
    too.
    """
    lengths = np.arange(100.0, 801.0, 100.0) * (1.0 if distance[-1] >= 200.0 else 0.1)
    starts = np.arange(len(truth))
    translation, rotation = [], []
    for length in lengths:
        ends = np.searchsorted(distance, distance + length)
        fits = ends < len(truth)
        i, j = starts[fits], ends[fits]
        t, r = _pose_errors(
            inverse(inverse(truth[i]) @ truth[j]) @ inverse(estimate[i]) @ estimate[j]
        )
        translation.append(t / length)
        rotation.append(r / length)
    every, turned = np.concatenate(translation), np.concatenate(rotation)
    return (
        (100.0 * float(every.mean()), float(turned.mean()))
        if len(every)
        else (float("nan"), float("nan"))
    )


def _pose_errors(error: Array) -> tuple[Array, Array]:
    if not len(error):
        return np.zeros(0), np.zeros(0)
    angles = np.degrees(Rotation.from_matrix(error[:, :3, :3]).magnitude())
    return np.linalg.norm(error[:, :3, 3], axis=1), angles


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else float("nan")
