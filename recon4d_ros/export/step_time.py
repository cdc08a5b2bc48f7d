"""How long an engine's step alone takes, and how much memory: in a process of its own, on inputs of
the right shapes.

python -m recon4d_ros.export.step_time FOLDER RUNTIME THREADS STEPS       one line of JSON
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon4d_ros.engine import load_spec, start_runtime
from recon4d_ros.engine.hosted import empty_outputs
from recon4d_ros.errors import EngineError
from recon4d_ros.export.apart import end_with_parent, run_apart
from recon4d_ros.export.scene import example_inputs
from recon4d_ros.runs.statistics import peak_rss_mib


@dataclass(frozen=True)
class StepTime:
    """load_seconds: until the first step could begin. milliseconds: of each step, the first one
    included. peak_rss_mib: of the whole process."""

    network: str
    device: str
    load_seconds: float
    milliseconds: tuple[float, ...]
    peak_rss_mib: float

    def table(self) -> str:
        every = ", ".join(f"{one:.0f}" for one in self.milliseconds)
        later = self.milliseconds[1:] or self.milliseconds
        return (
            f"{self.network} on {self.device}: {np.median(later):.0f} ms a step (median after the"
            f" first; all: {every}), loaded in {self.load_seconds:.1f} s,"
            f" {self.peak_rss_mib:.0f} MiB at most"
        )


def time_steps(folder: Path, runtime: str = "", threads: int = 0, steps: int = 5) -> StepTime:
    """In a process of its own. runtime: the engine's own by default. threads: 0 lets the runtime
    choose. Raises EngineError."""
    load_spec(folder)  # its sentence, if it is none
    ended = run_apart(__name__, str(folder), runtime, str(threads), str(steps))
    if ended.code:
        raise EngineError(f"engine {folder}: {ended.said}")
    fields = json.loads(ended.last)
    return StepTime(**{**fields, "milliseconds": tuple(fields["milliseconds"])})


def measure(folder: Path, runtime: str, threads: int, steps: int) -> StepTime:
    """Here. Raises EngineError."""
    spec = load_spec(folder)
    inputs = {
        name: np.ascontiguousarray(array)
        for name, array in example_inputs(spec, 0).items()
        if name in spec.inputs
    }
    begun = time.perf_counter()
    engine = start_runtime(folder, spec, runtime, threads)
    load_seconds = time.perf_counter() - begun
    times = []
    outputs = empty_outputs(spec)
    for _ in range(steps):
        begun = time.perf_counter()
        engine.run(inputs, outputs)
        times.append(round((time.perf_counter() - begun) * 1e3, 1))
    device = engine.device
    engine.close()
    peak = round(peak_rss_mib(), 1)
    return StepTime(spec.network, device, round(load_seconds, 2), tuple(times), peak)


if __name__ == "__main__":
    end_with_parent()
    try:
        found = measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        print(json.dumps(found.__dict__))
    except EngineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
