"""Sparse4Dv3 (Lin et al., "Sparse4D v3: Advancing End-to-End 3D Detection and Tracking", 2023; the
recurrence and the camera encoding of "Sparse4D v2", 2023), under its checkpoints' names.

A fixed number of instances, each a feature and an anchor (a box with velocity), look into all
cameras at once. One block refines the learned instances alone; its best join the best of the frame
before, moved to now; five more blocks let them attend to those of the frame before and to each
other, and refine them again. No dense grid, no suppression of doubles, no tracker: an instance that
is carried over keeps its id.

Frame of all anchors and boxes: the lidar's (nuScenes: x right, y forward, z up), metres. An anchor
is [11]: centre x, y, z; log of length, width, height; sine and cosine of the yaw (counter-clockwise
from lidar x to the length axis, not normalised); velocity over ground x, y, z in m/s.

What the papers do not say, and what the published weights depend on, was found by reading the
authors' outputs; it is named where it happens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.checkpoint import ModelText
from recon4d_ros.networks.sizes import depth_of

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
CENTRE, LOG_SIZE, YAW, VELOCITY = slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 11)
ANCHOR = 11  # numbers
STRIDES = (4, 8, 16, 32)  # of the feature maps, in pixels
FIXED_POINTS = 7
NEAREST = 1e-5  # metres: depths are clamped to it before the division
LONGEST_GAP = 2.0  # seconds: what is older is not carried over
DEFAULT_INTERVAL = 0.5  # seconds: where the interval is not known, or none
DECAY = 0.6  # of a carried instance's confidence, a frame
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, 0..255
BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True)
class Configuration:
    """The published one (ResNet-50, 256x704), but for the sizes, where they differ."""

    backbone_depth: int = 50
    backbone_width: int = 64
    width: int = 256
    hidden: int = 1024
    heads: int = 8  # of the attention, whose width is twice `width`
    groups: int = 8  # of channels that are weighted alike where features are sampled
    learned_points: int = 6
    blocks: int = 6  # of the decoder; the first sees one frame only
    anchors: int = 900
    carried: int = 600

    def __post_init__(self) -> None:
        if self.backbone_depth not in BLOCKS:
            depths = ", ".join(map(str, BLOCKS))
            raise EngineError(f"backbone depth is {self.backbone_depth}: expected one of {depths}")
        if self.width % 8 or self.width % self.groups or 2 * self.width % self.heads:
            raise EngineError(
                f"width is {self.width}: expected a multiple of 8, of the {self.groups} groups and"
                f" of half the {self.heads} heads"
            )
        if not 0 < self.carried < self.anchors or self.blocks < 2:
            raise EngineError(
                f"{self.carried} of {self.anchors} anchors carried by {self.blocks} blocks:"
                " expected fewer carried than there are, and two blocks or more"
            )

    @property
    def points(self) -> int:
        """Key points of a box."""
        return FIXED_POINTS + self.learned_points


def configuration_of(
    shapes: Mapping[str, tuple[int, ...]], model: ModelText | None
) -> Configuration:
    """What a checkpoint asks for, by the shapes of its parameters. Raises EngineError for another
    version of Sparse4D, another backbone, another list of classes."""
    supported = "supported is Sparse4D v3 with a ResNet and nuScenes' ten classes"
    if "head.layers.0.camera_encoder.0.weight" not in shapes:
        raise EngineError(
            f"is of Sparse4D v1 (its sampling does not know the cameras): {supported}"
        )
    if "head.fc_before.weight" not in shapes:
        raise EngineError(f"is of Sparse4D v2 (its attention is not decoupled): {supported}")
    if "img_backbone.layer1.0.conv3.weight" not in shapes:
        raise EngineError(f"its backbone is no ResNet of 50 layers or more: {supported}")
    classes = shapes.get("head.layers.3.cls_layers.6.weight", (len(CLASSES),))[0]
    if classes != len(CLASSES):
        raise EngineError(f"has {classes} classes, whose names are not in the file: {supported}")
    found = tuple(depth_of(shapes, f"img_backbone.layer{stage}") for stage in (1, 2, 3, 4))
    depth = next((depth for depth, blocks in BLOCKS.items() if blocks == found), 0)
    if not depth:
        raise EngineError(f"its backbone has {found} blocks: expected a ResNet-50, -101 or -152")
    anchors, width = shapes.get("head.instance_bank.instance_feature", (900, 256))
    learned = shapes.get("head.layers.0.kps_generator.learnable_fc.bias", (18,))[0] // 3
    weights = shapes.get("head.layers.0.weights_fc.bias", (416,))[0]
    return Configuration(
        backbone_depth=depth,
        backbone_width=shapes["img_backbone.layer1.0.conv3.weight"][1],
        width=width,
        hidden=shapes.get("head.layers.1.layers.0.0.bias", (1024,))[0],
        groups=weights // (len(STRIDES) * (FIXED_POINTS + learned)),
        learned_points=learned,
        blocks=(depth_of(shapes, "head.layers") + 3) // 7,
        anchors=anchors,
        carried=anchors * 2 // 3,
    )


class Options(NamedTuple):
    """Where the published code does what was not meant, or what a vehicle does not want. The
    defaults are what published weights want.

    swap_yaw: sine and cosine change places in anchors that are carried over (the first block after
    it has learned to repair that: weights trained otherwise want False). raw_first_value: in a
    frame without history the values of the attention to history are queries that have not passed
    `fc_before`. kernel_border: points outside an image give nothing, as in the CUDA kernel that the
    weights were trained with; False: those less than half a cell outside give a value that fades,
    as in the authors' code for CPUs. id_score: confidence from which an instance gets an id; 0:
    all get one at once. reset_on_gap: after a gap of more than 2 s nothing of before is looked at;
    False, as published: the attention still is to it, and its confidences count for rows that are
    others now.
    """

    swap_yaw: bool = True
    raw_first_value: bool = True
    kernel_border: bool = True
    id_score: float = 0.0
    reset_on_gap: bool = True


TRAINED = Options()
PUBLISHED = Options(kernel_border=False, reset_on_gap=False)
"""The authors' code on a CPU, to the letter."""


