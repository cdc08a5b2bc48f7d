"""What a training of UniScene starts from: the published initialisation, or what carries over from
a checkpoint of either kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks import checkpoint
from recon4d_ros.networks.uniscene import (
    BOX_POINTS,
    HEADS,
    SPATIAL_POINTS,
    TEMPORAL_POINTS,
    Configuration,
    GridCrossAttention,
    SpatialCrossAttention,
    TemporalSelfAttention,
    UniScene,
    configuration_of,
)

RARE = 0.01  # of a class's score before anything was learned


def start_network(c: Configuration, seed: int) -> UniScene:
    """From nothing, as BEVFormer's code: Xavier, but for the sampling offsets (zero weights, a ring
    of directions in the bias, farther from point to point), their weights (all equal), normal
    embeddings, and scores that start at RARE."""
    torch.manual_seed(seed)
    network = UniScene(c)
    for name, parameter in network.named_parameters():
        owner = name.split(".")[-2] if "." in name else ""
        if "conv_offset" in name or owner in ("sampling_offsets", "attention_weights"):
            nn.init.zeros_(parameter)
        elif name.startswith("img_backbone") and parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        elif name.endswith("embeds") or "embed" in owner:
            nn.init.normal_(parameter)
        elif parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for part in network.modules():
        if isinstance(part, TemporalSelfAttention):
            _ring(part.sampling_offsets, TEMPORAL_POINTS)
        elif isinstance(part, SpatialCrossAttention):
            _ring(part.deformable_attention["sampling_offsets"], SPATIAL_POINTS)
        elif isinstance(part, GridCrossAttention):
            _ring(part.sampling_offsets, BOX_POINTS)
    for branch in getattr(network.head, "cls_branches", ()):
        nn.init.constant_(branch[-1].bias, -math.log(1 / RARE - 1))
    return network


def _ring(offsets: Any, points: int) -> None:
    """Head by head another direction, the same in every image, level and moment."""
    angle = torch.arange(HEADS) * (2 * math.pi / HEADS)
    way = torch.stack([angle.cos(), angle.sin()], -1)
    way = way / way.abs().amax(-1, keepdim=True)
    ring = way[:, None, None] * torch.arange(1, points + 1)[:, None]  # [heads, 1, points, 2]
    bias = offsets.bias.data
    bias.copy_(ring.expand(HEADS, bias.numel() // (2 * HEADS * points), points, 2).reshape(-1))


@dataclass(frozen=True)
class CarriedOver:
    """taken: how many tensors of a checkpoint the network has now. left: those that it has no place
    for. new: those of the network that the checkpoint did not have."""

    path: Path
    taken: int
    left: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def sentence(self) -> str:
        return (
            f"{self.path}: {self.taken} of {self.taken + len(self.left)} tensors carry over"
            f"{_of(' left: ', self.left)}{_of(' new: ', self.new)}"
        )


def _of(what: str, names: tuple[str, ...]) -> str:
    if not names:
        return ""
    heads = sorted({".".join(name.split(".")[:3]) for name in names})
    return f";{what}{len(names)} ({', '.join(heads)})"


def configuration_from(path: Path) -> Configuration:
    """Of a checkpoint. Raises EngineError."""
    kept = checkpoint.read(path)
    if "pts_bbox_head.bev_embedding.weight" not in kept.parameters:
        raise EngineError(f"{path}: holds no UniScene: expected a checkpoint to start from")
    try:
        return configuration_of(kept.shapes, kept.model)
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from None


def carry_over(network: UniScene, path: Path) -> CarriedOver:
    """Gives a network every tensor of a checkpoint whose name and shape it has. Raises EngineError
    if there is none."""
    parameters, own = checkpoint.read(path).parameters, network.state_dict()
    told = what_carries_over(path, parameters, own)
    if not told.taken:
        raise EngineError(f"{path}: none of its tensors is of this network")
    gone = set(told.left)
    network.load_state_dict(
        {name: x.to(own[name].dtype) for name, x in parameters.items() if name not in gone},
        strict=False,
    )
    return told


def what_carries_over(
    path: Path, parameters: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> CarriedOver:
    """parameters: of the checkpoint; own: the network's."""
    taken = {name for name, x in parameters.items() if name in own and own[name].shape == x.shape}
    left = tuple(name for name in parameters if name not in taken)
    return CarriedOver(path, len(taken), left, tuple(name for name in own if name not in taken))
