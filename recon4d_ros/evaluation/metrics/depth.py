"""Depth against the truth, per camera and range, in sums that never grow (Eigen et al. 2014 for
AbsRel, SqRel, RMSE and delta)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RANGES = (0.0, 10.0, 20.0, 40.0, 80.0, np.inf)
# Columns of the sums: truth pixels, estimates, |e|/d, e^2/d, e^2, delta < 1.25, 1.25^2, 1.25^3.
_TRUTH, _ESTIMATES, _ABS, _SQUARE_REL, _SQUARE, _DELTA = 0, 1, 2, 3, 4, 5


@dataclass(frozen=True)
class DepthScore:
    """abs_rel, sq_rel (m), rmse (m), delta1..3 (share within a factor 1.25, 1.25^2, 1.25^3) where
    there is an estimate; coverage: the share of the truth's pixels that have one. pixels: of the
    truth. NaN where nothing can be said."""

    pixels: int
    coverage: float
    abs_rel: float
    sq_rel: float
    rmse: float
    delta1: float
    delta2: float
    delta3: float


def score_depth(sums: NDArray[np.float64]) -> DepthScore:
    """From sums [8], added over whatever cameras and ranges are meant."""
    count = sums[_ESTIMATES]
    mean = sums / count if count else np.full(8, np.nan)
    return DepthScore(
        int(sums[_TRUTH]),
        float(count / sums[_TRUTH]) if sums[_TRUTH] else float("nan"),
        float(mean[_ABS]),
        float(mean[_SQUARE_REL]),
        float(np.sqrt(mean[_SQUARE])),
        *(float(mean[_DELTA + i]) for i in range(3)),
    )


@dataclass
class DepthAccumulator:
    """`add` a camera's pixels at a time, then ask for `score`. sums: [N, ranges, 8]."""

    cameras: Sequence[str]
    ranges: Sequence[float] = RANGES
    sums: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((len(self.cameras), len(self.ranges) - 1, 8))

    def add(self, camera: int, depth: NDArray[np.floating], truth: NDArray[np.floating]) -> None:
        """depth, truth: any like shape, m; a pixel counts where truth is finite and above 0, and is
        covered where depth is, too."""
        known = np.isfinite(truth) & (truth > 0)
        t = truth[known].astype(np.float64)
        d = depth[known].astype(np.float64)
        covered = np.isfinite(d) & (d > 0)
        where = np.searchsorted(self.ranges, t, side="right") - 1
        bins = len(self.ranges) - 1
        self.sums[camera, :, _TRUTH] += np.bincount(where, minlength=bins)[:bins]
        t, d, where = t[covered], d[covered], where[covered]
        error = np.abs(d - t)
        ratio = np.maximum(d / t, t / d)
        columns = (
            np.ones_like(t),
            error / t,
            error**2 / t,
            error**2,
            ratio < 1.25,
            ratio < 1.25**2,
            ratio < 1.25**3,
        )
        for column, values in enumerate(columns, start=1):
            self.sums[camera, :, column] += np.bincount(where, weights=values, minlength=bins)[
                :bins
            ]

    def score(
        self, camera: str | None = None, nearer: float = np.inf, farther: float = 0.0
    ) -> DepthScore:
        """Over one camera or all, and the ranges that lie within farther..nearer (m)."""
        bounds = np.asarray(self.ranges)
        within = (bounds[:-1] >= farther) & (bounds[1:] <= nearer)
        chosen = self.sums if camera is None else self.sums[[list(self.cameras).index(camera)]]
        return score_depth(chosen[:, within].sum(axis=(0, 1)))
