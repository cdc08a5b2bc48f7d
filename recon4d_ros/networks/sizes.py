"""What the checkpoints of transformers tell of their sizes, and which sizes make sense."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.checkpoint import ModelText


def depth_of(shapes: Mapping[str, tuple[int, ...]], blocks: str) -> int:
    """How many blocks a checkpoint has under a name such as "enc_blocks", by its parameters
    "enc_blocks.0.…" and on."""
    name = re.compile(rf"{re.escape(blocks)}\.(\d{{1,4}})\.")
    return 1 + max((int(match[1]) for key in shapes if (match := name.match(key))), default=-1)


def arguments_of(model: ModelText | None, fixed: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a checkpoint's model string, or none. Raises EngineError where one of
    `fixed` has another value: ours is the only one that is known."""
    arguments = model.arguments if model else {}
    for name, known in fixed.items():
        if arguments.get(name, known) != known:
            raise EngineError(
                f"its model string has {name}={arguments[name]!r}, expected {known!r}"
            )
    return arguments


def check_heads(*widths: tuple[int, int]) -> None:
    """widths: (channels, heads). A rotation turns each head's channels by pairs, rows and columns
    apart: multiples of 4. Raises EngineError."""
    for width, heads in widths:
        if heads < 1 or width < 1 or width % (4 * heads):
            raise EngineError(f"{heads} heads do not divide {width} channels into multiples of 4")
