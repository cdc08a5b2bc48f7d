"""`recon4d view`: a bag, a run's folder or a running node, seen in the browser (Rerun)."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.bags import BagReader
from recon4d_ros.bags.reader import ImageEvent
from recon4d_ros.cameras.decode import decode, in_shown_byte_order
from recon4d_ros.commands.common import (
    add_bag_rig,
    add_engine_and_parameters,
    bag_rig,
    parameters_from,
)
from recon4d_ros.commands.replay import replay
from recon4d_ros.errors import BagError, ImageError, ParameterError, Recon4dError
from recon4d_ros.evaluation import format_report
from recon4d_ros.grids import read_map
from recon4d_ros.mapping import read_cloud
from recon4d_ros.paths import user_path
from recon4d_ros.reconstructor import Reconstructor
from recon4d_ros.ros.node_parameters import NODE_NAME
from recon4d_ros.runs.files import (
    read_depth,
    read_mask,
    read_objects,
    read_tracking,
    read_trajectory,
)
from recon4d_ros.runs.writer import GRID
from recon4d_ros.types import DynamicObject, Reconstruction, Tracking
from recon4d_ros.viewer import Sinks, View, ViewLog, view_to
from recon4d_ros.viewer.sinks import LOCALHOST

EPILOG = """What is shown: cameras with masks, depth, the static map, the way, objects with boxes and speeds, the grid around the
car, latency by stage, tracking state and reason; over a timeline. It needs rerun-sdk (`make viewer`).

The page is served at localhost alone, unless --address says otherwise, and until Ctrl-C. With --save alone nothing is served.

examples:
  recon4d view drive/                      reconstruct a bag, and see it while it runs
  recon4d view run/                        what `recon4d replay` left there (with images where its bag still is where it was)
  recon4d view --live                      the node that runs now
  recon4d view drive/ --save drive.rrd     into a file, for `rerun drive.rrd` or for others
