"""Driv3R's 4D flow predictor (Fei et al., 2024, section 3.3): what moves, from point maps and poses against optical flow.

Points that do not move give, seen from another image's camera, the rigid flow; where measured flow differs from it, something moves. The
difference over each pair of images is brought to 0..1 and averaged over all pairs that an image is part of; what exceeds a threshold moves.

The authors measure flow with RAFT and refine masks with SAM 2. Neither is here: any measured flow does (flow.py's FlowMeter, for one), and
the mask is what the rule itself says. All units of length cancel: points and poses share one, metric or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse, project, transform

PAIRS = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 3), (2, 4))
"""Images of a clip of five that the authors compare."""

THRESHOLD = 0.6  # of the mean normalized difference, as published


@dataclass(frozen=True)
class PosedPoints:
    """One image: points [h, w, 3] of its pixels in a frame that all images share (NaN = none); k: [3, 3] of these pixels; T_world_camera:
    [4, 4] its camera in that frame."""

    points: NDArray[np.float32]
    k: NDArray[np.float64]
    T_world_camera: NDArray[np.float64]


def rigid_flow(image: PosedPoints, other: PosedPoints) -> NDArray[np.float32]:
    """[h, w, 2] pixels from where each point of `image` is seen to where `other` would see it if nothing moved. NaN where it has no point,
    or one that is not in front of the other camera."""
    h, w = image.points.shape[:2]
    pixels, _ = project(transform(inverse(other.T_world_camera), image.points.astype(np.float64)), other.k)
    v, u = np.indices((h, w))
    return (pixels - np.stack([u, v], -1)).astype(np.float32)


def flow_difference(image: PosedPoints, other: PosedPoints, flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """[h, w] pixels between the rigid flow and the measured one, [h, w, 2] from `image` to `other`. NaN where either is."""
    return np.linalg.norm(rigid_flow(image, other) - flow, axis=-1)


def returning(flow: NDArray[np.float32], back: NDArray[np.float32], within: float = 3.0) -> NDArray[np.float32]:
    """Measured flow [h, w, 2] from one image to another, NaN where it ends outside or where `back`, measured from there, does not lead to
    within so many pixels of the start: what the other image does not show has no flow. For flow that is less sure of itself than RAFT."""
    v, u = np.indices(flow.shape[:2], np.float32)
    none = (np.nan, np.nan)
    ends = cv2.remap(back, u + flow[..., 0], v + flow[..., 1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=none)
    with np.errstate(invalid="ignore"):
        good = np.linalg.norm(flow + ends, axis=-1) < within
    return np.where(good[..., None], flow, np.float32(np.nan))


def normalized(difference: NDArray[np.float32], least: float = 0.0) -> NDArray[np.float32]:
    """[h, w] brought to 0..1 between its smallest and its largest value; NaN stays.

    least: pixels. The published rule (0) finds something that moves in every pair, if only noise; where nothing differs by `least` or
    more, it is the measure in place of the largest value.
    """
    if not np.isfinite(difference).any():
        return np.full_like(difference, np.nan)
    low, high = float(np.nanmin(difference)), float(np.nanmax(difference))
    return ((difference - low) / max(high - low, least, 1e-9)).astype(np.float32)


def motion_scores(
    images: Sequence[PosedPoints],
    flows: Mapping[tuple[int, int], NDArray[np.float32]],
    pairs: Sequence[tuple[int, int]] = PAIRS,
    least: float = 0.0,
) -> list[NDArray[np.float32]]:
    """Per image [h, w] in 0..1: how much of the largest difference each pixel shows, averaged over its pairs. NaN where no pair sees it.

    flows: (i, j) -> [h, w, 2] measured from image i to image j, both ways for every pair.
    """
    scores = []
    for i, image in enumerate(images):
        others = [b if a == i else a for a, b in pairs if i in (a, b)]
        shares = [normalized(flow_difference(image, images[j], flows[i, j]), least) for j in others]
        if not shares:
            scores.append(np.full(image.points.shape[:2], np.nan, np.float32))
            continue
        known = np.isfinite(shares)
        count = known.sum(0)
        scores.append(np.where(count > 0, np.where(known, shares, 0).sum(0) / np.maximum(count, 1), np.nan).astype(np.float32))
    return scores


def moving(score: NDArray[np.float32], threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """[h, w] bool: what moves; not where nothing is known."""
    return np.nan_to_num(score, nan=0.0) > threshold
