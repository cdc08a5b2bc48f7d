"""Matching without learned weights, in operations of static shape: light-robust descriptors, cost volumes, semi-global aggregation, sub-bin depth.

Volumes are *scores* [B, h, w, D] (higher is better), planes last so that the semi-global step runs over contiguous memory. A plane is an inverse depth
(or a disparity, which is one up to a factor).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

CENSUS_5 = tuple((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy, dx) != (0, 0))  # 24 neighbours
CENSUS_8 = ((-2, -1), (-2, 1), (-1, -2), (-1, 2), (1, -2), (1, 2), (2, -1), (2, 1))  # a ring of 8: a third of the samples, most of the evidence


def soft_census(grey: Tensor, offsets: tuple[tuple[int, int], ...], softness: float = 0.02) -> Tensor:
    """Descriptors [B, C, h, w] of unit length (or less, where there is no texture) from grey images [B, 1, h, w] in 0..1.

    The census transform (Zabih and Woodfill 1994) says which neighbours are brighter; here each bit is the soft sign d / (|d| + softness), and
    the product of two descriptors is one minus their soft Hamming distance: blind to gain and bias of the camera, tame under noise. A pixel
    whose neighbourhood is flat to a few grey levels gets a short descriptor, so that it votes for nothing.
    """
    h, w = grey.shape[-2:]
    padded = F.pad(grey, (2, 2, 2, 2), mode="replicate")
    around = torch.cat([padded[:, :, 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w] for dy, dx in offsets], 1)
    difference = around - grey
    sign = difference / (difference.abs() + softness)
    return sign * torch.rsqrt((sign * sign).sum(1, keepdim=True) + 0.1 * len(offsets))


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """[B, C, h, w] -> [B, C * block^2, h / block, w / block]: the product of two such descriptors sums over the block."""
    return F.pixel_unshuffle(x, block)


def rectified_scores(left: Tensor, right: Tensor, planes: int) -> Tensor:
    """Scores [h, w, D] of a rectified pair's descriptors [C, h, w]: plane j is disparity D - 1 - j, left pixel u against right pixel u - d.

    One batched product of all pixels of a row against all of the other's, of which the band is cut out by a skewed reshape (no gather).
    Where u - d leaves the image the score is 0, as for no evidence.
    """
    c, h, w = left.shape
    product = torch.matmul(left.permute(1, 2, 0), right.permute(1, 0, 2))  # [h, u, v]
    product = F.pad(product, (planes - 1, 0))  # column u - d + D - 1
    skewed = F.pad(product.reshape(h, w * (w + planes - 1)), (0, w))
    return skewed.reshape(h, w, w + planes)[:, :, :planes]


def other_view(scores: Tensor) -> Tensor:
    """Scores [h, w, D] of a rectified pair as the right image sees them: out[v, j] = scores[v + d, j], d = D - 1 - j; 0 outside."""
    h, w, planes = scores.shape
    rows = F.pad(scores.permute(0, 2, 1), (0, planes - 1)).reshape(h, planes * (w + planes - 1))
    rows = F.pad(rows[:, planes - 1 :], (0, 1))  # planes * (w + planes - 2) values are needed: one more than is left
    return rows[:, : planes * (w + planes - 2)].reshape(h, planes, w + planes - 2)[:, :, :w].permute(0, 2, 1)


def semi_global(scores: Tensor, small: float, large: float) -> Tensor:
    """Aggregated scores [B, h, w, D]: the mean over four directions of semi-global matching (Hirschmueller 2008, equation 13, as a maximum).

    small, large: penalties of a step of one plane and of any other step, in the scores' unit (smaller ones at image edges made it worse).
    The two vertical directions run as one scan over rows, the two horizontal ones as one over columns.
    """
    vertical = _both_ways(scores.permute(1, 0, 2, 3), small, large).permute(1, 0, 2, 3)
    horizontal = _both_ways(scores.permute(2, 0, 1, 3), small, large).permute(1, 2, 0, 3)
    return (vertical + horizontal) * 0.25


def _both_ways(scores: Tensor, small: float, large: float) -> Tensor:
    """Sum of the forward and the backward path along the first axis of [S, B, L, D].

    `scan` keeps the graph at a few hundred nodes where unrolling makes thousands. It is private to torch 2: the only public alternative is a Loop
    from TorchScript. Its body may capture no tensors (OpenVINO refuses), hence the penalties as numbers.
    """
    steps, b, lanes, planes = scores.shape
    flat = scores.reshape(steps, b * lanes, planes)
    both = torch.stack([flat, flat.flip(0)], 1)

    def step(before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        best = before.amax(-1, keepdim=True)
        padded = F.pad(before, (1, 1), value=-1e4)
        near = torch.maximum(padded[..., 2:], padded[..., :-2]) - small
        path = now + (torch.maximum(torch.maximum(before, near), best - large) - best)
        return path, path.clone()

    _, paths = scan(step, torch.zeros_like(both[0]), both)
    return (paths[:, 0] + paths[:, 1].flip(0)).reshape(steps, b, lanes, planes)


def sweep_scores(reference: Tensor, source: Tensor, constant: Tensor, slope: Tensor, row: Tensor, inverse_depths: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [B, h, w, D] of a plane sweep over inverse depth, and which of them the source image covers (1 or 0).

    reference: descriptors [B, C, h, w]. source: [B, C, rows, ws], one or several images of h rows stacked. A reference pixel at inverse depth r
    lies in its source image at (q_x / q_z, q_y / q_z) with q = constant + r * slope, both [B, h, w, 3] (q_z = 0: no source).
    row: [B, h, w], first row of the pixel's source image in the stack. inverse_depths: [D].
    """
    b, _, h, w = reference.shape
    planes, rows, width = inverse_depths.shape[0], source.shape[2], source.shape[3]
    q = constant.unsqueeze(-1) + slope.unsqueeze(-1) * inverse_depths  # [B, h, w, 3, D]
    ahead = q[..., 2, :] > 1e-3
    scale = torch.where(ahead, 1.0 / torch.where(ahead, q[..., 2, :], torch.ones_like(q[..., 2, :])), torch.zeros_like(q[..., 2, :]))
    u, v = q[..., 0, :] * scale, q[..., 1, :] * scale
    inside = (ahead & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= h - 1)).to(reference.dtype)
    v = v.clamp(0, h - 1) + row.unsqueeze(-1)
    grid = torch.stack([u.clamp(-1, width) * (2 / (width - 1)) - 1, v * (2 / (rows - 1)) - 1], -1).reshape(b, h, w * planes, 2)
    sampled = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=True).reshape(b, -1, h, w, planes)
    return (sampled * reference.unsqueeze(-1)).sum(1) * inside, inside


def winner(scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best plane of volumes [..., D]: index with its sub-bin part by a parabola, score there, curvature, and margin to the best elsewhere.

    Curvature is the parabola's second difference (>= 0, scores per bin squared); the margin compares with planes more than one bin away.
    """
    planes = scores.shape[-1]
    top, index = scores.max(-1)
    index = index.unsqueeze(-1)
    before = torch.gather(scores, -1, (index - 1).clamp_min(0)).squeeze(-1)
    after = torch.gather(scores, -1, (index + 1).clamp_max(planes - 1)).squeeze(-1)
    curvature = (2 * top - before - after).clamp_min(1e-6)
    offset = ((after - before) / (2 * curvature)).clamp(-0.5, 0.5)
    inner = ((index > 0) & (index < planes - 1)).squeeze(-1).to(scores.dtype)
    position = index.squeeze(-1).to(scores.dtype)
    away = (torch.arange(planes, device=scores.device) - index).abs() > 1
    second = torch.where(away, scores, torch.full_like(scores, -1e4)).amax(-1)
    return position + offset * inner, top, curvature * inner, top - second
