"""A small scene to hold an exported graph against PyTorch with: what the host would give it, frame
by frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros import bev
from recon4d_ros.engine.base import MOTION, EngineSpec
from recon4d_ros.engine.hosted import rig_partners
from recon4d_ros.engine.occupancy import OCCUPANCY, grid_of, motion_inputs, rig_tables
from recon4d_ros.geometry import se3
from recon4d_ros.types import Calibration

# of an optical frame (x right, y down, z ahead) in a lidar frame (x right, y ahead, z up)
AHEAD = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def example_inputs(spec: EngineSpec, index: int) -> dict[str, NDArray]:
    """A wall with texture, 8 m ahead of every camera, seen while the car drives 0.6 m a step
    sideways to it: rows of one broad noise image."""
    if spec.config == MOTION:
        return _motion_inputs(spec, index)
    n, (height, width), (h, w) = spec.cameras, spec.input_size, spec.working_size
    focal, distance, baseline = 0.7 * w, 8.0, 0.5
    rng = np.random.default_rng(7)
    coarse = rng.random((n if not spec.stereo else 1, height // 4 + 2, width // 2 + 2))
    wide = np.repeat(np.repeat(coarse, 4, 1), 4, 2)[:, :height]
    wide = 0.25 * (wide + np.roll(wide, 1, 1) + np.roll(wide, 1, 2) + np.roll(wide, (1, 1), (1, 2)))
    images = np.empty((n, height, width, spec.channels), np.uint8)
    pose = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
    per_metre = focal * width / w / distance
    for camera in range(n):
        across = 0.6 * index + (baseline * camera if spec.stereo else 0.0)
        pose[camera, 0, 3] = across
        start = round(across * per_metre) % (wide.shape[2] - width)
        images[camera] = (
            wide[0 if spec.stereo else camera, :, start : start + width, None] * 255
        ).astype(np.uint8)
    v, u = np.meshgrid(
        (np.arange(h) + 0.5) * height / h - 0.5,
        (np.arange(w) + 0.5) * width / w - 0.5,
        indexing="ij",
    )
    k = np.array([[focal, 0, (w - 1) / 2], [0, focal, (h - 1) / 2], [0, 0, 1]])
    grid = np.tile(np.stack([u, v], -1)[None], (n, 1, 1, 1)).astype(np.float32)
    moving = np.zeros((n, h, w), np.uint8)
    moving[:, : h // 3, : w // 3] = 1
    inputs: dict[str, NDArray] = {
        "images": images,
        "present": np.ones(n, np.float32),
        "grid": grid,
        "k": np.tile(k[None], (n, 1, 1)).astype(np.float32),
        "pose": pose,
        "anchor_shift": np.zeros(3, np.float32),
        "moving": moving,
        "metres_per_unit": np.ones(1, np.float32),
        "projection": _ring(k, n),
        "lidar_motion": se3(np.eye(3), np.array([0.0, -0.6 * (index > 0), 0])).astype(np.float32),
        "seconds": np.full(1, 0.5 * (index > 0), np.float32),
    }
    if "from_cell" in spec.inputs:
        inputs |= _bev_inputs(spec, index, k)
    if "partner" in spec.inputs:
        base = np.tile(np.eye(4), (n, 1, 1))
        base[:, 0, 3] = np.arange(n) * baseline
        calibration = Calibration(
            tuple(f"camera_{i}" for i in range(n)),
            grid,
            inputs["k"].astype(np.float64),
            base,
            spec.input_size,
            spec.working_size,
        )
        inputs["partner"] = rig_partners(calibration, int(spec.options["stride"]))
    return inputs


def _motion_inputs(spec: EngineSpec, index: int) -> dict[str, NDArray]:
    """What the motion network is told of a road and a wall 12 m ahead, seen from a car that drives
    0.6 m a step, with something before the wall that goes sideways."""
    n, (h, w) = spec.cameras, spec.working_size
    focal, height, distance, ahead = 0.7 * w, 1.5, 12.0, 0.6
    rng = np.random.default_rng([7, index])
    v, u = np.meshgrid(
        np.arange(h, dtype=np.float32), np.arange(w, dtype=np.float32), indexing="ij"
    )
    x, y = (u - (w - 1) / 2) / focal, (v - (h - 1) / 2) / focal
    z = np.minimum(distance, height / np.maximum(y, 1e-3))
    q = (1 / z).astype(np.float32)
    flow = np.stack([x, y]) * (z / (z + ahead) - 1) * focal
    thing = np.s_[..., h // 3 : h // 2, w // 3 : w // 2]
    flow[thing] += np.array([3.0, 0.2])[:, None, None]
    grey = rng.integers(0, 255, (n, h // 4, w // 4), np.uint8).repeat(4, 1).repeat(4, 2)
    motion = np.eye(4, dtype=np.float32)
    motion[2, 3] = ahead

    def each(array: NDArray) -> NDArray[np.float32]:
        return np.tile(np.asarray(array, np.float32), (n, *([1] * np.ndim(array))))

    return {
        "grey": grey,
        "grey_before": np.roll(grey, 1, 2),
        "flow": each(flow),
        "q": each(q),
        "sigma": each(0.02 + 0 * q),
        "confidence": each(0.8 + 0 * q),
        "q_before": each(q),
        "covered": np.zeros((n, h, w), np.uint8),
        "T_before_now": each(motion),
        "k": each(np.array([[focal, 0, (w - 1) / 2], [0, focal, (h - 1) / 2], [0, 0, 1]])),
        "road": each(np.array([0.0, -1.0, 0.0, height])),
        "seconds": np.full(n, 0.1, np.float32),
        "share": np.ones(n, np.float32),
        "keep": np.full(n, float(index > 0), np.float32),
    }


def _ring(k: NDArray[np.float64], n: int) -> NDArray[np.float32]:
    """Lidar -> pixels [n, 4, 4] of n cameras 0.5 m below and around it, the first one ahead."""
    projection = np.tile(np.eye(4), (n, 1, 1))
    for camera in range(n):
        turn = Rotation.from_euler("z", 2 * np.pi * camera / n).as_matrix() @ AHEAD
        projection[camera, :3, :3] = k @ turn.T
        projection[camera, :3, 3] = k @ turn.T @ np.array([0, 0, 0.5])
    return projection.astype(np.float32)


def _bev_inputs(spec: EngineSpec, index: int, k: NDArray[np.float64]) -> dict[str, NDArray]:
    """The tables of a network with a bird's-eye-view grid: cameras in a ring, 1.5 m above the
    ground, on a car that drives 3 m a step and turns by 4 degrees."""
    n = spec.cameras
    yaw = 2 * np.pi * np.arange(n) / n
    ring = np.tile(np.eye(4), (n, 1, 1))
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(n)], -1)
    ring[:, :3, 0], ring[:, 2, 1], ring[:, 1, 1] = right, -1, 0
    ring[:, :3, 2] = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(n)], -1)
    ring[:, 2, 3] = 1.5
    calibration = Calibration(
        tuple(f"camera_{i}" for i in range(n)),
        np.zeros((n, *spec.working_size, 2), np.float32),
        np.tile(k[None], (n, 1, 1)),
        ring,
        spec.input_size,
        spec.working_size,
    )
    states = []
    for step in (index - 1, index):
        pose = np.eye(4)
        turn = np.radians(4.0) * step
        pose[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        pose[0, 3] = 3.0 * step
        twist = np.array([6.0, 0, 0, 0, 0, np.radians(8.0)])
        states.append(bev.can_bus(pose, twist, np.array([0, 0, bev.GRAVITY])))
    given = bev.streamed(states[1], states[0] if index else None)
    grid = grid_of(spec)
    lidar = spec.options["lidar"] if spec.config != OCCUPANCY else None
    image_from_grid = bev.image_from_grid(calibration, lidar)
    points, seen = bev.project_pillars(grid, image_from_grid, spec.working_size)
    # as much of it as the tables hold, which were made for another rig
    shown = seen.any(-1)
    shown &= np.cumsum(shown, 1) <= int(spec.options["cells_in_view"])
    shown &= np.cumsum(shown, 0) <= int(spec.options["cameras_per_cell"])
    tables = rig_tables(spec, calibration, points, seen & shown[..., None])
    del tables["grid"]
    return tables | motion_inputs(spec, given, grid)
