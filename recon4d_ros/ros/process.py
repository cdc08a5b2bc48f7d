"""A ROS process from start to clean end: signals become an event, so that what has to be said last
can still be said.

rclpy's own handlers shut the context down at once, after which nothing can be published, and a
signal between init and spin raises RCLError. Here the context lives until the caller's block is
left.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

EXIT_BAD_INPUT = 2
_POLL = 0.1
_PATIENCE = 3.0  # seconds


@contextmanager
def ros_process(args: list[str] | None) -> Iterator[threading.Event]:
    """rclpy from init to shutdown; yields the event that SIGINT or SIGTERM sets.

    A signal that comes again is taken for impatience, and ends the process at once, only after a
    few seconds: Ctrl-C under `ros2 launch` comes twice, from the terminal and from launch.
    """
    stop = threading.Event()
    asked = 0.0

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if stop.is_set() and time.monotonic() - asked > _PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif not stop.is_set():
            asked = time.monotonic()
            stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        try:
            yield stop
        finally:
            rclpy.try_shutdown()
    finally:
        for number, handler in before.items():
            # Asked to stop, the process is about to end: a second signal must not turn its exit
            # code 0 into a death by SIGINT.
            signal.signal(number, signal.SIG_IGN if stop.is_set() else handler)


def lean_executor() -> Executor:
    """One thread, woken by events: rclpy's own executor, which looks through all of a node's
    entities for each message, takes several times as much of the interpreter from the worker. Where
    this rclpy has none yet, that one."""
    try:
        from rclpy.experimental.events_executor import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    return EventsExecutor()


def spin_until(executor: Executor, done: Callable[[], bool]) -> None:
    """Work until `done()` (asked ten times a second and after each callback)."""
    while not done():
        executor.spin_once(timeout_sec=_POLL)


@contextmanager
def spinning(*nodes: rclpy.node.Node) -> Iterator[Executor]:
    """An executor that runs the nodes' callbacks in a thread of its own."""
    executor = lean_executor()
    for node in nodes:
        executor.add_node(node)
    end = threading.Event()
    thread = threading.Thread(
        target=spin_until, args=(executor, end.is_set), name="executor", daemon=True
    )
    thread.start()
    try:
        yield executor
    finally:
        end.set()
        executor.wake()
        thread.join(5.0)
        executor.shutdown()
