"""`recon4d export`: a network becomes an engine folder. PyTorch is needed here and nowhere at run time.

The folder is written beside its place and renamed when it is whole: an interrupted export leaves nothing that looks like an engine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from recon4d_ros.calibration import REDUCTIONS, input_size_for, reduced_size
from recon4d_ros.engine.base import SPEC_FILE, EngineSpec, check_files, is_rectified_rig, load_spec, sha256_of
from recon4d_ros.errors import EngineError, OutputError, ParameterError
from recon4d_ros.export.gpu import GpuOptions, add_gpu_arguments, build_here, build_tensorrt, gpu_options
from recon4d_ros.types import Rig

__all__ = ["EPILOG", "ExportArguments", "add_arguments", "default_export_arguments", "export_engine", "run"]

GEOMETRIC = "recon4d_geometric"
LEARNED = ("point3r", "driv3r", "dymultidepth")  # networks/checkpoint.py: SYSTEMS
NETWORKS = (GEOMETRIC, *LEARNED)
CONFIGS = ("stereo", "surround")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
RUNTIMES = ("auto", "onnx", "openvino", "onnxruntime", "tensorrt", "torch")
EPILOG = """examples:
  recon4d export --rig my_car.yaml --out engines/my_car            the geometric engine, sizes chosen for the rig
  recon4d export --rig BAG --out engines/my_car                    rig found in a bag
  recon4d export --network recon4d_geometric --config stereo --cameras 2 --size 370x1226 --channels 1 --out engines/kitti
  recon4d export --network point3r --checkpoint point3r_512.pth --rig BAG --size 224x224 --pointers 1024 --out engines/point3r
  recon4d export --network point3r --checkpoint stand-in --rig BAG --size 224x224 --out engines/try      weights that mean nothing
  recon4d export --network point3r --checkpoint point3r_512.pth --rig BAG --size 224x224 --precision int8 --calibration BAG --out engines/i8
  recon4d export --from engines/point3r --runtime tensorrt --out engines/point3r_gpu       on the vehicle, without PyTorch

