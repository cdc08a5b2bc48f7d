"""Engines of objects and of occupancy of a few nodes, whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recon4d_ros.engine.base import EngineSpec, sha256_of

SIZE = (32, 48)
CLASSES = ("car", "pedestrian")
MOUNTING = {"lidar_x": 1.0, "lidar_y": 0.0, "lidar_z": 1.8, "lidar_yaw": -90.0}
GRID = {
    "rows": 4,
    "columns": 4,
    "low": [-10.0, -10.0, -2.0],
    "high": [10.0, 10.0, 2.0],
    "cells_in_view": 16,
    "cameras_per_cell": 2,
    "mended_shift": 1,
    "lidar": [0.0, 0.0, 1.8],
    "trained_cameras": [0.0, 0.0],
}
VOXELS = (6, 6, 4)


def object_engine(
    folder: Path,
    boxes: Sequence[Sequence[float]],
    velocity: Sequence[Sequence[float]],
    labels: Sequence[int],
    input_size: tuple[int, int],
    cameras: int = 2,
    channels: int = 1,
    **options: Any,
) -> EngineSpec:
    """Says the same objects in every frame: boxes [D, 7] and velocity [D, 3] in the lidar frame;
    their ids are 5, 6, ..., all scores 0.9 and 0.8."""
    count = len(boxes)
    outputs = {
        "boxes": np.array(boxes, np.float32).reshape(count, 7),
        "velocity": np.array(velocity, np.float32).reshape(count, 3),
        "scores": np.full(count, 0.8, np.float32),
        "class_scores": np.full(count, 0.9, np.float32),
        "labels": np.array(labels, np.float32),
        "ids": np.stack([np.zeros(count), np.arange(5, 5 + count)], 1).astype(np.float32),
    }
    inputs = {
        **_frames(cameras, input_size, channels),
        "projection": (TensorProto.FLOAT, [cameras, 4, 4]),
        "lidar_motion": (TensorProto.FLOAT, [4, 4]),
        "seconds": (TensorProto.FLOAT, [1]),
    }
    every = {
        "classes": list(CLASSES),
        "id_base": 2**20,
        "views": 2,
        "trained_cameras": cameras,
        **MOUNTING,
        **options,
    }
    return _engine(folder, "sparse4d", "objects", inputs, outputs, {"count": [1]}, every, channels)


def occupancy_engine(
    folder: Path,
    score: np.ndarray,
    input_size: tuple[int, int],
    cameras: int = 2,
    channels: int = 1,
) -> EngineSpec:
    """Says the same score [X, Y, Z] of VOXELS in every frame."""
    cells = GRID["rows"] * GRID["columns"]
    inputs = {
        **_frames(cameras, input_size, channels),
        "can_bus": (TensorProto.FLOAT, [18]),
        "shift": (TensorProto.FLOAT, [2, 2]),
        "from_cell": (TensorProto.INT32, [cells]),
        "cell": (TensorProto.INT32, [cameras, GRID["cells_in_view"]]),
        "point": (TensorProto.FLOAT, [cameras, GRID["cells_in_view"], 4, 2]),
        "slot": (TensorProto.INT32, [cells, GRID["cameras_per_cell"]]),
        "place": (TensorProto.INT32, [cameras]),
    }
    outputs = {"occupancy": score.astype(np.float32)}
    memory = {"bev": [cells, 2]}
    return _engine(folder, "uniscene", "occupancy", inputs, outputs, memory, dict(GRID), channels)


def _frames(cameras: int, size: tuple[int, int], channels: int) -> dict[str, Any]:
    return {
        "images": (TensorProto.UINT8, [cameras, *size, channels]),
        "present": (TensorProto.FLOAT, [cameras]),
        "grid": (TensorProto.FLOAT, [cameras, *SIZE, 2]),
    }


def _engine(
    folder: Path,
    network: str,
    config: str,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, np.ndarray],
    memory: Mapping[str, list[int]],
    options: dict[str, Any],
    channels: int,
) -> EngineSpec:
    folder.mkdir()
    value = helper.make_tensor_value_info
    constants = [numpy_helper.from_array(array, f"of_{name}") for name, array in outputs.items()]
    nodes = [helper.make_node("Identity", [f"of_{name}"], [name]) for name in outputs]
    nodes += [helper.make_node("Identity", [name], [f"new_{name}"]) for name in memory]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            *(value(name, kind, shape) for name, (kind, shape) in inputs.items()),
            *(value(name, TensorProto.FLOAT, shape) for name, shape in memory.items()),
        ],
        [
            *(value(name, TensorProto.FLOAT, array.shape) for name, array in outputs.items()),
            *(value(f"new_{name}", TensorProto.FLOAT, shape) for name, shape in memory.items()),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    cameras, *size, _ = inputs["images"][1]
    spec = EngineSpec(
        network,
        config,
        "onnxruntime",
        cameras,
        (size[0], size[1]),
        channels,
        SIZE,
        0,
        0,
        "fp32",
        "model.onnx",
        sha256_of(folder / "model.onnx"),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        options={**options, "memory": dict(memory)},
        extra_outputs={name: array.shape for name, array in outputs.items()},
    )
    spec.save(folder / "engine.yaml")
    return spec
