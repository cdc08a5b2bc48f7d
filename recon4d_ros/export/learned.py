"""A learned network's step as an engine: from its checkpoint (or stand-in weights) to a folder,
with no code of any one network.

Every stage that holds the weights frees them before the next begins: a network of 3.3 GB is
exported in a few times that.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from recon4d_ros.cameras.calibration import make_calibration
from recon4d_ros.engine import CPU_RUNTIMES, parity_lines
from recon4d_ros.engine.base import EngineSpec, sha256_of
from recon4d_ros.errors import EngineError
from recon4d_ros.export.compare import compare_apart
from recon4d_ros.export.graph import builders, opset_of, write_graph
from recon4d_ros.export.parity import check_parity
from recon4d_ros.export.reference import STEPS, from_pytorch
from recon4d_ros.networks import checkpoint
from recon4d_ros.networks.step import OUTPUTS, StepOptions
from recon4d_ros.runs.statistics import peak_rss_mib

if TYPE_CHECKING:
    from recon4d_ros.export import ExportArguments

Say = Callable[[str], None]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MODEL = "model.onnx"
# bytes of memory per byte of weights that exporting takes at most, as measured (docs/export.md)
PER_WEIGHT = 4.5


def write_learned(folder: Path, a: ExportArguments, own: Mapping[str, Any], say: Say) -> EngineSpec:
    """Writes model.onnx (and its weights' file) into the folder, checked and compared; gives what
    is to be written into engine.yaml.

    Raises EngineError or ParameterError, each with a sentence.
    """
    check_memory(a.checkpoint)
    planned = EngineSpec(
        network=a.network,
        config="learned",
        runtime=CPU_RUNTIMES[0],
        cameras=a.cameras,
        input_size=a.input_size,
        channels=a.channels,
        working_size=a.working_size,
        pointers=a.pointers,
        feature=0,
        precision=a.precision,
        model=MODEL,
        model_sha256="",
    )
    if a.precision == "int8":
        from recon4d_ros.export import quantize

        say(f"looking through {a.calibration}")
        length = quantize.check_bag(Path(a.calibration), planned)
    say(f"reading {a.network} ({a.checkpoint})")
    network, step, sha256 = make(a, own)
    parameters = sum(value.numel() for value in network.state_dict().values())
    check_memory(a.checkpoint, 4 * parameters, already=1.0)
    frame, memory = (
        step.frame_inputs(),
        {name: tuple(shape) for name, shape in step.memory_shapes().items()},
    )
    extra = tuple(step.extra_outputs)
    outputs = (*getattr(step, "outputs", OUTPUTS), *extra)
    spec = replace(
        planned,
        config=getattr(step, "config", planned.config),
        checkpoint_sha256=sha256,
        inputs=(*frame, *memory),
        outputs=(*outputs, *(f"new_{name}" for name in memory)),
        options={
            **own,
            **getattr(step, "described", {}),
            "parameters": parameters,
            "memory": memory,
            "one_world": getattr(step, "one_world", True),
        },
        versions=builders(),
    )
    say(f"PyTorch, {STEPS} steps")
    reference = folder / "reference.npz"
    shapes = from_pytorch(reference, step, spec)
    if a.precision in DTYPES:
        lower(network, a)
    say(f"writing {MODEL}, {parameters / 1e6:.1f} million parameters in {a.precision}")
    write_graph(folder / MODEL, step, frame, memory, outputs)
    spec = replace(spec, versions={**spec.versions, "opset": str(opset_of(step))})
    unlike = outputs if "depth" not in outputs else extra  # whose shapes are not those of maps
    spec = replace(spec, extra_outputs={name: shapes[name] for name in unlike})
    if a.precision == "int8":
        spec = _quantize(folder, spec, a, network, step, length, say)
    del network, step
    gc.collect()
    spec = finished(folder, spec, {})
    spec.save(folder / "engine.yaml")
    parity = {}
    for runtime in CPU_RUNTIMES:
        say(f"comparing with {runtime}")
        parity[runtime] = compare_apart(folder, runtime, reference)
    check_parity(parity, spec)
    reference.unlink()
    peak = round(peak_rss_mib(), 1)
    return finished(
        folder, spec, {"parity": parity, "options": {**spec.options, "export_peak_rss_mib": peak}}
    )


def _quantize(
    folder: Path,
    spec: EngineSpec,
    a: ExportArguments,
    network: nn.Module,
    step: nn.Module,
    length: int,
    say: Say,
) -> EngineSpec:
    """The folder's float32 model becomes int8 (quantize.py), and its reference what PyTorch
    computes on the calibration bag's last frames. Raises EngineError, BagError."""
    from recon4d_ros.export import quantize

    place = next(name for name, module in step.named_modules() if module is network)
    method: Callable[[], tuple[str, ...]] | None = getattr(network, "quantizable", None)
    if method is None:
        raise EngineError(
            f"precision int8: network {a.network} does not say what of it may be int8"
        )
    modules = [f"{place}.{name}" for name in method()]
    with tempfile.TemporaryDirectory(prefix="recon4d_") as scratch:
        say(f"{length} frame sets of {a.calibration} with onnxruntime")
        whole = finished(folder, spec, {})
        calibrated, held_out = quantize.roll_out(
            folder, whole, Path(a.calibration), length, Path(scratch)
        )
        from_pytorch(folder / "reference.npz", step, spec, held_out)
        say(f"calibrating with {len(calibrated)} of them")
        count = quantize.quantize(folder / MODEL, modules, calibrated)
    return replace(
        spec,
        options={**spec.options, "calibration": Path(a.calibration).name, "int8_products": count},
    )


def make(a: ExportArguments, own: Mapping[str, Any]) -> tuple[nn.Module, Any, str]:
    """The network, its step, and the checkpoint's SHA-256. Raises EngineError."""
    network, sha256 = checkpoint.obtain(a.checkpoint, a.network)
    options = StepOptions(a.cameras, a.input_size, a.working_size, a.channels, a.pointers)
    calibration = make_calibration(a.rig, a.input_size, a.working_size) if a.rig else None
    step = checkpoint.make_step(network, a.network, options, own, calibration)
    return network, step.eval(), sha256


def finished(folder: Path, spec: EngineSpec, fields: Mapping[str, Any]) -> EngineSpec:
    """The specification with some fields, and the checksums of the folder's files."""
    beside = [path.name for path in sorted(folder.glob(f"{spec.model}.*"))]
    files = spec.files or {name: sha256_of(folder / name) for name in beside}
    return replace(
        spec,
        model_sha256=spec.model_sha256 or sha256_of(folder / spec.model),
        files=files,
        **fields,
    )


def check_memory(source: str, size: int = 0, already: float = 0.0) -> None:
    """Raises EngineError if there is too little memory for weights of `size` bytes (default: the
    checkpoint file's); already: how many times they are in memory."""
    path = Path(source)
    size = size or (path.stat().st_size if path.is_file() else 0)
    needed, free = (PER_WEIGHT - already) * size, psutil.virtual_memory().available
    if needed > free:
        raise EngineError(
            f"too little memory: exporting {size / 1e9:.1f} GB of weights takes about"
            f" {needed / 1e9:.0f} GB, {free / 1e9:.1f} GB are free"
        )


def lower(network: nn.Module, a: ExportArguments) -> None:
    """Raises EngineError if the network does not say which of its parts may be computed in less
    than float32."""
    method = getattr(network, "lower_precision", None)
    if method is None:
        raise EngineError(f"precision {a.precision}: network {a.network} is offered in fp32 only")
    method(DTYPES[a.precision])


def table(spec: EngineSpec, folder: Path) -> str:
    """The parity report as a person reads it."""
    size = sum((folder / name).stat().st_size for name in (spec.model, *spec.files))
    head = (
        f"{spec.network}, {spec.options['parameters'] / 1e6:.1f} million parameters,"
        f" {spec.precision}: {size / 1e6:.0f} MB"
    )
    peak = f"exported in {spec.options['export_peak_rss_mib']:.0f} MiB at most"
    return "\n".join([f"{head}, {peak}", *parity_lines(spec), *filter(None, [spec.warning])])
