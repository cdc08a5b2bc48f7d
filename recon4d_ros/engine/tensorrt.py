"""TensorRT, and TensorRT for RTX: the memory stays on the GPU in two sets of buffers that change
roles, and a step is one launch of a captured CUDA graph.

A step is: the frame's inputs up, the network, its outputs down, all in one stream and in one graph;
the host waits once, at the end. There is a graph for each of the two roles of the memory. Where the
network cannot be captured (loops), the same calls are made one by one.

docs/export.md says what of this has run on a GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import paths
from recon4d_ros.engine import tensorrt_library
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.cuda import Buffer, Pinned, Stream
from recon4d_ros.engine.cuda import memory as device_memory
from recon4d_ros.engine.hosted import CONSTANT
from recon4d_ros.engine.tensorrt_library import Build, Gpu
from recon4d_ros.errors import EngineError


class TensorRtRuntime:
    """One execution context. Not thread-safe, as an Engine is not."""

    name = "tensorrt"

    def __init__(
        self, model: Path, spec: EngineSpec, memory: Mapping[str, tuple[int, ...]], threads: int = 0
    ) -> None:
        """threads: of no meaning here. Raises EngineError if there is no GPU, the engine is of
        another TensorRT or GPU, or its tensors are others; ImportError without TensorRT."""
        here = tensorrt_library.gpu(self.name)
        self._trt = tensorrt_library.library(self.name)
        self.device = f"{self.name} {self._trt.__version__} on {here.name}, {spec.precision}"
        self._engine = load_engine(self.name, model, spec, here)
        names = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        expected = {*spec.inputs, *spec.outputs}
        if set(names) != expected:
            raise EngineError(
                f"{model.name} has other tensors than engine.yaml:"
                f" {', '.join(sorted(set(names) ^ expected))}"
            )
        self._kernels = KernelCache(self._trt, self._engine, model, spec, here)
        self._context = self._kernels.make_context()
        if self._context is None:
            raise EngineError(
                f"{model.name}: TensorRT makes no context to run it in: the GPU's memory may be too"
                " small, or in use"
            )
        self._shapes = {name: tuple(shape) for name, shape in memory.items()}
        self._graphs: list[Any] = [None, None]
        self._capture = True
        self._given: dict[str, NDArray] = {}
        self._now = 0
        with contextlib.ExitStack() as held:  # gives all of it back, should anything below fail
            self._held = held
            self._stream = Stream()
            held.callback(self._stream.close)
            self._memory = [
                {name: self._buffer(4 * int(np.prod(shape))) for name, shape in memory.items()}
                for _ in range(2)
            ]
            self._inputs = {
                name: self._pair(name)
                for name in names
                if self._mode(name) == self._trt.TensorIOMode.INPUT and name not in memory
            }
            self._outputs = {
                name: self._pair(name)
                for name in names
                if self._mode(name) == self._trt.TensorIOMode.OUTPUT
                and name.removeprefix("new_") not in memory
            }
            for name, (_, buffer) in (*self._inputs.items(), *self._outputs.items()):
                self._point(name, buffer)
            self.reset()
            self._held = held.pop_all()

    def run(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        """Fills `outputs` from `inputs` (by name, contiguous) and the memory, and steps the
        memory."""
        for name, array in inputs.items():
            if (
                name not in CONSTANT or self._given.get(name) is not array
            ):  # what stays over a drive is copied once
                np.copyto(self._inputs[name][0].array, array)
                self._given[name] = array
        self._launch()
        self._stream.wait()
        for name, array in outputs.items():
            np.copyto(array, self._outputs[name][0].array)
        self._now = 1 - self._now

    def memory(self, name: str) -> NDArray[np.float32]:
        """A copy of one memory tensor on the host."""
        array = np.empty(self._shapes[name], np.float32)
        self._memory[self._now][name].read(array)
        return array

    def remember(self, memory: Mapping[str, NDArray[np.float32]]) -> None:
        for name, array in memory.items():
            self._memory[self._now][name].fill(np.ascontiguousarray(array))

    def reset(self) -> None:
        for buffer in self._memory[self._now].values():
            self._stream.zero(buffer)
        self._stream.wait()

    def gpu_memory(self) -> tuple[float, float]:
        """MiB in use on the GPU, by all programs, and MiB there are."""
        return device_memory()

    def close(self) -> None:
        self._stream.wait()
        for graph in filter(None, self._graphs):
            self._stream.forget(graph)
        self._graphs = [None, None]
        del self._context, self._kernels, self._engine
        self._held.close()

    def _launch(self) -> None:
        """One step in the stream: as a graph from the second time on (the first lets TensorRT
        allocate what it wants)."""
        for name, buffer in self._memory[self._now].items():
            self._point(name, buffer)
        for name, buffer in self._memory[1 - self._now].items():
            self._point(f"new_{name}", buffer)
        graph = self._graphs[self._now]
        if graph is None:
            self._enqueue()
            if self._capture:
                self._stream.wait()
                self._record()
            return
        self._stream.launch(graph)

    def _record(self) -> None:
        """The graph of this role of the memory; its addresses are in it, so there is one for each
        role."""
        try:
            asked = getattr(self._context, "is_stream_capturable", None)
            if asked and not asked(self._stream.handle):
                raise EngineError("TensorRT says that its steps cannot be captured")
            self._graphs[self._now] = self._stream.capture(self._enqueue)
        except EngineError as error:
            self._capture = False
            self.device += f", without a CUDA graph: {error}"
        self._kernels.keep()

    def _enqueue(self) -> None:
        for pinned, buffer in self._inputs.values():
            self._stream.upload(buffer, pinned)
        if not self._context.execute_async_v3(self._stream.handle):
            raise EngineError("TensorRT refused to run the step")
        for pinned, buffer in self._outputs.values():
            self._stream.download(pinned, buffer)

    def _mode(self, name: str) -> Any:
        return self._engine.get_tensor_mode(name)

    def _pair(self, name: str) -> tuple[Pinned, Buffer]:
        sizes, kind = (
            self._engine.get_tensor_shape(name),
            self._trt.nptype(self._engine.get_tensor_dtype(name)),
        )
        shape = tuple(sizes[axis] for axis in range(len(sizes)))
        pinned = Pinned(shape, kind)
        self._held.callback(pinned.free)
        return pinned, self._buffer(pinned.array.nbytes)

    def _buffer(self, size: int) -> Buffer:
        buffer = Buffer(size)
        self._held.callback(buffer.free)
        return buffer

    def _point(self, name: str, buffer: Buffer) -> None:
        if not self._context.set_tensor_address(name, buffer.address):
            raise EngineError(f"TensorRT refused the address of {name}")


class TensorRtRtxRuntime(TensorRtRuntime):
    """The same over TensorRT for RTX."""

    name = "tensorrt-rtx"


def load_engine(runtime: str, model: Path, spec: EngineSpec, here: Gpu) -> Any:
    """The library's engine. Raises EngineError in one sentence: of another TensorRT or GPU, or not
    an engine."""
    trt = tensorrt_library.library(runtime)
    title = tensorrt_library.title(runtime)
    build = Build.of(spec)
    if build and (reason := build.misfit(trt.__version__, here)):
        raise EngineError(
            f"{model.name} does not run here: {reason}: `recon4d export --from` builds it here,"
            " from an engine with its ONNX"
        )
    logger = tensorrt_library.make_logger(trt)
    loader = trt.Runtime(logger)
    if build and build.version_compatible:  # it brings code of its own, which this runs
        loader.engine_host_code_allowed = True
    engine = loader.deserialize_cuda_engine(model.read_bytes())
    if engine is None:
        said = logger.errors[-1] if logger.errors else "it gives no reason"
        raise EngineError(
            f"{model.name} is not for {title} on {here}: `recon4d export --from` builds it here"
            f" ({said})"
        )
    return engine


class KernelCache:
    """The kernels that TensorRT for RTX compiles for this GPU when it loads an engine, kept in a
    file, so that only the first load takes long. Of TensorRT, whose engines hold their kernels,
    there is nothing to keep."""

    def __init__(self, trt: Any, engine: Any, model: Path, spec: EngineSpec, here: Gpu) -> None:
        self._engine = engine
        self._config = self._cache = None
        self._kept = b""
        self._files = _cache_files(model, spec, here)
        if not hasattr(trt, "IRuntimeCache"):
            return
        self._config = engine.create_runtime_config()
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # we have our own
        self._cache = self._config.create_runtime_cache()
        for file in self._files:
            with contextlib.suppress(OSError):
                blob = file.read_bytes()
                if self._cache.deserialize(blob):  # not of another version, driver or GPU
                    self._kept = blob
                    break
        self._config.set_runtime_cache(self._cache)

    def make_context(self) -> Any:
        return (
            self._engine.create_execution_context()
            if self._config is None
            else self._engine.create_execution_context(self._config)
        )

    def keep(self) -> None:
        """Writes the file if there is more to keep than it holds. To be without costs time, no
        more."""
        blob = bytes(memoryview(self._cache.serialize())) if self._cache is not None else b""
        if blob == self._kept:
            return
        self._kept = blob
        for file in self._files:
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                new = file.with_name(f".{file.name}.{os.getpid()}")
                try:
                    new.write_bytes(blob)
                    new.replace(file)
                finally:
                    new.unlink(missing_ok=True)
                return


def _cache_files(model: Path, spec: EngineSpec, here: Gpu) -> tuple[Path, Path]:
    """Beside the engine, or where that cannot be written, in the user's cache."""
    gpu = "".join(c if c.isalnum() else "-" for c in here.name.lower())
    digest = spec.model_sha256[:12]
    return (
        model.with_name(f"{model.stem}.{gpu}.cache"),
        paths.cache() / "kernels" / f"{model.stem}-{digest}.{gpu}.cache",
    )
