"""Parameters as data: each stage declares a frozen dataclass whose fields carry description and
range, and everything else reads that.

The node declares them to ROS, the command line and YAML files set them, the README's table is
generated from them, and a value out of range is one sentence. A stage's dataclass lives in the
stage's own file, beside the code that it steers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from recon4d_ros.errors import ParameterError

T = TypeVar("T")


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter as a user sees it. `name` is dotted (`mapping.voxel_size`); `minimum`/`maximum`
    are inclusive. keyed: text of `key=value,..`, which can be given as `name.key: value` as
    well."""

    name: str
    type: type
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    keyed: bool = False


def parameter(
    default: T,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    keyed: bool = False,
) -> T:
    """A dataclass field that is a user's parameter (see `ParameterInfo`); ranges are inclusive."""
    return dataclasses.field(
        default=default,
        metadata={
            "description": description,
            "minimum": minimum,
            "maximum": maximum,
            "choices": tuple(choices),
            "keyed": keyed,
        },
    )  # type: ignore[return-value]


def describe(cls: type, prefix: str = "") -> Iterator[ParameterInfo]:
    """Every parameter below a parameter dataclass (nested dataclasses become dotted names), in
    order of declaration."""
    instance = cls()
    for field in dataclasses.fields(cls):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            yield from describe(type(value), f"{prefix}{field.name}.")
        else:
            meta = field.metadata
            yield ParameterInfo(
                prefix + field.name,
                type(value),
                value,
                meta["description"],
                meta["minimum"],
                meta["maximum"],
                meta["choices"],
                meta["keyed"],
            )


def check(info: ParameterInfo, value: Any) -> Any:
    """`value` as the parameter's type. Raises ParameterError with one sentence if the type, range
    or choice is wrong."""
    if info.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if info.type is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, info.type) or (info.type is not bool and isinstance(value, bool)):
        raise ParameterError(f"parameter {info.name} is {value!r}: expected a {info.type.__name__}")
    return _in_range(info, value)


def _in_range(info: ParameterInfo, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"parameter {info.name} is {value}: expected a finite number")
    if info.choices and value not in info.choices:
        raise ParameterError(
            f"parameter {info.name} is {value!r}: expected one of {', '.join(info.choices)}"
        )
    if info.minimum is not None and value < info.minimum:
        raise ParameterError(f"parameter {info.name} is {value}: expected at least {info.minimum}")
    if info.maximum is not None and value > info.maximum:
        raise ParameterError(f"parameter {info.name} is {value}: expected at most {info.maximum}")
    return value


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A parameter dataclass from dotted names, e.g. build(Parameters, {"mapping.voxel_size": 0.2}).
    Raises ParameterError."""
    known = {info.name: info for info in describe(cls)}
    values = keys_folded(known.values(), values)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ParameterError(
            f"unknown parameter {unknown[0]}: `recon4d info --parameters` lists all {len(known)}"
        )
    return _build(cls, {name: check(known[name], value) for name, value in values.items()}, "")


def keys_folded(infos: Iterable[ParameterInfo], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, those of a keyed parameter's keys (`sync.offset.right`) folded into its own
    text."""
    keyed = [info.name for info in infos if info.keyed]
    folded: dict[str, Any] = {}
    for name, value in values.items():
        whole = next((one for one in keyed if name.startswith(f"{one}.")), None)
        if whole is None:
            folded[name] = f"{folded[name]},{value}" if folded.get(name) else value
        else:
            entry = f"{name.removeprefix(f'{whole}.')}={value}"
            folded[whole] = f"{folded[whole]},{entry}" if folded.get(whole) else entry
    return folded


def _build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    chosen = {}
    default = cls()
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = getattr(default, field.name)
        name = prefix + field.name
        if dataclasses.is_dataclass(value):
            chosen[field.name] = _build(type(value), values, name + ".")
        elif name in values:
            chosen[field.name] = values[name]
    return cls(**chosen)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings (a YAML file) as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
