"""`recon4d_geometric` as model.onnx."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recon4d_ros.engine import CPU_RUNTIMES
from recon4d_ros.engine.base import SPEC_FILE, EngineSpec
from recon4d_ros.errors import EngineError, ParameterError
from recon4d_ros.export.compare import compare
from recon4d_ros.export.graph import builders, write_graph
from recon4d_ros.export.parity import in_shares
from recon4d_ros.export.reference import from_pytorch
from recon4d_ros.networks import geometric_options as options_of
from recon4d_ros.networks.geometric import GeometricStep
from recon4d_ros.networks.pointer_memory import FEATURE
from recon4d_ros.networks.step import OUTPUTS

if TYPE_CHECKING:
    from recon4d_ros.export import ExportArguments


LARGEST_WORKING = 4096  # pixels a side, of an engine of any size


def write_onnx(
    path: Path, arguments: ExportArguments, options: Mapping[str, Any]
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Writes the graph; gives the PyTorch module and the fields of EngineSpec that describe it.
    Raises ParameterError for unknown options."""
    chosen = geometric_options(arguments, options)
    model = GeometricStep(chosen).eval()
    inputs = options_of.frame_inputs(chosen)
    memory = options_of.memory_shapes(chosen)
    shapes = options_of.shapes_of_any_size(chosen) if arguments.any_size else {}
    input_names, output_names = write_graph(
        path, model, inputs, memory, OUTPUTS, shapes, _dims(chosen) if shapes else None
    )
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
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }


def _dims(o: options_of.GeometricOptions) -> dict[str, Any]:
    """What torch.export calls the symbols of shapes_of_any_size. The least working size is of two
    cells a side: PyTorch traces other graphs for one."""
    stride, most = o.stride, LARGEST_WORKING
    least = -(-2 * o.cell // stride)
    y, x = (torch.export.Dim(name, min=least, max=most // stride) for name in ("y", "x"))
    height, width = (torch.export.Dim(name, min=32, max=2**14) for name in ("H", "W"))
    shapes = options_of.shapes_of_any_size(o)
    return {
        "H": height,
        "W": width,
        f"h//{o.depth_stride}": stride // o.depth_stride * y,
        f"w//{o.depth_stride}": stride // o.depth_stride * x,
        f"h//{stride}": y,
        f"w//{stride}": x,
        "h": stride * y,
        "w": stride * x,
        str(shapes["token_weight"][0]): torch.export.Dim("tokens", min=2, max=2**14),
    }


def measured(folder: Path, model: torch.nn.Module, spec: EngineSpec) -> dict[str, Any]:
    """Per installed CPU runtime, what parity.in_shares says of it against PyTorch; {"error":
    sentence} if it does not take the model."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="recon4d_") as scratch:
        reference = Path(scratch) / "reference.npz"
        from_pytorch(reference, model, spec)
        spec.save(folder / SPEC_FILE)
        for runtime in CPU_RUNTIMES:
            if importlib.util.find_spec(runtime) is None:
                continue
            try:
                report[runtime] = in_shares(compare(folder, runtime, reference))
            except EngineError as error:
                report[runtime] = {"error": str(error)}
    return report


def geometric_options(
    arguments: ExportArguments, options: Mapping[str, Any]
) -> options_of.GeometricOptions:
    for name in options:
        if name not in options_of.LIMITS:
            raise ParameterError(
                f"option {name!r} is not one of {options_of.NETWORK}'s:"
                f" {', '.join(options_of.LIMITS)}"
            )
    by_config = {} if arguments.config == "stereo" else options_of.SURROUND
    return options_of.GeometricOptions(
        config=arguments.config,
        cameras=arguments.cameras,
        input_size=arguments.input_size,
        channels=arguments.channels,
        working_size=arguments.working_size,
        pointers=arguments.pointers,
        **{**by_config, **options},
    )
