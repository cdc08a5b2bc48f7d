"""An ONNX engine of a few nodes, and a TensorRT that is none: what it builds runs as ONNX does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from recon4d_ros import engine as engines
from recon4d_ros.engine import tensorrt_library
from recon4d_ros.engine.base import EngineSpec, load_spec, sha256_of
from recon4d_ros.engine.onnxruntime import OnnxRuntime
from recon4d_ros.engine.tensorrt_library import Build, Gpu
from recon4d_ros.errors import EngineError
from recon4d_ros.export import gpu, tensorrt
from recon4d_ros.export.apart import Ended, Stop
from recon4d_ros.export.compare import compare
from recon4d_ros.export.reference import from_runtime

SIZE = (32, 48)
MAPS = ("depth", "sigma", "confidence")
PARITY = {
    "milliseconds": 1.0,
    "peak_rss_mib": 1.0,
    "load_seconds": 0.1,
    "worst": 0.0,
    "outputs": {"depth": {"max": 0.0, "relative": 0.0, "holes": 0.0}},
}


def network(path: Path, remembers: bool = True) -> None:
    """depth = sigma = confidence = image + state, new_state = state + 1; or without the state,
    which the first step, of zeros, does not show."""
    keep = helper.make_tensor("keep", TensorProto.FLOAT, [1], [float(remembers)])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [3])
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["float", "axis"], ["x"]),
        helper.make_node("Mul", ["state", "keep"], ["kept"]),
        *(helper.make_node("Add", ["x", "kept"], [name]) for name in MAPS),
        helper.make_node("Identity", ["images"], ["color"]),
        helper.make_node("Add", ["kept", "one"], ["new_state"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("images", TensorProto.UINT8, [1, *SIZE, 1]),
        value("state", TensorProto.FLOAT, [1]),
    ]
    outputs = [value(name, TensorProto.FLOAT, [1, *SIZE]) for name in MAPS]
    outputs += [
        value("color", TensorProto.UINT8, [1, *SIZE, 1]),
        value("new_state", TensorProto.FLOAT, [1]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [keep, one, axis])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )


def tiny_engine(folder: Path, remembers: bool = True, **fields) -> EngineSpec:
    folder.mkdir()
    network(folder / "model.onnx", remembers)
    spec = EngineSpec(
        "n",
        "learned",
        "onnxruntime",
        1,
        SIZE,
        1,
        SIZE,
        1,
        0,
        "fp32",
        "model.onnx",
        sha256_of(folder / "model.onnx"),
        inputs=("images", "state"),
        outputs=(*MAPS, "color", "new_state"),
        options={"memory": {"state": [1]}},
        parity={"onnxruntime": PARITY},
    )
    spec = replace(spec, **fields)
    spec.save(folder / "engine.yaml")
    return spec


class Runtime(OnnxRuntime):
    """Runs as ONNX what the stand-in builder wrote."""

    def __init__(self, model, spec, memory, threads=0):
        copy = model.with_suffix(".onnx.copy")
        copy.write_bytes(model.read_bytes())
        super().__init__(copy, spec, memory, threads)
        copy.unlink()
        self.device = "stand-in GPU"


@dataclass
class StandIn:
    """A machine with TensorRT and a GPU. write: makes the engine file, from the ONNX file. built:
    the files that it has made. steps: of progress, each of which takes `pause` seconds and after
    which it may be stopped."""

    version: str = "10.0"
    gpu: Gpu | None = field(default_factory=lambda: Gpu("Stand-In 1", "8.6", 8192.0))
    installed: tuple[str, ...] = ("tensorrt",)
    write: Callable[[Path, Path], None] = lambda model, out: out.write_bytes(model.read_bytes())
    built: list[Path] = field(default_factory=list)
    steps: int = 3
    pause: float = 0.0

    def build(self, model, out, runtime, options, *, say, progress, stop):
        for step in range(self.steps):
            stop.check()
            progress("Building engine", step / self.steps)
            time.sleep(self.pause)
        self.write(model, out)
        self.built.append(out)
        here = self.gpu
        return Build(
            runtime,
            self.version,
            here.name if here else "",
            here.compute_capability if here else "",
            options.targets,
            options.hardware_compatible,
            options.version_compatible,
            {"gemm": 2},
            5,
            1.5,
            2.5,
            3.5,
        )

    def library(self, runtime: str):
        if runtime not in self.installed:
            raise ModuleNotFoundError(f"No module named {runtime!r}", name=runtime)
        return SimpleNamespace(__version__=self.version)

    def the_gpu(self, runtime: str) -> Gpu:
        if self.gpu is None:
            raise EngineError(f"{runtime} needs an NVIDIA GPU, and there is none (CUDA: no)")
        return self.gpu

    def install(self, patch: pytest.MonkeyPatch) -> StandIn:
        module = ModuleType("stand_in_runtime")
        module.Runtime = Runtime
        patch.setitem(sys.modules, "stand_in_runtime", module)
        for name in tensorrt_library.TITLES:
            patch.setitem(engines.RUNTIMES, name, ("stand_in_runtime", "Runtime"))
        patch.setattr(tensorrt_library, "library", self.library)
        patch.setattr(tensorrt_library, "installed", lambda runtime: runtime in self.installed)
        patch.setattr(tensorrt_library, "gpu", self.the_gpu)
        patch.setattr(tensorrt, "build", self.build)
        # in this process, which knows of the stand-in, and where they cost no start of another
        patch.setattr(gpu, "compare_apart", lambda *a: compare(*a[:3]))
        patch.setattr(gpu, "run_apart", _reference)
        return self


def _reference(module: str, folder: str, runtime: str, out: str, stop: Stop) -> Ended:
    assert module == from_runtime.__module__
    stop.check()
    from_runtime(Path(out), Path(folder), load_spec(Path(folder)), runtime)
    return Ended(0, "", "")
