"""`recon4d bench`: every stage timed on this machine, over as many frame sets as wanted, with the
resident memory watched."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.rig import BASE_FRAME
from recon4d_ros.commands.common import add_base_frame, add_engine_and_parameters, parameters_from
from recon4d_ros.commands.simulate import find_rig, simulate_to
from recon4d_ros.engine.choose import choose_engine, named_engine
from recon4d_ros.errors import BagError, OutputError, ParameterError
from recon4d_ros.export.step_time import StepTime, time_steps
from recon4d_ros.paths import user_path
from recon4d_ros.reconstructor import Parameters, Reconstructor
from recon4d_ros.runs.replay import MotionTopics, frame_sets
from recon4d_ros.runs.statistics import RunStatistics, percentiles, rss_mib
from recon4d_ros.sync import Synchronizer
from recon4d_ros.types import FrameSet, Rig, Tracking

EPILOG = """The drive is played to and fro without a pause (forward, then backward, ...), so that any number of frame sets is one
continuous motion through a bounded place: what grows with the length of a drive shows.

examples:
  recon4d bench                                  the six-camera rig on 4 s of the procedural world
  recon4d bench --rig kitti_like --frames 2000   flatness over 2,000 frame sets
  recon4d bench BAG --engine engines/NAME        your own bag and engine
  recon4d bench --step engines/sparse4d --threads 2     the steps of one engine alone, of any kind: time and memory
"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bag",
        nargs="?",
        type=user_path,
        help="bag to play to and fro (default: a simulated drive of --rig)",
    )
    parser.add_argument(
        "--rig", default="nuscenes_like", help="rig of the simulated drive (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="length of the simulated drive (default: %(default)s)",
    )
    parser.add_argument(
        "--odometry", default="auto", metavar="TOPIC", help="as in `recon4d replay`"
    )
    add_base_frame(parser)
    parser.add_argument(
        "--frames", type=int, default=200, help="frame sets to process (default: %(default)s)"
    )
    parser.add_argument(
        "--step",
        default="",
        metavar="NAME|DIR",
        help="time the steps of this engine alone, of any kind, in place of the reconstruction",
    )
    parser.add_argument(
        "--steps", type=int, default=5, help="--step: how many (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="--step: of the runtime (default: its own choice)"
    )
    parser.add_argument("--runtime", default="", help="--step: the engine's own by default")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the result there too")
    add_engine_and_parameters(parser)


@dataclass(frozen=True)
class BenchResult:
    """Milliseconds per stage (percentiles), step time over the run, resident memory in MiB after
    warm-up (100 sets) and at the end."""

    machine: str
    rig: str
    engine: str
    device: str
    frames: int
    latency_ms: dict[str, dict[str, float]]
    step_ms_early: float
    step_ms_late: float
    rss_mib_warm: float
    rss_mib_end: float
    not_tracking: int
    map_voxels: int

    def table(self) -> str:
        lines = [
            (
                f"{self.rig}, engine {self.engine} on {self.device}; {self.machine}; {self.frames}"
                f" frame sets, {self.not_tracking} not tracked"
            ),
            f"{'stage':12} {'mean':>8} {'p50':>8} {'p95':>8} {'max':>8}  ms",
        ]
        lines += [
            f"{stage:12} " + " ".join(f"{row[key]:8.2f}" for key in ("mean", "p50", "p95", "max"))
            for stage, row in self.latency_ms.items()
        ]
        slower, grown = (
            self.step_ms_late / self.step_ms_early - 1,
            self.rss_mib_end - self.rss_mib_warm,
        )
        lines.append(
            f"step, median: {self.step_ms_early:.1f} ms in sets 100-200, {self.step_ms_late:.1f} ms"
            f" in the last 100 ({slower:+.1%})"
        )
        lines.append(
            f"resident: {self.rss_mib_warm:.0f} MiB after 100 sets, {self.rss_mib_end:.0f} at the"
            f" end ({grown:+.1f})"
        )
        return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    if arguments.step:
        return _bench_step(arguments)
    parameters = parameters_from(arguments)
    if arguments.frames < 1:
        raise BagError(f"--frames is {arguments.frames}: expected at least 1")
    how = {"engine": arguments.engine, "parameters": parameters, "odometry": arguments.odometry}
    if arguments.bag:
        result = bench(arguments.bag, arguments.frames, base_frame=arguments.base_frame, **how)
    else:
        with tempfile.TemporaryDirectory() as folder:
            simulate_to(Path(folder) / "drive", find_rig(arguments.rig), arguments.seconds, 10.0, 0)
            result = bench(Path(folder) / "drive", arguments.frames, **how)
    return _show(result, arguments.json)


