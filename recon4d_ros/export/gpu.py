"""Building a TensorRT engine from an ONNX one, or saying what is to be run where there is a GPU.
Needs no PyTorch."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from recon4d_ros.engine import CPU_RUNTIMES
from recon4d_ros.engine.base import SPEC_FILE, EngineSpec, sha256_of
from recon4d_ros.errors import EngineError
from recon4d_ros.export.compare import compare_apart
from recon4d_ros.export.parity import check_parity, in_shares
from recon4d_ros.export.reference import from_runtime
from recon4d_ros.paths import user_path


@dataclass(frozen=True)
class GpuOptions:
    """How a GPU's engine is built. workspace: GiB of scratch memory, 0: all there is. timing_cache:
    file that makes the next build faster. hardware_compatible: runs on other GPUs of Ampere or
    later; version_compatible: with later TensorRT 10."""

    workspace: float = 0.0
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


def add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    gpu = parser.add_argument_group("building for TensorRT (on the machine that will run it)")
    gpu.add_argument(
        "--workspace",
        type=float,
        default=0.0,
        metavar="GIB",
        help="scratch memory while building (default: all)",
    )
    gpu.add_argument(
        "--timing-cache",
        type=user_path,
        metavar="FILE",
        help="measured kernels, kept for the next build",
    )
    gpu.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="runs on other GPUs of Ampere or later too (slower)",
    )
    gpu.add_argument(
        "--version-compatible", action="store_true", help="runs with later TensorRT 10 too"
    )


def gpu_options(arguments: argparse.Namespace) -> GpuOptions:
    return GpuOptions(
        arguments.workspace,
        arguments.timing_cache,
        arguments.hardware_compatible,
        arguments.version_compatible,
    )


def build_tensorrt(
    folder: Path, spec: EngineSpec, options: GpuOptions, say: Callable[[str], None]
) -> EngineSpec:
    """Builds model.engine in the place of the folder's ONNX, holds it against that, and gives the
    specification that runs it.

    Without a GPU: the ONNX one's as it is, and a sentence on what to run on the vehicle. Raises
    EngineError."""
    from recon4d_ros.export import tensorrt

    reason = tensorrt.available()
    if not reason:
        return build_here(folder, spec, options, say)
    for line in operator_lines(folder / spec.model):
        say(line)
    say(
        f"{reason}: the ONNX is written and checked, the TensorRT engine is not built; on the"
        " vehicle run `recon4d export --from THIS_FOLDER --runtime tensorrt --out"
        f" ANOTHER_FOLDER{_flags(options)}`"
    )
    return spec


def build_here(
    folder: Path, spec: EngineSpec, options: GpuOptions, say: Callable[[str], None]
) -> EngineSpec:
    """As build_tensorrt, but no GPU or no TensorRT is an EngineError."""
    from recon4d_ros.export import tensorrt

    for line in operator_lines(folder / spec.model):
        say(line)
    reason = tensorrt.available()
    if reason:
        raise EngineError(f"{reason}: the TensorRT engine cannot be built")
    with tempfile.TemporaryDirectory(prefix="recon4d_") as scratch:
        reference = Path(scratch) / "reference.npz"
        truth = _agreed_with_pytorch(spec)
        say(f"{spec.model} with {truth}, to hold the engine against")
        from_runtime(reference, folder, spec, truth)
        model = tensorrt.build(folder, spec, options, say)
        import tensorrt as installed

        for name in (spec.model, *spec.files):
            (folder / name).unlink()
        built = replace(
            spec,
            runtime="tensorrt",
            model=model.name,
            model_sha256=sha256_of(model),
            files={},
            versions={**spec.versions, "tensorrt": installed.__version__},
            options={**spec.options, "version_compatible": options.version_compatible},
            parity={},
        )
        built.save(folder / SPEC_FILE)
        say("comparing with tensorrt")
        report = compare_apart(folder, "tensorrt", reference)
    if spec.network == "recon4d_geometric" and "error" not in report:
        report = in_shares(report)
    check_parity({"tensorrt": report}, spec, f"{spec.model} with {truth}")
    return replace(built, parity={"tensorrt": report})


def _agreed_with_pytorch(spec: EngineSpec) -> str:
    """A CPU runtime that was found to compute what PyTorch does when the ONNX was exported: its own
    runtime, if it is one."""
    good = [name for name in CPU_RUNTIMES if "error" not in spec.parity.get(name, {"error": ""})]
    if not good:
        raise EngineError(
            f"{spec.model} was never found to compute what PyTorch does, so that TensorRT cannot be"
            " held against it"
        )
    return spec.runtime if spec.runtime in good else good[0]


def operator_lines(model: Path) -> list[str]:
    """What TensorRT's ONNX parser would say of a model's operators, from a table (operators.py)."""
    try:
        from recon4d_ros.export.operators import check_operators
    except ImportError:  # onnx is a tool of the exporting machine
        return []
    report = check_operators(model)
    count = sum(report.operators.values())
    lines = [
        f"{count} operators of {len(report.operators)} kinds held against {report.source}:"
        f" {len(report.problems)} problem(s)"
    ]
    lines += [f"  {problem}" for problem in report.problems]
    lines += (
        [f"  {report.plugins} ScatterElements with a reduction, by the plugin that TensorRT brings"]
        if report.plugins
        else []
    )
    return (
        lines
        if report.cuda_graph
        else [*lines, "  it has loops: it cannot be captured as a CUDA graph"]
    )


def _flags(options: GpuOptions) -> str:
    said = [f"--workspace {options.workspace:g}"] if options.workspace else []
    said += [f"--timing-cache {options.timing_cache}"] if options.timing_cache else []
    said += ["--hardware-compatible"] * options.hardware_compatible + [
        "--version-compatible"
    ] * options.version_compatible
    return "".join(f" {flag}" for flag in said)
