"""The explicit spatial memory: a fixed number of pointers in 3D, merged, inserted and evicted
inside a graph of static shapes.

After Point3R's pointer memory (a token joins the nearest pointer within a threshold, else becomes a
new one), with its threshold in metres and a capacity: when no slot is free the least useful
pointers leave. Every tensor is finite always, invalid slots included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recon4d_ros.networks.working_image import last_index

PATCH = 8  # samples along a side of a feature's patch
SCALE, SIGMA = (
    PATCH * PATCH,
    PATCH * PATCH + 1,
)  # columns of a feature after the patch: metres per sample, sigma of the depth
FEATURE = PATCH * PATCH + 2
HEAVIEST = 32.0  # a pointer's weight stops growing here, so that it can still be corrected


class Memory(NamedTuple):
    """position [M, 3] metres from the anchor; feature [M, F]; weight, age, valid [M] (valid is 0 or
    1)."""

    position: Tensor
    feature: Tensor
    weight: Tensor
    age: Tensor
    valid: Tensor


class Tokens(NamedTuple):
    """What a frame offers to the memory: position [T, 3], feature [T, F], weight [T] (0: nothing),
    again [T] (1: a pointer was seen again here)."""

    position: Tensor
    feature: Tensor
    weight: Tensor
    again: Tensor


def fuse(memory: Memory, tokens: Tokens, radius: float, here: Tensor) -> Memory:
    """The memory after one frame's tokens.

    A token joins its nearest pointer if that is nearer than radius + the token's own depth sigma
    (at most 4 * radius). A pointer that was seen again takes the weighted mean of its position and
    its tokens' and keeps its patch, so that what is seen later is held against what was seen first;
    one whose place is taken by a token that looks different becomes that token. The other tokens
    take free slots in order, then those of the least useful pointers: light, old, or far from
    `here` [3].
    """
    capacity = memory.weight.shape[0]
    offered = tokens.weight > 0
    apart = sum(
        (
            (tokens.position[:, None, axis] - memory.position[None, :, axis]) ** 2
            for axis in range(3)
        ),
        torch.zeros((), device=memory.position.device),
    )
    apart = torch.where(memory.valid > 0.5, apart, 1e12)  # [T, M]
    distance, nearest = apart.min(1)
    reach = radius + tokens.feature[:, SIGMA].clamp(0.0, 3.0 * radius)
    joins = offered & (distance < reach * reach)

    # merge: sums per pointer as a product with the one-hot assignment (no scatter with duplicates)
    chosen = (nearest[:, None] == torch.arange(capacity, device=nearest.device)) & joins[
        :, None
    ]  # [T, M]
    mass = tokens.weight * tokens.again
    sums = chosen.to(mass.dtype).t() @ torch.cat(
        [tokens.position * mass[:, None], mass[:, None]], 1
    )  # [M, 4]
    gained = sums[:, 3]
    seen = gained > 0
    closest, author = torch.where(chosen, apart, 1e12).min(0)
    replaced = (closest < 1e11) & ~seen
    total = memory.weight + gained
    mean = (memory.position * memory.weight[:, None] + sums[:, :3]) / total.clamp_min(1e-6)[:, None]
    position = torch.where(
        seen[:, None],
        mean,
        torch.where(replaced[:, None], tokens.position[author], memory.position),
    )
    feature = torch.where(replaced[:, None], tokens.feature[author], memory.feature)
    weight = torch.where(
        seen, total.clamp_max(HEAVIEST), torch.where(replaced, tokens.weight[author], memory.weight)
    )
    touched = seen | replaced
    age = torch.where(touched, 0.0, memory.age + 1)

    # insert: the k-th new token takes the k-th slot in order of uselessness, free ones first
    away = (position - here).square().sum(1).sqrt()
    free = (
        torch.arange(capacity, device=weight.device, dtype=weight.dtype) / capacity - 2
    )  # in order of their number, in every runtime
    useful = torch.where(
        memory.valid > 0.5,
        weight / (1 + age) / (1 + away / 50) + touched.to(weight.dtype) * 1e3,
        free,
    )
    # as many slots as tokens; behind the memory's own ones, which come first, those that are none
    useful = torch.cat([useful, torch.full_like(tokens.weight, 1e9)])
    slots = torch.topk(useful, tokens.weight.shape[0], largest=False, sorted=True).indices
    new = offered & ~joins
    rank = (
        torch.cumsum(new.to(weight.dtype), 0) - 1
    )  # exact, and TensorRT sums and clamps no integers
    place = slots[rank.clamp_min(0).to(torch.int64)]
    spare = torch.arange(capacity, capacity + tokens.weight.shape[0], device=place.device)
    target = torch.where(new & (rank < capacity), place, spare)  # spare: rows thrown away
    return Memory(
        _put(position, target, tokens.position),
        _put(feature, target, tokens.feature),
        _put(weight, target, tokens.weight),
        _put(age, target, torch.zeros_like(tokens.weight)),
        _put(memory.valid, target, torch.ones_like(tokens.weight)),
    )


def _put(rows: Tensor, target: Tensor, values: Tensor) -> Tensor:
    """rows with rows[target[i]] = values[i]; targets are unique, those past the end are not
    wanted."""
    longer = torch.cat([rows, torch.zeros_like(values)])  # never fewer rows than targets
    index = target if rows.dim() == 1 else target[:, None].expand(-1, rows.shape[1])
    return longer.scatter(0, index, values)[: rows.shape[0]]


def patches(grey: Tensor, camera: Tensor, uv: Tensor, step: Tensor) -> Tensor:
    """Normalised grey patches [P, 64] around pixels of the working images.

    grey: [N, 1, h, w] in 0..1. camera: [P] image of each point. uv: [P, 2] sub-pixel centre. step:
    [P] pixels between samples. Sample (i, j) is at uv + ((j - 3.5) * step, (i - 3.5) * step),
    bilinear, edges clamped; zero mean, divided by (deviation + 2/255).
    """
    n, _, h, w = grey.shape
    offset = torch.arange(PATCH, device=grey.device, dtype=grey.dtype) - (PATCH - 1) / 2
    v, u = torch.meshgrid(offset, offset, indexing="ij")
    right, bottom, end = (last_index(size, grey) for size in (w, h, n * h))
    x = torch.minimum((uv[:, :1] + u.reshape(1, -1) * step[:, None]).clamp_min(0.0), right)
    y = torch.minimum((uv[:, 1:] + v.reshape(1, -1) * step[:, None]).clamp_min(0.0), bottom)
    y = y + camera[:, None] * (bottom + 1)
    grid = torch.stack([x * (2 / right) - 1, y * (2 / end) - 1], -1)[None]
    stack = grey.reshape(1, 1, n * h, w)
    values = F.grid_sample(stack, grid, mode="bilinear", padding_mode="border", align_corners=True)[
        0, 0
    ]  # [P, 64]
    centred = values - values.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + 2 / 255)
