"""The engine that says what moves (networks/motion.py): its host's side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.engine import CPU_RUNTIMES, MODEL_OF, start_runtime
from recon4d_ros.engine.any_size import at_sizes
from recon4d_ros.engine.base import MOTION, EngineSpec, load_spec, source_spec
from recon4d_ros.engine.hosted import Runtime
from recon4d_ros.errors import EngineError

PROBABILITY = "probability"


def load_motion(
    folder: str | os.PathLike[str],
    cameras: int,
    size: tuple[int, int],
    runtime: str = "",
    threads: int = 0,
) -> MotionEngine:
    """An engine ready to step, for so many cameras on a grid of `size` (h, w); arguments and errors
    as `recon4d_ros.engine.load`. runtime: what the reconstruction's engine runs on; where this one
    is not built for it (TensorRT, when only the other is), its own."""
    folder = Path(folder)
    spec = load_spec(folder)
    where = f"engine {folder}"
    if spec.config != MOTION:
        raise EngineError(
            f"{where}: {spec.network} ({spec.config}) does not say what moves: expected an engine"
            " of recon4d_motion"
        )
    spec = motion_at(spec, cameras, size)
    if (spec.cameras, spec.working_size) != (cameras, size):
        raise EngineError(
            f"{where}: is built for {spec.cameras} camera(s) and a {_size(spec.working_size)} grid:"
            f" this rig has {cameras} on {_size(size)}; export it again with --rig"
        )
    return MotionEngine(spec, start_runtime(folder, spec, suited(spec, runtime), threads), where)


def suited(spec: EngineSpec, runtime: str) -> str:
    """`runtime` where the engine's model is one that it runs, else "": the engine's own."""
    if runtime in CPU_RUNTIMES and source_spec(spec) is not None:
        return runtime
    built_for = spec.runtime if spec.model.endswith(".engine") else runtime
    runs = spec.model.endswith(MODEL_OF.get(runtime, ".onnx")) and built_for == runtime
    return runtime if runs else ""


def motion_at(spec: EngineSpec, cameras: int, size: tuple[int, int]) -> EngineSpec:
    """The specification for so many cameras on a grid of `size` (h, w), where it is open."""
    if not spec.shapes:
        return spec
    spec = at_sizes(spec, size, size, cameras)
    return replace(spec, extra_outputs={PROBABILITY: (cameras, *size)})


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


class MotionEngine:
    """One loaded engine with its memory. Not thread-safe: one caller steps it, in the order of the
    frames."""

    def __init__(self, spec: EngineSpec, runtime: Runtime, where: str) -> None:
        self.spec = spec
        self.forgotten = 0
        """How often the memory held what is not finite, and was therefore forgotten."""
        self._runtime, self._where = runtime, where
        self._memory = tuple(spec.options["memory"])

    @property
    def device(self) -> str:
        """What runs it on what."""
        return self._runtime.device

    def reset(self) -> None:
        """Forgets everything seen."""
        self._runtime.reset()

    def step(self, inputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Probability [n, h, w] that a pixel shows what moves over the ground. inputs: contiguous
        arrays by the names of networks.motion.Look, whose docstring has shapes and units. Raises
        EngineError if one is missing."""
        missing = [
            name for name in self.spec.inputs if name not in inputs and name not in self._memory
        ]
        if missing:
            raise EngineError(f"{self._where}: its input {missing[0]} was not given")
        probability = np.empty((self.spec.cameras, *self.spec.working_size), np.float32)
        self._runtime.run(inputs, {PROBABILITY: probability})
        if not np.isfinite(probability).all() or not all(
            np.isfinite(self._runtime.memory(name)).all() for name in self._memory
        ):  # it would stay in the memory and spread
            self.forgotten += 1
            self.reset()
            return np.zeros_like(probability)
        return probability

    def close(self) -> None:
        self._runtime.close()
