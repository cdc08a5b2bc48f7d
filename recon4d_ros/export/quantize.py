"""int8 as explicit quantization: QuantizeLinear and DequantizeLinear in the ONNX graph itself,
calibrated over a drive.

What runs in int8 is the products with weights of those modules that the network names
(`quantizable`); everything else, geometry, poses, thresholds and what goes into the memory
included, stays as it is: a quantized copy of a tensor goes to these products alone. Scales are
symmetric (zero points 0), of activations per tensor and of weights per output channel, biases stay
in float32: what TensorRT takes as it is, OpenVINO and ONNX Runtime too, so that one file serves all
three.

The activations' ranges are those of a rollout: frames of a bag, one after the other as on the
vehicle, the memory carried along.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from tqdm import tqdm

from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.calibration import make_calibration
from recon4d_ros.cameras.preprocess import Preprocessor
from recon4d_ros.dynamics import Dynamics, DynamicsParameters
from recon4d_ros.egomotion import Egomotion, EgomotionParameters
from recon4d_ros.engine import start_runtime
from recon4d_ros.engine.base import EngineSpec, fits_rig
from recon4d_ros.engine.hosted import HostedEngine, Runtime
from recon4d_ros.errors import EngineError
from recon4d_ros.export.graph import LARGEST_IN_ONE_FILE
from recon4d_ros.export.reference import STEPS
from recon4d_ros.runs.replay import MotionTopics, frame_sets
from recon4d_ros.sync import Synchronizer, SyncParameters
from recon4d_ros.types import FrameSet, Rig

PRODUCTS = ("MatMul", "Conv", "ConvTranspose")
LONGEST = 96  # frame sets of the rollout: more of a bag is not looked at
LEAST = 8  # frame sets that a bag has to have, the last STEPS of which the result is compared on
CALIBRATED = 32  # steps of the rollout whose activations are looked at
FLOAT_BRANCH = "/int8"  # ends the names of the tensors that are quantized


def check_bag(bag: Path, spec: EngineSpec) -> int:
    """How many frame sets the rollout will have. Raises a Recon4dError, with a sentence, if the bag
    is no bag, of another rig, or too short; its images are decoded to see."""
    with BagReader(bag) as reader:
        rig = _rig(reader, spec)
        preprocessor = Preprocessor(
            rig, make_calibration(rig, spec.input_size, spec.working_size), spec.channels
        )
        length = count = 0
        for frame_set in _frame_sets(reader, rig):
            frame, dropped = preprocessor(frame_set)
            for camera, reason in dropped.items():
                raise EngineError(
                    f"calibration bag {bag}: an image of {camera} cannot be read: {reason}"
                )
            length, count = length + 1, count + bool(frame.present.all())
    if count < LEAST:
        raise EngineError(
            f"calibration bag {bag}: {count} frame set(s) with all cameras: expected {LEAST} at"
            " least"
        )
    return length


def roll_out(
    folder: Path, spec: EngineSpec, bag: Path, length: int, scratch: Path
) -> tuple[list[Path], list[Path]]:
    """Drives the folder's (float32) engine through the bag with ONNX Runtime, `length` frame sets,
    as a Reconstructor would (without a map), and writes what the graph is given in some of the
    steps, memory included: one .npz in `scratch` each.

    Gives the steps to calibrate on, and the last ones, held out to compare on. Raises Recon4dError.
    """
    held_out = length - STEPS
    recorded = {
        *(int(x) for x in np.linspace(0, held_out - 1, CALIBRATED)),
        *range(held_out, length),
    }
    runtime = Recorder(start_runtime(folder, spec, "onnxruntime"), tuple(spec.options["memory"]))
    engine = HostedEngine(spec, runtime, f"engine {folder}")
    written: dict[int, Path] = {}
    with BagReader(bag) as reader:
        rig = _rig(reader, spec)
        calibration = make_calibration(rig, spec.input_size, spec.working_size)
        preprocessor = Preprocessor(rig, calibration, spec.channels)
        egomotion, dynamics = (
            Egomotion(rig, calibration, EgomotionParameters()),
            Dynamics(rig, calibration, DynamicsParameters()),
        )
        moving = np.zeros((spec.cameras, *spec.working_size), bool)
        bar = tqdm(
            _frame_sets(reader, rig), "rollout", length, file=sys.stderr, disable=None
        )  # None: only on a terminal
        for index, frame_set in enumerate(bar):
            frame, _ = preprocessor(frame_set)
            pose = egomotion.estimate(frame, frame_set.odometry, frame_set.jump)
            geometry = engine.step(frame, calibration, pose.T_map_camera, moving)
            if index in recorded:
                written[index] = scratch / f"step_{index:03}.npz"
                np.savez(written[index], **runtime.given)  # type: ignore[arg-type]
            motion = dynamics(frame, pose, geometry)
            egomotion.observe(frame, geometry, pose, motion.mask)
            moving = motion.mask
    engine.close()
    return [path for index, path in written.items() if index < held_out], [
        written[index] for index in range(held_out, length)
    ]


class Recorder:
    """A runtime that keeps what its graph was given in the last step: `given`, the memory before
    the step included."""

    def __init__(self, runtime: Runtime, memory: tuple[str, ...]):
        self._runtime, self._memory = runtime, memory
        self.name, self.device = runtime.name, runtime.device
        self.memory, self.remember, self.reset, self.close, self.gpu_memory = (
            runtime.memory,
            runtime.remember,
            runtime.reset,
            runtime.close,
            runtime.gpu_memory,
        )
        self.given: dict[str, NDArray] = {}

    def run(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        self.given = {name: array.copy() for name, array in inputs.items()}
        self.given |= {name: self._runtime.memory(name).copy() for name in self._memory}
        self._runtime.run(inputs, outputs)


class _Steps(CalibrationDataReader):
    """Recorded steps, one file at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = iter(paths)

    def get_next(self) -> dict[str, NDArray] | None:  # type: ignore[override]
        path = next(self._paths, None)
        return None if path is None else dict(np.load(path))


