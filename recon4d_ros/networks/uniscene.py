"""UniScene (Min et al., "Multi-Camera Unified Pre-training via 3D Scene Reconstruction", RA-L 2024,
arXiv 2305.18829; earlier Occ-BEV), under its checkpoints' names.

A ResNet with deformable convolutions and a feature pyramid see every camera's image. Queries, one a
cell of a bird's-eye-view grid, look at what the grid held before (temporal self-attention) and at
the images where their cell's pillar falls (spatial cross-attention): BEVFormer's encoder (Li et
al., ECCV 2022, section 3). Of the grid's features an occupancy head makes voxels, occupied or free
(the pre-training), or a DETR-like head boxes with classes (the detector that is fine-tuned from the
pre-trained encoder). A checkpoint is of one kind or of the other.

How the authors' code differs from the paper, and these two encoders from each other, is said where
it happens. What depends on the rig and on the car's motion comes as tables (../bev.py); how the
memory lives on is uniscene_step.py's matter.

Shapes: N cameras; Q = rows * columns cells; C = 256 channels (published), in HEADS heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.bev import CAN_BUS, HEIGHTS, BevGrid
from recon4d_ros.errors import EngineError
from recon4d_ros.networks.checkpoint import ModelText
from recon4d_ros.networks.resnet import BasicBlock
from recon4d_ros.networks.sizes import depth_of

HEADS = 8
LEVELS = 4  # of the feature pyramid, at strides 8, 16, 32 and 64
TEMPORAL_POINTS, SPATIAL_POINTS, BOX_POINTS = (
    4,
    8,
    4,
)  # that a head samples (spatial: of each level)
VOLUME_WIDTH = 32  # channels of the occupancy head
BOX = 10  # numbers of a box: cx, cy, log w, log l, cz, log h, sin yaw, cos yaw, vx, vy
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
MEAN = (103.530, 116.280, 123.675)  # of blue, green, red; the deviation is 1
KINDS = ("occupancy", "detection")
PUBLISHED, MENDED = GEOMETRIES = ("published", "mended")
HEAD = "pts_bbox_head"


@dataclass(frozen=True)
class Configuration:
    """The published one, but for the sizes that a checkpoint's parameters tell.

    kind: of the head, `occupancy` or `detection`. depth: of the ResNet (18: without deformable
    convolutions; not published). width: channels of everything after the backbone. rows, columns:
    of the grid (rows along y). cameras: that have an embedding of their own, by their order.
    queries, decoders, classes: detection only; levels_z: voxels of the volume's height, occupancy
    only.

    What no parameter tells; `recon4d train` writes it beside them (`text`). reach, bottom, top:
    metres; the grid's range is [-reach, reach]^2 x [bottom, top]. geometry: `published`, or
    `mended`: the grid lies in base_link for both kinds (the published detector's lies in the
    lidar's frame, a quarter of a turn from the one it was pre-trained in), only the history is
    shifted, along the car's path, the voxels lie around base_link, and a box's yaw is its heading
    counter-clockwise from x.
    """

    kind: str = "occupancy"
    depth: int = 101
    width: int = 256
    rows: int = 200
    columns: int = 200
    cameras: int = 6
    encoders: int = 6
    decoders: int = 6
    queries: int = 900
    classes: int = 10
    levels_z: int = 16
    reach: float = 51.2
    bottom: float = -5.0
    top: float = 3.0
    geometry: str = PUBLISHED

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EngineError(f"kind {self.kind!r} is not known: expected {' or '.join(KINDS)}")
        if self.depth not in BLOCKS:
            raise EngineError(f"ResNet-{self.depth} is not known: expected 18, 50 or 101")
        if self.geometry not in GEOMETRIES:
            raise EngineError(
                f"geometry {self.geometry!r} is not known: expected {' or '.join(GEOMETRIES)}"
            )
        if not (self.width >= HEADS and self.width % HEADS == 0):
            raise EngineError(f"width {self.width}: expected a multiple of {HEADS}")
        if not (self.levels_z >= 1 and self.width % self.levels_z == 0):
            raise EngineError(
                f"{self.levels_z} voxels of height: expected a number that divides {self.width}"
            )
        if not (0 < self.reach < math.inf and -math.inf < self.bottom < self.top < math.inf):
            raise EngineError(
                f"range {self.reach:g} m, {self.bottom:g} to {self.top:g} m: expected a volume"
            )

    @property
    def grid(self) -> BevGrid:
        """In base_link, or in the lidar's frame (`in_lidar`)."""
        return BevGrid(
            self.rows,
            self.columns,
            (-self.reach, -self.reach, self.bottom),
            (self.reach, self.reach, self.top),
        )

    @property
    def in_lidar(self) -> bool:
        """Whether the grid lies in the lidar's frame (x right, y forward): the published detector's
        does."""
        return self.kind == "detection" and self.geometry == PUBLISHED

    @property
    def text(self) -> str:
        """A model string (checkpoint.ModelText) of what no parameter tells."""
        return (
            f"UniScene(reach={self.reach!r}, bottom={self.bottom!r}, top={self.top!r},"
            f" geometry={self.geometry!r})"
        )


def configuration_of(
    shapes: Mapping[str, tuple[int, ...]], model: ModelText | None
) -> Configuration:
    """What a checkpoint asks for, from the shapes of its parameters. Raises EngineError."""
    transformer = f"{HEAD}.transformer"
    blocks = tuple(depth_of(shapes, f"img_backbone.layer{stage}") for stage in (1, 2, 3, 4))
    depth = next((depth for depth, known in BLOCKS.items() if known == blocks), None)
    if depth is None:
        raise EngineError(
            f"a backbone of {blocks} blocks is not known: expected ResNet-50 or -101 (or -18)"
        )
    if depth > 18 and "img_backbone.layer3.0.conv2.conv_offset.weight" not in shapes:
        raise EngineError(
            "its backbone has no deformable convolutions in stage 3 (BEVFormer-tiny and -small?):"
            " expected those of stages 3 and 4"
        )

    def first(name: str, default: int) -> int:
        return (shapes.get(name) or (default,))[0]

    detection = f"{HEAD}.query_embedding.weight" in shapes
    embeddings = f"{HEAD}.positional_encoding"
    found: dict[str, Any] = {
        "width": (*shapes.get(f"{HEAD}.bev_embedding.weight", ()), 0, 0)[1] or Configuration.width,
        "rows": first(f"{embeddings}.row_embed.weight", Configuration.rows),
        "columns": first(f"{embeddings}.col_embed.weight", Configuration.columns),
        "cameras": first(f"{transformer}.cams_embeds", Configuration.cameras),
        "encoders": depth_of(shapes, f"{transformer}.encoder.layers"),
    }
    if detection:
        found |= {
            "decoders": depth_of(shapes, f"{transformer}.decoder.layers"),
            "queries": first(f"{HEAD}.query_embedding.weight", Configuration.queries),
            "classes": first(f"{HEAD}.cls_branches.0.6.weight", Configuration.classes),
        }
    else:
        volume = shapes.get(f"{transformer}.decoder.0.conv.weight", ())
        if len(volume) == 5 and volume[1] and found["width"] % volume[1] == 0:
            found["levels_z"] = found["width"] // volume[1]
    told = model.arguments if model is not None else {}
    for name in ("reach", "bottom", "top"):
        if isinstance(told.get(name), int | float):
            found[name] = float(told[name])
    if isinstance(told.get("geometry"), str):
        found["geometry"] = told["geometry"]
    return Configuration("detection" if detection else "occupancy", depth, **found)


def build(configuration: Configuration) -> UniScene:
    return UniScene(configuration)


class Views(NamedTuple):
    """Which cells each camera sees (bev.CellsInView, as tensors): cell [N, K] int32, point [N, K,
    HEIGHTS, 2] in units of the image's size, slot [Q, V] int32; present [N] float32, 0 for a camera
    that is not there; place [N] int32, whose of the trained cameras' embedding each one takes."""

    cell: Tensor
    point: Tensor
    slot: Tensor
    present: Tensor
    place: Tensor


class History(NamedTuple):
    """What the grid held in the step before, already turned: bev [Q, C], zeros outside of it;
    started [1], 0 if there was no step before; shift [2, 2]: x and y, in units of the whole grid,
    that are added to the places where the history and where the present is sampled.

    The authors' pre-training adds the shift to a tensor that both share, so that both are shifted,
    although the present has not moved; their detector shifts the history only.
    """

    bev: Tensor
    started: Tensor
    shift: Tensor


class Boxes(NamedTuple):
    """Of the decoders' layers, queries each: scores [layers, queries, classes] as logits, boxes
    [layers, queries, BOX] in the grid's frame, metres, m/s over ground."""

    scores: Tensor
    boxes: Tensor


class UniScene(nn.Module):
    def __init__(self, configuration: Configuration = Configuration()) -> None:
        super().__init__()
        self.configuration = configuration
        self.img_backbone = ResNet(configuration.depth)
        self.img_neck = FeaturePyramid(self.img_backbone.channels, configuration.width)
        self.add_module(HEAD, BevHead(configuration))

    @property
    def head(self) -> BevHead:
        return self.get_submodule(HEAD)  # type: ignore[return-value]

    def forward(
        self, images: Tensor, can_bus: Tensor, views: Views, history: History
    ) -> tuple[Tensor, Tensor | Boxes]:
        """images [N, 3, h, w], blue, green, red less MEAN; can_bus [18] as bev.streamed gives it ->
        the grid's features [Q, C], which are the next step's history before it is turned, and what
        the head makes of them: logits [X, Y, Z, 2] of free and occupied, or Boxes."""
        bev = self.head.encode(self.features(images), can_bus, views, history)
        return bev, self.head.decode(bev)

    def features(self, images: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> [N, C, h / s, w / s] for the strides 8, 16, 32, 64 (rounded up)."""
        return self.img_neck(self.img_backbone(images))


# --- the images: ResNet with deformable convolutions, feature pyramid


class ResNet(nn.Module):
    """He et al., CVPR 2016, as Caffe has it: a stage's stride lies in its first block's first
    convolution. Deformable convolutions in stages 3 and 4; stages 2, 3 and 4 are given out. Of 18
    layers it has neither bottlenecks nor deformable convolutions."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before, wider = 64, 1 if depth == 18 else 4
        self.channels = tuple(wider * channels for channels in (128, 256, 512))
        for stage, count in enumerate(BLOCKS[depth], 1):
            channels = 64 << (stage - 1)
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(
                    BasicBlock(before, channels, stride)
                    if depth == 18
                    else Bottleneck(before, channels, stride, deformable=stage > 2)
                )
                before = wider * channels
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        levels = []
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            levels.append(x)
        return levels[1:]


class Bottleneck(nn.Module):
    def __init__(self, before: int, channels: int, stride: int, *, deformable: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = (
            DeformableConv(channels)
            if deformable
            else nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != 4 * channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * channels, 1, stride, bias=False),
                nn.BatchNorm2d(4 * channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class DeformableConv(nn.Module):
    """3x3, stride 1 (Zhu et al., "Deformable ConvNets v2", CVPR 2019, equation 1): every tap reads
    where an offset says, bilinearly, zeros outside, and counts as much as a mask says.

    Written with grid_sample and a 1x1 convolution over taps and channels, which every runtime
    takes; ONNX's own DeformConv is no faster in ONNX Runtime, and OpenVINO does not read it
    (docs/networks_uniscene.md).
    """

    TAPS = 9

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, channels, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        # dy and dx of tap 0, 1, ..., 8 (row by row), then the masks
        self.conv_offset = nn.Conv2d(channels, 3 * self.TAPS, 3, padding=1)
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        told = self.conv_offset(x)
        offset, mask = told[:, : 2 * self.TAPS], told[:, 2 * self.TAPS :].sigmoid()
        row, column = torch.meshgrid(
            torch.arange(float(h), device=x.device),
            torch.arange(float(w), device=x.device),
            indexing="ij",
        )
        tap = torch.arange(self.TAPS, device=x.device)[:, None, None]
        down = offset[:, 0::2] + (row + (tap // 3 - 1))
        right = offset[:, 1::2] + (column + (tap % 3 - 1))
        place = torch.stack([(right + 0.5) / w, (down + 0.5) / h], -1)
        read = sample(x, place.reshape(n, self.TAPS * h, w, 2))
        read = read * mask.reshape(n, 1, self.TAPS * h, w)
        return F.conv2d(
            read.reshape(n, c * self.TAPS, h, w), self.weight.reshape(c, c * self.TAPS, 1, 1)
        )


class FeaturePyramid(nn.Module):
    """Lin et al., CVPR 2017. The fourth level is a convolution of the third, without a rectifier
    between."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_Conv(before, width, 1) for before in channels)
        self.fpn_convs = nn.ModuleList(
            [*(_Conv(width, width, 3) for _ in range(3)), _Conv(width, width, 3, stride=2)]
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, levels, strict=True)]
        for i in (1, 0):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:])
        out = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=False)]
        return [*out, self.fpn_convs[3](out[2])]


class _Conv(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


# --- the grid: BEVFormer's encoder


class BevHead(nn.Module):
    """All that is not backbone or pyramid, as the checkpoints have it. `transformer.decoder` is the
    occupancy head's convolutions in one kind and the box decoder in the other."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.configuration = c
        self.positional_encoding = nn.ModuleDict(
            {
                "row_embed": nn.Embedding(c.rows, c.width // 2),
                "col_embed": nn.Embedding(c.columns, c.width // 2),
            }
        )
        self.transformer = Transformer(c)
        self.bev_embedding = nn.Embedding(c.rows * c.columns, c.width)
        if c.kind == "detection":
            self.query_embedding = nn.Embedding(c.queries, 2 * c.width)
            self.cls_branches = nn.ModuleList(
                _class_branch(c.width, c.classes) for _ in range(c.decoders)
            )
            self.reg_branches = nn.ModuleList(_box_branch(c.width) for _ in range(c.decoders))
            # of the loss: in every checkpoint, of no use here
            self.code_weights = nn.Parameter(torch.ones(BOX), requires_grad=False)

    def encode(
        self, features: list[Tensor], can_bus: Tensor, views: Views, history: History
    ) -> Tensor:
        """The grid's features [Q, C] (section 3.2 to 3.4 of BEVFormer)."""
        c, t = self.configuration, self.transformer
        rows, columns = (
            cast(nn.Embedding, self.positional_encoding[name]).weight
            for name in ("row_embed", "col_embed")
        )
        size = (c.rows, c.columns, c.width // 2)
        position = torch.cat([columns[None].expand(size), rows[:, None].expand(size)], -1)
        query = self.bev_embedding.weight + t.can_bus_mlp(can_bus[None])
        embedding = (
            t.cams_embeds.index_select(0, views.place)[:, None] + t.level_embeds
        )  # [N, LEVELS, C]
        images = [
            feature + embedding[:, level, :, None, None] for level, feature in enumerate(features)
        ]
        centre = cell_places(c.rows, c.columns, query.device)
        x = query
        for layer in cast(nn.ModuleList, t.encoder["layers"]):
            x = layer(x, query, position.reshape(-1, c.width), centre, images, views, history)
        return x

    def decode(self, bev: Tensor) -> Tensor | Boxes:
        return self.boxes(bev) if self.configuration.kind == "detection" else self.voxels(bev)

    def voxels(self, bev: Tensor) -> Tensor:
        """bev [Q, C] -> logits [X = columns, Y = rows, Z, 2] of free and of occupied."""
        c, t = self.configuration, self.transformer
        # the height is the fast index of the channels
        volume = bev.t().reshape(1, c.width // c.levels_z, c.levels_z, c.rows, c.columns)
        for block in t.decoder:
            volume = block(volume)
        return t.predicter(volume[0].permute(3, 2, 1, 0))

    def boxes(self, bev: Tensor) -> Boxes:
        """bev [Q, C] -> boxes, refined layer by layer (Deformable DETR, Zhu et al., ICLR
        2021)."""
        c, t = self.configuration, self.transformer
        position, content = self.query_embedding.weight.split(c.width, 1)
        reference = t.reference_points(position).sigmoid()  # [queries, 3] in units of the range
        low, extent = (
            torch.tensor(values, dtype=torch.float32, device=bev.device)
            for values in (c.grid.low, c.grid.extent.tolist())
        )
        grid = bev.t().reshape(1, c.width, c.rows, c.columns)
        scores, boxes = [], []
        branches = zip(t.decoder["layers"], self.cls_branches, self.reg_branches, strict=True)
        for layer, classify, regress in branches:
            content = layer(content, position, reference, grid)
            told = regress(content)
            places = torch.cat([told[:, :2], told[:, 4:5]], 1) + _logit(reference)
            reference = places.sigmoid()
            centre = reference * extent + low
            boxes.append(torch.cat([centre[:, :2], told[:, 2:4], centre[:, 2:], told[:, 5:]], 1))
            scores.append(classify(content))
        return Boxes(torch.stack(scores), torch.stack(boxes))


class Transformer(nn.Module):
    """Only holds the parts, under the checkpoints' names."""

    decoder: Any

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.level_embeds = nn.Parameter(torch.zeros(LEVELS, c.width))
        self.cams_embeds = nn.Parameter(torch.zeros(c.cameras, c.width))
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(EncoderLayer(c) for _ in range(c.encoders))}
        )
        self.can_bus_mlp = nn.Sequential()
        for name, part in (
            ("0", nn.Linear(CAN_BUS, c.width // 2)),
            ("1", nn.ReLU()),
            ("2", nn.Linear(c.width // 2, c.width)),
            ("3", nn.ReLU()),
            ("norm", nn.LayerNorm(c.width)),
        ):
            self.can_bus_mlp.add_module(name, part)
        if c.kind == "detection":
            self.decoder = nn.ModuleDict(
                {"layers": nn.ModuleList(DecoderLayer(c.width) for _ in range(c.decoders))}
            )
            self.reference_points = nn.Linear(c.width, 3)
        else:
            self.decoder = nn.Sequential(
                VolumeBlock(c.width // c.levels_z), VolumeBlock(VOLUME_WIDTH)
            )
            self.predicter = nn.Sequential(  # the authors' spelling
                nn.Linear(VOLUME_WIDTH, 2 * VOLUME_WIDTH),
                nn.Softplus(),
                nn.Linear(2 * VOLUME_WIDTH, 2),
            )


class EncoderLayer(nn.Module):
    """Look back, look around, think; each with a residual, then normalised."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([TemporalSelfAttention(c), SpatialCrossAttention(c.width)])
        self.ffns = nn.ModuleList([FeedForward(c.width)])
        self.norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        query: Tensor,
        position: Tensor,
        centre: Tensor,
        images: list[Tensor],
        views: Views,
        history: History,
    ) -> Tensor:
        x = self.norms[0](self.attentions[0](x, query, position, centre, history))
        x = self.norms[1](self.attentions[1](x, images, views))
        return self.norms[2](self.ffns[0](x))


class TemporalSelfAttention(nn.Module):
    """Every cell samples the history and the present around where it was and is (BEVFormer, section
    3.4, equation 5), and takes the mean of both.

    With a history the present that is sampled is the first layer's query, in all layers; without
    one, the layer's own input takes both places. So in the authors' code.
    """

    QUEUE = 2

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.size = c.rows, c.columns
        samples = self.QUEUE * HEADS * TEMPORAL_POINTS
        self.sampling_offsets = nn.Linear(self.QUEUE * c.width, 2 * samples)
        self.attention_weights = nn.Linear(self.QUEUE * c.width, samples)
        self.value_proj = nn.Linear(c.width, c.width)
        self.output_proj = nn.Linear(c.width, c.width)

    def forward(
        self, x: Tensor, query: Tensor, position: Tensor, centre: Tensor, history: History
    ) -> Tensor:
        """x, query, position [Q, C], centre [Q, 2] -> [Q, C]"""
        (cells, width), (rows, columns) = x.shape, self.size
        there = history.started > 0.5
        before, present = torch.where(there, history.bev, x), torch.where(there, query, x)
        both = torch.cat([before, x + position], 1)
        split = (cells, HEADS, self.QUEUE, TEMPORAL_POINTS)
        offsets = self.sampling_offsets(both).reshape(*split, 2).permute(2, 1, 3, 0, 4)
        weights = self.attention_weights(both).reshape(split).softmax(-1).permute(2, 1, 3, 0)
        size = torch.tensor([float(columns), float(rows)], device=x.device)
        place = (centre + history.shift[:, None])[:, None, None] + offsets / size
        value = self.value_proj(torch.stack([before, present])).transpose(1, 2)
        got = attend(
            value.reshape(self.QUEUE * HEADS, width // HEADS, rows, columns),
            place.flatten(0, 1),
            weights.flatten(0, 1),
        )
        mean = got.reshape(self.QUEUE, width, cells).mean(0)
        return self.output_proj(mean.t()) + x


class SpatialCrossAttention(nn.Module):
    """Every cell samples the images of the cameras that see it, around where its pillar's points
    fall (BEVFormer, section 3.3, equation 4). A cell that no camera sees is left as it is, but for
    a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        samples = HEADS * LEVELS * SPATIAL_POINTS
        self.deformable_attention = nn.ModuleDict(
            {
                "sampling_offsets": nn.Linear(width, 2 * samples),
                "attention_weights": nn.Linear(width, samples),
                "value_proj": nn.Linear(width, width),
            }
        )
        self.output_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, images: list[Tensor], views: Views) -> Tensor:
        """x [Q, C], images of LEVELS [N, C, h, w] -> [Q, C]"""
        parts: Any = self.deformable_attention
        (n, k), width = views.cell.shape, x.shape[1]
        asked = x.index_select(0, views.cell.reshape(-1))  # [N * K, C]
        split = (n, k, HEADS, LEVELS, SPATIAL_POINTS)
        offsets = parts["sampling_offsets"](asked).reshape(*split, 2).permute(3, 0, 2, 4, 1, 5)
        weights = parts["attention_weights"](asked).reshape(n, k, HEADS, -1).softmax(-1)
        weights = weights.reshape(split).permute(3, 0, 2, 4, 1)  # [LEVELS, N, HEADS, points, K]
        # point p of a head stands at the pillar's height p mod HEIGHTS
        pillar = views.point.permute(0, 2, 1, 3).repeat(1, SPATIAL_POINTS // HEIGHTS, 1, 1)
        projection = parts["value_proj"]
        seen = torch.zeros((), device=x.device)
        for level, image in enumerate(images):
            h, w = image.shape[-2:]
            value = F.conv2d(image, projection.weight[:, :, None, None], projection.bias)
            size = torch.tensor([float(w), float(h)], device=x.device)
            seen = seen + attend(
                value.reshape(n * HEADS, width // HEADS, h, w),
                (pillar[:, None] + offsets[level] / size).flatten(0, 1),
                weights[level].flatten(0, 1),
            )
        told = seen.reshape(n, width, k).transpose(1, 2) * views.present[:, None, None]
        # one row more, of zeros, for what fewer than V cameras see
        rows = F.pad(told.reshape(n * k, width), (0, 0, 0, 1))
        counts = F.pad(views.present[:, None].expand(n, k).reshape(-1), (0, 1))
        slot = views.slot.reshape(-1)
        cells = views.slot.shape[0]
        total = rows.index_select(0, slot).reshape(cells, -1, width).sum(1)
        cameras = counts.index_select(0, slot).reshape(cells, -1).sum(1, keepdim=True)
        return self.output_proj(total / cameras.clamp_min(1.0)) + x


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU()), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def attend(value: Tensor, place: Tensor, weight: Tensor) -> Tensor:
    """Deformable attention of B heads: value [B, c, h, w], place [B, P, K, 2] as (x, y) in units of
    the size, weight [B, P, K] -> [B, c, K]."""
    return (sample(value, place) * weight[:, None]).sum(2)


def sample(x: Tensor, place: Tensor) -> Tensor:
    """x [B, c, h, w] at place [B, P, K, 2], (x, y) in units of its size -> [B, c, P, K]: bilinear,
    zeros outside."""
    return F.grid_sample(x, 2 * place - 1, mode="bilinear", align_corners=False)


def cell_places(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """[Q, 2] the cells' centres, (x, y) in units of the grid's size."""
    y, x = ((torch.arange(float(count), device=device) + 0.5) / count for count in (rows, columns))
    return torch.stack(
        [x[None].expand(rows, columns), y[:, None].expand(rows, columns)], -1
    ).reshape(-1, 2)


# --- occupancy


class VolumeBlock(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, VOLUME_WIDTH, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm3d(VOLUME_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        # a bias of zeros: without one, PyTorch's exporter writes one that is no vector
        zeros = torch.zeros(VOLUME_WIDTH, device=x.device)
        return F.relu(self.bn(F.conv3d(x, self.conv.weight, zeros, padding=1)))


def occupancy_loss(logits: Tensor, occupied: Tensor) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017, equation 5; gamma 2, alpha 0.25) of logits [..., 2]
    against occupied [...] (0 or 1; else: not known, and not asked): each channel is a sigmoid of
    its own, and the mean goes over the voxels that are known, and channels."""
    known = occupied < 2
    return focal_loss(logits[known], F.one_hot(occupied[known].long(), 2)).mean()


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Of each logit against 0 or 1, of one shape."""
    target = target.to(logits.dtype)
    chance = logits.sigmoid()
    miss = torch.where(target > 0, 1 - chance, chance)
    alpha = torch.where(target > 0, 0.25, 0.75)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return alpha * miss.square() * entropy


# --- detection


class DecoderLayer(nn.Module):
    """Box queries talk to each other, look at the grid, think."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SelfAttention(width), GridCrossAttention(width)])
        self.ffns = nn.ModuleList([FeedForward(width)])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, grid: Tensor) -> Tensor:
        x = self.norms[0](self.attentions[0](x, position))
        x = self.norms[1](self.attentions[1](x, position, reference, grid))
        return self.norms[2](self.ffns[0](x))


class SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn: Any = nn.ModuleDict({"out_proj": nn.Linear(width, width)})
        weight = nn.init.xavier_uniform_(torch.empty(3 * width, width))
        self.attn.register_parameter("in_proj_weight", nn.Parameter(weight))
        self.attn.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * width)))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x, position [queries, C]"""
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        asked, width = x + position, x.shape[1]
        q, k = F.linear(asked, weight[: 2 * width], bias[: 2 * width]).chunk(2, -1)
        v = F.linear(x, weight[2 * width :], bias[2 * width :])
        q, k, v = (
            part.reshape(-1, HEADS, width // HEADS).transpose(0, 1)[None] for part in (q, k, v)
        )
        got = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
        return x + self.attn["out_proj"](got.reshape(-1, width))


class GridCrossAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(width, 2 * HEADS * BOX_POINTS)
        self.attention_weights = nn.Linear(width, HEADS * BOX_POINTS)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, grid: Tensor) -> Tensor:
        """x, position [queries, C], reference [queries, 3], grid [1, C, rows, columns]"""
        width, rows, columns = grid.shape[1:]
        asked, split = x + position, (-1, HEADS, BOX_POINTS)
        offsets = self.sampling_offsets(asked).reshape(*split, 2).permute(1, 2, 0, 3)
        weights = self.attention_weights(asked).reshape(split).softmax(-1).permute(1, 2, 0)
        size = torch.tensor([float(columns), float(rows)], device=x.device)
        value = F.conv2d(grid, self.value_proj.weight[:, :, None, None], self.value_proj.bias)
        got = attend(
            value.reshape(HEADS, width // HEADS, rows, columns),
            reference[:, :2] + offsets / size,
            weights,
        )
        return self.output_proj(got.reshape(width, -1).t()) + x


def _class_branch(width: int, classes: int) -> nn.Sequential:
    hidden = (
        part for _ in range(2) for part in (nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
    )
    return nn.Sequential(*hidden, nn.Linear(width, classes))


def _box_branch(width: int) -> nn.Sequential:
    hidden = (part for _ in range(2) for part in (nn.Linear(width, width), nn.ReLU()))
    return nn.Sequential(*hidden, nn.Linear(width, BOX))


def _logit(x: Tensor) -> Tensor:
    """With clamps at 1e-5, as the authors have them."""
    x = x.clamp(0.0, 1.0)
    return (x.clamp(1e-5, 1.0) / (1 - x).clamp(1e-5, 1.0)).log()


class Detections(NamedTuple):
    """K boxes in the grid's frame, best first: box [K, 9] centre of the bottom face x, y, z, width,
    length, height in metres, yaw, velocity x, y in m/s over ground; score [K] 0..1; label [K].

    yaw: of the published geometry as that model means it (mmdet3d before 1.0): the heading,
    counter-clockwise from the lidar's x, is -yaw - pi / 2. Of the mended one: the heading.
    """

    box: Tensor
    score: Tensor
    label: Tensor


def detections(scores: Tensor, boxes: Tensor, count: int = 300) -> Detections:
    """scores [queries, classes] as logits and boxes [queries, BOX] of one layer -> the best,
    without those that are centred far outside (61.2 m, 10 m in height)."""
    chance = scores.sigmoid().flatten()
    score, place = chance.topk(min(count, len(chance)))
    classes = scores.shape[1]
    x, y, w, l, z, h, sin, cos, vx, vy = boxes[place // classes].unbind(1)  # noqa: E741
    w, l, h = w.exp(), l.exp(), h.exp()  # noqa: E741
    box = torch.stack([x, y, z - h / 2, w, l, h, torch.atan2(sin, cos), vx, vy], 1)
    inside = (x.abs() <= 61.2) & (y.abs() <= 61.2) & (z.abs() <= 10)
    return Detections(box[inside], score[inside], (place % classes)[inside])
