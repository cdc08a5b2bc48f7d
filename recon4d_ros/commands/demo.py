"""`recon4d demo`: the real thing, end to end.

A bag is played over DDS, the node reconstructs it, a recorder listens, and what it heard is scored.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recon4d_ros import engine as engines
from recon4d_ros.bags import BagReader
from recon4d_ros.bags.rig import camera_topics
from recon4d_ros.bags.topics import IMAGES, TRUTH
from recon4d_ros.cameras.preprocess import Preprocessor, make_calibration
from recon4d_ros.cameras.rig import BASE_FRAME
from recon4d_ros.cameras.rig_check import check_rig
from recon4d_ros.commands import demo_folder
from recon4d_ros.commands.common import (
    NOT_TRACKED,
    add_bag_rig,
    add_engine_and_parameters,
    bag_rig,
    parameter_values,
    parameters_from,
    warn,
)
from recon4d_ros.commands.simulate import check_drive, find_rig, simulate_to
from recon4d_ros.engine.choose import NoEngineFits, choose_engine
from recon4d_ros.errors import BagError, ParameterError
from recon4d_ros.evaluation import Evaluator, format_report, nothing_tracked, nothing_usable
from recon4d_ros.export import default_export_arguments, export_engine
from recon4d_ros.paths import user_path
from recon4d_ros.reconstructor import Parameters, Reconstructor
from recon4d_ros.ros.graph import GraphError, run_graph
from recon4d_ros.runs.output import writing
from recon4d_ros.runs.recording import Recording
from recon4d_ros.runs.replay import MotionTopics, frame_sets
from recon4d_ros.runs.writer import RunWriter
from recon4d_ros.sync import Synchronizer
from recon4d_ros.tally import Tally
from recon4d_ros.types import Rig, Tracking

EPILOG = """leaves in --out:
  drive/           the simulated drive (rosbag2, MCAP), where no --bag was given
  bag/             what the node published (rosbag2, MCAP): opens in Foxglove, plays into RViz
  map.ply trajectory.tum objects.jsonl depth/ dynamic/ summary.json      as `recon4d replay --save-frames` writes them
  overview.png     the run in one picture
  report.md        the metrics
  logs/            of the three processes

examples:
  recon4d demo --out demo
  recon4d demo --out demo --bag my_drive/
  recon4d demo --out demo --rig kitti_like --seconds 10
