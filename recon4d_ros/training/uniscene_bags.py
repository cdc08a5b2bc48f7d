"""Shards for UniScene (uniscene_data.py) of bags: cameras, a lidar, poses and, to tell what moves,
boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recon4d_ros import messages as ros
from recon4d_ros.bags import BagReader, OdometryEvent
from recon4d_ros.bags.topics import ODOMETRY
from recon4d_ros.cameras.calibration import input_size_for, make_calibration
from recon4d_ros.cameras.preprocess import Preprocessor
from recon4d_ros.cameras.rig import BASE_FRAME
from recon4d_ros.errors import BagError
from recon4d_ros.geometry import interpolate, inverse, log, transform
from recon4d_ros.networks.mended_labels import Sweep
from recon4d_ros.networks.occupancy_labels import is_ego_vehicle
from recon4d_ros.networks.sparse4d import CLASSES
from recon4d_ros.networks.uniscene import Configuration
from recon4d_ros.networks.working_image import working_images
from recon4d_ros.runs.replay import frame_sets
from recon4d_ros.sim.simulate import MOVING
from recon4d_ros.sync import Synchronizer
from recon4d_ros.training.uniscene_data import (
    CLASS_OF,
    LIDAR_AXES,
    RATE,
    Boxes,
    KeyFrame,
    shard_of,
)
from recon4d_ros.types import Rig

NEAR_NS = 60_000_000
"""A sweep this near to a frame set is its own, and a pose is carried on this far."""

LIDAR_TOPIC, ODOM_TOPIC, BOXES_TOPIC = (
    "/ground_truth/points",
    "/ground_truth/odom",
    "/ground_truth/objects",
)
CLOUD = "sensor_msgs/msg/PointCloud2"


@dataclass(frozen=True)
class BagTopics:
    """Where a bag holds the lidar's points, the car's poses and the boxes of what moves; empty: the
    truth's topic, or else the only one of its kind (no boxes)."""

    lidar: str = ""
    odometry: str = ""
    boxes: str = ""


def bag_drive(
    bag: Path,
    size: tuple[int, int],
    c: Configuration,
    lidar: NDArray[np.float64],
    topics: BagTopics = BagTopics(),
    cameras: Sequence[str] | None = None,
) -> tuple[dict[str, NDArray], list[str]]:
    """The shard of a bag, and what is to be told of it. Raises BagError.

    lidar: [3] where in base_link the lidar stands if its points' frame does not say it.
    """
    notes: list[str] = []
    with BagReader(bag) as reader:
        rig = reader.rig(cameras)
        height, width, _ = input_size_for(rig, size)
        calibration = make_calibration(rig, (height, width), size)
        odometry = _topic(reader, topics.odometry, ODOM_TOPIC, ODOMETRY, "odometry")
        path = _Path(reader, rig, odometry)
        boxes = _BoxesInBag(reader, topics.boxes, odometry, path)
        stamps, clouds, place = _clouds(reader, topics.lidar, lidar, path, notes)
        sweeps = [
            Sweep(points.astype(np.float64), place, path.at(stamp), boxes.at(stamp).movers)
            for stamp, points in zip(stamps.tolist(), clouds, strict=True)
        ]
        prepare, grid = Preprocessor(rig, calibration, 3), torch.from_numpy(calibration.grid)
        keys: list[KeyFrame] = []
        last = None
        for frame_set in frame_sets(reader, Synchronizer(rig.names)):
            stamp = frame_set.stamp_ns
            if last is not None and stamp - last < 0.9e9 / RATE:
                continue
            nearest = int(np.abs(stamps - stamp).argmin())
            if abs(int(stamps[nearest]) - stamp) > NEAR_NS or not path.holds(stamp):
                continue
            if keys and nearest <= keys[-1].sweep:
                continue
            frame, _ = prepare(frame_set)
            seen, _ = working_images(torch.from_numpy(frame.images), grid)
            images = seen.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
            keys.append(
                KeyFrame(
                    images,
                    frame.present,
                    path.at(stamp),
                    path.velocity(stamp),
                    boxes.at(stamp),
                    nearest,
                )
            )
            last = stamp
        notes += reader.notes
    if not keys:
        raise BagError(
            f"bag {bag}: no frame set has a lidar sweep within 60 ms and a pose: nothing to label"
        )
    if not boxes.topic:
        notes.append("no boxes: what moves leaves its trail, and there is nothing to detect")
    return shard_of(keys, sweeps, calibration, c, place), notes


def _topic(reader: BagReader, wanted: str, truth: str, kind: str, what: str) -> str:
    there = [topic for topic, info in reader.topics.items() if info.type == kind and info.count]
    chosen = wanted or (truth if truth in there else there[0] if len(there) == 1 else "")
    if chosen not in there:
        raise BagError(
            f"bag {reader.path}: labels need {what}: {wanted or 'name its topic'}: the bag has"
            f" {', '.join(there) or 'none'}"
        )
    return chosen


