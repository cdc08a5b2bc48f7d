"""Which TensorRT, on which GPU: NVIDIA's TensorRT, or TensorRT for RTX, which has the same Python
interface and also builds where there is no GPU. The module is chosen here and nowhere else."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.errors import EngineError, ParameterError

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
# By runtime, in the order they are looked for. The wheels on PyPI have no module without _bindings.
_MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}  # major version


def library(runtime: str) -> Any:
    """The module of a runtime. Raises ImportError, or EngineError if it is older than OLDEST."""
    for name in _MODULES[runtime]:
        try:
            module = importlib.import_module(name)
            break
        except ModuleNotFoundError as error:
            if error.name != name or name == _MODULES[runtime][-1]:
                raise
    if int(module.__version__.split(".")[0]) < OLDEST[runtime]:
        raise EngineError(
            f"{TITLES[runtime]} {module.__version__} is installed here: expected"
            f" {OLDEST[runtime]} or later"
        )
    return module


def installed(runtime: str) -> bool:
    """Whether there is such a module; unlike `library`, without loading hundreds of megabytes."""
    return any(importlib.util.find_spec(name) is not None for name in _MODULES[runtime])


def title(runtime: str) -> str:
    """A TensorRT with its version, e.g. `TensorRT 10.9.0`. Raises as `library`."""
    return f"{TITLES[runtime]} {library(runtime).__version__}"


@dataclass(frozen=True)
class Gpu:
    """A GPU. compute_capability: e.g. `8.6`. memory: MiB."""

    name: str
    compute_capability: str
    memory: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"


def gpu(runtime: str) -> Gpu:
    """The GPU here. Raises EngineError in one sentence if there is none that can be used."""
    try:
        from recon4d_ros.engine.cuda import device
    except ImportError as error:
        raise EngineError(
            f"{TITLES[runtime]} needs an NVIDIA GPU, which cannot be asked for here ({error}): pip"
            " install cuda-bindings"
        ) from None
    try:
        return device()
    except EngineError as error:
        raise EngineError(
            f"{TITLES[runtime]} needs an NVIDIA GPU, and none can be used here ({error})"
        ) from None


@dataclass(frozen=True)
class Build:
    """How a TensorRT engine was built: EngineSpec.build, field by field.

    builder: of TITLES. version: of it. gpu, compute_capability: of the machine that built it, empty
    where it had none. targets: compute capabilities it was built for (TensorRT for RTX); empty: any
    that the library runs on. hardware_compatible, version_compatible: TensorRT's own ways to run on
    other GPUs of compute capability 8.0 and later, and with later versions. layers: how many of
    each kind the built engine has. network_layers: of the network before. weights, scratch: MiB on
    the GPU. seconds: the build took. source: of `identity` of the engine it was built from.
    """

    builder: str
    version: str
    gpu: str = ""
    compute_capability: str = ""
    targets: tuple[str, ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    layers: Mapping[str, int] = field(default_factory=dict)
    network_layers: int = 0
    weights: float = 0.0
    scratch: float = 0.0
    seconds: float = 0.0
    source: str = ""

    @staticmethod
    def of(spec: EngineSpec) -> Build | None:
        """What engine.yaml says; None of one that no TensorRT built, or an older version of this
        package. Raises EngineError."""
        if not spec.build:
            return None
        try:
            known = {entry.name for entry in dataclasses.fields(Build)}
            given = {name: value for name, value in spec.build.items() if name in known}
            given["targets"] = tuple(str(target) for target in given.get("targets") or ())
            given["layers"] = {
                str(kind): int(count) for kind, count in (given.get("layers") or {}).items()
            }
            build = Build(**given)
            texts = (build.version, build.gpu, build.compute_capability, build.source)
            numbers = (build.network_layers, build.weights, build.scratch, build.seconds)
            if build.builder not in TITLES or not all(isinstance(text, str) for text in texts):
                raise ValueError
            if not all(isinstance(number, int | float) for number in numbers):
                raise ValueError
            return build
        except (TypeError, ValueError, AttributeError):
            raise EngineError(
                "build in engine.yaml does not say how a TensorRT engine was built"
            ) from None

    def misfit(self, version: str, here: Gpu | None) -> str:
        """Empty, or why the engine is not for a library of that version on that GPU; None: not
        known, which any engine fits that was not built for one GPU alone."""
        there = f"it was built by {TITLES[self.builder]} {self.version}"
        if self.version != version and not (
            self.version_compatible and _newer(version, self.version)
        ):
            return f"{there}, here is {version}"
        if here is None:
            return "" if not self.bound_to_one_gpu else f"{there} for {self.gpu} alone"
        if self.targets and here.compute_capability not in self.targets:
            return f"{there} for compute capability {', '.join(self.targets)}, here is {here}"
        if self.bound_to_one_gpu and self.gpu != here.name:
            return f"{there} for {self.gpu}, here is {here}"
        if self.hardware_compatible and _number(here.compute_capability) < (8, 0):
            return f"{there} for compute capability 8.0 and later, here is {here}"
        return ""

    @property
    def bound_to_one_gpu(self) -> bool:
        return self.builder == "tensorrt" and not self.hardware_compatible


def compute_capabilities(trt: Any, wanted: Sequence[str]) -> list[Any]:
    """The library's names of compute capabilities such as `8.6`. Raises ParameterError for one it
    does not build for."""
    known = {
        _said(name): member
        for name, member in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    for name in wanted:
        if name not in known:
            raise ParameterError(
                f"compute capability {name!r} is not one that {TITLES['tensorrt-rtx']}"
                f" {trt.__version__} builds for: expected some of"
                f" {', '.join(sorted(known, key=_number))}"
            )
    return [known[name] for name in dict.fromkeys(wanted)]


def _said(name: str) -> str:
    """SM120 -> 12.0"""
    return f"{name[2:-1]}.{name[-1]}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _newer(version: str, than: str) -> bool:
    """Later, or the same, within one major version."""
    a, b = _number(version), _number(than)
    return a[:1] == b[:1] and a >= b


def one_line(message: str) -> str:
    return " ".join(message.split())


def make_logger(trt: Any) -> Any:
    """TensorRT's messages, of which it keeps what a sentence needs: `errors`, all of them in
    order. hear: is told (severity's name, message) of each."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.hear: Any = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(one_line(message))
            if self.hear:
                self.hear(severity.name, message)

    return Logger()


def inspect_layers(trt: Any, engine: Any) -> list[tuple[str, str]]:
    """Name and kind of each layer of a loaded engine."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text)["Layers"]
    return [
        (layer["Name"], layer.get("LayerType", "")) if isinstance(layer, dict) else (str(layer), "")
        for layer in layers
    ]
