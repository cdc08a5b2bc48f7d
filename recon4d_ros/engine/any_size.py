"""An engine of any size: its graph's shapes are written with the sizes as symbols, and a rig's are
put in when it is loaded.

Symbols are H, W (input images) and h, w (working images), in pixels, and n (cameras, where their
number is open too); a dimension is a number or an expression of them such as "h//2" or
"6*(h//32)*(w//32)". The same strings are the names of the dimensions in model.onnx, so that every
runtime can be told their values.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recon4d_ros.errors import EngineError

if TYPE_CHECKING:
    from recon4d_ros.engine.base import EngineSpec

SYMBOLS = ("n", "H", "W", "h", "w")
_OPERATIONS: Mapping[type, Callable[[int, int], int]] = {
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}

Shape = tuple[int | str, ...]


def value_of(dimension: int | str, sizes: Mapping[str, int]) -> int:
    """A dimension as a number. Raises ValueError for what is no such expression."""
    return dimension if isinstance(dimension, int) else _value(_parsed(dimension), sizes)


def _parsed(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise ValueError(f"{expression!r} is no dimension") from None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 0:
        return node.value
    if isinstance(node, ast.Name) and node.id in sizes:
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    raise ValueError(f"{ast.unparse(node)!r} is no dimension")


def sizes_of(spec: EngineSpec) -> dict[str, int]:
    """The symbols' values at the specification's sizes."""
    return dict(zip(SYMBOLS, (spec.cameras, *spec.input_size, *spec.working_size), strict=True))


def input_shapes(spec: EngineSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every input of the graph at the specification's sizes; empty where the
    graph's own shapes are fixed."""
    sizes = sizes_of(spec)
    return {
        name: tuple(value_of(dimension, sizes) for dimension in shape)
        for name, shape in spec.shapes.items()
    }


def dimension_values(spec: EngineSpec) -> dict[str, int]:
    """The value of each named dimension of the graph's inputs at the specification's sizes."""
    sizes = sizes_of(spec)
    return {
        dimension: value_of(dimension, sizes)
        for shape in spec.shapes.values()
        for dimension in shape
        if isinstance(dimension, str)
    }


def at_sizes(
    spec: EngineSpec,
    input_size: tuple[int, int],
    working_size: tuple[int, int],
    cameras: int | None = None,
) -> EngineSpec:
    """The specification of an engine of any size at these sizes; one of fixed sizes as it is.
    cameras: for an engine of any number of them."""
    if not spec.shapes:
        return spec
    spec = dataclasses.replace(
        spec,
        input_size=input_size,
        working_size=working_size,
        cameras=spec.cameras if cameras is None else cameras,
    )
    shapes = input_shapes(spec)
    memory = {name: list(shapes[name]) for name in spec.options["memory"]}
    return dataclasses.replace(spec, options={**spec.options, "memory": memory})


def write_fixed(model: Path, spec: EngineSpec, out: Path) -> None:
    """Writes the ONNX model of an engine of any size with the specification's sizes for good, all
    that follows from them computed: for runtimes that build a graph of fixed sizes (TensorRT).
    Copies one of fixed sizes. Takes ONNX Runtime. Raises EngineError."""
    if not spec.shapes:
        out.write_bytes(model.read_bytes())
        return
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineError(
            f"{model.name} is of any size, and to fix it takes ONNX Runtime, which is not installed"
            f" here ({error}): pip install onnxruntime"
        ) from None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    override(options, spec)
    try:
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own types, none of them public
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"{model.name} cannot be fixed to its sizes: {reason}") from error


def override(options: object, spec: EngineSpec) -> None:
    """Tells ONNX Runtime's session options the values of the graph's named dimensions."""
    for name, value in dimension_values(spec).items():
        options.add_free_dimension_override_by_name(name, value)  # type: ignore[attr-defined]


def check_shapes(shapes: Mapping[str, Sequence[int | str]]) -> dict[str, Shape]:
    """The field `shapes` of engine.yaml, checked. Raises ValueError, TypeError."""
    ones = dict.fromkeys(SYMBOLS, 2**20)
    for shape in shapes.values():
        for dimension in shape:
            if not isinstance(dimension, int | str) or value_of(dimension, ones) < 1:
                raise ValueError(f"{dimension!r} is no dimension")
    return {str(name): tuple(shape) for name, shape in shapes.items()}
