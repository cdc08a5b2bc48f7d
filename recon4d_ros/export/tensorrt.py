"""ONNX -> model.engine with TensorRT 10, on the machine that will run it. Needs `tensorrt`; no
PyTorch.

Written against the TensorRT 10 API documentation. No GPU was at hand: nothing below `available` has
run yet.

Precision is the graph's own (a strongly typed network): what `recon4d export --precision fp16` left
in float32, geometry above all, stays so, and TF32 is off. int8 is in the graph as well
(quantize.py): no calibrator and no builder flag, which TensorRT 11 no longer has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.errors import EngineError
from recon4d_ros.export.gpu import GpuOptions

MODEL = "model.engine"
OLDEST = 10  # major version


def available() -> str:
    """Empty if this machine can build TensorRT engines, else why not."""
    try:
        import tensorrt as trt
    except ImportError as error:
        return f"TensorRT is not installed here ({error})"
    if int(trt.__version__.split(".")[0]) < OLDEST:
        return f"TensorRT {trt.__version__} is installed here, expected {OLDEST} or later"
    try:
        from recon4d_ros.engine.cuda import device_name

        device_name()
    except (ImportError, EngineError) as error:
        return f"no GPU can be used here ({error})"
    return ""


def build(folder: Path, spec: EngineSpec, options: GpuOptions, say: Callable[[str], None]) -> Path:
    """Builds folder/model.engine from the folder's ONNX. Raises EngineError with what the parser or
    the builder said."""
    import tensorrt as trt

    logger = _logger()
    trt.init_libnvinfer_plugins(logger, "")  # ScatterElements with a reduction is one
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(
        str(folder / spec.model)
    ):  # from a file, so that the weights beside it are found
        said = "; ".join(str(parser.get_error(index)) for index in range(min(3, parser.num_errors)))
        raise EngineError(f"TensorRT does not take {spec.model}: {said}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.timing_cache:
        kept = _kept(options.timing_cache, say)
        config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False)
    config.progress_monitor = _progress()
    say(f"building {MODEL} with TensorRT {trt.__version__}")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(
            f"TensorRT cannot build {spec.model}: {logger.last or 'it gave no reason'}"
        )
    path = folder / MODEL
    path.write_bytes(memoryview(serialized))
    if options.timing_cache:
        _keep(options.timing_cache, memoryview(config.get_timing_cache().serialize()), say)
    return path


def _kept(cache: Path, say: Callable[[str], None]) -> bytes:
    """An earlier build's timings. To be without them costs time, no more."""
    try:
        return cache.read_bytes() if cache.exists() else b""
    except OSError as error:
        say(f"warning: --timing-cache {cache} cannot be read ({error.strerror})")
        return b""


def _keep(cache: Path, timings: memoryview, say: Callable[[str], None]) -> None:
    try:
        cache.write_bytes(timings)
    except OSError as error:
        say(
            f"warning: --timing-cache {cache} cannot be written ({error.strerror}): the next build"
            " takes as long"
        )


def _logger() -> Any:
    import tensorrt as trt

    class Logger(trt.ILogger):
        """Keeps the last error for the sentence; warnings are TensorRT's own affair."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.last = message

    return Logger()


def _progress() -> Any:
    import tensorrt as trt
    from tqdm import tqdm

    class Progress(trt.IProgressMonitor):
        """One bar per phase of the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, tqdm] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._bars[phase_name] = tqdm(
                total=num_steps, desc=phase_name, file=sys.stderr, leave=parent_phase is None
            )

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar = self._bars[phase_name]
            bar.update(step + 1 - bar.n)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._bars.pop(phase_name).close()

    return Progress()
