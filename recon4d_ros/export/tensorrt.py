"""ONNX -> model.engine with TensorRT 10, on the machine that will run it. Needs `tensorrt` and, for int8, `cuda-bindings`; no PyTorch.

Written against the TensorRT 10 API documentation. No GPU was at hand: nothing below `available` has run yet.

Precision is the graph's own (a strongly typed network): what `recon4d export --precision fp16` left in float32, geometry above all, stays
so, and TF32 is off. int8 is the exception: TensorRT chooses, calibrated with a bag's images, what of the graph becomes int8.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.errors import EngineError, ParameterError
from recon4d_ros.export.gpu import GpuOptions

MODEL = "model.engine"
CALIBRATION_FRAMES = 32
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
    """Builds folder/model.engine from the folder's ONNX. Raises EngineError with what the parser or the builder said."""
    import tensorrt as trt

    int8 = spec.precision == "int8"
    if int8 and options.calibration is None:
        raise ParameterError("precision int8 takes --calibration BAG: images like those that the car will see")
    logger = _logger(trt)
    builder = trt.Builder(logger)
    strongly = 0 if int8 else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(folder / spec.model)):  # from a file, so that the weights beside it are found
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
    if int8:
        assert options.calibration is not None
        config.set_flag(trt.BuilderFlag.INT8)
        config.int8_calibrator = _calibrator(trt, spec, options.calibration)
    if options.timing_cache:
        kept = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False)
    config.progress_monitor = _progress(trt)
    say(f"building {MODEL} with TensorRT {trt.__version__}")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"TensorRT cannot build {spec.model}: {logger.last or 'it gave no reason'}")
    path = folder / MODEL
    path.write_bytes(memoryview(serialized))
    if options.timing_cache:
        options.timing_cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return path


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the last error for the sentence; warnings are TensorRT's own affair."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.last = message

    return Logger()


def _progress(trt: Any) -> Any:
    from tqdm import tqdm

    class Progress(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """One bar per phase of the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, tqdm] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._bars[phase_name] = tqdm(total=num_steps, desc=phase_name, file=sys.stderr, leave=parent_phase is None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar = self._bars[phase_name]
            bar.update(step + 1 - bar.n)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._bars.pop(phase_name).close()

    return Progress()


def _calibrator(trt: Any, spec: EngineSpec, bag: Path) -> Any:
    from recon4d_ros.engine.cuda import Buffer

    frames = calibration_frames(spec, bag)

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]
        """Every frame with an empty memory: as an engine sees its first."""

        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self._buffers: dict[str, Buffer] = {}

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> list[int] | None:
            frame = next(frames, None)
            if frame is None:
                return None
            for name in names:
                if name not in self._buffers:
                    self._buffers[name] = Buffer(frame[name].nbytes)
                self._buffers[name].fill(frame[name])
            return [self._buffers[name].address for name in names]

        def read_calibration_cache(self) -> None:
            return None

        def write_calibration_cache(self, cache: memoryview) -> None:
            return None

    return Calibrator()


def calibration_frames(spec: EngineSpec, bag: Path) -> Iterator[dict[str, NDArray]]:
    """Inputs of the graph, memory of zeros included, from up to CALIBRATION_FRAMES frame sets spread over a bag. Raises Recon4dError if
    the bag cannot be read or its rig is not the engine's."""
    from recon4d_ros.bags import BagReader
    from recon4d_ros.calibration import make_calibration
    from recon4d_ros.engine.base import fits_rig
    from recon4d_ros.engine.hosted import constant_inputs
    from recon4d_ros.preprocess import Preprocessor
    from recon4d_ros.replay import frame_sets
    from recon4d_ros.sync import Synchronizer, SyncParameters

    with BagReader(bag) as reader:
        rig = reader.rig()
        if not fits_rig(spec, rig):
            raise EngineError(f"calibration bag {bag}: its rig of {len(rig.cameras)} camera(s) is not the engine's")
        calibration = make_calibration(rig, spec.input_size, spec.working_size)
        preprocessor = Preprocessor(rig, calibration, spec.channels)
        expected = max(info.count for info in reader.info().cameras.values())
        every = max(1, expected // CALIBRATION_FRAMES)
        memory = {name: np.zeros(shape, np.float32) for name, shape in spec.options["memory"].items()}
        for index, frame_set in enumerate(frame_sets(reader, Synchronizer(rig.names, SyncParameters()))):
            if index % every:
                continue
            frame, _ = preprocessor(frame_set)
            given: dict[str, NDArray] = {
                "images": np.ascontiguousarray(frame.images),
                "present": frame.present.astype(np.float32),
                "pose": rig.T_base_camera.astype(np.float32),
                "anchor_shift": np.zeros(3, np.float32),
                "moving": np.zeros((spec.cameras, *spec.working_size), np.uint8),
                "metres_per_unit": np.zeros(1, np.float32),
                **constant_inputs(spec, calibration),
            }
            yield {name: given[name] for name in spec.inputs if name in given} | memory
