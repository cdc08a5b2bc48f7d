"""The transforms that stand still: /tf_static, in whichever namespace, and what is sent on /tf over
and over and never changes. The same rules for a bag and for a running graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
# metres, and radians: what a transform may change by through rounding, and where it is computed
# from positions on the earth
STILL = 5e-3
WORLD = frozenset(("map", "odom", "world", "earth", "utm"))  # REP 105's names, and others'
LOOKS_UP = 0.7  # of base_link's z along an optical axis: within 45 degrees


class FixedTransforms:
    """Edges by child frame, of /tf_static and of /tf. tell: gets a sentence about what had to be
    made of them."""

    def __init__(self, tell: Callable[[str], None] = lambda note: None) -> None:
        self._tell = tell
        self._static: dict[str, ros.StaticTransform] = {}
        self._topic: dict[str, str] = {}  # of each static edge
        self._others: dict[str, list[ros.StaticTransform]] = {}  # to other parents, of a child
        self._sent: dict[str, ros.StaticTransform] = {}
        self._moving: set[str] = set()
        self._now: dict[str, tuple[int, ros.StaticTransform]] = {}  # last of /tf, with its stamp
        self._together: dict[tuple[str, str], _Together] = {}  # by base and frame

    def add_static(self, message: Any, topic: str = TF_STATIC) -> None:
        """A tf2_msgs/TFMessage of /tf_static, or of a namespaced one. A later edge replaces an
        earlier one of the same topic, as in tf2; of a frame that is on several, /tf_static's is
        taken, else that of the first."""
        for transform in message.transforms:  # of which several may be of one frame
            ((child, edge),) = ros.static_transforms([_One([transform])]).items()
            owner = self._topic.get(child, topic)
            ours = owner == topic or topic == TF_STATIC
            if owner != topic and not alike(self._static[child], edge):
                taken, other = (topic, owner) if ours else (owner, topic)
                self._tell(
                    f"frame {child} is on {other} too, elsewhere: the one of {taken} is taken"
                )
            if not ours:
                continue
            before = self._static.get(child)
            if before is not None and owner == topic and not alike(before, edge):
                self._replaced(child, before, edge)
            self._static[child], self._topic[child] = edge, topic

    def _replaced(self, child: str, before: ros.StaticTransform, edge: ros.StaticTransform) -> None:
        """An edge of /tf_static came again, and is another one."""
        if before.parent != edge.parent:
            self._others.setdefault(child, []).append(before)
        else:
            self._tell(
                f"the transform from {edge.parent} to {child} is sent again on"
                f" {self._topic[child]}, and is another one: the last is taken"
            )

    def add_sent(self, message: Any) -> None:
        """A tf2_msgs/TFMessage of /tf: its edges are fixed as long as they do not change."""
        for child, edge in ros.static_transforms([message]).items():
            if child in self._sent and not alike(self._sent[child], edge):
                self._moving.add(child)
            self._sent.setdefault(child, edge)
        if self._together:
            for transform in message.transforms:
                child = ros.frame_name(transform.child_frame_id)
                edge = ros.static_transforms([_One([transform])])[child]
                self._now[child] = ros.stamp_ns(transform.header.stamp), edge
            for (base, frame), together in self._together.items():
                self._follow(base, frame, together)

    def _follow(self, base: str, frame: str, together: _Together) -> None:
        """One more look at how two frames lie to each other while both move."""
        edges = {**{child: edge for child, (_, edge) in self._now.items()}, **self.static}
        path = [child for child in chain(edges, base, frame) if child not in self.static]
        stamps = {self._now[child][0] for child in path}
        if len(stamps) != 1:
            return
        try:
            together.add(stamps.pop(), ros.lookup(edges, base, frame))
        except CalibrationError:
            return  # not whole yet

    @property
    def static(self) -> Mapping[str, ros.StaticTransform]:
        """Edges by child frame of /tf_static and namespaced ones."""
        return self._static

    @property
    def still(self) -> Mapping[str, ros.StaticTransform]:
        """Edges by child frame of /tf that are the same whenever they are sent."""
        return {child: edge for child, edge in self._sent.items() if child not in self._moving}

    def lookup(self, base: str, frame: str) -> NDArray[np.float64]:
        """T_base_frame, by /tf_static alone where that does; else by what is sent on /tf and stands
        still; else, where both frames move and stay together, by that. Raises CalibrationError with
        what is known if nothing leads there."""
        try:
            return ros.lookup(self.static, base, frame)
        except CalibrationError:
            edges = {**self.still, **self.static}
            base, frame = self._named(base), self._named(frame)
        try:
            pose = ros.lookup(edges, base, frame)
        except CalibrationError as error:
            for other in self._with_other_parents(edges):
                try:
                    pose = ros.lookup(other, base, frame)
                except CalibrationError:
                    continue
                for child in chain(other, base, frame):
                    if other[child] is not edges[child]:
                        taken = other[child].parent
                        self._tell(
                            f"frame {child} has two parents, {edges[child].parent} and {taken}:"
                            f" {taken} is taken, which leads to {base}"
                        )
                return pose
            return self._moving_together(base, frame, error)
        used = [child for child in chain(edges, base, frame) if child not in self.static]
        if not used:
            return pose
        self._tell(
            f"the transform from {base} to {frame} is not on /tf_static: {', '.join(used)}"
            f" {'is' if len(used) == 1 else 'are'} taken from /tf, where"
            f" {'it does' if len(used) == 1 else 'they do'} not change"
        )
        return pose

    def _with_other_parents(
        self, edges: Mapping[str, ros.StaticTransform]
    ) -> Iterator[dict[str, ros.StaticTransform]]:
        """The edges with one of them led to another parent that its frame was given."""
        for child, several in self._others.items():
            for one in several:
                yield {**edges, child: one}
        for child, one in self.still.items():
            if edges[child] is not one:
                yield {**edges, child: one}

    def _moving_together(
        self, base: str, frame: str, error: CalibrationError
    ) -> NDArray[np.float64]:
        """T_base_frame of frames that move on /tf, and not against each other (a simulator that
        sends every frame in the world's). Raises CalibrationError: the one that is given where they
        have nothing to do with each other."""
        edges = {**self._sent, **self.static}
        path = chain(edges, base, frame)
        try:
            ros.lookup(edges, base, frame)
        except CalibrationError:
            raise error from None
        moving = [child for child in path if child in self._moving and child not in self.static]
        if not moving:
            raise error
        if (base, frame) not in self._together:
            self._together[base, frame] = _Together()
            self._read_again()
        together = self._together[base, frame]
        if together.steady(self.least_together) and together.first is not None:
            self._tell(
                f"frames {base} and {frame} move on /tf and stay together: their transform is taken"
                " from there"
            )
            return together.first
        apart = (
            f", by up to {together.metres:.2f} m and {np.rad2deg(together.radians):.1f} degrees"
            if together.count > 1
            else ""
        )
        raise CalibrationError(
            f"no static transform leads from {base} to frame {frame!r}: {', '.join(moving)}"
            f" {'moves' if len(moving) == 1 else 'move'} on /tf{apart}: expected cameras that are"
            " fixed to the car"
        ) from error

    least_together = 0
    """Nanoseconds over which two moving frames have to stay together."""

    def _read_again(self) -> None:
        """/tf once more, for a new pair of frames; what is running only goes on."""

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

    def knows(self, frame: str) -> bool:
        """Whether a frame is among the transforms, those that move with the others."""
        edges = {**self._sent, **self.static}
        return self._named(frame) in {*edges, *(edge.parent for edge in edges.values())}

    def root(self, frame: str) -> str:
        """The frame above all others that lead to this one and is not the world's, which is likely
        the car's; empty where there is none above it."""
        edges = {**self.still, **self.static}
        top = frame = self._named(frame)
        seen = set()
        while top in edges and top not in seen and not _is_worlds(edges[top].parent):
            seen.add(top)
            top = edges[top].parent
        return "" if top in seen or top == frame else top


def _is_worlds(frame: str) -> bool:
    """Whether a frame is the world's by its name, behind a robot's or without it (`car1/odom`)."""
    return frame.rsplit("/", 1)[-1] in WORLD


@dataclass(frozen=True)
class _One:
    """A tf2_msgs/TFMessage by its only field."""

    transforms: list[Any]


@dataclass
class _Together:
    """How two frames that move lie to each other. first: T_base_frame [4, 4] when both were seen
    first; metres, radians: by how much it has changed since."""

    first: NDArray[np.float64] | None = None
    metres: float = 0.0
    radians: float = 0.0
    count: int = 0
    begin_ns: int = 0
    end_ns: int = 0

    def add(self, stamp_ns: int, pose: NDArray[np.float64]) -> None:
        if self.first is None:
            self.first, self.begin_ns = pose, stamp_ns
        relative = inverse(self.first) @ pose
        self.metres = max(self.metres, float(np.linalg.norm(relative[:3, 3])))
        angle = float(np.arccos(np.clip((np.trace(relative[:3, :3]) - 1) / 2, -1, 1)))
        self.radians = max(self.radians, angle)
        self.count += stamp_ns > self.end_ns
        self.end_ns = max(self.end_ns, stamp_ns)

    def steady(self, least_ns: int) -> bool:
        lasting = self.count > 1 and self.end_ns - self.begin_ns >= least_ns
        return lasting and self.metres < STILL and self.radians < STILL


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
        self._read_again()
        return super().still

    def _read_again(self) -> None:
        for topic in (topic for topic in self._topics() if not topic.endswith(TF_STATIC)):
            for message in self._messages([topic]):
                self.add_sent(message)

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