class View(NamedTuple):
    """What instances look into. levels: of each stride the features [N, C, h, w] of N cameras.
    projection [N, 4, 4]: lidar -> pixels of the network's image (the first pixel's centre is 0.5),
    times depth. size [2]: width, height of that image. present [N]: 0 where a camera sees nothing.
    stacked, views: how to look up each point in so many cameras only (look_up_few); empty: in all.
    """

    levels: tuple[Tensor, ...]
    projection: Tensor
    size: Tensor
    present: Tensor
    stacked: tuple[Tensor, ...] = ()
    views: int = 0


class Prediction(NamedTuple):
    """Of M instances. classification [M, 10] and quality [M, 2] (centreness, yawness): logits.
    anchor [M, 11], feature [M, C]."""

    classification: Tensor
    anchor: Tensor
    quality: Tensor
    feature: Tensor


class Detections(NamedTuple):
    """The D best of a frame, best first. box [D, 7]: centre x, y, z, length, width, height in
    metres, yaw in radians. velocity [D, 3] m/s over ground. All in the lidar frame. score [D]:
    class_score [D] (probability of the class) times centreness. label [D]: index into CLASSES. row
    [D]: which instance."""

    box: Tensor
    velocity: Tensor
    score: Tensor
    class_score: Tensor
    label: Tensor
    row: Tensor


