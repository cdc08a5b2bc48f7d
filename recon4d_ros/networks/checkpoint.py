"""Checkpoint files of the published systems: read without running anything in them, recognised,
checked, loaded.

A file is safetensors, or what torch.save wrote: the parameters alone, or {"model" or "state_dict":
parameters, "args": ..., ...}. Besides tensors and plain values only argparse.Namespace may be in it
(the authors keep their options in one), and the options' model string, such as
"Point3R(Point3RConfig(enc_depth=24, ...))", is parsed, never evaluated. Names may carry the prefix
"module.".

Every system is a module of this package with `build(configuration) -> nn.Module` and
`configuration_of(shapes, model) -> configuration` (a frozen dataclass), which raises EngineError
where the file asks for what the network cannot do. For engines the module MODULE_step beside it has
`make_step` (step.py) and, where a rig decides options of the step, `options_for`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks import stand_in
from recon4d_ros.networks.step import StepOptions
from recon4d_ros.types import Calibration

Shapes = Mapping[str, tuple[int, ...]]
PREFIX = "module."
LONGEST_MODEL_TEXT = 20_000  # characters
LARGEST_SIZE = 16_384  # of any number in a configuration: the published ones are up to 1,024
NAMED = 3  # parameters that a sentence names before it says how many more


@dataclass(frozen=True)
class System:
    """module: its file in this package; marks: parameters that every checkpoint of it has, and no
    other system's."""

    module: str
    title: str
    marks: tuple[str, ...]


SYSTEMS = (
    System("point3r", "Point3R", ("pose_retriever.mem", "pts_patch_embed.proj.weight")),
    System("driv3r", "Driv3R", ("dust3r.patch_embed.proj.weight", "pos_patch_embed.proj.weight")),
    System("dymultidepth", "Dynamic-multiframe-depth", ("fusion_module.gamma",)),
    System(
        "sparse4d", "Sparse4D", ("head.instance_bank.anchor", "head.layers.0.weights_fc.weight")
    ),
    System(
        "uniscene",
        "UniScene",
        (
            "pts_bbox_head.bev_embedding.weight",
            "pts_bbox_head.transformer.can_bus_mlp.norm.weight",
            "img_neck.fpn_convs.3.conv.weight",
        ),
    ),
)


@dataclass(frozen=True)
class ModelText:
    """What a model string says: the names it calls, from the outside in, and all their keyword
    arguments."""

    names: tuple[str, ...]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """parameters by name, without prefix (mapped from the file, not yet read); model: what the
    options say, if they say it."""

    path: Path
    format: str
    parameters: Mapping[str, Tensor]
    model: ModelText | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.parameters.items()}


@dataclass(frozen=True)
class Description:
    """What a file holds: the system and its configuration (None: not recognised, or refused), and
    all that is missing or wrong."""

    path: Path
    format: str
    title: str | None
    configuration: Any
    count: int
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        """Text for a person."""
        title = self.title or "unknown system"
        lines = [f"{self.path}: {title}, {self.count / 1e6:.1f} million parameters ({self.format})"]
        if self.configuration is not None:
            values = [
                (field.name.replace("_", " "), getattr(self.configuration, field.name))
                for field in fields(self.configuration)
            ]
            width = max((len(name) for name, _ in values), default=0)
            lines += [f"  {name:{width}}  {value}" for name, value in values]
        return (
            lines
            + [f"  problem: {problem}" for problem in self.problems]
            + ([] if self.problems else ["  complete"])
        )


def identify(path: Path) -> Description:
    """Which system and configuration a checkpoint file holds, and what is wrong with it. Raises
    EngineError only if it cannot be read."""
    checkpoint = read(path)
    count = sum(value.numel() for value in checkpoint.parameters.values())
    system = _system(checkpoint.shapes)
    if system is None:
        known = ", ".join(each.title for each in SYSTEMS)
        return Description(
            path, checkpoint.format, None, None, count, (f"its parameters are of none of {known}",)
        )
    try:
        configuration, network = _build(system, checkpoint)
    except EngineError as error:
        return Description(path, checkpoint.format, system.title, None, count, (str(error),))
    problems = tuple(mismatches(network, checkpoint.shapes))
    return Description(path, checkpoint.format, system.title, configuration, count, problems)


