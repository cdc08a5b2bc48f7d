"""An image of a camera and the one that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow, Picture

LONGEST_GAP = 1.0
"""Images further apart than this many seconds are not compared: a dynamic object has left its place
by then."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One image of one camera and what is kept of it. q: [h, w] 1/m on the motion grid, NaN =
    none."""

    stamp_ns: int
    picture: Picture
    T_map_camera: NDArray[np.float64]
    q: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pair:
    """An image of a camera, the one it is compared with, and the flow between them."""

    now: Shot
    before: Shot
    flow: Flow

    @property
    def seconds(self) -> float:
        return (self.now.stamp_ns - self.before.stamp_ns) * 1e-9


class _Stamped(Protocol):
    @property
    def stamp_ns(self) -> int: ...


S = TypeVar("S", bound=_Stamped)


def comparable(shots: Sequence[S], stamp_ns: int, baseline: float) -> list[S]:
    """Those of a camera's images, oldest first, that its image at `stamp_ns` and later ones may be
    compared with: the first is the one for this image, `baseline` seconds older if images come that
    fast, the last is the newest. Empty if none is new enough."""
    near = [shot for shot in shots if 0 < (stamp_ns - shot.stamp_ns) * 1e-9 < LONGEST_GAP]
    old = sum((stamp_ns - shot.stamp_ns) * 1e-9 > baseline - 0.02 for shot in near)
    return near[max(old - 1, 0) :]
