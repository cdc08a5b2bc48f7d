"""Building an engine for a GPU from its ONNX, or saying what is to be run where there is one. Needs no PyTorch for TensorRT."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recon4d_ros.engine.base import EngineSpec

GPU_RUNTIMES = ("tensorrt", "torch")


@dataclass(frozen=True)
class GpuOptions:
    """How a GPU's engine is built. workspace: GiB of scratch memory, 0: all there is. timing_cache: file that makes the next build faster.
    calibration: bag for int8. hardware_compatible: runs on other GPUs of Ampere or later; version_compatible: with later TensorRT 10."""

    workspace: float = 0.0
    timing_cache: Path | None = None
    calibration: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


def add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    gpu = parser.add_argument_group("building for TensorRT (on the machine that will run it)")
    gpu.add_argument("--workspace", type=float, default=0.0, metavar="GIB", help="scratch memory while building (default: all)")
    gpu.add_argument("--timing-cache", type=Path, metavar="FILE", help="measured kernels, kept for the next build")
    gpu.add_argument("--calibration", type=Path, metavar="BAG", help="int8: images to calibrate with")
    gpu.add_argument("--hardware-compatible", action="store_true", help="runs on other GPUs of Ampere or later too (slower)")
    gpu.add_argument("--version-compatible", action="store_true", help="runs with later TensorRT 10 too")


def gpu_options(arguments: argparse.Namespace) -> GpuOptions:
    return GpuOptions(
        arguments.workspace,
        arguments.timing_cache,
        arguments.calibration,
        arguments.hardware_compatible,
        arguments.version_compatible,
    )


def build_for(runtime: str, folder: Path, spec: EngineSpec, options: GpuOptions, say: Callable[[str], None]) -> EngineSpec:
    """Builds the engine in the folder, and gives its specification; without a GPU: the ONNX one's, and a sentence on what to run there."""
    from recon4d_ros.errors import EngineError

    raise EngineError(f"runtime {runtime}: not in this version yet")