class Sparse4D(nn.Module):
    def __init__(self, configuration: Configuration = Configuration()) -> None:
        super().__init__()
        c = self.configuration = configuration
        self.img_backbone = ResNet(BLOCKS[c.backbone_depth], c.backbone_width)
        self.img_neck = FeaturePyramid(self.img_backbone.channels, c.width)
        self.head = Head(c)
        self.depth_branch = nn.ModuleDict(  # for training only, but in every checkpoint
            {"depth_layers": nn.ModuleList(nn.Conv2d(c.width, 1, 1) for _ in STRIDES[:3])}
        )

    def lower_precision(self, dtype: torch.dtype) -> Sparse4D:
        """Backbone and pyramid in bfloat16 or float16; everything that knows of metres stays in
        float32."""
        self.img_backbone.to(dtype)
        self.img_neck.to(dtype)
        return self

    def stand_in(self) -> None:
        """Stand-in weights (stand_in.py) as far as they have to make sense: anchors of car size
        all around within 40 m, the published key points, and refinements so small that boxes stay
        boxes."""
        c, bank = self.configuration, self.head.instance_bank
        noise = torch.rand(c.anchors, 4, generator=torch.Generator().manual_seed(c.anchors))
        anchor = torch.zeros(c.anchors, ANCHOR)
        anchor[:, CENTRE] = (noise[:, :3] - 0.5) * torch.tensor([80.0, 80.0, 2.0])
        anchor[:, LOG_SIZE] = torch.tensor([4.6, 1.9, 1.7]).log()
        anchor[:, 6], anchor[:, 7] = (2 * math.pi * noise[:, 3]).sin(), (noise[:, 3] * 6.283).cos()
        bank.anchor.data = anchor
        for module in self.modules():
            if isinstance(module, KeyPoints) and len(module.fix_scale) == FIXED_POINTS:
                axes = 0.45 * torch.eye(3)
                pairs = torch.stack([axes, -axes], 1).flatten(0, 1)
                module.fix_scale.data = torch.cat([torch.zeros(1, 3), pairs])
            elif isinstance(module, Scale):
                module.scale.data = module.scale.data * 0.05

    def look(self, images: Tensor) -> tuple[Tensor, ...]:
        """images [N, 3, h, w], RGB in 0..255, h and w multiples of 32 -> features of four strides,
        [N, width, h / stride, w / stride] float32."""
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (MEAN, STD))
        x = ((images - mean) / std).to(self.img_backbone.conv1.weight.dtype)
        return tuple(level.float() for level in self.img_neck(self.img_backbone(x)))


def build(configuration: Configuration) -> Sparse4D:
    return Sparse4D(configuration)


# --- images -> features ---


