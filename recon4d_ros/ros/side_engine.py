"""An engine beside the reconstruction, in a thread of its own: newest frame set first, what comes
meanwhile is left out and counted, and what goes wrong with it is said and stops nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from recon4d_ros.parallel import go_behind
from recon4d_ros.perception import Look, RunsBeside, newest_look
from recon4d_ros.ros.diagnostics import Rate
from recon4d_ros.ros.worker import Worker
from recon4d_ros.tally import Tally


def side_threads() -> int:
    """Threads that an engine beside the reconstruction gets: half of the processor's."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


class SideEngine:
    """Loaded in its own thread, from the start. `fault` says what keeps it from running, or kept it
    from its last step; `warnings` what those who see its results have to know."""

    def __init__(
        self,
        name: str,
        load: Callable[[], RunsBeside],
        done: Callable[[Look, Any], None],
        *,
        say: Callable[[str, bool], None],
    ) -> None:
        """load: raises Recon4dError. done(look, result): of each step, in its thread. say(sentence,
        whether it is an error): once each, for the log."""
        self.name = name
        self.fault, self.device, self.latency = "", "", 0.0
        self.warnings: tuple[str, ...] = ()
        self.steps, self.skipped, self.without_pose, self.failed = Rate(), 0, 0, 0
        self._load, self._done, self._say = load, done, say
        self._said = Tally()
        self._beside: RunsBeside | None = None
        self._worker: Worker[Look] = Worker(
            self._step, displaced=self._skip, failed=self._step_failed, merge=newest_look
        )
        self._worker.call(self._start)

    def put(self, look: Look) -> None:
        """Hand over a frame set; never blocks."""
        if self._beside is not None:
            self._worker.put(look)

    def reset(self) -> None:
        """Forget what was seen, after the step that runs now; does not wait."""
        self._worker.discard()
        self._worker.call(lambda: self._beside.reset() if self._beside else None)

    def close(self) -> None:
        """Ends it after the step that runs now."""
        self._worker.close()
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    @property
    def busy(self) -> float:
        """Seconds that the step of now has taken so far; 0 between two."""
        return self._worker.busy

    @property
    def loading(self) -> bool:
        return self._beside is None and not self.fault

    def _start(self) -> None:
        go_behind()
        try:
            beside = self._load()
        except Exception as error:
            self.fault = " ".join(f"{error}".split()) or type(error).__name__
            self._say(f"{self.name}: {self.fault}; the reconstruction goes on without it", True)
            return
        self.device, self.warnings, self._beside = beside.engine.device, beside.warnings, beside
        self._say(f"{self.name}: {beside.engine.spec.network} on {self.device}", False)
        for warning in self.warnings:
            self._say(f"{self.name}: {warning}", True)

    def _skip(self, look: Look) -> None:
        self.skipped += 1

    def _step(self, look: Look) -> None:
        beside = self._beside
        if beside is None:
            return
        begun, forgotten = time.monotonic(), beside.engine.forgotten
        result = beside(look)
        if result is None:
            self.without_pose += 1
            return
        if beside.engine.forgotten > forgotten:
            self._count("what came out was not finite, and its memory was forgotten")
        else:
            self.fault = ""
        self.latency = time.monotonic() - begun
        self.steps.tick()
        self._done(look, result)

    def _step_failed(self, error: Exception) -> None:
        self._count(" ".join(f"{type(error).__name__}: {error}".split())[:400])

    def _count(self, sentence: str) -> None:
        self.fault = sentence
        self.failed += 1
        if self._said.count(self.name, sentence):
            self._say(f"{self.name}: {sentence} (counted on /diagnostics, said here once)", True)
