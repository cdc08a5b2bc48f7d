"""What an engine is held against: outputs and memory over a few steps of example scenes, as a file
that a process without PyTorch reads.

python -m recon4d_ros.export.reference FOLDER RUNTIME OUT.npz       what a runtime computes
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.engine import load_spec, start_runtime
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import empty_outputs
from recon4d_ros.errors import EngineError
from recon4d_ros.export.apart import end_with_parent
from recon4d_ros.export.scene import example_inputs

STEPS = 3


def inputs_of(spec: EngineSpec, step: int) -> dict[str, NDArray]:
    """The graph's inputs of one step, without the memory."""
    every = example_inputs(spec, step)
    return {name: every[name] for name in spec.inputs if name in every}


def given(expected: Mapping[str, NDArray], spec: EngineSpec, step: int) -> dict[str, NDArray]:
    """The inputs of one step of a reference, without the memory: its own, if it was made of
    recorded steps."""
    if f"{step}/given/images" not in expected:
        return inputs_of(spec, step)
    return {
        name: expected[f"{step}/given/{name}"]
        for name in spec.inputs
        if name not in spec.options["memory"]
    }


def from_pytorch(
    path: Path, step: Any, spec: EngineSpec, recorded: Sequence[Path] = ()
) -> dict[str, tuple[int, ...]]:
    """What the network's step (torch.nn.Module) computes in float32, one array per "step/output";
    gives the outputs' shapes.

    recorded: files of what a graph was given in consecutive steps, memory included (quantize.py),
    in place of the example scene; the memory of the first one is the memory to begin with. Raises
    EngineError.
    """
    import torch

    memory_names = list(spec.options["memory"])
    arrays: dict[str, NDArray] = {}
    for index, file in enumerate(recorded):
        told = np.load(file)
        arrays |= {
            f"{index}/given/{name}": told[name] for name in spec.inputs if name not in memory_names
        }
        arrays |= {f"-1/new_{name}": told[name] for name in memory_names if index == 0}
    state = [torch.from_numpy(array) for array in memory_before(arrays, spec, 0).values()]
    for index in range(STEPS):
        with torch.inference_mode():
            result = step(
                *(torch.from_numpy(array) for array in given(arrays, spec, index).values()), *state
            )
        if len(result) != len(spec.outputs):
            raise EngineError(
                f"network {spec.network}: its step gives {len(result)} tensors: expected"
                f" {', '.join(spec.outputs)}"
            )
        for name, tensor in zip(spec.outputs, result, strict=True):
            if not torch.isfinite(tensor.float()).all():
                raise EngineError(
                    f"network {spec.network}: its output {name} is not finite, with these weights"
                )
            arrays[f"{index}/{name}"] = tensor.numpy()
        state = list(result[len(result) - len(memory_names) :])
    return _write(path, arrays, spec)


def from_runtime(path: Path, folder: Path, spec: EngineSpec, runtime: str) -> None:
    """What another runtime computes from the folder's model. Raises EngineError."""
    engine = start_runtime(folder, spec, runtime)
    arrays: dict[str, NDArray] = {}
    for index in range(STEPS):
        outputs = empty_outputs(spec)
        engine.run(inputs_of(spec, index), outputs)
        arrays |= {f"{index}/{name}": array for name, array in outputs.items()}
        arrays |= {
            f"{index}/new_{name}": np.array(engine.memory(name)) for name in spec.options["memory"]
        }
    engine.close()
    _write(path, arrays, spec)


def memory_before(
    expected: Mapping[str, NDArray], spec: EngineSpec, step: int
) -> dict[str, NDArray]:
    """The memory that the reference had before one of its steps: zeros before the first, unless it
    says otherwise."""
    keys = {name: f"{step - 1}/new_{name}" for name in spec.options["memory"]}
    shapes = {name: tuple(shape) for name, shape in spec.options["memory"].items()}
    return {
        name: expected[key] if key in expected else np.zeros(shapes[name], np.float32)
        for name, key in keys.items()
    }


def _write(
    path: Path, arrays: Mapping[str, NDArray], spec: EngineSpec
) -> dict[str, tuple[int, ...]]:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return {name: tuple(arrays[f"0/{name}"].shape) for name in spec.outputs}


if __name__ == "__main__":
    end_with_parent()
    try:
        from_runtime(
            Path(sys.argv[3]), Path(sys.argv[1]), load_spec(Path(sys.argv[1])), sys.argv[2]
        )
    except EngineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
