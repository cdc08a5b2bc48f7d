"""The few CUDA calls that the TensorRT runtime needs, checked: device memory, one stream, graphs.
Over `cuda-bindings` (NVIDIA's own).

Written against the documentation of cuda.bindings.runtime. No GPU was at hand: nothing here has run
yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.engine.tensorrt_library import Gpu
from recon4d_ros.errors import EngineError

try:
    from cuda.bindings import runtime as cudart
except ImportError:  # cuda-python before 12.6 had it here
    from cuda import cudart


def call(result: tuple) -> Any:
    """What a CUDA call gave, without its error code. Raises EngineError."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA: {cudart.cudaGetErrorString(error)[1].decode()}")
    return values[0] if len(values) == 1 else values or None


def device() -> Gpu:
    """The GPU that calls go to. Raises EngineError if there is none."""
    properties = call(cudart.cudaGetDeviceProperties(call(cudart.cudaGetDevice())))
    return Gpu(
        properties.name.decode(),
        f"{properties.major}.{properties.minor}",
        properties.totalGlobalMem / 2**20,
    )


def memory() -> tuple[float, float]:
    """MiB of the GPU's memory that are in use, by all programs, and that there are. Raises
    EngineError."""
    free, total = call(cudart.cudaMemGetInfo())
    return (total - free) / 2**20, total / 2**20


class Buffer:
    """Memory on the device. address: for whoever takes a pointer."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(call(cudart.cudaMalloc(max(size, 1))))

    def fill(self, array: NDArray) -> None:
        """From the host, now. array: contiguous."""
        call(
            cudart.cudaMemcpy(
                self.address,
                array.ctypes.data,
                array.nbytes,
                cudart.cudaMemcpyKind.cudaMemcpyHostToDevice,
            )
        )
        call(
            cudart.cudaStreamSynchronize(0)
        )  # from memory that is not pinned the call may end before the copy does

    def read(self, array: NDArray) -> None:
        """To the host, now."""
        call(
            cudart.cudaMemcpy(
                array.ctypes.data,
                self.address,
                array.nbytes,
                cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost,
            )
        )

    def free(self) -> None:
        call(cudart.cudaFree(self.address))


class Pinned:
    """Page-locked memory of the host, as an array: the only kind that is copied without the host
    waiting, and inside a graph."""

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        import ctypes

        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        self._address = int(call(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))
        block = (ctypes.c_uint8 * size).from_address(self._address)
        self.array: NDArray = np.ctypeslib.as_array(block).view(dtype).reshape(shape)

    def free(self) -> None:
        call(cudart.cudaFreeHost(self._address))


class Stream:
    def __init__(self) -> None:
        self._stream = call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    @property
    def handle(self) -> int:
        return int(self._stream)

    def upload(self, target: Buffer, source: Pinned) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(
            cudart.cudaMemcpyAsync(
                target.address, source.array.ctypes.data, source.array.nbytes, kind, self._stream
            )
        )

    def download(self, target: Pinned, source: Buffer) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(
            cudart.cudaMemcpyAsync(
                target.array.ctypes.data, source.address, target.array.nbytes, kind, self._stream
            )
        )

    def zero(self, target: Buffer) -> None:
        call(cudart.cudaMemsetAsync(target.address, 0, target.size, self._stream))

    def wait(self) -> None:
        call(cudart.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Any:
        """What `work` puts into this stream, as a graph to `launch`. Raises EngineError if it
        cannot be captured."""
        call(
            cudart.cudaStreamBeginCapture(
                self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            )
        )
        try:
            work()
        except BaseException:
            error, graph = cudart.cudaStreamEndCapture(self._stream)
            if error == cudart.cudaError_t.cudaSuccess:
                call(cudart.cudaGraphDestroy(graph))
            raise
        graph = call(cudart.cudaStreamEndCapture(self._stream))
        try:
            return call(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            call(cudart.cudaGraphDestroy(graph))

    def launch(self, graph: Any) -> None:
        call(cudart.cudaGraphLaunch(graph, self._stream))

    def forget(self, graph: Any) -> None:
        """Gives a graph's memory back."""
        call(cudart.cudaGraphExecDestroy(graph))

    def close(self) -> None:
        call(cudart.cudaStreamDestroy(self._stream))
