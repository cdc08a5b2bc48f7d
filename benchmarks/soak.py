#!/usr/bin/env python3
"""Frame sets without end: does memory grow, do threads and file handles, does a step take longer?

scripts/ros_env.sh python benchmarks/soak.py --cameras 1 --width 96 --sets 100000 --log soak1.jsonl
scripts/ros_env.sh python benchmarks/soak.py --cameras 6 --width 640 --sets 20000 --log soak6.jsonl

Synchronizer, decoding and Reconstructor as the node calls them, on a drive to and fro with
odometry; the map's radius is small, so that voxels leave it and come back. A line of numbers goes
to the log every 500 sets. A run that was interrupted goes on where the log ends: a new process,
whose growth is judged by itself. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.shuttle import Shuttle, shuttle  # noqa: E402
from recon4d_ros.engine.choose import choose_engine  # noqa: E402
from recon4d_ros.parameters import build  # noqa: E402
from recon4d_ros.reconstructor import Parameters, Reconstructor  # noqa: E402
from recon4d_ros.sync import Synchronizer  # noqa: E402
from recon4d_ros.types import OdometrySample, RawImage  # noqa: E402

EVERY = 500
RATE = 10.0
WARM_UP = 2000  # sets; growth is counted from there
GROWTH = 50.0  # MiB
STEP_GROWTH = 0.15  # share by which the last quarter's steps may be slower than the first's
CAMERAS = ("front", "front_left", "front_right", "back", "back_left", "back_right")


@dataclass(frozen=True)
class Sample:
    """After `sets` sets in all, of them `process_sets` in process `pid`. rss: MiB. wall, cpu:
    median ms of a set since the last sample, by the wall's clock and in processor time of all
    threads. tracked: share of sets whose pose was usable."""

    pid: int
    sets: int
    process_sets: int
    rss: float
    threads: int
    handles: int
    wall: float
    cpu: float
    voxels: int
    memory_fill: float
    tracked: float


def soak(drive: Shuttle, sets: int, log: Path) -> None:
    parameters = build(Parameters, {"mapping.radius": 10.0})
    rig = drive.rig
    one = Reconstructor(rig, choose_engine("", rig), parameters)
    synchronizer = Synchronizer(rig.names, parameters.sync)
    process = psutil.Process()
    images = [[np.frombuffer(jpeg, np.uint8) for jpeg in jpegs] for jpegs in drive.jpegs]
    before = read(log)
    start = before[-1].sets if before else 0
    wall, cpu, tracked = [], [], 0
    for index in range(sets - start):
        stamp = 10**18 + round((start + index) / RATE * 1e9)
        began, worked = time.perf_counter(), time.process_time()
        ready = []
        synchronizer.add_odometry(OdometrySample(stamp, drive.pose(start + index)))
        for name, data in zip(rig.names, images[drive.place(start + index)], strict=True):
            ready += synchronizer.add_image(name, RawImage(stamp, "jpeg", data), stamp)
        for frame_set in ready:
            tracked += one.step(frame_set).pose.usable
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - worked)
        done = index + 1
        if done % EVERY == 0 or start + done == sets:
            gc.collect()
            sample = Sample(
                process.pid,
                start + done,
                done,
                process.memory_info().rss / 2**20,
                process.num_threads(),
                process.num_fds(),
                1e3 * float(np.median(wall)),
                1e3 * float(np.median(cpu)),
                one.mapper.size,
                one.engine.memory_fill,
                tracked / len(wall),
            )
            with log.open("a") as out:
                out.write(json.dumps(asdict(sample)) + "\n")
            wall, cpu, tracked = [], [], 0
    one.close()


def read(log: Path) -> list[Sample]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [Sample(**json.loads(line)) for line in lines]


def verdict(samples: list[Sample]) -> list[str]:
    """What the log says, a line for each process, and which bars it missed (lines with FAILED)."""
    lines = []
    for pid in dict.fromkeys(sample.pid for sample in samples):
        mine = [sample for sample in samples if sample.pid == pid]
        warm = [sample for sample in mine if sample.process_sets >= WARM_UP]
        if len(warm) < 4:
            lines.append(f"{mine[-1].process_sets} sets: too few to judge")
            continue
        quarter = len(warm) // 4
        first, last = warm[:quarter], warm[-quarter:]
        growth = warm[-1].rss - warm[0].rss
        before, after = (float(np.median([s.cpu for s in some])) for some in (first, last))
        text = (
            f"{mine[-1].process_sets} sets: RSS {warm[0].rss:.0f} -> {warm[-1].rss:.0f} MiB,"
            f" threads {warm[0].threads} -> {warm[-1].threads},"
            f" handles {warm[0].handles} -> {warm[-1].handles},"
            f" step {before:.1f} -> {after:.1f} ms of processor time,"
            f" tracked {100 * np.mean([s.tracked for s in warm]):.1f} %"
        )
        missed = [
            name
            for name, flat in (
                ("RSS", growth < GROWTH),
                ("threads", warm[-1].threads <= warm[0].threads),
                ("handles", warm[-1].handles <= warm[0].handles),
                ("step", after < (1 + STEP_GROWTH) * before),
            )
            if not flat
        ]
        lines.append(text + (f" FAILED: {', '.join(missed)}" if missed else ""))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=1, choices=range(1, 7))
    parser.add_argument("--width", type=int, default=96, help="of the images, pixels")
    parser.add_argument("--sets", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=60, help="of the way to and fro")
    parser.add_argument("--log", type=Path, required=True, metavar="JSONL")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    drive = shuttle(CAMERAS[: arguments.cameras], arguments.width, arguments.frames)
    soak(drive, arguments.sets, arguments.log)
    lines = verdict(read(arguments.log))
    print("\n".join(lines))
    return int(any("FAILED" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
