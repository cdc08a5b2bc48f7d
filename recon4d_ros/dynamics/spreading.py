"""Evidence spread over the picture, as far as its edges: what is smooth says nothing of its own
motion, but its outline does."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE = 8
"""Pixels of the motion grid from one superpixel's seed to the next."""

COLOR_SCALE, DEPTH_SCALE = 25.0, 0.4
"""Difference in colour (grey levels) and relative difference in inverse depth at which neighbours
part."""

BOND = 4.0
"""Weight of a pixel of common border against a pixel's own evidence."""

PRIOR = 0.15
"""Weight of a pixel's prior where its flow is known; half as much where nothing is known of it."""

ROUNDS = 60
"""Of conjugate gradients, at most."""

LEAST = 4.0
"""Evidence of motion within a superpixel's reach, from which it is looked at."""

MARGIN = 2 * SIDE
"""Pixels beyond such evidence that are looked at."""


def superpixels(color: NDArray[np.uint8]) -> tuple[NDArray[np.int32], int]:
    """Number of each pixel's superpixel [h, w] and how many there are: watershed from a grid of
    seeds (Meyer, 1992). color: [h, w, 3]."""
    h, w = color.shape[:2]
    rows, columns = np.arange(SIDE // 2, h, SIDE), np.arange(SIDE // 2, w, SIDE)
    count = len(rows) * len(columns)
    # The transform leaves a border of one pixel unlabelled.
    seeds = np.zeros((h + 2, w + 2), np.int32)
    seeds[np.ix_(rows + 1, columns + 1)] = np.arange(1, count + 1).reshape(len(rows), len(columns))
    framed = cv2.copyMakeBorder(np.ascontiguousarray(color), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    labels = cv2.watershed(framed, seeds)[1:-1, 1:-1].astype(np.int16)
    for _ in range(2):  # the lines between go to a neighbour
        labels = np.where(labels < 1, cv2.dilate(labels, np.ones((3, 3), np.uint8)), labels)
    return np.maximum(labels.astype(np.int32) - 1, 0), count


def spread_near(
    color: NDArray[np.uint8], q: Plane, known: Mask, evidence: Plane, prior: Plane
) -> Plane:
    """`spread` around the evidence, or the prior, that something moves; farther off, and without
    any, everything stands."""
    belief = np.full(evidence.shape, -1, np.float32)
    side = 2 * SIDE - 3  # about what one superpixel spans
    motion = evidence + np.float32(PRIOR) * (prior + 1)
    enough = (
        cv2.boxFilter(motion, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
        > LEAST
    )
    rows, columns = np.flatnonzero(enough.any(1)), np.flatnonzero(enough.any(0))
    if len(rows) == 0:
        return belief
    window = np.s_[
        max(rows[0] - MARGIN, 0) : rows[-1] + MARGIN + 1,
        max(columns[0] - MARGIN, 0) : columns[-1] + MARGIN + 1,
    ]
    belief[window] = spread(
        color[window], q[window], known[window], evidence[window], prior[window]
    )
    return belief


def spread(color: NDArray[np.uint8], q: Plane, known: Mask, evidence: Plane, prior: Plane) -> Plane:
    """Belief [h, w] in -1 (stands) .. 1 (moves): the random walker (Grady, 2006) over superpixels,
    with evidence as its springs.

    color: [h, w, 3]. q: [h, w] inverse depth by flow, where known. evidence: [h, w], sign and
    weight of each pixel's own. prior: [h, w] in
    -1..1, the belief before it.
    """
    labels, count = superpixels(color)
    flat = labels.ravel()

    def total(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(flat, values.ravel(), count), np.float64)

    size, seen = np.maximum(np.bincount(flat, minlength=count), 1), total(known)
    mean_color = np.stack([total(color[..., i]) / size for i in range(3)])
    depth = total(np.where(known, q, 0)) / np.maximum(seen, 1)
    sides = ((labels[:-1], labels[1:]), (labels[:, :-1], labels[:, 1:]))
    pairs = np.concatenate(
        [
            (np.minimum(one, other) * count + np.maximum(one, other))[one != other]
            for one, other in sides
        ]
    )
    border = np.bincount(pairs, minlength=count * count)
    joint = np.flatnonzero(border)
    a, b = joint // count, joint % count
    apart = np.square(mean_color[:, a] - mean_color[:, b]).sum(0) / COLOR_SCALE**2
    step = np.abs(depth[a] - depth[b]) / np.maximum(np.maximum(depth[a], depth[b]), 0.03)
    sure = seen > 0.3 * size
    apart += np.square(np.where(sure[a] & sure[b], step, 0.1) / DEPTH_SCALE)
    bond = BOND * border[joint] * (np.exp(-apart) + 1e-3)
    own, weight = total(evidence), PRIOR * 0.5 * (size + seen)
    diagonal = (
        total(np.abs(evidence)) + weight + np.bincount(a, bond, count) + np.bincount(b, bond, count)
    )
    both = np.concatenate([a, b]), np.concatenate([b, a])
    bonds = sparse.csr_matrix((np.concatenate([bond, bond]), both), (count, count))
    return _solve(diagonal, bonds, own + weight * total(prior) / size)[labels].astype(np.float32)


def _solve(
    diagonal: NDArray[np.float64], bonds: sparse.csr_matrix, right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """x with diagonal x - bonds x = right, to a hundredth, by conjugate gradients: LAPACK would
    wake a thread for every core."""
    x = right / diagonal
    rest = bonds @ x  # right - diagonal x is zero at the start
    direction = rest / diagonal
    energy = float(rest @ direction)
    for _ in range(ROUNDS):
        if energy <= 1e-4 * float(x @ (diagonal * x)):
            break
        image = diagonal * direction - bonds @ direction
        length = energy / float(direction @ image)
        x += length * direction
        rest -= length * image
        scaled = rest / diagonal
        before, energy = energy, float(rest @ scaled)
        direction = scaled + energy / before * direction
    return x
