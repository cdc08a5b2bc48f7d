"""What several commands share: their engine and parameter arguments, and what those say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from recon4d_ros.errors import ParameterError
from recon4d_ros.parameters import build, flatten
from recon4d_ros.reconstructor import Parameters


def add_engine_and_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        default="",
        metavar="NAME|DIR",
        help="engine folder, or the name of a shipped one (default: the shipped one that fits the rig)",
    )
    parser.add_argument("--parameters", type=Path, metavar="YAML", help="parameter file (as the node takes it, or plain nested names)")
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one parameter, e.g. -p mapping.voxel_size=0.2; may be repeated (`recon4d info --parameters` lists them)",
    )


def parameters_from(arguments: argparse.Namespace) -> Parameters:
    """Parameters of the file and of -p, the latter on top. Raises ParameterError."""
    return build(Parameters, parameter_values(arguments.parameters, arguments.parameter))


def parameter_values(file: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Dotted names to values, not yet checked. A ROS parameter file is unwrapped, and its node-only names left out."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            tree = yaml.safe_load(file.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ParameterError(f"parameter file {file}: cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(tree, dict):
            raise ParameterError(f"parameter file {file}: expected names with values")
        wrapped = [node["ros__parameters"] for node in tree.values() if isinstance(node, dict) and "ros__parameters" in node]
        flat = flatten(wrapped[0] if wrapped else tree)
        stages = tuple(f"{stage}." for stage in Parameters.__dataclass_fields__)
        values = {name: value for name, value in flat.items() if not wrapped or name.startswith(stages)}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ParameterError(f"-p {assignment}: expected NAME=VALUE")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ParameterError(f"-p {assignment}: {text!r} is not a value as YAML has it") from None
    return values
