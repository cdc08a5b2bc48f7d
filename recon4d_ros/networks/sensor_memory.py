"""The spatial memory of Spann3R, one pool per sensor (Driv3R, section 3.2), in buffers of fixed
size: no shape depends on data.

A frame's tokens enter as a block of keys and values unless they look like one of the last few
blocks. Every reading leaves on each entry the attention it got. When there is no room for another
block, the entries that got the least attention per block since they came leave.

N sensors side by side, none of which sees another's pool; M entries each, T tokens per frame, C
channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CERTAIN = 1e6  # above any attention per block


@dataclass(frozen=True)
class Rules:
    """The published ones. least_attention: below this share a token does not count in a reading.
    alike: mean cosine of two frames' keys from which the second one is nothing new. working: blocks
    that a new one is compared with. long: entries left after a pruning. settled: blocks that have
    to come after an entry before it may leave."""

    least_attention: float = 5e-4
    alike: float = 0.95
    working: int = 5
    long: int = 4000
    settled: int = 10

    def capacity(self, tokens: int) -> int:
        """Entries that the published rules ever hold for good, T = `tokens` per frame."""
        return self.long + self.working * tokens


PUBLISHED = Rules()


class Pool(NamedTuple):
    """All float32, all zeros at first.

    key, value [N, M, C], ready for attention (normalized). used [N, M]: attention got so far. age
    [N, M]: blocks that came since. valid [N, M]. recent [N, working, T, C]: keys of the newest
    blocks, of length 1, newest first.
    """

    key: Tensor
    value: Tensor
    used: Tensor
    age: Tensor
    valid: Tensor
    recent: Tensor


def pool_shapes(
    sensors: int, capacity: int, tokens: int, channels: int, rules: Rules
) -> dict[str, tuple[int, ...]]:
    n, m = sensors, capacity
    shapes = (
        (n, m, channels),
        (n, m, channels),
        (n, m),
        (n, m),
        (n, m),
        (n, rules.working, tokens, channels),
    )
    return dict(zip(Pool._fields, shapes, strict=True))


def read(pool: Pool, query: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """query [N, T, C], ready for attention -> what the pool has to say to it [N, T, C], and the
    attention [N, M] that its entries got.

    Zero where no entry is valid or no attention reaches `least_attention`, where the published code
    divides by zero.
    """
    valid = pool.valid[:, None] > 0.5
    likeness = query @ pool.key.transpose(1, 2) * (query.shape[-1] ** -0.5)
    attention = torch.softmax(torch.where(valid, likeness, -CERTAIN), -1)
    attention = torch.where(valid & (attention >= rules.least_attention), attention, 0.0)
    attention = attention / attention.sum(-1, keepdim=True).clamp_min(1e-12)
    return attention @ pool.value, attention.sum(1)


def alike(pool: Pool, key: Tensor, rules: Rules) -> Tensor:
    """[N] bool: is a block of keys [N, T, C], of length 1, like one of the newest?"""
    cosine = (
        (pool.recent * key[:, None]).sum(-1).mean(-1)
    )  # [N, working]; 0 where there is no block yet
    return cosine.amax(1) > rules.alike


def add(
    pool: Pool,
    key: Tensor,
    value: Tensor,
    plain_key: Tensor,
    offered: Tensor,
    adds: Tensor,
    rules: Rules,
) -> Pool:
    """The pool after a block: key, value [N, T, C] ready for attention; plain_key [N, T, C] of
    length 1, as alike() compares it; offered [N, T] bool: tokens that are meant, the others leave
    no trace; adds [N] bool: sensors that add at all.

    M >= 2 T. While valid and offered entries fit into M nothing leaves. When they do not, the pool
    is pruned to `long` entries, or to M - T if that is fewer, the new ones among them. An entry
    that is not yet `settled` leaves only when all that are have left, the older first; otherwise
    the one with the least attention per block, and among equals the older.
    """
    (n, m), t = pool.valid.shape, key.shape[1]
    keep = min(rules.long, m - t)
    offered = offered & adds[:, None]
    valid = pool.valid > 0.5
    full = valid.sum(1) + offered.sum(1) > m
    age = pool.age + 1

    # the entries that would leave, the first to go first: empty ones in order of their number, then
    # by worth
    number = torch.arange(m, device=key.device, dtype=torch.float32) / m
    late = age + number  # a tie-break, the same in every runtime
    worth = torch.where(
        age < rules.settled,
        CERTAIN * (2 - late / (rules.settled + 1)),
        pool.used / age - 1e-9 * late,
    )
    worth = torch.where(valid, worth, CERTAIN * (number - 2))
    last = torch.topk(worth, m - keep + t, dim=1, largest=False).indices
    leaves = (
        torch.zeros_like(pool.valid).scatter(1, last, torch.ones_like(last, dtype=pool.valid.dtype))
        > 0.5
    )
    stays = valid & ~(leaves & (full & adds)[:, None])

    # offered tokens take the first places of these, the others would take the next ones and write
    # back what is there
    count = offered.to(torch.float32)  # exact, and TensorRT's cumulative sums are of floats
    rank = torch.where(
        offered, count.cumsum(1) - 1, count.sum(1, keepdim=True) + (1 - count).cumsum(1) - 1
    )
    place = last[:, :t].gather(1, rank.to(torch.int64))

    def put(rows: Tensor, new: Tensor) -> Tensor:
        mask, index = (
            (offered, place)
            if rows.dim() == 2
            else (offered[..., None], place[..., None].expand(-1, -1, rows.shape[2]))
        )
        return rows.scatter(1, index, torch.where(mask, new, rows.gather(1, index)))

    empty = torch.zeros(n, t, device=key.device)
    return Pool(
        put(pool.key, key),
        put(pool.value, value),
        put(torch.where(stays, pool.used, 0.0), empty),
        put(torch.where(stays, torch.where(adds[:, None], age, pool.age), 0.0), empty),
        put(stays.to(torch.float32), empty + 1),
        torch.where(
            adds[:, None, None, None],
            torch.cat([plain_key[:, None], pool.recent[:, :-1]], 1),
            pool.recent,
        ),
    )


def unit(key: Tensor) -> Tensor:
    """Keys of length 1."""
    return F.normalize(key, dim=-1)
