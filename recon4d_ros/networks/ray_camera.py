"""Where a calibrated camera of known orientation stands, from the points that it shows: in closed
form, without loops.

A pixel's point P lies on its ray from the centre c: P = c + s d with the direction d known from
intrinsics and orientation. What is off the ray is (I - d d^T)(P - c), so the weighted least-squares
centre solves a 3 x 3 system. A scale of the points does not matter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SURE = 0.02  # of the distance: a point that is this far off its ray counts half


def directions(k: Tensor, size: tuple[int, int]) -> Tensor:
    """Unit rays [N, h, w, 3] of pinhole cameras k [N, 3, 3], z forward."""
    v, u = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=k.device) for n in size), indexing="ij"
    )
    fx, fy, cx, cy = (k[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x, y = (u - cx) / fx, (v - cy) / fy
    return F.normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1)


def centre(points: Tensor, rays: Tensor, weight: Tensor) -> Tensor:
    """[N, 3], for points and unit rays [N, h, w, 3] in one frame, weight [N, h, w].

    Solved twice: with errors taken as proportional to the distance from the frame's origin, then to
    that from the first solution, where what is far off its ray counts little.
    """
    near = points.square().sum(-1)
    guess = _solve(points, rays, weight / (near + near.mean((1, 2), keepdim=True)))
    away = points - guess[:, None, None]
    distance = away.square().sum(-1)
    off = (distance - (away * rays).sum(-1).square()).clamp_min(0.0)
    floor = 0.01 * distance.mean((1, 2), keepdim=True)
    return _solve(
        points, rays, weight / (distance + floor) / (1 + off / (distance + floor) / SURE**2)
    )


def _solve(points: Tensor, rays: Tensor, weight: Tensor) -> Tensor:
    share = (weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-30))[..., None]
    weighted = share * rays
    a = torch.eye(3, device=points.device) - weighted.flatten(1, 2).transpose(1, 2) @ rays.flatten(
        1, 2
    )
    b = (share * points - weighted * (rays * points).sum(-1, keepdim=True)).sum((1, 2))
    columns = a[:, :, 0], a[:, :, 1], a[:, :, 2]
    adjugate = torch.stack(
        [
            _cross(columns[1], columns[2]),
            _cross(columns[2], columns[0]),
            _cross(columns[0], columns[1]),
        ],
        1,
    )
    determinant = (adjugate[:, 0] * columns[0]).sum(-1)
    return (adjugate @ b[..., None])[..., 0] / determinant.clamp_min(1e-9)[:, None]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Of vectors [N, 3], written out: every runtime has products and differences."""
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)
