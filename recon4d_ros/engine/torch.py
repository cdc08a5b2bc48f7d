"""PyTorch's ahead-of-time compiled model (model.pt2), for a GPU without TensorRT. The one runtime
that needs PyTorch on the vehicle.

The memory stays on the device: what a step gives as new memory is handed back to the next one.
Measured on a CPU; no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import CONSTANT
from recon4d_ros.errors import EngineError


class TorchRuntime:
    """One loaded package."""

    name = "torch"

    def __init__(
        self, model: Path, spec: EngineSpec, memory: Mapping[str, tuple[int, ...]], threads: int = 0
    ) -> None:
        place = str(spec.options.get("device", "cuda"))
        if place == "cuda" and not torch.cuda.is_available():
            raise EngineError("it was compiled for a GPU, and there is none here")
        if threads:
            torch.set_num_threads(threads)
        self._place = torch.device(place)
        self._model = torch._inductor.aoti_load_package(str(model))
        self.device = (
            f"torch {torch.__version__} on"
            f" {torch.cuda.get_device_name() if place == 'cuda' else 'CPU'}, {spec.precision}"
        )
        self._spec = spec
        self._shapes = dict(memory)
        self._constant: dict[str, tuple[NDArray, torch.Tensor]] = {}
        self._memory: dict[str, torch.Tensor] = {}
        self.reset()

    def run(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        """Fills `outputs` from `inputs` (by name, contiguous) and the memory, and steps the
        memory."""
        given = {
            name: self._on_device(name, array) for name, array in inputs.items()
        } | self._memory
        with torch.inference_mode():
            results = dict(
                zip(
                    self._spec.outputs,
                    self._model(*(given[name] for name in self._spec.inputs)),
                    strict=True,
                )
            )
        for name, array in outputs.items():
            np.copyto(array, results[name].cpu().numpy())
        self._memory = {name: results[f"new_{name}"] for name in self._shapes}

    def memory(self, name: str) -> NDArray[np.float32]:
        """One memory tensor on the host (copied there from a GPU)."""
        return self._memory[name].cpu().numpy()

    def remember(self, memory: Mapping[str, NDArray[np.float32]]) -> None:
        self._memory |= {
            name: torch.from_numpy(array).to(self._place, copy=True)
            for name, array in memory.items()
        }

    def reset(self) -> None:
        self._memory = {
            name: torch.zeros(shape, device=self._place) for name, shape in self._shapes.items()
        }

    def gpu_memory(self) -> tuple[float, float]:
        if self._place.type == "cpu":
            return 0.0, 0.0
        free, total = torch.cuda.mem_get_info(self._place)
        return (total - free) / 2**20, total / 2**20

    def close(self) -> None:
        del self._model, self._memory, self._constant

    def _on_device(self, name: str, array: NDArray) -> torch.Tensor:
        """What stays over a drive is copied once."""
        before = self._constant.get(name)
        if before is not None and before[0] is array:
            return before[1]
        tensor = torch.from_numpy(array).to(self._place)
        if name in CONSTANT:
            self._constant[name] = (array, tensor)
        return tensor
