"""Point3R at its published size, with stand-in weights (a checkpoint changes no time): export, then
frame by frame, one process per stage.

`python benchmarks/run.py point3r_512 point3r_1024 point3r_2048`. Ten idle minutes each, 8 GB of
memory, 4 GB of disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZE = "224x224"
CAPACITIES = (512, 1024, 2048)
FRAMES = 100
STATES = (8, 10, 100)  # frames that are timed
REPEATS = 10
AUTHORS_ENCODE, AUTHORS_DECODE_8 = (
    0.7,
    2.7,
)  # seconds on two cores of another machine: the issue's numbers for the authors' code


def measure(work: Path, capacity: int) -> dict:
    """Point3R, 835 million parameters, one camera, 224x224, fp32: milliseconds of frames 8, 10 and
    100, memory."""
    folder = work / f"point3r_{capacity}"
    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "recon4d_ros.cli",
        "export",
        "--network",
        "point3r",
        "--checkpoint",
        "stand-in",
        "--cameras",
        "1",
    ]
    subprocess.run(
        [*command, "--size", SIZE, "--pointers", str(capacity), "--out", str(folder)], check=True
    )
    exported = time.perf_counter() - start
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], check=True, capture_output=True, text=True
    )
    return {"export_seconds": round(exported, 1), **json.loads(done.stdout.splitlines()[-1])}


def drive(folder: Path) -> dict:
    """FRAMES steps of an engine over images of noise that drifts. In a process of its own: the peak
    is this process's.

    A step is a function of its images and memory alone. Those of the frames in STATES are kept and
    run again, in turns, and the best of the repeats is the frame's time: on a machine that others
    use too, single times say more about the others.
    """
    from recon4d_ros.engine import load_spec, start_runtime
    from recon4d_ros.engine.hosted import empty_outputs
    from recon4d_ros.export.reference import inputs_of
    from recon4d_ros.runs.statistics import peak_rss_mib

    spec = load_spec(folder)
    start = time.perf_counter()
    runtime = start_runtime(folder, spec, "openvino")
    loaded = time.perf_counter() - start
    inputs, outputs = inputs_of(spec, 0), empty_outputs(spec)
    inputs["moving"][:] = 0
    rng = np.random.default_rng(1)
    wide = np.kron(rng.integers(0, 255, (30, 60, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    kept: dict[int, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
    seconds, fill = [], []
    for frame in range(1, FRAMES + 1):
        across = 2 * frame % (wide.shape[1] - spec.input_size[1])
        inputs["images"] = np.ascontiguousarray(
            wide[None, : spec.input_size[0], across : across + spec.input_size[1]]
        )
        if frame in STATES:
            kept[frame] = (
                inputs["images"],
                {name: runtime.memory(name).copy() for name in spec.options["memory"]},
            )
        start = time.perf_counter()
        runtime.run(inputs, outputs)
        seconds.append(time.perf_counter() - start)
        fill.append(int((runtime.memory("pointer_valid") > 0.5).sum()))
    times = np.array(seconds) * 1e3
    again: dict[int, list[float]] = {frame: [] for frame in STATES}
    for _ in range(REPEATS):
        for frame, (images, memory) in kept.items():
            for name, values in memory.items():
                runtime.memory(name)[...] = values  # a view of the buffer the next step reads
            start = time.perf_counter()
            runtime.run(inputs | {"images": images}, outputs)
            again[frame].append(time.perf_counter() - start)
    best = {frame: round(min(values) * 1e3, 1) for frame, values in again.items()}
    return {
        "authors_seconds": {"encode": AUTHORS_ENCODE, "decode_eighth_frame": AUTHORS_DECODE_8},
        "pointers": spec.pointers,
        "runtime": runtime.name,
        "device": runtime.device,
        "frame_8_ms": best[8],
        "frame_10_ms": best[10],
        "frame_100_ms": best[100],
        "repeats_ms": {
            str(frame): [round(value * 1e3, 1) for value in values]
            for frame, values in again.items()
        },
        "median_ms": round(float(np.median(times)), 1),
        "best_ms": round(float(times.min()), 1),
        "pointers_in_use": {"10": fill[9], "100": fill[99]},
        "load_seconds": round(loaded, 1),
        "run_peak_rss_mib": round(peak_rss_mib(), 0),
        "export_peak_rss_mib": spec.options["export_peak_rss_mib"],
        "compare_peak_rss_mib": {
            name: report.get("peak_rss_mib") for name, report in spec.parity.items()
        },
        "worst_relative": {name: report.get("worst") for name, report in spec.parity.items()},
        "milliseconds": [round(float(value), 1) for value in times],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    print(json.dumps(drive(Path(sys.argv[1]))))
