"""The road as a plane in base_link: z = 0 by calibration, refined by what depth shows of it."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = np.array([0.0, 0.0, 1.0, 0.0])


def refine_plane(plane: Array, points: NDArray[np.float32], forget: float = 0.2) -> Array:
    """The plane [4] (n, d; n . p + d = 0 in base_link, n up) moved towards what points [K, 3] near it say.

    Points within 0.4 m of the plane and 3 to 25 m of the car are fitted by three rounds of least squares with Tukey weights. A fit
    that tilts more than 3 degrees from level or rests on fewer than 200 points is not believed. forget: share of the new fit.
    """
    distance = np.hypot(points[:, 0], points[:, 1])
    height = points @ plane[:3] + plane[3]
    near = points[(np.abs(height) < 0.4) & (distance > 3) & (distance < 25)].astype(np.float64)
    if len(near) < 200:
        return plane
    design = np.column_stack([near[:, :2], np.ones(len(near))])
    solution = np.array([-plane[0] / plane[2], -plane[1] / plane[2], -plane[3] / plane[2]])
    for width in (0.4, 0.2, 0.1):
        rest = near[:, 2] - design @ solution
        weight = np.square(np.maximum(1 - np.square(rest / width), 0))
        if np.count_nonzero(weight) < 200:
            return plane
        weighted = design * weight[:, None]
        # A prior of level ground keeps the fit whole where all points lie to one side.
        solution = np.linalg.solve(design.T @ weighted + np.diag([1.0, 1.0, 1.0]), weighted.T @ near[:, 2] + solution)
    if np.hypot(solution[0], solution[1]) > np.tan(np.radians(3)):
        return plane
    mixed = (1 - forget) * plane + forget * np.array([-solution[0], -solution[1], 1.0, -solution[2]])
    return mixed / np.linalg.norm(mixed[:3])
