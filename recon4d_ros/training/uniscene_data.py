"""Shards for UniScene: drives at two frame sets a second, with occupancy and boxes; of the
procedural world (exact truth), or of bags with a lidar (uniscene_bags.py).

A shard is one drive as an .npz file, T key frames of N cameras: images [T, N, h, w, 3] uint8 RGB
(the engine's working images); present [T, N], who gave one; covered [N, h, w], where they show
something; k [N, 3, 3] and T_base_camera [N, 4, 4] of the working images; lidar [3], where in
base_link the lidar stands; T_map_base [T, 4, 4]; velocity [T, 6] (twist in base_link, m/s and
rad/s); occupancy [T, X, Y, Z] uint8 (mended_labels.FREE, OCCUPIED, UNKNOWN), and `labels`, by which
rule and of which range; boxes [B, 9] in base_link (centre x, y, z, length, width, height, yaw,
velocity over ground x, y), box_class [B] by CLASSES and box_frame [B], which of the T each belongs
to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.calibration import input_size_for, make_calibration
from recon4d_ros.geometry import inverse, se3, transform, unproject
from recon4d_ros.networks.mended_labels import MovingBoxes, Sweep, inside_any, mended_labels
from recon4d_ros.networks.occupancy_labels import LabelRule, occupancy_labels
from recon4d_ros.networks.sparse4d import CLASSES
from recon4d_ros.networks.uniscene import MENDED, Configuration
from recon4d_ros.sim.simulate import SimFrame, Simulator
from recon4d_ros.types import Calibration, Rig

RATE = 2.0  # key frames a second
IMAGES = 10  # key frames of a simulated drive
FIRST_SEED = 400
"""Seeds of the drives count from here (up to 999, then again); from 1000 on they are the
benchmark's."""

COURSES = {"city": 8.0, "pedestrians": 3.0, "roundabout": 2.0, "queue": 2.0, "motorway": 1.0}
CONDITIONS = {"": 7.0, "afternoon": 2.0, "exposure": 1.0}
CLASS_OF = {name: name for name in CLASSES} | {"van": "car", "cyclist": "bicycle"}
SEEN = 5
"""Points of the key frame's own sweep that a box has to hold to be asked for."""

# x right, y forward, z up, as the published rule has its lidar
LIDAR_AXES = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])


@dataclass(frozen=True, eq=False)
class Boxes:
    """What can move, at one time: box [K, 9] and kind [K] (by CLASSES) as in a shard; moving
    [K]."""

    box: NDArray[np.float64]
    kind: NDArray[np.int64]
    moving: NDArray[np.bool_]

    @property
    def movers(self) -> MovingBoxes:
        box = self.box[self.moving]
        return MovingBoxes(box[:, :3], box[:, 3:6], box[:, 6])


@dataclass(frozen=True, eq=False)
class KeyFrame:
    """images [N, h, w, 3]; present [N]; sweep: which of the drive's sweeps is its own."""

    images: NDArray[np.uint8]
    present: NDArray[np.bool_]
    T_map_base: NDArray[np.float64]
    velocity: NDArray[np.float64]
    boxes: Boxes
    sweep: int


def label_rule(c: Configuration) -> LabelRule:
    return LabelRule(c.grid.low, c.grid.high, (c.columns, c.rows, c.levels_z))


def labels_of(c: Configuration) -> str:
    """What labels for a network are of: voxels, range and rule."""
    voxels = f"{c.columns}x{c.rows}x{c.levels_z} voxels"
    return f"{voxels}, +-{c.reach:g} m, {c.bottom:g} to {c.top:g} m, {c.geometry}"


def shard_of(
    keys: Sequence[KeyFrame],
    sweeps: Sequence[Sweep],
    calibration: Calibration,
    c: Configuration,
    lidar: NDArray[np.float64],
) -> dict[str, NDArray]:
    """The arrays of a drive. lidar: [3] where in base_link the published rule lays its voxels."""
    covered = calibration.grid[..., 0] > -2
    own = [key.sweep for key in keys]
    boxes, kinds, frames, occupancy = [], [], [], []
    for t, key in enumerate(keys):
        points = sweeps[key.sweep].points
        for box, kind in zip(key.boxes.box, key.boxes.kind, strict=True):
            one = MovingBoxes(box[None, :3], box[None, 3:6], box[None, 6])
            near = np.abs(points - box[:3]).max(1) < box[3:6].max()
            if inside_any(points[near], one).sum() >= SEEN:
                boxes.append(box)
                kinds.append(kind)
                frames.append(t)
        occupancy.append(_occupancy(sweeps, own, t, key.T_map_base, c, lidar))
    return {
        "images": np.stack([key.images for key in keys]),
        "present": np.stack([key.present for key in keys]),
        "covered": covered,
        "lidar": np.asarray(lidar, np.float64),
        "k": calibration.k,
        "T_base_camera": calibration.T_base_camera,
        "T_map_base": np.stack([key.T_map_base for key in keys]),
        "velocity": np.stack([key.velocity for key in keys]),
        "occupancy": np.stack(occupancy),
        "labels": np.array(labels_of(c)),
        "boxes": np.array(boxes, np.float32).reshape(-1, 9),
        "box_class": np.array(kinds, np.int64),
        "box_frame": np.array(frames, np.int64),
    }


