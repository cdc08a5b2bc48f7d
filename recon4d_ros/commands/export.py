"""`recon4d export`: a network becomes an engine folder."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import yaml
from tqdm import tqdm

from recon4d_ros.cameras.calibration import input_size_for
from recon4d_ros.cameras.rig_check import check_rig
from recon4d_ros.commands.common import add_bag_rig, bag_rig, parse_size, warn
from recon4d_ros.errors import ParameterError
from recon4d_ros.export import (
    GEOMETRIC,
    MOTION,
    NETWORKS,
    ExportArguments,
    default_export_arguments,
    export_engine,
    rebuild,
)
from recon4d_ros.export.gpu import add_gpu_arguments, gpu_options
from recon4d_ros.export.tensorrt import Progress
from recon4d_ros.paths import user_path
from recon4d_ros.types import Rig
from recon4d_ros.yaml_text import load_yaml

EPILOG = """examples:
  recon4d export --rig my_car.yaml --out engines/my_car            the geometric engine, sizes chosen for the rig
  recon4d export --rig BAG --out engines/my_car                    rig found in a bag
  recon4d export --network recon4d_geometric --config stereo --cameras 2 --size 370x1226 --channels 1 --out engines/kitti
  recon4d export --network point3r --checkpoint point3r_512.pth --rig BAG --size 224x224 --pointers 1024 --out engines/point3r
  recon4d export --network point3r --checkpoint stand-in --rig BAG --size 224x224 --out engines/try      weights that mean nothing
  recon4d export --network point3r --checkpoint point3r_512.pth --rig BAG --size 224x224 --precision int8 --calibration BAG --out engines/i8
  recon4d export --from engines/point3r --runtime tensorrt --out engines/point3r_gpu       on the vehicle, without PyTorch
  recon4d export --from engines/point3r --runtime tensorrt-rtx --compute-capability 8.6 8.9 --out engines/point3r_rtx     anywhere

