"""ONNX -> a TensorRT engine, in a process of its own (tensorrt_compiler.py). Needs TensorRT or
TensorRT for RTX; no PyTorch. TensorRT builds on the GPU that will run the engine, TensorRT for RTX
anywhere.

Precision is the graph's own (a strongly typed network, the only kind that TensorRT 11 and TensorRT
for RTX have): what `recon4d export --precision fp16` left in float32, geometry above all, stays so,
and TF32 is off. int8 is in the graph as well (quantize.py).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon4d_ros.engine import tensorrt_library
from recon4d_ros.engine.tensorrt_library import TITLES, Build
from recon4d_ros.errors import EngineError, OutputError, ParameterError
from recon4d_ros.export.apart import Stop, run_apart

MODEL = "model.engine"
COMPILER = "recon4d_ros.export.tensorrt_compiler"
ROOM = 64 << 20  # bytes that an engine may have beside its weights: kernels, names of layers
LARGEST_WORKSPACE = 4096  # GiB
Progress = Callable[[str, float], None]  # what it does now, and how much of all is done (0 to 1)


@dataclass(frozen=True)
class GpuOptions:
    """How a GPU's engine is built. workspace: GiB of scratch memory, 0: all there is. TensorRT's
    own: timing_cache: file that makes the next build faster; hardware_compatible: runs on other
    GPUs of Ampere or later; version_compatible: with later versions. TensorRT for RTX's own:
    targets: compute capabilities (`8.6`) that it is built for, empty: any."""

    workspace: float = 0.0
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    targets: tuple[str, ...] = ()


def unavailable(runtime: str) -> str:
    """Empty if this machine can build engines for the runtime, else why not."""
    try:
        tensorrt_library.library(runtime)
        if runtime == "tensorrt":
            tensorrt_library.gpu(runtime)
    except ImportError as error:
        return f"{TITLES[runtime]} is not installed here ({error})"
    except EngineError as error:
        return str(error)
    return ""


def build(
    model: Path,
    out: Path,
    runtime: str,
    options: GpuOptions,
    *,
    say: Callable[[str], None] = lambda sentence: None,
    progress: Progress = lambda phase, done: None,
    stop: Stop | None = None,
) -> Build:
    """Builds an engine file from an ONNX file; whatever fails leaves no file.

    Raises EngineError with what the parser (it names node and operator) or the builder said,
    OutputError if it cannot be written, ParameterError for a compute capability that is none,
    Stopped.
    """
    _check_options(runtime, options)
    _check_room(model, out)
    request = {
        "model": str(model),
        "out": str(out),
        "runtime": runtime,
        "options": dataclasses.asdict(options) | {"timing_cache": str(options.timing_cache or "")},
    }
    try:
        built = _ask(request, say, progress, stop)
        return Build(**built | {"targets": tuple(built["targets"])})
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def parse(model: Path, runtime: str) -> int:
    """How many layers the library's parser makes of an ONNX file. Raises EngineError, naming node
    and operator, if it does not take it."""
    request = {"model": str(model), "runtime": runtime}
    return _ask(request, lambda sentence: None, lambda phase, done: None, None)["layers"]


def _ask(
    request: dict[str, Any],
    say: Callable[[str], None],
    progress: Progress,
    stop: Stop | None,
) -> dict[str, Any]:
    """What tensorrt_compiler.py answers."""
    answer: dict[str, Any] = {}

    def hear(line: str) -> None:
        if line.startswith("{"):  # the library may print as well
            told = json.loads(line)
            if "phase" in told:
                progress(told["phase"], told["done"])
            elif "say" in told:
                say(told["say"])
            else:
                answer.update(told)

    ended = run_apart(COMPILER, json.dumps(request), hear=hear, stop=stop)
    if "error" in answer:
        raise {"OutputError": OutputError, "ParameterError": ParameterError}.get(
            answer["kind"], EngineError
        )(answer["error"])
    if ended.code or "answer" not in answer:
        raise EngineError(
            f"{TITLES[request['runtime']]} broke off building {Path(request['model']).name}:"
            f" {ended.said}"
        )
    return answer["answer"]


def _check_options(runtime: str, options: GpuOptions) -> None:
    """Raises ParameterError for what the runtime does not have, or nobody can."""
    if not 0 <= options.workspace <= LARGEST_WORKSPACE:
        raise ParameterError(
            f"--workspace is {options.workspace:g}: expected GiB up to {LARGEST_WORKSPACE}, 0 for"
            " all there is"
        )
    of_tensorrt = {
        "--timing-cache": options.timing_cache,
        "--hardware-compatible": options.hardware_compatible,
        "--version-compatible": options.version_compatible,
    }
    wrong = (
        [name for name, given in of_tensorrt.items() if given]
        if runtime == "tensorrt-rtx"
        else ["--compute-capability"] * bool(options.targets)
    )
    if wrong:
        other = "tensorrt" if runtime == "tensorrt-rtx" else "tensorrt-rtx"
        raise ParameterError(f"{wrong[0]} is for --runtime {other}, not {runtime}")


def _check_room(model: Path, out: Path) -> None:
    """Raises OutputError if the disk is too full for an engine of the model's size: better than
    after minutes of building."""
    size = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))
    free = shutil.disk_usage(out.parent).free
    if size + ROOM > free:
        raise OutputError(
            f"{out.parent}: too little room for the engine: it takes about"
            f" {(size + ROOM) / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        )
