"""Occupancy labels that mend what the published rule (occupancy_labels.py) leaves out: what moves
leaves no trail, space is free only where a ray went through it, and what nobody looked at is not
asked. Pure functions on arrays; everything in base_link (x forward, y left, z up), metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse, transform
from recon4d_ros.networks.occupancy_labels import LabelRule

Array = NDArray[np.float64]
FREE, OCCUPIED, UNKNOWN = 0, 1, 2
CHUNK = 4096  # rays at a time
GROWN = 0.1
"""Metres by which a mover's box is larger on every side: boxes by hand are not exact. Not
downwards, where the road is."""


@dataclass(frozen=True, eq=False)
class MovingBoxes:
    """Upright boxes of what moves, at one time. centre, size: [K, 3] (length, width, height). yaw:
    [K] rad about z."""

    centre: Array
    size: Array
    yaw: Array

    @staticmethod
    def none() -> MovingBoxes:
        return MovingBoxes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was measured at one time, in base_link of that time. points: [n, 3]. origin: [3] or
    [n, 3], from where each was seen. T_map_base: [4, 4]. moving: what moved then."""

    points: Array
    origin: Array
    T_map_base: Array
    moving: MovingBoxes


def mended_labels(
    sweeps: Sequence[Sweep], key: int, rule: LabelRule, T_map_base: Array | None = None
) -> NDArray[np.uint8]:
    """[X, Y, Z] FREE, OCCUPIED or UNKNOWN around base_link at T_map_base [4, 4]: of the images that
    sweep number `key` belongs to (None: of the sweep itself).

    Points of what moves count in the sweep `key` alone, where it is; all other points of all sweeps
    are brought there by the car's motion. A voxel with a point is occupied; one without is free if
    a ray of any sweep went through it on its way, unless something that moves is in it now.
    Everything else is unknown, and so is the border, as whose first and last voxels the published
    rule counts all beyond.
    """
    now = sweeps[key]
    here = inverse(now.T_map_base if T_map_base is None else T_map_base)
    occupied, free = np.zeros(rule.shape, bool), np.zeros(rule.shape, bool)
    for number, sweep in enumerate(sweeps):
        points = np.asarray(sweep.points, np.float64)
        origin = np.broadcast_to(np.asarray(sweep.origin, np.float64), points.shape)
        pose = here @ sweep.T_map_base
        ends, starts = transform(pose, points), transform(pose, origin)
        stays = np.ones(len(points), bool) if number == key else ~inside_any(points, sweep.moving)
        index = voxel_of(ends[stays], rule)
        occupied[tuple(index[inside(index, rule)].T)] = True
        free |= passed(starts, ends, rule)
    labels = np.where(occupied, OCCUPIED, np.where(free, FREE, UNKNOWN)).astype(np.uint8)
    if len(now.moving.centre):
        centres = (np.indices(rule.shape).reshape(3, -1).T + 0.5) * rule.voxel_size + rule.low
        there = transform(inverse(here @ now.T_map_base), centres)
        labels[inside_any(there, now.moving).reshape(rule.shape) & ~occupied] = UNKNOWN
    inner = np.zeros(rule.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    labels[~inner] = UNKNOWN
    return labels


def passed(starts: Array, ends: Array, rule: LabelRule) -> NDArray[np.bool_]:
    """[X, Y, Z] which voxels the rays from starts [n, 3] to ends [n, 3] go through, without those
    that they end in.

    Exact (as Amanatides and Woo, Eurographics 1987): between two planes of the lattice that a ray
    crosses one after the other it is in one voxel. Of rays from one start to one voxel, or that
    leave the volume through one voxel, one is drawn.
    """
    through = np.zeros(rule.shape, bool)
    shape = np.array(rule.shape)
    a, b = ((p - rule.low) / rule.voxel_size for p in (starts, ends))  # in voxels
    a, b, stopped = _clipped(a, b, shape)
    if not len(a):
        return through
    end = np.floor(b - 1e-9 * np.sign(b - a)).astype(np.int64)
    _, first = np.unique(
        np.concatenate([np.floor(a * 8).astype(np.int64), end, stopped[:, None]], 1),
        axis=0,
        return_index=True,
    )
    for part in np.array_split(first, -(-len(first) // CHUNK)):
        p, step = a[part], b[part] - a[part]
        crossings = [np.zeros((len(part), 1)), np.ones((len(part), 1))]
        for axis, count in enumerate(shape):
            with np.errstate(divide="ignore", invalid="ignore"):
                at = (np.arange(count + 1) - p[:, axis, None]) / step[:, axis, None]
            crossings.append(np.where((at > 0) & (at < 1), at, 1.0))
        order = np.sort(np.concatenate(crossings, 1), 1)
        middle, length = (order[:, 1:] + order[:, :-1]) / 2, order[:, 1:] - order[:, :-1]
        ray, piece = np.nonzero(length > 1e-9)
        voxel = np.floor(p[ray] + middle[ray, piece, None] * step[ray]).astype(np.int64)
        last = (voxel == end[part][ray]).all(1) & stopped[part][ray]
        voxel = voxel[((voxel >= 0) & (voxel < shape)).all(1) & ~last]
        through[tuple(voxel.T)] = True
    return through


def _clipped(
    a: Array, b: Array, shape: NDArray[np.int64]
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The parts of rays within the volume, in voxels, and whether each one's own end is in it."""
    step = b - a
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = np.stack([-a / step, (shape - a) / step])
    sides = np.where(np.isnan(sides), np.inf, sides)
    enter = np.where(step == 0, -np.inf, sides.min(0)).max(1).clip(0)
    leave = np.where(step == 0, np.inf, sides.max(0)).min(1)
    beside = ((step == 0) & ((a < 0) | (a >= shape))).any(1)
    hits = (enter < np.minimum(leave, 1)) & ~beside
    a, step, enter, leave = a[hits], step[hits], enter[hits, None], leave[hits, None]
    return a + enter * step, a + np.minimum(leave, 1) * step, leave[:, 0] > 1


def voxel_of(points: Array, rule: LabelRule) -> NDArray[np.int64]:
    """[n, 3], outside of the volume too."""
    return np.floor((points - rule.low) / rule.voxel_size).astype(np.int64)


def inside(index: NDArray[np.int64], rule: LabelRule) -> NDArray[np.bool_]:
    return np.asarray(((index >= 0) & (index < rule.shape)).all(1))


def inside_any(points: Array, boxes: MovingBoxes) -> NDArray[np.bool_]:
    """[n] which points lie in a box, or within GROWN of its sides or top."""
    found = np.zeros(len(points), bool)
    for centre, size, yaw in zip(boxes.centre, boxes.size, boxes.yaw, strict=True):
        offset = points - centre
        cos, sin = np.cos(yaw), np.sin(yaw)
        along = np.abs(cos * offset[:, 0] + sin * offset[:, 1])
        across = np.abs(cos * offset[:, 1] - sin * offset[:, 0])
        half = size / 2
        found |= (
            (along <= half[0] + GROWN)
            & (across <= half[1] + GROWN)
            & (offset[:, 2] <= half[2] + GROWN)
            & (offset[:, 2] >= -half[2])
        )
    return found