def _bench_step(arguments: argparse.Namespace) -> int:
    for name in ("steps", "threads"):
        if (value := getattr(arguments, name)) < (least := int(name == "steps")):
            raise ParameterError(f"--{name} is {value}: expected at least {least}")
    folder = named_engine(arguments.step)
    result = time_steps(folder, arguments.runtime, arguments.threads, arguments.steps)
    return _show(result, arguments.json)


def _show(result: BenchResult | StepTime, file: Path | None) -> int:
    print(result.table())
    if file:
        try:
            file.write_text(json.dumps(asdict(result), indent=1))
        except OSError as error:
            raise OutputError(f"{file}: cannot be written: {error.strerror}") from None
    return 0


def bench(
    bag: Path,
    frames: int,
    *,
    engine: str = "",
    parameters: Parameters | None = None,
    odometry: str = "auto",
    base_frame: str = BASE_FRAME,
) -> BenchResult:
    """Time `frames` frame sets of a bag played to and fro. Raises Recon4dError."""
    parameters = parameters or Parameters()
    with BagReader(bag) as reader:
        rig = reader.rig(base_frame=base_frame)
        motion = MotionTopics.of(reader, odometry)
        sets = list(
            frame_sets(
                reader, Synchronizer(rig.names, parameters.sync), motion, base_frame=base_frame
            )
        )
    if not sets:
        raise BagError(f"{bag}: no frame set in it")
    reconstructor = Reconstructor(rig, choose_engine(engine, rig), parameters)
    statistics, lost, rss_warm = RunStatistics(), 0, 0.0
    for index, frame_set in enumerate(
        tqdm(to_and_fro(sets, frames), total=frames, unit="set", desc="bench", mininterval=0.5)
    ):
        step = reconstructor.step(frame_set)
        statistics.add(step.latency, step.memory_fill)
        lost += step.pose.tracking is not Tracking.TRACKING
        if index == min(100, frames - 1):
            rss_warm = rss_mib()
    steps = np.asarray(statistics.stages["step"])
    early = steps[100:200] if len(steps) >= 200 else steps
    result = BenchResult(
        machine(),
        _title(rig),
        reconstructor.engine.spec.network,
        f"{reconstructor.engine.spec.runtime} {reconstructor.engine.device}",
        frames,
        {stage: percentiles(values) for stage, values in statistics.stages.items()},
        round(float(np.median(early)) * 1e3, 2),
        round(float(np.median(steps[-100:])) * 1e3, 2),
        round(rss_warm, 1),
        round(rss_mib(), 1),
        lost,
        reconstructor.mapper.size,
    )
    reconstructor.close()
    return result


def to_and_fro(sets: Sequence[FrameSet], frames: int) -> Iterator[FrameSet]:
    """The drive forward, backward, forward, ...; stamps go on as time would, odometry (which would
    run backward) is left out."""
    period = 2 * (len(sets) - 1) or 1
    step_ns = (sets[-1].stamp_ns - sets[0].stamp_ns) // max(1, len(sets) - 1)
    for index in range(frames):
        phase = index % period
        frame_set = sets[phase if phase < len(sets) else period - phase]
        shift = sets[0].stamp_ns + index * step_ns - frame_set.stamp_ns
        images = {
            name: replace(image, stamp_ns=image.stamp_ns + shift)
            for name, image in frame_set.images.items()
        }
        yield replace(
            frame_set,
            stamp_ns=frame_set.stamp_ns + shift,
            images=images,
            odometry=(),
            imu=(),
            twist=(),
        )


def machine() -> str:
    """This machine in a few words."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{cpu}, {os.cpu_count()} cores"


def _title(rig: Rig) -> str:
    camera = rig.cameras[0]
    return f"{len(rig.cameras)} x {camera.width}x{camera.height}"
