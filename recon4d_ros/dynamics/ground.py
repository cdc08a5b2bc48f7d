"""The road as a plane in base_link, from what depth shows of it; z = 0 by calibration until
then."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = np.array([0.0, 0.0, 1.0, 0.0])
NEAR, FAR = 3.0, 25.0
FEWEST = 150
"""A plane that fewer points support is not believed."""


def find_level(points: NDArray[np.float32]) -> Array | None:
    """The level plane [4] that most points [K, 3] in base_link lie on, among the lower half of what
    is seen; None if none stands out.

    For rigs whose base_link is not on the ground (KITTI's is a camera).
    """
    distance = np.hypot(points[:, 0], points[:, 1])
    z = points[(distance > NEAR) & (distance < FAR), 2]
    if len(z) < 2 * FEWEST:
        return None
    edges = np.arange(-4.0, 2.0, 0.1)
    count, _ = np.histogram(z, edges)
    wide = np.convolve(count, np.ones(3), "same")
    best = int(np.argmax(wide))
    if wide[best] < max(FEWEST, 0.15 * len(z)) or np.median(z) < edges[best] - 0.3:
        return None
    return np.array([0.0, 0.0, 1.0, -(edges[best] + 0.05)])


def refine_plane(plane: Array, points: NDArray[np.float32], forget: float = 0.2) -> Array:
    """The plane [4] (n, d; n . p + d = 0 in base_link, n up) moved towards what points [K, 3] near
    it say.

    Points within 0.4 m of the plane are fitted by least squares with Tukey weights in three rounds.
    A fit that tilts more than 4 degrees from level is not believed. forget: share of the new fit.
    """
    distance = np.hypot(points[:, 0], points[:, 1])
    height = points @ plane[:3].astype(np.float32) + np.float32(plane[3])
    near = points[(np.abs(height) < 0.4) & (distance > NEAR) & (distance < FAR)].astype(np.float64)
    if len(near) < FEWEST:
        return plane
    design = np.column_stack([near[:, :2], np.ones(len(near))])
    solution = np.array([-plane[0] / plane[2], -plane[1] / plane[2], -plane[3] / plane[2]])
    start = solution.copy()
    # Prior: the plane so far, worth 30 points 10 m away, keeps the fit whole where all points lie
    # to one side.
    prior = np.diag([3000.0, 3000.0, 30.0])
    for width in (0.4, 0.25, 0.15):
        rest = near[:, 2] - design @ solution
        weight = np.square(np.maximum(1 - np.square(rest / width), 0))
        if np.count_nonzero(weight) < FEWEST:
            return plane
        weighted = design * weight[:, None]
        solution = np.linalg.solve(
            design.T @ weighted + prior, weighted.T @ near[:, 2] + prior @ start
        )
    if np.hypot(solution[0], solution[1]) > np.tan(np.radians(4)):
        return plane
    mixed = (1 - forget) * plane + forget * np.array(
        [-solution[0], -solution[1], 1.0, -solution[2]]
    )
    return mixed / np.linalg.norm(mixed[:3])
