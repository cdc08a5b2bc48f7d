"""Does a runtime compute what PyTorch computes, how fast, and in how much memory? One process per
runtime, without PyTorch.

python -m recon4d_ros.export.compare FOLDER RUNTIME REFERENCE.npz       one line of JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.engine import load_spec, start_runtime
from recon4d_ros.engine.base import OBJECTS, EngineSpec
from recon4d_ros.engine.hosted import Runtime, empty_outputs
from recon4d_ros.errors import EngineError
from recon4d_ros.export.parity import NEAR, align_rows, difference
from recon4d_ros.export.reference import STEPS, given, memory_before
from recon4d_ros.runs.statistics import peak_rss_mib

REPEATS = 5  # of the timing


def compare_apart(folder: Path, runtime: str, reference: Path) -> dict[str, Any]:
    """`compare` in a process of its own; {"error": sentence} if the runtime does not take the
    model."""
    command = [
        sys.executable,
        "-m",
        "recon4d_ros.export.compare",
        str(folder),
        runtime,
        str(reference),
    ]
    package = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(command, capture_output=True, text=True, env=_with_package(package))
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    return {
        "error": said[-1]
        if done.returncode > 0
        else f"killed by signal {-done.returncode} (out of memory?)"
    }


def compare(folder: Path, runtime: str, reference: Path) -> dict[str, Any]:
    """milliseconds a step (median), peak_rss_mib, load_seconds; per output, over a few steps
    (parity.py: difference):

    `max`, `relative` of the worst step, the runtime on its own memory; `fed`: the worst step's
    relative one, each step from the reference's memory, so that one that makes nothing of its
    memory shows; `typical`, `holes` and `off` of the fed steps. worst: the largest relative one.
    """
    spec = load_spec(folder)
    start = time.perf_counter()
    engine = start_runtime(folder, spec, runtime)
    load_seconds = time.perf_counter() - start
    expected = np.load(reference)
    own = _differences(engine, spec, expected, fed=False)
    times = []
    inputs, outputs = given(expected, spec, STEPS - 1), empty_outputs(spec)
    for _ in range(REPEATS):
        start = time.perf_counter()
        engine.run(inputs, outputs)
        times.append(time.perf_counter() - start)
    fed = _differences(engine, spec, expected, fed=True)
    engine.close()
    report = {
        name: {"max": own[name]["max"], "relative": own[name]["relative"], "fed": now["relative"]}
        | {key: now[key] for key in ("typical", "holes", "off")}
        for name, now in fed.items()
    }
    return {
        "milliseconds": round(float(np.median(times)) * 1e3, 2),
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "load_seconds": round(load_seconds, 2),
        "worst": max(values["relative"] for values in report.values()),
        "outputs": report,
    }


def _differences(
    engine: Runtime, spec: EngineSpec, expected: Mapping[str, NDArray], *, fed: bool
) -> dict[str, dict[str, float]]:
    """The worst step's differences, per output; on the runtime's own memory, or fed with the
    reference's before each step."""
    worst: dict[str, dict[str, float]] = {}
    for step in range(STEPS):
        if fed or step == 0:
            engine.remember(memory_before(expected, spec, step))
        outputs = empty_outputs(spec)
        engine.run(given(expected, spec, step), outputs)
        truth = {name: expected[f"{step}/{name}"] for name in spec.outputs}
        got = {
            name: outputs[name] if name in outputs else engine.memory(name.removeprefix("new_"))
            for name in spec.outputs
        }
        alone: Mapping[str, float] = {}
        if spec.config == OBJECTS:
            got, alone = align_rows(got, truth, NEAR[spec.precision])
        for name in spec.outputs:
            now = difference(name, got[name], truth[name], spec.working_size[1])
            now["holes"] += alone.get(name, 0.0)
            worst[name] = {key: max(value, worst.get(name, now)[key]) for key, value in now.items()}
    return worst


def _with_package(package: str) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    }


if __name__ == "__main__":
    try:
        print(json.dumps(compare(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
    except EngineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
