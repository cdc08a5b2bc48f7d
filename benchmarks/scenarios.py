#!/usr/bin/env python3
"""Every everyday scenario and every real bag through the Reconstructor, and one table of it all.

  python benchmarks/scenarios.py                           all: five seeds, 10 s, two rigs (hours)
  python benchmarks/scenarios.py --seeds 1 --seconds 6     reduced (about 20 minutes on two cores)
  python benchmarks/scenarios.py --only queue night --rigs kitti_like
  python benchmarks/scenarios.py --table                   the table of what is there, nothing run
  python benchmarks/scenarios.py --first-seed 12 --seeds 2 on seeds to tune on
  python benchmarks/scenarios.py --drawn                   of rigs that are not as calibrated

Frames are rendered and handed over as they would stand in a bag (JPEG; depth in 1/256 m); none is
written. Each drive keeps its result as a JSON file in --out, and what is there is not run again: a
run that was cut off goes on. --rendered keeps the rendered drives too, for other states of the
code. The seeds 1000 to 1004 are for this table alone. Nothing may be tuned on them.

--drawn: simulated rigs are exactly as calibrated, so that what is stated of the calibration is too
much. Here each drive is told a rig that is off by what `calibration_covariance` states, drawn by
the drive's seed, and its truth gives as body and mounts give: NEES should then be 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon4d_ros.bags import BagReader  # noqa: E402
from recon4d_ros.commands.bench import machine  # noqa: E402
from recon4d_ros.commands.simulate import find_rig  # noqa: E402
from recon4d_ros.depth_png import decode_depth  # noqa: E402
from recon4d_ros.egomotion.calibration import CALIBRATION, GIVE  # noqa: E402
from recon4d_ros.egomotion.local_ba import MOUNT  # noqa: E402
from recon4d_ros.engine.choose import choose_engine  # noqa: E402
from recon4d_ros.errors import Recon4dError  # noqa: E402
from recon4d_ros.evaluation.evaluator import Evaluator  # noqa: E402
from recon4d_ros.evaluation.metrics.clouds import Boxes  # noqa: E402
from recon4d_ros.evaluation.metrics.point_masks import (  # noqa: E402
    PointMaskAccumulator,
    moving_tracks,
)
from recon4d_ros.evaluation.metrics.promise import (  # noqa: E402
    along_error,
    motion_errors,
    score_promise,
)
from recon4d_ros.evaluation.metrics.trajectory import score_trajectory  # noqa: E402
from recon4d_ros.evaluation.truth import TrueObjects, Truth  # noqa: E402
from recon4d_ros.geometry import exp, inverse, log, se3  # noqa: E402
from recon4d_ros.reconstructor import Reconstructor  # noqa: E402
from recon4d_ros.runs.replay import frame_sets  # noqa: E402
from recon4d_ros.sim.bag import Encoded, encode  # noqa: E402
from recon4d_ros.sim.scenario import NAMES, scenario  # noqa: E402
from recon4d_ros.sim.simulate import Simulator  # noqa: E402
from recon4d_ros.sync import Synchronizer  # noqa: E402
from recon4d_ros.types import FrameSet, PoseEstimate, RawImage, Reconstruction, Rig, Tracking  # noqa: E402

FIRST_SEED = 1000
RIGS = ("kitti_like", "nuscenes_like")
COMPOSED = ("motorway+night+rain", "motorway+shutter+blur", "queue+rain")
SCENARIOS = (*NAMES, *COMPOSED)
RATE = 10.0
BAGS = ("kitti_jam", "kitti0013_a", "kitti_stereo_a", "sustech_crossing")
SHARED = ROOT.parent / "shared/bags"
STANDING = 0.01  # metres between frames, for a second at least: the car stands


@dataclass(frozen=True)
class Job:
    """One drive: a scenario of a seed seen by a rig, or a real bag (rig empty)."""

    name: str
    rig: str = ""
    seed: int = 0
    seconds: float = 0.0
    drawn: bool = False  # told a rig that is off

    @property
    def file(self) -> str:
        if not self.rig:
            return f"bag_{self.name}.json"
        drive = f"{self.rig}_{self.name.replace('+', '-')}_{self.seed}_{self.seconds:g}s"
        return f"{drive}_drawn.json" if self.drawn else f"{drive}.json"


def drawn(rig: Rig, rng: np.random.Generator) -> Rig:
    """The rig as somebody may have measured it: its height, how it is turned against the car's
    axis, focal length, and how the second camera of a pair, or each of more, is turned are off by
    one standard deviation each of what ego-motion states (`CalibrationThresholds`, `MOUNT`)."""
    c, off = CALIBRATION, rng.standard_normal
    middle = se3(np.eye(3), np.mean([camera.T_base_camera[:3, 3] for camera in rig.cameras], 0))
    turn = middle @ exp(c.mount * np.array([0, 0, 0, 0, off(), off()])) @ inverse(middle)
    height, focal = 1.0 + c.height * off(), 1.0 + c.lens * off()
    cameras = []
    for number, camera in enumerate(rig.cameras):
        place, k = turn @ camera.T_base_camera, camera.k.copy()
        place[2, 3] *= height
        k[[0, 1], [0, 1]] *= focal
        if len(rig.cameras) == 2:
            each = MOUNT if number else 0.0
        else:  # one camera is turned as its rig is
            each = c.single if len(rig.cameras) > 1 else 0.0
        if each:
            place = place @ exp(np.concatenate([np.zeros(3), each * off(3)]))
        cameras.append(replace(camera, T_base_camera=place, k=k))
    return Rig(rig.name, tuple(cameras))


class RenderedTruth:
    """The truth of rendered frames, one at a time (evaluation.truth.TruthSource)."""

    def __init__(self, names: Sequence[str], encoded: Encoded) -> None:
        self._names = list(names)
        self.encoded = encoded

    def close(self) -> None:
        pass

    def pose(self, stamp_ns: int) -> NDArray[np.float64] | None:
        return self.encoded.frame.T_world_base

    def depth(self, camera: str, stamp_ns: int) -> NDArray[np.float32] | None:
        depths = self.encoded.depths
        return None if depths is None else decode_depth(self._decoded(depths, camera))

    def mask(self, camera: str, stamp_ns: int) -> NDArray[np.bool_] | None:
        masks = self.encoded.masks
        return None if masks is None else self._decoded(masks, camera) > 0

    def _decoded(self, images: Sequence[bytes], camera: str) -> NDArray[Any]:
        data = np.frombuffer(images[self._names.index(camera)], np.uint8)
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))

    def objects(self, stamp_ns: int) -> TrueObjects | None:
        every = [thing for thing in self.encoded.frame.objects if thing.moving]
        center, size, velocity = (
            np.array(values, np.float64).reshape(-1, 3)
            for values in (
                [thing.T_world_object[:3, 3] for thing in every],
                [thing.size for thing in every],
                [thing.velocity for thing in every],
            )
        )
        yaw = np.array([np.arctan2(*thing.T_world_object[[1, 0], 0]) for thing in every])
        ids = np.array([thing.id for thing in every], np.int64)
        return TrueObjects(ids, Boxes(center, size, yaw), velocity)

    def points(self, stamp_ns: int, within_ns: int) -> None:
        return None


class Drive:
    """What a drive's poses said and what was true. give: draws by how much mounts and body give
    from frame to frame; None: not at all."""

    def __init__(self, give: np.random.Generator | None = None) -> None:
        self._give = give
        self.poses: list[PoseEstimate] = []
        self.truth: list[NDArray[np.float64]] = []
        self.spent = 0.0

    def add(self, result: Reconstruction, truth: NDArray[np.float64] | None) -> None:
        self.spent += sum(result.latency.values())
        if truth is not None:
            self.poses.append(result.pose)
            self.truth.append(truth)

    def scores(self) -> dict[str, Any]:
        """Trajectory, promise, states, and per frame what the plot shows."""
        truth = np.stack(self.truth)
        said = [pose.tracking for pose in self.poses]
        segments = np.array([pose.segment for pose in self.poses])
        estimate = _joined(np.stack([pose.T_map_base for pose in self.poses]), truth, segments)
        covariance = np.stack([pose.motion_covariance for pose in self.poses])
        calibration = np.stack([pose.calibration_covariance for pose in self.poses])
        error = motion_errors(estimate, truth)
        if self._give is not None:
            way = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
            gave = self._give.standard_normal(error.shape) * np.sqrt(np.diag(GIVE))
            error = error + gave * np.sqrt(np.minimum(1.0, way))[:, None]
        tracked = np.array([state is Tracking.TRACKING for state in said])
        asked = tracked[1:] & (segments[1:] == segments[:-1])
        trajectory = score_trajectory(estimate, truth)
        length, sigma = along_error(error, covariance[1:])
        pose_error = np.array([log(one) for one in inverse(truth) @ _placed(estimate, truth)])
        pose_length, pose_sigma = along_error(
            pose_error, np.stack([pose.covariance for pose in self.poses])
        )
        return {
            "frames": len(said),
            "path_m": trajectory.path,
            "drift_m": float(trajectory.errors[-1]),
            "ate_m": trajectory.ate,
            "states": {
                state.value: said.count(state) / len(said) for state in Tracking if state in said
            },
            "segments": len(set(segments.tolist())),
            "promise": asdict(score_promise(error[asked], covariance[1:][asked])),
            # simulated rigs are exactly as calibrated: what is left is the images' noise
            "noise": asdict(score_promise(error[asked], (covariance - calibration)[1:][asked])),
            "reasons": sorted({pose.reason for pose in self.poses if pose.reason})[:8],
            "standing": _standing(estimate, truth),
            "host_and_engine_s": self.spent,
            "per_frame": {
                "tracked": tracked[1:].tolist(),
                "error": np.round(length, 6).tolist(),
                "sigma": np.round(sigma, 6).tolist(),
                "pose_error": np.round(pose_length[1:], 5).tolist(),
                "pose_sigma": np.round(pose_sigma[1:], 5).tolist(),
            },
        }


def _placed(estimate: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The estimate with its first pose on the truth's."""
    return truth[0] @ inverse(estimate[0]) @ estimate