def load(path: Path, name: str) -> nn.Module:
    """The network `name` (a System's module) with a checkpoint's parameters, in float32, ready to
    run. Raises EngineError."""
    checkpoint = read(path)
    system = _system(checkpoint.shapes)
    if system is None or system.module != name:
        raise EngineError(
            f"{path}: holds {system.title if system else 'an unknown system'}, expected a"
            f" checkpoint of {name}"
        )
    _, network = _build(system, checkpoint)
    fill(network, checkpoint)
    return network.eval()


def obtain(source: str, name: str) -> tuple[nn.Module, str]:
    """The network `name` from a checkpoint's file, and the file's SHA-256; or with stand-in weights
    (stand_in.py) for "stand-in" and "stand-in:FIELD=VALUE,..." (fields of its configuration).
    Raises EngineError."""
    kind, _, fields_given = source.partition(":")
    if kind != stand_in.NAME:
        network = load(Path(source), name)
        with open(source, "rb") as file:
            return network, hashlib.file_digest(file, "sha256").hexdigest()
    try:
        chosen = stand_in.configuration(name, fields_given)
    except ModuleNotFoundError:
        raise EngineError(f"network {name}: this version has no code for it") from None
    return stand_in.fill(_hollow(_module(name), chosen)), stand_in.NAME


def make_step(
    network: nn.Module,
    name: str,
    options: StepOptions,
    own: Mapping[str, Any],
    calibration: Calibration | None = None,
) -> nn.Module:
    """The step of the network `name` for an engine; own: options that only this network has;
    calibration: of the rig it is for, where there is one (`options_for` makes options of it).
    Raises EngineError."""
    try:
        module = _module(f"{name}_step")
    except ModuleNotFoundError:
        raise EngineError(
            f"network {name}: this version has no step for it, which an engine needs"
        ) from None
    for key, value in own.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise EngineError(f"network {name}: option {key} is {value!r}: expected a number")
    follow = getattr(module, "options_for", None)
    if calibration is not None and follow is not None:
        own = follow(network, calibration, own) | own
    try:
        return module.make_step(network, options, **own)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        raise EngineError(f"network {name}: has no option {unknown[1]!r}") from None


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")


def fill(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Gives a network (which may be on the meta device) a checkpoint's parameters, all of them or
    EngineError."""
    problems = mismatches(network, checkpoint.shapes)
    if problems:
        raise EngineError(f"{checkpoint.path}: " + "; ".join(problems))
    values = {}
    for name, expected in network.state_dict().items():
        value = checkpoint.parameters[name]
        if value.is_floating_point() != expected.is_floating_point():
            raise EngineError(
                f"{checkpoint.path}: {name} is of type {value.dtype}, expected {expected.dtype}"
            )
        if not torch.isfinite(value).all():
            raise EngineError(f"{checkpoint.path}: {name} holds values that are not finite")
        values[name] = value.to(expected.dtype)
    network.load_state_dict(values, assign=True)


def mismatches(network: nn.Module, found: Shapes) -> list[str]:
    """What keeps parameters of these shapes from being the network's: one sentence per kind, none
    if nothing does."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    both = [name for name in expected if name in found and found[name] != expected[name]]
    wrong = [f"{name} {_size(found[name])}, expected {_size(expected[name])}" for name in both]
    kinds = (
        ("missing", [name for name in expected if name not in found]),
        ("not expected", [name for name in found if name not in expected]),
        ("of another shape", wrong),
    )
    return [
        f"{len(names)} of {len(expected)} parameters {kind}: {_some(names)}"
        for kind, names in kinds
        if names
    ]


def read(path: Path) -> Checkpoint:
    """Raises EngineError where the file is none, is damaged, or holds what could run code."""
    if not path.is_file():
        raise EngineError(f"{path}: no such file; expected a checkpoint (.safetensors, .pth, .pt)")
    if path.suffix == ".safetensors":
        parameters, options, format = *_read_safetensors(path), "safetensors"
    else:
        parameters, options, format = *_read_torch(path), "torch"
    if not parameters:
        raise EngineError(
            f"{path}: holds no parameters; expected named tensors, or a dictionary with `model` or"
            " `state_dict`"
        )
    stripped = {name.removeprefix(PREFIX): value for name, value in parameters.items()}
    if len(stripped) < len(parameters):
        raise EngineError(f"{path}: holds parameters both with and without the prefix `{PREFIX}`")
    return Checkpoint(path, format, stripped, parse_model(options, path) if options else None)


def parse_model(text: str, where: object = "model string") -> ModelText:
    """Reads nested calls with literal arguments, "A(B(x=1, y=('exp', -inf, inf)))", as text.
    Anything else is an EngineError."""
    names: list[str] = []
    arguments: dict[str, Any] = {}

    def visit(node: ast.expr) -> None:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("expected calls by name")
        names.append(node.func.id)
        for inner in node.args:
            visit(inner)
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in arguments:
                raise ValueError("expected every keyword once")
            arguments[keyword.arg] = _literal(keyword.value)

    try:
        if len(text) > LONGEST_MODEL_TEXT:
            raise ValueError("too long")
        visit(ast.parse(text.strip(), mode="eval").body)
    except (
        ValueError,
        TypeError,
        OverflowError,
        SyntaxError,
        RecursionError,
        MemoryError,
    ) as error:
        shown = text if len(text) < 80 else text[:77] + "..."
        raise EngineError(
            f"{where}: cannot read the model string {shown!r} ({error}); expected"
            " NAME(NAME(key=value, ...))"
        ) from None
    return ModelText(tuple(names), arguments)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Constant):
        return node.value
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "float"
        and len(node.args) == 1
    ):
        return float(_literal(node.args[0]))  # float('inf')
    raise ValueError("expected literal values")


