"""Rotary position embedding: of image patches at (row, column), and of points anywhere in space.

A rotary embedding turns pairs of a head's channels by angles that grow with the token's position,
so that attention sees relative positions (Su et al., RoFormer, 2021). Each axis of a position has
its own run of channels, turned by its own coordinate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IMAGE_BASE = 100.0  # "RoPE100"
SPACE_BASES = (10.0, 100.0, 1000.0, 10000.0)  # Point3R's hierarchy: four bases, averaged


class Rotation(NamedTuple):
    """What turns the channels of T tokens, in float32: cos, sin [..., T, D], the sine with its
    sign; runs: channels of each axis."""

    cos: Tensor
    sin: Tensor
    runs: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, heads, T, D], turned."""
        return (x * self.cos + _swap_halves(x, self.runs) * self.sin).to(x.dtype)


def patch_positions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(row, column) of each patch of a height x width grid, row by row: [height * width, 2]."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([rows.flatten(), columns.flatten()], -1).float()


def grid_rotation(grid: tuple[int, int], channels: int, like: Tensor) -> Rotation:
    """For the patches of a grid of (rows, columns), row by row, on the device of `like`."""
    return image_rotation(patch_positions(*grid, device=like.device), channels)


def image_rotation(positions: Tensor, channels: int, base: float = IMAGE_BASE) -> Rotation:
    """For positions [..., T, 2] and heads of `channels` channels, half of them for the row and half
    for the column (CroCo v2, 2023)."""
    return _rotation(positions, (channels // 2, channels // 2), (base,))


def space_rotation(
    positions: Tensor, channels: int, bases: tuple[float, ...] = SPACE_BASES
) -> Rotation:
    """For continuous positions [B, T, 3] and heads of `channels` channels, a third per axis, what
    remains with the last (Point3R, section 3.3).

    The mean over the bases of the turned tokens is one product with the mean cosine and sine.
    Position zero is the identity.
    """
    third = channels // 3
    return _rotation(positions, (third, third, channels - 2 * third), bases)


def _rotation(positions: Tensor, runs: tuple[int, ...], bases: tuple[float, ...]) -> Rotation:
    positions = positions.float()  # bf16 at 51 m is off by 0.12 rad
    cosines, sines = [], []
    for axis, run in enumerate(runs):
        exponents = torch.arange(0, run, 2, device=positions.device, dtype=torch.float32) / run
        rates = torch.stack([1.0 / base**exponents for base in bases])  # [bases, run / 2]
        angles = positions[..., None, axis, None] * rates  # [..., T, bases, run / 2]
        cos, sin = angles.cos().mean(-2), angles.sin().mean(-2)
        cosines.append(torch.cat([cos, cos], -1)[..., :run])
        both = torch.cat([sin, sin], -1)[..., :run]
        sines += [
            -both[..., : run // 2],
            both[..., run // 2 :],
        ]  # (first, second) half turns to (-second, first)
    cos, sin = torch.cat(cosines, -1), torch.cat(sines, -1)
    if cos.dim() == 3:  # a batch of positions: the same for every head
        cos, sin = cos[:, None], sin[:, None]
    return Rotation(cos, sin, runs)


def _swap_halves(x: Tensor, runs: tuple[int, ...]) -> Tensor:
    """(first, second) half of every run -> (second, first). A run of odd length has the longer half
    first, as the published networks do.

    One split into all halves: two slices each would be four nodes of an exported graph for every
    one now.
    """
    halves = x.split([length for run in runs for length in ((run + 1) // 2, run // 2)], -1)
    swapped = [
        half
        for first, second in zip(halves[::2], halves[1::2], strict=True)
        for half in (second, first)
    ]
    return torch.cat(swapped, -1)