def quantize(model: Path, modules: Sequence[str], steps: Sequence[Path]) -> int:
    """The model's products of `modules` (names within the step) become int8, in its place, ranges
    calibrated on the recorded steps; gives how many they are. Raises EngineError if there is
    none."""
    graph = onnx.load(str(model), load_external_data=False)
    names = products_of(graph.graph, modules)
    if not names:
        raise EngineError(
            f"precision int8: {model.name} has no product with weights in {', '.join(modules)}"
        )
    branch_off(graph.graph, names)
    branched, quantized, weights = (
        model.with_name(name) for name in ("branched.onnx", "quantized.onnx", f"{model.name}.data")
    )
    onnx.save(graph, str(branched))
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        quantize_static(
            str(branched),
            str(quantized),
            _Steps(steps),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=names,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=weights.exists(),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
            },
        )
    result = onnx.load(str(quantized))
    close_branches(result.graph)
    for file in (branched, weights, *model.parent.glob(f"{quantized.name}*")):
        file.unlink(missing_ok=True)
    apart = result.ByteSize() > LARGEST_IN_ONE_FILE
    onnx.save(
        result, str(model), save_as_external_data=apart, location=weights.name if apart else None
    )
    onnx.checker.check_model(str(model), full_check=True)
    return len(names)


def products_of(graph: onnx.GraphProto, modules: Sequence[str]) -> list[str]:
    """Names of the nodes that multiply with weights in these modules (export/graph.py: a node's
    name begins with its module's).

    Not those that read a concatenation, but for ConvTranspose: OpenVINO 2026.4.1 computes something
    else there (docs/export.md).
    """
    weights = {value.name for value in graph.initializer}
    joined = {node.output[0] for node in graph.node if node.op_type == "Concat"}

    def belongs(node: onnx.NodeProto) -> bool:
        module = node.name.rpartition("/")[0]
        return any(module == name or module.startswith(f"{name}.") for name in modules)

    def fits(node: onnx.NodeProto) -> bool:
        return (
            node.op_type in PRODUCTS
            and node.input[1] in weights
            and (node.op_type == "ConvTranspose" or node.input[0] not in joined)
        )

    return [node.name for node in graph.node if fits(node) and belongs(node)]


def branch_off(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Gives the named nodes copies of their first inputs, which nobody else reads. A tool that
    quantizes a tensor does so for all who read it, a graph's outputs included, and the memory and
    the geometry are to read what was computed."""
    chosen, made = set(names), {}
    nodes = []
    for node in graph.node:
        if node.name in chosen:
            source = node.input[0]
            if source not in made:
                made[source] = f"{source}{FLOAT_BRANCH}"
                nodes.append(
                    onnx.helper.make_node("Identity", [source], [made[source]], name=made[source])
                )
            node.input[0] = made[source]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def close_branches(graph: onnx.GraphProto) -> None:
    """Takes the copies of `branch_off` away again: what quantizes them reads their source."""
    sources = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.name.endswith(FLOAT_BRANCH)
    }
    kept = [node for node in graph.node if node.output[0] not in sources]
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = sources.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


def _rig(reader: BagReader, spec: EngineSpec) -> Rig:
    rig = reader.rig()
    if not fits_rig(spec, rig):
        raise EngineError(
            f"calibration bag {reader.path}: its rig of {len(rig.cameras)} camera(s) is not the"
            " engine's"
        )
    return rig


def _frame_sets(reader: BagReader, rig: Rig) -> Iterator[FrameSet]:
    found = frame_sets(reader, Synchronizer(rig.names, SyncParameters()), MotionTopics.of(reader))
    return islice(found, LONGEST)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library logs advice to the root logger."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
