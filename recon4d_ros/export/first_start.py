"""What runs an engine on this machine, built first where need be: TensorRT engines are made where
they run, from the engine's ONNX, at the first start and again when TensorRT or the GPU is another.

They are kept in a folder of their own, for the installed engines may be read-only:

    CACHE/engines/NAME-CHECKSUM/BUILDER-VERSION-GPU (or what GPUs it is for)

where the checksum is of all that decides what the ONNX engine computes.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from recon4d_ros import paths
from recon4d_ros.engine import RUNTIMES, tensorrt_library
from recon4d_ros.engine.base import SPEC_FILE, EngineSpec, check_files, identity, load_spec
from recon4d_ros.engine.tensorrt_library import TITLES, Build, Gpu
from recon4d_ros.errors import EngineError, OutputError, ParameterError
from recon4d_ros.export import onnx_engine, rebuild
from recon4d_ros.export.apart import Stop
from recon4d_ros.export.gpu import Say
from recon4d_ros.export.tensorrt import GpuOptions, Progress
from recon4d_ros.types import Rig

AUTO, OWN = "auto", "own"
CHOICES = (AUTO, OWN, *RUNTIMES)  # of who asks for a runtime


@dataclass(frozen=True)
class Wanted:
    """What is to be loaded.

    folder, runtime: for engine.load (`""`: the engine's own); where `to_build`, the folder is not
    there yet, and is made from `source` for `rig`. reason: why it is not TensorRT, if `auto` was
    asked for and TensorRT is installed.
    """

    folder: Path
    runtime: str = ""
    source: Path | None = None
    options: GpuOptions = field(default_factory=GpuOptions)
    reason: str = ""
    rig: Rig | None = field(default=None, compare=False)

    @property
    def to_build(self) -> bool:
        return self.source is not None

    @property
    def title(self) -> str:
        return tensorrt_library.title(self.runtime)


def wanted(
    folder: Path,
    runtime: str = AUTO,
    cache: Path | None = None,
    *,
    rig: Rig | None = None,
    targets: tuple[str, ...] = (),
    without_gpu: bool = False,
) -> Wanted:
    """What runs the engine of a folder.

    runtime: of CHOICES; `own`: what engine.yaml says. `auto`: TensorRT, or TensorRT for RTX, where
    it is installed and a GPU can be used, else the engine's own. cache: default `paths.cache()`.
    rig: gives an engine of any size its sizes. without_gpu: to build only, for compute capabilities
    `targets`. Raises EngineError if the runtime is TensorRT and there is none, no GPU, or nothing
    to build from.
    """
    if runtime not in CHOICES:
        raise ParameterError(
            f"runtime {runtime!r} is not known: expected one of {', '.join(CHOICES)}"
        )
    spec = load_spec(folder, rig)
    own = spec.runtime if spec.runtime in TITLES else ""
    if runtime in (AUTO, OWN) and own:
        runtime = own
    if runtime == OWN:
        return Wanted(folder)
    if runtime == AUTO:
        runtime, reason = _usable(spec, without_gpu)
        if not runtime:
            return Wanted(folder, reason=reason)
    if runtime not in TITLES:
        return Wanted(folder, runtime)
    version, here = _here(folder, runtime, without_gpu)
    if targets:  # of other GPUs, maybe
        here = None
    if spec.runtime == runtime and (build := Build.of(spec)):
        if not (misfit := build.misfit(version, here)):
            return Wanted(folder, runtime)
        if not spec.source:
            raise EngineError(
                f"engine {folder}: {spec.model} does not run here: {misfit}; and there is no ONNX"
                " beside it to build it anew from: export it again"
            )
    source = onnx_engine(folder, rig)
    room = (cache or paths.cache()) / "engines" / f"{folder.resolve().name}-{identity(source)[:12]}"
    for entry in sorted(room.iterdir()) if room.is_dir() else []:
        if _fits(entry, runtime, version, here, targets):
            return Wanted(entry, runtime)
    place = here.name if here and runtime == "tensorrt" else "-".join(targets) or "any"
    name = f"{runtime}-{version}-{place}"
    slug = "".join(c if c.isalnum() or c in ".-" else "-" for c in name.lower())
    return Wanted(room / slug, runtime, folder, GpuOptions(targets=targets), rig=rig)


def build(
    wanted: Wanted,
    say: Say = lambda sentence: None,
    progress: Progress = lambda phase, done: None,
    stop: Stop | None = None,
) -> Wanted:
    """Builds what is to be built. Of two who want the same at once one builds and the other waits.

    Whatever fails leaves what was there, and no half of an engine. Raises EngineError, OutputError,
    Stopped.
    """
    if wanted.source is None:
        return wanted
    room = wanted.folder.parent
    with _alone(room, say, stop or Stop()):
        if _whole(wanted.folder):  # somebody else was faster
            return Wanted(wanted.folder, wanted.runtime)
        broken = () if (wanted.folder / SPEC_FILE).is_file() else (wanted.folder,)
        for left in (*room.glob(".*.*"), *broken):  # of a build that was cut off: none runs now
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        rebuild(
            wanted.source,
            wanted.folder,
            wanted.runtime,
            wanted.options,
            rig=wanted.rig,
            force=wanted.folder.exists(),
            keep_onnx=False,
            say=say,
            progress=progress,
            stop=stop,
        )
        for old in _outdated(room, wanted):
            shutil.rmtree(old, ignore_errors=True)
    return Wanted(wanted.folder, wanted.runtime)


def _usable(spec: EngineSpec, without_gpu: bool) -> tuple[str, str]:
    """The TensorRT that can be used here, empty if none can; and then why not, empty if none is
    installed."""
    if not spec.model.endswith(".onnx"):
        return "", ""
    reasons = []
    for runtime in filter(tensorrt_library.installed, TITLES):
        try:
            if not (without_gpu and runtime == "tensorrt-rtx"):
                tensorrt_library.gpu(runtime)
            tensorrt_library.library(runtime)
            return runtime, ""
        except (ImportError, EngineError) as error:
            reasons.append(str(error))
    if without_gpu:
        missing = "; ".join(reasons) or f"neither {' nor '.join(TITLES.values())} is installed here"
        raise EngineError(f"nothing can be built here: {missing}")
    return "", "; ".join(reasons)


def _here(folder: Path, runtime: str, without_gpu: bool) -> tuple[str, Gpu | None]:
    try:
        version = tensorrt_library.library(runtime).__version__
        here = tensorrt_library.gpu(runtime)
    except ImportError as error:
        raise EngineError(
            f"engine {folder}: {TITLES[runtime]} is not installed here ({error})"
        ) from None
    except EngineError as error:
        if not (without_gpu and runtime == "tensorrt-rtx"):
            raise EngineError(f"engine {folder}: {error}") from None
        here = None
    return version, here


def _fits(
    entry: Path, runtime: str, version: str, here: Gpu | None, targets: tuple[str, ...]
) -> bool:
    """Whether what was built before can be taken."""
    try:
        spec = load_spec(entry)
        built = Build.of(spec)
        if built is None or built.builder != runtime or built.misfit(version, here):
            return False
        if here is None and built.targets != targets:
            return False
        check_files(entry, spec)
        return True
    except EngineError:
        return False


def _whole(entry: Path) -> bool:
    try:
        check_files(entry, load_spec(entry))
        return True
    except EngineError:
        return False


def _outdated(room: Path, now: Wanted) -> list[Path]:
    """Builds of other versions that the new one replaces: for the same GPU, or the same targets."""
    made = {}
    for entry in room.iterdir():
        with contextlib.suppress(EngineError):
            made[entry] = Build.of(load_spec(entry))
    new = made.pop(now.folder)
    return [
        entry
        for entry, old in made.items()
        if old
        and new
        and (old.builder, old.targets) == (new.builder, new.targets)
        and (old.gpu == new.gpu or not new.bound_to_one_gpu)
    ]


@contextlib.contextmanager
def _alone(room: Path, say: Say, stop: Stop) -> Iterator[None]:
    """Nobody else builds in this folder meanwhile. Raises OutputError, Stopped."""
    try:
        room.mkdir(parents=True, exist_ok=True)
        file = (room / ".lock").open("w")
    except OSError as error:
        raise OutputError(
            f"{room}: cannot be written: {error.strerror or error} (built engines go there:"
            " parameter engine_cache, or XDG_CACHE_HOME)"
        ) from None
    with file:
        waiting = False
        while not _locked(file):
            if not waiting:
                say("another process builds it: waiting")
                waiting = True
            stop.check()
            time.sleep(0.1)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
