"""Driv3R's 4D flow predictor (Fei et al., 2024, section 3.3): what moves, from point maps and poses
against optical flow.

Points that do not move give, seen from another image's camera, the rigid flow; where measured flow
differs from it, something moves. The difference over each pair of images is brought to 0..1 and
averaged over all pairs that an image is part of; what exceeds a threshold moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import ends
from recon4d_ros.dynamics.static_world import move
from recon4d_ros.dynamics.views import View

Plane = NDArray[np.float32]

PAIRS = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 3), (2, 4))
"""Images of a clip of five that the authors compare."""

NEWEST = tuple(sorted(4 - a for a, b in PAIRS if b == 4))
"""How many images back those are that the newest one is compared with. The other pairs have no say
in its score, and the older images' masks come too late, so that of a sliding clip of five these are
all that there is to compute."""


def flow_difference(
    view: View, q: Plane, T_other_image: NDArray[np.float64], flow: NDArray[np.float32]
) -> Plane:
    """[h, w] pixels between rigid and measured flow. q: [h, w] inverse depth, NaN = none. flow: [h,
    w, 2] to the other image, NaN = none.

    NaN where either is not known, or the point is not in front of the other camera.
    """
    h, w = q.shape
    u, v, z = move(view, view, view.x, view.y, q, T_other_image)
    x, y = np.arange(w, dtype=np.float32)[None, :], np.arange(h, dtype=np.float32)[:, None]
    return np.where(z > 0, np.hypot(u - x - flow[..., 0], v - y - flow[..., 1]), np.float32(np.nan))


def returning(
    flow: NDArray[np.float32], back: NDArray[np.float32], within: float
) -> NDArray[np.float32]:
    """Measured flow [h, w, 2] from one image to another, NaN where it ends outside or where `back`,
    measured from there, does not lead to within so many pixels of the start: what the other image
    does not show has no flow. For flow that is less sure of itself than RAFT."""
    x, y = ends(flow[..., 0], flow[..., 1])
    there = cv2.remap(
        back, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(np.nan, np.nan)
    )
    with np.errstate(invalid="ignore"):
        good = np.hypot(flow[..., 0] + there[..., 0], flow[..., 1] + there[..., 1]) < within
    return np.where(good[..., None], flow, np.float32(np.nan))


def normalized(difference: Plane, least: float = 0.0, most: float = np.inf) -> Plane:
    """[h, w] brought to 0..1 between its smallest and its largest value; NaN stays.

    least, most: pixels. By the published rule (0 and infinity) something moves in every pair, if
    only noise, and one wrong match hides whatever moves: here the largest value is never taken as
    smaller or larger than these, and what exceeds it is 1.
    """
    known = np.isfinite(difference)
    if not known.any():
        return difference
    low, high = float(difference[known].min()), float(difference[known].max())
    return np.minimum(
        (difference - np.float32(low)) / np.float32(min(max(high - low, least, 1e-9), most)),
        np.float32(1),
    )


def motion_score(shares: Sequence[Plane]) -> Plane:
    """[h, w] in 0..1, the mean over an image's pairs of what normalized() gave. 0 where no pair
    knows anything."""
    known = np.isfinite(shares)
    total = np.where(known, shares, np.float32(0)).sum(0)
    return (total / np.maximum(known.sum(0), 1)).astype(np.float32)