a learned network is exported for the rig's cameras (--rig, or --cameras and --image-size); --size is what it sees of each of them.
"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=user_path, required=True, metavar="DIR", help="engine folder to write"
    )
    parser.add_argument(
        "--rig",
        default="",
        metavar="YAML|BAG|NAME",
        help=(
            "rig file, bag, or name of a shipped rig: chooses the cameras and all sizes below that"
            " are not given"
        ),
    )
    add_bag_rig(parser)
    parser.add_argument(
        "--network",
        default=GEOMETRIC,
        help="one of " + ", ".join(NETWORKS) + " (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="FILE",
        help=(
            "a learned network's weights (.pth, .safetensors), or `stand-in`: weights without"
            " meaning, to try it"
        ),
    )
    parser.add_argument(
        "--config",
        default="",
        help="geometric: stereo (rectified pair, left first) or surround (any other rig)",
    )
    parser.add_argument("--cameras", type=int, default=0, metavar="N", help="number of cameras")
    parser.add_argument(
        "--size",
        default="",
        metavar="HxW",
        help="geometric: input images; learned: what the network sees of each",
    )
    parser.add_argument(
        "--working-size",
        default="",
        metavar="hxw",
        help="geometric: depth, height x width (multiples of 4)",
    )
    parser.add_argument(
        "--image-size",
        default="",
        metavar="HxW",
        help="learned: input images (default: the rig's, else --size)",
    )
    parser.add_argument("--channels", type=int, default=0, help="1 grey or 3 RGB (default: 3)")
    parser.add_argument(
        "--pointers",
        type=int,
        default=0,
        metavar="M",
        help="capacity of the memory (default: 2048, learned 1024)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="fp32, fp16, bf16, int8; geometry stays in fp32 (default: fp32)",
    )
    parser.add_argument(
        "--calibration",
        default="",
        metavar="BAG",
        help="int8: a drive like those to come, for the activations' ranges",
    )
    parser.add_argument(
        "--runtime",
        default="auto",
        help=(
            "onnx (or auto): the fastest CPU runtime measured; openvino; onnxruntime; tensorrt;"
            " tensorrt-rtx; torch (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the network's own; repeatable",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=user_path,
        metavar="DIR",
        help="build for --runtime tensorrt or tensorrt-rtx from this engine's ONNX",
    )
    parser.add_argument("--force", action="store_true", help="replace --out")
    add_gpu_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    gpu = gpu_options(arguments)
    if arguments.source:
        with _bar() as progress:
            rebuild(
                arguments.source,
                arguments.out,
                arguments.runtime,
                gpu,
                rig=_find_rig(arguments.rig, bag_rig(arguments)) if arguments.rig else None,
                force=arguments.force,
                say=lambda sentence: print(f"  {sentence}", flush=True),
                progress=progress,
            )
    else:
        options = dict(_option(text) for text in arguments.option)
        export_engine(
            arguments.out,
            _arguments(arguments),
            force=arguments.force,
            progress=True,
            gpu=gpu,
            **options,
        )
    print(f"wrote {arguments.out}")
    return 0


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """A build's progress on this terminal, if it is one."""
    with tqdm(total=100, unit="%", file=sys.stderr, disable=None, leave=False) as bar:

        def show(phase: str, done: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.update(max(round(100 * done) - bar.n, 0))

        yield show


def _arguments(arguments: argparse.Namespace) -> ExportArguments:
    if arguments.network == MOTION:  # of any number of cameras on any grid
        unused = ("rig", "size", "image_size", "working_size", "cameras", "channels", "pointers")
        if refused := [name for name in unused if getattr(arguments, name)]:
            raise ParameterError(
                f"--{refused[0].replace('_', '-')} does not apply to {MOTION}: its engine takes any"
                " number of cameras on any grid (--from with --rig builds it for TensorRT)"
            )
        return ExportArguments(
            network=MOTION,
            config="motion",
            cameras=1,
            input_size=(64, 64),
            working_size=(64, 64),
            checkpoint=arguments.checkpoint,
            calibration=arguments.calibration,
            precision=arguments.precision,
            runtime=arguments.runtime,
        )
    rig = _find_rig(arguments.rig, bag_rig(arguments)) if arguments.rig else None
    size, image_size = (
        _size("--size", arguments.size),
        _size("--image-size", arguments.image_size),
    )
    learned = arguments.network != GEOMETRIC
    chosen: dict[str, Any] = asdict(default_export_arguments(rig)) if rig and not learned else {}
    if learned:
        if rig and size:
            height, width, _ = input_size_for(rig, size)
            chosen = {"cameras": len(rig.cameras), "input_size": (height, width), "rig": rig}
        given: dict[str, Any] = {
            "input_size": image_size or chosen.get("input_size") or size,
            "working_size": size,
        }
    else:
        given = {
            "config": arguments.config,
            "input_size": size,
            "working_size": _size("--working-size", arguments.working_size),
        }
    given |= {
        "cameras": arguments.cameras,
        "channels": arguments.channels,
        "pointers": arguments.pointers or (1024 if learned else 2048),
    }
    chosen |= {name: value for name, value in given.items() if value}
    chosen |= {
        name: getattr(arguments, name)
        for name in ("network", "precision", "runtime", "checkpoint", "calibration")
    }
    if "cameras" not in chosen or "input_size" not in chosen:
        raise ParameterError(
            "expected --size, and --rig or --cameras"
            if learned
            else "expected --rig, or --cameras and --size"
        )
    chosen.setdefault("config", "learned" if learned else "surround")
    if size or given.get("working_size"):
        chosen["any_size"] = False
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
        return name, load_yaml(value)
    except yaml.YAMLError:
        raise ParameterError(f"--option {name} is {value!r}: expected a number") from None


def _size(name: str, text: str) -> tuple[int, int] | None:
    return parse_size(name, text) if text else None


def _find_rig(name: str, found: Mapping[str, Any]) -> Rig:
    """A rig that can be one; what is unlikely about it is told on standard error."""
    from recon4d_ros import paths
    from recon4d_ros.bags import BagReader
    from recon4d_ros.cameras.rig import load_rig

    path, notes = user_path(name), []
    shipped = paths.rigs() / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml"):
        rig = load_rig(path)
    elif not path.exists() and shipped.is_file():
        rig = load_rig(shipped)
    else:
        with BagReader(path) as reader:
            rig = reader.rig(**found)
            notes = reader.notes
    warn("export", [*notes, *check_rig(rig)])
    return rig
