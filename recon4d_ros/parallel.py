"""Several cameras at a time: OpenCV and NumPy let go of the GIL, so threads are enough, and one
small pool serves every stage. What runs behind the reconstruction has threads of its own."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

NICENESS = 10  # of what runs behind: where the processor is short, the reconstruction goes first


def go_behind() -> None:
    """Lowers the priority of the thread that calls it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(CPUS - 1, 1), thread_name_prefix="camera")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """function(item) of every item, in order. The caller's thread works too, so nothing waits for a
    pool that is busy elsewhere.

    Raises what the function raised first; what had not begun by then is left undone.
    """
    work = list(items)
    results: list[Result | None] = [None] * len(work)
    todo = deque(range(len(work)))

    def some() -> None:
        while todo:
            try:
                index = todo.popleft()
            except IndexError:  # another thread was faster
                return
            results[index] = function(work[index])

    helpers = [_pool().submit(some) for _ in range(min(len(work), CPUS) - 1)]
    try:
        some()
    finally:
        todo.clear()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    return results  # type: ignore[return-value]


class Beside(Generic[Result]):
    """function() beside what the caller does in the `with` block; `result` waits for it, or does it
    there and then where no other thread has begun. When the block is left, it is done or will never
    begin."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function

    def __enter__(self) -> Beside[Result]:
        self._future = _pool().submit(self._function)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._future.cancel():
            self._future.exception()

    def result(self) -> Result:
        """Within the block. Raises what the function raises."""
        return self._function() if self._future.cancel() else self._future.result()