def _read_torch(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL (\S+)", str(error))
        if kind:
            text = (
                f"holds an object of class {kind[1]}; only tensors, plain values and"
                " argparse.Namespace are read (no code can run)"
            )
            raise EngineError(f"{path}: {text}") from None
        raise EngineError(f"{path}: not a checkpoint that torch.save wrote, or damaged") from None
    except Exception as error:  # damaged archives and pickles raise nearly anything
        raise EngineError(
            f"{path}: not a checkpoint that torch.save wrote, or damaged ({type(error).__name__})"
        ) from None
    if not isinstance(content, dict):
        raise EngineError(
            f"{path}: holds a {type(content).__name__}, expected named tensors, or a dictionary"
            " with `model` or `state_dict`"
        )
    inner = next(
        (content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)),
        content,
    )
    args = content.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args
    model = options.get("model") if isinstance(options, dict) else None
    parameters = {
        name: value
        for name, value in inner.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    return parameters, model if isinstance(model, str) else None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise EngineError(
            f"{path}: reading it needs the package safetensors (pip install safetensors)"
        ) from None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (
                file.metadata() or {}
            ).get("model")
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path}: not a safetensors file, or damaged ({error})") from None


def _system(shapes: Shapes) -> System | None:
    return next(
        (system for system in SYSTEMS if all(mark in shapes for mark in system.marks)), None
    )


def _build(system: System, checkpoint: Checkpoint) -> tuple[Any, nn.Module]:
    """The configuration that a checkpoint asks for, and its network without values."""
    name = f"{__package__}.{system.module}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise EngineError(
            f"{checkpoint.path}: {system.title} is recognised, but this version has no network"
            " for it"
        ) from None
    try:
        configuration = module.configuration_of(checkpoint.shapes, checkpoint.model)
        return configuration, _hollow(module, configuration)
    except EngineError as error:
        raise EngineError(f"{checkpoint.path}: {error}") from None


def _hollow(module: Any, configuration: Any) -> nn.Module:
    """A system's network without values. Raises EngineError for a configuration that asks for more
    than any network has."""
    for field in fields(configuration):
        value = getattr(configuration, field.name)
        if isinstance(value, int) and not 1 <= value <= LARGEST_SIZE:
            raise EngineError(
                f"{field.name.replace('_', ' ')} is {value}: expected 1 to {LARGEST_SIZE}"
            )
    with torch.device("meta"):
        return module.build(configuration)


def _some(names: list[str]) -> str:
    return "; ".join(names[:NAMED]) + (
        f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
