"""Stand-in weights: seeded numbers in place of a checkpoint. They let everything be tried and
timed; what comes out means nothing."""

from __future__ import annotations

import dataclasses
import importlib
import math
import typing
import zlib
from typing import Any

import torch
from torch import nn

from recon4d_ros.errors import EngineError

NAME = "stand-in"  # in place of a checkpoint's file and of its SHA-256


def configuration(network: str, text: str) -> Any:
    """The published configuration of a network (a module of this package), with the fields that
    `text` ("depth=2,width=64") gives.

    Raises EngineError for a field or a value that the network does not have.
    """
    module = importlib.import_module(f"{__package__}.{network}")
    kind = typing.get_type_hints(module.configuration_of)["return"]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in fields:
            raise EngineError(
                f"stand-in weights: {network} has no {name!r}: expected some of {', '.join(fields)}"
            )
        default: Any = fields[name].default
        try:
            given[name] = (
                value
                if isinstance(default, str)
                else type(default)(float(value))
                if default is not None
                else int(value)
            )
        except (TypeError, ValueError, OverflowError):
            raise EngineError(
                f"stand-in weights: {name} is {value!r}: expected a value such as {default}"
            ) from None
    try:
        return kind(**given)
    except EngineError as error:
        raise EngineError(f"stand-in weights: {error}") from None


def fill(network: nn.Module) -> nn.Module:
    """Gives a network (which may be on the meta device) numbers of about the size that training
    leaves, each a function of its name."""
    values = {}
    for name, like in network.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if not like.is_floating_point():
            values[name] = torch.zeros(like.shape, dtype=like.dtype)
            continue
        noise = torch.randn(like.shape, generator=generator)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_var":
            values[name] = 1 + 0.1 * noise.abs()
        elif leaf in ("bias", "running_mean"):
            values[name] = 0.02 * noise
        elif noise.dim() == 1:  # gains
            values[name] = 1 + 0.02 * noise
        elif noise.dim() == 3:  # tokens and slots
            values[name] = noise.mul_(0.2)
        else:
            values[name] = noise.div_(math.sqrt(max(1, math.prod(noise.shape[1:]))))
    network.load_state_dict(values, assign=True)
    adjust = getattr(network, "stand_in", None)  # what a network cannot do without
    if adjust is not None:
        adjust()
    return network.eval()
