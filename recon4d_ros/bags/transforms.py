"""The transforms that stand still: /tf_static, in whichever namespace, and what is sent on /tf over
and over and never changes. The same rules for a bag and for a running graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import messages as ros
from recon4d_ros.bags.topics import TF_MESSAGE, TF_STATIC
from recon4d_ros.errors import CalibrationError
from recon4d_ros.geometry import inverse

if TYPE_CHECKING:
    from recon4d_ros.bags.reader import BagReader

# base_link of a camera that looks straight ahead: x right, y down, z forward
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
STILL = 1e-3  # metres, and radians: what a transform may change by through rounding
LOOKS_UP = 0.7  # of base_link's z along an optical axis: within 45 degrees


class FixedTransforms:
    """Edges by child frame, of /tf_static and of /tf. tell: gets a sentence about what had to be
    made of them."""

    def __init__(self, tell: Callable[[str], None] = lambda note: None) -> None:
        self._tell = tell
        self._static: dict[str, ros.StaticTransform] = {}
        self._topic: dict[str, str] = {}  # of each static edge
        self._sent: dict[str, ros.StaticTransform] = {}
        self._moving: set[str] = set()

    def add_static(self, message: Any, topic: str = TF_STATIC) -> None:
        """A tf2_msgs/TFMessage of /tf_static, or of a namespaced one. A later edge replaces an
        earlier one of the same topic, as in tf2; of a frame that is on several, /tf_static's is
        taken, else that of the first."""
        for child, edge in ros.static_transforms([message]).items():
            owner = self._topic.get(child, topic)
            ours = owner == topic or topic == TF_STATIC
            if owner != topic and not alike(self._static[child], edge):
                taken, other = (topic, owner) if ours else (owner, topic)
                self._tell(
                    f"frame {child} is on {other} too, elsewhere: the one of {taken} is taken"
                )
            if ours:
                self._static[child], self._topic[child] = edge, topic

    def add_sent(self, message: Any) -> None:
        """A tf2_msgs/TFMessage of /tf: its edges are fixed as long as they do not change."""
        for child, edge in ros.static_transforms([message]).items():
            if child in self._sent and not alike(self._sent[child], edge):
                self._moving.add(child)
            self._sent.setdefault(child, edge)

    @property
    def static(self) -> Mapping[str, ros.StaticTransform]:
        """Edges by child frame of /tf_static and namespaced ones."""
        return self._static

    @property
    def still(self) -> Mapping[str, ros.StaticTransform]:
        """Edges by child frame of /tf that are the same whenever they are sent."""
        return {child: edge for child, edge in self._sent.items() if child not in self._moving}

    def lookup(self, base: str, frame: str) -> NDArray[np.float64]:
        """T_base_frame, by /tf_static alone where that does. Raises CalibrationError with what is
        known if nothing leads there."""
        try:
            return ros.lookup(self.static, base, frame)
        except CalibrationError:
            edges = {**self.still, **self.static}
            base, frame = self._named(base), self._named(frame)
            pose = ros.lookup(edges, base, frame)
        used = [child for child in chain(edges, base, frame) if child not in self.static]
        if not used:
            return pose
        self._tell(
            f"the transform from {base} to {frame} is not on /tf_static: {', '.join(used)}"
            f" {'is' if len(used) == 1 else 'are'} taken from /tf, where"
            f" {'it does' if len(used) == 1 else 'they do'} not change"
        )
        return pose

    def ahead(self, first: str, frame: str, height: float) -> NDArray[np.float64]:
        """T_base_frame where nothing leads to the car's frame: base_link is on the road below the
        first camera's frame, which looks straight ahead. Raises CalibrationError as `lookup`."""
        pose = np.eye(4)
        pose[:3, :3], pose[2, 3] = AHEAD, height
        return pose if frame == first else pose @ self.lookup(first, frame)

    def between(self, base: str, frame: str) -> list[str]:
        """Child frames of the edges that lead from one frame to the other."""
        return chain({**self.still, **self.static}, self._named(base), self._named(frame))

    def optical(self, base: str, frame: str, camera: str) -> str:
        """The frame of a camera's images: the one that camera_info names, or, where that is the
        body's (z up), its only child that is called optical. Raises CalibrationError as `lookup`.
        """
        if self.lookup(base, frame)[2, 2] <= LOOKS_UP or not (child := self._child(frame)):
            return frame
        self._tell(
            f"camera {camera}: its frame {frame!r} is the body's (z up): {child!r} below it is"
            " taken"
        )
        return child

    def _child(self, frame: str) -> str:
        """The frame's only child that is called optical; empty if there is no such, or several."""
        edges, frame = {**self.still, **self.static}, self._named(frame)
        children = [
            child
            for child, edge in edges.items()
            if edge.parent == ros.frame_name(frame) and "optical" in child.lower()
        ]
        return children[0] if len(children) == 1 else ""

    def _named(self, frame: str) -> str:
        """The frame as the transforms name it: itself, or the only one that has the same last part,
        behind a robot's name or without it (`car1/base_link`)."""
        known, frame = self.frames(), ros.frame_name(frame)
        alike = [name for name in known if name.endswith(f"/{frame}")]
        alike += [name for name in known if frame.endswith(f"/{name}")]
        if frame in known or len(alike) != 1:
            return frame
        self._tell(f"frame {frame!r} is taken to be {alike[0]!r}, the only one of its name")
        return alike[0]

    def frames(self) -> list[str]:
        """All frames that are known."""
        edges = {**self.still, **self.static}
        return sorted({*edges, *(edge.parent for edge in edges.values())})

    def roots(self) -> list[str]:
        """Frames that are nobody's child, of which the car's frame is likely one."""
        edges = {**self.still, **self.static}
        return sorted({edge.parent for edge in edges.values()} - set(edges))


