"""Transformer blocks that the published systems share: ViT encoder and CroCo-style decoder, under
the parameter names of their checkpoints.

Shapes: tokens [B, T, C]; a rotation (rotary.py) turns queries and keys; keys [B, T] bool says which
tokens may be attended to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Turn = Callable[[Tensor], Tensor]
EPSILON = 1e-6
OUT_OF_SIGHT = (
    -1e4
)  # a logit whose exponential is nothing beside any other, and a number in float16 too


def layer_norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=EPSILON)


class SelfAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, turn: Turn | None = None, keys: Tensor | None = None) -> Tensor:
        q, k, v = (_split(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        if turn is not None:
            q, k = turn(q), turn(k)
        return self.proj(_attend(q, k, v, keys))


class CrossAttention(nn.Module):
    """Queries from x, keys and values from y."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(channels, channels)
        self.projk = nn.Linear(channels, channels)
        self.projv = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        turn_x: Turn | None = None,
        turn_y: Turn | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (
            _split(self.projq(x), self.heads),
            _split(self.projk(y), self.heads),
            _split(self.projv(y), self.heads),
        )
        if turn_x is not None:
            q = turn_x(q)
        if turn_y is not None:
            k = turn_y(k)
        return self.proj(_attend(q, k, v, keys))


class Mlp(nn.Module):
    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(channels)
        self.attn = SelfAttention(channels, heads)
        self.norm2 = layer_norm(channels)
        self.mlp = Mlp(channels, 4 * channels, channels)

    def forward(self, x: Tensor, turn: Turn | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """x attends to itself, then to y; y stays as it is."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(channels)
        self.attn = SelfAttention(channels, heads)
        self.cross_attn = CrossAttention(channels, heads)
        self.norm2 = layer_norm(channels)
        self.norm3 = layer_norm(channels)
        self.mlp = Mlp(channels, 4 * channels, channels)
        self.norm_y = layer_norm(channels)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        turn_x: Turn | None = None,
        turn_y: Turn | None = None,
        keys_x: Tensor | None = None,
        keys_y: Tensor | None = None,
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), turn_x, keys_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), turn_x, turn_y, keys_y)
        return x + self.mlp(self.norm3(x))


class ModulatedNorm(nn.Module):
    """Layer norm whose shift and scale come from a condition (DiT's adaptive norm): x [B, T, C],
    condition [B, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = layer_norm(channels)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(channels, 2 * channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.mlp(condition)[:, None].chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


class ModulatedBlock(nn.Module):
    """An encoder block under a condition [B, C]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = ModulatedNorm(channels)
        self.attn = SelfAttention(channels, heads)
        self.norm2 = ModulatedNorm(channels)
        self.mlp = Mlp(channels, 4 * channels, channels)

    def forward(self, x: Tensor, condition: Tensor, turn: Turn | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x, condition), turn)
        return x + self.mlp(self.norm2(x, condition))


class PatchEmbed(nn.Module):
    """One token per patch, row by row: [B, 3, H, W] -> [B, H / patch * W / patch, C]."""

    def __init__(self, channels: int, patch: int = 16) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """The tokens are in the network's type; computed in float32 whatever that is: ONNX has no
        convolution of bfloat16 (opset 18), pixels and points lose nothing on the way in, and it is
        little work."""
        conv = self.proj
        assert conv.bias is not None
        x = F.conv2d(image.float(), conv.weight.float(), conv.bias.float(), conv.stride)
        return x.to(conv.weight.dtype).flatten(2).transpose(1, 2)


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, heads, T, C / heads]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    """Keys that may not be attended to get a logit that no other is as low as. A number and not a
    mask of bool, whose exported graph guards every row against being masked as a whole: none is
    here, and the guard reads all products once more and keeps a runtime from computing attention in
    one piece."""
    mask = (
        None if keys is None else torch.where(keys, 0.0, OUT_OF_SIGHT).to(q.dtype)[:, None, None, :]
    )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
