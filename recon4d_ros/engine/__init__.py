"""Engines: one interface (base.py), one file per runtime, found by name in RUNTIMES."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from recon4d_ros.engine import tensorrt_library
from recon4d_ros.engine.any_size import at_sizes
from recon4d_ros.engine.base import (
    MOTION,
    OBJECTS,
    Engine,
    EngineSpec,
    check_files,
    fits_rig,
    load_spec,
    source_spec,
)
from recon4d_ros.engine.hosted import HostedEngine, Runtime
from recon4d_ros.engine.tensorrt_library import TITLES, Build
from recon4d_ros.errors import EngineError
from recon4d_ros.types import Calibration, Rig

__all__ = [
    "CPU_RUNTIMES",
    "RUNTIMES",
    "Engine",
    "EngineSpec",
    "check_rig",
    "describe",
    "find_engine",
    "layers",
    "load",
    "load_spec",
    "parity_lines",
    "start_runtime",
]

NO_CHECKPOINT = "none"
CPU_RUNTIMES = ("openvino", "onnxruntime")
# the others run .onnx
MODEL_OF = {"tensorrt": ".engine", "tensorrt-rtx": ".engine", "torch": ".pt2"}
RUNTIMES = {
    "openvino": ("recon4d_ros.engine.openvino", "OpenVinoRuntime"),
    "onnxruntime": ("recon4d_ros.engine.onnxruntime", "OnnxRuntime"),
    "tensorrt": ("recon4d_ros.engine.tensorrt", "TensorRtRuntime"),
    "tensorrt-rtx": ("recon4d_ros.engine.tensorrt", "TensorRtRtxRuntime"),
    "torch": ("recon4d_ros.engine.torch", "TorchRuntime"),
}


def load(
    folder: str | os.PathLike[str],
    rig: Rig | Calibration | None = None,
    runtime: str = "",
    threads: int = 0,
) -> Engine:
    """An engine ready to step, an engine of any size at the sizes of this rig or calibration (else
    at those it was measured at). runtime: the engine's own by default; threads: 0 lets the runtime
    choose.

    Raises EngineError with one sentence: folder or file missing, truncated, of another version, for
    another rig (when its rig or calibration is given), or a runtime that is not known or not
    installed.
    """
    folder = Path(folder)
    spec = load_spec(folder, rig if isinstance(rig, Rig) else None)
    if isinstance(rig, Calibration):
        spec = at_sizes(spec, rig.input_size, rig.working_size)
    where = f"engine {folder}"
    if not spec.gives_depth:
        raise EngineError(
            f"{where}: {spec.network} gives {spec.config} and no depth: expected an engine of"
            " another network"
        )
    if isinstance(rig, Rig):
        check_rig(spec, rig, where)
    engine = HostedEngine(spec, start_runtime(folder, spec, runtime, threads), where)
    if isinstance(rig, Calibration):
        engine.use(rig)
    return engine


def check_rig(spec: EngineSpec, rig: Rig, where: str) -> None:
    """Raises EngineError if the engine was made for another rig."""
    if not fits_rig(spec, rig):
        raise EngineError(
            f"{where} does not fit rig {rig.name}: it is made for {requirement(spec)}; this rig has"
            f" {_rig_in_words(rig)}"
        )


def start_runtime(folder: Path, spec: EngineSpec, runtime: str = "", threads: int = 0) -> Runtime:
    """The model of an engine, loaded. Raises EngineError as `load` does."""
    where, name = f"engine {folder}", runtime or spec.runtime
    if name not in RUNTIMES:
        raise EngineError(
            f"{where}: runtime {name!r} is not known: expected one of {', '.join(RUNTIMES)}"
        )
    if name in CPU_RUNTIMES and (onnx := source_spec(spec)):
        spec = onnx
    model = check_files(folder, spec)
    built_for = spec.runtime if model.suffix == ".engine" else name
    if model.suffix != MODEL_OF.get(name, ".onnx") or built_for != name:
        raise EngineError(
            f"{where}: holds {spec.model}, which {name} does not run: `recon4d export --runtime"
            f" {name}` makes one it does"
        )
    module, attribute = RUNTIMES[name]
    shapes = {
        key: tuple(int(size) for size in shape) for key, shape in spec.options["memory"].items()
    }
    try:
        return getattr(importlib.import_module(module), attribute)(model, spec, shapes, threads)
    except ImportError as error:
        raise EngineError(
            f"{where}: runtime {name} is not installed here ({error}): pip install"
            f" {_package(error, name)}, or choose another runtime"
        ) from None
    except EngineError as error:
        raise EngineError(f"{where}: {error}") from None
    except Exception as error:  # runtimes raise their own types, of which none is public in both
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"{where}: {name} cannot load {spec.model}: {reason}") from error


def _package(error: ImportError, runtime: str) -> str:
    """What to install for a module that is missing."""
    module = (error.name or runtime).partition(".")[0]
    return {
        "cuda": "cuda-bindings",
        "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
    }.get(module, module)


def find_engine(rig: Rig, engines: str | os.PathLike[str]) -> Path | None:
    """A folder below `engines` whose engine fits the rig: one made for its sizes (full input size
    before reduced) before one of any size, stereo before surround, then by name. None if none does.
    Engines of learned networks are for who asks for them by name."""
    fitting: list[tuple[bool, int, bool, str, Path]] = []
    folder = Path(engines)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            spec = load_spec(path)
        except EngineError:
            continue
        if spec.checkpoint_sha256 == NO_CHECKPOINT and fits_rig(spec, rig):
            height = 0 if spec.shapes else spec.input_size[0]
            fitting.append((bool(spec.shapes), -height, not spec.stereo, path.name, path))
    return min(fitting)[-1] if fitting else None


def requirement(spec: EngineSpec) -> str:
    """The rig an engine is made for, in words."""
    size = f"{spec.input_size[1]}x{spec.input_size[0]}"
    size = "any size" if spec.shapes else f"{size} (or 2, 4, 8 times that)"
    return (
        f"a rectified stereo pair (left first) of {size}"
        if spec.stereo
        else f"{spec.cameras} camera(s) of {size}"
    )


def _rig_in_words(rig: Rig) -> str:
    return (
        f"{len(rig.cameras)} camera(s) of"
        f" {', '.join(sorted({f'{camera.width}x{camera.height}' for camera in rig.cameras}))}"
    )


def describe(folder: str | os.PathLike[str]) -> str:
    """An engine in words, for `recon4d info`. Raises EngineError."""
    folder = Path(folder)
    spec = load_spec(folder)
    check_files(folder, spec)
    size = sum((folder / name).stat().st_size for name in (spec.model, *spec.files))
    lines = [
        (
            f"engine {folder.name}: {spec.network} ({spec.config}), {spec.precision},"
            f" {size / 1e6:.2f} MB"
        ),
        f"  rig: {_rig_of(spec)}",
        f"  working size: {spec.working_size[1]}x{spec.working_size[0]}; " + _capacity(spec),
        f"  runtime: {spec.runtime}; checkpoint: {spec.checkpoint_sha256}",
        "  built with: "
        + ", ".join(f"{name} {version}" for name, version in spec.versions.items()),
    ]
    try:
        lines += ["  " + line for line in build_lines(spec)]
    except EngineError as error:
        raise EngineError(f"engine {folder}: {error}") from None
    try:
        for runtime, report in spec.parity.items():
            if "differs" in report:
                worst = f"worst share of pixels or values off: {report['worst']:.2%}"
                lines.append(f"  {runtime}: {report['milliseconds']:.0f} ms a step; {worst}")
        if any("outputs" in report for report in spec.parity.values()):
            lines += ["  " + line for line in parity_lines(spec)]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EngineError(
            f"engine {folder}: parity in engine.yaml is not a table of what export measured"
        ) from None
    return "\n".join([*lines, f"  {spec.warning}"] if spec.warning else lines)


def build_lines(spec: EngineSpec) -> list[str]:
    """How a TensorRT engine was built, what of, and whether it runs here. Raises EngineError."""
    build = Build.of(spec)
    if build is None:
        return []
    where = f"on {build.gpu} ({build.compute_capability})" if build.gpu else "where there is no GPU"
    if build.builder == "tensorrt-rtx":
        runs_on = f"compute capability {', '.join(build.targets)}" if build.targets else "any GPU"
    else:
        runs_on = "compute capability 8.0 and later" if build.hardware_compatible else build.gpu
    kinds = ", ".join(f"{count} {kind}" for kind, count in build.layers.items())
    lines = [
        f"engine: {TITLES[build.builder]} {build.version}, for {runs_on}, built {where} in"
        f" {build.seconds:.0f} s",
        f"{build.network_layers} layers of the network in {sum(build.layers.values())} of the"
        f" engine ({kinds}); {build.weights:.1f} MiB of weights, {build.scratch:.1f} MiB of scratch"
        " memory",
    ]
    if build.builder not in spec.parity:
        lines.append(
            "it was not run when it was built: there was no GPU, or nothing to compare with"
        )
    try:
        here = tensorrt_library.gpu(build.builder)
        why = build.misfit(tensorrt_library.library(build.builder).__version__, here)
        lines.append(f"it does not run here: {why}" if why else f"it runs here, on {here}")
    except (ImportError, EngineError) as error:
        lines.append(f"it does not run here: {error}")
    return lines


def layers(folder: Path) -> list[tuple[str, str]]:
    """Name and kind of every layer of a TensorRT engine, as EngineInspector has them. Raises
    EngineError, also where there is no GPU to load it on."""
    spec = load_spec(folder)
    where = f"engine {folder}"
    if spec.runtime not in TITLES:
        raise EngineError(f"{where}: holds {spec.model}: expected a TensorRT engine")
    model = check_files(folder, spec)
    try:
        here = tensorrt_library.gpu(spec.runtime)
        from recon4d_ros.engine.tensorrt import load_engine

        engine = load_engine(spec.runtime, model, spec, here)
        return tensorrt_library.inspect_layers(tensorrt_library.library(spec.runtime), engine)
    except ImportError as error:
        raise EngineError(
            f"{where}: {TITLES[spec.runtime]} is not installed here ({error})"
        ) from None
    except EngineError as error:
        raise EngineError(f"{where}: {error}") from None


def _capacity(spec: EngineSpec) -> str:
    if spec.config == OBJECTS:
        classes = spec.options.get("classes", ())
        return f"{spec.options.get('detections')} objects at most, of {len(classes)} classes"
    if not spec.gives_depth:
        shapes = (f"{name} {'x'.join(map(str, s))}" for name, s in spec.extra_outputs.items())
        return f"gives {', '.join(shapes)}"
    values = f" of {spec.feature} values" if spec.feature else ""
    return f"{spec.pointers} pointers{values}"


def _rig_of(spec: EngineSpec) -> str:
    size = f"{spec.input_size[1]}x{spec.input_size[0]}"
    if spec.config == MOTION and not spec.shapes:
        return f"{spec.cameras} camera(s), a grid of {size}"
    if spec.config == MOTION:
        return f"any number of cameras, a grid of any size (measured with {spec.cameras} of {size})"
    return (
        f"{spec.cameras} camera(s)"
        + (f" of any size (measured at {size})" if spec.shapes else f", input {size}")
        + f", {'grey' if spec.channels == 1 else 'RGB'}"
    )


def parity_lines(spec: EngineSpec) -> list[str]:
    """What an exported learned network gives against PyTorch, as a person reads it: one line per
    runtime, then one per output."""
    lines, good = [], {}
    for runtime, report in spec.parity.items():
        if "error" in report:
            lines.append(f"{runtime}: {report['error']}")
            continue
        good[runtime] = report["outputs"]
        lines.append(
            f"{runtime}: {report['milliseconds']:.1f} ms a step, {report['peak_rss_mib']:.0f} MiB"
            f" at most, loads in {report['load_seconds']:.1f} s; worst difference from PyTorch"
            f" {report['worst']:.1e} (relative norm), at most"
            f" {max(values['holes'] for values in report['outputs'].values()):.3%} of an output"
            " none on one side only"
        )
    names = list(next(iter(good.values()), {}))
    width = max(map(len, names), default=0)
    if names:
        lines.append(
            f"{'output':{width}}"
            + "".join(f"  {runtime + ' max':>16}  {'relative':>9}" for runtime in good)
        )
    lines += [
        f"{name:{width}}"
        + "".join(f"  {o[name]['max']:16.2e}  {o[name]['relative']:9.1e}" for o in good.values())
        for name in names
    ]
    return lines
