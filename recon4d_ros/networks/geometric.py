"""`recon4d_geometric`: depth and memory from geometry alone, no learned weights, as one
static-shape graph `step`.

Read `GeometricStep.forward` from top to bottom: it is one frame. Images become rectified working
images and light-robust descriptors; a volume of matching scores is filled between rig neighbours
and over time; the pointer memory is projected in as a further cue; semi-global aggregation and a
parabola give inverse depth; the match itself gives confidence and sigma; the most telling pixel of
each cell becomes a token that enters the memory at the start of the *next* step, when what moved is
known.

Two configurations of the same step: `stereo` for a rectified pair (volume of disparities, one
batched product, both views from one volume) and `surround` for any other rig (one camera included):
plane sweep against one neighbour per pixel and against an older frame of the same camera.

Names: n cameras; (H, W) input, (h, w) working and (y, x) volume sizes; m pointers; t tokens;
positions in metres from an anchor that the host moves along with the car, so that float32 is exact
to a fraction of a millimetre on a drive of any length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.networks.geometric_options import GeometricOptions, frame_inputs, memory_shapes
from recon4d_ros.networks.matching import (
    CENSUS_5,
    CENSUS_8,
    other_view,
    rectified_scores,
    semi_global,
    soft_census,
    sweep_scores,
    winner,
)
from recon4d_ros.networks.pointer_memory import SCALE, SIGMA, Memory, Tokens, fuse, patches
from recon4d_ros.networks.projection import Projection
from recon4d_ros.networks.splat import nearest_of
from recon4d_ros.networks.working_image import (
    as_bytes,
    as_grey,
    last_index,
    numbers,
    working_images,
)

RECALL_ROUNDS = 4
CUE_ROUNDS = 8


def choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """torch.where with one condition per camera [n] for tensors [n, ...]."""
    return torch.where(condition.reshape(-1, *([1] * (yes.dim() - 1))), yes, no)


def other(pair: Tensor) -> Tensor:
    """[2, ...] with the two views changed over."""
    return torch.cat([pair[1:], pair[:1]])


def finer(factor: int) -> Tensor:
    """Weights [factor^2, 1, 3, 3] of a convolution whose channels are the pixels that each pixel of
    a bilinearly enlarged image falls into, row by row (half-pixel centres)."""
    place = (torch.arange(factor) + 0.5) / factor - 0.5  # in pixels of the coarse image
    along = torch.stack([(-place).clamp_min(0), 1 - place.abs(), place.clamp_min(0)], 1)
    return (along[:, None, :, None] * along[None, :, None, :]).reshape(-1, 1, 3, 3)


class GeometricStep(nn.Module):
    inverse_depths: Tensor
    finer: Tensor

    def __init__(self, options: GeometricOptions):
        super().__init__()
        o = self.o = options
        self.register_buffer(
            "inverse_depths", torch.arange(o.planes) / ((o.planes - 1) * o.near), persistent=False
        )
        self.register_buffer("finer", finer(o.depth_stride), persistent=False)

    # ---------------------------------------------------------------------------------------------
    # one frame

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(frame_inputs..., memory...) -> (depth [n, h, w] m, 0 = none; sigma m; confidence 0..1;
        color [n, h, w, channels] uint8; memory...)."""
        o = self.o
        names = [*frame_inputs(o), *memory_shapes(o)]
        at = dict(zip(names, tensors, strict=True))
        k, pose, present = at["k"], at["pose"], at["present"]

        # memory first: the last frame's tokens enter it, without what moved
        memory = self.remember(at)

        # images
        x, covered = working_images(at["images"], at["grid"])
        color, grey = as_bytes(x), as_grey(x) / 255

        # pointers as the cameras see them now
        seen = self.look(memory, grey, k, pose, present)

        # volume of scores, and inverse depth from it
        cue = self.pointer_cue(memory, seen, grey)
        if o.stereo:
            matched = self.match_pair(grey, k, pose, cue)
            inverse, spread, confidence = self.recall(at, *matched)
            new = {
                "before_inverse": inverse,
                "before_sure": confidence * present[:, None, None],
                "before_pose": pose,
            }
        else:
            inverse, spread, confidence, new = self.match_rig(grey, at, cue)
        confidence = confidence * present[:, None, None]

        # full resolution
        depth, sigma, confidence_full = self.upsample(
            inverse, spread, confidence, covered.to(torch.float32)
        )

        # what the next step will remember
        memory, pointer_pixel = self.judge(memory, seen, grey, inverse, confidence)
        tokens, token_pixel = self.offer(memory, seen, grey, inverse, spread, confidence, k, pose)
        new |= {
            "pointer_position": memory.position,
            "pointer_feature": memory.feature,
            "pointer_weight": memory.weight,
            "pointer_age": memory.age,
            "pointer_valid": memory.valid,
            "pointer_pixel": pointer_pixel,
            "token_position": tokens.position,
            "token_feature": tokens.feature,
            "token_weight": tokens.weight,
            "token_again": tokens.again,
            "token_pixel": token_pixel,
        }
        return depth, sigma, confidence_full, color, *(new[name] for name in memory_shapes(o))

    # ---------------------------------------------------------------------------------------------
    # images

    def scaled_k(self, k: Tensor, s: int) -> Tensor:
        """Intrinsics of pixels of s x s working pixels, whose centres lie between these."""
        between, device = (s - 1) / 2, k.device
        scale = torch.tensor([1 / s, 1 / s, 1.0], device=device)[:, None]
        shift = torch.tensor([[0.0, 0.0, between], [0.0, 0.0, between], [0.0] * 3], device=device)
        return (k - shift) * scale

    # ---------------------------------------------------------------------------------------------
    # matching

    def match_pair(
        self, grey: Tensor, k: Tensor, pose: Tensor, cue: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inverse depth, its standard deviation and confidence, each [2, 2y, 2x], of a rectified
        pair."""
        o = self.o
        half = F.avg_pool2d(grey, o.stride // 2)
        descriptors = soft_census(half, CENSUS_5)
        raw = rectified_scores(descriptors[0], descriptors[1], o.planes)[None]  # [1, y, x, D]
        baseline = (pose[1, :3, 3] - pose[0, :3, 3]).square().sum().sqrt().clamp_min(1e-3)
        to_inverse = 1 / (
            self.scaled_k(k, o.stride)[0, 0, 0] * baseline
        )  # of one volume pixel of disparity
        plane_inverse = (o.planes - 1 - numbers(o.planes, k)) * to_inverse
        scores = raw + self.cue_scores((cue[0][:1], cue[1][:1]), plane_inverse, to_inverse)
        total = semi_global(scores, o.step_penalty, o.jump_penalty)
        both = torch.cat([total, other_view(total[0])[None]])
        position, _, curvature, margin = winner(both)
        disparity = o.planes - 1 - position

        # twice as fine: which of the surfaces around a pixel is its own, then its sub-pixel place
        fine = soft_census(half, CENSUS_8)
        around = disparity[:, None]
        surfaces = torch.cat(
            [around, F.max_pool2d(around, 3, 1, 1), -F.max_pool2d(-around, 3, 1, 1)], 1
        )
        surfaces = F.interpolate(surfaces, scale_factor=2.0, mode="nearest") * 2
        like = self.likeness(fine, surfaces, 3)
        own = like[:, 0] + 0.02  # a surface of a neighbour has to be better, not as good
        chosen = torch.where(
            like[:, 1] > torch.maximum(own, like[:, 2]),
            surfaces[:, 1],
            torch.where(like[:, 2] > own, surfaces[:, 2], surfaces[:, 0]),
        )
        steps = (numbers(3, k) - 1)[None, :, None, None]
        like = self.likeness(fine, chosen[:, None] + steps, 5)
        bend = (2 * like[:, 1] - like[:, 0] - like[:, 2]).clamp_min(1e-4)
        chosen = chosen + ((like[:, 2] - like[:, 0]) / (2 * bend)).clamp(-0.75, 0.75)

        # each view's disparity, looked up where the other one says this pixel is
        columns, end = numbers(chosen.shape[2], k), last_index(chosen.shape[2], k)
        target = torch.stack([columns - chosen[0], columns + chosen[1]])
        inside = (target >= 0) & (target <= end)
        index = torch.minimum(target.round().clamp_min(0.0), end).to(torch.int64)
        there = torch.gather(other(chosen), 2, index)
        agreement = torch.exp(-((chosen - there).abs() / 1.2).square()) * inside.to(torch.float32)

        coarse = torch.stack([margin / (margin + 0.5), 0.12 + 0.15 / (curvature + 0.2)], 1)
        sure, spread = F.interpolate(coarse, scale_factor=2.0, mode="nearest").unbind(1)
        inverse = chosen * (0.5 * to_inverse)
        texture = F.avg_pool2d(fine.square().sum(1, keepdim=True), 5, 1, 2)[:, 0]
        alike = ((like[:, 1] + 0.1) / (texture + 0.1)).clamp(0.0, 1.0)
        confidence = torch.where(inverse > 1 / o.far, agreement * sure * alike, 0.0)
        return inverse, to_inverse * 0.7 * spread.clamp(0.1, 1.0), confidence

    def likeness(self, descriptors: Tensor, disparity: Tensor, window: int) -> Tensor:
        """How well both views of a pair [2, C, y, x] match each other at disparities [2, K, y, x]
        of their own pixels, averaged over a window: [2, K, y, x]."""
        _, c, y, x = descriptors.shape
        options = disparity.shape[1]
        across, down = (2 / last_index(size, disparity) for size in (x, y))
        columns, rows = numbers(x, disparity) * across - 1, numbers(y, disparity) * down - 1
        place = torch.stack([columns[None, :].expand(y, x), rows[:, None].expand(y, x)], -1)
        way = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], device=disparity.device)
        way = way[:, None, None, None] * across
        grid = (place + disparity[..., None] * way).reshape(2, options * y, x, 2)
        sampled = F.grid_sample(
            other(descriptors), grid, mode="bilinear", padding_mode="zeros", align_corners=True
        )
        return F.avg_pool2d(
            (sampled.reshape(2, c, options, y, x) * descriptors[:, :, None]).sum(1),
            window,
            1,
            window // 2,
        )

    def recall(
        self, at: dict[str, Tensor], inverse: Tensor, spread: Tensor, confidence: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Match over time: where the pair has no sure depth (hidden from one of the two, or outside
        its image), the depth of the frame before as seen from here, without what moved in it; it
        fades from frame to frame. Each [2, 2y, 2x]."""
        o = self.o
        count, rows, columns = inverse.shape
        bottom, right = last_index(rows, inverse), last_index(columns, inverse)
        moved = F.max_pool2d(at["moving"].to(torch.float32)[:, None], o.depth_stride)[:, 0]
        known = at["before_sure"] * (moved == 0).to(torch.float32)
        shift = F.pad(at["anchor_shift"][None, :, None], (3, 0, 0, 1))
        k = self.scaled_k(at["k"], o.depth_stride)
        rays = self.rays(k, (rows, columns))
        every = torch.ones(count, device=k.device)
        move = Projection.between(rays, at["pose"], at["before_pose"] - shift, k, every)
        q = [
            constant + slope * at["before_inverse"]
            for constant, slope in zip(move.constant, move.slope, strict=True)
        ]
        ahead = (q[2] > 1e-3) & (known > 0)
        z = torch.where(ahead, q[2], 1.0)
        u, v = (q[0] / z).round(), (q[1] / z).round()
        inside = ahead & (u >= 0) & (u <= right) & (v >= 0) & (v <= bottom)
        camera = numbers(count, inverse)[:, None, None]
        index = torch.where(inside, (camera * (bottom + 1) + v) * (right + 1) + u, -1.0)
        there, sure = (
            tensor.reshape(count, 1, rows, columns)
            for tensor in nearest_of(
                index.reshape(-1),
                (at["before_inverse"] / z).reshape(-1),
                known.reshape(-1),
                count * rows * columns,
                RECALL_ROUNDS,
            )
        )
        hole = (there == 0).to(
            torch.float32
        )  # between the pixels that a surface spreads over as it comes nearer
        there = (there + hole * F.max_pool2d(there, 3, 1, 1))[:, 0]
        sure = o.fade * (sure + hole * F.max_pool2d(sure, 3, 1, 1))[:, 0]
        better = sure > confidence
        return (
            torch.where(better, there, inverse),
            torch.where(better, 2 * spread, spread),
            torch.maximum(sure, confidence),
        )

    def match_rig(
        self, grey: Tensor, at: dict[str, Tensor], cue: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Inverse depth, its standard deviation and confidence, each [n, y, x], of any rig; and the
        older frames for the next step.

        Every pixel is matched over time with an older frame of its camera, and with the rig
        neighbour that sees it, if one does. The neighbour, which sees dynamic objects where they
        are, counts for more.
        """
        o = self.o
        present, pose = at["present"], at["pose"]
        k = self.scaled_k(at["k"], o.stride)
        descriptors = soft_census(F.avg_pool2d(grey, o.stride), CENSUS_8)
        key, following = self.older_frames(at)

        rays = self.rays(k, (descriptors.shape[2], descriptors.shape[3]))
        over_time = Projection.between(rays, key["pose"], pose, k, present * key["valid"])
        raw = sweep_scores(descriptors, key["descriptor"], *over_time, self.inverse_depths)
        over_rig = None
        if o.cameras > 1:
            over_rig = Projection.to_partners(rays, at["partner"], pose, k, present)
            stack = (
                F.pad(descriptors, (0, 0, 1, 1))
                .permute(1, 0, 2, 3)
                .reshape(1, descriptors.shape[1], -1, descriptors.shape[3])
            )
            beside = sweep_scores(descriptors, stack, *over_rig, self.inverse_depths)
            raw = torch.where(beside != 0, 0.7 * beside + 0.3 * raw, raw)
        bin_width = 1 / ((o.planes - 1) * o.near)
        scores = raw + self.cue_scores(cue, self.inverse_depths, bin_width)
        position, _, curvature, margin = winner(semi_global(scores, o.step_penalty, o.jump_penalty))
        inverse = position * bin_width

        # what the match is worth: how alike, how far off the runner-up, how much parallax there is,
        # and whether the other image's depth agrees
        alike = torch.gather(raw, -1, position.round().to(torch.int64).unsqueeze(-1)).squeeze(-1)
        texture = descriptors.square().sum(1)
        alike = (alike / texture.clamp_min(0.3)).clamp(0.0, 1.0)
        parallax, agreement = over_time.check(inverse, key["inverse"], 2 * bin_width)
        if over_rig is not None:
            parallax_rig, agreement_rig = over_rig.check(inverse, inverse, 2 * bin_width)
            better = parallax_rig > 0
            parallax = torch.maximum(parallax, parallax_rig)
            agreement = torch.where(better, torch.maximum(agreement, agreement_rig), agreement)
        spread = (o.precision / parallax.clamp_min(1e-3) + 0.1 * bin_width).clamp(
            0.15 * bin_width, 1 / o.near
        )
        relative = spread / inverse.clamp_min(1e-4)
        product = (
            alike
            * (margin / (margin + 0.5))
            * agreement
            / (1 + (relative / 0.2).square())
            * (curvature > 1e-5).to(alike.dtype)
        )
        confidence = product.clamp_min(
            1e-12
            # four factors: the root brings them to the scale of a single one (0.5: depth off by 15
            # %)
        ).sqrt()
        confidence = torch.where(inverse > 1 / o.far, confidence, 0.0)

        empty = following["valid"] < 0.5  # the slot of the frame to come is free: this one takes it
        current = {
            "descriptor": descriptors,
            "inverse": inverse * (confidence > 0.1).to(inverse.dtype),
            "pose": pose,
            "valid": present,
        }
        new = {f"key_{name}": tensor for name, tensor in key.items()}
        new |= {
            f"next_{name}": choose(empty, current[name], tensor)
            for name, tensor in following.items()
        }
        return inverse, spread, confidence, new

    def older_frames(self, at: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The frame to match with, and the one after it, which takes its place once the camera has
        moved on far enough from that one: so the baseline lies between one and two times
        keyframe_motion (or is one frame's motion, if that is more)."""
        names = ("descriptor", "inverse", "pose", "valid")
        key, following = (
            {name: at[f"{which}_{name}"] for name in names} for which in ("key", "next")
        )
        shift = F.pad(
            at["anchor_shift"][None, :, None], (3, 0, 0, 1)
        )  # [1, 4, 4] with the shift in the translation
        key, following = ({**frame, "pose": frame["pose"] - shift} for frame in (key, following))
        moved = (at["pose"][:, :3, 3] - following["pose"][:, :3, 3]).square().sum(1)
        turn = (
            (moved > self.o.keyframe_motion**2) & (following["valid"] > 0.5) & (at["present"] > 0.5)
        )
        key = {name: choose(turn, following[name], key[name]) for name in names}
        following = {**following, "valid": torch.where(turn, 0.0, following["valid"])}
        return key, following

    def rays(self, k: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """x and y at z = 1 of the pixels of images of `size` (y, x): [n, 1, x] and [n, y, 1]."""
        y, x = size
        u = (numbers(x, k) - k[:, 0, 2, None]) / k[:, 0, 0, None]
        v = (numbers(y, k) - k[:, 1, 2, None]) / k[:, 1, 1, None]
        return u[:, None, :], v[:, :, None]

    def cue_scores(
        self, cue: tuple[Tensor, Tensor], plane_inverse: Tensor, bin_width: Tensor | float
    ) -> Tensor:
        """Scores [B, y, x, D] that pointers give to the planes around their own inverse depth."""
        inverse, spread = (tensor.unsqueeze(-1) for tensor in cue)
        if isinstance(bin_width, Tensor):
            width = torch.maximum(spread, bin_width)
        else:
            width = spread.clamp_min(bin_width)
        near = torch.exp(-0.5 * ((plane_inverse - inverse) / width).square())
        return self.o.cue * near * (inverse > 0).to(near.dtype)

    # ---------------------------------------------------------------------------------------------
    # full resolution

    def upsample(
        self, inverse: Tensor, spread: Tensor, confidence: Tensor, covered: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Depth, sigma, confidence [n, h, w]: bilinear on surfaces, nearest at jumps so that no
        pixel hangs between two surfaces."""
        size = covered.shape[1:]
        high = F.max_pool2d(inverse[:, None], 3, 1, 1)[:, 0]
        low = -F.max_pool2d(-inverse[:, None], 3, 1, 1)[:, 0]
        jump = (high - low) > 4 * spread + 0.1 * inverse
        marked = torch.where(jump, -spread, spread)  # the sign travels along
        # a convolution, for OpenVINO enlarges one channel an element at a time
        around = F.pad(inverse[:, None], (1, 1, 1, 1), mode="replicate")
        smooth = F.pixel_shuffle(F.conv2d(around, self.finer), self.o.depth_stride)[:, 0]
        block = F.interpolate(
            torch.stack([inverse, marked, confidence], 1), size=size, mode="nearest"
        )
        flat = torch.where(block[:, 1] < 0, block[:, 0], smooth)
        sure = block[:, 2] * covered
        sure = torch.where(flat > 1 / self.o.far, sure, 0.0)
        depth = torch.where(sure > self.o.floor, 1 / flat.clamp_min(1 / self.o.far), 0.0)
        sigma = depth * depth * block[:, 1].abs()
        return depth, sigma, torch.where(depth > 0, sure, 0.0)

    # ---------------------------------------------------------------------------------------------
    # memory

    def remember(self, at: dict[str, Tensor]) -> Memory:
        """The memory in the new anchor, with the last frame's tokens, without what moved in it."""
        moving = at["moving"].to(torch.float32).reshape(-1)

        def still(pixel: Tensor) -> Tensor:
            """1 where the flat pixel was not moving (or there is none)."""
            hit = moving[pixel.clamp_min(0).to(torch.int64)] * (pixel >= 0).to(torch.float32)
            return (hit == 0).to(torch.float32)

        valid = at["pointer_valid"] * still(at["pointer_pixel"].reshape(-1)).reshape(
            at["pointer_pixel"].shape
        ).amin(0)
        memory = Memory(
            at["pointer_position"] - at["anchor_shift"],
            at["pointer_feature"],
            at["pointer_weight"] * valid,
            at["pointer_age"],
            valid,
        )
        tokens = Tokens(
            at["token_position"] - at["anchor_shift"],
            at["token_feature"],
            at["token_weight"] * still(at["token_pixel"]),
            at["token_again"],
        )
        return fuse(memory, tokens, self.o.merge_radius, at["pose"][:, :3, 3].mean(0))

    def look(
        self, memory: Memory, grey: Tensor, k: Tensor, pose: Tensor, present: Tensor
    ) -> dict[str, Tensor]:
        """Every pointer in every camera, [n, m] each: u, v (working pixels), z, visible (0 or 1, in
        the image), match (correlation of its patch)."""
        o = self.o
        n, m = o.cameras, o.pointers
        bottom, right = (last_index(size, grey) for size in grey.shape[2:])
        rotation, centre = pose[:, :3, :3], pose[:, :3, 3]
        local = torch.matmul(
            memory.position[None] - centre[:, None], rotation
        )  # R^T (p - c) as rows
        z = local[..., 2]
        safe = torch.where(z > 0.5, z, 1.0)
        u = local[..., 0] / safe * k[:, 0, 0, None] + k[:, 0, 2, None]
        v = local[..., 1] / safe * k[:, 1, 1, None] + k[:, 1, 2, None]
        inside = (
            (z > 0.5)
            & (u >= 0)
            & (u <= right)
            & (v >= 0)
            & (v <= bottom)
            & (memory.valid > 0.5)
            & (present[:, None] > 0.5)
        )
        visible = inside.to(torch.float32)
        u, v = torch.where(inside, u, 0.0), torch.where(inside, v, 0.0)
        step = (memory.feature[None, :, SCALE] * k[:, 0, 0, None] / safe).clamp(
            o.patch_step / 2, o.patch_step * 4
        )
        camera = numbers(n, grey)[:, None].expand(n, m)
        seen = patches(
            grey, camera.reshape(-1), torch.stack([u, v], -1).reshape(-1, 2), step.reshape(-1)
        ).reshape(n, m, SCALE)
        correlation = (seen * memory.feature[None, :, :SCALE]).mean(-1)
        return {"u": u, "v": v, "z": safe, "visible": visible, "match": correlation * visible}

    def flat_pixel(
        self, seen: dict[str, Tensor], where: Tensor, stride: int, size: tuple[int, int]
    ) -> Tensor:
        """[n, m] flat index into [n, y, x] of `size` (y, x), pixels of stride x stride working
        pixels, of each pointer, as float32 (exact below 2^24); -1 where not `where`."""
        bottom, right = (last_index(length, where) for length in size)
        u = torch.minimum((seen["u"] / stride).floor().clamp_min(0.0), right)
        v = torch.minimum((seen["v"] / stride).floor().clamp_min(0.0), bottom)
        camera = numbers(self.o.cameras, where)[:, None]
        return torch.where(where, (camera * (bottom + 1) + v) * (right + 1) + u, -1.0)

    def pointer_cue(
        self, memory: Memory, seen: dict[str, Tensor], grey: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inverse depth of the nearest pointer seen again in each volume pixel (0: none), and its
        standard deviation: [n, y, x] each."""
        o = self.o
        y, x = grey.shape[2] // o.stride, grey.shape[3] // o.stride
        again = seen["match"] > o.agree
        index = self.flat_pixel(seen, again, o.stride, (y, x))
        nearest, width = nearest_of(
            index.reshape(-1),
            (1 / seen["z"]).reshape(-1),
            (memory.feature[None, :, SIGMA] / (seen["z"] * seen["z"])).reshape(-1),
            o.cameras * y * x,
            CUE_ROUNDS,
        )
        return nearest.reshape(o.cameras, y, x), width.reshape(o.cameras, y, x)

    def judge(
        self,
        memory: Memory,
        seen: dict[str, Tensor],
        grey: Tensor,
        inverse: Tensor,
        confidence: Tensor,
    ) -> tuple[Memory, Tensor]:
        """Pointers through which something farther is seen lose half their weight, and leave below
        a quarter; and the working pixel each pointer is seen at where the depth agrees, [n, m], so
        that the next step can drop those that moved."""
        o = self.o
        visible = seen["visible"] > 0.5
        index = self.flat_pixel(
            seen, visible, o.depth_stride, (inverse.shape[1], inverse.shape[2])
        ).clamp_min(0.0)
        index = index.to(torch.int64).reshape(-1)
        measured, sure = (
            torch.where(visible, flat.reshape(-1)[index].reshape(visible.shape), 0.0)
            for flat in (inverse, confidence)
        )
        own = 1 / seen["z"]
        through = (
            ((measured < 0.75 * own) & (sure > 0.4) & (seen["match"] < o.agree))
            .to(torch.float32)
            .amax(0)
        )
        weight = memory.weight * (1 - 0.5 * through)
        valid = memory.valid * (1 - through * (weight < 0.25).to(torch.float32))
        agrees = ((measured - own).abs() < 0.15 * own) & (seen["visible"] > 0.5)
        height, width = (last_index(size, grey) + 1 for size in grey.shape[2:])
        camera = numbers(o.cameras, grey)[:, None]
        pixel = (camera * height + seen["v"].round()) * width + seen["u"].round()
        return memory._replace(weight=weight * valid, valid=valid), torch.where(agrees, pixel, -1.0)

    def offer(
        self,
        memory: Memory,
        seen: dict[str, Tensor],
        grey: Tensor,
        inverse: Tensor,
        spread: Tensor,
        confidence: Tensor,
        k: Tensor,
        pose: Tensor,
    ) -> tuple[Tokens, Tensor]:
        """One token per cell: where a pointer is seen again, that point; else the cell's surest and
        most textured pixel. And its flat working pixel [t]."""
        o = self.o
        n, stride = o.token_cameras, o.depth_stride
        side = o.cell // stride
        rows, columns = grey.shape[2] // o.cell, grey.shape[3] // o.cell

        # the surest textured pixel of each cell
        small = F.avg_pool2d(grey[:n], stride)
        rough = (small - F.avg_pool2d(small, 5, 1, 2, count_include_pad=False)).abs()[:, 0]
        value = confidence[:n] * (0.02 + F.avg_pool2d(rough[:, None], 3, 1, 1)[:, 0])
        for axis, size in ((1, rows * side), (2, columns * side)):  # whole cells; a slice would ask
            whole = torch.arange(size, device=value.device)  # whether there is a rest
            value = torch.index_select(value, axis, whole)
        cells = (
            value.reshape(n, rows, side, columns, side)
            .permute(0, 1, 3, 2, 4)
            .reshape(n * rows * columns, side * side)
        )
        # below 2^24; TensorRT divides no integers the way PyTorch does
        place = cells.argmax(1).to(torch.float32)
        down = (place / side).floor()
        shape = (n, rows, columns)
        camera, row, column = (
            numbers(size, grey)
            .reshape([size if axis == a else 1 for a in range(3)])
            .expand(shape)
            .reshape(-1)
            for axis, size in enumerate(shape)
        )
        u = (column * side + (place - down * side) + 0.5) * stride - 0.5
        v = (row * side + down + 0.5) * stride - 0.5

        # unless a pointer is seen again in the cell: the best match's own sub-pixel place
        chosen, hit = self.best_again(memory, seen, n, rows, columns)
        at_pointer = (camera * o.pointers + chosen).to(torch.int64)
        u = torch.where(hit, seen["u"].reshape(-1)[at_pointer], u)
        v = torch.where(hit, seen["v"].reshape(-1)[at_pointer], v)

        # its point, patch and weight
        bottom, right = (last_index(size, inverse) for size in inverse.shape[1:])
        flat = (
            (camera * (bottom + 1) + torch.minimum((v / stride).floor().clamp_min(0.0), bottom))
            * (right + 1)
            + torch.minimum((u / stride).floor().clamp_min(0.0), right)
        ).to(torch.int64)
        own_inverse, own_spread = inverse[:n].reshape(-1)[flat], spread[:n].reshape(-1)[flat]
        sure = confidence[:n].reshape(-1)[flat]
        depth = 1 / own_inverse.clamp_min(1 / o.far)
        sigma = depth * depth * own_spread
        which = camera.to(torch.int64)
        own_k, own_pose = k[which], pose[which]
        ray = torch.stack(
            [
                (u - own_k[:, 0, 2]) / own_k[:, 0, 0],
                (v - own_k[:, 1, 2]) / own_k[:, 1, 1],
                torch.ones_like(u),
            ],
            1,
        )
        position = (
            torch.matmul(own_pose[:, :3, :3], (ray * depth[:, None])[:, :, None])[:, :, 0]
            + own_pose[:, :3, 3]
        )
        patch = patches(grey, camera, torch.stack([u, v], 1), torch.full_like(u, o.patch_step))
        feature = torch.cat(
            [patch, (o.patch_step * depth / own_k[:, 0, 0])[:, None], sigma[:, None]], 1
        )
        textured = (
            patch.square().mean(1) > 0.5
        )  # (deviation / (deviation + 2/255))^2: patches of nothing but noise hold no pose
        # a pointer seen again where the depth disagrees is no confirmation
        expected = 1 / seen["z"].reshape(-1)[at_pointer]
        contradicted = hit & ((own_inverse - expected).abs() > 3 * own_spread + 0.1 * expected)
        offered = (sure > 0.3) & (depth < 0.6 * o.far) & textured & ~contradicted
        weight = torch.where(offered, sure * (0.2 / (sigma / depth + 0.05)).clamp(0.1, 2.0), 0.0)
        height, width = (last_index(size, grey) + 1 for size in grey.shape[2:])
        pixel = (camera * height + v.round()) * width + u.round()
        return Tokens(position, feature, weight, hit.to(torch.float32)), pixel

    def best_again(
        self, memory: Memory, seen: dict[str, Tensor], n: int, rows: int, columns: int
    ) -> tuple[Tensor, Tensor]:
        """Of each cell of the first n cameras the pointer that is seen again best, [t] as float32,
        and whether there is one.

        Every cell is held against every pointer of its camera, and the largest merit with its
        pointer's index behind it in one float32 (exact below 2^24) is the best: so much is little
        (half a million numbers), and no scatter with a reduction is needed, which TensorRT lacks.
        """
        m = self.o.pointers
        levels = 2**24 // m - 2
        again = seen["match"][:n] > self.o.agree
        bottom, right = last_index(rows, again), last_index(columns, again)
        row = torch.minimum((seen["v"][:n] / self.o.cell).floor().clamp_min(0.0), bottom)
        column = torch.minimum((seen["u"][:n] / self.o.cell).floor().clamp_min(0.0), right)
        own = torch.where(again, row * (right + 1) + column, -1.0)  # [n, m]
        merit = (seen["match"][:n] * memory.weight[None] / (memory.weight[None] + 4)).clamp(0, 1)
        packed = (merit * (levels - 1)).floor() * m + numbers(m, merit) + 1
        cell = numbers(rows * columns, merit)[None, :, None]
        best = torch.where(own[:, None] == cell, packed[:, None], 0.0).amax(-1).reshape(-1)
        chosen = best - 1 - ((best - 1) / m).floor() * m
        return chosen.clamp(0, m - 1), best > 0
