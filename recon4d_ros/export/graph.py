"""A PyTorch step as an ONNX file of static shapes, checked; the weights of a large one lie beside
it."""

from __future__ import annotations

import ast
import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer

from recon4d_ros.networks.step import Signature

OPSET = 18
OPSET_BF16 = 22  # the first in which a convolution may be of bfloat16
LARGEST_IN_ONE_FILE = 512 << 20  # bytes of weights; a protobuf cannot hold 2 GiB
BUILDERS = ("torch", "onnx", "onnx-ir", "onnxscript", "openvino", "onnxruntime")


def write_graph(
    path: Path,
    step: torch.nn.Module,
    frame: Signature,
    memory: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    symbolic: Mapping[str, Sequence[int | str]] | None = None,
    dims: Mapping[str, Any] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Writes model.onnx (and model.onnx.data); gives the names of the graph's inputs and outputs,
    in order: `outputs`, then new_ and the memory's names.

    symbolic: the inputs' shapes where they are not fixed, a name for each dimension that is none;
    dims: torch.export.Dim (or a multiple of one) of each name.
    """
    example = tuple(torch.zeros(shape, dtype=dtype) for dtype, shape in frame.values()) + tuple(
        torch.zeros(tuple(shape)) for shape in memory.values()
    )
    input_names = [*frame, *memory]
    output_names = [*outputs, *(f"new_{name}" for name in memory)]
    size = sum(value.numel() * value.element_size() for value in step.state_dict().values())
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        _quiet("torch.onnx"),
        _quiet("onnxscript"),
        _uncollected(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _traced(step, example, [*map(symbolic.get, input_names)], dims) if symbolic else step,
            () if symbolic else example,
            dynamo=True,
            opset_version=opset_of(step),
            input_names=input_names,
            output_names=output_names,
            verbose=False,
            optimize=False,
        )
        assert program is not None
        _simplify(program.model)
        for value, name in zip(program.model.graph.inputs, input_names, strict=True):
            value.name = name  # one that is an output too had the output's name
        program.save(str(path), external_data=size > LARGEST_IN_ONE_FILE)
    del program
    _clean(path, symbolic or {})
    onnx.checker.check_model(str(path), full_check=True)
    return tuple(input_names), tuple(output_names)


def opset_of(step: torch.nn.Module) -> int:
    """The opset that a step's graph is written in."""
    lowered = any(
        isinstance(module, torch.nn.Conv2d) and module.weight.dtype == torch.bfloat16
        for module in step.modules()
    )
    return OPSET_BF16 if lowered else OPSET


def _traced(
    step: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    shapes: Sequence[Sequence[int | str] | None],
    dims: Mapping[str, Any] | None,
) -> torch.export.ExportedProgram:
    """The step with its named dimensions open."""
    assert dims is not None
    open_ = tuple(
        {axis: dims[size] for axis, size in enumerate(shape or ()) if isinstance(size, str)}
        for shape in shapes
    )
    return torch.export.export(
        step,
        example,
        dynamic_shapes=(open_,),
        # sizes that follow from each other (cells, volumes) are the step's own affair
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def builders() -> dict[str, str]:
    """The versions of what builds engines here."""
    found = {}
    for name in BUILDERS:
        with contextlib.suppress(ImportError):
            found[name] = version(name)
    return found | {"opset": str(OPSET)}


def _simplify(model: onnx_ir.Model) -> None:
    """Folds constants, and drops what nobody reads or what is there twice: the exporter's own
    passes without its rewrite rules, which hold every node against every other one (a pattern with
    two outputs): 13 of 14 seconds for Point3R at toy size with one camera, growing with the square
    of the graph, for 9 of 1,821 nodes. Runtimes have such rules themselves."""
    optimizer.inline(model)
    for _ in range(2):  # what is folded first tells types and shapes that more can be folded by
        optimizer.fold_constants(model)
        optimizer.remove_unused_nodes(model)
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


def _clean(path: Path, symbolic: Mapping[str, Sequence[int | str]]) -> None:
    """Names the nodes after the modules they came from, `module/node`, and takes away where in our
    source that was, which is of no use to a runtime and ties the file to this machine's paths."""
    model = onnx.load(str(path), load_external_data=False)
    if symbolic:
        for value in model.graph.input:
            for entry, size in zip(
                value.type.tensor_type.shape.dim, symbolic[value.name], strict=True
            ):
                if isinstance(size, str):
                    entry.dim_param = size
        del model.graph.value_info[:]  # with the tracer's names for them
        for value in model.graph.output:
            for entry in value.type.tensor_type.shape.dim:
                if entry.HasField("dim_param"):
                    entry.Clear()
    graphs = [
        model.graph,
        *(a.g for node in model.graph.node for a in node.attribute if a.HasField("g")),
    ]
    for graph in graphs:
        for node in graph.node:
            node.name = f"{_module(node)}/{node.name}"
            del node.metadata_props[:]
            node.doc_string = ""
        del graph.metadata_props[:]
    for inner in graphs[1:]:
        del inner.value_info[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def _module(node: onnx.NodeProto) -> str:
    """The module that a node came from, e.g. `network.enc_blocks.0.mlp.fc1`; empty for the step
    itself."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return ["", *ast.literal_eval(entry.value)][-2]  # the last one is the operator
    return ""


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """The tracer makes millions of small objects that stay, and the garbage collector looks at all
    of them again and again: a fifth of the time (12.0 and 9.3 s for Driv3R at the tests' size)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """The exporter warns of packages it would like to have."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
