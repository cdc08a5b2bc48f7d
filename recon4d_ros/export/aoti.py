"""A learned network's step as model.pt2: compiled ahead of time by PyTorch's inductor, for a GPU
with PyTorch and without TensorRT.

Compiled for the GPU where there is one, else for this CPU (with its C++ compiler), which is of use
only to try it: docs/export.md says what was measured. The GPU path has not run: none was at hand.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recon4d_ros.engine.base import EngineSpec, sha256_of
from recon4d_ros.errors import EngineError
from recon4d_ros.export.compare import compare_apart
from recon4d_ros.export.learned import DTYPES, lower, make
from recon4d_ros.export.parity import check_parity
from recon4d_ros.export.reference import from_pytorch

if TYPE_CHECKING:
    from recon4d_ros.export import ExportArguments

MODEL = "model.pt2"


def build(
    folder: Path,
    spec: EngineSpec,
    a: ExportArguments,
    own: Mapping[str, Any],
    say: Callable[[str], None],
) -> EngineSpec:
    """Writes model.pt2 in the place of the folder's ONNX, compared with PyTorch; gives the
    specification that runs it.

    Raises EngineError."""
    if not hasattr(torch._inductor, "aoti_compile_and_package"):
        raise EngineError(f"runtime torch takes PyTorch 2.6 or later, this is {torch.__version__}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise EngineError(
            "runtime torch: there is no GPU here, and no C++ compiler to compile for the CPU with"
        )
    network, step, _ = make(a, own)
    with tempfile.TemporaryDirectory(prefix="recon4d_") as scratch:
        reference = Path(scratch) / "reference.npz"
        from_pytorch(reference, step, spec)
        if a.precision in DTYPES:
            lower(network, a)
        say(f"compiling {MODEL} for {device}")
        frame = step.frame_inputs()
        example = tuple(
            torch.zeros(shape, dtype=dtype, device=device) for dtype, shape in frame.values()
        )
        example += tuple(
            torch.zeros(shape, device=device) for shape in spec.options["memory"].values()
        )
        step = step.to(device)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.export.export(step, example)
                torch._inductor.aoti_compile_and_package(program, package_path=str(folder / MODEL))
        except (
            Exception
        ) as error:  # inductor raises its own types, and those of the compiler it runs
            raise EngineError(
                "PyTorch cannot compile the step:"
                f" {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            ) from error
        for name in (spec.model, *spec.files):
            (folder / name).unlink()
        options = {**spec.options, "device": device}
        spec = replace(
            spec,
            runtime="torch",
            model=MODEL,
            model_sha256=sha256_of(folder / MODEL),
            files={},
            options=options,
        )
        spec.save(folder / "engine.yaml")
        say("comparing with torch")
        parity = {"torch": compare_apart(folder, "torch", reference)}
    check_parity(parity, spec)
    return replace(spec, parity={**spec.parity, **parity})
