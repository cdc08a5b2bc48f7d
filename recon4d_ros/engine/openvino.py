"""OpenVINO on the CPU: the fastest CPU runtime measured for `recon4d_geometric`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from recon4d_ros.engine.any_size import input_shapes
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.openvino_cache import compiled


class OpenVinoRuntime:
    """One compiled model; its memory lies in two sets of buffers that change roles every step (no
    copy)."""

    name = "openvino"

    def __init__(
        self, model: Path, spec: EngineSpec, memory: Mapping[str, tuple[int, ...]], threads: int = 0
    ):
        core = ov.Core()
        config = {
            # on AMX machines the default is bf16, in which geometry is wrong
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        graph = core.read_model(str(model))
        if spec.shapes:
            graph.reshape({name: list(shape) for name, shape in input_shapes(spec).items()})
        digest = "" if spec.files else spec.model_sha256
        self._compiled = compiled(core, graph, model, digest, config)
        self._request = self._compiled.create_infer_request()
        self.device = (
            f"openvino CPU ({core.get_property('CPU', 'FULL_DEVICE_NAME')}), {spec.precision}"
        )
        self._buffers = [
            {name: np.zeros(shape, np.float32) for name, shape in memory.items()} for _ in range(2)
        ]
        self._tensors = [
            {name: ov.Tensor(array, shared_memory=True) for name, array in buffer.items()}
            for buffer in self._buffers
        ]
        self._now = 0
        self._bound: dict[str, NDArray] = {}

    def run(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        """Fills `outputs` from `inputs` (by name, contiguous) and the memory, and steps the
        memory."""
        before, after = self._tensors[self._now], self._tensors[1 - self._now]
        for name, array in inputs.items():
            if (
                self._bound.get(name) is not array
            ):  # what stays over a drive (grid, k) is bound once
                self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
                self._bound[name] = array
        for name in before:
            self._request.set_tensor(name, before[name])
            self._request.set_tensor(f"new_{name}", after[name])
        for name, array in outputs.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._request.infer()
        self._now = 1 - self._now

    def memory(self, name: str) -> NDArray[np.float32]:
        """A view of one memory tensor, good until the next step."""
        return self._buffers[self._now][name]

    def remember(self, memory: Mapping[str, NDArray[np.float32]]) -> None:
        for name, array in memory.items():
            self._buffers[self._now][name][:] = array

    def reset(self) -> None:
        for array in self._buffers[self._now].values():
            array.fill(0)

    def gpu_memory(self) -> tuple[float, float]:
        return 0.0, 0.0

    def close(self) -> None:
        del self._request, self._compiled
