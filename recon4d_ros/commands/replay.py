"""`recon4d replay`: the reconstruction over a bag, offline; the folder it writes is the contract of
docs/design.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.rig import BASE_FRAME, chosen, load_rig_file
from recon4d_ros.cameras.rig_check import check_rig
from recon4d_ros.commands.common import (
    NOT_TRACKED,
    add_bag_rig,
    add_detections,
    add_detector,
    add_engine_and_parameters,
    bag_rig,
    detection_topics,
    parameters_from,
    warn,
)
from recon4d_ros.dynamics.one_list import OneList
from recon4d_ros.engine.choose import choose_engine
from recon4d_ros.errors import BagError, MapError, OutputError, ParameterError, Recon4dError
from recon4d_ros.evaluation import Evaluator, format_report, nothing_tracked, nothing_usable
from recon4d_ros.localization import check_place, open_map
from recon4d_ros.paths import user_path
from recon4d_ros.perception import ImageDetector, Look, Objects, OccupiedSpace, all_objects
from recon4d_ros.reconstructor import Parameters, Reconstructor
from recon4d_ros.runs.replay import MotionTopics, frame_sets
from recon4d_ros.runs.statistics import RunStatistics, map_losses
from recon4d_ros.runs.writer import RunWriter
from recon4d_ros.sync import Synchronizer
from recon4d_ros.tally import Tally
from recon4d_ros.types import Reconstruction, Tracking

EPILOG = """writes to --out:
  trajectory.tum   seconds x y z qx qy qz qw, base_link in map, one line per frame set
  map.ply          the static map        objects.jsonl   tracked objects per frame set
  tracking.jsonl   state of the pose and its reason, one line where they change
  summary.json     frames, drops, rates, latency percentiles per stage, memory, and the metrics where the bag has /ground_truth/*
  overview.png     the run in one picture
  occupancy_grid.pgm, .yaml  free and occupied ground, as Nav2's map_server reads it
  occupancy/<stamp_ns>.ply   with --occupancy-engine: occupied voxels in base_link, the score as weight
  with --save-frames: depth/<camera>/<stamp_ns>.png (16 bit, m x 256, 0 = none), dynamic/<camera>/<stamp_ns>.png (255 = moving),
                   both in the source image's size and geometry

examples:
  recon4d replay drive/ --out run
  recon4d replay drive/ --out run --odometry /wheel/odom --save-frames
  recon4d replay drive/ --out run --engine geometric_stereo -p mapping.voxel_size=0.1
  recon4d replay phone/ --out run --height 1.4           one camera, no transforms: it looks ahead from 1.4 m above the road
  recon4d replay drive/ --out run --image front=/cam0 --camera-info front=/calibration/0
"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=user_path, help="rosbag2 folder or file (MCAP, sqlite3)")
    parser.add_argument(
        "--out",
        type=user_path,
        required=True,
        metavar="DIR",
        help="folder to write (must not exist, or --force)",
    )
    parser.add_argument(
        "--rig",
        type=user_path,
        metavar="YAML",
        help="rig file (default: camera_info and /tf_static of the bag)",
    )
    parser.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="use only these cameras, in this order"
    )
    parser.add_argument(
        "--odometry",
        default="auto",
        metavar="TOPIC",
        help=(
            "odometry topic, `none`, or `auto`: the bag's only one outside /ground_truth (default)"
        ),
    )
    parser.add_argument(
        "--imu", default="auto", metavar="TOPIC", help="sensor_msgs/Imu, likewise (gyro)"
    )
    parser.add_argument(
        "--twist",
        default="auto",
        metavar="TOPIC",
        help="geometry_msgs/TwistWithCovarianceStamped, likewise (wheel speed)",
    )
    add_bag_rig(parser)
    add_detections(parser)
    add_detector(parser)
    parser.add_argument(
        "--save-frames", action="store_true", help="also write depth and masks of every frame"
    )
    parser.add_argument(
        "--max-frames", type=int, default=0, metavar="K", help="stop after K frame sets"
    )
    parser.add_argument(
        "--map",
        type=user_path,
        metavar="DIR",
        help=(
            "a map folder that the car is looked for in, and that what is seen is added to (see"
            " -p localization.mode=localization)"
        ),
    )
    parser.add_argument(
        "--save-map",
        type=user_path,
        metavar="DIR",
        help="also save the map as a folder that --map and the node can load (may be --map's)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite --out")
    for option, what in (("object", "objects (sparse4d)"), ("occupancy", "occupancy (uniscene)")):
        parser.add_argument(
            f"--{option}-engine",
            type=user_path,
            metavar="DIR",
            help=f"folder of an engine of {what} that runs beside the reconstruction",
        )
    add_engine_and_parameters(parser)


def run(arguments: argparse.Namespace) -> int:
    summary = replay(
        arguments.bag,
        arguments.out,
        engine=arguments.engine,
        parameters=parameters_from(arguments),
        rig_file=arguments.rig,
        cameras=arguments.cameras,
        odometry=arguments.odometry,
        imu=arguments.imu,
        twist=arguments.twist,
        **bag_rig(arguments),
        detections=detection_topics(arguments),
        detector=arguments.detector,
        save_frames=arguments.save_frames,
        max_frames=arguments.max_frames,
        force=arguments.force,
        map_folder=arguments.map,
        save_map=arguments.save_map,
        object_engine=arguments.object_engine,
        occupancy_engine=arguments.occupancy_engine,
        progress=True,
    )
    print(format_report(summary))
    print(f"wrote {arguments.out}")
    if reason := nothing_tracked(summary):
        print(f"recon4d replay: {reason}", file=sys.stderr)
        return NOT_TRACKED
    return 0


def replay(
    bag: Path,
    out: Path,
    *,
    engine: str = "",
    parameters: Parameters | None = None,
    rig_file: Path | None = None,
    cameras: list[str] | None = None,
    odometry: str = "auto",
    imu: str = "auto",
    twist: str = "auto",
    base_frame: str = BASE_FRAME,
    height: float | None = None,
    image_topics: Mapping[str, str] | None = None,
    info_topics: Mapping[str, str] | None = None,
    detections: Mapping[str, str] | None = None,
    detector: Path | None = None,
    save_frames: bool = False,
    max_frames: int = 0,
    force: bool = False,
    map_folder: Path | None = None,
    save_map: Path | None = None,
    object_engine: Path | None = None,
    occupancy_engine: Path | None = None,
    progress: bool = False,
    watch: Callable[[Reconstructor, Reconstruction], None] | None = None,
) -> dict:
    """Run the bag and write the folder; returns the summary (what summary.json holds).

    base_frame, height, image_topics, info_topics: as in `BagReader.rig`; a rig file goes before
    them. map_folder: a map to find the car in; save_map: where to save the map. detections: camera
    -> topic of vision_msgs/Detection2DArray of its images. detector: an ONNX file. object_engine,
    occupancy_engine: folders of engines. Each of them sees every frame set, too. watch: told of
    every frame set once it is done.
    progress: a bar, and warnings before the run, on standard error. Raises Recon4dError, also
    where no image was of use; the folder then says why.
    """
    parameters = parameters or Parameters()
    if max_frames < 0:
        raise ParameterError(f"--max-frames is {max_frames}: expected at least 0 (all)")
    with BagReader(bag) as reader:
        file = load_rig_file(rig_file) if rig_file else None
        if file:
            rig = chosen(file.rig, cameras)
            named = {
                name: topics.image
                for name, topics in file.topics.items()
                if topics.image and name in rig.names
            }
            image_topics = {**named, **(image_topics or {})}
        else:
            rig = reader.rig(
                cameras,
                base_frame,
                height=height,
                image_topics=image_topics,
                info_topics=info_topics,
            )
        for name in detections or {}:
            if name not in rig.names:
                raise ParameterError(
                    f"--detections {name}: no such camera: expected one of {', '.join(rig.names)}"
                )
        motion = MotionTopics.of(reader, odometry, imu, twist)
        unlikely = check_rig(rig)
        if progress:
            warn("replay", [*reader.notes, *unlikely])
        if save_map:
            _check_saving(save_map, parameters.localization.mode)
        opened = open_map(map_folder, rig) if map_folder else None
        reconstructor = Reconstructor(rig, choose_engine(engine, rig), parameters)
        if opened:
            reconstructor.use_map(opened)
        elif save_map and reconstructor.places is None:
            reconstructor.keep_places()
        shared = reconstructor.calibration
        detect = Objects(object_engine, rig, shared=shared) if object_engine else None
        occupy = OccupiedSpace(occupancy_engine, rig, shared=shared) if occupancy_engine else None
        look_for = ImageDetector(detector, rig, 0, shared) if detector else None
        beside = [one for one in (detect, occupy, look_for) if one is not None]
        cautions = [warning for one in beside for warning in one.warnings]
        if progress:
            warn("replay", cautions)
        one_list = OneList()
        synchronizer = Synchronizer(rig.names, parameters.sync)
        evaluator = Evaluator(bag, rig) if reader.info().has_ground_truth else None
        writer = RunWriter(out, rig=rig, save_frames=save_frames, force=force, evaluator=evaluator)
        statistics = RunStatistics()
        lost = usable = 0
        not_tracked = Tally()
        expected = max(info.count for info in reader.info().cameras.values())
        localization: dict[str, Any] = {"map": str(map_folder or ""), "found": 0}
        localization["first_found_s"] = None
        first_ns = 0
        not_saved: Recon4dError | None = None
        for frame_set in tqdm(
            frame_sets(
                reader,
                synchronizer,
                motion,
                image_topics,
                base_frame,
                detections,
                reconstructor.offer_boxes,
            ),
            total=max_frames or expected,
            unit="set",
            desc="replay",
            mininterval=0.5,
            disable=not progress,
        ):
            first_ns = first_ns or frame_set.stamp_ns
            result = reconstructor.step(frame_set)
            statistics.add(result.latency, result.memory_fill)
            if result.pose.tracking is not Tracking.TRACKING:
                lost += 1
                not_tracked.count(result.pose.tracking.value, result.pose.reason or "no reason")
            usable += int(result.frame.present.sum())
            if (places := reconstructor.places) is not None:
                localization["found"] += int(places.found)
                if opened and places.found and localization["first_found_s"] is None:
                    localization["first_found_s"] = (frame_set.stamp_ns - first_ns) * 1e-9
            look, objects = Look.of(result), result.motion.objects
            if detect and (seen := detect(look)) is not None:
                one_list.take(seen, look.world)
                reconstructor.offer_objects(seen)
            if look_for:
                for camera, boxes in look_for(look).items():
                    reconstructor.offer_boxes(camera, boxes)
            if detect:
                objects = all_objects(one_list, look, result)
            writer.add(result, reconstructor.preprocessor, objects)
            if watch is not None:
                watch(reconstructor, result)
            if occupy and (occupancy := occupy(look)) is not None:
                writer.add_occupancy(occupancy)
            if statistics.frames == max_frames:
                break
        summary = {
            "bag": str(bag),
            "rig": rig.name,
            "cameras": list(rig.names),
            "base_frame": base_frame,
            "odometry": motion.odometry or "none",
            "imu": motion.imu or "none",
            "twist": motion.twist or "none",
            "engine": {
                "network": reconstructor.engine.spec.network,
                "runtime": reconstructor.engine.spec.runtime,
                "device": reconstructor.engine.device,
                "warning": reconstructor.engine.spec.warning,
                "metres_per_unit": [
                    (
                        None
                        if scale is None
                        else {
                            "value": scale.metres_per_unit,
                            "sigma": scale.sigma,
                            "observations": scale.observations,
                        }
                    )
                    for scale in reconstructor.engine.scales
                ],
            },
            "images_used": usable,
            "not_tracking": lost,
            "not_tracked": {
                f"{state}: {reason}": count for (state, reason), count in not_tracked().items()
            },
            "drops": {
                f"{camera}: {reason}": count
                for (camera, reason), count in sorted(synchronizer.statistics.dropped.items())
            }
            | dict(reader.lost),
            "odometry_dropped": dict(synchronizer.statistics.odometry_dropped),
            "imu_dropped": dict(synchronizer.statistics.imu_dropped),
            "twist_dropped": dict(synchronizer.statistics.twist_dropped),
            "engines_beside": [
                {"network": one.engine.spec.network, "device": one.engine.device} for one in beside
            ],
            "notes": [
                *reader.notes,
                *synchronizer.findings,
                *reconstructor.notes,
                *reconstructor.map_notes,
                *cautions,
            ],
            "undecodable": reconstructor.undecodable,
            "detections": {
                "used": reconstructor.dynamics.candidates.used,
                "dropped": dict(reconstructor.dynamics.candidates.dropped),
            },
            "memory_forgotten": reconstructor.forgotten,
            "stamps_replaced": dict(reader.stamps_replaced),
            "map_lost": map_losses(reconstructor.mapper),
            **statistics.summary(),
        }
        if reconstructor.places:
            localization["loops"] = reconstructor.places.loops
            summary["localization"] = localization
            if save_map:
                try:
                    voxels, keyframes, aside = reconstructor.save_map(save_map)
                    localization |= {"saved": {"voxels": voxels, "keyframes": keyframes}}
                    summary["notes"] += [aside] if aside else []
                except (MapError, OutputError) as error:  # the run's folder is written all the same
                    not_saved = error
                    summary["notes"].append(str(error))
        summary = writer.finish(reconstructor.mapper, summary, grid=reconstructor.whole_grid())
        for one in (reconstructor, *beside):
            one.close()
    if reason := nothing_usable(summary):
        raise BagError(reason)
    if not_saved is not None:
        raise not_saved
    return summary


def _check_saving(path: Path, mode: str) -> None:
    """Before the drive, what would be said after it. Raises ParameterError, OutputError."""
    if mode not in ("auto", "mapping"):
        raise ParameterError(
            f"--save-map {path}: localization.mode is {mode}, which keeps no keyframes: expected"
            " mapping or auto"
        )
    check_place(path)
