"""Is what ONNX Runtime computes of an exported step what PyTorch computes?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recon4d_ros.export.graph import write_graph  # noqa: E402
from recon4d_ros.export.parity import HOLES, difference  # noqa: E402
from recon4d_ros.networks.step import OUTPUTS  # noqa: E402

TOLERANCE = 1e-3
"""Largest relative norm of an output's difference, of the values that both have."""


def check_graph(
    step: Any, frames: Sequence[dict[str, Any]], expected: Sequence[dict], path: Path
) -> None:
    """Exports as production does and runs every frame from PyTorch's own memory.

    A depth within rounding of a threshold is none on one processor and something on another: the
    share of such values is bounded, and they are left out of the norm.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    memory = step.memory_shapes()
    outputs = [*OUTPUTS, *step.extra_outputs]
    inputs, names = write_graph(path, step, step.frame_inputs(), memory, outputs)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    state = {name: np.zeros(shape, np.float32) for name, shape in memory.items()}
    for frame, wanted in zip(frames, expected, strict=True):
        feed = {name: state[name] if name in memory else frame[name].numpy() for name in inputs}
        for name, theirs in zip(names, session.run(list(names), feed), strict=True):
            ours = wanted[name.removeprefix("new_") if name not in wanted else name].numpy()
            found = difference(name, theirs, ours, step.options.working_size[1])
            assert found["holes"] <= HOLES["fp32"], f"{name}: none on one side only"
            bound = TOLERANCE + 1e-6 / max(float(np.linalg.norm(ours)), 1e-9)
            assert found["relative"] <= bound, name
        state = {name: wanted[name].numpy() for name in memory}
