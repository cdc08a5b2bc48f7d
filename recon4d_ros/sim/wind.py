"""Wind in the trees: crowns sway, each lump of leaves in its own time. To the truth they stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.solids import Solids

_GUST, _FLUTTER = (0.21, 0.37), (0.55, 1.1)  # Hz: of a tree, and of its lumps


def swayed(crowns: Solids, t: float, reach: float) -> Solids:
    """Ellipsoids as the wind has them at time t (seconds). reach: metres of sway."""
    shift = sway(crowns.corners.mean(1), t, reach)
    frame = crowns.frame.copy()
    frame[..., 3] -= np.einsum("pij,pj->pi", crowns.frame[..., :3], shift)
    return replace(crowns, frame=frame, corners=crowns.corners + shift[:, None])


def sway(places: NDArray[np.float64], t: float, reach: float) -> NDArray[np.float64]:
    """Displacement [P, 3] of lumps of leaves at `places`: a gust that travels with the wind, and a
    flutter of each lump; higher ones more."""
    x, y, z = places.T
    gust = sum(np.sin(2 * np.pi * f * t - 0.11 * x + 1.7 * f * y) for f in _GUST) / 2.0
    own = np.modf(np.abs(np.sin(x * 12.9898 + y * 78.233 + z * 37.719)) * 43758.5453)[0]
    rate = _FLUTTER[0] + (_FLUTTER[1] - _FLUTTER[0]) * own
    flutter = np.sin(2 * np.pi * (rate * t + own))
    high = np.clip((z - 2.0) / 5.0, 0.0, 1.2)
    along = reach * high * (0.7 * gust + 0.45 * flutter)
    across = reach * high * 0.4 * np.cos(2 * np.pi * (rate * t + 1.7 * own))
    return np.stack([along, across, 0.2 * reach * high * flutter], axis=1)
