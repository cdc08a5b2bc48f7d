"""Does a pose keep what it says of itself: motions between consecutive frames against their stated
covariance.

The error of a motion is xi = log(T_true^-1 T_estimate), [6], metres and radians, in base_link.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from recon4d_ros.geometry import inverse, log

SIGMAS = 3.0
SLACK = 0.02  # metres

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PromiseScore:
    """frames: that said TRACKING. kept: share of them whose position error is within SIGMAS
    standard deviations, along its own direction, plus SLACK. nees: mean normalised error squared
    over the degrees of freedom; 1 is calibrated, more is too sure of itself. nees_low, nees_high:
    its 95 % bounds were the covariances true (Bar-Shalom et al. 2001, section 5.4). NaN without
    frames.
    """

    frames: int
    kept: float
    nees: float
    nees_low: float
    nees_high: float


def motion_errors(estimate: Array, truth: Array) -> Array:
    """[F - 1, 6] errors of the motions between consecutive poses [F, 4, 4]."""
    moved = inverse(estimate[:-1]) @ estimate[1:]
    true = inverse(truth[:-1]) @ truth[1:]
    return np.array([log(one) for one in inverse(true) @ moved]).reshape(-1, 6)


def along_error(error: Array, covariance: Array) -> tuple[Array, Array]:
    """Length [K] of the position errors [K, 6], m, and the standard deviation [K] that the
    covariances [K, 6, 6] state along them."""
    length = np.linalg.norm(error[:, :3], axis=1)
    direction = error[:, :3] / np.maximum(length, 1e-12)[:, None]
    variance = np.einsum("ki,kij,kj->k", direction, covariance[:, :3, :3], direction)
    return length, np.sqrt(np.maximum(variance, 0.0))


def score_promise(error: Array, covariance: Array) -> PromiseScore:
    """Of the motions [K, 6] that were said to be tracked, with their covariances [K, 6, 6]."""
    count = len(error)
    if not count:
        nan = float("nan")
        return PromiseScore(0, nan, nan, nan, nan)
    length, sigma = along_error(error, covariance)
    squared = np.einsum("ki,kij,kj->k", error, np.linalg.pinv(covariance, hermitian=True), error)
    degrees = 6 * count
    return PromiseScore(
        count,
        float(np.mean(length <= SIGMAS * sigma + SLACK)),
        float(squared.sum() / degrees),
        float(chi2.ppf(0.025, degrees) / degrees),
        float(chi2.ppf(0.975, degrees) / degrees),
    )