class ResNet(nn.Module):
    """ResNet with bottlenecks (He et al., CVPR 2016), stride in the 3x3 convolution; all four
    stages."""

    def __init__(self, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        self.channels = tuple(4 * width << stage for stage in range(4))
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage, count in enumerate(blocks):
            inner, stride = width << stage, 1 if stage == 0 else 2
            layers: list[nn.Module] = []
            for i in range(count):
                layers.append(Bottleneck(before, inner, stride if i == 0 else 1))
                before = 4 * inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        stages = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            stages.append(x)
        return stages


class Bottleneck(nn.Module):
    def __init__(self, before: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != 4 * inner:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class FeaturePyramid(nn.Module):
    """Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017: from coarse to fine,
    each level joins what the coarser one has seen."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(Conv(before, width, 1) for before in channels)
        self.fpn_convs = nn.ModuleList(Conv(width, width, 3) for _ in channels)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        levels = [conv(x) for conv, x in zip(self.lateral_convs, stages, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], scale_factor=2, mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]


class Conv(nn.Module):
    def __init__(self, before: int, after: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, 1, size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


# --- the decoder ---


class Head(nn.Module):
    """39 layers in one list, as the checkpoint has them: deformable, ffn, norm, refine, and then
    five times temporal attention, attention, norm, deformable, ffn, norm, refine."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.blocks = c.blocks
        self.instance_bank = InstanceBank(c)
        self.anchor_encoder = AnchorEncoder(c.width)
        layers: list[nn.Module] = []
        for block in range(c.blocks):
            if block:
                layers += [Attention(2 * c.width, c.heads) for _ in range(2)]
                layers.append(nn.LayerNorm(c.width))
            layers += [Deformable(c), FeedForward(c), nn.LayerNorm(c.width), Refinement(c)]
        self.layers = nn.ModuleList(layers)
        self.fc_before = nn.Linear(c.width, 2 * c.width, bias=False)
        self.fc_after = nn.Linear(2 * c.width, c.width, bias=False)

    def single_frame(
        self, view: View, interval: Tensor, options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The learned instances refined once: feature [M, C], anchor [M, 11], and the logits of
        their classes [M, 10]. interval [1]: seconds that a change of place is divided by for a
        change of velocity."""
        deformable, ffn, norm, _ = self.layers[:4]
        x, a = self.instance_bank.instance_feature, self.instance_bank.anchor
        e = self.anchor_encoder(a)
        x = norm(ffn(deformable(x, a, e, view, options.kernel_border)))
        return x, self.refinement(0)(x, a, e, interval), self.refinement(0).classify(x)

    def attend_to_history(
        self, block: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Of block 1 and on: query [M, 2C], key and value [K, 2C] -> x [M, C]. mask [K]: added to
        the logits."""
        return self.fc_after(query + self.layers[7 * block - 3](query, key, value, mask))

    def refine(
        self, block: int, x: Tensor, a: Tensor, e: Tensor, view: View, interval: Tensor, o: Options
    ) -> tuple[Tensor, Tensor]:
        """The rest of block 1 and on: x, a. The residual of the attention is its query, 512 wide,
        inside fc_after: there is none on x itself, and no norm after temporal attention."""
        attention, norm, deformable, ffn, norm_2, refine = self.layers[7 * block - 2 :][:6]
        query = torch.cat([x, e], 1)
        x = norm(self.fc_after(query + attention(query, query, self.fc_before(x))))
        x = norm_2(ffn(deformable(x, a, e, view, o.kernel_border)))
        return x, refine(x, a, e, interval)

    def judge(self, x: Tensor, a: Tensor, e: Tensor) -> Prediction:
        """What comes out at the end. e: the embedding that the last refinement was given."""
        last = self.refinement(self.blocks - 1)
        return Prediction(last.classify(x), a, last.quality_layers(x + e), x)

    def refinement(self, block: int) -> Refinement:
        layer = self.layers[7 * block + 3]
        assert isinstance(layer, Refinement)
        return layer


class InstanceBank(nn.Module):
    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(c.anchors, ANCHOR))
        self.instance_feature = nn.Parameter(torch.zeros(c.anchors, c.width))
        self.anchor_handler = KeyPoints(c.width, 0, 1)  # in every checkpoint; nothing reads it


class AnchorEncoder(nn.Module):
    """Anchors [M, 11] as they are (metres, logs) -> embedding [M, C]: the parts side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_fc = _mlp(3, width // 2, 4, 1)
        self.size_fc = _mlp(3, width // 8, 4, 1)
        self.yaw_fc = _mlp(2, width // 8, 4, 1)
        self.vel_fc = _mlp(3, width // 4, 4, 1)

    def forward(self, a: Tensor) -> Tensor:
        parts = (self.pos_fc, CENTRE), (self.size_fc, LOG_SIZE), (self.yaw_fc, YAW)
        return torch.cat([fc(a[:, part]) for fc, part in (*parts, (self.vel_fc, VELOCITY))], 1)


class Attention(nn.Module):
    """Multi-head attention without residual: query [M, C], key, value [K, C] -> [M, C]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = Projections(channels)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        q, k, v = (self.part(i, x) for i, x in enumerate((query, key, value)))
        if mask is not None:
            mask = mask.expand(1, 1, len(query), -1)
        x = F.scaled_dot_product_attention(q, k, v, mask)
        return self.attn.out_proj(x[0].transpose(0, 1).flatten(1))

    def part(self, index: int, x: Tensor) -> Tensor:
        """Queries, keys or values (0, 1, 2): [M, C] -> [1, heads, M, C / heads]."""
        rows = slice(index * x.shape[1], (index + 1) * x.shape[1])
        y = F.linear(x, self.attn.in_proj_weight[rows], self.attn.in_proj_bias[rows])
        return y.unflatten(1, (self.heads, -1)).transpose(0, 1)[None]


class Projections(nn.Module):
    """Of queries, keys and values in one matrix, and of what comes out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)


class KeyPoints(nn.Module):
    """Points in a box, those at fixed places in it and those that the feature chooses."""

    def __init__(self, width: int, learned: int, fixed: int = FIXED_POINTS) -> None:
        super().__init__()
        self.fix_scale = nn.Parameter(torch.zeros(fixed, 3), requires_grad=False)
        if learned:
            self.learnable_fc = nn.Linear(width, 3 * learned)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """-> [P, 3, M] in metres, in the lidar frame."""
        chosen = self.learnable_fc(x).sigmoid().t().unflatten(0, (-1, 3)) - 0.5
        part = torch.cat([self.fix_scale[:, :, None].expand(-1, -1, len(x)), chosen])
        px, py, pz = (part * a[:, LOG_SIZE].exp().t()).unbind(1)
        sine, cosine = a[:, 6], a[:, 7]  # as they are, not normalised
        turned = torch.stack([cosine * px - sine * py, sine * px + cosine * py, pz], 1)
        return turned + a[:, CENTRE].t()


class Deformable(nn.Module):
    """Deformable aggregation: key points of each box are looked up in every camera and level, and
    summed by weights. Gives [M, 2C]: what was seen, and x."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.groups, self.points = c.groups, c.points
        self.kps_generator = KeyPoints(c.width, c.learned_points)
        self.output_proj = nn.Linear(c.width, c.width)
        self.camera_encoder = _mlp(12, c.width, 2, 1)
        self.weights_fc = nn.Linear(c.width, c.groups * len(STRIDES) * c.points)

    def forward(self, x: Tensor, a: Tensor, e: Tensor, view: View, kernel_border: bool) -> Tensor:
        place = self.project(self.kps_generator(x, a), view)
        weight = self.weights(x + e, view)
        # half a cell of the coarsest level, in parts of the image
        margin = 0.0 if kernel_border else STRIDES[-1] / 2 / view.size[:, None, None]
        inside = ((place > -margin) & (place < 1 + margin)).all(1)
        if kernel_border:
            weight = weight * inside[:, None, :, None]
        if view.stacked:
            seen = look_up_few(view, place, weight, inside)
        else:
            seen = look_up(view.levels, [place] * len(view.levels), weight)
        return torch.cat([self.output_proj(seen), x], 1)

    def project(self, points: Tensor, view: View) -> Tensor:
        """[P, 3, M] in the lidar frame -> [N, 2, P, M] in images whose sides are 0 and 1."""
        turn, shift = view.projection[:, None, :3, :3], view.projection[:, None, :3, 3:]
        x, y, depth = (torch.matmul(turn, points) + shift).unbind(2)
        place = torch.stack([x, y], 1) / depth.clamp_min(NEAREST)[:, None]
        # what is farther out than any cell reaches is all the same, and a number that fits
        return (place / view.size[:, None, None]).clamp(-1, 2)

    def weights(self, u: Tensor, view: View) -> Tensor:
        """u [M, C] -> [N, levels, P, G, M]. The softmax is over cameras, levels and points, also
        over cameras that do not see the point: what is seen need not sum to 1. A camera that is not
        there is one that sees no point."""
        cameras = self.camera_encoder(view.projection[:, :3].flatten(1))
        # the layer is linear: of the sum u + camera it is the sum of both
        of_cameras = F.linear(cameras, self.weights_fc.weight)
        logits = of_cameras[:, :, None] + self.weights_fc(u).t()  # [N, levels * P * G, M]
        n, m = len(cameras), len(u)
        weight = logits.reshape(-1, self.groups * m).softmax(0)
        weight = weight.view(n, len(STRIDES), self.points, self.groups, m)
        return weight * view.present[:, None, None, None, None]


def look_up(levels: Sequence[Tensor], places: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Features of each level [N, C, h, w] at its places [N, 2, P, M] (sides 0 and 1), bilinear,
    nothing outside; times weight [N, levels, P, G, M], of the G groups of channels; summed over
    cameras, levels and points -> [M, C]."""
    seen = []
    n, _, _, groups, _ = weight.shape
    for i, (level, place) in enumerate(zip(levels, places, strict=True)):
        grid = (2 * place.permute(0, 2, 3, 1) - 1)[:, None].expand(-1, groups, -1, -1, -1)
        # groups as a batch: 32 channels at a time stay in a processor's cache
        found = F.grid_sample(
            level.view(n * groups, -1, *level.shape[2:]),
            grid.flatten(0, 1),
            padding_mode="zeros",
            align_corners=False,
        )
        of_groups = weight[:, i].transpose(1, 2)[:, :, None]  # [N, G, 1, P, M]
        found = found.unflatten(0, (n, groups)) * of_groups
        seen.append(found.sum((0, 3)).flatten(0, 1))
    return torch.stack(seen).sum(0).t()


def stack(levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each level's cameras [N, C, h, w] one above the other, [1, C, N (h + 1), w], with a row of
    zeros above each."""
    rows = (F.pad(level, (0, 0, 1, 0)).transpose(0, 1) for level in levels)
    return tuple(level.flatten(1, 2)[None] for level in rows)


def look_up_few(view: View, place: Tensor, weight: Tensor, inside: Tensor) -> Tensor:
    """look_up, but of each point only in the first `view.views` of the cameras that see it: most
    points are in one image, few in two. place [N, 2, P, M], weight [N, levels, P, G, M], inside [N,
    P, M] bool."""
    n = len(inside)
    seen = inside.to(torch.float32)
    order = seen.cumsum(0) * seen  # 1: the first camera that sees it, ...; 0: does not
    chosen = [(order == k).to(torch.float32) for k in range(1, view.views + 1)]
    number = torch.arange(float(n), device=seen.device)[:, None, None]
    camera = torch.cat([(one * number).sum(0) for one in chosen])  # [K P, M]
    outside = torch.cat([1 - one.sum(0) for one in chosen])
    u, v = torch.cat([(one[:, None] * place).sum(0) for one in chosen], 1) - 2 * outside
    few = torch.cat([(one[:, None, :, None] * weight).sum(0) for one in chosen], 1)[None]
    places = []
    for level in view.levels:
        height = level.shape[2]
        row = (camera * (height + 1) + 1 + v * height) / (n * (height + 1))
        places.append(torch.stack([u, row])[None])
    return look_up(view.stacked, places, few)


class FeedForward(nn.Module):
    """[M, 2C] -> [M, C]. What goes past the two layers is the normalised input, not the input."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(2 * c.width)
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(2 * c.width, c.hidden), nn.ReLU()),
            nn.Linear(c.hidden, c.width),
        )
        self.identity_fc = nn.Linear(2 * c.width, c.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_norm(x)
        return self.identity_fc(x) + self.layers(x)


class Refinement(nn.Module):
    """Box, class and quality. The class is judged by the feature alone, the rest by x + e."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        w = c.width
        self.layers = nn.Sequential(*_mlp(w, w, 4, 2), nn.Linear(w, ANCHOR), Scale(ANCHOR))
        self.cls_layers = nn.Sequential(*_mlp(w, w, 2, 1), nn.Linear(w, len(CLASSES)))
        self.quality_layers = nn.Sequential(*_mlp(w, w, 2, 1), nn.Linear(w, 2))

    def forward(self, x: Tensor, a: Tensor, e: Tensor, interval: Tensor) -> Tensor:
        """-> anchor [M, 11]. Velocities change by what is found over the interval, in seconds."""
        delta = self.layers(x + e)
        return torch.cat(
            [a[:, :8] + delta[:, :8], a[:, VELOCITY] + delta[:, VELOCITY] / interval], 1
        )

    def classify(self, x: Tensor) -> Tensor:
        return self.cls_layers(x)


class Scale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _mlp(before: int, width: int, layers: int, each: int) -> nn.Sequential:
    """Linear and ReLU `layers` times, a LayerNorm after every `each` of them."""
    parts: list[nn.Module] = []
    for i in range(1, layers + 1):
        parts += [nn.Linear(before, width), nn.ReLU()]
        parts += [nn.LayerNorm(width)] * (i % each == 0)
        before = width
    return nn.Sequential(*parts)


# --- from frame to frame ---


def interval_of(seconds: Tensor) -> Tensor:
    """Seconds since the frame before [1] -> those that velocities are computed with."""
    known = (seconds != 0) & (seconds.abs() <= LONGEST_GAP)
    return torch.where(known, seconds, DEFAULT_INTERVAL)


def move(anchor: Tensor, T_now_then: Tensor, seconds: Tensor, swap_yaw: bool) -> Tensor:
    """Anchors [K, 11] of a frame before as the lidar of now sees them: they have gone on with their
    velocity, and it has moved by T_now_then [4, 4]."""
    turn, shift = T_now_then[:3, :3], T_now_then[:3, 3]
    centre = (anchor[:, CENTRE] + anchor[:, VELOCITY] * seconds) @ turn.t() + shift
    sine, cosine = anchor[:, 6:7], anchor[:, 7:8]
    turned_cosine = turn[0, 0] * cosine + turn[0, 1] * sine
    turned_sine = turn[1, 0] * cosine + turn[1, 1] * sine
    yaw = [turned_cosine, turned_sine] if swap_yaw else [turned_sine, turned_cosine]
    return torch.cat([centre, anchor[:, LOG_SIZE], *yaw, anchor[:, VELOCITY] @ turn.t()], 1)


def detect(p: Prediction, count: int) -> Detections:
    """The `count` instances with the best class, in the order of class score times centreness."""
    best, label = p.classification.sigmoid().max(1)
    class_score, row = best.topk(min(count, len(best)))
    score, order = (class_score * p.quality[row, 0].sigmoid()).sort(descending=True)
    row = row[order]
    a = p.anchor[row]
    yaw = torch.atan2(a[:, 6], a[:, 7])
    box = torch.cat([a[:, CENTRE], a[:, LOG_SIZE].exp(), yaw[:, None]], 1)
    return Detections(box, a[:, VELOCITY], score, class_score[order], label[row], row)


class Carried(NamedTuple):
    """The C best instances of a frame, best first: feature [C, width], anchor [C, 11] in the lidar
    frame of then, confidence [C] and id [C] int64 (-1: none)."""

    feature: Tensor
    anchor: Tensor
    confidence: Tensor
    id: Tensor


class Stream:
    """Sparse4Dv3 frame by frame, plainly: what sparse4d_step.py does as one static graph is held
    against it. Not for vehicles: it branches, and its shapes depend on what it sees."""

    def __init__(self, network: Sparse4D, options: Options = TRAINED) -> None:
        self.network, self.options = network, options
        self.carried: Carried | None = None
        self.T_global = torch.eye(4, dtype=torch.float64)
        self.timestamp = 0.0
        self.next_id = 0

    def __call__(self, view: View, timestamp: float, T_global: Tensor) -> tuple[Prediction, Tensor]:
        """timestamp: seconds. T_global [4, 4] float64: lidar -> a frame that stands still. Gives
        the instances and the id of each, [M] int64. Rows: those that were carried over, in their
        order, then the best of the single frame; in a frame without history in the anchors'
        order."""
        head, c, o = self.network.head, self.network.configuration, self.options
        gap = timestamp - self.timestamp
        if o.reset_on_gap and abs(gap) > LONGEST_GAP:
            self.carried = None
        then = self.carried
        seconds = torch.tensor([gap if then else 0.0], dtype=torch.float32)
        interval = interval_of(seconds)
        moved = torch.zeros(0, ANCHOR)
        if then:
            T_now_then = (T_global.inverse() @ self.T_global).float()
            moved = move(then.anchor, T_now_then, seconds, o.swap_yaw)

        x, a, logits = head.single_frame(view, interval, o)
        ids = torch.full((c.anchors,), -1)
        if then and abs(gap) <= LONGEST_GAP:
            best = logits.max(1).values.topk(c.anchors - c.carried).indices
            x, a = torch.cat([then.feature, x[best]]), torch.cat([moved, a[best]])
            ids[: c.carried] = then.id
        e = head.anchor_encoder(a)
        history = head.anchor_encoder(moved)
        for block in range(1, c.blocks):
            query = torch.cat([x, e], 1)
            if then:
                key = torch.cat([then.feature, history], 1)
                x = head.attend_to_history(block, query, key, head.fc_before(then.feature))
            else:
                value = query if o.raw_first_value else head.fc_before(x)
                x = head.attend_to_history(block, query, query, value)
            x, a = head.refine(block, x, a, e, view, interval, o)
            last = e
            e = head.anchor_encoder(a)
            history = e[: c.carried]
        prediction = head.judge(x, a, last)

        confidence = prediction.classification.max(1).values.sigmoid()
        kept = confidence.clone()
        if then:
            kept[: c.carried] = torch.maximum(kept[: c.carried], DECAY * then.confidence)
        new = (ids < 0) & (confidence >= o.id_score)
        ids[new] = self.next_id + torch.arange(int(new.sum()))
        self.next_id += int(new.sum())
        kept, order = kept.topk(c.carried)
        self.carried = Carried(x[order], a[order], kept, ids[order])
        self.T_global, self.timestamp = T_global, timestamp
        return prediction, ids
