"""The dataclasses' parameters as ROS parameters: one declaration, with description and range, and
one reading at configure.

The algorithm's own (`reconstructor.Parameters`) and the node's (`NodeParameters`) are declared
alike. Each can be set until the node is configured and takes effect there; LIVE ones can be set at
any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from recon4d_ros.errors import ParameterError
from recon4d_ros.parameters import ParameterInfo, build, check, describe
from recon4d_ros.reconstructor import Parameters
from recon4d_ros.ros.node_parameters import CameraParameters, NodeParameters

LIVE = frozenset(["map_publish_period", "grid_publish_period", "output_folder"])
READ_ONLY = frozenset(["autostart", "build_only"])
_BIG = {float: 1e308, int: 2**62}


def all_parameters() -> Iterator[ParameterInfo]:
    """Every parameter of the node but those per camera, in the order of config/recon4d.yaml."""
    yield from describe(NodeParameters)
    yield from describe(Parameters)


def descriptor(info: ParameterInfo) -> ParameterDescriptor:
    """Description and range as ROS tools show them."""
    message = ParameterDescriptor(
        name=info.name, description=info.description, read_only=info.name in READ_ONLY
    )
    notes = []
    if info.choices:
        notes.append(f"one of: {', '.join(info.choices)}")
    if info.name not in LIVE | READ_ONLY:
        notes.append("settable until the node is configured")
    message.additional_constraints = "; ".join(notes)
    if info.minimum is not None or info.maximum is not None:
        big = _BIG[info.type]
        low = info.type(-big if info.minimum is None else info.minimum)
        high = info.type(big if info.maximum is None else info.maximum)
        if info.type is float:
            message.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        else:
            message.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return message


def _ros_default(info: ParameterInfo) -> Any:
    """The default as rclpy takes it; an empty tuple has no type of its own, so it is told by
    Parameter.Type."""
    if info.type is tuple:
        return list(info.default) if info.default else Parameter.Type.STRING_ARRAY
    return info.default


def declare(node: Node, info: ParameterInfo, prefix: str = "") -> str:
    """Declare one parameter. Returns "" or, if what the user gave cannot be taken, the sentence
    that says so (the default then stands)."""
    name = prefix + info.name
    if node.has_parameter(name):
        return ""
    try:
        node.declare_parameter(name, _ros_default(info), descriptor(info))
        return ""
    except InvalidParameterTypeException:
        given = node._parameter_overrides[name].value
        sentence = (
            f"parameter {name} is {given!r}: expected a"
            f" {'list' if info.type is tuple else info.type.__name__}"
        )
        if info.type is float and isinstance(given, int):
            sentence += f" (write {given}.0)"
    except InvalidParameterValueException:
        given = node._parameter_overrides[name].value
        sentence = f"parameter {name} is {given!r}: expected {info.minimum} to {info.maximum}"
    node.declare_parameter(name, _ros_default(info), descriptor(info), ignore_override=True)
    return sentence


def read(node: Node, info: ParameterInfo, prefix: str = "") -> Any:
    """The parameter's value, checked. Raises ParameterError."""
    value = node.get_parameter_or(
        prefix + info.name, Parameter(prefix + info.name, Parameter.Type.NOT_SET)
    ).value
    if value is None:
        return info.default
    if info.type is tuple:
        value = tuple(
            item for item in value if item != ""
        )  # YAML has no typed empty list: [""] says the same
    try:
        return check(info, value)
    except ParameterError as error:
        raise ParameterError(
            str(error).replace(f"parameter {info.name} ", f"parameter {prefix}{info.name} ", 1)
        ) from error


def read_all(node: Node) -> tuple[NodeParameters, Parameters]:
    """Both dataclasses from the node's parameters. Raises ParameterError."""
    own = build(NodeParameters, {info.name: read(node, info) for info in describe(NodeParameters)})
    infos = list(describe(Parameters))
    keys = {
        name: node._parameter_overrides[name].value
        for name in node._parameter_overrides
        if _is_key(name, infos)
    }
    algorithm = build(Parameters, {info.name: read(node, info) for info in infos} | keys)
    return own, algorithm


def _is_key(name: str, infos: Iterable[ParameterInfo]) -> bool:
    """Whether it names an entry of a keyed parameter, such as sync.offset.right."""
    return any(info.keyed and name.startswith(f"{info.name}.") for info in infos)


def declare_camera(node: Node, camera: str) -> dict[str, str]:
    """Declare one camera's parameters; sentences of those that cannot be taken, by name, as
    `declare`."""
    prefix = f"{camera}."
    return {
        prefix + info.name: sentence
        for info in describe(CameraParameters)
        if (sentence := declare(node, info, prefix))
    }


def read_camera(node: Node, camera: str) -> CameraParameters:
    """One camera's parameters, declared before. Raises ParameterError."""
    return build(
        CameraParameters,
        {info.name: read(node, info, f"{camera}.") for info in describe(CameraParameters)},
    )


def refuse_when_configured(configured: bool, parameters: list[Parameter]) -> SetParametersResult:
    """The on-set answer: a parameter that takes effect at configure is refused afterwards, with its
    sentence, and choices are held."""
    known = {info.name: info for info in all_parameters()}
    of_a_camera = {info.name: info for info in describe(CameraParameters)}
    for item in parameters:
        camera, _, name = item.name.rpartition(".")
        info = known.get(item.name) or (
            of_a_camera.get(name) if camera and "." not in camera else None
        )
        if info is None:
            continue
        if configured and item.name not in LIVE:
            return SetParametersResult(
                successful=False,
                reason=f"parameter {item.name} is read at configure: clean the node up first",
            )
        if info.choices and item.value not in info.choices:
            expected = ", ".join(info.choices)
            return SetParametersResult(
                successful=False,
                reason=f"parameter {item.name} is {item.value!r}: expected one of {expected}",
            )
    return SetParametersResult(successful=True)


def unknown_overrides(node: Node) -> list[str]:
    """Names that the user gave and nobody declared: most often a typing error."""
    infos = list(all_parameters())
    return sorted(
        name
        for name in node._parameter_overrides
        if not node.has_parameter(name)
        and not name.startswith("qos_overrides.")
        and not _is_key(name, infos)
    )
