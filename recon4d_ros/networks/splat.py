"""Points to pixels, and the nearest of each pixel wins: a z-buffer without scatter-with-reduction,
which TensorRT does not have."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.networks.working_image import last_index, numbers


def nearest_of(
    pixel: Tensor, inverse: Tensor, value: Tensor, pixels: int, rounds: int
) -> tuple[Tensor, Tensor]:
    """Per pixel the largest inverse depth that falls on it, and that point's value: [pixels] each,
    0 where none falls. pixel [E] float32: where each point falls, below 0 for nowhere; inverse [E],
    value [E]: of each point, inverse above 0.

    What a plain scatter leaves where several points fall on one pixel is any one of them. So those
    nearer than what is there are scattered again, `rounds` times. Whatever the order that is exact
    where at most `rounds` points share a pixel; of more, each round leaves about half of those that
    are nearer than what is there, so that all but about one in 2^rounds are passed. Points that are
    as near as each other to the last bit: any of them.
    """
    count = pixel.shape[0]
    # a point that is nowhere, or beaten, goes to a place of its own past the end: no two write
    # there, and there are more places than points, which TensorRT wants
    spare = numbers(count, pixel) + (last_index(pixels, pixel) + 1)
    there = pixel >= 0
    target = torch.where(there, pixel, spare)
    index = target.to(torch.int64)
    nearest = torch.zeros(pixels + count, device=pixel.device).scatter(0, index, inverse)
    for _ in range(rounds - 1):
        beats = there & (inverse > torch.index_select(nearest, 0, index))
        nearest = nearest.scatter(0, torch.where(beats, target, spare).to(torch.int64), inverse)
    front = there & (inverse >= torch.index_select(nearest, 0, index))
    of_nearest = torch.zeros_like(nearest).scatter(
        0, torch.where(front, target, spare).to(torch.int64), value
    )
    return nearest[:pixels], of_nearest[:pixels]