a learned network is exported for the rig's cameras (--rig, or --cameras and --image-size); --size is what it sees of each of them.
"""


@dataclass(frozen=True)
class ExportArguments:
    """What an engine is exported for. Sizes are (height, width). runtime: `auto` or `onnx` (the fastest CPU runtime measured) or a name of
    engine.RUNTIMES. checkpoint: of a learned network: a file, or "stand-in" (networks/stand_in.py). calibration: the bag of int8."""

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


def default_export_arguments(rig: Rig, channels: int = 3) -> ExportArguments:
    """Sizes for a rig: a rectified pair works at about 896 pixels of width, one camera at 640, more at 320 to 480 each
    (docs/engine.md: what width costs and gives)."""
    stereo = is_rectified_rig(rig)
    width = 896 if stereo else {1: 640, 2: 512, 3: 416, 4: 384}.get(len(rig.cameras), 320)
    widest = max(camera.width for camera in rig.cameras)
    aspect = sorted(camera.height / camera.width for camera in rig.cameras)[len(rig.cameras) // 2]
    width = min(width, widest // 8 * 8)
    working = (max(64, round(width * aspect / 4) * 4), width)
    # decoded as small as still twice the working size in surround (averaging down is cheap in the decoder), never below the working size
    margin = 2.0
    fitting = [
        size
        for size in (tuple(max(reduced_size(camera, reduce)[axis] for camera in rig.cameras) for axis in (0, 1)) for reduce in REDUCTIONS)
        if size[1] >= margin * working[1] * 0.99 and size[0] >= margin * working[0] * 0.99
    ]
    full = (max(camera.height for camera in rig.cameras), max(camera.width for camera in rig.cameras))
    chosen = fitting[-1] if fitting and not stereo else full
    return ExportArguments("stereo" if stereo else "surround", len(rig.cameras), (chosen[0], chosen[1]), working, channels)


def export_engine(
    out: str | os.PathLike[str],
    arguments: ExportArguments,
    *,
    force: bool = False,
    progress: bool = False,
    gpu: GpuOptions | None = None,
    **options: Any,
) -> Path:
    """Writes an engine folder: the model, checked, and engine.yaml with the parity of every runtime against PyTorch over a few steps.

    options: fields of the network's own options (e.g. merge_radius=0.5). gpu: how to build for runtime `tensorrt` or `torch`. Raises
    ParameterError for arguments that make no network, OutputError if `out` is there already (unless force) or cannot be written,
    EngineError if PyTorch is missing, the checkpoint is not the network's, memory is too little or the exported graph is not what PyTorch
    computes.
    """
    _check(arguments)
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        missing = EngineError(f"export needs PyTorch and onnx, which are not installed here ({error}): pip install -r requirements/dev.txt")
        missing.exit_code = 3  # type: ignore[attr-defined]
        raise missing from None

    def say(sentence: str) -> None:
        if progress:
            print(f"  {sentence}", flush=True)

    with written_beside(Path(out), force) as folder:
        if arguments.network == GEOMETRIC:
            spec = _write_geometric(folder, arguments, options)
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
    """A folder to write, which takes the place of `out` when all went well and leaves nothing otherwise.

    force: an engine (or an empty folder) that is there is replaced, and nothing else is; it lies there until the new one is whole. Raises
    OutputError.
    """
    out = Path(os.path.abspath(out))  # `.` has a name then
    if out.exists() and not force:
        raise OutputError(f"{out} is there already: choose another folder, or --force to replace it")
    if out.exists() and not (out.is_dir() and not out.is_symlink() and ((out / SPEC_FILE).is_file() or not any(out.iterdir()))):
        raise OutputError(f"{out} is no engine ({SPEC_FILE} is not in it): --force replaces engines only")
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
    """Renames folder to out. What was there is moved aside first, and deleted when the new one is in its place."""
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
    folder: Path, spec: EngineSpec, a: ExportArguments, own: Mapping[str, Any], gpu: GpuOptions, say: Callable[[str], None]
) -> EngineSpec:
    """The specification with its runtime, whose own model is built first where it does not run ONNX."""
    spec = replace(spec, runtime=_fastest(spec))
    if a.runtime == "tensorrt":
        return build_tensorrt(folder, spec, gpu, say)
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
    good = {name: report["milliseconds"] for name, report in spec.parity.items() if "milliseconds" in report}
    return min(good, key=lambda name: good[name])


def parity_table(spec: EngineSpec, folder: Path) -> str:
    """The parity report as a person reads it."""
    if spec.network != GEOMETRIC:
        from recon4d_ros.export.learned import table

        return table(spec, folder)
    lines = [f"{'runtime':14} {'ms/step':>8}  share of values that differ from PyTorch (worst of the steps), where any do"]
    for name, report in spec.parity.items():
        if "error" in report:
            lines.append(f"{name:14} {'':8}  {report['error']}")
            continue
        differs = ", ".join(f"{key} {value:.3%}" for key, value in report["differs"].items() if value)
        lines.append(f"{name:14} {report['milliseconds']:8.1f}  {differs or 'none'}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="engine folder to write")
    parser.add_argument(
        "--rig",
        default="",
        metavar="YAML|BAG|NAME",
        help="rig file, bag, or name of a shipped rig: chooses the cameras and all sizes below that are not given",
    )
    parser.add_argument("--network", default=GEOMETRIC, help="one of " + ", ".join(NETWORKS) + " (default: %(default)s)")
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="FILE",
        help="a learned network's weights (.pth, .safetensors), or `stand-in`: weights without meaning, to try it",
    )
    parser.add_argument("--config", default="", help="geometric: stereo (rectified pair, left first) or surround (any other rig)")
    parser.add_argument("--cameras", type=int, default=0, metavar="N", help="number of cameras")
    parser.add_argument("--size", default="", metavar="HxW", help="geometric: input images; learned: what the network sees of each")
    parser.add_argument("--working-size", default="", metavar="hxw", help="geometric: depth, height x width (multiples of 4)")
    parser.add_argument("--image-size", default="", metavar="HxW", help="learned: input images (default: the rig's, else --size)")
    parser.add_argument("--channels", type=int, default=0, help="1 grey or 3 RGB (default: 3)")
    parser.add_argument("--pointers", type=int, default=0, metavar="M", help="capacity of the memory (default: 2048, learned 1024)")
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, bf16, int8; geometry stays in fp32 (default: fp32)")
    parser.add_argument("--calibration", default="", metavar="BAG", help="int8: a drive like those to come, for the activations' ranges")
    parser.add_argument(
        "--runtime",
        default="auto",
        help="onnx (or auto): the fastest CPU runtime measured; openvino; onnxruntime; tensorrt; torch (default: %(default)s)",
    )
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the network's own; repeatable")
    parser.add_argument("--from", dest="source", type=Path, metavar="DIR", help="build for --runtime tensorrt from this engine's ONNX")
    parser.add_argument("--force", action="store_true", help="replace --out")
    add_gpu_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    gpu = gpu_options(arguments)
    if arguments.source:
        rebuild(arguments.source, arguments.out, arguments.runtime, gpu, force=arguments.force)
    else:
        options = dict(_option(text) for text in arguments.option)
        export_engine(arguments.out, _arguments(arguments), force=arguments.force, progress=True, gpu=gpu, **options)
    print(f"wrote {arguments.out}")
    return 0


def rebuild(source: Path, out: Path, runtime: str, gpu: GpuOptions, *, force: bool = False) -> None:
    """An engine for a GPU's runtime from another engine's ONNX: what runs on the vehicle. Raises EngineError, OutputError."""
    if runtime != "tensorrt":
        raise ParameterError(f"--from is for --runtime tensorrt, not {runtime}: an engine's ONNX runs as it is on the CPU")
    spec = load_spec(source)
    check_files(source, spec)
    if not spec.model.endswith(".onnx"):
        raise EngineError(f"engine {source}: holds {spec.model}: expected an engine with an ONNX model")
    with written_beside(out, force) as folder:
        for name in (spec.model, *spec.files):
            try:
                os.link(source / name, folder / name)  # the weights need not lie there twice
            except OSError:
                shutil.copyfile(source / name, folder / name)
        build_here(folder, spec, gpu, lambda sentence: print(f"  {sentence}", flush=True)).save(folder / SPEC_FILE)


def _arguments(arguments: argparse.Namespace) -> ExportArguments:
    rig = _find_rig(arguments.rig) if arguments.rig else None
    size, image_size = _parse_size("--size", arguments.size), _parse_size("--image-size", arguments.image_size)
    learned = arguments.network != GEOMETRIC
    chosen: dict[str, Any] = asdict(default_export_arguments(rig)) if rig and not learned else {}
    if learned:
        if rig and size:
            height, width, _ = input_size_for(rig, size)
            chosen = {"cameras": len(rig.cameras), "input_size": (height, width)}
        given: dict[str, Any] = {"input_size": image_size or chosen.get("input_size") or size, "working_size": size}
    else:
        given = {"config": arguments.config, "input_size": size, "working_size": _parse_size("--working-size", arguments.working_size)}
    given |= {"cameras": arguments.cameras, "channels": arguments.channels, "pointers": arguments.pointers or (1024 if learned else 2048)}
    chosen |= {name: value for name, value in given.items() if value}
    chosen |= {name: getattr(arguments, name) for name in ("network", "precision", "runtime", "checkpoint", "calibration")}
    if "cameras" not in chosen or "input_size" not in chosen:
        raise ParameterError("expected --size, and --rig or --cameras" if learned else "expected --rig, or --cameras and --size")
    chosen.setdefault("config", "learned" if learned else "surround")
    if "working_size" not in chosen:
        height, width = chosen["input_size"]
        across = min(1024 if chosen["config"] == "stereo" else 320, width // 8 * 8)
        chosen["working_size"] = (max(64, round(across * height / width / 4) * 4), across)
    return ExportArguments(**chosen)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ParameterError(f"--option {text}: expected NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ParameterError(f"--option {name} is {value!r}: expected a number") from None


def _check(a: ExportArguments) -> None:
    """Raises ParameterError if the arguments make no network."""
    problems = (
        (a.network not in NETWORKS, f"network {a.network!r} is not known: expected one of {', '.join(NETWORKS)}"),
        (a.network == GEOMETRIC and a.config not in CONFIGS, f"config {a.config!r} is not known: expected one of {', '.join(CONFIGS)}"),
        (a.runtime not in RUNTIMES, f"runtime {a.runtime!r} is not known: expected one of {', '.join(RUNTIMES)}"),
        (
            a.network == GEOMETRIC and a.runtime == "torch",
            f"runtime torch is for learned networks: {GEOMETRIC} runs on openvino, onnxruntime and tensorrt",
        ),
        (
            a.network != GEOMETRIC and not 16 <= min(a.working_size) <= max(a.working_size) <= 4096,
            f"size is {a.working_size[0]}x{a.working_size[1]}: expected 16 to 4096 pixels",
        ),
        (a.precision not in PRECISIONS, f"precision {a.precision!r} is not known: expected one of {', '.join(PRECISIONS)}"),
        (
            a.network == GEOMETRIC and a.precision != "fp32",
            f"precision {a.precision} is not offered for {GEOMETRIC}: geometry needs fp32",
        ),
        (
            (a.precision == "int8") != bool(a.calibration),
            "precision int8 takes --calibration BAG, a drive like those to come"
            if a.precision == "int8"
            else f"--calibration is for precision int8, not {a.precision}",
        ),
        (a.network == GEOMETRIC and bool(a.checkpoint), f"--checkpoint: {GEOMETRIC} has no learned weights"),
        (
            a.network != GEOMETRIC and not a.checkpoint,
            f"--checkpoint is missing: expected {a.network}'s file, or `stand-in` to try it without (its output then means nothing)",
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
            f"working size is {a.working_size[1]}x{a.working_size[0]}: expected multiples of 4 from 64",
        ),
    )
    for wrong, sentence in problems:
        if wrong:
            raise ParameterError(sentence)


def _parse_size(name: str, text: str) -> tuple[int, int] | None:
    if not text:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and 0 < int(height) < 2**16 and 0 < int(width) < 2**16):
        raise ParameterError(f"{name} is {text!r}: expected HEIGHTxWIDTH, e.g. 370x1226")
    return int(height), int(width)


def _find_rig(name: str) -> Rig:
    from recon4d_ros import paths
    from recon4d_ros.bags import BagReader
    from recon4d_ros.rig import load_rig

    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return load_rig(path)
    shipped = paths.rigs() / f"{name}.yaml"
    if not path.exists() and shipped.is_file():
        return load_rig(shipped)
    with BagReader(path) as reader:
        return reader.rig()
