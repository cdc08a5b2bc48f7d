"""What every learned network is to export and to the engines: one static-shape step over named
tensors.

    step(images, present, grid, k, pose, ..., memory) -> (depth, sigma, confidence, color, ...,
    memory')

The memory starts as zeros in every runtime; a network whose memory starts otherwise keeps a flag in
it that is zero before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Signature = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

OUTPUTS = ("depth", "sigma", "confidence", "color")
"""First outputs of every step: [N, h, w] float32 metres (0 = none), its standard deviation, [0, 1];
[N, h, w, C] uint8 working image."""


@dataclass(frozen=True)
class StepOptions:
    """What an engine is built for. Sizes are (height, width). input_size: of the uint8 images;
    working_size: of the network's input and of its depth. pointers: capacity of the memory, where
    the network has pointers."""

    cameras: int
    input_size: tuple[int, int]
    working_size: tuple[int, int]
    channels: int = 3
    pointers: int = 1024


class Step(Protocol):
    """A torch.nn.Module with this forward and these tables of names.

    frame_inputs(): those of FRAME_INPUTS that the network uses, in the order of forward's first
    arguments. memory_shapes(): its memory, all float32, in the order of forward's last arguments
    and of the results after OUTPUTS and `extra_outputs`.
    """

    extra_outputs: tuple[str, ...]
    # outputs: tuple[str, ...] = OUTPUTS    of a network that gives something else than maps
    # config: str = "learned"     "objects", "occupancy", "detection": what it gives, not depth
    # described: Mapping[str, Any] = {}     what the host is to know of it, for engine.yaml
    # one_world: bool = True      False: every camera's network_position is in a world and a unit of
    # its own

    def frame_inputs(self) -> Signature: ...

    def memory_shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]: ...


def frame_inputs(o: StepOptions) -> Signature:
    """Everything the host can give a step, by name.

    images: as they come. present: [N] 1 or 0. grid: [N, h, w, 2] (u, v) in the input image of each
    working pixel. k: [N, 3, 3] of the working image. pose: [N, 4, 4] T_anchor_camera, metres; the
    anchor is a point near the car that moves in rare steps of 64 m. anchor_shift: [3] how far it
    moved since the step before. moving: [N, h, w], not zero where frame t-1 moved. metres_per_unit:
    [1] the scale of a network that predicts up to scale, as alignment.py has it by now, 0 as long
    as it is not known.
    """
    n, (h, w) = o.cameras, o.working_size
    return {
        "images": (torch.uint8, (n, *o.input_size, o.channels)),
        "present": (torch.float32, (n,)),
        "grid": (torch.float32, (n, h, w, 2)),
        "k": (torch.float32, (n, 3, 3)),
        "pose": (torch.float32, (n, 4, 4)),
        "anchor_shift": (torch.float32, (3,)),
        "moving": (torch.uint8, (n, h, w)),
        "metres_per_unit": (torch.float32, (1,)),
        "projection": (torch.float32, (n, 4, 4)),
        "lidar_motion": (torch.float32, (4, 4)),
        "seconds": (torch.float32, (1,)),
    }
