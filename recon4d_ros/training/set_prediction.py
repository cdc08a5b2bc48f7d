"""The loss of UniScene's (BEVFormer's, Li et al., ECCV 2022) detection head: every true box is
given to one query, by the least total cost (Carion et al., "End-to-End Object Detection with
Transformers", ECCV 2020, section 3.1), then focal loss on the classes and L1 on the boxes, of every
decoder layer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from recon4d_ros.networks.uniscene import Boxes, Configuration, focal_loss

CLASS_WEIGHT, BOX_WEIGHT = 2.0, 0.25  # of the cost and of the loss
GEOMETRY = slice(0, 8)  # of the numbers of a box, those that are matched by: no velocity
CODE_WEIGHTS = (1.0,) * 8 + (0.2, 0.2)  # velocities count less


class Targets(NamedTuple):
    """box: [K, 10] as networks/uniscene.py: Boxes; label: [K]."""

    box: Tensor
    label: Tensor


def targets_of(
    boxes: NDArray[np.floating],
    label: NDArray[np.int64],
    c: Configuration,
    lidar: NDArray[np.float64],
) -> Targets:
    """Of boxes [K, 9] in base_link (centre, length, width, height, yaw, velocity over ground) those
    whose centre is in the grid's range, in the network's frame and numbers. lidar: [3] where in
    base_link the lidar stands whose frame the published geometry has."""
    x, y, z, length, width, height, yaw, vx, vy = np.asarray(boxes, np.float64).T
    if c.in_lidar:  # x right, y forward; yaw as mmdet3d before 1.0 has it (uniscene.Detections)
        x, y, z = -(y - lidar[1]), x - lidar[0], z - lidar[2]
        vx, vy = -vy, vx
        yaw = -(yaw + np.pi / 2) - np.pi / 2
    box = np.stack(
        [x, y, np.log(width), np.log(length), z, np.log(height), np.sin(yaw), np.cos(yaw), vx, vy],
        1,
    )
    inside = (np.abs(box[:, :2]) < c.reach).all(1)
    return Targets(
        torch.from_numpy(box[inside].astype(np.float32)), torch.from_numpy(label[inside])
    )


def set_loss(found: Boxes, truth: Targets) -> Tensor:
    """Of one frame, summed over the decoder's layers."""
    total = torch.zeros(())
    for scores, boxes in zip(found.scores, found.boxes, strict=True):
        query, true = match(scores, boxes, truth)
        hot = torch.zeros_like(scores)
        hot[query, truth.label[true]] = 1
        apart = (boxes[query] - truth.box[true]).abs() * torch.tensor(CODE_WEIGHTS)
        loss = CLASS_WEIGHT * focal_loss(scores, hot).sum() + BOX_WEIGHT * apart.sum()
        total = total + loss / max(1, len(true))
    return total


@torch.no_grad()
def match(scores: Tensor, boxes: Tensor, truth: Targets) -> tuple[Tensor, Tensor]:
    """Queries and true boxes that belong together, one each. scores [queries, classes] as logits,
    boxes [queries, 10]."""
    ones = torch.ones_like(scores)
    gain = focal_loss(scores, ones) - focal_loss(scores, 0 * ones)
    cost = CLASS_WEIGHT * gain[:, truth.label] + BOX_WEIGHT * torch.cdist(
        boxes[:, GEOMETRY], truth.box[:, GEOMETRY], p=1
    )
    rows, columns = linear_sum_assignment(torch.nan_to_num(cost, 1e6).numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)
