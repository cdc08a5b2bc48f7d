"""Receiving transforms."""

from __future__ import annotations

from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from .buffer import Buffer


class TransformListener:
    """Fills a buffer from /tf and /tf_static through the node's own executor.

    Its callbacks are reentrant, so that a lookup that waits in another callback of a multi-threaded
    executor is served.
    """

    def __init__(
        self,
        buffer: Buffer,
        node: Any,
        *,
        qos: QoSProfile | int | None = None,
        static_qos: QoSProfile | int | None = None,
    ) -> None:
        self.buffer = buffer
        self.node = node
        self.group = ReentrantCallbackGroup()
        if qos is None:
            qos = QoSProfile(
                depth=100, durability=DurabilityPolicy.VOLATILE, history=HistoryPolicy.KEEP_LAST
            )
        if static_qos is None:
            static_qos = QoSProfile(
                depth=100,
                durability=DurabilityPolicy.TRANSIENT_LOCAL,
                history=HistoryPolicy.KEEP_LAST,
            )
        self.tf_sub = node.create_subscription(
            TFMessage, "/tf", self.callback, qos, callback_group=self.group
        )
        self.tf_static_sub = node.create_subscription(
            TFMessage, "/tf_static", self.static_callback, static_qos, callback_group=self.group
        )

    def callback(self, data: TFMessage) -> None:
        for transform in data.transforms:
            self.buffer.set_transform(transform, "default_authority")

    def static_callback(self, data: TFMessage) -> None:
        for transform in data.transforms:
            self.buffer.set_transform_static(transform, "default_authority")

    def unregister(self) -> None:
        """Stop listening."""
        self.node.destroy_subscription(self.tf_sub)
        self.node.destroy_subscription(self.tf_static_sub)