def check_height(height: float | None) -> None:
    """Raises CalibrationError."""
    if height is not None and not 0 < height < 100:
        raise CalibrationError(f"height is {height:g} m: expected that of a camera on a car")


class Transforms(FixedTransforms):
    """Those of a bag. /tf is read, once and whole, where /tf_static does not do."""

    def __init__(self, reader: BagReader) -> None:
        super().__init__(reader.tell)
        self._reader = reader

    @cached_property
    def static(self) -> Mapping[str, ros.StaticTransform]:  # type: ignore[override]
        named = [topic for topic in self._topics() if topic.endswith(TF_STATIC)]
        for topic in sorted(named, key=lambda topic: topic != TF_STATIC):
            for message in self._messages([topic]):
                self.add_static(message, topic)
        return self._static

    @cached_property
    def still(self) -> Mapping[str, ros.StaticTransform]:  # type: ignore[override]
        for topic in (topic for topic in self._topics() if not topic.endswith(TF_STATIC)):
            for message in self._messages([topic]):
                self.add_sent(message)
        return super().still

    def _messages(self, topics: list[str]) -> Iterable[Any]:
        return (message for _, _, message in self._reader.messages(topics))

    def _topics(self) -> list[str]:
        topics = self._reader.topics
        return [topic for topic, info in topics.items() if info.type == TF_MESSAGE]


def alike(a: ros.StaticTransform, b: ros.StaticTransform) -> bool:
    """Whether two edges are one, to STILL."""
    if a.parent != b.parent:
        return False
    relative = inverse(a.T_parent_child) @ b.T_parent_child
    return bool(np.abs(relative - np.eye(4)).max() < STILL)


def chain(edges: Mapping[str, ros.StaticTransform], base: str, frame: str) -> list[str]:
    """Children of the edges between two frames."""

    def up(frame: str) -> list[str]:
        names = [ros.frame_name(frame)]
        while names[-1] in edges and edges[names[-1]].parent not in names:
            names.append(edges[names[-1]].parent)
        return names

    one, other = up(base), up(frame)
    return [name for name in (*one, *other) if (name in one) != (name in other)]
