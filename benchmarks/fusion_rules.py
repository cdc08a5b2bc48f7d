"""The published fusion rule against the one bounded in metres, on a long simulated drive: the rules
alone, no network.

Every frame offers what a perfect network would: the true point at the middle of each of 14x14
patches (sky offers nothing). With stand-in weights the positions would mean nothing; with these,
counts, thresholds and near-ties are those of a network that is right. `python benchmarks/run.py
fusion_rules`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.networks.point3r import Pointers
from recon4d_ros.networks.pointer_stream import Fusion, fuse, nearest_pointers, threshold
from recon4d_ros.paths import rigs
from recon4d_ros.sim.simulate import simulate

PATCHES = 14
SECONDS, RATE = 120.0, 2.0
CAPACITY = 1024
RULES = {"published": Fusion(), "bounded to 0.5 m": Fusion(longest=0.5)}
MARGINS = (1e-6, 1e-4, 1e-2)  # relative distance to the threshold
NEAR = 15.0  # metres ahead within which the current view's points are held against the memory


def fusion_rules(work: Path) -> dict:
    """240 frames of a front camera on a simulated drive: pointers in use, threshold, and how near
    the merges were to not being."""
    rig = load_rig(rigs() / "mono.yaml")
    memories = {
        name: Pointers(
            torch.zeros(CAPACITY, 1),
            torch.zeros(CAPACITY, 3),
            torch.zeros(CAPACITY, dtype=torch.bool),
        )
        for name in RULES
    }
    rows: dict[str, list[dict]] = {name: [] for name in RULES}
    margins: dict[str, list[np.ndarray]] = {name: [] for name in RULES}
    path, last = 0.0, None
    for frame in simulate(rig, SECONDS, RATE):
        here = frame.T_world_base[:3, 3]
        path += 0.0 if last is None else float(np.linalg.norm(here - last))
        last = here
        camera = rig.cameras[0]
        position, offered, near = offers(
            frame.depth[0], frame.moving[0], camera.k, frame.T_world_base @ camera.T_base_camera
        )
        for name, fusion in RULES.items():
            before = memories[name]
            # how far what is seen near lies from what the memory knew of it before it was offered
            gap = None
            if before.valid.any():
                near_ones = position[offered & near].double()
                gap = (
                    torch.cdist(near_ones, before.position[before.valid].double()).amin(1)
                    if len(near_ones)
                    else None
                )
                distance, _ = nearest_pointers(before, position)
                reach = threshold(before, position, fusion, offered)
                margins[name].append(((distance.sqrt() - reach).abs() / reach)[offered].numpy())
            memories[name] = after = fuse(
                before, torch.zeros(len(position), 1), position, fusion, offered
            )
            rows[name].append(
                {
                    "metres": round(path, 1),
                    "pointers": int(after.valid.sum()),
                    "threshold": round(float(threshold(after, position, fusion, offered)), 3),
                    "gap_near": None if gap is None else round(float(gap.median()), 3),
                }
            )
    result = {
        "seconds": SECONDS,
        "rate": RATE,
        "metres": round(path, 1),
        "capacity": CAPACITY,
        "rules": {},
    }
    for name in RULES:
        values = np.concatenate(margins[name])
        near_ties = {f"{margin:g}": int((values < margin).sum()) for margin in MARGINS}
        result["rules"][name] = {
            "over_time": rows[name][::12] + rows[name][-1:],
            "offers": len(values),
            "near_ties": near_ties,
        }
    return result


def offers(
    depth: np.ndarray, moving: np.ndarray, k: np.ndarray, T_world_camera: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """position [T, 3] in world; offered [T] bool: neither sky nor moving; near [T] bool."""
    height, width = depth.shape
    v = ((np.arange(PATCHES) + 0.5) * height / PATCHES).astype(int)
    u = ((np.arange(PATCHES) + 0.5) * width / PATCHES).astype(int)
    z = depth[np.ix_(v, u)].ravel()
    offered = np.isfinite(z) & (z > 0) & (z < 150) & ~moving[np.ix_(v, u)].ravel()
    z = np.where(offered, z, 1.0)
    vv, uu = (grid.ravel() for grid in np.meshgrid(v, u, indexing="ij"))
    local = (
        np.stack([(uu - k[0, 2]) / k[0, 0], (vv - k[1, 2]) / k[1, 1], np.ones(len(z))], 1)
        * z[:, None]
    )
    position = local @ T_world_camera[:3, :3].T + T_world_camera[:3, 3]
    return (
        torch.from_numpy(position.astype(np.float32)),
        torch.from_numpy(offered),
        torch.from_numpy(z < NEAR),
    )
