#!/usr/bin/env python3
"""Measure every number of docs/benchmarks.md on this machine, and write that page.

`make bench`, or `make bench ARGS="kitti graph"` for some.

Each measurement is a process of its own (peak memory is a process's), keeps its result in
benchmarks/results/NAME.json with machine and date, and can be repeated alone. What is not there
(shared/bags) is said, not made up.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import opencv_reference, page, point3r  # noqa: E402
from recon4d_ros.bags import BagReader  # noqa: E402
from recon4d_ros.commands.bench import bench, machine  # noqa: E402
from recon4d_ros.commands.replay import replay  # noqa: E402
from recon4d_ros.commands.simulate import find_rig, simulate_to  # noqa: E402
from recon4d_ros.engine.choose import choose_engine  # noqa: E402
from recon4d_ros.evaluation.metrics.trajectory import score_trajectory  # noqa: E402
from recon4d_ros.evaluation.truth import Truth  # noqa: E402
from recon4d_ros.parameters import build  # noqa: E402
from recon4d_ros.reconstructor import Parameters  # noqa: E402
from recon4d_ros.ros.graph import run_graph  # noqa: E402
from recon4d_ros.runs.recording import Recording  # noqa: E402

# of the node's /diagnostics: processor time outside the engine, median of the last 200 frame sets
HOST_CPU = "host cpu per camera ms"
RESULTS = ROOT / "benchmarks/results"
SHARED = ROOT.parent / "shared/bags"
TRUST = build(Parameters, {"egomotion.odometry": "trust"})


def kitti(work: Path) -> dict:
    """The real stereo drive without odometry, and OpenCV's StereoSGBM + KLT + PnP on the same
    images in the same run."""
    bag = _shared("kitti_stereo_a")
    ours = replay(bag, work / "run")
    reference = opencv_reference.run(bag)
    truth = Truth(bag)
    poses = [truth.pose(int(stamp)) for stamp in reference.stamps_ns]
    truth.close()
    score = score_trajectory(
        reference.poses, np.stack([pose for pose in poses if pose is not None])
    )
    theirs = {
        name: value for name, value in asdict(score).items() if name not in ("errors", "distance")
    }
    return {"ours": ours, "opencv": {"trajectory": theirs, "rate_hz": round(reference.rate, 2)}}


def ddad(work: Path) -> dict:
    """Six real cameras against lidar, poses from the truth."""
    return replay(
        _shared("ddad_surround"), work / "run", odometry="/ground_truth/odom", parameters=TRUST
    )


def nuscenes(work: Path) -> dict:
    """One real frame set of six cameras against lidar: what the rig's overlaps alone give."""
    return replay(_shared("nuscenes_sample"), work / "run")


def simulated_stereo(work: Path) -> dict:
    """20 s of the procedural world, stereo, no odometry."""
    return _simulated(work, "kitti_like")


def simulated_surround(work: Path) -> dict:
    """20 s of the procedural world, six cameras, no odometry."""
    return _simulated(work, "nuscenes_like")


def held_out_surround(work: Path) -> dict:
    """10 s of another procedural world, six cameras: nothing was tuned on it."""
    return _simulated(work, "nuscenes_like", seconds=10.0, seed=21)


def endurance_stereo(work: Path) -> dict:
    """2,000 frame sets, stereo, to and fro over the real stereo drive."""
    return asdict(bench(_shared("kitti_stereo_a"), 2000))


def endurance_surround(work: Path) -> dict:
    """2,000 frame sets, six cameras, to and fro over 10 s of the procedural world."""
    simulate_to(work / "drive", find_rig("nuscenes_like"), 10.0, 10.0, 0)
    return asdict(bench(work / "drive", 2000))


def graph(work: Path) -> dict:
    """Six simulated cameras through player, node and recorder over DDS, at real time and at a
    quarter of it."""
    rig = find_rig("nuscenes_like")
    simulate_to(work / "drive", rig, 10.0, 10.0, 0)
    out = {}
    for rate in (1.0, 0.25):
        folder = work / f"rate_{rate:g}"
        done = run_graph(
            work / "drive",
            folder,
            {"engine": str(choose_engine("", rig).resolve())},
            rate=rate,
            show_progress=False,
        )
        out[f"{rate:g}"] = _heard(done.bag) | {"exit_codes": dict(done.exit_codes)}
    return out


