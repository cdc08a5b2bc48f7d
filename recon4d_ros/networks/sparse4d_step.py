"""Sparse4Dv3 as an engine's step: the cameras' uint8 images in, boxes with class, velocity and id
out; the instances that are carried over are the memory.

One static graph of ordinary operators. What the authors' code branches on (is there a history, is
it too old) selects between rows here; their custom kernel is grid_sample and weighted sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.cameras.calibration import overlap
from recon4d_ros.errors import EngineError
from recon4d_ros.networks import step
from recon4d_ros.networks.attention import OUT_OF_SIGHT
from recon4d_ros.networks.sparse4d import (
    ANCHOR,
    CLASSES,
    DECAY,
    LONGEST_GAP,
    MEAN,
    STRIDES,
    Detections,
    Options,
    Prediction,
    Sparse4D,
    View,
    detect,
    interval_of,
    move,
    stack,
)
from recon4d_ros.networks.working_image import as_rgb, working_images
from recon4d_ros.types import Calibration

ID_BASE = float(1 << 20)
"""An id is two float32 digits, each a whole number below this that float32 holds exactly: 2^40 ids
are years of driving, where one float32 would end after 93 minutes at 10 Hz."""


class Memory(NamedTuple):
    """All float32, all zeros at first. The C instances of the frame before, best first:
    instance_feature [C, width], instance_anchor [C, 11] in the lidar frame of then,
    instance_confidence [C], instance_id [C, 2] (high and low digit; low is -1 where there is none).
    next_id [2]: digits of the next new id. started [1]: 1 once there is a frame before."""

    instance_feature: Tensor
    instance_anchor: Tensor
    instance_confidence: Tensor
    instance_id: Tensor
    next_id: Tensor
    started: Tensor


class Sparse4DStep(nn.Module):
    """See networks/step.py; its outputs are not maps but D objects, best first.

    boxes [D, 7]: centre x, y, z, length, width, height in metres, yaw in radians; velocity [D, 3]
    m/s over ground; both in the lidar frame of now. scores [D]: class_scores [D] times centreness.
    labels [D]: index into `classes`. ids [D, 2]: high and low digit to ID_BASE, low -1 where there
    is none. All float32.

    swap_yaw, raw_first_value, kernel_border, id_score, reset_on_gap: see sparse4d.Options (1 or 0;
    id_score is a confidence). views: in how many cameras a point is looked up at most, of those
    that see it; 0: in all; as many as overlap at any place of the rig change nothing but the time.
    detections: D. lidar_x, lidar_y, lidar_z (metres), lidar_yaw
    (degrees): where the frame of the boxes is in base_link, for the host; the default is nuScenes'
    car, whose base_link is on the ground below the rear axle, and whose lidar looks to the left of
    its x axis.
    """

    config = "objects"
    outputs = ("boxes", "velocity", "scores", "class_scores", "labels", "ids")
    extra_outputs: tuple[str, ...] = ()

    def __init__(
        self,
        network: Sparse4D,
        options: step.StepOptions,
        swap_yaw: float = 1,
        raw_first_value: float = 1,
        kernel_border: float = 1,
        id_score: float = 0,
        reset_on_gap: float = 1,
        views: float = 2,
        detections: float = 300,
        lidar_x: float = 0.943713,
        lidar_y: float = 0.0,
        lidar_z: float = 1.84023,
        lidar_yaw: float = -90.0,
    ) -> None:
        super().__init__()
        self.network, self.options = network, options
        height, width = options.working_size
        if height % STRIDES[-1] or width % STRIDES[-1]:
            raise EngineError(
                f"size {height}x{width}: sparse4d takes multiples of {STRIDES[-1]} pixels in height"
                " and width"
            )
        switches = {
            "swap_yaw": swap_yaw,
            "raw_first_value": raw_first_value,
            "kernel_border": kernel_border,
            "reset_on_gap": reset_on_gap,
        }
        for name, value in switches.items():
            if value not in (0, 1):
                raise EngineError(f"{name} is {value}: expected 1 or 0")
        if not 0 <= id_score < 1:
            raise EngineError(f"id_score is {id_score}: expected a confidence, 0 to below 1")
        for name, value, least in (("detections", detections, 1), ("views", views, 0)):
            if value != int(value) or value < least:
                raise EngineError(f"{name} is {value}: expected a whole number from {least}")
        self.views = int(views)
        self.own = Options(**{k: bool(v) for k, v in switches.items()}, id_score=id_score)
        self.detections = min(int(detections), network.configuration.anchors)
        lidar = {"x": lidar_x, "y": lidar_y, "z": lidar_z, "yaw": lidar_yaw}
        self.described = {
            **{name: int(value) for name, value in switches.items()},
            "id_score": id_score,
            "views": self.views,
            "detections": self.detections,
            **{f"lidar_{name}": float(value) for name, value in lidar.items()},
            "classes": list(CLASSES),
            "id_base": int(ID_BASE),
            "longest_gap": LONGEST_GAP,
            "trained_cameras": 6,
        }
        """What engine.yaml says of it beside the memory."""

    def frame_inputs(self) -> step.Signature:
        every = step.frame_inputs(self.options)
        names = ("images", "present", "grid", "projection", "lidar_motion", "seconds")
        return {name: every[name] for name in names}

    def memory_shapes(self) -> Mapping[str, tuple[int, ...]]:
        c = self.network.configuration
        n = c.carried
        shapes: tuple[tuple[int, ...], ...] = ((n, c.width), (n, ANCHOR), (n,), (n, 2), (2,), (1,))
        return dict(zip(Memory._fields, shapes, strict=True))

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        grid: Tensor,
        projection: Tensor,
        lidar_motion: Tensor,
        seconds: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, ...]:
        x, covered = working_images(images, grid)
        nothing = torch.tensor(MEAN, device=x.device)[:, None, None]  # zeros to the network
        x = torch.where(covered[:, None], as_rgb(x), nothing)
        height, width = self.options.working_size
        size = torch.tensor([width, height], dtype=torch.float32, device=x.device)
        levels = self.network.look(x)
        few = 0 < self.views < self.options.cameras
        stacked = stack(levels) if few else ()
        view = View(levels, projection, size, present, stacked, self.views)
        detections, ids, new = self.advance(view, lidar_motion, seconds, Memory(*memory))
        d = detections
        label = d.label.to(torch.float32)
        return (d.box, d.velocity, d.score, d.class_score, label, ids[d.row], *new)

    def advance(
        self, view: View, T_now_then: Tensor, seconds: Tensor, memory: Memory
    ) -> tuple[Detections, Tensor, Memory]:
        """The detections, the ids of all instances [M, 2], and the memory after them."""
        prediction, ids, memory = self.instances(view, T_now_then, seconds, memory)
        return detect(prediction, self.detections), ids, memory

    def instances(
        self, view: View, T_now_then: Tensor, seconds: Tensor, memory: Memory
    ) -> tuple[Prediction, Tensor, Memory]:
        """All M instances: sparse4d.Stream as one static graph."""
        head, c, o = self.network.head, self.network.configuration, self.own
        fresh = c.anchors - c.carried
        started = memory.started > 0.5
        carries = started & (seconds.abs() <= LONGEST_GAP)  # the rows of the frame before go on
        recalls = carries if o.reset_on_gap else started  # they are attended to
        seconds = torch.where(recalls, seconds, 0.0)
        interval = interval_of(seconds)
        moved = move(memory.instance_anchor, T_now_then, seconds, o.swap_yaw)

        x, a, logits = head.single_frame(view, interval, o)
        best = logits.amax(1).topk(fresh).indices
        x = torch.where(carries, torch.cat([memory.instance_feature, x[best]]), x)
        a = torch.where(carries, torch.cat([moved, a[best]]), a)
        none = torch.tensor([0.0, -1.0], device=x.device)
        ids = torch.where(carries, _fill(memory.instance_id, fresh), none)
        low = torch.where(carries, F.pad(memory.instance_id[:, 1], (0, fresh), value=-1.0), -1.0)

        # keys: those of the frame before and, to fill the rows, what nobody sees; or all of now
        e = head.anchor_encoder(a)
        feature = _fill(memory.instance_feature, fresh)
        value = _fill(head.fc_before(memory.instance_feature), fresh)
        filling = torch.arange(c.anchors, device=x.device) >= c.carried
        mask = torch.where(recalls & filling, OUT_OF_SIGHT, 0.0)
        history = e
        if not o.reset_on_gap:
            history = torch.where(recalls, _fill(head.anchor_encoder(moved), fresh), e)
        last = e
        for block in range(1, c.blocks):
            query = torch.cat([x, e], 1)
            key = torch.cat([torch.where(recalls, feature, x), history], 1)
            plain = query if o.raw_first_value else head.fc_before(x)
            x = head.attend_to_history(block, query, key, torch.where(recalls, value, plain), mask)
            x, a = head.refine(block, x, a, e, view, interval, o)
            last = e
            if block + 1 < c.blocks:
                e = history = head.anchor_encoder(a)
        prediction = head.judge(x, a, last)

        confidence = prediction.classification.amax(1).sigmoid()
        decayed = F.pad(DECAY * memory.instance_confidence, (0, fresh))
        kept = torch.where(recalls, torch.maximum(confidence, decayed), confidence)
        new = (low < 0) & (confidence >= o.id_score)
        count = new.to(torch.float32).cumsum(0)
        ids = torch.where(new[:, None], _carry(memory.next_id, count - 1), ids)
        next_id = _carry(memory.next_id, count[-1:])[0]
        kept, order = kept.topk(c.carried)
        begun = memory.started.clamp_min(1.0)
        return prediction, ids, Memory(x[order], a[order], kept, ids[order], next_id, begun)


def _fill(rows: Tensor, count: int) -> Tensor:
    """[C, ...] -> [C + count, ...], with zeros."""
    return F.pad(rows, (0, 0, 0, count))


def _carry(number: Tensor, add: Tensor) -> Tensor:
    """number [2] (high and low digit) plus each of add [K] (below ID_BASE) -> [K, 2]."""
    low = number[1] + add
    over = (low >= ID_BASE).to(torch.float32)
    return torch.stack([number[0] + over, low - over * ID_BASE], 1)


def id_of(digits: Tensor) -> Tensor:
    """[..., 2] -> int64, -1 where there is none."""
    high, low = digits[..., 0].to(torch.int64), digits[..., 1].to(torch.int64)
    return torch.where(low < 0, -1, high * int(ID_BASE) + low)


def make_step(network: Sparse4D, options: step.StepOptions, **own: float) -> Sparse4DStep:
    return Sparse4DStep(network, options, **own)


def options_for(network: Sparse4D, calibration: Calibration, own: Mapping[str, float]) -> dict:
    """The step's options that follow from a rig: each point is looked up in as many cameras as see
    the same place."""
    return {"views": max(1, overlap(calibration))}
