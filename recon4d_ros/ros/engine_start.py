"""From an engine's name to what is to be loaded: where it is TensorRT's, it is built first, and the
log and /diagnostics say how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from rclpy.impl.rcutils_logger import RcutilsLogger

from recon4d_ros.engine.base import load_spec
from recon4d_ros.engine.choose import choose_engine, named_engine
from recon4d_ros.engine.tensorrt_library import TITLES
from recon4d_ros.errors import EngineError, OutputError, ParameterError
from recon4d_ros.export.apart import Stop, Stopped
from recon4d_ros.export.first_start import AUTO, OWN, Wanted, build, wanted
from recon4d_ros.paths import user_path
from recon4d_ros.ros.node_parameters import NodeParameters
from recon4d_ros.types import Rig

LOG_PERIOD = 10.0  # seconds between two lines of progress in the log


class EngineStart:
    """Called in a thread that may take its time; all else is for other threads. begun: set once a
    build runs. warning: why the engine does not run as `runtime: auto` would have it."""

    def __init__(self, own: NodeParameters, log: RcutilsLogger) -> None:
        self._own, self._log = own, log
        self._stop = Stop()
        self._what = ""
        self._phase, self._done = "", 0.0
        self._since = self._logged = 0.0
        self.begun = threading.Event()
        self.warning = ""

    def __call__(
        self,
        folder: Path,
        rig: Rig | None = None,
        check: Callable[[], None] = lambda: None,
        *,
        only_build: bool = False,
    ) -> Wanted:
        """What to load of an engine's folder, built if need be.

        rig: gives an engine of any size its sizes. check: is called before a build, which may take
        minutes, and raises if there is no use in it.
        only_build: for the compute capabilities of the parameters, if any, and with no need of a
        GPU where that can be. Raises EngineError, OutputError; Stopped after `stop`.
        """
        own = self._own
        cache = user_path(own.engine_cache) if own.engine_cache else None
        targets = own.compute_capabilities if only_build else ()
        want = wanted(folder, own.runtime, cache, rig=rig, targets=targets, without_gpu=only_build)
        if want.reason:
            self._log.info(f"engine {folder.name} runs as engine.yaml has it: {want.reason}")
        if not want.to_build:
            return want
        check()
        self._what = f"engine {folder.name}, built by {want.title}"
        self._log.info(f"{self._what} into {want.folder}: this is done once, and takes minutes")
        self._since = self._logged = time.monotonic()
        self.begun.set()
        try:
            done = build(want, self._say, self._progress, self._stop)
        except Stopped:
            self._log.info(f"{self._what}: interrupted; nothing of it is left")
            raise
        except (EngineError, OutputError) as error:
            if only_build or own.runtime != AUTO or load_spec(folder).runtime in TITLES:
                raise type(error)(f"engine {folder.name}: {error}") from error
            self.warning = f"it runs as engine.yaml has it, for it could not be built: {error}"
            self._log.warning(f"engine {folder.name}: {self.warning}")
            return wanted(folder, OWN)
        finally:
            self.begun.clear()
        self._log.info(f"{self._what}: done in {time.monotonic() - self._since:.0f} s")
        return done

    def build_only(self, rig: Rig | None) -> None:
        """Builds the engine that is named, or that fits the rig. Raises as `__call__`."""
        if rig is None and not self._own.engine:
            raise ParameterError(
                "build_only: expected an engine (parameter engine), or a rig_file to choose one by"
            )
        folder = (
            choose_engine(self._own.engine, rig)
            if rig is not None
            else named_engine(self._own.engine)
        )
        spec = load_spec(folder, rig)
        if spec.shapes and rig is None:
            height, width = spec.input_size
            self._log.warning(
                f"engine {folder.name} is of any size: it is built for images of {width}x{height};"
                " with a rig_file it is built for that rig's"
            )
        done = self(folder, rig, only_build=True)
        if done.runtime not in TITLES:
            raise EngineError(
                f"build_only: engine {folder.name} runs by"
                f" {done.runtime or load_spec(folder).runtime}: there is nothing to build"
            )
        self._log.info(f"engine {folder.name} is there for {done.title}: {done.folder}")

    def stop(self) -> None:
        """Ends a build that runs, and lets none begin."""
        self._stop()

    @property
    def progress(self) -> str:
        """Of a build that runs, for who waits for it; empty if none does."""
        if not self.begun.is_set():
            return ""
        doing = f"{self._phase}, {100 * self._done:.0f} %" if self._phase else "getting ready"
        return f"{self._what} ({doing}, {time.monotonic() - self._since:.0f} s)"

    def tell(self) -> None:
        """To be called once a second: the log has the progress now and then, also where the library
        is silent for minutes."""
        if self.begun.is_set() and time.monotonic() - self._logged > LOG_PERIOD:
            self._logged = time.monotonic()
            self._log.info(self.progress)

    def _say(self, sentence: str) -> None:
        self._phase = ""
        self._log.info(f"{self._what}: {sentence}")

    def _progress(self, phase: str, done: float) -> None:
        self._phase, self._done = phase, done
