"""The authors' outputs in golden/: parameter names and shapes, the weights they were made with, and
how far an output is from one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from golden import weights

GOLDEN = Path(__file__).parent / "golden"


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a checkpoint."""
    content = json.loads(gzip.decompress((GOLDEN / f"{name}.manifest.json.gz").read_bytes()))
    return {
        key: tuple(value[0] if value and isinstance(value[0], list) else value)
        for key, value in content.items()
    }


def golden_weights(name: str) -> dict[str, Any]:
    """A tensor of every parameter of a checkpoint: those that the golden outputs were made with."""
    import torch  # a test of the runtime alone has none

    return {
        key: torch.from_numpy(np.asarray(weights.tensor(key, shape))).reshape(shape)
        for key, shape in manifest(name).items()
    }


def outputs(name: str) -> dict[str, np.ndarray]:
    """What the authors' code took and gave."""
    return dict(np.load(GOLDEN / f"{name}.npz"))


def relative(ours: Any, theirs: np.ndarray) -> float:
    """Norm of the difference of a tensor to the authors' array, by the array's."""
    return float(np.linalg.norm(ours.numpy() - theirs) / np.linalg.norm(theirs))
