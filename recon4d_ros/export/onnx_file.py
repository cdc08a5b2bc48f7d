"""A network as model.onnx: one static-shape graph, checked."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from recon4d_ros.errors import ParameterError
from recon4d_ros.networks import geometric
from recon4d_ros.networks.pointer_memory import FEATURE

if TYPE_CHECKING:
    from recon4d_ros.export import ExportArguments

OPSET = 18


def write_onnx(path: Path, arguments: ExportArguments, options: Mapping[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Writes the graph; gives the PyTorch module and the fields of EngineSpec that describe it. Raises ParameterError for unknown
    options."""
    chosen = geometric_options(arguments, options)
    model = geometric.GeometricStep(chosen).eval()
    inputs = geometric.frame_inputs(chosen)
    memory = geometric.memory_shapes(chosen)
    example = tuple(torch.zeros(shape, dtype=dtype) for dtype, shape in inputs.values()) + tuple(
        torch.zeros(shape) for shape in memory.values()
    )
    input_names = [*inputs, *memory]
    output_names = [*geometric.OUTPUTS, *(f"new_{name}" for name in memory)]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, example, dynamo=True, opset_version=OPSET, input_names=input_names, output_names=output_names, verbose=False
        )
        assert program is not None
        program.save(str(path))
    graph = onnx.load(str(path))
    for (
        node
    ) in graph.graph.node:  # where in our source a node came from is of no use to a runtime, and ties the file to this machine's paths
        del node.metadata_props[:]
        node.doc_string = ""
    for function in [graph.graph, *(a.g for node in graph.graph.node for a in node.attribute if a.HasField("g"))]:
        for node in function.node:
            del node.metadata_props[:]
        del function.value_info[:]
    del graph.metadata_props[:]
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))
    written = dataclasses.asdict(chosen)
    plain = {
        name: value
        for name, value in written.items()
        if name not in ("config", "cameras", "input_size", "channels", "working_size", "pointers")
    }
    return model, {
        "feature": FEATURE,
        "inputs": tuple(input_names),
        "outputs": tuple(output_names),
        "options": plain | {"memory": {name: list(shape) for name, shape in memory.items()}},
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "openvino", "onnxruntime") if _installed(name)}
        | {"opset": str(OPSET)},
    }


def geometric_options(arguments: ExportArguments, options: Mapping[str, Any]) -> geometric.GeometricOptions:
    known = {field.name for field in dataclasses.fields(geometric.GeometricOptions)}
    for name in options:
        if name not in known:
            raise ParameterError(f"option {name!r} is not one of {geometric.NETWORK}'s: {', '.join(sorted(known))}")
    by_config = {} if arguments.config == "stereo" else geometric.SURROUND
    return geometric.GeometricOptions(
        config=arguments.config,
        cameras=arguments.cameras,
        input_size=arguments.input_size,
        channels=arguments.channels,
        working_size=arguments.working_size,
        pointers=arguments.pointers,
        **{**by_config, **options},
    )


def _installed(name: str) -> bool:
    with contextlib.suppress(ImportError):
        version(name)
        return True
    return False


@contextlib.contextmanager
def _quiet(name: str):
    """The exporter warns of packages it would like to have."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
