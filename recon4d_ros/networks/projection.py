"""From the pixels of one image, at an inverse depth each, to those of another."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recon4d_ros.networks.matching import Triple
from recon4d_ros.networks.working_image import last_index, numbers


class Projection(NamedTuple):
    """Where the volume's pixels lie in their source images: at inverse depth r in (q_x / q_z, q_y /
    q_z), q = constant + r * slope, three [n, y, x] each; row [n, y, x] of the source image in the
    stack of all (0: none)."""

    constant: Triple
    slope: Triple
    row: Tensor | float

    @staticmethod
    def between(
        rays: tuple[Tensor, Tensor], pose_source: Tensor, pose: Tensor, k: Tensor, valid: Tensor
    ) -> Projection:
        """Camera by camera from `pose` to `pose_source` [n, 4, 4]; valid [n]: 0 makes no source."""
        back = torch.matmul(k, pose_source[:, :3, :3].transpose(1, 2)) * valid[:, None, None]
        turn = torch.matmul(back, pose[:, :3, :3])
        move = torch.matmul(back, pose[:, :3, 3:] - pose_source[:, :3, 3:])
        return Projection(
            *_along(rays, torch.cat([turn, move], -1).permute(1, 2, 0)[..., None, None]), 0.0
        )

    @staticmethod
    def to_partners(
        rays: tuple[Tensor, Tensor], partner: Tensor, pose: Tensor, k: Tensor, present: Tensor
    ) -> Projection:
        """Pixel by pixel to its partner camera (partner [n, y, x], -1 for none), the images stacked
        with a row of zeros around each."""
        n, y, _ = partner.shape
        back = torch.matmul(k, pose[:, :3, :3].transpose(1, 2))[None]
        turn = torch.matmul(back, pose[:, None, :3, :3])  # [from, to, 3, 3]
        move = torch.matmul(back, pose[:, None, :3, 3:] - pose[None, :, :3, 3:])
        pairs = torch.cat([turn, move], -1) * (present[:, None] * present[None])[..., None, None]
        own = numbers(n, partner)[:, None, None] * n
        none = (partner < 0).to(torch.float32)  # the last column of the table
        index = (own + partner) * (1 - none) + n * n * none
        table = F.pad(pairs.permute(2, 3, 0, 1).reshape(12, n * n), (0, 1))
        chosen = table[:, index.reshape(-1).to(torch.int64)].reshape(3, 4, *partner.shape)
        return Projection(
            *_along(rays, chosen), partner.clamp_min(0) * (last_index(y, partner) + 3) + 1
        )

    def check(self, inverse: Tensor, there: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Pixels of motion in the source per unit of inverse depth at `inverse` [n, y, x] (0 where
        it is not seen there), and how well the depth found `there` agrees (of the same camera, or
        of all of them in the partners' case: [n, y, x]; 0 where none was found): 1 for equal, 0.6
        for unknown."""
        n = inverse.shape[0]
        bottom, right = (last_index(size, inverse) for size in inverse.shape[1:])
        q = [
            constant + slope * inverse
            for constant, slope in zip(self.constant, self.slope, strict=True)
        ]
        ahead = q[2] > 1e-3
        z = torch.where(ahead, q[2], 1.0)
        u, v = q[0] / z, q[1] / z
        inside = ahead & (u >= 0) & (u <= right) & (v >= 0) & (v <= bottom)
        motion = (
            ((self.slope[0] - u * self.slope[2]) / z).square()
            + ((self.slope[1] - v * self.slope[2]) / z).square()
        ).sqrt()
        camera = (
            numbers(n, inverse)[:, None, None]
            if isinstance(self.row, float)
            else (self.row - 1) / (bottom + 3)
        )
        pixel = (camera * (bottom + 1) + torch.where(inside, v, 0.0).round()) * (
            right + 1
        ) + torch.where(inside, u, 0.0).round()
        found = there.reshape(-1)[pixel.to(torch.int64)]
        error = (inverse / z - found).abs() / tolerance
        agreement = torch.where(found > 0, 1 / (1 + error.square()), 0.6)
        shown = inside.to(inverse.dtype)
        return motion * shown, agreement * shown


def _along(rays: tuple[Tensor, Tensor], matrix: Tensor) -> tuple[Triple, Triple]:
    """constant and slope of a Projection from K [R | t] as [3, 4, n, y or 1, x or 1]."""
    u, v = rays
    rows = [matrix[axis, 0] * u + matrix[axis, 1] * v + matrix[axis, 2] for axis in range(3)]
    moves = [matrix[axis, 3].expand_as(rows[0]) for axis in range(3)]
    return (rows[0], rows[1], rows[2]), (moves[0], moves[1], moves[2])
