"""/tf and /tf_static, in whichever namespace, into tf2's buffer and into the transforms that stand
still."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import tf2_ros
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from tf2_msgs.msg import TFMessage

from recon4d_ros import messages
from recon4d_ros.bags.topics import TF_MESSAGE, TF_STATIC
from recon4d_ros.bags.transforms import FixedTransforms, alike

TF = "/tf"
SEEN_FOR = 1.0  # seconds over which an edge of /tf has to stay the same to be taken for fixed
CONFIGURED_AGAIN = "the extrinsics in use stay until the node is configured again"
STATIC_QOS = QoSProfile(
    depth=100,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    reliability=ReliabilityPolicy.RELIABLE,
)


class LiveTransforms(FixedTransforms):
    """Fixed transforms of a running graph: an edge of /tf counts once it has been sent twice and
    has stayed the same for SEEN_FOR seconds. Later changes of `watched` edges are told."""

    def __init__(self, tell: Callable[[str], None] = lambda note: None) -> None:
        super().__init__(tell)
        self._once: dict[str, float] = {}  # monotonic time of a frame's first edge
        self._first: dict[str, float] = {}  # the same, of those that came again
        self._watched: dict[str, messages.StaticTransform] = {}
        self._settled = False

    least_together = round(SEEN_FOR * 1e9)

    def add_static(self, message: TFMessage, topic: str = TF_STATIC) -> None:
        super().add_static(message, topic)
        self._compare(message)

    def _replaced(
        self, child: str, before: messages.StaticTransform, edge: messages.StaticTransform
    ) -> None:
        if not self._settled:
            super()._replaced(child, before, edge)

    def add_sent(self, message: TFMessage) -> None:
        if self._settled:  # nothing else is asked of /tf, which comes often
            self._compare(message)
            return
        for transform in message.transforms:
            child = messages.frame_name(transform.child_frame_id)
            if child in self._once:
                self._first.setdefault(child, self._once[child])
            else:
                self._once[child] = time.monotonic()
        super().add_sent(message)

    @property
    def still(self) -> dict[str, messages.StaticTransform]:
        since = time.monotonic() - SEEN_FOR
        return {
            child: edge
            for child, edge in super().still.items()
            if self._first.get(child, np.inf) <= since
        }

    def watch(self, children: Iterable[str]) -> None:
        """The rig is known: the edges that it stands on, by child frame, are watched."""
        self._settled = True
        edges = {**self.still, **self.static}
        self._watched = {child: edges[child] for child in children if child in edges}

    def _compare(self, message: TFMessage) -> None:
        if not any(
            messages.frame_name(transform.child_frame_id) in self._watched
            for transform in message.transforms
        ):
            return
        for child, edge in messages.static_transforms([message]).items():
            if child in self._watched and not alike(self._watched[child], edge):
                del self._watched[child]
                self._tell(
                    f"the transform from {edge.parent} to {child} changed: {CONFIGURED_AGAIN}"
                )


class _Listener(tf2_ros.TransformListener):
    """tf2's, whose messages are passed on too."""

    def __init__(self, buffer: tf2_ros.Buffer, node: Node, fixed: FixedTransforms) -> None:
        self._fixed = fixed
        super().__init__(buffer, node)

    def callback(self, data: TFMessage) -> None:
        super().callback(data)
        self._fixed.add_sent(data)

    def static_callback(self, data: TFMessage) -> None:
        super().static_callback(data)
        self._fixed.add_static(data)


class TransformInput:
    """Listens from configure on. `look` finds topics of other names: namespaced /tf_static, whose
    edges count where /tf_static has none of that frame, and namespaced /tf."""

    def __init__(self, node: Node, buffer: tf2_ros.Buffer, fixed: FixedTransforms) -> None:
        self._node, self._buffer, self._fixed = node, buffer, fixed
        self._more: dict[str, Subscription] = {}
        self._listener = _Listener(buffer, node, fixed)

    def look(self) -> None:
        ours = {self._node.resolve_topic_name(name) for name in (TF, TF_STATIC)}
        for topic, types in self._node.get_topic_names_and_types():
            if TF_MESSAGE not in types or topic in ours or topic in self._more:
                continue
            if topic.endswith(TF_STATIC):
                self._more[topic] = self._node.create_subscription(
                    TFMessage, topic, partial(self._on_static, topic), STATIC_QOS
                )
            elif topic.endswith(TF):
                self._more[topic] = self._node.create_subscription(
                    TFMessage, topic, self._fixed.add_sent, 100
                )

    def close(self) -> None:
        self._listener.unregister()
        for subscription in self._more.values():
            self._node.destroy_subscription(subscription)
        self._more.clear()

    def _on_static(self, topic: str, data: TFMessage) -> None:
        known = set(self._fixed.static)
        self._fixed.add_static(data, topic)
        for transform in data.transforms:
            if messages.frame_name(transform.child_frame_id) not in known:
                self._buffer.set_transform_static(transform, topic)
