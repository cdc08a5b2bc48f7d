"""Where the search runs: beside the frames, or, so that a run repeats, between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from recon4d_ros.parallel import go_behind

Job = Callable[[], None]


class Runner(Protocol):
    """Runs one job at a time. A job raises nothing."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        ...

    def put(self, job: Job) -> None:
        """While it is idle."""
        ...

    def wait(self) -> None:
        """Until it is idle."""
        ...

    def close(self) -> None:
        """After the job that runs now."""
        ...


class Inline:
    """At once, in the caller's thread."""

    idle = True

    def put(self, job: Job) -> None:
        job()

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


class Background:
    """In a thread of its own."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._job: Job | None = None
        self._end = False
        self._thread: threading.Thread | None = None  # from the first job on

    @property
    def idle(self) -> bool:
        return self._job is None

    def put(self, job: Job) -> None:
        with self._condition:
            self._job = job
            self._condition.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="localization", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._job is None)

    def close(self) -> None:
        with self._condition:
            self._end = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        go_behind()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._job is not None or self._end)
                if self._job is None or self._end:
                    self._job = None
                    self._condition.notify_all()
                    return
                job = self._job
            try:
                job()
            finally:
                with self._condition:
                    self._job = None
                    self._condition.notify_all()
