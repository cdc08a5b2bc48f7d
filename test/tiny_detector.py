"""A detector of a few nodes, whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper


def tiny_detector(
    model: Path, outputs: dict[str, np.ndarray], description: dict, size=(64, 96), *, open_=False
) -> Path:
    """Says the same of every image; the least of its mean is added, so that it is an input."""
    model.parent.mkdir(parents=True, exist_ok=True)
    value = helper.make_tensor_value_info
    shape = [1, 3, "h", "w"] if open_ else [1, 3, *size]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "tiny"], ["little"]),
    ]
    constants = [numpy_helper.from_array(np.float32(1e-9), "tiny")]
    for name, array in outputs.items():
        constants.append(numpy_helper.from_array(array.astype(np.float32), f"of_{name}"))
        nodes.append(helper.make_node("Add", [f"of_{name}", "little"], [name]))
    graph = helper.make_graph(
        nodes,
        "g",
        [value("images", TensorProto.FLOAT, shape)],
        [value(name, TensorProto.FLOAT, array.shape) for name, array in outputs.items()],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), model)
    model.with_suffix(".yaml").write_text(yaml.safe_dump(description))
    return model


def yolo_table(boxes: list[list[float]], scores: list[list[float]]) -> np.ndarray:
    """[1, 4 + classes, K] as YOLOv8 says boxes (left, top, right, bottom, pixels of its input)."""
    edges, odds = np.array(boxes, float), np.array(scores, float)
    middle, sides = (edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]
    return np.concatenate([middle, sides, odds], 1).T[None]