def fusion_rules(work: Path) -> dict:
    """Point3R's fusion rule as published and bounded in metres, on a long simulated drive."""
    from benchmarks import (
        fusion_rules as rules,
    )  # it needs PyTorch, which must not be in the other processes' memory

    return rules.fusion_rules(work)


MEASUREMENTS: dict[str, Callable[[Path], dict]] = {
    function.__name__: function
    for function in (
        kitti,
        ddad,
        nuscenes,
        simulated_stereo,
        simulated_surround,
        held_out_surround,
        graph,
        endurance_stereo,
        endurance_surround,
    )
}
ON_REQUEST: dict[str, Callable[[Path], dict]] = {
    # gigabytes, and ten minutes each
    **{
        f"point3r_{capacity}": partial(point3r.measure, capacity=capacity)
        for capacity in point3r.CAPACITIES
    },
    "fusion_rules": fusion_rules,
}
EVERY = MEASUREMENTS | ON_REQUEST


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        raise SystemExit(f"{SHARED / name} is not there: this number needs it")
    return SHARED / name


def _simulated(work: Path, rig: str, seconds: float = 20.0, seed: int = 0) -> dict:
    simulate_to(work / "drive", find_rig(rig), seconds, 10.0, seed)
    return replay(work / "drive", work / "run")


def _heard(recorded: Path) -> dict:
    """Latency, drops and host overhead from the recorded status messages; the host's processor time
    from the last diagnostics."""
    latency, host, engine = [], [], []
    drops: dict[str, int] = {}
    cpu = 0.0
    with BagReader(recorded) as reader:
        for topic, _, status in reader.messages([f"{Recording.node}/status", "/diagnostics"]):
            if topic == "/diagnostics":
                cpu = next(
                    (
                        float(pair.value)
                        for one in status.status
                        for pair in one.values
                        if pair.key == HOST_CPU
                    ),
                    cpu,
                )
                continue
            if not status.frame_sets:
                continue
            stages = dict(zip(status.stages, map(float, status.stage_latency), strict=True))
            latency.append(float(status.latency))
            engine.append(stages["engine"])
            host.append((sum(stages.values()) - stages["engine"]) / len(status.cameras))
            drops = dict(zip(status.drop_reasons, map(int, status.drop_counts), strict=True))
    p50, p95 = (np.percentile(latency, q) for q in (50, 95))
    return {
        "frame_sets": len(latency),
        "latency_p50_ms": round(float(p50) * 1e3, 1),
        "latency_p95_ms": round(float(p95) * 1e3, 1),
        "engine_p50_ms": round(float(np.median(engine)) * 1e3, 1),
        "host_per_camera_p50_ms": round(float(np.median(host)) * 1e3, 2),
        "host_per_camera_p95_ms": round(float(np.percentile(host, 95)) * 1e3, 2),
        "host_cpu_per_camera_p50_ms": cpu,
        "drops": drops,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked = (
        f"which to measure (default: all of {', '.join(MEASUREMENTS)}; on request:"
        f" {', '.join(ON_REQUEST)})"
    )
    parser.add_argument("names", nargs="*", help=asked)
    parser.add_argument(
        "--here", action="store_true", help=argparse.SUPPRESS
    )  # the child of a whole run
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(EVERY))
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(EVERY)}")
    if arguments.here:
        (name,) = arguments.names
        with tempfile.TemporaryDirectory(prefix=f"recon4d_{name}_") as folder:
            result = EVERY[name](Path(folder))
        RESULTS.mkdir(exist_ok=True)
        stamped = {
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "result": result,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(stamped, indent=1, default=float) + "\n")
        return 0
    failed = []
    for name in arguments.names or MEASUREMENTS:
        print(f"== {name}: {getattr(EVERY[name], 'func', EVERY[name]).__doc__}", flush=True)
        if subprocess.run([sys.executable, __file__, "--here", name]).returncode:
            failed.append(name)
    (ROOT / "docs/benchmarks.md").write_text(page.write(RESULTS))
    print(f"wrote docs/benchmarks.md{'; failed: ' + ', '.join(failed) if failed else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
