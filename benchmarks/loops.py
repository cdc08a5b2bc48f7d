"""A closed course twice round: how far off the car and the map are at the end, with loops closed and
without.

    scripts/ros_env.sh recon4d simulate --scenario block --seed 2001 --rig kitti_like --seconds 190 --out BAG
    scripts/ros_env.sh python benchmarks/loops.py BAG --picture map.png

Odometry's own way is the run without loops: closing them does not touch it. Walls: points of the second
round, higher than half a metre, to the nearest of the first. Disk: what lies in temporary files at the end.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon4d_ros import messages as ros
from recon4d_ros.bags import BagReader
from recon4d_ros.engine.choose import choose_engine
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.localization.keyframes import FEATURE
from recon4d_ros.mapping.spill import _RECORD
from recon4d_ros.parameters import build
from recon4d_ros.reconstructor import Parameters, Reconstructor
from recon4d_ros.runs.replay import MotionTopics, frame_sets
from recon4d_ros.runs.statistics import rss_mib
from recon4d_ros.sync import Synchronizer

Array = NDArray[np.float64]

ROUND = 960.0  # metres
HIGH = 0.5  # metres over the road from which a point is a wall's
TRUTH = "/ground_truth/odom"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--frames", type=int, default=0, help="stop after so many frame sets")
    parser.add_argument("--picture", type=Path, help="the map from above, with loops and without")
    arguments = parser.parse_args()
    with BagReader(arguments.bag) as reader:
        truth = {
            ros.stamp_ns(message.header.stamp): ros.odometry_sample(message).T_odom_base
            for _, _, message in reader.messages([TRUTH])
        }
        rig = reader.rig()
        parameters = build(
            Parameters, {"localization.mode": "mapping", "egomotion.odometry": "none"}
        )
        reconstructor = Reconstructor(rig, choose_engine("", rig), parameters)
        places = reconstructor.keep_places()
        rows, seconds, memory, tracked = [], [], [], 0
        for frame_set in frame_sets(reader, Synchronizer(rig.names), MotionTopics()):
            started = time.perf_counter()
            result = reconstructor.step(frame_set)
            seconds.append(time.perf_counter() - started)
            T_odom_base = inverse(result.T_map_odom) @ result.pose.T_map_base
            stamp = frame_set.stamp_ns
            rows.append((truth[stamp], T_odom_base, result.pose.T_map_base))
            tracked += result.pose.usable
            if len(rows) % 100 == 0:
                memory.append(rss_mib())
                print(
                    len(rows), places.keyframes, places.loops, f"{memory[-1]:.0f} MiB", flush=True
                )
            if len(rows) == arguments.frames:
                break
    true, odometry, mapped = (np.stack(column) for column in zip(*rows, strict=True))
    true = inverse(true[0]) @ true
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1))])
    said = {
        "way_m": way[-1],
        "tracked": tracked / len(rows),
        "segments": result.pose.segment + 1,
        "keyframes": places.keyframes,
        "loops": places.loops,
        "memory_mib": memory,
        "step_s": float(np.median(seconds)),
        "disk_mib": {
            "voxels": reconstructor.mapper._spill.count * _RECORD.itemsize / 2**20,
            "features": places._file.count * FEATURE.itemsize / 2**20,
        },
        "grid_mib": sum(map(len, reconstructor.grids.tiles().data)) / 2**20,
    }
    for name, poses in (("without loops", odometry), ("with loops", mapped)):
        off = np.linalg.norm(poses[:, :3, 3] - true[:, :3, 3], axis=1)
        said[name] = {"end_m": off[-1], "end_percent": 100 * off[-1] / way[-1], "max_m": off.max()}
    clouds = rounds(reconstructor)
    said["walls_m"] = {name: walls(*two) for name, two in clouds.items()}
    print(json.dumps(said, indent=1, default=float), flush=True)
    if arguments.picture is not None:
        ways = {"with loops": mapped, "without loops": odometry}
        pictures = [picture(clouds[name], ways[name], true) for name in clouds]
        cv2.imwrite(str(arguments.picture), np.hstack(pictures))
    reconstructor.close()


def rounds(reconstructor: Reconstructor) -> dict[str, tuple[Array, Array]]:
    """Walls of the first and the second round, as the map is, and as it would be had no loop moved
    a submap."""
    mapper, places = reconstructor.mapper, reconstructor.places
    assert mapper._spill is not None and places is not None
    index = {node.index: node for node in places._loops._nodes}
    ways = np.full(len(mapper.anchors), np.nan)
    drifted = mapper.anchors.copy()
    for submap, node in places._submaps.items():
        ways[submap], drifted[submap] = index[node].way, index[node].T_odom_base
    spill = mapper._spill
    spill._file.seek(0)
    records = np.frombuffer(spill._file.read(spill.count * _RECORD.itemsize), _RECORD)
    clouds: dict[str, tuple[list, list]] = {"with loops": ([], []), "without loops": ([], [])}
    for submap in np.unique(records["submap"]).tolist():
        if submap < 0 or not np.isfinite(ways[submap]):
            continue
        local = records["point"]["xyz"][records["submap"] == submap].astype(np.float64)
        local = local[local[:, 2] > HIGH]
        which = 0 if ways[submap] < ROUND - 40 else 1
        for name, anchors in (("with loops", mapper.anchors), ("without loops", drifted)):
            clouds[name][which].append(transform(anchors[submap], local))
    return {
        name: tuple(np.concatenate([np.zeros((0, 3)), *part]) for part in two)
        for name, two in clouds.items()
    }


def walls(first: Array, second: Array) -> float:
    """Median distance of the second round's walls to the first's, m."""
    if not (len(first) and len(second)):
        return float("nan")
    return float(np.median(cKDTree(first).query(second[::7])[0]))


def picture(clouds: tuple[Array, Array], way: Array, true: Array, size: int = 1200) -> NDArray:
    """[size, size, 3] BGR, north up: the first round's walls grey, the second's red, the car's way
    blue, the true one green."""
    every = np.concatenate([*clouds, way[:, :3, 3], true[:, :3, 3]])[:, :2]
    low, high = every.min(axis=0), every.max(axis=0)
    scale = (size - 40) / (high - low).max()
    image = np.full((size, size, 3), 255, np.uint8)

    def pixels(points: Array) -> NDArray[np.int32]:
        x, y = ((points[:, :2] - low) * scale + 20).T
        return np.rint(np.column_stack([x, size - 1 - y])).astype(np.int32)

    for points, color in zip(clouds, ((150, 150, 150), (60, 60, 220)), strict=True):
        x, y = pixels(points).T
        image[y, x] = color
    for poses, color in ((true, (0, 160, 0)), (way, (220, 100, 0))):
        cv2.polylines(image, [pixels(poses[:, :3, 3])], False, color, 1, cv2.LINE_AA)
    return image


if __name__ == "__main__":
    main()
