"""A ROS process from start to clean end: signals become an event, so that what has to be said last can still be said.

rclpy's own handlers shut the context down at once, after which nothing can be published, and a signal between init and spin raises
RCLError. Here the context lives until the caller's block is left.
"""
from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

EXIT_BAD_INPUT = 2
_POLL = 0.1


@contextmanager
def ros_process(args: list[str] | None) -> Iterator[threading.Event]:
    """rclpy from init to shutdown; yields the event that SIGINT or SIGTERM sets. A second signal ends the process at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        try:
            yield stop
        finally:
            rclpy.try_shutdown()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def spin_until(executor: Executor, done: Callable[[], bool]) -> None:
    """Work until `done()` (asked ten times a second and after each callback)."""
    while not done():
        executor.spin_once(timeout_sec=_POLL)


@contextmanager
def spinning(*nodes: rclpy.node.Node) -> Iterator[Executor]:
    """An executor that runs the nodes' callbacks in a thread of its own."""
    executor = SingleThreadedExecutor()
    for node in nodes:
        executor.add_node(node)
    end = threading.Event()
    thread = threading.Thread(target=spin_until, args=(executor, end.is_set), name="executor", daemon=True)
    thread.start()
    try:
        yield executor
    finally:
        end.set()
        executor.wake()
        thread.join(5.0)
        executor.shutdown()
