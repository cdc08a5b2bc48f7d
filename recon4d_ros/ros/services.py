"""Services that are answered in a thread of their own: one that waits for the worker holds back no
image and no timer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

PATIENCE = 0.1  # seconds between two looks at whether to end


class ServiceThread:
    """A hidden node beside the given one, whose services carry that node's names.

    rclpy gives a whole node to one executor, so that services of the node itself would be answered
    in the thread that takes its images.
    """

    def __init__(self, node: Node) -> None:
        self._owner = node
        self._node = Node(
            f"_{node.get_name()}_services",
            context=node.context,
            namespace=node.get_namespace(),
            use_global_arguments=False,
            enable_rosout=False,
            start_parameter_services=False,
        )
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._node)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="services", daemon=True)
        self._thread.start()

    def offer(self, kind: type, name: str, answer: Callable) -> None:
        """answer(request, response) -> response, called in this thread. name: as the owner would
        write it, its remappings applied."""
        self._node.create_service(kind, self._owner.resolve_service_name(name), answer)

    def close(self) -> None:
        self._end.set()
        self._executor.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)
        self._executor.shutdown()
        self._node.destroy_node()

    def _spin(self) -> None:
        try:
            while not self._end.is_set():
                self._executor.spin_once(timeout_sec=PATIENCE)
        except ExternalShutdownException:
            pass
