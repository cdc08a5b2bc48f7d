"""`recon4d info`: what a bag, an engine folder, a rig file or a checkpoint holds; or every
parameter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recon4d_ros.bags import BagReader
from recon4d_ros.bags.reader import METADATA
from recon4d_ros.bags.rig import camera_topics
from recon4d_ros.cameras.rig import load_rig, load_rig_file, save_rig
from recon4d_ros.cameras.rig_check import check_rig
from recon4d_ros.commands.common import add_bag_rig, bag_rig
from recon4d_ros.engine import describe as describe_engine
from recon4d_ros.engine import layers
from recon4d_ros.errors import BagError, CalibrationError, EngineError, OutputError, Recon4dError
from recon4d_ros.parameters import ParameterInfo, describe
from recon4d_ros.paths import user_path
from recon4d_ros.reconstructor import Parameters
from recon4d_ros.types import Rig

EPILOG = """examples:
  recon4d info drive/            cameras, topics, length and truth of a bag
  recon4d info engines/NAME      network, sizes, runtime and parity of an engine
  recon4d info my_car.yaml       the cameras of a rig file
  recon4d info drive/ --save-rig my_car.yaml    the bag's cameras as a rig file, to add what a bag cannot say (masks of the ego-vehicle)
  recon4d info point3r.pth       which published system a checkpoint is of, its configuration, and what is missing or wrong (takes PyTorch)
  recon4d info --parameters      every parameter with default, range and meaning
"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        type=user_path,
        help=(
            "bag (folder, .mcap, .db3), engine folder, rig file or checkpoint (.pth, .pt,"
            " .safetensors)"
        ),
    )
    parser.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="a bag: only these cameras, in this order"
    )
    add_bag_rig(parser)
    parser.add_argument(
        "--save-rig",
        type=user_path,
        metavar="YAML",
        help="write the rig of a bag, or of a rig file, as a rig file",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="list every layer of a TensorRT engine, which takes the GPU it is for",
    )
    parser.add_argument("--parameters", action="store_true", help="list every parameter")


def run(arguments: argparse.Namespace) -> int:
    if arguments.parameters:
        print("\n".join(parameter_lines(list(describe(Parameters)))))
    elif arguments.path is None:
        raise Recon4dError("expected a path, or --parameters (see `recon4d info --help`)")
    else:
        found = {"cameras": arguments.cameras, **bag_rig(arguments)}
        print(describe_path(arguments.path, **found))
        if arguments.layers:
            print("\n".join(layer_lines(arguments.path)))
        if arguments.save_rig:
            _save_rig(arguments.path, arguments.save_rig, **found)
    return 0


def _save_rig(path: Path, file: Path, **found: Any) -> None:
    """Raises the error of the kind of file it is, and OutputError where there is a file already."""
    if file.exists():
        raise OutputError(f"{file} is there already: expected the name of a new rig file")
    if path.suffix in (".yaml", ".yml"):
        given = load_rig_file(path)
        save_rig(given.rig, file, given.topics)
    else:
        with BagReader(path) as reader:
            rig = reader.rig(**found)
            topics = camera_topics(reader, rig, **found)
            save_rig(rig, file, topics)
    print(f"wrote {file}")


def describe_path(path: Path, **found: Any) -> str:
    """Text for a person; found: what `BagReader.rig` takes. Raises the error of the kind of file it
    is."""
    if not path.exists():
        raise BagError(f"{path}: no such file or folder")
    if (path / "engine.yaml").is_file():
        return describe_engine(path)
    if path.suffix in (".yaml", ".yml") and path.name != METADATA:
        return "\n".join(rig_lines(load_rig(path)))
    if path.suffix in (".pth", ".pt", ".safetensors"):
        return "\n".join(_checkpoint_lines(path))
    with BagReader(path) as reader:
        return "\n".join(bag_lines(reader, **found))


def layer_lines(folder: Path) -> list[str]:
    """Number, kind and name of every layer of a TensorRT engine. Raises EngineError."""
    return [
        f"  layer {index:4}  {kind:20}  {name}" for index, (name, kind) in enumerate(layers(folder))
    ]


def _checkpoint_lines(path: Path) -> list[str]:
    try:
        from recon4d_ros.networks.checkpoint import identify  # PyTorch: not in the runtime
    except ModuleNotFoundError as missing:
        raise EngineError(
            f"{path}: reading a checkpoint takes {missing.name}: `make dev` installs it"
        ) from None
    return list(identify(path).lines())


def bag_lines(reader: BagReader, **found: Any) -> list[str]:
    """A bag's length, topics and rig, and what was made of them; a rig that cannot be found is
    said, not an error here."""
    lines = [f"{reader.path}: {reader.info().duration_s:.1f} s"]
    width = max((len(topic) for topic in reader.topics), default=0)
    lines += [
        f"  {topic:{width}}  {info.count:6d}  {info.type}"
        for topic, info in sorted(reader.topics.items())
    ]
    try:
        rig = reader.rig(**found)
    except Recon4dError as error:
        return [*lines, *(f"  note: {note}" for note in reader.notes), f"no rig: {error}"]
    return [*lines, *rig_lines(rig), *(f"  note: {note}" for note in reader.notes)]


def rig_lines(rig: Rig) -> list[str]:
    lines = [f"rig {rig.name}: {len(rig.cameras)} cameras"]
    for camera in rig.cameras:
        x, y, z = camera.T_base_camera[:3, 3]
        size = f"{camera.width}x{camera.height}"
        lines.append(
            f"  {camera.name:20} {size}, f {camera.k[0, 0]:.1f} px, {camera.distortion_model}, at"
            f" ({x:.2f}, {y:.2f}, {z:.2f}) m"
        )
    try:
        return lines + [f"  note: {note}" for note in check_rig(rig)]
    except CalibrationError as error:
        return [*lines, f"  not usable: {error}"]


def parameter_lines(infos: list[ParameterInfo]) -> list[str]:
    return [
        f"{info.name} = {info.default}  [{parameter_range(info)}]\n    {info.description}"
        for info in infos
    ]


def parameter_range(info: ParameterInfo) -> str:
    """A parameter's admitted values as a person writes them."""
    if info.choices:
        return " | ".join(info.choices)
    if info.minimum is None and info.maximum is None:
        return info.type.__name__
    return (
        f"{'' if info.minimum is None else f'{info.minimum:g}'} .."
        f" {'' if info.maximum is None else f'{info.maximum:g}'}".strip()
    )
