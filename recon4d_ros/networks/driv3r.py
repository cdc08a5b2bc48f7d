"""Driv3R (Fei et al., "Learning Dense 4D Reconstruction for Autonomous Driving", 2024), under its
checkpoints' names.

Each camera is a stream of its own. DUSt3R (Wang et al., 2024) sees its images in pairs: the frame
before, as far as the memory recalls it (Spann3R, Wang and Agapito, 2024), and the frame now; two
decoders talk, two dense heads give the points of both, in the camera frame of the stream's first
image, up to scale. What the frame before turned out to be, as key and value, is offered to the
memory. How a memory grows and is pruned is sensor_memory.py's matter, the order of things within a
frame driv3r_stream.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.attention import DecoderBlock, EncoderBlock, PatchEmbed, layer_norm
from recon4d_ros.networks.checkpoint import ModelText
from recon4d_ros.networks.dpt import (
    WIDTH,
    DenseHead,
    check_width,
    points_and_confidence,
    width_of,
)
from recon4d_ros.networks.rotary import grid_rotation
from recon4d_ros.networks.sizes import arguments_of, check_heads, depth_of

PATCH = 16
HEAD_CHANNELS = 64  # of one attention head, in every published size


@dataclass(frozen=True)
class Configuration:
    """The published one, but for the depths, where they differ."""

    encoder_depth: int = 24
    encoder_width: int = 1024
    encoder_heads: int = 16
    decoder_depth: int = 12
    decoder_width: int = 768
    decoder_heads: int = 12
    value_depth: int = 6
    head_width: int = WIDTH

    def __post_init__(self) -> None:
        depths = self.encoder_depth, self.decoder_depth, self.value_depth
        if min(depths) < 1 or self.decoder_depth < 2 or max(depths) > 99:
            raise EngineError(
                f"expected 1..99 encoder, 2..99 decoder and 1..99 value blocks, got {depths[0]},"
                f" {depths[1]} and {depths[2]}"
            )
        check_width(self.head_width)
        check_heads(
            (self.encoder_width, self.encoder_heads), (self.decoder_width, self.decoder_heads)
        )


# the only values known of what a model string may ask for: keys and values from the point maps, and
# values without position embedding
FIXED = {"use_feat": False, "mem_pos_enc": False}


def configuration_of(
    shapes: Mapping[str, tuple[int, ...]], model: ModelText | None
) -> Configuration:
    """What a checkpoint asks for, by the shapes of its parameters (its model string tells no
    sizes). Raises EngineError."""
    arguments_of(model, FIXED)
    widths = {
        "encoder": math.prod(shapes.get("dust3r.enc_norm.weight", (Configuration.encoder_width,))),
        "decoder": math.prod(shapes.get("dust3r.dec_norm.weight", (Configuration.decoder_width,))),
    }
    for name, width in widths.items():
        if width < 1 or width % HEAD_CHANNELS:
            raise EngineError(
                f"its {name} has {width} channels, expected a multiple of {HEAD_CHANNELS}"
            )
    return Configuration(
        encoder_depth=depth_of(shapes, "dust3r.enc_blocks"),
        encoder_width=widths["encoder"],
        encoder_heads=widths["encoder"] // HEAD_CHANNELS,
        decoder_depth=depth_of(shapes, "dust3r.dec_blocks"),
        decoder_width=widths["decoder"],
        decoder_heads=widths["decoder"] // HEAD_CHANNELS,
        value_depth=depth_of(shapes, "value_encoder"),
        head_width=width_of(shapes, "dust3r.downstream_head1.dpt"),
    )


class PointMap(NamedTuple):
    """Of B images [H, W]: points [B, H, W, 3] in the stream's frame, confidence [B, H, W] of at
    least 1."""

    points: Tensor
    confidence: Tensor


class Driv3R(nn.Module):
    """All methods take B streams side by side; T tokens per image of `grid` = (rows, columns)
    patches."""

    def __init__(self, configuration: Configuration = Configuration()) -> None:
        super().__init__()
        c = self.configuration = configuration
        self.dust3r = Dust3R(c)
        self.value_encoder = nn.ModuleList(
            EncoderBlock(c.encoder_width, c.encoder_heads) for _ in range(c.value_depth)
        )
        self.value_norm = layer_norm(c.encoder_width)
        self.value_out = nn.Linear(c.encoder_width, c.encoder_width)
        self.pos_patch_embed = PatchEmbed(c.encoder_width, PATCH)
        self.norm_q = nn.LayerNorm(c.encoder_width)
        self.norm_k = nn.LayerNorm(c.encoder_width)
        self.norm_v = nn.LayerNorm(c.encoder_width)
        self.attn_head_1 = _key_head(c)
        self.attn_head_2 = _key_head(c)

    def lower_precision(self, dtype: torch.dtype) -> Driv3R:
        """Transformers in bfloat16 or float16; rotations, heads, the memory's attention and all
        geometry stay in float32."""
        self.to(dtype)
        for part in (
            self.dust3r.downstream_head1,
            self.dust3r.downstream_head2,
            self.norm_q,
            self.norm_k,
            self.norm_v,
        ):
            part.float()
        return self

    def quantizable(self) -> tuple[str, ...]:
        """The modules whose products with weights may be computed in int8: transformers and the
        heads' pyramids. What remains: what sees pixels or points, what the memory is searched with,
        the last layers of the heads."""
        blocks = ("enc_blocks", "decoder_embed", "dec_blocks", "dec_blocks2")
        heads = (
            f"downstream_head{i}.dpt.{part}"
            for i in (1, 2)
            for part in ("act_postprocess", "scratch")
        )
        return ("value_encoder", *(f"dust3r.{name}" for name in (*blocks, *heads)))

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in -1..1, H and W multiples of 16 -> tokens [B, T, encoder_width]."""
        return self.dust3r.encode(images)

    def decode(
        self, before: Tensor, now: Tensor, grid: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Two images' tokens [B, T, encoder_width] -> for each what its head wants: the tokens, and
        [B, T, decoder_width] after half, three quarters, all of the blocks."""
        return self.dust3r.decode(before, now, grid)

    def predict(
        self, before: list[Tensor], now: list[Tensor], grid: tuple[int, int]
    ) -> tuple[PointMap, PointMap]:
        """The heads, on what decode() gave."""
        net = self.dust3r
        return net.downstream_head1(before, grid), net.downstream_head2(now, grid)

    def key(self, tokens: Tensor, decoded: Tensor) -> Tensor:
        """Under what the frame before is remembered: its tokens [B, T, encoder_width] and their
        last decoder state."""
        return self.attn_head_1(torch.cat([tokens, decoded], -1))

    def query(self, tokens: Tensor, decoded: Tensor) -> Tensor:
        """With what the frame now will ask the memory when it is the frame before."""
        return self.attn_head_2(torch.cat([tokens, decoded], -1))

    def value(self, points: Tensor) -> Tensor:
        """What is remembered of points [B, H, W, 3]: [B, T, encoder_width], to which its key is
        added."""
        x = self.pos_patch_embed(points.permute(0, 3, 1, 2).to(self.value_out.weight.dtype))
        for block in self.value_encoder:
            x = block(x)
        return self.value_out(self.value_norm(x))


def build(configuration: Configuration) -> Driv3R:
    return Driv3R(configuration)


class Dust3R(nn.Module):
    """Two decoders over one encoder: the first speaks for the frame that the points refer to, the
    second for the other one."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.configuration = c
        self.mask_token = nn.Parameter(
            torch.zeros(1, 1, c.decoder_width)
        )  # of the pretraining: in every checkpoint, of no use here
        self.patch_embed = PatchEmbed(c.encoder_width, PATCH)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(c.encoder_width, c.encoder_heads) for _ in range(c.encoder_depth)
        )
        self.enc_norm = layer_norm(c.encoder_width)
        self.decoder_embed = nn.Linear(c.encoder_width, c.decoder_width)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(c.decoder_width, c.decoder_heads) for _ in range(c.decoder_depth)
        )
        self.dec_norm = layer_norm(c.decoder_width)
        self.dec_blocks2 = nn.ModuleList(
            DecoderBlock(c.decoder_width, c.decoder_heads) for _ in range(c.decoder_depth)
        )
        self.downstream_head1 = Head(c)
        self.downstream_head2 = Head(c)

    def encode(self, images: Tensor) -> Tensor:
        grid = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        turn = grid_rotation(
            grid, self.configuration.encoder_width // self.configuration.encoder_heads, images
        )
        x = self.patch_embed(images.to(self.mask_token.dtype))
        for block in self.enc_blocks:
            x = block(x, turn)
        return self.enc_norm(x)

    def decode(
        self, before: Tensor, now: Tensor, grid: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        c = self.configuration
        turn = grid_rotation(grid, c.decoder_width // c.decoder_heads, now)
        x, y = self.decoder_embed(before), self.decoder_embed(now)
        states = []
        for first, second in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            x, y = first(x, y, turn, turn), second(y, x, turn, turn)
            states.append((x, y))
        half, most = states[c.decoder_depth // 2 - 1], states[c.decoder_depth * 3 // 4 - 1]
        return [before, half[0], most[0], self.dec_norm(x)], [
            now,
            half[1],
            most[1],
            self.dec_norm(y),
        ]


class Head(nn.Module):
    def __init__(self, c: Configuration) -> None:
        super().__init__()
        widths = (c.encoder_width, c.decoder_width, c.decoder_width, c.decoder_width)
        self.dpt = DenseHead(widths, 4, c.head_width)

    def forward(self, decoded: list[Tensor], grid: tuple[int, int]) -> PointMap:
        return PointMap(*points_and_confidence(self.dpt([x.float() for x in decoded], grid)))


def _key_head(c: Configuration) -> nn.Sequential:
    both = c.encoder_width + c.decoder_width
    return nn.Sequential(nn.Linear(both, both), nn.GELU(), nn.Linear(both, c.encoder_width))
