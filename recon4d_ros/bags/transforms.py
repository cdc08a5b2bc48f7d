"""The transforms of a bag that stand still: /tf_static, in whichever namespace, and what is sent on
/tf over and over and never changes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import messages as ros
from recon4d_ros.bags.topics import TF_MESSAGE, TF_STATIC
from recon4d_ros.errors import CalibrationError
from recon4d_ros.geometry import inverse

if TYPE_CHECKING:
    from recon4d_ros.bags.reader import BagReader

STILL = 1e-3  # metres, and radians: what a transform may change by through rounding


class Transforms:
    """Looked up in /tf_static first; /tf is read, once and whole, where that does not do."""

    def __init__(self, reader: BagReader) -> None:
        self._reader = reader

    @cached_property
    def static(self) -> dict[str, ros.StaticTransform]:
        """Edges by child frame of /tf_static and namespaced ones; of a frame that is in several of
        these the first's, /tf_static before the others."""
        edges: dict[str, ros.StaticTransform] = {}
        topics = self._topics()
        named = [topic for topic in topics if topic.endswith(TF_STATIC)]
        for topic in sorted(named, key=lambda topic: topic != TF_STATIC):
            here = ros.static_transforms(
                message for _, _, message in self._reader.messages([topic])
            )
            for child, edge in here.items():
                if child in edges and not _alike(edges[child], edge):
                    self._reader.tell(
                        f"frame {child} is on {topic} too, elsewhere: the one of {named[0]} is"
                        " taken"
                    )
                edges.setdefault(child, edge)
        return edges

    @cached_property
    def still(self) -> dict[str, ros.StaticTransform]:
        """Edges by child frame of /tf that are the same whenever they are sent."""
        edges: dict[str, ros.StaticTransform] = {}
        moving: set[str] = set()
        for topic in (topic for topic in self._topics() if not topic.endswith(TF_STATIC)):
            for _, _, message in self._reader.messages([topic]):
                for child, edge in ros.static_transforms([message]).items():
                    if child in edges and not _alike(edges[child], edge):
                        moving.add(child)
                    edges.setdefault(child, edge)
        return {child: edge for child, edge in edges.items() if child not in moving}

    def lookup(self, base: str, frame: str) -> NDArray[np.float64]:
        """T_base_frame. Raises CalibrationError with what is known if nothing leads there."""
        try:
            return ros.lookup(self.static, base, frame)
        except CalibrationError:
            edges = {**self.still, **self.static}
            pose = ros.lookup(edges, base, frame)
        used = [child for child in _chain(edges, base, frame) if child not in self.static]
        self._reader.tell(
            f"the transform from {base} to {frame} is not on /tf_static: {', '.join(used)}"
            f" {'is' if len(used) == 1 else 'are'} taken from /tf, where"
            f" {'it does' if len(used) == 1 else 'they do'} not change"
        )
        return pose

    def optical_child(self, frame: str) -> str:
        """The frame's only child that is called optical; empty if there is no such, or several."""
        edges = {**self.still, **self.static}
        children = [
            child
            for child, edge in edges.items()
            if edge.parent == ros.frame_name(frame) and "optical" in child.lower()
        ]
        return children[0] if len(children) == 1 else ""

    def frames(self) -> list[str]:
        """All frames that are known."""
        edges = {**self.still, **self.static}
        return sorted({*edges, *(edge.parent for edge in edges.values())})

    def roots(self) -> list[str]:
        """Frames that are nobody's child, of which the car's frame is likely one."""
        edges = {**self.still, **self.static}
        return sorted({edge.parent for edge in edges.values()} - set(edges))

    def _topics(self) -> list[str]:
        topics = self._reader.topics
        return [topic for topic, info in topics.items() if info.type == TF_MESSAGE]


def _alike(a: ros.StaticTransform, b: ros.StaticTransform) -> bool:
    if a.parent != b.parent:
        return False
    relative = inverse(a.T_parent_child) @ b.T_parent_child
    return bool(np.abs(relative - np.eye(4)).max() < STILL)


def _chain(edges: Mapping[str, ros.StaticTransform], base: str, frame: str) -> list[str]:
    """Children of the edges between two frames."""

    def up(frame: str) -> list[str]:
        chain = [ros.frame_name(frame)]
        while chain[-1] in edges and edges[chain[-1]].parent not in chain:
            chain.append(edges[chain[-1]].parent)
        return chain

    one, other = up(base), up(frame)
    return [name for name in (*one, *other) if (name in one) != (name in other)]
