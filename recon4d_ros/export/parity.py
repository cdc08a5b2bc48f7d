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

from recon4d_ros.engine import RUNTIMES
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import rig_partners
from recon4d_ros.types import Calibration

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
    steps = [example_inputs(spec, index) for index in range(STEPS)]
    expected = []
    state = [torch.zeros(shape) for shape in memory.values()]
    with torch.no_grad():
        for inputs in steps:
            result = model(*(torch.from_numpy(array) for array in inputs.values()), *state)
            expected.append([tensor.numpy() for tensor in result])
            state = list(result[4:])
    report: dict[str, Any] = {}
    for name, (module, attribute) in RUNTIMES.items():
        try:
            runtime = getattr(importlib.import_module(module), attribute)(path.read_bytes(), spec, memory)
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


def empty_outputs(spec: EngineSpec) -> dict[str, NDArray]:
    n, (h, w) = spec.cameras, spec.working_size
    outputs: dict[str, NDArray] = {name: np.zeros((n, h, w), np.float32) for name in ("depth", "sigma", "confidence")}
    return outputs | {"color": np.zeros((n, h, w, spec.channels), np.uint8)}


def example_inputs(spec: EngineSpec, index: int) -> dict[str, NDArray]:
    """A wall with texture, 8 m ahead of every camera, seen while the car drives 0.6 m a step sideways to it: rows of one broad noise
    image."""
    n, (height, width), (h, w) = spec.cameras, spec.input_size, spec.working_size
    focal, distance, baseline = 0.7 * w, 8.0, 0.5
    rng = np.random.default_rng(7)
    coarse = rng.random((n if not spec.stereo else 1, height // 4 + 2, width // 2 + 2))
    wide = np.repeat(np.repeat(coarse, 4, 1), 4, 2)[:, :height]
    wide = 0.25 * (wide + np.roll(wide, 1, 1) + np.roll(wide, 1, 2) + np.roll(wide, (1, 1), (1, 2)))
    images = np.empty((n, height, width, spec.channels), np.uint8)
    pose = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
    per_metre = focal * width / w / distance
    for camera in range(n):
        across = 0.6 * index + (baseline * camera if spec.stereo else 0.0)
        pose[camera, 0, 3] = across
        start = round(across * per_metre) % (wide.shape[2] - width)
        images[camera] = (wide[0 if spec.stereo else camera, :, start : start + width, None] * 255).astype(np.uint8)
    v, u = np.meshgrid((np.arange(h) + 0.5) * height / h - 0.5, (np.arange(w) + 0.5) * width / w - 0.5, indexing="ij")
    k = np.array([[focal, 0, (w - 1) / 2], [0, focal, (h - 1) / 2], [0, 0, 1]])
    grid = np.tile(np.stack([u, v], -1)[None], (n, 1, 1, 1)).astype(np.float32)
    moving = np.zeros((n, h, w), np.uint8)
    moving[:, : h // 3, : w // 3] = 1
    inputs: dict[str, NDArray] = {
        "images": images,
        "present": np.ones(n, np.float32),
        "grid": grid,
        "k": np.tile(k[None], (n, 1, 1)).astype(np.float32),
        "pose": pose,
        "anchor_shift": np.zeros(3, np.float32),
        "moving": moving,
    }
    if "partner" in spec.inputs:
        base = np.tile(np.eye(4), (n, 1, 1))
        base[:, 0, 3] = np.arange(n) * baseline
        calibration = Calibration(
            tuple(f"camera_{i}" for i in range(n)), grid, inputs["k"].astype(np.float64), base, spec.input_size, spec.working_size
        )
        inputs["partner"] = rig_partners(calibration, int(spec.options["stride"]))
    return inputs
