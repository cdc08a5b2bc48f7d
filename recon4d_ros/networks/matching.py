"""Matching without learned weights, in operations of static shape: light-robust descriptors, cost
volumes, semi-global aggregation, sub-bin depth.

Volumes are *scores* [B, h, w, D] (higher is better), planes last so that the semi-global step runs
over contiguous memory. A plane is an inverse depth (or a disparity, which is one up to a factor).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from recon4d_ros.networks.working_image import last_index

Triple = tuple[Tensor, Tensor, Tensor]

CENSUS_5 = tuple(
    (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy, dx) != (0, 0)
)  # 24 neighbours
CENSUS_8 = (
    (-2, -1),
    (-2, 1),
    (-1, -2),
    (-1, 2),
    (1, -2),
    (1, 2),
    (2, -1),
    (2, 1),
)  # a ring of 8: a third of the samples, most of the evidence


def soft_census(
    grey: Tensor, offsets: tuple[tuple[int, int], ...], softness: float = 0.02
) -> Tensor:
    """Descriptors [B, C, h, w] of unit length (or less, where there is no texture) from grey images
    [B, 1, h, w] in 0..1.

    The census transform (Zabih and Woodfill 1994) says which neighbours are brighter; here each bit
    is the soft sign d / (|d| + softness), and the product of two descriptors is one minus their
    soft Hamming distance: blind to gain and bias of the camera, tame under noise. A pixel whose
    neighbourhood is flat to a few grey levels gets a short descriptor, so that it votes for
    nothing.
    """
    h, w = grey.shape[-2:]
    padded = F.pad(grey, (2, 2, 2, 2), mode="replicate")
    around = torch.cat(
        [padded[:, :, 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w] for dy, dx in offsets], 1
    )
    difference = around - grey
    sign = difference / (difference.abs() + softness)
    return sign * torch.rsqrt((sign * sign).sum(1, keepdim=True) + 0.1 * len(offsets))


def rectified_scores(left: Tensor, right: Tensor, planes: int) -> Tensor:
    """Scores [h, w, D] of a rectified pair's descriptors [C, 2h, 2w], summed over blocks of 2x2:
    plane j is disparity D - 1 - j (of h x w pixels), left pixel u against right pixel u - d.

    One batched product of all pixels of a row against all of the other's, of which the band is cut
    out by a skewed reshape (no gather). Where u - d leaves the image the score is 0, as for no
    evidence.
    """
    h, w = left.shape[1] // 2, left.shape[2] // 2
    beyond = F.pad(_rows_of_blocks(right), (planes - 1, 0))  # cheaper than to pad the product
    product = torch.matmul(_rows_of_blocks(left).transpose(1, 2), beyond) * 0.25
    # [h, u, column u - d + D - 1]
    skewed = F.pad(product.reshape(h, w * (w + planes - 1)), (0, w))
    return skewed.reshape(h, w, w + planes)[:, :, :planes]


def _rows_of_blocks(x: Tensor) -> Tensor:
    """[C, 2h, 2w] -> [h, 4C, w]: a product over the 4C sums over each 2x2 block."""
    c, rows, columns = x.shape
    return (
        x.reshape(c, rows // 2, 2, columns // 2, 2)
        .permute(1, 0, 2, 4, 3)
        .reshape(rows // 2, 4 * c, columns // 2)
    )


def other_view(scores: Tensor) -> Tensor:
    """Scores [h, w, D] of a rectified pair as the right image sees them: out[v, j] = scores[v + d,
    j], d = D - 1 - j; 0 outside."""
    h, w, planes = scores.shape
    rows = F.pad(scores.permute(0, 2, 1), (0, planes - 1)).reshape(h, planes * (w + planes - 1))
    rows = F.pad(
        rows[:, planes - 1 :], (0, 1)
    )  # planes * (w + planes - 2) values are needed: one more than is left
    return (
        rows[:, : planes * (w + planes - 2)]
        .reshape(h, planes, w + planes - 2)[:, :, :w]
        .permute(0, 2, 1)
    )


def semi_global(scores: Tensor, small: float, large: float) -> Tensor:
    """Aggregated scores [B, h, w, D]: the mean over four directions of semi-global matching
    (Hirschmueller 2008, equation 13, as a maximum).

    small, large: penalties of a step of one plane and of any other step, in the scores' unit
    (smaller ones at image edges made it worse). The two vertical directions run as one scan over
    rows, the two horizontal ones as one over columns.
    """
    vertical = _both_ways(scores.permute(1, 0, 2, 3), small, large).permute(1, 0, 2, 3)
    horizontal = _both_ways(scores.permute(2, 0, 1, 3), small, large).permute(1, 2, 0, 3)
    return (vertical + horizontal) * 0.25


def _both_ways(scores: Tensor, small: float, large: float) -> Tensor:
    """Sum of the forward and the backward path along the first axis of [S, B, L, D].

    `scan` keeps the graph at a few hundred nodes where unrolling makes thousands. It is private to
    torch 2: the only public alternative is a Loop from TorchScript. Its body may capture no tensors
    (OpenVINO refuses), hence the penalties as numbers.
    """
    steps, b, lanes, planes = scores.shape
    flat = scores.reshape(steps, b * lanes, planes)
    # the first and the last, the second and the last but one, ...: one gather, where OpenVINO turns
    # an axis around element by element
    there = torch.arange(steps, device=scores.device)
    back = steps - 1 - there
    both = flat.index_select(0, torch.stack([there, back], 1).reshape(-1))
    both = both.reshape(steps, 2, b * lanes, planes)

    def step(before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        best = before.amax(-1, keepdim=True)
        padded = F.pad(before, (1, 1), value=-1e4)
        near = torch.maximum(padded[..., 2:], padded[..., :-2]) - small
        path = now + (torch.maximum(torch.maximum(before, near), best - large) - best)
        return path, path.clone()

    _, paths = scan(step, torch.zeros_like(both[0]), both)
    return (paths[:, 0] + paths[:, 1].index_select(0, back)).reshape(steps, b, lanes, planes)


def sweep_scores(
    reference: Tensor,
    source: Tensor,
    constant: Triple,
    slope: Triple,
    row: Tensor | float,
    inverse_depths: Tensor,
) -> Tensor:
    """Scores [B, h, w, D] of a plane sweep over inverse depth, exactly 0 where the source image
    does not show the point.

    reference: descriptors [B, C, h, w]. source: [B, C, h, w], or one stack [1, C, rows, w] of
    images. A reference pixel at inverse depth r lies in its source image at (q_x / q_z, q_y / q_z)
    with q = constant + r * slope, three [B, h, w] each; row [B, h, w] is added in a stack whose
    images have a row of zeros above and below.
    """
    b, _, h, w = reference.shape
    planes, rows = inverse_depths.shape[0], source.shape[2]
    r = inverse_depths[
        :, None, None, None
        # everything is [B, D, h, w, 2] with (x, y) interleaved from the start: joining them later
        # is slow
    ]

    def pair(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([first, second], -1)[:, None]

    z = pair(constant[2], constant[2]) + r * pair(slope[2], slope[2])
    ahead = z > 1e-3
    pixel = (pair(constant[0], constant[1]) + r * pair(slope[0], slope[1])) / torch.where(
        ahead, z, 1.0
    )
    limit = torch.cat([last_index(w, reference) + 1, last_index(h, reference) + 1])
    pixel = torch.where(ahead, torch.minimum(pixel.clamp_min(-1.0), limit), -1.0)
    if isinstance(row, Tensor):
        pixel = pixel + pair(torch.zeros_like(row), row)
    grid = pixel * (2 / torch.cat([last_index(w, reference), last_index(rows, reference)])) - 1
    groups = source.shape[0]
    grid = grid.reshape(groups, -1, w, 2)
    sampled = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    if groups == b:
        return (
            (sampled.reshape(b, -1, planes, h, w) * reference[:, :, None])
            .sum(1)
            .permute(0, 2, 3, 1)
        )
    stacked = reference.permute(1, 0, 2, 3)[:, :, None]  # [C, B, 1, h, w]
    return (sampled.reshape(-1, b, planes, h, w) * stacked).sum(0).permute(0, 2, 3, 1)


def winner(scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best plane of volumes [..., D]: index with its sub-bin part by a parabola, score there,
    curvature, and margin to the best elsewhere.

    Curvature is the parabola's second difference (>= 0, scores per bin squared); the margin
    compares with planes more than one bin away.
    """
    planes = scores.shape[-1]
    number = torch.arange(planes, device=scores.device, dtype=scores.dtype)
    top = scores.amax(-1, keepdim=True)
    index = torch.where(scores >= top, number, float(planes - 1)).amin(
        -1, keepdim=True
    )  # faster than asking max for it
    away = (number - index).abs() > 1.5
    second = torch.where(away, scores, -1e4).amax(-1)
    before = torch.gather(scores, -1, (index - 1).clamp_min(0).to(torch.int64)).squeeze(
        -1
    )  # TensorRT clamps no integers
    after = torch.gather(scores, -1, (index + 1).clamp_max(planes - 1).to(torch.int64)).squeeze(-1)
    position, top = index.squeeze(-1), top.squeeze(-1)
    curvature = (2 * top - before - after).clamp_min(1e-6)
    offset = ((after - before) / (2 * curvature)).clamp(-0.5, 0.5)
    inner = ((position > 0) & (position < planes - 1)).to(scores.dtype)
    return position + offset * inner, top, curvature * inner, top - second
