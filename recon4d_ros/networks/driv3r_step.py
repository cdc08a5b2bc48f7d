"""Driv3R as an engine's step: the cameras' uint8 images in, depth out, one memory per camera that
nothing moving has entered.

The network gives points in the frame that a camera had at its origin, up to one factor. This is the
alignment of the paper's section 3.4 with the rig's own calibration in place of lidar: orientation
and place of the origin in the world are known, the camera's centre among its points follows in
closed form from them and the calibrated rays (ray_camera.py), and centres against known motion give
the factor (recon4d_ros/alignment.py, outside the graph). Depth is what the camera sees from where
it is now. What the frame before offers to the memory is offered in this step, when it is known what
moved in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.networks import ray_camera, step
from recon4d_ros.networks.driv3r import PATCH, Driv3R
from recon4d_ros.networks.driv3r_stream import SensorStream, flatten, unflatten
from recon4d_ros.networks.working_image import as_bytes, as_rgb, working_images

# alpha of the training loss, conf * error - alpha * log(conf), as it ends up (it starts at 0.4)
CONFIDENCE_WEIGHT = 0.2
POSES = {
    "origin_rotation": (3, 3),
    "origin_position": (3,),
    "last_rotation": (3, 3),
    "last_position": (3,),
    "last_unit": (),
}
LAST_DEPTH = "last_depth"
# of the depth: a pixel of which two clips say depths whose ratio is this far off the others' counts
# half
ALIKE = 0.1


class Driv3RStep(nn.Module):
    """See networks/step.py.

    clip: images after which a camera begins anew with its last image as origin; 0: never. The
    authors train and evaluate on clips of 5. A new clip's unit is another: what both clips say of
    the depth of the image that they share brings it back to that of the first.

    `pointers` is what each camera's memory holds; more than the published rules ever fill is not
    allocated.

    network_position [N, 3]: each camera's centre in its own unit, from where it was first seen, in
    the anchor's directions (the pose gives the orientation); it goes on over clips. What cameras
    have in common is not known to the network: only a camera's positions at different times can be
    compared, not those of two cameras.

    depth is in the network's unit. Its sigma is what the training made of the confidence: at the
    loss' optimum an error is expected of CONFIDENCE_WEIGHT / confidence times the mean distance of
    what the image shows. The engine's confidence, 0..1, is 1 - 1 / that confidence: 0 where the
    network has learned nothing.
    """

    extra_outputs = ("network_position",)
    one_world = False

    def __init__(self, network: Driv3R, options: step.StepOptions, clip: float = 0) -> None:
        super().__init__()
        self.options = options
        self.stream = SensorStream(
            network, options.working_size, options.cameras, options.pointers, clip=int(clip)
        )

    def frame_inputs(self) -> step.Signature:
        every = step.frame_inputs(self.options)
        return {name: every[name] for name in ("images", "present", "grid", "k", "pose", "moving")}

    def memory_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """last_depth [N, h, w]: of each camera's last image, 0 where there is none. last_unit [N]:
        what the points of the clip were multiplied with."""
        n = self.options.cameras
        own = {name: (n, *shape) for name, shape in POSES.items()} | {
            LAST_DEPTH: (n, *self.options.working_size)
        }
        return self.stream.memory_shapes() | own

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = self.frame_inputs()
        frame = dict(zip(inputs, tensors, strict=False))
        own = len(POSES) + 1
        memory = unflatten(tensors[len(inputs) : -own])
        origin, origin_position, last, last_position, unit, last_depth = tensors[-own:]
        here = frame["present"] > 0.5

        # where each camera's points refer to
        turned = frame["pose"][:, :3, :3]
        first, again = (memory.seen < 0.5)[:, None], self.stream.restarts(memory)[:, None]
        origin = torch.where(first[..., None], turned, torch.where(again[..., None], last, origin))
        origin_position = torch.where(again & ~first, last_position, origin_position)

        x, covered = working_images(frame["images"], frame["grid"])
        moved = F.max_pool2d(frame["moving"].to(torch.float32)[:, None], PATCH).flatten(1) > 0.5
        pair, new = self.stream(as_rgb(x) / 127.5 - 1, memory, here, moved)

        # a new clip's first image is the last one's last, seen from its origin
        joined = join(last_depth, pair.before.points[..., 2], 1 - 1 / pair.before.confidence)
        unit = torch.where(first[:, 0], 1.0, torch.where(again[:, 0], joined, unit))

        # the camera among its points, in the directions that it had at the origin
        points, confidence = pair.now.points * unit[:, None, None, None], pair.now.confidence
        since = origin.transpose(1, 2) @ turned
        rays = ray_camera.directions(frame["k"], self.options.working_size)
        rays = (rays.flatten(1, 2) @ since.transpose(1, 2)).view_as(rays)
        sure = 1 - 1 / confidence
        centre = torch.where(first, 0.0, ray_camera.centre(points, rays, sure * covered + 1e-6))
        position = origin_position + (origin @ centre[..., None])[..., 0]

        seen_from_here = points - centre[:, None, None]
        depth = (seen_from_here * since[:, None, None, :, 2]).sum(-1)
        far = seen_from_here.norm(dim=-1).mean((1, 2), keepdim=True)
        there = here[:, None, None] & covered & (depth > 0)
        maps = [
            torch.where(there, map_, 0.0)
            for map_ in (depth, CONFIDENCE_WEIGHT / confidence * far, sure)
        ]

        keep = here[:, None]
        poses = (
            torch.where(keep[..., None], origin, tensors[-own]),
            torch.where(keep, origin_position, tensors[1 - own]),
            torch.where(keep[..., None], turned, last),
            torch.where(keep, position, last_position),
            torch.where(here, unit, tensors[4 - own]),
            torch.where(keep[..., None], maps[0], last_depth),
        )
        return (*maps, as_bytes(x), torch.where(keep, position, 0.0), *flatten(new), *poses)


def join(before: Tensor, now: Tensor, weight: Tensor) -> Tensor:
    """[N], the factor that brings depths `now` to those `before` of the same image, [N, h, w], with
    a weight each: the weighted mean of the ratios' logarithms, twice again with less weight for
    what is far from it; 1 where nothing is seen twice."""
    weight = torch.where((before > 0) & (now > 0), weight + 1e-6, 0.0)
    ratio = before.clamp_min(1e-6).log() - now.clamp_min(1e-6).log()
    mean = _mean(ratio, weight)
    for _ in range(2):
        mean = _mean(ratio, weight / (1 + ((ratio - mean[:, None, None]) / ALIKE).square()))
    return mean.exp()


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-12)


def make_step(network: Driv3R, options: step.StepOptions, **own: float) -> Driv3RStep:
    return Driv3RStep(network, options, **own)
