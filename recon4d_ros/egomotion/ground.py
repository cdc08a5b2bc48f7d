"""The road as a ruler: where a camera sees it, its height above base_link's ground gives every
metre that a lone camera lacks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# metres: a camera lower than this has base_link beside it rather than on the ground, and the rule
# does not hold
LOWEST = 0.3
FARTHEST = 20.0  # metres along the optical axis
TILT, SHARE = (
    0.006,
    0.03,
)  # rad that the car leans against the road, and the share that the road itself is uneven


def inverse_depth(rays: Array, T_base_camera: Array) -> tuple[Array, Array]:
    """Inverse depth and variance [M] that rays [M, 2] (normalised) have if they end on the ground
    (base_link z = 0); NaN where none can."""
    height = float(T_base_camera[2, 3])
    if height < LOWEST:
        return np.full(len(rays), np.nan), np.full(len(rays), np.nan)
    down = -(np.concatenate([rays, np.ones((len(rays), 1))], axis=1) @ T_base_camera[2, :3])
    rho = down / height
    rho = np.where(rho > 1.0 / FARTHEST, rho, np.nan)
    lean = TILT * np.sqrt(1.0 + (rays**2).sum(-1)) / height
    return rho, (SHARE * rho) ** 2 + lean**2
