"""Is every operator of an ONNX graph one that TensorRT's ONNX parser takes? Against a table kept as
data (tensorrt_operators.yaml)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import yaml
from onnx import TensorProto

TABLE = Path(__file__).with_name("tensorrt_operators.yaml")
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}
DATA_INPUT = {"Where": 1}  # the input whose type counts, if not the first
MADE = ("ConstantOfShape", "EyeLike")  # it is the output's type that counts: the input says a size
REDUCTIONS = (
    "none",
    "add",
    "mul",
    "max",
    "min",
)  # of ScatterElements; all but the first by a plugin that TensorRT brings
LOOPS = ("Loop", "Scan", "If")  # taken, but a CUDA graph cannot hold them


@dataclass(frozen=True)
class OperatorReport:
    """source: of the table. operators: name -> how often. problems: one sentence per kind of
    operator that is not taken as it is used. plugins: how many of the operators TensorRT runs in
    its own plugins, which have to be loaded."""

    source: str
    operators: dict[str, int]
    problems: tuple[str, ...]
    plugins: int

    @property
    def cuda_graph(self) -> bool:
        return not any(name in self.operators for name in LOOPS)


def check_operators(model: Path) -> OperatorReport:
    """Compares the graph's operators, their types and the restrictions that a graph of ours can
    meet with the table."""
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    proto = onnx.load(str(model), load_external_data=False)
    proto = onnx.shape_inference.infer_shapes(proto)
    types: dict[str, int] = {}
    values: dict[str, onnx.TensorProto] = {}
    for graph in _graphs(proto.graph):
        types |= {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        types |= {value.name: value.data_type for value in graph.initializer}
        values |= {value.name: value for value in graph.initializer}
    found: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    opset = next(
        (entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    first, last = table["opsets"]
    if not first <= opset <= last:
        problems[f"opset {opset}: expected {first} to {last}"] += 1
    for graph in _graphs(proto.graph):
        for node in graph.node:
            found[node.op_type] += 1
            for problem in _problems(node, table, types, values):
                problems[problem] += 1
    said = tuple(f"{text} ({count} times)" for text, count in sorted(problems.items()))
    plugins = sum(
        node.op_type == "ScatterElements" and _reduction(node) != "none"
        for graph in _graphs(proto.graph)
        for node in graph.node
    )
    return OperatorReport(table["source"], dict(sorted(found.items())), said, plugins)


def _problems(
    node: onnx.NodeProto,
    table: dict[str, Any],
    types: dict[str, int],
    values: dict[str, onnx.TensorProto],
) -> Iterator[str]:
    allowed = table["operators"].get(node.op_type, "unknown")
    if node.domain not in ("", "ai.onnx"):
        yield f"{node.domain}.{node.op_type} is no operator of ONNX"
        return
    if node.op_type == "Constant":
        return
    if allowed is None or allowed == "unknown":
        yield f"{node.op_type} is not taken"
        return
    place = DATA_INPUT.get(node.op_type, 0)
    named = node.output[:1] if node.op_type in MADE else node.input[place : place + 1]
    for name in named:
        kind = types.get(name, TensorProto.UNDEFINED)
        said = TYPES.get(kind, TensorProto.DataType.Name(kind))
        if said not in allowed:
            yield f"{node.op_type} of {said} is not taken: expected {', '.join(allowed)}"
    if node.op_type == "ScatterElements":
        if _reduction(node) not in REDUCTIONS:
            yield f"ScatterElements with reduction {_reduction(node)} is not taken"
    if node.op_type == "TopK":
        number = values.get(node.input[1])
        count = (
            int(onnx.numpy_helper.to_array(number).reshape(-1)[0]) if number is not None else None
        )
        if count is not None and count > table["largest_k"]:
            yield f"TopK of {count}: expected {table['largest_k']} at most"
        if any(attribute.name == "sorted" and attribute.i == 0 for attribute in node.attribute):
            yield "TopK that is not sorted is not taken"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        zero = values.get(node.input[2])
        if zero is None or onnx.numpy_helper.to_array(zero).any():
            yield f"{node.op_type} with a zero point that is not 0 is not taken"
    if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
        yield "LayerNormalization with more than one output is not taken"
    if node.op_type == "MaxPool" and len([name for name in node.output if name]) > 1:
        yield "MaxPool with indices is not taken"


def _reduction(node: onnx.NodeProto) -> str:
    return next(
        (attribute.s.decode() for attribute in node.attribute if attribute.name == "reduction"),
        "none",
    )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
