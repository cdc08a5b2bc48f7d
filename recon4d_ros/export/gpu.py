"""Building a TensorRT engine from an ONNX one, or saying what is to be run where there is a GPU. Needs no PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from recon4d_ros.engine.base import EngineSpec, sha256_of


@dataclass(frozen=True)
class GpuOptions:
    """How a GPU's engine is built. workspace: GiB of scratch memory, 0: all there is. timing_cache: file that makes the next build faster.
    hardware_compatible: runs on other GPUs of Ampere or later; version_compatible: with later TensorRT 10."""

    workspace: float = 0.0
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


def add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    gpu = parser.add_argument_group("building for TensorRT (on the machine that will run it)")
    gpu.add_argument("--workspace", type=float, default=0.0, metavar="GIB", help="scratch memory while building (default: all)")
    gpu.add_argument("--timing-cache", type=Path, metavar="FILE", help="measured kernels, kept for the next build")
    gpu.add_argument("--hardware-compatible", action="store_true", help="runs on other GPUs of Ampere or later too (slower)")
    gpu.add_argument("--version-compatible", action="store_true", help="runs with later TensorRT 10 too")


def gpu_options(arguments: argparse.Namespace) -> GpuOptions:
    return GpuOptions(
        arguments.workspace,
        arguments.timing_cache,
        arguments.hardware_compatible,
        arguments.version_compatible,
    )


def build_tensorrt(folder: Path, spec: EngineSpec, options: GpuOptions, say: Callable[[str], None]) -> EngineSpec:
    """Builds model.engine beside the folder's ONNX, and gives the specification that runs it; without a GPU: the ONNX one's as it is, and
    a sentence on what to run on the vehicle. Raises EngineError."""
    from recon4d_ros.export import tensorrt

    for line in operator_lines(folder / spec.model):
        say(line)
    reason = tensorrt.available()
    if reason:
        say(
            f"{reason}: the ONNX is written and checked, the TensorRT engine is not built; on the vehicle run "
            f"`recon4d export --from THIS_FOLDER --runtime tensorrt --out ANOTHER_FOLDER{_flags(options)}`"
        )
        return spec
    model = tensorrt.build(folder, spec, options, say)
    import tensorrt as installed

    for name in (spec.model, *spec.files):
        (folder / name).unlink()
    return replace(
        spec,
        runtime="tensorrt",
        model=model.name,
        model_sha256=sha256_of(model),
        files={},
        versions={**spec.versions, "tensorrt": installed.__version__},
    )


def operator_lines(model: Path) -> list[str]:
    """What TensorRT's ONNX parser would say of a model's operators, from a table (operators.py)."""
    try:
        from recon4d_ros.export.operators import check_operators
    except ImportError:  # onnx is a tool of the exporting machine
        return []
    report = check_operators(model)
    count = sum(report.operators.values())
    lines = [f"{count} operators of {len(report.operators)} kinds held against {report.source}: {len(report.problems)} problem(s)"]
    lines += [f"  {problem}" for problem in report.problems]
    return lines if report.cuda_graph else [*lines, "  it has loops: it cannot be captured as a CUDA graph"]


def _flags(options: GpuOptions) -> str:
    said = [f"--workspace {options.workspace:g}"] if options.workspace else []
    said += [f"--timing-cache {options.timing_cache}"] if options.timing_cache else []
    said += ["--hardware-compatible"] * options.hardware_compatible + ["--version-compatible"] * options.version_compatible
    return "".join(f" {flag}" for flag in said)