def _joined(
    estimate: NDArray[np.float64], truth: NDArray[np.float64], segments: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Segments of a trajectory, whose poses have nothing to do with each other, joined by the true
    motion between them."""
    out = estimate.copy()
    for k in range(1, len(out)):
        if segments[k] == segments[k - 1]:
            out[k] = out[k - 1] @ inverse(estimate[k - 1]) @ estimate[k]
        else:
            out[k] = out[k - 1] @ inverse(truth[k - 1]) @ truth[k]
    return out


def _standing(estimate: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    """How far the estimate moves while the car stands: the way of its frames in all, and the
    farthest from where it came to rest, m."""
    still = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1) < STANDING
    frames, way, farthest = 0, 0.0, 0.0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(int), [0]])))
    for start, end in edges.reshape(-1, 2):
        if end - start < RATE:
            continue
        places = estimate[start : end + 1, :3, 3]
        frames += int(end - start)
        way += float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
        farthest = max(farthest, float(np.linalg.norm(places - places[0], axis=1).max()))
    return {"frames": frames, "way_m": way, "farthest_m": farthest}


def rendered(job: Job, folder: Path | None) -> tuple[Rig, Iterator[Encoded]]:
    """The rig of a simulated drive and its frames; kept in the folder, if there is one, and taken
    from there."""
    drive = replace(job, drawn=False).file
    file = folder / Path(drive).with_suffix(".pkl") if folder else None
    if file is not None and file.is_file():
        with file.open("rb") as opened:
            rig, frames = pickle.load(opened)
        return rig, iter(frames)
    rig = scenario(job.name, job.seed).rig(find_rig(job.rig))
    simulator = Simulator(rig, job.seconds, RATE, job.seed, name=job.name)
    quality = simulator.drive.conditions.jpeg_quality
    made = (encode(simulator.frame(index), quality, 1) for index in range(simulator.count))
    if file is None:
        return rig, made
    frames = list(made)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{multiprocessing.current_process().pid}.part")
    with part.open("wb") as opened:
        pickle.dump((rig, frames), opened)
    part.rename(file)
    return rig, iter(frames)


def run_scenario(job: Job, folder: Path | None = None) -> dict[str, Any]:
    """One simulated drive. folder: of rendered drives."""
    rig, frames = rendered(job, folder)
    rng = np.random.default_rng(job.seed) if job.drawn else None
    rig = rig if rng is None else drawn(rig, rng)
    reconstructor, drive = Reconstructor(rig, choose_engine("", rig)), Drive(rng)
    truth: RenderedTruth | None = None
    for encoded in frames:
        if truth is None:
            truth = RenderedTruth(rig.names, encoded)
            evaluator = Evaluator(truth, rig)
        truth.encoded, frame = encoded, encoded.frame
        frame_set = FrameSet(
            frame.stamp_ns,
            {
                name: RawImage(stamp, "jpeg", np.frombuffer(data, np.uint8))
                for name, stamp, data in zip(
                    rig.names, frame.stamps_ns, encoded.images, strict=True
                )
            },
        )
        result = reconstructor.step(frame_set)
        evaluator.add_reconstruction(result, reconstructor.preprocessor)
        drive.add(result, frame.T_world_base)
    reconstructor.close()
    return drive.scores() | _from_evaluator(evaluator.finish(None))


def run_bag(job: Job) -> dict[str, Any]:
    """One real drive, without odometry; masks against lidar points with track ids, where there
    are."""
    bag = SHARED / job.name
    boxes_file, ids_file = (
        bag.with_name(f"{job.name}_{end}") for end in ("boxes.json", "point_ids.npz")
    )
    masks = PointMaskAccumulator()
    labelled = boxes_file.is_file() and ids_file.is_file()
    boxes = json.loads(boxes_file.read_text()) if labelled else []
    moving = {frame["stamp_ns"]: moving_tracks(frame) for frame in boxes}
    with BagReader(bag) as reader:
        rig = reader.rig()
        reconstructor = Reconstructor(rig, choose_engine("", rig))
        evaluator, drive, truth = Evaluator(bag, rig), Drive(), Truth(bag)
        tracks: Mapping[str, Any] = np.load(ids_file) if labelled else {}
        for frame_set in frame_sets(reader, Synchronizer(rig.names)):
            result = reconstructor.step(frame_set)
            evaluator.add_reconstruction(result, reconstructor.preprocessor)
            stamp = result.frame.stamp_ns
            drive.add(result, truth.pose(stamp))
            scan = truth.points(stamp, 0)
            if scan is None or str(stamp) not in tracks:
                continue
            for n, camera in enumerate(rig.cameras):
                if result.frame.present[n]:
                    found = reconstructor.preprocessor.to_source(result.motion.mask[n], n)
                    none = np.zeros(0, np.int64)
                    masks.add(found, scan[1], tracks[str(stamp)], moving.get(stamp, none), camera)
        truth.close()
        reconstructor.close()
    scores = drive.scores() | _from_evaluator(evaluator.finish(None))
    return scores | ({"masks": asdict(masks.score())} if labelled else {})


def _from_evaluator(metrics: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if masks := metrics.get("masks"):
        out["masks"] = {name: value for name, value in masks.items() if name != "cameras"}
    for name in ("lidar_depth", "depth"):
        if depth := metrics.get(name):
            out["depth"] = depth["near"]
    if objects := metrics.get("objects"):
        out["objects"] = objects
    return out


def run(job: Job, out: Path, folder: Path | None = None) -> Path:
    """Run a drive and keep its result. folder: of rendered drives."""
    cv2.setNumThreads(1)
    try:
        result = run_scenario(job, folder) if job.rig else run_bag(job)
    except Recon4dError as error:
        result = {"failed": str(error)}
    stamped = {
        "job": asdict(job),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        **result,
    }
    file = out / job.file
    part = file.with_suffix(".part")
    part.write_text(json.dumps(stamped, default=float) + "\n")
    part.rename(file)  # a file that is there is whole
    return file


def _commit() -> str:
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One row per scenario and rig, all its seeds together, and one per bag; Markdown."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["job"]["rig"], result["job"]["name"]].append(result)
    order = {name: place for place, name in enumerate((*SCENARIOS, *BAGS))}
    keys = sorted(groups, key=lambda key: (not key[0], key[0], order.get(key[1], 999)))
    lines = [
        "| rig | drive | runs | way m | drift % | drift m | ATE m | promise % |"
        " tracked / degraded / starting / lost % | NEES | of the noise | standing m | IoU |"
        " static marked % | AbsRel @ coverage |",
        "|" + "---|" * 15,
    ]
    return "\n".join([*lines, *(_row(rig, name, groups[rig, name]) for rig, name in keys)])


def _row(rig: str, name: str, group: Sequence[Mapping[str, Any]]) -> str:
    done = [result for result in group if "failed" not in result]
    if not done:
        return f"| {rig or 'bag'} | {name} | 0 | not run: {group[0]['failed']} |" + " |" * 11

    def total(*path: str) -> float:
        return sum(_at(result, path) for result in done)

    frames, way = total("frames"), total("path_m")
    promised = total("promise", "frames")
    kept = sum(
        r["promise"]["kept"] * r["promise"]["frames"] for r in done if r["promise"]["frames"]
    )
    nees, noise = (
        sum(r[part]["nees"] * r[part]["frames"] for r in done if r[part]["frames"])
        for part in ("promise", "noise")
    )
    states = " / ".join(
        f"{100 * sum(r['states'].get(state, 0.0) * r['frames'] for r in done) / frames:.0f}"
        for state in ("tracking", "degraded", "starting", "lost")
    )
    masks = [r["masks"] for r in done if r.get("masks") and np.isfinite(r["masks"]["iou"])]
    marked = [r["masks"]["static_marked"] for r in done if r.get("masks")]
    depth = [r["depth"] for r in done if r.get("depth")]
    standing = [r["standing"] for r in done if r["standing"]["frames"]]
    cells = [
        rig or "bag",
        name,
        str(len(done)),
        f"{way:.0f}",
        f"{100 * total('drift_m') / way:.2f}" if way > 5.0 else "",
        f"{total('drift_m') / len(done):.2f}",
        f"{total('ate_m') / len(done):.2f}",
        f"{100 * kept / promised:.1f}" if promised else "",
        states,
        f"{nees / promised:.2f}" if promised else "",
        f"{noise / promised:.2f}" if promised and rig else "",
        f"{max(s['farthest_m'] for s in standing):.3f}" if standing else "",
        f"{np.mean([m['iou'] for m in masks]):.2f}" if masks else "",
        f"{100 * np.nanmean(marked):.2f}" if marked else "",
        (
            f"{np.mean([d['abs_rel'] for d in depth]):.3f} @"
            f" {np.mean([d['coverage'] for d in depth]):.2f}"
            if depth
            else ""
        ),
    ]
    return "| " + " | ".join(cells) + " |"


def _at(result: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = result
    for name in path:
        value = value[name]
    return float(value)


def plot(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Reported standard deviation against true error: of each motion, and of ~/odometry's pose."""
    from matplotlib.figure import Figure

    figure = Figure((12, 5.5), layout="constrained")
    panels = figure.subplots(1, 2)
    names = sorted({result["job"]["name"] for result in results if "per_frame" in result})
    for panel, kind, title in (
        (panels[0], "", "motion between frames, said to be tracked"),
        (panels[1], "pose_", "pose of ~/odometry since the start"),
    ):
        for number, name in enumerate(names):
            frames = [
                r["per_frame"] for r in results if r["job"]["name"] == name and "per_frame" in r
            ]
            chosen = np.concatenate([np.array(f["tracked"], bool) for f in frames])
            sigma, error = (
                np.concatenate([f[kind + what] for f in frames])[chosen]
                for what in ("sigma", "error")
            )
            panel.scatter(
                np.maximum(sigma, 1e-5),
                np.maximum(error, 1e-5),
                s=3,
                color=f"C{number % 10}",
                marker="ox^"[number // 10 % 3],
                label=name,
                alpha=0.5,
            )
        x = np.geomspace(1e-5, 30.0, 100)
        panel.plot(x, x, color="k", lw=1, label="1 sigma")
        panel.plot(x, 3 * x + 0.02, color="r", lw=1, label="3 sigma + 2 cm")
        panel.set(xscale="log", yscale="log", title=title)
        panel.set(xlabel="reported sigma along the error, m", ylabel="true error, m")
        panel.set(xlim=(1e-5, 30.0), ylim=(1e-5, 100.0))
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=6, ncol=2, loc="upper left", markerscale=3)
    figure.savefig(file, dpi=110)


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """All drives that are asked for, seeds last: a run that is cut off has some of everything."""
    names = arguments.only or [*SCENARIOS, *BAGS]
    made = [Job(name) for name in names if name in BAGS]
    made += [
        Job(name, rig, arguments.first_seed + seed, arguments.seconds, arguments.drawn)
        for seed in range(arguments.seeds)
        for name in names
        if name not in BAGS
        for rig in arguments.rigs
    ]
    return [job for job in made if job.rig or (SHARED / job.name).is_dir()]


def results_of(jobs: Sequence[Job], out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / job.file).read_text()) for job in jobs if (out / job.file).is_file()]


