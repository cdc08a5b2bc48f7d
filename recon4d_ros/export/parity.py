"""Does a runtime compute what PyTorch computes? Every output over a few steps of a moving, textured scene, each stream on its own
memory."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recon4d_ros.engine import CPU_RUNTIMES, RUNTIMES
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import empty_outputs
from recon4d_ros.export.compare import inputs_of

STEPS = 3
REPEATS = 5  # of the timing
# A value differs when it is off by more than this: relative to depth and sigma, absolute for the others. Runtimes order sums differently,
# so a pixel whose two best planes tie to the last bit may choose the other one: parity is the share of values, not the worst value.
RELATIVE = {"depth": 0.01, "sigma": 0.05}
ABSOLUTE = {"confidence": 0.02, "color": 1.5}


def measure_parity(model: torch.nn.Module, path: Path, spec: EngineSpec) -> dict[str, Any]:
    """Per installed runtime: share of values that differ from PyTorch, per output (the worst step), the worst of them, and milliseconds a
    step."""
    memory = {name: tuple(shape) for name, shape in spec.options["memory"].items()}
    steps = [inputs_of(spec, index) for index in range(STEPS)]
    expected = []
    state = [torch.zeros(shape) for shape in memory.values()]
    with torch.no_grad():
        for inputs in steps:
            result = model(*(torch.from_numpy(array) for array in inputs.values()), *state)
            expected.append([tensor.numpy() for tensor in result])
            state = list(result[4:])
    report: dict[str, Any] = {}
    for name in CPU_RUNTIMES:
        module, attribute = RUNTIMES[name]
        try:
            runtime = getattr(importlib.import_module(module), attribute)(path, spec, memory)
        except ImportError:
            continue
        differs: dict[str, float] = {}
        for inputs, truth in zip(steps, expected, strict=True):
            outputs = empty_outputs(spec)
            runtime.run(inputs, outputs)
            for index, key in enumerate(outputs):
                differs[key] = max(differs.get(key, 0.0), share_off(key, outputs[key], truth[index]))
            for index, key in enumerate(memory):
                if key in ("pointer_valid", "token_weight"):
                    differs[key] = max(differs.get(key, 0.0), share_off(key, runtime.memory(key), truth[4 + index]))
        times = []
        for index in range(REPEATS):
            start = time.perf_counter()
            runtime.run(steps[index % STEPS], outputs)
            times.append(time.perf_counter() - start)
        report[name] = {
            "milliseconds": round(float(np.median(times)) * 1e3, 2),
            "worst": max(differs.values()),
            "differs": {key: round(value, 6) for key, value in differs.items()},
        }
        runtime.close()
    return report


def share_off(name: str, got: NDArray, truth: NDArray) -> float:
    """Share of values that differ by more than the tolerance of their name."""
    a, b = got.astype(np.float64), truth.astype(np.float64)
    if name in RELATIVE:
        off = np.abs(a - b) > RELATIVE[name] * np.maximum(np.abs(b), 1e-3)
    else:
        off = np.abs(a - b) > ABSOLUTE.get(name, 0.02)
    return float(off.mean())
