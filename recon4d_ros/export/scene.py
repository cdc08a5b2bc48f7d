"""A small scene to hold an exported graph against PyTorch with: what the host would give it, frame
by frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import rig_partners
from recon4d_ros.geometry import se3
from recon4d_ros.types import Calibration

# of an optical frame (x right, y down, z ahead) in a lidar frame (x right, y ahead, z up)
AHEAD = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def example_inputs(spec: EngineSpec, index: int) -> dict[str, NDArray]:
    """A wall with texture, 8 m ahead of every camera, seen while the car drives 0.6 m a step
    sideways to it: rows of one broad noise image."""
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


def _ring(k: NDArray[np.float64], n: int) -> NDArray[np.float32]:
    """Lidar -> pixels [n, 4, 4] of n cameras 0.5 m below and around it, the first one ahead."""
    projection = np.tile(np.eye(4), (n, 1, 1))
    for camera in range(n):
        turn = Rotation.from_euler("z", 2 * np.pi * camera / n).as_matrix() @ AHEAD
        projection[camera, :3, :3] = k @ turn.T
        projection[camera, :3, 3] = k @ turn.T @ np.array([0, 0, 0.5])
    return projection.astype(np.float32)