def _all(
    jobs: Sequence[Job], out: Path, workers: int, folder: Path | None = None
) -> Iterator[Path]:
    if workers == 1:
        yield from (run(job, out, folder) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(run, job, out, folder) for job in jobs]):
            yield done.result()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--seeds", type=int, default=5, help="drives of each scenario (default: %(default)s)")
    add("--first-seed", type=int, default=FIRST_SEED, help="(default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="of each drive (default: %(default)s)")
    add("--rigs", nargs="+", default=list(RIGS), help="(default: %(default)s)")
    add("--only", nargs="+", metavar="NAME", help=f"scenarios or bags ({', '.join(BAGS)})")
    add("--workers", type=int, default=2, help="drives at a time (default: %(default)s)")
    add("--out", type=Path, default=ROOT / "benchmarks/results/scenarios", metavar="DIR")
    add(
        "--rendered",
        type=Path,
        metavar="DIR",
        help="keep rendered drives, and take them from there",
    )
    add("--drawn", action="store_true", help="rigs that are off by what is stated of them")
    add("--table", action="store_true", help="print the table of what is there and run nothing")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    jobs = jobs_of(arguments)
    for job in jobs:
        if job.rig:
            scenario(job.name)  # an unknown name ends here
    arguments.out.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not (arguments.out / job.file).is_file()]
    print(f"{len(jobs)} drives, {len(jobs) - len(missing)} of them there already", flush=True)
    if not arguments.table:
        done = _all(missing, arguments.out, arguments.workers, arguments.rendered)
        for count, file in enumerate(done, start=1):
            print(f"{count}/{len(missing)} {file.stem}", flush=True)
    results = results_of(jobs, arguments.out)
    text = table(results)
    commits = sorted({result["commit"] for result in results})
    text += f"\n\n{len(results)} drives; made at {', '.join(commits)}\n"
    print(text)
    (arguments.out / "table.md").write_text(text)
    plot(results, arguments.out / "sigma.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