class _Path:
    """Poses of base_link between the samples of an odometry topic."""

    def __init__(self, reader: BagReader, rig: Rig, topic: str) -> None:
        samples = [
            event.sample
            for event in reader.events(rig.names[:1], topic)
            if isinstance(event, OdometryEvent)
        ]
        stamps = np.array([sample.stamp_ns for sample in samples], np.int64)
        if len(stamps) < 2:
            raise BagError(f"bag {reader.path}: {topic} has {len(stamps)} poses: expected two")
        self._stamps, first = np.unique(stamps, return_index=True)
        self._poses = np.stack([samples[index].T_odom_base for index in first])

    def holds(self, stamp: int) -> bool:
        return bool(self._stamps[0] - NEAR_NS <= stamp <= self._stamps[-1] + NEAR_NS)

    def at(self, stamp: int) -> NDArray[np.float64]:
        after = self._after(stamp)
        span = float(self._stamps[after] - self._stamps[after - 1])
        fraction = float(stamp - self._stamps[after - 1]) / span
        return interpolate(self._poses[after - 1], self._poses[after], fraction)

    def velocity(self, stamp: int) -> NDArray[np.float64]:
        after = self._after(stamp)
        seconds = float(self._stamps[after] - self._stamps[after - 1]) * 1e-9
        return log(inverse(self._poses[after - 1]) @ self._poses[after]) / seconds

    def _after(self, stamp: int) -> int:
        return int(np.clip(np.searchsorted(self._stamps, stamp), 1, len(self._stamps) - 1))


class _BoxesInBag:
    """Of a topic of recon4d_msgs/DynamicObjectArray, in the frame of the poses."""

    def __init__(self, reader: BagReader, wanted: str, odometry: str, path: _Path) -> None:
        if wanted and wanted not in reader.topics:
            raise BagError(f"bag {reader.path}: no boxes on {wanted}")
        truth = BOXES_TOPIC in reader.topics and odometry == ODOM_TOPIC
        self.topic = wanted or (BOXES_TOPIC if truth else "")
        self._path, self._stamps, self._arrays = path, [], []
        for _, _, message in reader.messages([self.topic]) if self.topic else ():
            self._stamps.append(ros.stamp_ns(message.header.stamp))
            self._arrays.append([ros.dynamic_object(entry) for entry in message.objects])

    def at(self, stamp: int) -> Boxes:
        """Those of the nearest message, moved by their velocity; none if it is over half a second
        away."""
        none = Boxes(np.zeros((0, 9)), np.zeros(0, np.int64), np.zeros(0, bool))
        if not self._stamps:
            return none
        apart = stamp - np.array(self._stamps)
        nearest = int(np.abs(apart).argmin())
        if abs(apart[nearest]) > 500_000_000:
            return none
        T_base_map = inverse(self._path.at(stamp))
        turned = np.arctan2(T_base_map[1, 0], T_base_map[0, 0])
        known = [o for o in self._arrays[nearest] if o.class_name in CLASS_OF]
        box = np.zeros((len(known), 9))
        for row, thing in zip(box, known, strict=True):
            centre = thing.position + thing.velocity * float(apart[nearest]) * 1e-9
            row[:3], row[3:6] = transform(T_base_map, centre), thing.size
            row[6] = thing.yaw + turned
            row[7:] = (T_base_map[:3, :3] @ thing.velocity)[:2]
        kind = [CLASSES.index(CLASS_OF[thing.class_name]) for thing in known]
        moving = [bool(np.linalg.norm(thing.velocity) > MOVING) for thing in known]
        return Boxes(box, np.array(kind, np.int64), np.array(moving, bool))


def _clouds(
    reader: BagReader,
    wanted: str,
    lidar: NDArray[np.float64],
    path: _Path,
    notes: list[str],
) -> tuple[NDArray[np.int64], list[NDArray[np.float32]], NDArray[np.float64]]:
    """Stamps and points (in base_link, without the ego-vehicle) of the sweeps that have a pose, and
    where the lidar stands."""
    topic = _topic(reader, wanted, LIDAR_TOPIC, CLOUD, "a lidar's points")
    stamps: list[int] = []
    clouds: list[NDArray[np.float32]] = []
    place = lidar
    for _, _, message in reader.messages([topic]):
        stamp = ros.stamp_ns(message.header.stamp)
        if not path.holds(stamp):
            continue
        frame, points = ros.frame_name(message.header.frame_id), ros.cloud_points(message)
        if frame not in ("", BASE_FRAME):
            T_base_lidar = reader.transforms.lookup(BASE_FRAME, frame)
            points, place = transform(T_base_lidar, points), T_base_lidar[:3, 3]
        elif not clouds:
            notes.append(
                f"{topic} is in {BASE_FRAME}, which does not say where the lidar stands: taken to"
                f" be {', '.join(f'{value:g}' for value in lidar)} m"
            )
        stamps.append(stamp)
        clouds.append(points[~is_ego_vehicle((points - place) @ LIDAR_AXES)])
    if not clouds:
        raise BagError(f"bag {reader.path}: no sweep of {topic} lies within the poses' time")
    order = np.argsort(stamps)
    return np.array(stamps, np.int64)[order], [clouds[i] for i in order], np.asarray(place)
