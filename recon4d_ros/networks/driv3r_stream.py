"""Driv3R as a stream with a memory of fixed size: step(images, memory) -> (point maps, memory'), no
shape depending on data.

N cameras side by side, each with its own memory, origin and scale. With room to spare this is what
the authors' code does, frame by frame: it pairs frames t - 1 and t, and so does this at step t. At
its first image a camera is paired with itself, which leaves no trace.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.driv3r import PATCH, Driv3R, PointMap
from recon4d_ros.networks.sensor_memory import (
    PUBLISHED,
    Pool,
    Rules,
    add,
    alike,
    pool_shapes,
    read,
    unit,
)


class StreamMemory(NamedTuple):
    """All float32, all zeros at first. tokens, query [N, T, C]: of each camera's last image. barred
    [N, T]: patches of it that moved. seen [N]: images since the camera's origin, with it."""

    tokens: Tensor
    query: Tensor
    barred: Tensor
    seen: Tensor
    pool: Pool


class Pair(NamedTuple):
    """now: the points of this image. before: those of the image before, with what is known by now
    (at the first image: the same again). Both in the frame of the camera at its origin."""

    now: PointMap
    before: PointMap


class SensorStream(nn.Module):
    """clip: images after which a camera's last but one becomes its new origin and its pool is
    emptied; 0: never."""

    def __init__(
        self,
        network: Driv3R,
        size: tuple[int, int],
        cameras: int = 1,
        capacity: int | None = None,
        rules: Rules = PUBLISHED,
        clip: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.cameras, self.rules, self.clip = network, cameras, rules, clip
        if size[0] % PATCH or size[1] % PATCH:
            raise EngineError(
                f"size {size[0]}x{size[1]}: driv3r takes heights and widths that are multiples of"
                f" its patches of {PATCH} pixels"
            )
        self.grid = size[0] // PATCH, size[1] // PATCH
        self.patches = self.grid[0] * self.grid[1]
        most = rules.capacity(self.patches)
        self.capacity = most if capacity is None else min(capacity, most)
        if self.capacity < 2 * self.patches:
            raise EngineError(
                f"{self.capacity} pointers are too few: driv3r's memory holds two images or more,"
                f" {2 * self.patches} at {size[0]}x{size[1]}"
            )
        if clip < 0 or clip == 1:
            raise EngineError(
                f"clip is {clip}: expected 2 images or more, or 0 for a stream without end"
            )

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        """Flat: the pool's parts carry the prefix pool_."""
        n, t, c = self.cameras, self.patches, self.network.configuration.encoder_width
        shapes: dict[str, tuple[int, ...]] = {
            "tokens": (n, t, c),
            "query": (n, t, c),
            "barred": (n, t),
            "seen": (n,),
        }
        return shapes | {
            f"pool_{name}": shape
            for name, shape in pool_shapes(n, self.capacity, t, c, self.rules).items()
        }

    def begin(self) -> StreamMemory:
        device = self.network.value_out.weight.device
        return unflatten(
            [torch.zeros(shape, device=device) for shape in self.memory_shapes().values()]
        )

    def restarts(self, memory: StreamMemory) -> Tensor:
        """[N] bool: cameras whose last image becomes the origin in this step."""
        return (
            memory.seen >= self.clip
            if self.clip
            else torch.zeros_like(memory.seen, dtype=torch.bool)
        )

    def forward(
        self,
        images: Tensor,
        memory: StreamMemory,
        present: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> tuple[Pair, StreamMemory]:
        """images [N, 3, H, W] in -1..1; present [N] bool (default: all): the others' memory stays
        as it is; moved [N, T] bool (default: none): patches of the images of the step before that
        are not to be remembered."""
        net, rules = self.network, self.rules
        dtype = net.value_out.weight.dtype  # below float32 if the network was made so
        here = (
            torch.ones(self.cameras, dtype=torch.bool, device=images.device)
            if present is None
            else present
        )
        barred = (
            memory.barred
            if moved is None
            else torch.maximum(memory.barred, moved.to(torch.float32))
        )
        again = self.restarts(memory)
        seen = torch.where(again, 1.0, memory.seen)
        pool = memory.pool
        if self.clip:
            recent = torch.where(again[:, None, None, None], 0.0, pool.recent)
            pool = pool._replace(valid=torch.where(again[:, None], 0.0, pool.valid), recent=recent)
        follows, recalls = seen > 0.5, seen > 1.5

        now = net.encode(images)
        before = torch.where(_per_token(follows), memory.tokens.to(dtype), now)
        answer, attention = read(pool, net.norm_q(memory.query), rules)
        fused = torch.where(_per_token(recalls), (answer + memory.query).to(dtype), before)
        pool = pool._replace(
            used=torch.where((recalls & here)[:, None], pool.used + attention, pool.used)
        )

        decoded_before, decoded_now = net.decode(fused, now, self.grid)
        key, query = (
            net.key(before, decoded_before[-1]).float(),
            net.query(now, decoded_now[-1]).float(),
        )
        map_before, map_now = net.predict(decoded_before, decoded_now, self.grid)
        value = net.value(map_before.points).float() + key

        plain = unit(key)
        adds = here & follows & ~alike(pool, plain, rules)
        pool = add(pool, net.norm_k(key), net.norm_v(value), plain, barred < 0.5, adds, rules)

        first = PointMap(
            *(
                torch.where(follows.view(-1, *[1] * (b.dim() - 1)), a, b)
                for a, b in zip(map_now, map_before, strict=True)
            )
        )
        return Pair(first, map_before), StreamMemory(
            torch.where(_per_token(here), now.float(), memory.tokens),
            torch.where(_per_token(here), query, memory.query),
            torch.where(here[:, None], 0.0, barred),
            torch.where(here, seen + 1, memory.seen),
            pool,
        )


def unflatten(tensors: list[Tensor] | tuple[Tensor, ...]) -> StreamMemory:
    """Tensors in the order of memory_shapes()."""
    tokens, query, barred, seen, *pool = tensors
    return StreamMemory(tokens, query, barred, seen, Pool(*pool))


def flatten(memory: StreamMemory) -> tuple[Tensor, ...]:
    return (*memory[:4], *memory.pool)


def _per_token(x: Tensor) -> Tensor:
    return x[:, None, None]
