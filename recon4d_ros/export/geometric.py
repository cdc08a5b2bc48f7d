"""`recon4d_geometric` as model.onnx."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recon4d_ros.errors import ParameterError
from recon4d_ros.export.graph import builders, write_graph
from recon4d_ros.networks import geometric
from recon4d_ros.networks.pointer_memory import FEATURE

if TYPE_CHECKING:
    from recon4d_ros.export import ExportArguments


def write_onnx(path: Path, arguments: ExportArguments, options: Mapping[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Writes the graph; gives the PyTorch module and the fields of EngineSpec that describe it. Raises ParameterError for unknown
    options."""
    chosen = geometric_options(arguments, options)
    model = geometric.GeometricStep(chosen).eval()
    inputs = geometric.frame_inputs(chosen)
    memory = geometric.memory_shapes(chosen)
    input_names, output_names = write_graph(path, model, inputs, memory, geometric.OUTPUTS)
    written = dataclasses.asdict(chosen)
    plain = {
        name: value
        for name, value in written.items()
        if name not in ("config", "cameras", "input_size", "channels", "working_size", "pointers")
    }
    return model, {
        "feature": FEATURE,
        "inputs": input_names,
        "outputs": output_names,
        "options": plain | {"memory": {name: list(shape) for name, shape in memory.items()}},
        "versions": builders(),
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
