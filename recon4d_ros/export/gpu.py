"""A TensorRT engine from an ONNX one, held against it where there is a GPU to run it on. Needs no
PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recon4d_ros.engine import CPU_RUNTIMES, tensorrt_library
from recon4d_ros.engine.any_size import write_fixed
from recon4d_ros.engine.base import SPEC_FILE, EngineSpec, identity, sha256_of
from recon4d_ros.engine.tensorrt_library import TITLES
from recon4d_ros.errors import EngineError
from recon4d_ros.export import tensorrt
from recon4d_ros.export.apart import Stop, run_apart
from recon4d_ros.export.compare import compare_apart
from recon4d_ros.export.parity import check_parity, in_shares
from recon4d_ros.export.tensorrt import GpuOptions, Progress
from recon4d_ros.paths import user_path

Say = Callable[[str], None]


def add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("building for TensorRT")
    group.add_argument(
        "--workspace",
        type=float,
        default=0.0,
        metavar="GIB",
        help="scratch memory while building (default: all)",
    )
    group.add_argument(
        "--compute-capability",
        nargs="+",
        default=[],
        metavar="X.Y",
        help="tensorrt-rtx: GPUs to build for, e.g. 8.6 8.9 12.0 (default: any)",
    )
    group.add_argument(
        "--timing-cache",
        type=user_path,
        metavar="FILE",
        help="tensorrt: measured kernels, kept for the next build",
    )
    group.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="tensorrt: runs on other GPUs of Ampere or later too (slower)",
    )
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="tensorrt: runs with later versions too",
    )


def gpu_options(arguments: argparse.Namespace) -> GpuOptions:
    return GpuOptions(
        arguments.workspace,
        arguments.timing_cache,
        arguments.hardware_compatible,
        arguments.version_compatible,
        tuple(arguments.compute_capability),
    )


def build_or_explain(
    folder: Path, spec: EngineSpec, runtime: str, options: GpuOptions, say: Say
) -> EngineSpec:
    """Builds model.engine beside the folder's ONNX and gives the specification that runs it.

    Where that cannot be done here: the ONNX one's as it is, and a sentence on what to run where it
    can. Raises EngineError, OutputError, ParameterError."""
    reason = tensorrt.unavailable(runtime)
    if not reason:
        return build_here(folder, spec, runtime, options, say)
    other = "tensorrt-rtx"  # whose parser is TensorRT's, and needs no GPU
    if runtime != other and not tensorrt.unavailable(other):
        layers = tensorrt.parse(folder / spec.model, other)
        say(f"the parser of {tensorrt_library.title(other)} takes it: {layers} layers")
    say(
        f"{reason}: the ONNX is written and checked, the {TITLES[runtime]} engine is not built; on"
        f" the vehicle the node builds it when it starts, or run `recon4d export --from THIS_FOLDER"
        f" --runtime {runtime} --out ANOTHER_FOLDER{_flags(options)}`"
    )
    return spec


def build_here(
    folder: Path,
    spec: EngineSpec,
    runtime: str,
    options: GpuOptions,
    say: Say,
    *,
    progress: Progress = lambda phase, done: None,
    stop: Stop | None = None,
) -> EngineSpec:
    """As build_or_explain, but what cannot be done is an EngineError. spec: of the folder's ONNX;
    one of any size is fixed to this specification's sizes first, for an engine is of one size.

    Where there is a GPU, the engine is held against its ONNX as a CPU runtime computes it; where
    there is none, engine.yaml has no word of the engine's own on parity. Raises Stopped."""
    reason = tensorrt.unavailable(runtime)
    if reason:
        raise EngineError(f"{reason}: the {TITLES[runtime]} engine cannot be built")
    stop = stop or Stop()
    if spec.shapes:
        spec = _fixed(folder, spec)
    runs_here = _runs_here(runtime, options)
    truth = _truth(spec) if runs_here else ""
    with tempfile.TemporaryDirectory(prefix="recon4d_") as scratch:
        reference = Path(scratch) / "reference.npz"
        if truth:
            say(f"{spec.model} with {truth}, to hold the engine against")
            spec.save(folder / SPEC_FILE)
            ended = run_apart(
                "recon4d_ros.export.reference", str(folder), truth, str(reference), stop=stop
            )
            if ended.code:
                raise EngineError(f"{spec.model} with {truth}: {ended.said}")
        say(f"building {tensorrt.MODEL} with {tensorrt_library.title(runtime)}")
        model = folder / tensorrt.MODEL
        build = tensorrt.build(
            folder / spec.model, model, runtime, options, say=say, progress=progress, stop=stop
        )
        built = replace(
            spec,
            runtime=runtime,
            model=model.name,
            model_sha256=sha256_of(model),
            files={},
            source={spec.model: spec.model_sha256, **spec.files},
            versions={**spec.versions, runtime: build.version},
            build=dataclasses.asdict(replace(build, source=identity(spec))),
        )
        if not truth:
            why = "no CPU runtime to hold it against" if runs_here else "no GPU that it is for"
            say(f"{model.name} has not been run: there is {why} here")
            return built
        built.save(folder / SPEC_FILE)
        say(f"comparing with {runtime}")
        report = compare_apart(folder, runtime, reference, stop)
    if spec.network == "recon4d_geometric" and "error" not in report:
        report = in_shares(report)
    check_parity({runtime: report}, spec, f"{spec.model} with {truth}")
    return replace(built, parity={**spec.parity, runtime: report})


def _fixed(folder: Path, spec: EngineSpec) -> EngineSpec:
    """Puts the sizes into the folder's ONNX for good; a file that it was linked to stays."""
    new = folder / f"fixed.{spec.model}"
    try:
        write_fixed(folder / spec.model, spec, new)
        new.replace(folder / spec.model)
    finally:
        new.unlink(missing_ok=True)
    return replace(spec, shapes={}, model_sha256=sha256_of(folder / spec.model))


def _runs_here(runtime: str, options: GpuOptions) -> bool:
    """Whether there is a GPU here, and it is one that is built for."""
    try:
        here = tensorrt_library.gpu(runtime)
        return not options.targets or here.compute_capability in options.targets
    except EngineError:
        return False


def _truth(spec: EngineSpec) -> str:
    """A CPU runtime that is installed here and was found to compute what PyTorch does when the ONNX
    was exported: its own runtime, if it is one. Empty if none is installed."""
    good = [name for name in CPU_RUNTIMES if "error" not in spec.parity.get(name, {"error": ""})]
    if not good:
        raise EngineError(
            f"{spec.model} was never found to compute what PyTorch does, so that TensorRT cannot be"
            " held against it"
        )
    here = [name for name in good if importlib.util.find_spec(name) is not None]
    return spec.runtime if spec.runtime in here else next(iter(here), "")


def _flags(options: GpuOptions) -> str:
    said = [f"--workspace {options.workspace:g}"] if options.workspace else []
    said += [f"--timing-cache {options.timing_cache}"] if options.timing_cache else []
    said += ["--hardware-compatible"] * options.hardware_compatible
    said += ["--version-compatible"] * options.version_compatible
    said += [f"--compute-capability {' '.join(options.targets)}"] if options.targets else []
    return "".join(f" {flag}" for flag in said)
