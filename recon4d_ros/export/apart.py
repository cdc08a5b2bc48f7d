"""A stage of an export in a process of its own: its memory goes back to the system, what it crashes
of is one sentence here, and it can be ended at any time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from recon4d_ros.errors import EngineError


class Stopped(EngineError):
    """What ran was ended because somebody asked for it."""


class Stop:
    """Asked for from any thread, it ends the processes that run under it, and lets none begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen] = set()
        self._asked = False

    def __call__(self) -> None:
        with self._lock:
            self._asked = True
            for child in self._children:
                _kill(child)

    @property
    def asked(self) -> bool:
        return self._asked

    def check(self) -> None:
        """Raises Stopped if it was asked for."""
        if self._asked:
            raise Stopped("it was interrupted")

    @contextlib.contextmanager
    def over(self, child: subprocess.Popen) -> Iterator[None]:
        with self._lock:
            self._children.add(child)
            if self._asked:
                _kill(child)
        try:
            yield
        finally:
            with self._lock:
                self._children.discard(child)


@dataclass(frozen=True)
class Ended:
    """code: of the process. last: its last line on standard output. said: its last words on
    standard error, or why it has none."""

    code: int
    last: str
    said: str


def run_apart(
    module: str,
    *arguments: str,
    hear: Callable[[str], None] = lambda line: None,
    stop: Stop | None = None,
) -> Ended:
    """Runs `python -m module arguments` to its end. hear: is told each line that it prints. Raises
    Stopped."""
    stop = stop or Stop()
    stop.check()
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    last = ""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        child = subprocess.Popen(
            # runpy warns of modules that their package imports as well
            [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", module, *arguments],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is ours to hear
        )
        assert child.stdout is not None
        try:
            with stop.over(child):
                for line in child.stdout:
                    last = line.strip() or last
                    hear(line)
                child.wait()
        finally:
            _kill(child)
            child.wait()
            for stream in filter(None, (child.stdin, child.stdout)):
                with contextlib.suppress(OSError):
                    stream.close()
        stop.check()
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    code = child.returncode
    said = lines[-1] if lines else f"ended with {code}"
    return Ended(code, last, said if code >= 0 else f"killed by signal {-code} (out of memory?)")


def end_with_parent() -> None:
    """To be called in a child of `run_apart`: it ends when its parent does, however that came."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _kill(child: subprocess.Popen) -> None:
    """With all that it started."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