"""  # noqa: E501
SIMULATED_RATE = 10.0  # frame sets per second
# of the time of a frame set: for DDS, player and recorder, which share the machine with the node
HEADROOM = 1.35


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=user_path,
        default=Path("demo"),
        metavar="DIR",
        help=(
            "folder for the results: a new one, or that of an earlier demo, which is replaced"
            " (default: %(default)s)"
        ),
    )
    parser.add_argument("--bag", type=user_path, help="play this bag instead of simulating a drive")
    parser.add_argument(
        "--rig", default="nuscenes_like", help="rig of the simulated drive (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="length of the simulated drive (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="world of the simulated drive (default: %(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="R",
        help="play at R times real time (default: what this machine keeps up with, at most 1)",
    )
    parser.add_argument(
        "--odometry", default="auto", metavar="TOPIC", help="as in `recon4d replay`"
    )
    add_bag_rig(parser)
    add_engine_and_parameters(parser)


def run(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    out: Path = arguments.out
    plan = _plan(arguments)
    demo_folder.empty(out)
    bag = arguments.bag or out / "drive"
    if arguments.bag is None:
        print(
            f"1/3  simulating {arguments.seconds:g} s of rig {arguments.rig}, seed"
            f" {arguments.seed}",
            flush=True,
        )
        simulate_to(bag, plan.rig, arguments.seconds, SIMULATED_RATE, arguments.seed, truth_every=2)
    engine = plan.engine or _export(plan.rig, out)
    rate = arguments.rate or _sustainable_rate(engine, plan, bag)
    print(
        f"2/3  playing {bag} over DDS at {rate:.2f} x real time to the node with engine"
        f" {engine.name}",
        flush=True,
    )
    graph = run_graph(
        bag,
        out,
        {
            **plan.values,
            "engine": str(engine.resolve()),
            "odom_topic": plan.odometry or "",
            "base_frame": plan.base_frame,
        },
        rate=rate,
        show_progress=True,
        found=plan.found,
        player_arguments=[
            *(["--truth"] if plan.odometry and plan.odometry.startswith(TRUTH) else []),
            *(["--exclude", *plan.unused] if plan.unused else []),
        ],
    )
    print("3/3  scoring what was heard", flush=True)
    topics = plan.found.get("image_topics")
    summary = collect(graph.bag, bag, out, plan.rig, engine, topics)
    report = format_report(summary)
    how = f"{bag}, played at {rate:.2f} x real time; engine {engine.name}."
    failure = f"{graph.failure()}\n\n" if not graph.ok else ""
    with writing(out):
        text = f"{how}\n\n{failure}```\n{report}\n```\n\n![overview](overview.png)\n"
        (out / "report.md").write_text(f"# recon4d demo\n\n{text}", encoding="utf-8")
    print(report)
    seconds = time.monotonic() - start
    print(
        f"\nopen {out}/overview.png; the recording is {graph.bag} (Foxglove, or `ros2 bag play`"
        f" into RViz); {seconds:.0f} s in all"
    )
    if not graph.ok:
        raise GraphError(graph.failure())
    if reason := nothing_usable(summary):
        raise BagError(reason)
    if reason := nothing_tracked(summary):
        print(f"recon4d demo: {reason}", file=sys.stderr)
        return NOT_TRACKED
    return 0


@dataclass(frozen=True)
class _Plan:
    """What was asked for, all of it checked. engine: None = one has to be exported. values:
    parameters by dotted name, as given. found: what the bag's rig takes. unused: the bag's image
    topics that no camera of the rig is on, which nobody will read."""

    rig: Rig
    base_frame: str
    odometry: str | None
    engine: Path | None
    parameters: Parameters
    values: Mapping[str, Any]
    found: Mapping[str, Any]
    unused: list[str]


def _plan(arguments: argparse.Namespace) -> _Plan:
    """Everything that can be wrong is found here, before an earlier demo is removed and before
    minutes have gone. Raises Recon4dError."""
    given = [
        Path(name)
        for name in (arguments.bag, arguments.parameters, arguments.engine, arguments.rig)
        if name
    ]
    demo_folder.check(arguments.out, [path for path in given if path.exists()])
    parameters = parameters_from(arguments)
    values = parameter_values(arguments.parameters, arguments.parameter)
    if not (math.isfinite(arguments.rate) and arguments.rate >= 0):
        raise ParameterError(
            f"--rate is {arguments.rate:g}: expected above 0, or 0 for what this machine keeps up"
            " with"
        )
    found: dict[str, Any] = {}
    unused: list[str] = []
    if arguments.bag is None:
        check_drive(arguments.seconds, SIMULATED_RATE, arguments.seed)
        if arguments.odometry not in ("auto", "none", f"{TRUTH}odom"):
            raise BagError(
                f"--odometry {arguments.odometry}: a simulated drive has no odometry but"
                f" {TRUTH}odom"
            )
        rig, odometry = (
            find_rig(arguments.rig),
            arguments.odometry if arguments.odometry.startswith(TRUTH) else None,
        )
    else:
        with BagReader(arguments.bag) as reader:
            found = bag_rig(arguments)
            rig = reader.rig(**found)
            odometry = MotionTopics.of(reader, arguments.odometry).odometry
            used = [topics.image for topics in camera_topics(reader, rig, **found).values()]
            unused = [
                topic
                for topic, info in reader.topics.items()
                if info.type in IMAGES and topic not in used and not topic.startswith(TRUTH)
            ]
            warn("demo", [*reader.notes, *check_rig(rig)])
    return _Plan(
        rig,
        BASE_FRAME if arguments.bag is None else arguments.base_frame,
        odometry,
        _engine(arguments.engine, rig),
        parameters,
        values,
        found,
        unused,
    )


def _engine(wanted: str, rig: Rig) -> Path | None:
    """The engine, which can be loaded and fits the rig; None where one has to be exported and can
    be. Raises EngineError, NoEngineFits."""
    try:
        engine = choose_engine(wanted, rig)
    except NoEngineFits:
        if any(importlib.util.find_spec(package) is None for package in ("torch", "onnx")):
            raise
        return None
    engines.load(engine, rig).close()
    return engine


def _export(rig: Rig, out: Path) -> Path:
    print(
        f"     no shipped engine fits the rig: exporting one to {out}/engine (this takes PyTorch"
        " and a minute or two)",
        flush=True,
    )
    return export_engine(out / "engine", default_export_arguments(rig), progress=True)


def _sustainable_rate(engine: Path, plan: _Plan, bag: Path) -> float:
    """How fast this machine can take the bag: its first frame sets, timed here, and a third as much
    again for DDS, player and recorder."""
    with BagReader(bag) as reader:
        synchronizer = Synchronizer(plan.rig.names, plan.parameters.sync)
        topics = plan.found.get("image_topics")
        sets = list(islice(frame_sets(reader, synchronizer, image_topics=topics), 8))
    if len(sets) < 2:
        return 1.0
    interval = (sets[-1].stamp_ns - sets[0].stamp_ns) * 1e-9 / (len(sets) - 1)
    reconstructor = Reconstructor(plan.rig, engine, plan.parameters)
    seconds = [sum(reconstructor.step(frame_set).latency.values()) for frame_set in sets]
    reconstructor.close()
    return float(np.clip(interval / (HEADROOM * np.median(seconds[1:])), 0.1, 1.0))


def collect(
    recorded: Path,
    source: Path,
    out: Path,
    rig: Rig,
    engine: Path,
    image_topics: Mapping[str, str] | None = None,
) -> dict:
    """The run's folder from the recording: the same files and scores as `recon4d replay`."""
    spec = engines.load_spec(engine, rig)
    calibration = make_calibration(rig, spec.input_size, spec.working_size)
    recording = Recording(
        recorded,
        source,
        Preprocessor(rig, calibration, spec.channels),
        calibration,
        image_topics=image_topics or {},
    )
    with BagReader(source) as reader:
        evaluator = Evaluator(source, rig) if reader.info().has_ground_truth else None
        played = max(camera.count for camera in reader.info().cameras.values())
    writer = RunWriter(out, rig=rig, save_frames=True, force=True, evaluator=evaluator)
    stages: dict[str, list[float]] = {}
    lost = count = usable = 0
    not_tracked = Tally()
    for result in tqdm(recording.frames(), unit="set", desc="score", mininterval=0.5):
        writer.add(result, recording.preprocessor)
        count += 1
        usable += int(result.frame.present.sum())
        if result.pose.tracking is not Tracking.TRACKING:
            lost += 1
            not_tracked.count(result.pose.tracking.value, result.pose.reason or "no reason")
        for stage, seconds in result.latency.items():
            stages.setdefault(stage, []).append(seconds)
    latency = {
        name: {
            "p50": round(float(np.percentile(values, 50)) * 1e3, 2),
            "p95": round(float(np.percentile(values, 95)) * 1e3, 2),
        }
        for name, values in {**stages, "reception_to_publication": recording.latency}.items()
    }
    return writer.finish(
        recording,
        {
            "bag": str(source),
            "rig": rig.name,
            "cameras": list(rig.names),
            "engine": {"network": spec.network, "runtime": spec.runtime},
            "frames": count,
            "frames_played": played,
            "images_used": usable,
            "not_tracking": lost,
            "not_tracked": {
                f"{state}: {reason}": count for (state, reason), count in not_tracked().items()
            },
            "drops": recording.drops,
            "latency_ms": latency,
        },
    )
