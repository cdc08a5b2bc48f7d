"""Dynamic-multiframe-depth as an engine's step: the cameras' uint8 images and poses in, metric
depth out, two older images in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks import step
from recon4d_ros.networks.dymultidepth import DyMultiDepth, Prediction
from recon4d_ros.networks.working_image import as_bytes, as_rgb, working_images

NEIGHBOURS = 2
MULTIPLE = 16  # of pixels, that images' sides have to be
# What follows is chosen, not learned; a training with these outputs in mind would do better.
# e to its power is how much likelier a depth is whose score in the cost volume (-1..1) is higher by
# 1
SHARPNESS = 10.0
TOLERANCE = 0.1  # relative difference of the two depths at which half the agreement is gone
LEAST_ERROR = 0.05  # relative, where both cues agree


class Memory(NamedTuple):
    """Of each camera the two neighbours, the newer one first: frame [N, 2, 3, h, w] in -0.5..0.5,
    frame_pose [N, 2, 4, 4] T_anchor_camera, frame_valid [N, 2] 1 or 0. All float32, all zeros at
    first."""

    frame: Tensor
    frame_pose: Tensor
    frame_valid: Tensor


class DyMultiDepthStep(nn.Module):
    """See networks/step.py. N cameras are a batch: none sees another, and an absent one changes
    nothing for the others.

    A camera's neighbours are its last two images that were taken at least keyframe_motion metres
    apart (0: simply the last two), so that a car that creeps or stands still has a baseline all the
    same. The authors' neighbours are the images before and after; on a vehicle there is none after.
    Where a camera has no neighbours yet its cost volume is all zeros, which the network knows from
    pixels that no neighbour shows, and the depth rests on the monocular cue. What moves is not left
    out of the memory: the network is made to see it.

    confidence is the mean of two statements about the fused depth, each 0..1. Support: of a softmax
    over the cost volume's scores, the share within one to two hypotheses of the depth found, so
    that it needs both a sharp match and one at that depth; 0 where no neighbour shows the pixel.
    Agreement: 1 / (1 + (log ratio of fused and monocular depth / 10 %)^2). So 1: match and
    monocular branch both say so; a half: one of them does; 0: none. sigma is depth * sqrt((5 %)^2 +
    ((1 - support) * log ratio)^2): what the branches differ by counts as far as the match does not
    settle it. Neither is calibrated: no weights were at hand to measure with.
    """

    extra_outputs: tuple[str, ...] = ()

    def __init__(
        self, network: DyMultiDepth, options: step.StepOptions, keyframe_motion: float = 0.25
    ) -> None:
        super().__init__()
        self.network, self.options, self.keyframe_motion = network, options, keyframe_motion
        height, width = options.working_size
        if height % MULTIPLE or width % MULTIPLE or min(height, width) < 2 * MULTIPLE:
            wanted = f"multiples of {MULTIPLE} pixels from {2 * MULTIPLE} in height and width"
            raise EngineError(f"size {height}x{width}: dymultidepth takes {wanted}")
        if not 0 <= keyframe_motion < math.inf:
            raise EngineError(
                f"keyframe_motion is {keyframe_motion}: expected metres, not below zero"
            )

    def frame_inputs(self) -> step.Signature:
        every = step.frame_inputs(self.options)
        return {
            name: every[name] for name in ("images", "present", "grid", "k", "pose", "anchor_shift")
        }

    def memory_shapes(self) -> Mapping[str, tuple[int, ...]]:
        n, (h, w) = self.options.cameras, self.options.working_size
        return Memory((n, NEIGHBOURS, 3, h, w), (n, NEIGHBOURS, 4, 4), (n, NEIGHBOURS))._asdict()  # type: ignore[arg-type]

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        grid: Tensor,
        k: Tensor,
        pose: Tensor,
        anchor_shift: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, ...]:
        x, covered = working_images(images, grid)
        image = as_rgb(x) / 255 - 0.5
        old = Memory(*memory)
        here = present[:, None] > 0.5
        # the anchor has moved: what is in the memory is that much nearer to it
        moved_on = torch.cat(
            [
                old.frame_pose[:, :, :3, 3] - anchor_shift,
                torch.ones_like(old.frame_pose[:, :, 3:, 3]),
            ],
            2,
        )
        poses = torch.cat([old.frame_pose[..., :3], moved_on[..., None]], 3)

        prediction = self.network(image, old.frame, k, relative_poses(poses, pose), old.frame_valid)
        depth, sigma, confidence = self.judge(prediction)
        there = here[:, :, None] & covered
        maps = [torch.where(there, map_, 0.0) for map_ in (depth, sigma, confidence)]

        travelled = (pose[:, :3, 3] - poses[:, 0, :3, 3]).norm(dim=1, keepdim=True)
        enters = here & (
            (old.frame_valid[:, :1] < 0.5) | (travelled >= self.keyframe_motion)
        )  # [N, 1]
        new = Memory(
            torch.where(
                enters[:, :, None, None, None], torch.stack([image, old.frame[:, 0]], 1), old.frame
            ),
            torch.where(enters[:, :, None, None], torch.stack([pose, poses[:, 0]], 1), poses),
            torch.where(
                enters,
                torch.cat([torch.ones_like(present)[:, None], old.frame_valid[:, :1]], 1),
                old.frame_valid,
            ),
        )
        return (*maps, as_bytes(x), *new)

    def judge(self, p: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """depth in metres, its standard deviation, confidence, each [N, h, w] (see the class)."""
        scores = p.cost_volume
        count = scores.shape[1]
        nearest, farthest = self.network.range
        place = (p.inverse - farthest) * ((count - 1) / (nearest - farthest))
        distance = (
            torch.arange(float(count), device=scores.device)[:, None, None] - place[:, None]
        ).abs()
        seen = (scores != 0).any(1)
        support = ((scores * SHARPNESS).softmax(1) * (2 - distance).clamp(0, 1)).sum(1) * seen
        ratio = (p.inverse_mono / p.inverse).log()
        agreement = 1 / (1 + (ratio / TOLERANCE).square())
        depth = 1 / p.inverse
        sigma = depth * (LEAST_ERROR**2 + ((1 - support) * ratio).square()).sqrt()
        return depth, sigma, (support + agreement) / 2


def relative_poses(poses: Tensor, pose: Tensor) -> Tensor:
    """poses [N, F, 4, 4] T_anchor_neighbour, pose [N, 4, 4] T_anchor_image -> T_neighbour_image [N,
    F, 4, 4]."""
    back = poses[:, :, :3, :3].transpose(2, 3)
    turn = torch.matmul(back, pose[:, None, :3, :3])
    move = torch.matmul(back, pose[:, None, :3, 3:] - poses[:, :, :3, 3:])
    last = torch.zeros_like(poses[:, :, 3:]) + torch.tensor(
        [0.0, 0.0, 0.0, 1.0], device=pose.device
    )
    return torch.cat([torch.cat([turn, move], 3), last], 2)


def make_step(network: DyMultiDepth, options: step.StepOptions, **own: float) -> DyMultiDepthStep:
    return DyMultiDepthStep(network, options, **own)
