"""Which keyframes are near a place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.localization.keyframes import Keyframe

Array = NDArray[np.float64]

TURN = np.radians(10.0)  # of heading, as far as a metre
_ROOM = 64  # keyframes there is room for at first


class Nearby:
    """Where keyframes are, in one piece: a look costs microseconds for thousands of them. They are
    followed as they are added; where they move, another one is made."""

    def __init__(self) -> None:
        self._count = 0
        self._position: Array = np.zeros((_ROOM, 3))
        self._ahead: Array = np.zeros((_ROOM, 3))
        self._useful = np.zeros(_ROOM, np.bool_)

    def __len__(self) -> int:
        return self._count

    @property
    def position(self) -> Array:
        """[K, 3] m in map."""
        return self._position[: self._count]

    @property
    def useful(self) -> NDArray[np.bool_]:
        """[K] whether they have features."""
        return self._useful[: self._count]

    def follow(self, frames: Sequence[Keyframe]) -> None:
        """Takes those that were added since."""
        if len(frames) > len(self._useful):
            room = 2 * len(frames)
            self._position = np.resize(self._position, (room, 3))
            self._ahead = np.resize(self._ahead, (room, 3))
            self._useful = np.resize(self._useful, room)
        for i in range(self._count, len(frames)):
            T = frames[i].T_map_base
            self._position[i], self._ahead[i] = T[:3, 3], T[:3, 0]
            self._useful[i] = frames[i].count > 0
        self._count = len(frames)

    def __call__(
        self, T_map_base: Array, reach: float, count: int, first: int | None = None
    ) -> list[int]:
        """The nearest `count` of those that have features and are within reach (m) of a pose [4,
        4], nearest first. first: look only at so many."""
        position, useful = self.position[:first], self.useful[:first]
        near = np.flatnonzero((np.abs(position[:, 0] - T_map_base[0, 3]) < reach) & useful)
        distance = np.linalg.norm(position[near] - T_map_base[:3, 3], axis=1)
        near, distance = near[distance < reach], distance[distance < reach]
        cosine = np.clip(self._ahead[near] @ T_map_base[:3, 0], -1.0, 1.0)
        order = np.argsort(distance + np.arccos(cosine) / TURN, kind="stable")
        return near[order[:count]].tolist()
