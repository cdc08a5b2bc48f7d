"""Point3R (Wu et al., "Streaming 3D Reconstruction with Explicit Spatial Pointer Memory", 2025),
under its checkpoints' names.

One image at a time: a ViT encodes it; its tokens and a pose token talk, block by block, with
pointers (features that live at points in space); two dense heads give points in the camera's own
frame and in the world, a small one the pose; each patch then offers a new pointer at its mean
point. How offers enter the memory is pointer_stream.py's matter. Everything is up to one scale, and
the world is the first camera's frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.attention import (
    DecoderBlock,
    EncoderBlock,
    Mlp,
    ModulatedBlock,
    PatchEmbed,
    layer_norm,
)
from recon4d_ros.networks.checkpoint import ModelText
from recon4d_ros.networks.dpt import (
    WIDTH,
    DenseHead,
    check_width,
    points_and_confidence,
    width_of,
)
from recon4d_ros.networks.rotary import Rotation, grid_rotation, space_rotation
from recon4d_ros.networks.sizes import arguments_of, check_heads, depth_of

PATCH = 16
POSE_DEPTH = 2  # blocks that read and that write the memory of poses


@dataclass(frozen=True)
class Configuration:
    """The published one, but for the depths, where they differ."""

    encoder_depth: int = 24
    encoder_width: int = 1024
    encoder_heads: int = 16
    decoder_depth: int = 12
    decoder_width: int = 768
    decoder_heads: int = 12
    pointer_heads: int = 16  # of the decoder whose queries are pointers
    pose_slots: int = 256
    value_depth: int = 6  # blocks of the encoder of point maps
    head_width: int = WIDTH

    def __post_init__(self) -> None:
        depths = self.encoder_depth, self.decoder_depth, self.value_depth
        if min(depths) < 1 or self.decoder_depth < 2 or max(depths) > 99:
            raise EngineError(
                f"expected 1..99 encoder, 2..99 decoder and 1..99 value blocks, got {depths[0]},"
                f" {depths[1]} and {depths[2]}"
            )
        check_width(self.head_width)
        decoder = (self.decoder_width, self.decoder_heads), (self.decoder_width, self.pointer_heads)
        check_heads((self.encoder_width, self.encoder_heads), *decoder)


# the authors' names for what may differ, and the only values known of what may not
OPTIONS = {
    "enc_depth": "encoder_depth",
    "enc_embed_dim": "encoder_width",
    "enc_num_heads": "encoder_heads",
    "dec_depth": "decoder_depth",
    "dec_embed_dim": "decoder_width",
    "dec_num_heads": "decoder_heads",
    "memory_dec_num_heads": "pointer_heads",
    "local_mem_size": "pose_slots",
}
FIXED = {
    "pos_embed": "RoPE100",
    "pos_embed_3d": "RoPE3D100",
    "pose_head": True,
    "head_type": "dpt",
    "output_mode": "pts3d+pose",
    "depth_mode": ("exp", -math.inf, math.inf),
    "conf_mode": ("exp", 1, math.inf),
    "pose_mode": ("exp", -math.inf, math.inf),
    "patch_size": PATCH,
}


def configuration_of(
    shapes: Mapping[str, tuple[int, ...]], model: ModelText | None
) -> Configuration:
    """What a checkpoint asks for: its model string, and where that is silent, the shapes of its
    parameters. Raises EngineError."""
    arguments = arguments_of(model, FIXED)
    found = {
        "encoder_depth": depth_of(shapes, "enc_blocks"),
        "decoder_depth": depth_of(shapes, "dec_blocks"),
        "encoder_width": math.prod(shapes.get("enc_norm.weight", (Configuration.encoder_width,))),
        "decoder_width": math.prod(shapes.get("dec_norm.weight", (Configuration.decoder_width,))),
        "value_depth": depth_of(shapes, "value_encoder"),
        "head_width": width_of(shapes, "downstream_head.dpt_self"),
    }
    said = {ours: arguments[theirs] for theirs, ours in OPTIONS.items() if theirs in arguments}
    for name, value in said.items():
        if not isinstance(value, int):
            raise EngineError(
                f"its model string has {value!r} where {name.replace('_', ' ')} is expected, a"
                " whole number"
            )
    return Configuration(**{**found, **said})


class Prediction(NamedTuple):
    """Of B images [H, W]: points_self, points [B, H, W, 3] in the camera's frame and in the world,
    their confidences [B, H, W] (at least 1), and pose [B, 7]: the camera in the world, x, y, z and
    a unit quaternion w, x, y, z with w >= 0."""

    points_self: Tensor
    confidence_self: Tensor
    pose: Tensor
    points: Tensor
    confidence: Tensor


class Pointers(NamedTuple):
    """feature [M, C], position [M, 3], valid [M] bool. Slots that are not valid hold zeros."""

    feature: Tensor
    position: Tensor
    valid: Tensor


class Point3R(nn.Module):
    def __init__(self, configuration: Configuration = Configuration()) -> None:
        super().__init__()
        c = self.configuration = configuration
        self.pose_token = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.patch_embed = PatchEmbed(c.encoder_width, PATCH)
        self.pts_patch_embed = PatchEmbed(c.encoder_width, PATCH)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(c.encoder_width, c.encoder_heads) for _ in range(c.encoder_depth)
        )
        self.enc_norm = layer_norm(c.encoder_width)
        self.decoder_embed = nn.Linear(c.encoder_width, c.decoder_width)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(c.decoder_width, c.decoder_heads) for _ in range(c.decoder_depth)
        )
        self.dec_norm = layer_norm(c.decoder_width)
        self.pose_retriever = PoseMemory(
            c.encoder_width, c.decoder_width, c.decoder_heads, c.pose_slots
        )
        self.decoder_embed_memory = nn.Linear(c.encoder_width, c.decoder_width)
        # the last of these blocks, and the norm after it, are in every checkpoint, but what they
        # give is never used
        self.dec_blocks_memory = nn.ModuleList(
            DecoderBlock(c.decoder_width, c.pointer_heads) for _ in range(c.decoder_depth)
        )
        self.dec_norm_memory = layer_norm(c.decoder_width)
        self.value_encoder = nn.ModuleList(
            EncoderBlock(c.encoder_width, c.encoder_heads) for _ in range(c.value_depth)
        )
        self.value_norm = layer_norm(c.encoder_width)
        self.value_out = nn.Linear(c.encoder_width, c.encoder_width)
        self.downstream_head = Heads(c)
        both = c.encoder_width + c.decoder_width
        self.memory_attn_head = nn.Sequential(
            nn.Linear(both, both), nn.GELU(), nn.Linear(both, c.encoder_width)
        )

    def lower_precision(self, dtype: torch.dtype) -> Point3R:
        """Transformers in bfloat16 or float16; rotations, heads and all geometry stay in
        float32."""
        self.to(dtype)
        self.downstream_head.float()
        return self

    def quantizable(self) -> tuple[str, ...]:
        """The modules whose products with weights may be computed in int8: transformers and the
        heads' pyramids. What remains: what sees pixels or points, the pose and its memory, the last
        layers of the heads."""
        heads = (
            f"downstream_head.{head}.{part}"
            for head in ("dpt_self", "dpt_cross")
            for part in ("act_postprocess", "scratch")
        )
        blocks = (
            "enc_blocks",
            "dec_blocks",
            "dec_blocks_memory",
            "value_encoder",
            "downstream_head.final_transform",
        )
        return (*blocks, "decoder_embed", "memory_attn_head", *heads)

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in -1..1, H and W multiples of 16 -> tokens [B, T, encoder_width]."""
        turn = grid_rotation(
            _grid(images),
            self.configuration.encoder_width // self.configuration.encoder_heads,
            images,
        )
        x = self.patch_embed(images)
        for block in self.enc_blocks:
            x = block(x, turn)
        return self.enc_norm(x)

    def decode(
        self, tokens: Tensor, token_positions: Tensor, pose: Tensor, pointers: Pointers
    ) -> list[Tensor]:
        """Image and pointers talk: tokens [1, T, encoder_width], token_positions [T, 3], pose token
        [1, 1, decoder_width].

        -> what the heads want of it: the tokens themselves, then [1, 1 + T, decoder_width] (the
        pose token first) after half, three quarters, all of the blocks. Positions of all zeros
        (nothing known yet) leave the features unturned.
        """
        c = self.configuration
        x = torch.cat([pose, self.decoder_embed(tokens)], 1)
        y = pointers.feature[None]
        positions = F.pad(token_positions, (0, 0, 1, 0))[
            None
        ]  # at zero, the pose token is never turned
        image, space = (
            space_rotation(p, c.decoder_width // c.decoder_heads)
            for p in (positions, pointers.position[None])
        )
        image_there, space_there = (
            space_rotation(p, c.decoder_width // c.pointer_heads)
            for p in (positions, pointers.position[None])
        )
        keys = pointers.valid[None]
        states = []
        for i, (block, pointer_block) in enumerate(
            zip(self.dec_blocks, self.dec_blocks_memory, strict=True)
        ):
            before = x
            x = block(x, y, image, space, keys_y=keys)
            if i + 1 < c.decoder_depth:
                y = pointer_block(y, before, space_there, image_there, keys_x=keys)
            states.append(x)
        return [
            tokens,
            states[c.decoder_depth // 2 - 1],
            states[c.decoder_depth * 3 // 4 - 1],
            self.dec_norm(x),
        ]

    def predict(self, decoded: list[Tensor], grid: tuple[int, int]) -> Prediction:
        """The heads, on what decode() gave for an image of `grid` = (rows, columns) of patches."""
        turn = grid_rotation(
            grid, self.configuration.decoder_width // self.configuration.decoder_heads, decoded[0]
        )
        return self.downstream_head([x.float() for x in decoded], grid, turn)

    def offer(self, tokens: Tensor, decoded: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """New pointers, one a patch: feature [T, decoder_width], position [T, 3].

        tokens [1, T, encoder_width] of the encoder, decoded [1, T, decoder_width] of the last
        block, points [1, H, W, 3] in the world.
        """
        image = points.permute(0, 3, 1, 2)
        turn = grid_rotation(
            _grid(image),
            self.configuration.encoder_width // self.configuration.encoder_heads,
            tokens,
        )
        value = self.pts_patch_embed(image)
        for block in self.value_encoder:
            value = block(value, turn)
        value = self.value_out(self.value_norm(value))
        key = self.memory_attn_head(torch.cat([tokens, decoded], -1))
        return (
            self.decoder_embed_memory(key + value)[0],
            F.avg_pool2d(image, PATCH)[0].flatten(1).t(),
        )


def build(configuration: Configuration) -> Point3R:
    return Point3R(configuration)


class PoseMemory(nn.Module):
    """Slots [1, pose_slots, 2 * width] that remember which pose went with which image (after CUT3R,
    Wang et al., 2025)."""

    def __init__(self, query_width: int, width: int, heads: int, slots: int) -> None:
        super().__init__()
        self.masked_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mem = nn.Parameter(torch.zeros(1, slots, 2 * width))
        self.proj_q = nn.Linear(query_width, width)
        self.write_blocks = nn.ModuleList(DecoderBlock(2 * width, heads) for _ in range(POSE_DEPTH))
        self.read_blocks = nn.ModuleList(DecoderBlock(2 * width, heads) for _ in range(POSE_DEPTH))

    def read(self, image: Tensor, slots: Tensor) -> Tensor:
        """The pose token to begin with, for an image's mean token [1, 1, query_width]."""
        x = torch.cat([self.proj_q(image), self.masked_token], -1)
        for block in self.read_blocks:
            x = block(x, slots)
        return x[..., self.masked_token.shape[-1] :]

    def write(self, image: Tensor, pose: Tensor, slots: Tensor) -> Tensor:
        """The slots after an image's mean token [1, 1, query_width] came out with the pose token
        [1, 1, width]."""
        x = torch.cat([self.proj_q(image), pose], -1)
        for block in self.write_blocks:
            slots = block(slots, x)
        return slots


class Heads(nn.Module):
    def __init__(self, c: Configuration) -> None:
        super().__init__()
        widths = (c.encoder_width, c.decoder_width, c.decoder_width, c.decoder_width)
        self.dpt_self = DenseHead(widths, 4, c.head_width)
        self.final_transform = nn.ModuleList(
            ModulatedBlock(c.decoder_width, c.decoder_heads) for _ in range(2)
        )
        self.dpt_cross = DenseHead(widths, 4, c.head_width)
        self.pose_head = nn.ModuleDict({"mlp": Mlp(c.decoder_width, 4 * c.decoder_width, 7)})

    def forward(self, decoded: list[Tensor], grid: tuple[int, int], turn: Rotation) -> Prediction:
        encoded, half, most, last = decoded
        levels = [encoded, half[:, 1:], most[:, 1:]]
        pose, own = last[:, 0], last[:, 1:]
        world = own
        for block in self.final_transform:
            world = block(world, pose, turn)
        return Prediction(
            *points_and_confidence(self.dpt_self([*levels, own], grid)),
            _pose(self.pose_head["mlp"](pose)),
            *points_and_confidence(self.dpt_cross([*levels, world], grid)),
        )


def _pose(x: Tensor) -> Tensor:
    """[B, 7] -> translation whose length grows as exp(.) - 1, and a unit quaternion with w >= 0."""
    x = x.float()
    length = x[:, :3].norm(dim=-1, keepdim=True)
    quaternion = F.normalize(x[:, 3:], dim=-1)
    quaternion = torch.where(quaternion[:, :1] < 0, -quaternion, quaternion)
    return torch.cat([x[:, :3] * torch.expm1(length) / length.clamp_min(1e-8), quaternion], -1)


def _grid(image: Tensor) -> tuple[int, int]:
    return image.shape[-2] // PATCH, image.shape[-1] // PATCH
