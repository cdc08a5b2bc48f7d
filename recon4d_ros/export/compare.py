"""Does a runtime compute what PyTorch computes, how fast, and in how much memory? One process per runtime, without PyTorch.

    python -m recon4d_ros.export.compare FOLDER RUNTIME REFERENCE.npz       one line of JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.engine import load_spec, start_runtime
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import empty_outputs
from recon4d_ros.errors import EngineError
from recon4d_ros.export.scene import example_inputs
from recon4d_ros.statistics import peak_rss_mib

MAY_BE_NONE = ("depth", "sigma", "confidence")  # outputs in which 0 says that there is none
STEPS = 3
REPEATS = 5  # of the timing


def compare_apart(folder: Path, runtime: str, reference: Path) -> dict[str, Any]:
    """`compare` in a process of its own; {"error": sentence} if the runtime does not take the model."""
    command = [sys.executable, "-m", "recon4d_ros.export.compare", str(folder), runtime, str(reference)]
    package = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(command, capture_output=True, text=True, env=_with_package(package))
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    return {"error": said[-1] if done.returncode > 0 else f"killed by signal {-done.returncode} (out of memory?)"}


def compare(folder: Path, runtime: str, reference: Path) -> dict[str, Any]:
    """milliseconds a step (median), peak_rss_mib, load_seconds; per output the worst step's `max` (absolute) and `relative` (norm)
    difference, `first`: the relative one of the first step, before the memories differ, and `holes`: the share of values that are none on
    one side only, which the differences leave out; worst: the largest relative one."""
    spec = load_spec(folder)
    start = time.perf_counter()
    engine = start_runtime(folder, spec, runtime)
    load_seconds = time.perf_counter() - start
    expected = np.load(reference)
    report: dict[str, dict[str, float]] = {}
    for step in range(STEPS):
        outputs = empty_outputs(spec)
        engine.run(inputs_of(spec, step), outputs)
        for name in spec.outputs:
            got = outputs[name] if name in outputs else engine.memory(name.removeprefix("new_"))
            note(report, name, step, got, expected[f"{step}/{name}"])
    times = []
    inputs = inputs_of(spec, STEPS - 1)
    for _ in range(REPEATS):
        start = time.perf_counter()
        engine.run(inputs, outputs)
        times.append(time.perf_counter() - start)
    engine.close()
    return {
        "milliseconds": round(float(np.median(times)) * 1e3, 2),
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "load_seconds": round(load_seconds, 2),
        "worst": max(values["relative"] for values in report.values()),
        "outputs": report,
    }


def note(report: dict[str, dict[str, float]], name: str, step: int, got: NDArray, truth: NDArray) -> None:
    a, b = got.astype(np.float64), truth.astype(np.float64)
    if got.dtype == np.uint8:  # runtimes may round a half to either side
        a = np.where(np.abs(a - b) <= 1, b, a)
    holes = (a == 0) != (b == 0) if name in MAY_BE_NONE else np.zeros(a.shape, bool)
    a = np.where(holes, b, a)  # a depth within rounding of zero is none in one runtime and something in the other: counted, not measured
    relative = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-9) if np.isfinite(a).all() else float("inf")
    entry = report.setdefault(name, {"max": 0.0, "relative": 0.0, "first": relative, "holes": 0.0})
    entry["holes"] = max(entry["holes"], float(holes.mean()))
    entry["max"] = max(entry["max"], float(np.abs(a - b).max(initial=0.0)))
    entry["relative"] = max(entry["relative"], relative)


def inputs_of(spec: EngineSpec, step: int) -> dict[str, NDArray]:
    every = example_inputs(spec, step)
    return {name: every[name] for name in spec.inputs if name in every}


def _with_package(package: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}


if __name__ == "__main__":
    try:
        print(json.dumps(compare(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
    except EngineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
