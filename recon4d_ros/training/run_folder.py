"""The folder of a training run: its last checkpoint and its log, so that a run that was cut off
goes on; and the rate's schedule."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from recon4d_ros.errors import EngineError
from recon4d_ros.paths import make_folder

CHECKPOINT, LOG = "last.pt", "log.jsonl"


class RunFolder:
    def __init__(self, out: Path) -> None:
        self.path = make_folder(out)

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    def load(self) -> dict[str, Any] | None:
        """What `save` was given last; None in a new folder. Raises EngineError if it is damaged."""
        if not self.checkpoint.is_file():
            return None
        try:
            return torch.load(self.checkpoint, weights_only=True)
        except Exception as error:  # damaged archives and pickles raise nearly anything
            raise EngineError(
                f"{self.checkpoint}: is no checkpoint of this run ({type(error).__name__})"
            ) from None

    def save(self, content: dict[str, Any]) -> None:
        """In the last one's place, or not at all."""
        part = self.checkpoint.with_suffix(".part")
        torch.save(content, part)
        part.rename(self.checkpoint)

    def log(self, entry: dict[str, Any]) -> None:
        with (self.path / LOG).open("a") as file:
            file.write(json.dumps(entry) + "\n")


def cosine(progress: float, last: float) -> float:
    """Share of the highest rate at 0..1 of a run: half a cosine from 1 down to `last`."""
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def warmed_up(step: int, steps: int, first: float = 0.0) -> float:
    """Share of the rate in the first `steps`: in a straight line from `first` to 1."""
    return first + (1 - first) * min(1.0, (step + 1) / max(1, steps))
