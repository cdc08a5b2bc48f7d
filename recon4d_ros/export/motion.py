"""The motion network as ONNX, for any number of cameras and any grid."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from recon4d_ros.dynamics.motion_inputs import MULTIPLE
from recon4d_ros.engine import CPU_RUNTIMES
from recon4d_ros.engine.base import (
    MOTION,
    SPEC_FILE,
    EngineSpec,
    sha256_of,
)
from recon4d_ros.engine.motion import PROBABILITY
from recon4d_ros.export import MOTION as MOTION_NETWORK
from recon4d_ros.export.compare import compare_apart
from recon4d_ros.export.graph import builders, write_graph
from recon4d_ros.export.parity import check_parity, in_shares
from recon4d_ros.export.reference import from_pytorch
from recon4d_ros.networks.motion import STATE, frame_inputs, load_network, memory_shapes

CAMERAS, GRID = 6, (96, 160)
"""What it is measured at."""

LARGEST = 128
"""Sides of the grid are so many times MULTIPLE at most."""

MOST_CAMERAS = 64


def write_motion(folder: Path, checkpoint: Path) -> EngineSpec:
    """Writes the graph into `folder` and holds every runtime that is there against PyTorch. Raises
    EngineError."""
    network = load_network(checkpoint)
    frame, memory = frame_inputs(CAMERAS, *GRID), memory_shapes(CAMERAS, *GRID)
    shapes: dict[str, tuple[int | str, ...]] = {}
    for name, size in ({name: size for name, (_, size) in frame.items()} | memory).items():
        tail: tuple[int | str, ...] = tuple(size[1:])
        if size[-2:] == GRID:
            tail = (*size[1:-2], "h", "w")
        shapes[name] = ("n", *tail)
    high, wide = (torch.export.Dim(name, min=2, max=LARGEST) for name in ("high", "wide"))
    dims = {
        "n": torch.export.Dim("n", min=1, max=MOST_CAMERAS),
        "h": MULTIPLE * high,
        "w": MULTIPLE * wide,
    }
    inputs, outputs = write_graph(
        folder / "model.onnx", network, frame, memory, (PROBABILITY,), shapes, dims
    )
    spec = EngineSpec(
        network=MOTION_NETWORK,
        config=MOTION,
        runtime="openvino",
        cameras=CAMERAS,
        input_size=GRID,
        channels=1,
        working_size=GRID,
        pointers=0,
        feature=STATE,
        precision="fp32",
        model="model.onnx",
        model_sha256=sha256_of(folder / "model.onnx"),
        checkpoint_sha256=sha256_of(checkpoint),
        inputs=inputs,
        outputs=outputs,
        options={"memory": {name: list(size) for name, size in memory.items()}},
        versions=builders(),
        extra_outputs={PROBABILITY: (CAMERAS, *GRID)},
        shapes=shapes,
    )
    spec.save(folder / SPEC_FILE)
    parity = {}
    with tempfile.TemporaryDirectory(prefix="recon4d_") as scratch:
        reference = Path(scratch) / "reference.npz"
        from_pytorch(reference, network, spec)
        for runtime in CPU_RUNTIMES:
            report = compare_apart(folder, runtime, reference)
            parity[runtime] = report if "error" in report else in_shares(report)
    check_parity(parity, spec)
    return replace(spec, parity=parity)
