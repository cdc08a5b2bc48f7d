"""Inference off the executor's thread: one worker, a slot of one, the newest frame set wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Generic, TypeVar

from recon4d_ros.types import FrameSet, Jump

Work = TypeVar("Work")


def newest(older: FrameSet | None, newer: FrameSet) -> FrameSet:
    """`newer` with what must not be lost of the set it displaces: its samples of odometry, imu and
    twist, and a jump in time."""
    if older is None:
        return newer
    jump = older.jump if newer.jump is Jump.NONE or older.jump is Jump.BACKWARD else newer.jump
    return replace(
        newer,
        odometry=older.odometry + newer.odometry,
        imu=older.imu + newer.imu,
        twist=older.twist + newer.twist,
        jump=jump,
    )


class Worker(Generic[Work]):
    """Runs `process(frame_set)` for the newest frame set, `call`s and `idle()` in one thread, which
    owns the engine and the map.

    displaced(frame_set) is told of each set that a newer one displaced before the engine was free;
    merge(it, the newer) gives what takes its place. failed(error) is told of an exception that
    `process` or `idle` let through; the worker goes on.
    """

    def __init__(
        self,
        process: Callable[[Work], None],
        *,
        displaced: Callable[[Work], None],
        failed: Callable[[Exception], None],
        merge: Callable[[Work | None, Work], Work] = newest,  # type: ignore[assignment]
        idle: Callable[[], None] = lambda: None,
        idle_period: float = 0.1,
    ) -> None:
        self._process, self._displaced, self._failed, self._idle, self._idle_period = (
            process,
            displaced,
            failed,
            idle,
            idle_period,
        )
        self._merge = merge
        self._condition = threading.Condition()
        self._slot: Work | None = None
        self._calls: list[tuple[Future, Callable[[], Any]]] = []
        self._stop = False
        self._began: float | None = None  # monotonic time of the step that runs now
        self._thread = threading.Thread(target=self._run, name="recon4d worker", daemon=True)
        self._thread.start()

    def put(self, frame_set: Work) -> None:
        """Hand over a frame set; never blocks."""
        with self._condition:
            old, self._slot = self._slot, self._merge(self._slot, frame_set)
            self._condition.notify()
        if old is not None:
            self._displaced(old)

    def discard(self) -> Work | None:
        """Give up the set that waits (a reset: it belongs to the time before)."""
        with self._condition:
            slot, self._slot = self._slot, None
        return slot

    def call(self, function: Callable[[], Any]) -> Future:
        """Run `function` in the worker's thread, before the next frame set."""
        future: Future = Future()
        with self._condition:
            if self._stop:
                _cancel(future)
            else:
                self._calls.append((future, function))
                self._condition.notify()
        return future

    @property
    def busy(self) -> float:
        """Seconds that the step of now has taken so far; 0 between two."""
        began = self._began
        return time.monotonic() - began if began is not None else 0.0

    def abandon(self) -> None:
        """End, without waiting for a step that does not: its thread is left to itself."""
        self.close(timeout=0.0)

    def close(self, timeout: float = 30.0) -> None:
        """End after the step that runs now. Calls that wait are cancelled."""
        with self._condition:
            self._stop = True
            self._slot = None
            for future, _ in self._calls:
                _cancel(future)
            self._calls.clear()
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._stop and not self._calls and self._slot is None:
                    self._condition.wait(self._idle_period)
                if self._stop:
                    return
                call = self._calls.pop(0) if self._calls else None  # the others can be cancelled
                frame_set = None
                if call is None:
                    frame_set, self._slot = self._slot, None
            if call is not None:
                future, function = call
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(function())
                    except Exception as error:
                        future.set_exception(error)
                continue
            try:
                if frame_set is not None:
                    self._began = time.monotonic()
                    self._process(frame_set)
                else:
                    self._idle()
            except Exception as error:
                self._failed(error)
            self._began = None


def _cancel(future: Future) -> None:
    """So that who waits for it hears of it at once, which `cancel` alone does not do."""
    if future.cancel():
        future.set_running_or_notify_cancel()
