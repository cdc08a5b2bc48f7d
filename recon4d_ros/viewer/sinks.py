"""Where a view goes: into a file, to a web viewer served by this machine, or both.

The SDK's own servers listen on every address, so the viewer is served by Rerun's program instead,
in a process of its own that is told which address to take, with a folder of its own for what it
configures (its usage data is switched off there).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recon4d_ros.errors import OutputError, Recon4dError
from recon4d_ros.viewer.sdk import rerun

PATIENCE = 20.0  # seconds for the viewer's process to begin
LAST_WORDS = 5.0  # seconds for what was logged last
BUFFER = "25%"  # of the memory: what the viewer keeps for browsers that come late
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class Sinks:
    """file: .rrd, None: none. serve: whether to serve a web viewer. address, port: where; the data
    are on the next port."""

    file: Path | None = None
    serve: bool = False
    address: str = LOCALHOST
    port: int = 9090

    @property
    def host(self) -> str:
        """Where this machine reaches it."""
        return LOCALHOST if self.address in ("0.0.0.0", "::") else self.address


class View:
    """An open recording. `recording`: Rerun's stream. `url`: of the web viewer, empty where none is
    served."""

    def __init__(self, recording: Any, url: str, opened: ExitStack, server: Any = None) -> None:
        self.recording, self.url, self._opened, self._server = recording, url, opened, server

    def wait(self) -> None:
        """Until the viewer's process ends (or the user interrupts). In the main thread."""
        if self._server is not None:
            _use_own_stack_for_signals()
            self._server.wait()

    def flush(self) -> None:
        """What was logged so far is on its way."""
        _flush(self.recording)

    def close(self) -> None:
        """All that was logged is written, and the viewer ends."""
        self._opened.close()


def view_to(where: Sinks, name: str) -> View:
    """Opens it. Raises OutputError where the file cannot be written, Recon4dError where rerun is
    not installed or the viewer cannot be served."""
    rr = rerun()
    with ExitStack() as opened:
        recording = rr.RecordingStream("recon4d_ros", send_properties=True)
        sinks, url, server = [], "", None
        if where.file is not None:
            sinks.append(_file(rr, where.file))
        if where.serve:
            server = _serve(where, opened)
            data = f"rerun+http://{where.host}:{where.port + 1}/proxy"
            sinks.append(rr.GrpcSink(data))
            url = f"http://{where.host}:{where.port}/?url={quote(data, safe='')}"
        recording.set_sinks(*sinks)
        recording.send_recording_name(name)
        opened.callback(recording.disconnect)
        opened.callback(_flush, recording)
        return View(recording, url, opened.pop_all(), server)


def _flush(recording: Any) -> None:
    """Waits LAST_WORDS seconds at most: the viewer may have ended."""
    with suppress(RuntimeError, ValueError, OSError):
        recording.flush(timeout_sec=LAST_WORDS)


def _file(rr: Any, path: Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb"):
            pass
        return rr.FileSink(path)
    except OSError as error:
        raise OutputError(
            f"cannot write view {path}: {error.strerror or error} (expected a folder that exists or"
            " can be made, can be written and has room)"
        ) from None


def _serve(where: Sinks, opened: ExitStack) -> subprocess.Popen:
    for port in (where.port, where.port + 1):
        _check_free(where.address, port)
    home = opened.enter_context(tempfile.TemporaryDirectory(prefix="recon4d_view_"))
    environment = {
        **os.environ,
        "HOME": home,
        "XDG_CONFIG_HOME": home,
        "XDG_DATA_HOME": home,
        "XDG_CACHE_HOME": home,
    }
    program = [sys.executable, "-m", "rerun"]
    subprocess.run(
        [*program, "analytics", "disable"], env=environment, capture_output=True, check=False
    )
    log = opened.enter_context(open(Path(home) / "log", "w+b"))
    process = subprocess.Popen(
        [
            *program,
            "--serve-web",
            "--hide-welcome-screen",
            *("--bind", where.address),
            *("--web-viewer-port", str(where.port)),
            *("--port", str(where.port + 1)),
            *("--server-memory-limit", BUFFER),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # an interrupt is ours to handle: what was logged is kept till then
    )
    opened.callback(_end, process)
    begun = time.monotonic()
    while not all(_answers(where.host, port) for port in (where.port, where.port + 1)):
        if process.poll() is not None or time.monotonic() - begun > PATIENCE:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            raise Recon4dError(
                f"the web viewer did not begin on {where.address}:{where.port}:"
                f" {said[-1][:300] if said else 'it said nothing'}"
            )
        time.sleep(0.05)
    return process


class _SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


def _use_own_stack_for_signals() -> None:
    """Unloading an engine's runtime can leave the thread an alternate signal stack that is unmapped
    by then (seen with OpenVINO 2026.4.1): the next signal would end the process before Python
    sees it."""
    disabled = _SignalStack(None, 2, 0)  # SS_DISABLE
    ctypes.CDLL(None).sigaltstack(ctypes.byref(disabled), None)


def _check_free(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except (OSError, OverflowError) as error:
        raise Recon4dError(
            f"the web viewer cannot be served on {address}:{port}:"
            f" {getattr(error, 'strerror', None) or error} (expected an address of this machine,"
            " and two free ports from there on)"
        ) from None


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen) -> None:
    """With its children: `python -m rerun` only starts the program itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
            if not _group_lives(process.pid):
                return


def _group_lives(group: int) -> bool:
    """Whether any process of it is left after a moment."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True
