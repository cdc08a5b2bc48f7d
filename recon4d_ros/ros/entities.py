"""Subscriptions and publishers as the user's names and QoS overrides make them: what is impossible
is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos_overriding_options import InvalidQosOverridesError

from recon4d_ros.errors import ParameterError


@contextmanager
def making(what: str) -> Iterator[None]:
    """Around the creation of a subscription or publisher. Raises ParameterError `<what>: <why>` for
    what its QoS overrides ask for."""
    try:
        yield
    except (
        InvalidQosOverridesError,
        ParameterException,
        RuntimeError,
    ) as error:  # rcl's own errors are RuntimeErrors
        raise ParameterError(
            f"{what}: {' '.join(str(error).split())} (expected QoS overrides that ROS 2 knows)"
        ) from error


def check_topic(node: Node, parameter: str, topic: str) -> None:
    """Raises ParameterError if a topic cannot have this name."""
    try:
        node.resolve_topic_name(topic)
    except RuntimeError as error:
        why = str(error).removeprefix("failed to resolve name: ").split(", at ")[0]
        raise ParameterError(
            f"parameter {parameter} is {topic!r}: expected the name of a topic ({why})"
        ) from error
