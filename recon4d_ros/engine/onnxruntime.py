"""ONNX Runtime: the CPU everywhere, and the CUDA provider where there is one.

The CUDA path keeps the memory on the device (OrtValues of the device, bound as inputs and outputs);
no GPU was at hand when this was written, so it has not run yet.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recon4d_ros.engine.any_size import override
from recon4d_ros.engine.base import EngineSpec


class OnnxRuntime:
    """One session; its memory lies in two sets of OrtValues that change roles every step (no
    copy)."""

    name = "onnxruntime"

    def __init__(
        self, model: Path, spec: EngineSpec, memory: Mapping[str, tuple[int, ...]], threads: int = 0
    ):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        override(options, spec)
        # threads that wait for each other would spin: as fast (1.4 s a step of three cameras on two
        # cores), 10 % more processor time, which the car's other nodes need
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads:
            options.intra_op_num_threads = threads
        cuda = "CUDAExecutionProvider" in ort.get_available_providers()
        if cuda:
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # TF32 keeps ten bits: geometry is wrong in it
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"})] * cuda + ["CPUExecutionProvider"]
        self._session = ort.InferenceSession(str(model), options, providers=providers)
        cuda = self._session.get_providers()[0] == "CUDAExecutionProvider"
        self._place = "cuda" if cuda else "cpu"
        self.device = f"onnxruntime {'CUDA' if cuda else 'CPU'}, {spec.precision}"
        self._shapes = dict(memory)
        self._memory: list[dict[str, ort.OrtValue]] = []
        self._now = 0
        self.reset()

    def run(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        """Fills `outputs` from `inputs` (by name, contiguous) and the memory, and steps the
        memory."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, value in self._memory[self._now].items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._memory[1 - self._now].items():
            binding.bind_ortvalue_output(f"new_{name}", value)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        self._now = 1 - self._now

    def memory(self, name: str) -> NDArray[np.float32]:
        """One memory tensor on the host (copied there from a GPU)."""
        return self._memory[self._now][name].numpy()

    def remember(self, memory: Mapping[str, NDArray[np.float32]]) -> None:
        for name, array in memory.items():
            self._memory[self._now][name] = ort.OrtValue.ortvalue_from_numpy(
                np.array(array, np.float32), self._place, 0
            )

    def reset(self) -> None:
        self._memory = [
            {
                name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), self._place, 0)
                for name, shape in self._shapes.items()
            }
            for _ in range(2)
        ]
        self._now = 0

    def gpu_memory(self) -> tuple[float, float]:
        if self._place == "cpu":
            return 0.0, 0.0
        try:
            from recon4d_ros.engine import cuda
        except ImportError:  # cuda-bindings: ONNX Runtime does without
            return math.nan, math.nan
        return cuda.memory()

    def close(self) -> None:
        del self._session, self._memory
