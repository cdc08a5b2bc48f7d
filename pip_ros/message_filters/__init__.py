"""Stand-in for message_filters: messages of several topics paired by equal stamps. The real
package's names, only the calls we make."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

STAND_IN = True


class SimpleFilter:
    """Passes messages on to callbacks."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable, tuple]] = {}

    def registerCallback(self, cb: Callable, *args: Any) -> int:
        """Call `cb(*messages, *args)` for every signal; returns the connection's number."""
        connection = len(self.callbacks)
        self.callbacks[connection] = (cb, args)
        return connection

    def signalMessage(self, *messages: Any) -> None:
        for callback, args in list(self.callbacks.values()):
            callback(*messages, *args)


class Subscriber(SimpleFilter):
    """A subscription as a filter: Subscriber(node, msg_type, topic, **what create_subscription
    takes)."""

    def __init__(self, node: Any, msg_type: Any, topic: str, **kwargs: Any) -> None:
        super().__init__()
        self.node = node
        self.topic = topic
        kwargs.setdefault("qos_profile", 10)
        self.sub = node.create_subscription(msg_type, topic, self.signalMessage, **kwargs)


class TimeSynchronizer(SimpleFilter):
    """Signals one message of each filter together when their header stamps are equal.

    Each input keeps its `queue_size` newest stamps that have not found their partners. Safe from
    several threads.
    """

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int) -> None:
        super().__init__()
        self.queue_size = queue_size
        self.lock = threading.Lock()
        self.queues: list[dict[int, Any]] = [{} for _ in fs]
        for source, queue in zip(fs, self.queues, strict=True):
            source.registerCallback(self.add, queue)

    def add(self, message: Any, queue: dict[int, Any]) -> None:
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        with self.lock:
            queue[stamp] = message
            while len(queue) > self.queue_size:
                del queue[min(queue)]
            if all(
                stamp in other for other in self.queues
            ):  # only this stamp can have become complete
                self.signalMessage(*(other.pop(stamp) for other in self.queues))
