"""What several commands share: their engine and parameter arguments, and what those say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recon4d_ros.cameras.rig import BASE_FRAME
from recon4d_ros.errors import ParameterError
from recon4d_ros.parameters import build, describe, flatten, keys_folded
from recon4d_ros.paths import user_path
from recon4d_ros.reconstructor import Parameters
from recon4d_ros.ros.node_parameters import NODE_NAME, CameraParameters, NodeParameters
from recon4d_ros.yaml_text import load_yaml

NOT_TRACKED = 4  # exit code of a run that went to its end and tracked nothing (cli.EXIT_CODES)


def add_engine_and_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        default="",
        metavar="NAME|DIR",
        help=(
            "engine folder, or the name of a shipped one (default: the shipped one that fits the"
            " rig)"
        ),
    )
    parser.add_argument(
        "--parameters",
        type=user_path,
        metavar="YAML",
        help="parameter file (as the node takes it, or plain nested names)",
    )
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=(
            "one parameter, e.g. -p mapping.voxel_size=0.2; may be repeated (`recon4d info"
            " --parameters` lists them)"
        ),
    )


def add_base_frame(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-frame",
        default=BASE_FRAME,
        metavar="FRAME",
        help="the car's frame on /tf_static (default: %(default)s)",
    )


def add_bag_rig(parser: argparse.ArgumentParser) -> None:
    """The options for what a bag does not say of its cameras, or not clearly."""
    add_base_frame(parser)
    parser.add_argument(
        "--height",
        type=float,
        metavar="METRES",
        help=(
            "a bag without transforms to the car's frame: the first camera's height above the road;"
            " it is taken to look straight ahead"
        ),
    )
    for option, what in (("--image", "images"), ("--camera-info", "camera_info")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="CAMERA=TOPIC",
            help=f"a bag whose names leave it open: topic of a camera's {what}; may be repeated",
        )


def bag_rig(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `BagReader.rig` takes beside the cameras, from the options of add_bag_rig. Raises
    ParameterError."""
    return {
        "base_frame": arguments.base_frame,
        "height": arguments.height,
        "image_topics": _topics("--image", arguments.image),
        "info_topics": _topics("--camera-info", arguments.camera_info),
    }


def add_detections(parser: argparse.ArgumentParser) -> None:
    """The options for detections from elsewhere."""
    parser.add_argument(
        "--detections",
        action="append",
        default=[],
        metavar="CAMERA=TOPIC",
        help=(
            "vision_msgs/Detection2DArray of a camera's images: boxes with a class, which help to"
            " find what moves; may be repeated"
        ),
    )


def add_detector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detector",
        type=user_path,
        metavar="FILE.onnx",
        help=(
            "a detector of objects in images, with its description beside it in FILE.yaml"
            " (docs/detections.md): its boxes help to find what moves"
        ),
    )


def detection_topics(arguments: argparse.Namespace) -> dict[str, str]:
    """Camera -> topic. Raises ParameterError."""
    return _topics("--detections", arguments.detections)


def _topics(option: str, assignments: Sequence[str]) -> dict[str, str]:
    topics = {}
    for assignment in assignments:
        camera, equals, topic = assignment.partition("=")
        if not (camera and equals and topic.startswith("/")):
            raise ParameterError(f"{option} {assignment}: expected CAMERA=/TOPIC")
        topics[camera] = topic
    return topics


def warn(command: str, notes: Iterable[str]) -> None:
    """What a user should know, a line each on standard error."""
    for note in notes:
        print(f"recon4d {command}: warning: {note}", file=sys.stderr, flush=True)


def parse_size(option: str, text: str) -> tuple[int, int]:
    """(height, width) of HEIGHTxWIDTH. Raises ParameterError."""
    height, _, width = text.lower().partition("x")
    if not (
        height.isdecimal()
        and width.isdecimal()
        and 0 < int(height) < 2**16
        and 0 < int(width) < 2**16
    ):
        raise ParameterError(f"{option} is {text!r}: expected HEIGHTxWIDTH, e.g. 370x1226")
    return int(height), int(width)


def parameters_from(arguments: argparse.Namespace) -> Parameters:
    """Parameters of the file and of -p, the latter on top. Raises ParameterError."""
    return build(Parameters, parameter_values(arguments.parameters, arguments.parameter))


def parameter_values(file: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """The algorithm's parameters by dotted name, not yet checked. Raises ParameterError.

    Of a ROS parameter file those of the node's sections are taken and what only the node has is
    left out; a name that neither has is an error, whichever kind of file it is in.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            tree = load_yaml(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ParameterError(
                f"parameter file {file}: cannot be read: {' '.join(str(error).split())}"
            ) from None
        if not isinstance(tree, dict):
            raise ParameterError(f"parameter file {file}: expected names with values")
        sections = dict(_sections(tree))
        values = _of_the_node(file, sections) if sections else flatten(tree)
        infos = list(describe(Parameters))
        known = {info.name for info in infos}
        values = keys_folded(infos, values)
        if unknown := sorted(str(name) for name in values if name not in known):
            raise ParameterError(
                f"parameter file {file}: unknown parameter {unknown[0]}: `recon4d info"
                f" --parameters` lists all {len(known)}"
            )
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ParameterError(f"-p {assignment}: expected NAME=VALUE")
        try:
            values[name] = load_yaml(text)
        except yaml.YAMLError:
            raise ParameterError(
                f"-p {assignment}: {text!r} is not a value as YAML has it"
            ) from None
    return values


def _sections(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Node name, with its namespaces, and dotted parameters of every section of a ROS parameter
    file."""
    for key, value in tree.items():
        if key == "ros__parameters" and isinstance(value, Mapping):
            yield path, flatten(value)
        elif isinstance(value, Mapping):
            yield from _sections(value, f"{path}/{str(key).strip('/')}")


def _of_the_node(file: Path, sections: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What a ROS parameter file says to our node and is not the node's alone; a section of its name
    goes before one of a wildcard."""
    ours = [path for path in sections if path.rsplit("/", 1)[-1] in ("*", "**", NODE_NAME)]
    if not ours:
        raise ParameterError(
            f"parameter file {file}: expected a section /** or /{NODE_NAME}, it has"
            f" {', '.join(sections)}"
        )
    ours.sort(key=lambda path: path.endswith(NODE_NAME))
    values = {name: value for path in ours for name, value in sections[path].items()}
    of_node = {info.name for info in describe(NodeParameters)} | {
        "use_sim_time",
        "start_type_description_service",
    }
    of_camera = {info.name for info in describe(CameraParameters)}
    return {
        name: value
        for name, value in values.items()
        if not (
            name in of_node
            or name.startswith("qos_overrides.")
            or (name.count(".") == 1 and name.split(".")[1] in of_camera)
        )
    }
