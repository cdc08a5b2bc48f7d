"""A TensorFlow.js graph model as ONNX, without TensorFlow: the operators of convolutional detectors
that were converted to it, no others.

A graph model is a model.json (a TensorFlow GraphDef as JSON, and where each weight lies) and its
binary weights. The graph here computes what that one does, node by node; TensorFlow's images have
their channels last, so that transpositions go around what ONNX has for channels first (the runtimes
cancel them).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from recon4d_ros.errors import EngineError

OPSET, IR = 17, 9
TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def convert(model: Path, weights: Path, out: Path) -> None:
    """model.json and its one weights file -> an ONNX file. Raises EngineError for what it does not
    know."""
    tree = json.loads(model.read_text(encoding="utf-8"))
    graph = Graph(read_weights(tree["weightsManifest"], weights.read_bytes()))
    for node in tree["modelTopology"]["node"]:
        graph.know(node)
    written = graph.write(tree["signature"])
    onnx.checker.check_model(written)
    onnx.save(written, out)


def read_weights(manifest: Any, data: bytes) -> dict[str, NDArray]:
    """By name. float16 where the manifest says so, as float32."""
    found, at = {}, 0
    for weight in (one for group in manifest for one in group["weights"]):
        quantized = weight.get("quantization", {}).get("dtype")
        if quantized not in (None, "float16") or weight["dtype"] not in ("float32", "int32"):
            raise EngineError(
                f"{weight['name']}: {quantized or weight['dtype']}: expected weights in float32,"
                " float16 or int32"
            )
        kind = np.dtype("<f2" if quantized else {"float32": "<f4", "int32": "<i4"}[weight["dtype"]])
        count = int(np.prod(weight["shape"], dtype=np.int64))
        size = count * kind.itemsize
        if at + size > len(data):
            raise EngineError(f"{weight['name']}: the weights end before it")
        values = np.frombuffer(data[at : at + size], kind).reshape(weight["shape"])
        found[weight["name"]] = values.astype(np.float32 if kind.kind == "f" else np.int64)
        at += size
    if at != len(data):
        raise EngineError(f"the weights have {len(data)} bytes: expected {at}")
    return found


class Graph:
    """A GraphDef's nodes, written as ONNX from the outputs on."""

    def __init__(self, weights: Mapping[str, NDArray]) -> None:
        self._weights = weights
        self._nodes: dict[str, Mapping[str, Any]] = {}
        self._constants: dict[str, NDArray] = {}
        self._done: dict[str, str] = {}
        self._out: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def know(self, node: Mapping[str, Any]) -> None:
        self._nodes[node["name"]] = node

    def write(self, signature: Mapping[str, Any]) -> onnx.ModelProto:
        outputs: list[onnx.ValueInfoProto] = []
        for name, entry in signature["outputs"].items():
            shape = [int(one["size"]) for one in entry["tensorShape"]["dim"]]
            made = self._tensor(name.split(":")[0])
            own = f"output_{len(outputs)}"
            self._emit("Identity", [made], own)
            outputs.append(helper.make_tensor_value_info(own, TensorProto.FLOAT, shape))
        graph = helper.make_graph(
            self._out, "tfjs", self._inputs, outputs, list(self._initializers.values())
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR)

    def _constant(self, name: str) -> NDArray:
        """The value of a tensor that depends on no input. Raises EngineError."""
        if name not in self._constants:
            node = self._node(name)
            op, given = node["op"], node.get("input", [])
            if op == "Const":
                self._constants[name] = self._weights[name]
            elif op == "SparseToDense":
                indices, shape, values, default = (self._constant(_plain(one)) for one in given)
                dense = np.full(shape.reshape(-1), default)
                if values.size:
                    places = indices.reshape(values.size, -1)
                    dense[tuple(places.T)] = values.reshape(-1)
                self._constants[name] = dense
            elif op in ("Add", "AddV2"):
                a, b = (self._constant(_plain(one)) for one in given)
                self._constants[name] = a + b
            else:
                raise EngineError(f"{name}: {op} in place of a constant is not known")
        return self._constants[name]

    def _node(self, name: str) -> Mapping[str, Any]:
        if name not in self._nodes:
            raise EngineError(f"the graph has no node {name}")
        return self._nodes[name]

    def _tensor(self, reference: str) -> str:
        """The ONNX name of a tensor, which is written first if it is not yet."""
        name = _plain(reference)
        _, _, which = reference.partition(":")
        pending = [name]
        while pending:  # no recursion: a network is deeper than Python's stack is sure to be
            node = self._node(pending[-1])
            missing = [_plain(one) for one in self._fed(node) if _plain(one) not in self._done]
            if pending[-1] in self._done or not missing:
                one = pending.pop()
                if one not in self._done:
                    self._write_node(one, node)
            else:
                pending += missing
        return self._done[name] if not which or which == "0" else f"{self._done[name]}_{which}"

    def _fed(self, node: Mapping[str, Any]) -> list[str]:
        """Those inputs that are tensors: what says how is a constant."""
        given = list(node.get("input", []))
        count = {"ConcatV2": len(given) - 1, "Add": 2, "AddV2": 2, "Const": 0, "Placeholder": 0}
        return given[: count.get(node["op"], 1)]

    def _emit(self, op: str, inputs: list[str], output: str | list[str], **attributes: Any) -> str:
        outputs = [output] if isinstance(output, str) else output
        self._out.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]

    def _keep(self, values: NDArray, name: str) -> str:
        self._initializers.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def _write_node(self, name: str, node: Mapping[str, Any]) -> None:
        write: Callable[..., str] | None = getattr(self, f"_{node['op'].lower()}", None)
        if write is None:
            raise EngineError(f"{name}: operator {node['op']} is not known")
        self._done[name] = write(_safe(name), node, node.get("attr", {}), node.get("input", []))

    # --- one operator each: (ONNX name, node, attributes, inputs) -> the ONNX name of its tensor

    def _const(self, me: str, node: Any, attr: Any, given: Any) -> str:
        return self._keep(self._constant(node["name"]), me)

    def _placeholder(self, me: str, node: Any, attr: Any, given: Any) -> str:
        shape = [int(one["size"]) for one in attr["shape"]["shape"]["dim"]]
        self._inputs.append(helper.make_tensor_value_info(me, TensorProto.FLOAT, shape))
        return me

    def _identity(self, me: str, node: Any, attr: Any, given: Any) -> str:
        return self._tensor(given[0])

    def _add(self, me: str, node: Any, attr: Any, given: Any) -> str:
        return self._emit("Add", [self._tensor(one) for one in given], me)

    _addv2 = _add

    def _sigmoid(self, me: str, node: Any, attr: Any, given: Any) -> str:
        return self._emit("Sigmoid", [self._tensor(given[0])], me)

    def _leakyrelu(self, me: str, node: Any, attr: Any, given: Any) -> str:
        slope = float(attr["alpha"]["f"])
        return self._emit("LeakyRelu", [self._tensor(given[0])], me, alpha=slope)

    def _transpose(self, me: str, node: Any, attr: Any, given: Any) -> str:
        order = self._constant(_plain(given[1])).tolist()
        return self._emit("Transpose", [self._tensor(given[0])], me, perm=order)

    def _reshape(self, me: str, node: Any, attr: Any, given: Any) -> str:
        shape = self._keep(self._constant(_plain(given[1])).astype(np.int64), f"{me}_shape")
        return self._emit("Reshape", [self._tensor(given[0]), shape], me)

    def _concatv2(self, me: str, node: Any, attr: Any, given: Any) -> str:
        axis = int(self._constant(_plain(given[-1])))
        return self._emit("Concat", [self._tensor(one) for one in given[:-1]], me, axis=axis)

    def _splitv(self, me: str, node: Any, attr: Any, given: Any) -> str:
        sizes = self._keep(self._constant(_plain(given[1])).astype(np.int64), f"{me}_sizes")
        names = [me, *(f"{me}_{i}" for i in range(1, int(attr["num_split"]["i"])))]
        axis = int(self._constant(_plain(given[2])))
        return self._emit("Split", [self._tensor(given[0]), sizes], names, axis=axis)

    def _pad(self, me: str, node: Any, attr: Any, given: Any) -> str:
        pads = self._constant(_plain(given[1])).astype(np.int64)
        fill = self._constant(_plain(given[2])) if len(given) > 2 else np.zeros(())
        value = self._keep(np.array(fill, np.float32).reshape(()), f"{me}_value")
        around = self._keep(pads.T.reshape(-1).copy(), f"{me}_pads")
        return self._emit("Pad", [self._tensor(given[0]), around, value], me)

    _padv2 = _pad

    def _conv2d(self, me: str, node: Any, attr: Any, given: Any) -> str:
        kernel = self._constant(_plain(given[1]))
        filters = self._keep(kernel.transpose(3, 2, 0, 1).copy(), f"{me}_filter")
        group = 1
        return self._between(
            me,
            given[0],
            "Conv",
            [filters],
            kernel_shape=list(kernel.shape[:2]),
            strides=_sides(attr["strides"]),
            dilations=_sides(attr["dilations"]) if "dilations" in attr else [1, 1],
            auto_pad=_padding(attr),
            group=group,
        )

    def _maxpool(self, me: str, node: Any, attr: Any, given: Any) -> str:
        return self._between(
            me,
            given[0],
            "MaxPool",
            [],
            kernel_shape=_sides(attr["ksize"]),
            strides=_sides(attr["strides"]),
            auto_pad=_padding(attr),
        )

    def _resizebilinear(self, me: str, node: Any, attr: Any, given: Any) -> str:
        if not attr.get("half_pixel_centers", {}).get("b") or attr.get("align_corners", {}).get(
            "b"
        ):
            raise EngineError(f"{node['name']}: ResizeBilinear is known with half pixels only")
        size = self._constant(_plain(given[1])).astype(np.int64).tolist()
        factors = self._keep(np.array([], np.float32), "no_scales")
        # sizes of all four dimensions: those of batch and channels are asked of the tensor
        first = self._emit("Transpose", [self._tensor(given[0])], f"{me}_first", perm=TO_FIRST)
        shape = self._emit("Shape", [first], f"{me}_shape", end=2)
        sides = self._keep(np.array(size, np.int64), f"{me}_sides")
        sizes = self._emit("Concat", [shape, sides], f"{me}_sizes", axis=0)
        self._emit(
            "Resize",
            [first, "", factors, sizes],
            f"{me}_resized",
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        return self._emit("Transpose", [f"{me}_resized"], me, perm=TO_LAST)

    def _between(self, me: str, given: str, op: str, more: list[str], **attributes: Any) -> str:
        """An operator of images with their channels last."""
        first = self._emit("Transpose", [self._tensor(given)], f"{me}_first", perm=TO_FIRST)
        self._emit(op, [first, *more], f"{me}_made", **attributes)
        return self._emit("Transpose", [f"{me}_made"], me, perm=TO_LAST)


def _plain(reference: str) -> str:
    """A tensor's node."""
    return reference.lstrip("^").partition(":")[0]


def _safe(name: str) -> str:
    return name.replace("/", ".")


def _sides(attribute: Mapping[str, Any]) -> list[int]:
    """Height and width of [batch, height, width, channels]."""
    return [int(one) for one in attribute["list"]["i"]][1:3]


def _padding(attr: Mapping[str, Any]) -> str:
    kind = base64.b64decode(attr["padding"]["s"]).decode()
    if kind not in ("VALID", "SAME"):
        raise EngineError(f"padding {kind} is not known")
    return "SAME_UPPER" if kind == "SAME" else "VALID"
