"""`recon4d export`: a network becomes an engine folder. PyTorch is needed here and nowhere at run
time.

The folder is written beside its place and renamed when it is whole: an interrupted export leaves
nothing that looks like an engine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recon4d_ros.cameras.calibration import sizes_for
from recon4d_ros.dynamics.motion_inputs import grid_of
from recon4d_ros.engine.base import MOTION as MOTION_CONFIG
from recon4d_ros.engine.base import (
    SPEC_FILE,
    EngineSpec,
    check_files,
    is_rectified_rig,
    load_spec,
    sha256_of,
    source_spec,
)
from recon4d_ros.engine.motion import motion_at
from recon4d_ros.engine.tensorrt_library import TITLES
from recon4d_ros.errors import EngineError, ExporterMissing, OutputError, ParameterError
from recon4d_ros.export.apart import Stop
from recon4d_ros.export.gpu import build_here, build_or_explain
from recon4d_ros.export.tensorrt import GpuOptions, Progress
from recon4d_ros.paths import user_path
from recon4d_ros.types import Rig

__all__ = [
    "ExportArguments",
    "default_export_arguments",
    "export_engine",
    "rebuild",
]

GEOMETRIC = "recon4d_geometric"
LEARNED = ("point3r", "driv3r", "dymultidepth", "sparse4d", "uniscene")  # checkpoint.py: SYSTEMS
MOTION = "recon4d_motion"  # what `recon4d train` trains
NETWORKS = (GEOMETRIC, *LEARNED, MOTION)
CONFIGS = ("stereo", "surround")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
RUNTIMES = ("auto", "onnx", "openvino", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch")


@dataclass(frozen=True)
class ExportArguments:
    """What an engine is exported for. Sizes are (height, width). runtime: `auto` or `onnx` (the
    fastest CPU runtime measured) or a name of engine.RUNTIMES. checkpoint: of a learned network: a
    file, or "stand-in" (networks/stand_in.py). calibration: the bag of int8. rig: that it is for,
    where one is known: some networks' tables are as large as it needs. any_size: the
    sizes are only those it is measured at, and each rig gets its own when it is loaded
    (recon4d_geometric)."""

    config: str
    cameras: int
    input_size: tuple[int, int]
    working_size: tuple[int, int]
    channels: int = 3
    network: str = "recon4d_geometric"
    pointers: int = 2048
    precision: str = "fp32"
    runtime: str = "auto"
    checkpoint: str = ""
    calibration: str = ""
    rig: Rig | None = None
    any_size: bool = False


def default_export_arguments(rig: Rig, channels: int = 3) -> ExportArguments:
    """A geometric engine of any size for a rig, measured at the sizes that it will have there."""
    stereo = is_rectified_rig(rig)
    return ExportArguments(
        "stereo" if stereo else "surround",
        len(rig.cameras),
        *sizes_for(rig, stereo),
        channels,
        any_size=True,
    )


def export_engine(
    out: str | os.PathLike[str],
    arguments: ExportArguments,
    *,
    force: bool = False,
    progress: bool = False,
    gpu: GpuOptions | None = None,
    **options: Any,
) -> Path:
    """Writes an engine folder: the model, checked, and engine.yaml with the parity of every runtime
    against PyTorch over a few steps.

    options: fields of the network's own options (e.g. merge_radius=0.5). gpu: how to build for
    runtime `tensorrt` or `tensorrt-rtx`. Raises ParameterError for arguments that make no network,
    OutputError if `out` is there already (unless force) or cannot be written, EngineError if
    PyTorch is missing, the checkpoint is not the network's, memory is too little or the exported
    graph is not what PyTorch computes.
    """
    _check(arguments)
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ExporterMissing(
            f"export needs PyTorch and onnx, which are not installed here ({error}): pip install -r"
            " requirements/dev.txt"
        ) from None

    def say(sentence: str) -> None:
        if progress:
            print(f"  {sentence}", flush=True)

    with written_beside(Path(out), force) as folder:
        if arguments.network == GEOMETRIC:
            spec = _write_geometric(folder, arguments, options)
        elif arguments.network == MOTION:
            from recon4d_ros.export.motion import write_motion

            spec = write_motion(folder, user_path(arguments.checkpoint))
        else:
            from recon4d_ros.export.learned import write_learned

            spec = write_learned(folder, arguments, options, say)
        spec = _choose_runtime(folder, spec, arguments, options, gpu or GpuOptions(), say)
        spec.save(folder / "engine.yaml")
    if progress:
        print(parity_table(spec, Path(out)))
    return Path(out)


@contextlib.contextmanager
def written_beside(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write, which takes the place of `out` when all went well and leaves nothing
    otherwise.

    force: an engine (or an empty folder) that is there is replaced, and nothing else is; it lies
    there until the new one is whole. Raises OutputError.
    """
    out = Path(os.path.abspath(out))  # `.` has a name then
    if out.exists() and not force:
        raise OutputError(
            f"{out} is there already: choose another folder, or --force to replace it"
        )
    if out.exists() and not (
        out.is_dir()
        and not out.is_symlink()
        and ((out / SPEC_FILE).is_file() or not any(out.iterdir()))
    ):
        raise OutputError(
            f"{out} is no engine ({SPEC_FILE} is not in it): --force replaces engines only"
        )
    with _said_of(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        with _said_of(out):
            folder.chmod(0o755)
            _take_place(folder, out)
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _take_place(folder: Path, out: Path) -> None:
    """Renames folder to out. What was there is moved aside first, and deleted when the new one is
    in its place."""
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old / out.name)
    try:
        folder.rename(out)
    except OSError:
        (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _said_of(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None


def _write_geometric(folder: Path, a: ExportArguments, options: Mapping[str, Any]) -> EngineSpec:
    from recon4d_ros.export.geometric import measured, write_onnx
    from recon4d_ros.export.parity import check_parity

    model, described = write_onnx(folder / "model.onnx", a, options)
    spec = EngineSpec(
        network=a.network,
        config=a.config,
        runtime="openvino",
        cameras=a.cameras,
        input_size=a.input_size,
        channels=a.channels,
        working_size=a.working_size,
        pointers=a.pointers,
        precision=a.precision,
        model="model.onnx",
        model_sha256=sha256_of(folder / "model.onnx"),
        **described,
    )
    parity = measured(folder, model, spec)
    check_parity(parity, spec)
    return replace(spec, parity=parity)


def _choose_runtime(
    folder: Path,
    spec: EngineSpec,
    a: ExportArguments,
    own: Mapping[str, Any],
    gpu: GpuOptions,
    say: Callable[[str], None],
) -> EngineSpec:
    """The specification with its runtime, whose own model is built first where it does not run
    ONNX."""
    spec = replace(spec, runtime=_fastest(spec))
    if a.runtime in TITLES:
        return build_or_explain(folder, spec, a.runtime, gpu, say)
    if a.runtime == "torch":
        from recon4d_ros.export.aoti import build

        return build(folder, spec, a, own, say)
    if a.runtime in ("auto", "onnx"):
        return spec
    report = spec.parity.get(a.runtime, {"error": "not installed here"})
    if "error" in report:
        raise EngineError(f"runtime {a.runtime}: {report['error']} (there is {_fastest(spec)})")
    return replace(spec, runtime=a.runtime)


def _fastest(spec: EngineSpec) -> str:
    good = {
        name: report["milliseconds"]
        for name, report in spec.parity.items()
        if "milliseconds" in report
    }
    return min(good, key=lambda name: good[name])


def parity_table(spec: EngineSpec, folder: Path) -> str:
    """The parity report as a person reads it."""
    if spec.network not in (GEOMETRIC, MOTION):
        from recon4d_ros.export.learned import table

        return table(spec, folder)
    lines = [
        f"{'runtime':14} {'ms/step':>8}  share of values that differ from PyTorch (worst of the"
        " steps), where any do"
    ]
    for name, report in spec.parity.items():
        if "error" in report:
            lines.append(f"{name:14} {'':8}  {report['error']}")
            continue
        differs = ", ".join(
            f"{key} {value:.3%}" for key, value in report["differs"].items() if value
        )
        lines.append(f"{name:14} {report['milliseconds']:8.1f}  {differs or 'none'}")
    return "\n".join(lines)


def rebuild(
    source: Path,
    out: Path,
    runtime: str,
    gpu: GpuOptions,
    *,
    rig: Rig | None = None,
    force: bool = False,
    keep_onnx: bool = True,
    say: Callable[[str], None] = lambda sentence: None,
    progress: Progress = lambda phase, done: None,
    stop: Stop | None = None,
) -> EngineSpec:
    """A TensorRT engine from another engine's ONNX: on the vehicle, or (TensorRT for RTX) anywhere.

    rig: gives an engine of any size its sizes (else those it was measured at). keep_onnx: the ONNX
    lies beside the new engine, so that it can be built anew. Raises
    EngineError, OutputError, ParameterError, Stopped."""
    if runtime not in TITLES:
        raise ParameterError(
            f"--from is for --runtime {' or '.join(TITLES)}, not {runtime}: an engine's ONNX runs"
            " as it is on the CPU"
        )
    spec = onnx_engine(source, rig)
    check_files(source, spec)
    with written_beside(out, force) as folder:
        for name in (spec.model, *spec.files):
            try:
                os.link(source / name, folder / name)  # the weights need not lie there twice
            except OSError:
                shutil.copyfile(source / name, folder / name)
        built = build_here(folder, spec, runtime, gpu, say, progress=progress, stop=stop)
        if not keep_onnx:
            for name in built.source:
                (folder / name).unlink()
            built = replace(built, source={})
        built.save(folder / SPEC_FILE)
    return built


def onnx_engine(folder: Path, rig: Rig | None = None) -> EngineSpec:
    """The specification of a folder's ONNX, which may lie beside a TensorRT engine, with a rig's
    sizes if it is of any. Raises EngineError."""
    spec = load_spec(folder, rig)
    if rig is not None and spec.config == MOTION_CONFIG:
        spec = motion_at(spec, len(rig.cameras), grid_of(rig).padded)
    onnx = source_spec(spec) if spec.source else spec
    if onnx is None or not onnx.model.endswith(".onnx"):
        raise EngineError(
            f"engine {folder}: holds {spec.model}: expected an engine with an ONNX model"
        )
    return onnx


def _check(a: ExportArguments) -> None:
    """Raises ParameterError if the arguments make no network."""
    problems = (
        (
            a.network not in NETWORKS,
            f"network {a.network!r} is not known: expected one of {', '.join(NETWORKS)}",
        ),
        (
            a.network == GEOMETRIC and a.config not in CONFIGS,
            f"config {a.config!r} is not known: expected one of {', '.join(CONFIGS)}",
        ),
        (
            a.runtime not in RUNTIMES,
            f"runtime {a.runtime!r} is not known: expected one of {', '.join(RUNTIMES)}",
        ),
        (
            a.network == GEOMETRIC and a.runtime == "torch",
            (
                f"runtime torch is for learned networks: {GEOMETRIC} runs on openvino, onnxruntime,"
                " tensorrt and tensorrt-rtx"
            ),
        ),
        (
            a.network != GEOMETRIC and not 16 <= min(a.working_size) <= max(a.working_size) <= 4096,
            f"size is {a.working_size[0]}x{a.working_size[1]}: expected 16 to 4096 pixels",
        ),
        (
            a.precision not in PRECISIONS,
            f"precision {a.precision!r} is not known: expected one of {', '.join(PRECISIONS)}",
        ),
        (
            a.network == GEOMETRIC and a.precision != "fp32",
            f"precision {a.precision} is not offered for {GEOMETRIC}: geometry needs fp32",
        ),
        (
            a.network != GEOMETRIC and a.any_size,
            f"any size is for {GEOMETRIC}: a learned network works at the size it is exported for",
        ),
        (
            (a.precision == "int8") != bool(a.calibration),
            (
                "precision int8 takes --calibration BAG, a drive like those to come"
                if a.precision == "int8"
                else f"--calibration is for precision int8, not {a.precision}"
            ),
        ),
        (
            a.network == GEOMETRIC and bool(a.checkpoint),
            f"--checkpoint: {GEOMETRIC} has no learned weights",
        ),
        (
            a.network != GEOMETRIC and not a.checkpoint,
            (
                f"--checkpoint is missing: expected {a.network}'s file, or `stand-in` to try it"
                " without (its output then means nothing)"
            ),
        ),
        (not 1 <= a.cameras <= 16, f"cameras is {a.cameras}: expected 1 to 16"),
        (a.config == "stereo" and a.cameras != 2, f"cameras is {a.cameras}: config stereo takes 2"),
        (a.channels not in (1, 3), f"channels is {a.channels}: expected 1 (grey) or 3 (RGB)"),
        (not 16 <= a.pointers <= 16384, f"pointers is {a.pointers}: expected 16 to 16384"),
        (
            min(a.input_size) < 32 or max(a.input_size) > 8192,
            f"input size is {a.input_size[1]}x{a.input_size[0]}: expected 32 to 8192 pixels",
        ),
        (
            a.network == GEOMETRIC and any(size % 4 or size < 64 for size in a.working_size),
            (
                f"working size is {a.working_size[1]}x{a.working_size[0]}: expected multiples of 4"
                " from 64"
            ),
        ),
    )
    for wrong, sentence in problems:
        if wrong:
            raise ParameterError(sentence)