"""  # noqa: E501
MAP_EVERY = 10  # frame sets between two copies of the map
NEAR_NS = 50_000_000  # between an image and the frame set it belongs to
UNKNOWN = np.full((3, 3), np.nan)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", type=user_path, metavar="BAG|RUN", help="bag, or folder of a run"
    )
    parser.add_argument("--live", action="store_true", help="a node that runs now")
    parser.add_argument(
        "--node", default=f"/{NODE_NAME}", metavar="NAME", help="--live: its name (%(default)s)"
    )
    parser.add_argument("--save", type=user_path, metavar="FILE.rrd", help="write it to a file")
    parser.add_argument(
        "--serve", action="store_true", help="serve the page also where --save is given"
    )
    parser.add_argument(
        "--address",
        default=LOCALHOST,
        help="address to serve on (%(default)s; 0.0.0.0: every one, for anybody who reaches it)",
    )
    parser.add_argument(
        "--port", type=int, default=9090, help="of the page; its data are on the next (%(default)s)"
    )
    parser.add_argument("--rig", type=user_path, metavar="YAML", help="rig file, of a bag")
    parser.add_argument("--cameras", nargs="+", metavar="NAME", help="use only these cameras")
    parser.add_argument("--max-frames", type=int, default=0, metavar="K", help="of a bag")
    add_bag_rig(parser)
    add_engine_and_parameters(parser)


def run(arguments: argparse.Namespace) -> int:
    what, live = arguments.what, arguments.live
    if live == (what is not None):
        raise ParameterError("expected a bag, a run's folder, or --live, and one of them")
    if arguments.save is not None and arguments.save.suffix != ".rrd":
        raise ParameterError(f"--save {arguments.save}: expected a name that ends in .rrd")
    if not 1 <= arguments.port <= 65534:
        raise ParameterError(f"--port is {arguments.port}: expected 1 to 65534")
    serve = arguments.serve or arguments.save is None
    signal.signal(signal.SIGTERM, _interrupt)  # or the viewer's process would be left behind
    sinks = Sinks(arguments.save, serve, arguments.address, arguments.port)
    with closing(view_to(sinks, "live" if live else what.name)) as view:
        if view.url:
            print(f"see {view.url}", flush=True)
        if live:
            from recon4d_ros.ros.live_view import show_node

            show_node(arguments.node, view)
        elif (what / "trajectory.tum").is_file():
            show_run(what, view)
        else:
            show_bag(arguments, view)
        if view.url and not live:
            view.flush()
            print("that is all of it; Ctrl-C ends", flush=True)
            view.wait()
    if arguments.save is not None:
        print(f"wrote {arguments.save}")
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def show_bag(arguments: argparse.Namespace, view: View) -> None:
    """Reconstructs a bag and logs every frame set as it is done."""
    log: ViewLog | None = None
    done = 0

    def watch(reconstructor: Reconstructor, result: Reconstruction) -> None:
        nonlocal log, done
        if log is None:
            log = ViewLog(view.recording, reconstructor.rig.names)
            log.calibrate(reconstructor.calibration)
        log.add(result)
        if done % MAP_EVERY == 0:
            log.add_map(*reconstructor.mapper.points()[:2])
        done += 1

    with tempfile.TemporaryDirectory(prefix="recon4d_view_") as folder:
        summary = replay(
            arguments.what,
            Path(folder) / "run",
            engine=arguments.engine,
            parameters=parameters_from(arguments),
            rig_file=arguments.rig,
            cameras=arguments.cameras,
            **bag_rig(arguments),
            max_frames=arguments.max_frames,
            progress=True,
            watch=watch,
        )
        cloud = read_cloud(Path(folder) / "run/map.ply")
        if log is not None:
            log.add_map(cloud.xyz, cloud.rgb)
            log.text("summary", _as_text(summary))


def show_run(folder: Path, view: View) -> None:
    """What a run left. Raises Recon4dError."""
    stamps, poses = read_trajectory(folder / "trajectory.tum")
    summary = _summary(folder / "summary.json")
    names = sorted(path.name for path in folder.glob("depth/*") if path.is_dir())
    log = ViewLog(view.recording, sorted({*names, *summary.get("cameras", ())}))
    if len(poses):
        log.at(int(stamps[0]))
    for name in ("map.ply", "map.pcd"):
        if (folder / name).exists():
            cloud = read_cloud(folder / name)
            log.add_map(cloud.xyz, cloud.rgb)
    if (folder / f"{GRID}.yaml").exists():
        log.grid("world/occupancy_grid", read_map(folder / f"{GRID}.yaml"))
    there = folder / "objects.jsonl"
    objects = {one.stamp_ns: one for one in read_objects(there)} if there.exists() else {}
    images = {
        name: np.sort([int(path.stem) for path in (folder / "depth" / name).glob("*.png")])
        for name in names
    }
    states = read_tracking(folder / "tracking.jsonl")
    state = Tracking.TRACKING, "" if states else "this run does not tell the state per frame set"
    for index, (stamp, pose) in enumerate(zip(stamps.tolist(), poses, strict=True)):
        log.at(stamp, index)
        state = states.get(stamp, state)
        log.pose(pose, *state)
        if (one := objects.get(stamp)) is not None:
            log.objects(
                DynamicObject(
                    int(one.ids[i]),
                    one.position[i],
                    float(one.yaw[i]),
                    one.size[i],
                    one.velocity[i],
                    UNKNOWN,
                    UNKNOWN,
                    1.0,
                    0,
                    0,
                )
                for i in range(len(one.ids))
            )
        for name in names:
            if not len(images[name]):
                continue
            own = images[name][np.argmin(np.abs(images[name] - stamp))]
            if abs(int(own) - stamp) < NEAR_NS:
                log.camera(
                    name,
                    None,
                    read_depth(folder / "depth" / name / f"{own}.png"),
                    read_mask(folder / "dynamic" / name / f"{own}.png"),
                )
    if len(poses):
        log.trajectory(poses[:, :3, 3])
    if summary:
        log.text("summary", _as_text(summary))
    if "bag" not in summary:
        return
    try:
        _show_images(Path(summary["bag"]), log, stamps, summary.get("cameras", ()))
    except BagError as error:
        print(f"recon4d view: no images are shown: {error}", file=sys.stderr)


def _show_images(bag: Path, log: ViewLog, stamps: NDArray[np.int64], names: Sequence[str]) -> None:
    """Those of a run's bag, as they were taken, as its depth files are. Raises BagError where it is
    not there any more, or is read another way than by its own topics."""
    with BagReader(bag) as reader:
        for event in reader.events(names):
            if not isinstance(event, ImageEvent) or not len(stamps):
                continue
            index = int(np.argmin(np.abs(stamps - event.image.stamp_ns)))
            if abs(int(stamps[index]) - event.image.stamp_ns) > NEAR_NS:
                continue
            with suppress(ImageError):  # the run's summary tells of it
                log.at(int(stamps[index]), index)
                log.camera(event.camera, decode(in_shown_byte_order(event.image), 3))


def _summary(path: Path) -> dict[str, Any]:
    """Empty where a run was stopped before it had one. Raises Recon4dError."""
    try:
        summary = _with_nan(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(summary, dict):
            raise ValueError("it is no summary")
        return summary
    except OSError:
        return {}
    except (ValueError, TypeError) as error:
        raise Recon4dError(f"{path} is damaged: {error}") from None


def _as_text(summary: dict) -> str:
    return f"```\n{format_report(summary)}\n```"


def _with_nan(value: Any) -> Any:
    """The same tree with NaN for what JSON had no number for."""
    if isinstance(value, dict):
        return {key: _with_nan(entry) for key, entry in value.items()}
    return float("nan") if value is None else value
