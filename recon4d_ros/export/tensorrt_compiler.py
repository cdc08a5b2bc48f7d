"""The process that tensorrt.py starts: an ONNX file through TensorRT's parser and builder.

python -m recon4d_ros.export.tensorrt_compiler REQUEST      lines of JSON, the last one the answer
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recon4d_ros.engine import tensorrt_library
from recon4d_ros.engine.tensorrt_library import Build
from recon4d_ros.errors import EngineError, OutputError, Recon4dError
from recon4d_ros.export.apart import end_with_parent
from recon4d_ros.export.tensorrt import GpuOptions, Progress

TOLD = 0.2  # seconds between two words of progress


def compile_engine(model: Path, out: Path, runtime: str, options: GpuOptions) -> Build:
    """Raises EngineError, OutputError, ParameterError."""
    start = time.perf_counter()
    parsed = Parsed(runtime, model)
    trt, title, builder, network = parsed.trt, parsed.title, parsed.builder, parsed.network
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what layers it has can be asked
    config.progress_monitor = monitor = _progress(trt, _tell)  # the config does not keep it
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.targets:
        targets = tensorrt_library.compute_capabilities(trt, options.targets)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(target, index):
                raise EngineError(
                    f"{title} does not build for compute capability {options.targets[index]}"
                    f" beside {', '.join(options.targets[:index]) or 'others'}"
                )
    if options.timing_cache:
        kept = _kept(options.timing_cache, _say)
        config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False)
    serialized = builder.build_serialized_network(network, config)
    del monitor
    if serialized is None:
        raise EngineError(f"{title} cannot build {model.name}: {parsed.last_error}")
    _write(out, memoryview(serialized))
    if options.timing_cache:
        _keep(options.timing_cache, memoryview(config.get_timing_cache().serialize()), _say)
    try:
        here = tensorrt_library.gpu(runtime)
    except EngineError:
        here = None
    layers = parsed.notes.layers or (layer_kinds(parsed, serialized) if here else {})
    return Build(
        builder=runtime,
        version=trt.__version__,
        gpu=here.name if here else "",
        compute_capability=here.compute_capability if here else "",
        targets=options.targets,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        layers=layers,
        network_layers=network.num_layers,
        weights=parsed.notes.weights,
        scratch=parsed.notes.scratch,
        seconds=round(time.perf_counter() - start, 1),
    )


class Parsed:
    """The library's network of an ONNX file, in this process. Raises EngineError: the sentence
    names node and operator."""

    def __init__(self, runtime: str, model: Path) -> None:
        self.trt = trt = tensorrt_library.library(runtime)
        self.title = title = tensorrt_library.title(runtime)
        self.notes = _Notes()
        self.logger = tensorrt_library.make_logger(trt)
        self.logger.hear = self.notes
        self.builder = trt.Builder(self.logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(typed)
        parser = trt.OnnxParser(self.network, self.logger)
        # from a file, so that the weights beside it are found
        if parser.parse_from_file(str(model)):
            return
        if not parser.num_errors:
            raise EngineError(f"{title} does not take {model.name}: {self.last_error}")
        error = parser.get_error(0)
        name, operator = error.node_name(), error.node_operator()
        if not name:  # not every error knows its node; the parser says each before it reads it
            name, operator = self.notes.node
        where = f"node {name} ({operator}): " if name or operator else ""
        # after its reason come whatever errors the library had before, e.g. that there is no GPU
        reason = re.sub(r"\[\w+\.cpp::.*$", "", tensorrt_library.one_line(error.desc())).strip()
        raise EngineError(f"{title} does not take {model.name}: {where}{reason}")

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Name: shape and NumPy's type, of all inputs and outputs."""
        network = self.network
        found = [network.get_input(index) for index in range(network.num_inputs)]
        found += [network.get_output(index) for index in range(network.num_outputs)]
        return {value.name: (tuple(value.shape), self.trt.nptype(value.dtype)) for value in found}

    @property
    def last_error(self) -> str:
        return self.logger.errors[-1] if self.logger.errors else "it gives no reason"


class _Notes:
    """What is worth keeping of the library's messages."""

    NODE = re.compile(r"(?:Static check for p|P)arsing node: (.*) \[(\w+)\]")
    MEMORY = re.compile(r"Total (Weights|Activation) Memory: (\d+) bytes")

    def __init__(self) -> None:
        self.node = ("", "")
        self.weights = self.scratch = 0.0  # MiB
        self.layers: dict[str, int] = {}

    def __call__(self, severity: str, message: str) -> None:
        if found := self.NODE.match(message):
            self.node = (found[1], found[2])
        elif found := self.MEMORY.match(message):
            mib = round(int(found[2]) / 2**20, 1)
            if found[1] == "Weights":
                self.weights = mib
            else:
                self.scratch = mib
        elif message.startswith("Layers:"):  # TensorRT for RTX says what EngineInspector would
            self.layers = dict(Counter(re.findall(r"\bLayerType: (\w+)", message)))


def layer_kinds(parsed: Parsed, serialized: Any) -> dict[str, int]:
    """How many layers of each kind an engine has, as EngineInspector says: that takes a GPU."""
    engine = parsed.trt.Runtime(parsed.logger).deserialize_cuda_engine(serialized)
    layers = [] if engine is None else tensorrt_library.inspect_layers(parsed.trt, engine)
    return dict(Counter(kind for _, kind in layers))


def _write(path: Path, data: memoryview) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None


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


def _progress(trt: Any, tell: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Phases lie within phases: each step of one counts as much as its other steps. The library
        calls from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, done
            self._told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)
                self._tell()

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    parent, steps, _ = self._phases[phase_name]
                    self._phases[phase_name] = (parent, steps, min(step + 1, steps))
                    self._tell()
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def _done(self, phase: str) -> float:
            _, steps, done = self._phases[phase]
            within = [name for name, (parent, _, _) in self._phases.items() if parent == phase]
            return (done + max(map(self._done, within), default=0.0) * (done < steps)) / steps

        def _tell(self) -> None:
            now = time.monotonic()
            roots = [name for name, (parent, _, _) in self._phases.items() if parent is None]
            if roots and now - self._told > TOLD:
                self._told = now
                tell(list(self._phases)[-1], max(map(self._done, roots)))

    return Monitor()


def _tell(phase: str, done: float) -> None:
    print(json.dumps({"phase": phase, "done": round(done, 3)}), flush=True)


def _say(sentence: str) -> None:
    print(json.dumps({"say": sentence}), flush=True)


def main(request: str) -> int:
    end_with_parent()
    asked = json.loads(request)
    runtime, model = asked["runtime"], Path(asked["model"])
    try:
        if "out" not in asked:
            answer: dict[str, Any] = {"layers": Parsed(runtime, model).network.num_layers}
        else:
            given = asked["options"]
            cache = Path(given["timing_cache"]) if given["timing_cache"] else None
            options = GpuOptions(
                **{**given, "timing_cache": cache, "targets": tuple(given["targets"])}
            )
            answer = dataclasses.asdict(compile_engine(model, Path(asked["out"]), runtime, options))
    except Recon4dError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}), flush=True)
        return 0
    print(json.dumps({"answer": answer}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
