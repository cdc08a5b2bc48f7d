"""Engines: one interface (base.py), one file per runtime, found by name in RUNTIMES."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from recon4d_ros.engine.base import Engine, EngineSpec, fits_rig, load_model_bytes, load_spec
from recon4d_ros.engine.hosted import HostedEngine
from recon4d_ros.errors import EngineError
from recon4d_ros.types import Calibration, Rig

__all__ = ["RUNTIMES", "Engine", "EngineSpec", "describe", "find_engine", "load", "load_spec"]

RUNTIMES = {
    "openvino": ("recon4d_ros.engine.openvino", "OpenVinoRuntime"),
    "onnxruntime": ("recon4d_ros.engine.onnxruntime", "OnnxRuntime"),
}


def load(folder: str | os.PathLike[str], rig: Rig | Calibration | None = None, runtime: str = "", threads: int = 0) -> Engine:
    """An engine ready to step. runtime: the engine's own by default; threads: 0 lets the runtime choose.

    Raises EngineError with one sentence: folder or file missing, truncated, of another version, for another rig (when its rig or
    calibration is given), or a runtime that is not known or not installed.
    """
    folder = Path(folder)
    spec = load_spec(folder)
    where = f"engine {folder}"
    if isinstance(rig, Rig) and not fits_rig(spec, rig):
        raise EngineError(f"{where} does not fit rig {rig.name}: it is made for {requirement(spec)}; this rig has {_rig_in_words(rig)}")
    name = runtime or spec.runtime
    if name not in RUNTIMES:
        raise EngineError(f"{where}: runtime {name!r} is not known: expected one of {', '.join(RUNTIMES)}")
    model = load_model_bytes(folder, spec)
    module, attribute = RUNTIMES[name]
    try:
        runtime_class = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(
            f"{where}: runtime {name} is not installed here ({error}): pip install {name}, or choose another runtime"
        ) from None
    shapes = {key: tuple(int(size) for size in shape) for key, shape in spec.options["memory"].items()}
    try:
        ready = runtime_class(model, spec, shapes, threads)
    except Exception as error:  # runtimes raise their own types, of which none is public in both
        raise EngineError(f"{where}: {name} cannot load {spec.model}: {str(error).strip().splitlines()[0]}") from error
    engine = HostedEngine(spec, ready, where)
    if isinstance(rig, Calibration):
        engine.use(rig)
    return engine


def find_engine(rig: Rig, engines: str | os.PathLike[str]) -> Path | None:
    """A folder below `engines` whose engine fits the rig: full input size before reduced, stereo before surround, then by name. None if
    none does."""
    fitting: list[tuple[int, bool, str, Path]] = []
    folder = Path(engines)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            spec = load_spec(path)
        except EngineError:
            continue
        if fits_rig(spec, rig):
            fitting.append((-spec.input_size[0], not spec.stereo, path.name, path))
    return min(fitting)[-1] if fitting else None


def requirement(spec: EngineSpec) -> str:
    """The rig an engine is made for, in words."""
    size = f"{spec.input_size[1]}x{spec.input_size[0]}"
    return (
        f"a rectified stereo pair (left first) of {size}" if spec.stereo else f"{spec.cameras} camera(s) of {size} (or 2, 4, 8 times that)"
    )


def _rig_in_words(rig: Rig) -> str:
    return f"{len(rig.cameras)} camera(s) of {', '.join(sorted({f'{camera.width}x{camera.height}' for camera in rig.cameras}))}"


def describe(folder: str | os.PathLike[str]) -> str:
    """An engine in words, for `recon4d info`. Raises EngineError."""
    folder = Path(folder)
    spec = load_spec(folder)
    size = len(load_model_bytes(folder, spec))
    lines = [
        f"engine {folder.name}: {spec.network} ({spec.config}), {spec.precision}, {size / 1e6:.2f} MB",
        f"  rig: {spec.cameras} camera(s), input {spec.input_size[1]}x{spec.input_size[0]}, {'grey' if spec.channels == 1 else 'RGB'}",
        f"  working size: {spec.working_size[1]}x{spec.working_size[0]}; {spec.pointers} pointers of {spec.feature} values",
        f"  runtime: {spec.runtime} (measured fastest at export); checkpoint: {spec.checkpoint_sha256}",
        "  built with: " + ", ".join(f"{name} {version}" for name, version in spec.versions.items()),
    ]
    for runtime, report in spec.parity.items():
        lines.append(f"  {runtime}: {report['milliseconds']:.0f} ms a step; worst share of pixels or values off: {report['worst']:.2%}")
    return "\n".join(lines)
