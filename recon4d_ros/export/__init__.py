"""`recon4d export`: a network becomes an engine folder. PyTorch is needed here and nowhere at run time.

The folder is written beside its place and renamed when it is whole: an interrupted export leaves nothing that looks like an engine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recon4d_ros.calibration import REDUCTIONS, reduced_size
from recon4d_ros.engine.base import EngineSpec, is_rectified_rig
from recon4d_ros.errors import EngineError, OutputError, ParameterError
from recon4d_ros.types import Rig

__all__ = ["EPILOG", "ExportArguments", "add_arguments", "default_export_arguments", "export_engine", "run"]

NETWORKS = ("recon4d_geometric",)
CONFIGS = ("stereo", "surround")
EPILOG = """examples:
  recon4d export --rig my_car.yaml --out engines/my_car            sizes chosen for the rig
  recon4d export --rig BAG --out engines/my_car                    rig found in a bag
  recon4d export --network recon4d_geometric --config stereo --cameras 2 --size 370x1226 --channels 1 --out engines/kitti
"""


@dataclass(frozen=True)
class ExportArguments:
    """What an engine is exported for. Sizes are (height, width). runtime: `auto` (the fastest measured) or a name of engine.RUNTIMES."""

    config: str
    cameras: int
    input_size: tuple[int, int]
    working_size: tuple[int, int]
    channels: int = 3
    network: str = "recon4d_geometric"
    pointers: int = 2048
    precision: str = "fp32"
    runtime: str = "auto"


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
    out: str | os.PathLike[str], arguments: ExportArguments, *, force: bool = False, progress: bool = False, **options: Any
) -> Path:
    """Writes an engine folder: model.onnx, checked, and engine.yaml with the parity of every runtime against PyTorch over a few steps.

    options: fields of the network's own options (e.g. merge_radius=0.5). Raises ParameterError for arguments that make no network,
    OutputError if `out` is there already (unless force) or cannot be written, EngineError if PyTorch is missing or the exported graph is
    not what PyTorch computes.
    """
    out = Path(out)
    _check(arguments)
    if out.exists() and not force:
        raise OutputError(f"{out} is there already: choose another folder, or --force to replace it")
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401

        from recon4d_ros.export.onnx_file import write_onnx
        from recon4d_ros.export.parity import measure_parity
    except ImportError as error:
        missing = EngineError(f"export needs PyTorch and onnx, which are not installed here ({error}): pip install -r requirements/dev.txt")
        missing.exit_code = 3  # type: ignore[attr-defined]
        raise missing from None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        model, described = write_onnx(folder / "model.onnx", arguments, options)
        spec = EngineSpec(
            network=arguments.network,
            config=arguments.config,
            runtime="openvino",
            cameras=arguments.cameras,
            input_size=arguments.input_size,
            channels=arguments.channels,
            working_size=arguments.working_size,
            pointers=arguments.pointers,
            precision=arguments.precision,
            model="model.onnx",
            model_sha256=hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
            **described,
        )
        parity = measure_parity(model, folder / "model.onnx", spec)
        fastest = min(parity, key=lambda name: parity[name]["milliseconds"])
        if arguments.runtime != "auto" and arguments.runtime not in parity:
            raise EngineError(f"runtime {arguments.runtime} is not installed here: {', '.join(parity)} would be")
        spec = replace(spec, parity=parity, runtime=fastest if arguments.runtime == "auto" else arguments.runtime)
        spec.save(folder / "engine.yaml")
        folder.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
    if progress:
        print(parity_table(spec))
    return out


def parity_table(spec: EngineSpec) -> str:
    """The parity report as a person reads it."""
    lines = [f"{'runtime':14} {'ms/step':>8}  share of values that differ from PyTorch (worst of the steps)"]
    for name, report in spec.parity.items():
        lines.append(
            f"{name:14} {report['milliseconds']:8.1f}  " + ", ".join(f"{key} {value:.3%}" for key, value in report["differs"].items())
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="engine folder to write")
    parser.add_argument(
        "--rig",
        default="",
        metavar="YAML|BAG|NAME",
        help="rig file, bag, or name of a shipped rig: chooses all sizes below that are not given",
    )
    parser.add_argument("--network", default="recon4d_geometric", help="one of " + ", ".join(NETWORKS) + " (default: %(default)s)")
    parser.add_argument("--config", default="", help="stereo (rectified pair, left first) or surround (any other rig)")
    parser.add_argument("--cameras", type=int, default=0, metavar="N", help="number of cameras")
    parser.add_argument("--size", default="", metavar="HxW", help="input images, height x width")
    parser.add_argument("--working-size", default="", metavar="hxw", help="depth, height x width (multiples of 4)")
    parser.add_argument("--channels", type=int, default=0, help="1 grey or 3 RGB (default: 3)")
    parser.add_argument("--pointers", type=int, default=2048, metavar="M", help="capacity of the memory (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", help="fp32: geometry needs it (default: %(default)s)")
    parser.add_argument(
        "--runtime", default="auto", help="default runtime of the engine: openvino, onnxruntime, or auto, the fastest measured (default)"
    )
    parser.add_argument("--force", action="store_true", help="replace --out")


def run(arguments: argparse.Namespace) -> int:
    chosen: dict[str, Any] = asdict(default_export_arguments(_find_rig(arguments.rig))) if arguments.rig else {}
    given = {
        "config": arguments.config,
        "cameras": arguments.cameras,
        "input_size": _parse_size("--size", arguments.size),
        "working_size": _parse_size("--working-size", arguments.working_size),
        "channels": arguments.channels,
    }
    chosen |= {name: value for name, value in given.items() if value}
    chosen |= {"network": arguments.network, "pointers": arguments.pointers, "precision": arguments.precision, "runtime": arguments.runtime}
    if "cameras" not in chosen or "input_size" not in chosen:
        raise ParameterError("expected --rig, or --cameras and --size")
    chosen.setdefault("config", "surround")
    if "working_size" not in chosen:
        height, width = chosen["input_size"]
        across = min(1024 if chosen["config"] == "stereo" else 320, width // 8 * 8)
        chosen["working_size"] = (max(64, round(across * height / width / 4) * 4), across)
    path = export_engine(arguments.out, ExportArguments(**chosen), force=arguments.force, progress=True)
    print(f"wrote {path}")
    return 0


def _check(a: ExportArguments) -> None:
    """Raises ParameterError if the arguments make no network."""
    problems = (
        (a.network not in NETWORKS, f"network {a.network!r} is not known: expected one of {', '.join(NETWORKS)}"),
        (a.config not in CONFIGS, f"config {a.config!r} is not known: expected one of {', '.join(CONFIGS)}"),
        (a.precision != "fp32", f"precision {a.precision!r} is not offered: geometry needs fp32"),
        (not 1 <= a.cameras <= 16, f"cameras is {a.cameras}: expected 1 to 16"),
        (a.config == "stereo" and a.cameras != 2, f"cameras is {a.cameras}: config stereo takes 2"),
        (a.channels not in (1, 3), f"channels is {a.channels}: expected 1 (grey) or 3 (RGB)"),
        (not 16 <= a.pointers <= 16384, f"pointers is {a.pointers}: expected 16 to 16384"),
        (
            min(a.input_size) < 32 or max(a.input_size) > 8192,
            f"input size is {a.input_size[1]}x{a.input_size[0]}: expected 32 to 8192 pixels",
        ),
        (
            any(size % 4 or size < 64 for size in a.working_size),
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
    if not (height.isdigit() and width.isdigit()):
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
