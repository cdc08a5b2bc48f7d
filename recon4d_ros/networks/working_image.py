"""From the cameras' uint8 images to the working images that a network sees: part of the graph, the
same for every network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def working_images(images: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """images [N, H, W, C] uint8, grid [N, h, w, 2] (u, v) in the input image -> [N, C, h, w]
    float32 in 0..255, and [N, h, w] bool: where the working image shows something of the input.

    Sampled bilinearly. Where the input is at least four times as fine it is averaged down first, so
    that nothing is skipped. A graph of any size cannot know that: its images are averaged down on
    decoding (cameras/calibration.py: sizes_for).
    """
    x = images.to(torch.float32).permute(
        0, 3, 1, 2
    )  # in this order: TensorRT takes uint8 at the door only
    covered = grid[..., 0] > -2
    coarse = 1
    if not any(isinstance(size, torch.SymInt) for size in (*images.shape, *grid.shape)):
        coarse = max(1, min(x.shape[2] // grid.shape[1], x.shape[3] // grid.shape[2]) // 2)
    if coarse > 1:
        x = F.avg_pool2d(x, coarse)
        grid = (grid - (coarse - 1) / 2) / coarse
    ends = torch.cat([last_index(size, x) for size in (x.shape[3], x.shape[2])])
    place = grid * (2 / ends) - 1
    return F.grid_sample(
        x, place, mode="bilinear", padding_mode="border", align_corners=True
    ), covered


def numbers(size: int, like: Tensor) -> Tensor:
    """[size] float32: 0, 1, 2, ... on the device of `like`: nothing of a step may lie on another
    one, which a CUDA graph could not hold."""
    return torch.arange(size, dtype=torch.float32, device=like.device)


def last_index(size: int, like: Tensor) -> Tensor:
    """size - 1 as a float32 tensor [1] on the device of `like`, to calculate with: the size may be
    a symbol of the exported graph, which torch.tensor would fix."""
    return numbers(size, like)[-1:]


def as_rgb(x: Tensor) -> Tensor:
    """[N, 1 or 3, h, w] -> [N, 3, h, w]"""
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)


def as_grey(x: Tensor) -> Tensor:
    """[N, 1 or 3, h, w] -> [N, 1, h, w] of the same range (Rec. 601)"""
    return x if x.shape[1] == 1 else x[:, :1] * 0.299 + x[:, 1:2] * 0.587 + x[:, 2:] * 0.114


def as_bytes(x: Tensor) -> Tensor:
    """[N, C, h, w] in 0..255 -> [N, h, w, C] uint8: a step's output `color`."""
    return (x + 0.5).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
