"""Point3R as an engine's step: the cameras' uint8 images in, depth out, and pointers that nothing
moving has entered.

What a frame offers waits in the memory until the next step, which knows what moved in it: only then
does it join the pointers for good. Within the frame the cameras still see each other's offers, on a
copy. With nothing moving this is pointer_stream.py's stream, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks import step
from recon4d_ros.networks.point3r import PATCH, Point3R, Pointers, Prediction
from recon4d_ros.networks.pointer_stream import FAR, Fusion, InView, check_capacity, fuse, look
from recon4d_ros.networks.working_image import as_bytes, as_rgb, working_images

# alpha of the training loss, conf * error - alpha * log(conf) (DUSt3R, Wang et al., 2024, equation
# 4)
CONFIDENCE_WEIGHT = 0.2


class Memory(NamedTuple):
    """All float32, all zeros at first. N cameras of T patches share M pointers of C channels.

    pointer_feature [M, C], pointer_position [M, 3] (in the network's unit and world), pointer_valid
    [M]: for good. token_feature [N, T, C], token_position [N, T, 3], token_offered [N, T]: what the
    last frame offers, and where each camera's patches were last seen. camera_seen [N]: cameras that
    were there at least once. pose_slots [1, slots, 2 C]: the network's memory of poses.
    """

    pointer_feature: Tensor
    pointer_position: Tensor
    pointer_valid: Tensor
    token_feature: Tensor
    token_position: Tensor
    token_offered: Tensor
    camera_seen: Tensor
    pose_slots: Tensor


class Point3RStep(nn.Module):
    """See networks/step.py.

    fusion_cells, fusion_metres: an offer merges into a pointer nearer than the diagonal of
    everything seen / fusion_cells (the published rule), but never farther than fusion_metres; 0:
    the published rule alone. As long as the scale is not known there is no such bound.

    depth is the third coordinate of the points in the camera's own frame, in the network's unit.
    Its sigma is what the training made of the confidence: at the loss' optimum an error is expected
    of CONFIDENCE_WEIGHT / confidence times the mean distance of what the image shows. The engine's
    confidence, 0..1, is 1 - 1 / that confidence: 0 where the network has learned nothing.
    """

    extra_outputs = ("network_position",)

    def __init__(
        self,
        network: Point3R,
        options: step.StepOptions,
        fusion_cells: float = 20.0,
        fusion_metres: float = 0.5,
    ) -> None:
        super().__init__()
        self.network, self.options = network, options
        self.cells, self.metres = fusion_cells, fusion_metres
        height, width = options.working_size
        if height % PATCH or width % PATCH:
            raise EngineError(
                f"size {height}x{width}: point3r takes multiples of {PATCH} pixels, its patches, in"
                " height and width"
            )
        self.grid = height // PATCH, width // PATCH
        self.patches = self.grid[0] * self.grid[1]
        check_capacity(options.pointers, options.cameras, self.patches)
        for name, value in (("fusion_cells", fusion_cells), ("fusion_metres", fusion_metres)):
            if not 0 <= value < FAR or (value == 0 and name == "fusion_cells"):
                raise EngineError(f"{name} is {value}: expected a number above zero")

    def frame_inputs(self) -> step.Signature:
        names = ["images", "present", "grid", "moving"] + ["metres_per_unit"] * (self.metres > 0)
        every = step.frame_inputs(self.options)
        return {name: every[name] for name in names}

    def memory_shapes(self) -> Mapping[str, tuple[int, ...]]:
        c, o = self.network.configuration, self.options
        n, m, t, width = o.cameras, o.pointers, self.patches, c.decoder_width
        shapes: tuple[tuple[int, ...], ...] = (
            (m, width),
            (m, 3),
            (m,),
            (n, t, width),
            (n, t, 3),
            (n, t),
            (n,),
            (1, c.pose_slots, 2 * width),
        )
        return dict(zip(Memory._fields, shapes, strict=True))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = self.frame_inputs()
        frame = dict(zip(inputs, tensors, strict=False))
        x, covered = working_images(frame["images"], frame["grid"])
        prediction, memory = self.advance(
            as_rgb(x) / 127.5 - 1,
            frame["present"],
            self.patches_that_move(frame["moving"]),
            frame.get("metres_per_unit"),
            Memory(*tensors[len(inputs) :]),
        )
        here = frame["present"][:, None, None] > 0.5
        depth = prediction.points_self[..., 2]
        there = here & covered & (depth > 0)
        far = prediction.points_self.norm(dim=-1).mean((1, 2), keepdim=True)
        sigma = CONFIDENCE_WEIGHT / prediction.confidence_self * far
        confidence = 1 - 1 / prediction.confidence_self
        maps = [torch.where(there, map_, 0.0) for map_ in (depth, sigma, confidence)]
        position = prediction.pose[:, :3] * here[:, :, 0]
        return (*maps, as_bytes(x), position, *memory)

    def patches_that_move(self, moving: Tensor) -> Tensor:
        """[N, h, w], not zero where it moves -> [N, T] bool: patches with any such pixel."""
        return F.max_pool2d(moving.to(torch.float32)[:, None], PATCH).flatten(1) > 0.5

    def advance(
        self,
        images: Tensor,
        present: Tensor,
        moved: Tensor,
        metres_per_unit: Tensor | None,
        memory: Memory,
    ) -> tuple[Prediction, Memory]:
        """images [N, 3, h, w] in -1..1; moved [N, T] bool: patches of the frame before that are not
        to be remembered."""
        net, o = self.network, self.options
        dtype = net.pose_token.dtype  # below float32 if the network was made so
        fusion = self.fusion(metres_per_unit)
        pointers = Pointers(
            memory.pointer_feature, memory.pointer_position, memory.pointer_valid > 0.5
        )
        offers = (memory.token_offered > 0.5) & ~moved
        shown = InView(memory.token_position.flatten(0, 1), offers.flatten())
        for camera in range(o.cameras):
            pointers = fuse(
                pointers,
                memory.token_feature[camera],
                memory.token_position[camera],
                fusion,
                offers[camera],
                shown,
            )
        kept = pointers

        seen_before = memory.camera_seen > 0.5
        started = seen_before.any()
        slots = torch.where(started, memory.pose_slots, net.pose_retriever.mem.float())
        encoded = net.encode(images)
        last = torch.zeros_like(memory.token_position[0])
        predictions: list[Prediction] = []
        features: list[Tensor] = []
        positions: list[Tensor] = []
        for camera in range(o.cameras):
            here = present[camera] > 0.5
            # a camera that was never seen is taken to look where the one before it does
            known = torch.where(seen_before[camera], memory.token_position[camera], last)
            lowered = Pointers(pointers.feature.to(dtype), pointers.position, pointers.valid)
            seen = look(
                net,
                encoded[camera : camera + 1],
                self.grid,
                known,
                lowered,
                slots.to(dtype),
                started,
            )
            feature = seen.feature.float()
            positions.append(torch.where(here, seen.position, memory.token_position[camera]))
            if camera + 1 < o.cameras:
                # the others' patches are taken to be where they were last seen
                places = torch.cat([*positions, memory.token_position[camera + 1 :].flatten(0, 1)])
                there = present * torch.cat(
                    [torch.ones_like(present[: camera + 1]), memory.camera_seen[camera + 1 :]]
                )
                in_view = InView(places, there[:, None].expand(-1, self.patches).flatten() > 0.5)
                pointers = fuse(
                    pointers, feature, seen.position, fusion, here.expand(self.patches), in_view
                )
            slots = torch.where(here, seen.slots.float(), slots)
            last = torch.where(here, seen.position, last)
            started = started | here
            predictions.append(seen.prediction)
            features.append(torch.where(here, feature, 0.0))
        prediction = Prediction(*(torch.cat(parts) for parts in zip(*predictions, strict=True)))
        return prediction, Memory(
            kept.feature,
            kept.position,
            kept.valid.to(torch.float32),
            torch.stack(features),
            torch.stack(positions),
            present[:, None].expand(-1, self.patches) * 1.0,
            torch.maximum(memory.camera_seen, present),
            slots,
        )

    def fusion(self, metres_per_unit: Tensor | None) -> Fusion:
        if metres_per_unit is None:
            return Fusion(self.cells)
        scale = metres_per_unit[0]
        return Fusion(self.cells, torch.where(scale > 0, self.metres / scale.clamp_min(1e-12), FAR))


def make_step(network: Point3R, options: step.StepOptions, **own: float) -> Point3RStep:
    return Point3RStep(network, options, **own)