def _occupancy(
    sweeps: Sequence[Sweep],
    own: list[int],
    t: int,
    T_map_base: NDArray[np.float64],
    c: Configuration,
    lidar: NDArray[np.float64],
) -> NDArray[np.uint8]:
    rule = label_rule(c)
    first, last = (own[max(0, min(len(own) - 1, t + d * rule.neighbours))] for d in (-1, 1))
    if c.geometry == MENDED:
        return mended_labels(sweeps[first : last + 1], own[t] - first, rule, T_map_base)
    T_base_lidar = se3(LIDAR_AXES, lidar)
    return occupancy_labels(
        [transform(inverse(T_base_lidar), np.asarray(s.points, np.float64)) for s in sweeps],
        np.stack([s.T_map_base @ T_base_lidar for s in sweeps]),
        own,
        t,
        rule,
    )


def write_shard(arrays: dict[str, NDArray], file: Path) -> None:
    part = file.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
    part.rename(file)


# --- the procedural world


@dataclass(frozen=True)
class Piece:
    """A simulated drive: scenario, seed, first frame."""

    name: str
    seed: int
    start: int


def make_piece(number: int) -> Piece:
    """The piece of a number, from 0 on."""
    rng = np.random.default_rng([11, number])

    def choose(table: dict[str, float]) -> str:
        weights = np.array(list(table.values()))
        return str(rng.choice(list(table), p=weights / weights.sum()))

    course, condition = choose(COURSES), choose(CONDITIONS)
    name = f"{course}+{condition}" if condition else course
    return Piece(name, FIRST_SEED + number % (1000 - FIRST_SEED), int(rng.integers(0, 200)))


def working_rig(rig: Rig, size: tuple[int, int]) -> Rig:
    """Cameras that are the rig's working images: what the engine would see, without a way
    there."""
    calibration = make_calibration(rig, input_size_for(rig, size)[:2], size)
    return Rig(
        rig.name,
        tuple(
            replace(
                camera,
                width=size[1],
                height=size[0],
                k=k,
                T_base_camera=pose,
                d=(),
                distortion_model="none",
                ego_vehicle=None,
                rolling_shutter=0.0,
            )
            for camera, k, pose in zip(
                rig.cameras, calibration.k, calibration.T_base_camera, strict=True
            )
        ),
    )


def simulated_drive(
    piece: Piece, rig: Rig, size: tuple[int, int], c: Configuration, lidar: NDArray[np.float64]
) -> dict[str, NDArray]:
    """A shard of the procedural world. Its sweeps are the cameras' exact depth: what no camera sees
    is unknown."""
    small = working_rig(rig, size)
    simulator = Simulator(
        small, (piece.start + IMAGES) / RATE + 10, RATE, piece.seed, name=piece.name
    )
    calibration = make_calibration(simulator.rig, size, size)
    keys, sweeps = [], []
    for number, index in enumerate(range(piece.start, piece.start + IMAGES)):
        frame = simulator.frame(index)
        boxes = _boxes_of(frame)
        keys.append(
            KeyFrame(
                np.stack(frame.images),
                np.ones(len(frame.images), bool),
                frame.T_world_base,
                frame.velocity,
                boxes,
                number,
            )
        )
        sweeps.append(_depth_sweep(frame, calibration, boxes))
    return shard_of(keys, sweeps, calibration, c, lidar)


def _depth_sweep(frame: SimFrame, calibration: Calibration, boxes: Boxes) -> Sweep:
    points, origins = [], []
    for depth, k, pose in zip(frame.depth, calibration.k, calibration.T_base_camera, strict=True):
        seen = transform(pose, unproject(depth, k).reshape(-1, 3).astype(np.float64))
        seen = seen[np.isfinite(seen).all(1)]
        points.append(seen)
        origins.append(np.broadcast_to(pose[:3, 3], seen.shape))
    return Sweep(np.concatenate(points), np.concatenate(origins), frame.T_world_base, boxes.movers)


def _boxes_of(frame: SimFrame) -> Boxes:
    things = [thing for thing in frame.objects if thing.kind in CLASS_OF]
    T_base_world = inverse(frame.T_world_base)
    box = np.zeros((len(things), 9))
    for row, thing in zip(box, things, strict=True):
        pose = T_base_world @ thing.T_world_object
        row[:3], row[3:6] = pose[:3, 3], thing.size
        row[6] = np.arctan2(pose[1, 0], pose[0, 0])
        row[7:] = (T_base_world[:3, :3] @ thing.velocity)[:2]
    kind = [CLASSES.index(CLASS_OF[thing.kind]) for thing in things]
    return Boxes(box, np.array(kind, np.int64), np.array([thing.moving for thing in things], bool))
