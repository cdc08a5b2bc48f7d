"""Loops: the way of this drive as a pose graph, and when the car has come back to it.

A loop is believed where it says what odometry says, within what an answer may be off; where it
moves the map, only if two answers, of frame sets that are independent, agree (agreement.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.localization.agreement import AGREE, AGREE_TURN, KEPT, Said, agree, independent
from recon4d_ros.localization.keyframes import Keyframe
from recon4d_ros.localization.nearby import Nearby
from recon4d_ros.localization.pose_graph import Edge, solved
from recon4d_ros.localization.relocalizer import Answer, apart

Array = NDArray[np.float64]

BACK = 60.0  # metres driven since a keyframe before coming to it is coming back
# metres, and share of the way since, by which the estimate may be off when it is looked for
NEAR, DRIFT = 10.0, 0.03
FLOOR = np.diag([0.03, 0.03, 0.03, 0.002, 0.002, 0.002]) ** 2
"""What is added to the covariance of each motion between two keyframes: an error of calibration, a
percent of scale say, is the same in all of them, and adds up faster than independent ones do."""
SOLVE_AT = 5  # loops that wait for the graph to be solved ...
SOLVE_OFF = 0.1  # ... or metres by which one of them is off


@dataclass(frozen=True)
class _Node:
    """A keyframe on the way. way: metres driven. error: [6, 6], as a sum since the segment
    began."""

    index: int
    T_odom_base: Array
    way: float
    error: Array


@dataclass(frozen=True)
class Solution:
    """All keyframes where the graph says, and where that is."""

    frames: list[Keyframe]
    near: Nearby


class LoopCloser:
    """The way of one segment of odometry. Keyframes are told by their index in the map."""

    def __init__(self, on: bool) -> None:
        """on: whether loops are looked for; the way is kept in any case."""
        self._on = on
        self._nodes: list[_Node] = []
        self._edges: list[Edge] = []
        self._waiting: deque[tuple[Said, Edge]] = deque(maxlen=KEPT)
        self._new, self._off = 0, 0.0
        self.loops = 0
        self.solution: Solution | None = None

    @property
    def nodes(self) -> int:
        return len(self._nodes)

    @property
    def due(self) -> bool:
        """Whether the graph is to be solved."""
        return self.solution is None and (
            self._new >= SOLVE_AT or (self._new > 0 and self._off > SOLVE_OFF)
        )

    def goes(self, index: int, T_odom_base: Array, way: float, error: Array) -> None:
        """The way goes through a new keyframe."""
        if self._nodes:
            last = self._nodes[-1]
            motion = geometry.inverse(last.T_odom_base) @ T_odom_base
            self._edges.append(Edge(last.index, index, motion, error - last.error + FLOOR))
        self._nodes.append(_Node(index, T_odom_base, way, error))

    def shift(self, by: int) -> None:
        """All keyframes have other indices."""
        self._nodes = [replace(node, index=node.index + by) for node in self._nodes]
        self._edges = [replace(edge, a=edge.a + by, b=edge.b + by) for edge in self._edges]

    def may(self, way: float) -> bool:
        """Whether there is anything to come back to after so many metres driven."""
        return self._on and bool(self._nodes) and way - self._nodes[0].way > BACK

    def reach(self, near: Nearby, T_map_base: Array, way: float) -> NDArray[np.bool_]:
        """[K] which of the keyframes are of this way, and the car may have come back to them."""
        out = np.zeros(len(near), np.bool_)
        if not (self._on and self._nodes):
            return out
        driven = way - np.array([node.way for node in self._nodes])
        mine = slice(self._nodes[0].index, self._nodes[0].index + len(self._nodes))
        away = np.linalg.norm(near.position[mine] - T_map_base[:3, 3], axis=1)
        out[mine] = (driven > BACK) & near.useful[mine] & (away < NEAR + DRIFT * driven)
        return out

    def hear(self, said: Said, index: int, frames: Sequence[Keyframe], T_map_odom: Array) -> None:
        """An answer by keyframes of this way, for the newest keyframe."""
        edge = _edge(said.answer, index, frames)
        metres, radians = apart(T_map_odom @ said.T_odom_base, said.answer.T_map_base)
        if metres < AGREE and radians < AGREE_TURN:
            self._add([edge], metres)
            return
        for other, earlier in reversed(self._waiting):
            if independent(other, said) and agree(other, said):
                self._add([earlier, edge], metres)
                self._waiting.clear()
                return
        self._waiting.append((said, edge))

    def tie(self, answer: Answer, index: int, frames: Sequence[Keyframe]) -> None:
        """An answer by keyframes that stay, which is believed."""
        self._edges.append(_edge(answer, index, frames))

    def _add(self, edges: list[Edge], off: float) -> None:
        self._edges += edges
        self.loops += len(edges)
        self._new += len(edges)
        self._off = max(self._off, off)

    def job(self, frames: Sequence[Keyframe], own_from: int) -> Callable[[], None]:
        """What solves the graph, from where all keyframes are; `take` then gives them anew.
        own_from: keyframes before it stay, and so does the way's first. Whatever grows with the map
        is done in the job."""
        edges, frames = tuple(self._edges), list(frames)
        first = self._nodes[0].index
        self._new, self._off = 0, 0.0

        def work() -> None:
            poses = np.stack([frame.T_map_base for frame in frames])
            poses = solved(poses, edges, {*range(own_from), first})
            moved = [
                replace(frame, T_map_base=pose)
                for frame, pose in zip(frames[own_from:], poses[own_from:], strict=True)
            ]
            every, near = [*frames[:own_from], *moved], Nearby()
            near.follow(every)
            self.solution = Solution(every, near)

        return work

    def take(self) -> Solution:
        """The solution, once."""
        assert self.solution is not None
        solution, self.solution = self.solution, None
        return solution

    def T_odom_base(self, index: int) -> Array:
        """Odometry's pose of a keyframe of this way."""
        return self._nodes[index - self._nodes[0].index].T_odom_base


def _edge(answer: Answer, index: int, frames: Sequence[Keyframe]) -> Edge:
    """From the keyframe that says most to the newest."""
    first = answer.keyframes[0]
    seen = geometry.inverse(frames[first].T_map_base) @ answer.T_map_base
    return Edge(first, index, seen, answer.covariance, True)
