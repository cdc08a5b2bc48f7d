"""Dynamic-multiframe-depth (Li et al., "Learning to Fuse Monocular and Multi-view Cues for
Multi-frame Depth Estimation in Dynamic Scenes", CVPR 2023), under its checkpoints' names.

Two cues for the depth of an image: a photometric cost volume against older images of the same
camera, which is right where nothing moves, and what a monocular branch makes of the image alone,
written as a volume of ones and zeros. Cross-cue attention lets each volume's own structure guide
the other's features; a decoder reads both. Depth is metric, because the poses are.

What a vehicle's stream adds (memory, sigma, confidence) is dymultidepth_step.py's matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.checkpoint import ModelText
from recon4d_ros.networks.efficientnet import EfficientNetB5
from recon4d_ros.networks.photometric import cost_volume
from recon4d_ros.networks.resnet import ResNet18

NEAREST, FARTHEST = 0.33, 0.0025  # inverse depths, 1/m
DEPTHS = 32  # of the cost volume, evenly spaced in inverse depth
WIDTH = 32  # channels of each cue after fusion
MONO_LIMIT = 80.0  # metres: where the monocular branch's volume ends
SLOPE = 0.1  # of leaky rectifiers


@dataclass(frozen=True)
class Configuration:
    """backbone: resnet18 or efficientnetb5. halvings: how many times smaller attention sees the
    volumes, as a power of two (2; the authors take 3 for images wider than 650 pixels)."""

    backbone: str = "resnet18"
    halvings: int = 2

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise EngineError(
                f"backbone {self.backbone!r} is not known, expected one of {', '.join(BACKBONES)}"
            )
        if self.halvings not in (2, 3):
            raise EngineError(
                f"attention at 1/2^{self.halvings} of the size is not known, expected 2 or 3"
                " halvings"
            )


BACKBONES: dict[
    str, tuple[str, type[ResNet18] | type[EfficientNetB5]]
] = {  # the authors' name of the encoder inside the extractor
    "resnet18": ("encoder", ResNet18),
    "efficientnetb5": ("original_model", EfficientNetB5),
}


def configuration_of(
    shapes: Mapping[str, tuple[int, ...]], model: ModelText | None
) -> Configuration:
    """What a checkpoint asks for, from the shapes of its parameters (these files have no model
    string)."""
    wide = "_feature_extractor.original_model.conv_stem.weight" in shapes
    return Configuration(
        "efficientnetb5" if wide else "resnet18",
        3 if "fusion_module.mono_expand.6.weight" in shapes else 2,
    )


def build(configuration: Configuration) -> DyMultiDepth:
    return DyMultiDepth(configuration)


class Prediction(NamedTuple):
    """Of N images [h, w], D = 32: inverse depth [N, h, w] in 1/m, fused and of the monocular
    branch; cost_volume [N, D, h, w], 1 for equal to the neighbours, 0 for not seen; fused [N, 64,
    h, w], what the decoder reads."""

    inverse: Tensor
    inverse_mono: Tensor
    cost_volume: Tensor
    fused: Tensor


class DyMultiDepth(nn.Module):
    range = NEAREST, FARTHEST

    def __init__(self, configuration: Configuration = Configuration()) -> None:
        super().__init__()
        self.configuration = configuration
        name, backbone = BACKBONES[configuration.backbone]
        self._feature_extractor = nn.ModuleDict({name: backbone()})
        self.mono_module = HourGlass(3, backbone.channels)
        self.fusion_module = CrossCueFusion(configuration.halvings)
        self.depth_module = HourGlass(2 * WIDTH + 3, backbone.channels)

    def quantizable(self) -> tuple[str, ...]:
        """The modules whose convolutions may be computed in int8: all but the attention's, and the
        last one before each depth."""
        return (
            "_feature_extractor",
            *(
                f"{branch}.{part}"
                for branch in ("mono_module", "depth_module")
                for part in ("enc", "dec")
            ),
            *(
                f"fusion_module.{cue}_{part}"
                for cue in ("mono", "multi")
                for part in ("expand", "reg")
            ),
        )

    def forward(
        self, image: Tensor, neighbours: Tensor, k: Tensor, relative: Tensor, valid: Tensor
    ) -> Prediction:
        """image [N, 3, h, w] and its F neighbours [N, F, 3, h, w], RGB in -0.5..0.5, sides
        multiples of 16; k [N, 3, 3] of both (no skew); relative [N, F, 4, 4] T_neighbour_image,
        metres; valid [N, F]: 0 for a neighbour that is none."""
        depths = hypotheses(image.device)
        exported = (
            torch.compiler.is_exporting()
        )  # whoever runs the graph knows better than the two lines below
        volume = cost_volume(
            image,
            neighbours,
            k,
            relative,
            valid,
            depths,
            2 if image.device.type == "cpu" and not exported else 0,
        )
        order = (
            torch.contiguous_format if exported else torch.channels_last
        )  # PyTorch's convolutions are faster in this one
        image = image.contiguous(memory_format=order)
        features = next(iter(self._feature_extractor.values()))(image + 0.5)
        inverse_mono = self.mono_module(image, features)
        cue = one_hot_volume(inverse_mono, depths).contiguous(memory_format=order)
        fused = self.fusion_module(cue, volume.contiguous(memory_format=order))
        inverse = self.depth_module(torch.cat([fused, image], 1), features)
        return Prediction(inverse, inverse_mono, volume, fused)


def hypotheses(device: torch.device | None = None) -> Tensor:
    """[D] metres, far to near."""
    return 1 / torch.linspace(FARTHEST, NEAREST, DEPTHS, device=device)


def one_hot_volume(inverse: Tensor, depths: Tensor) -> Tensor:
    """inverse [N, h, w] -> [N, D, h, w]: 1 at the hypothesis nearest in depth (not in inverse
    depth), 0 elsewhere."""
    depth = (1 / inverse).clamp(1e-3, MONO_LIMIT)[:, None]
    between = (depths[1:] + depths[:-1]) / 2
    nearer = (depth <= between[:, None, None]).to(inverse.dtype)  # ones, then zeros
    return F.pad(nearer, (0, 0, 0, 0, 1, 0), value=1.0) - F.pad(nearer, (0, 0, 0, 0, 0, 1))


class StripConv(nn.Module):
    """A kernel x 1 and a 1 x kernel convolution, each with TensorFlow's padding and a leaky
    rectifier."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_y = nn.Conv2d(before, channels, (kernel, 1), (stride, 1))
        self.conv_x = nn.Conv2d(channels, channels, (1, kernel), (1, stride))
        missing = kernel - stride  # pixels of padding where the stride divides the size
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv_y(F.pad(x, (0, 0, self.before, self.after))), SLOPE)
        return F.leaky_relu(self.conv_x(F.pad(x, (self.before, self.after, 0, 0))), SLOPE)


class Refine(nn.Module):
    """Twice the size."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv2d_t = nn.ConvTranspose2d(before, channels, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2d_t(x), SLOPE)


class HourGlass(nn.Module):
    """Down to a sixteenth and up again, with the backbone's features on the way: [N, before, h, w]
    -> inverse depth [N, h, w]."""

    down = (48, 64, 128, 192, 256)
    kernels = (7, 7, 5, 5, 3)
    up = (256, 128, 64, 48, 32, 24)

    def __init__(self, before: int, features: tuple[int, int, int]) -> None:
        super().__init__()
        d, u = self.down, self.up
        ins = (before, *d[:-1])
        self.enc = nn.ModuleList(
            nn.Sequential(StripConv(a, b, kernel, 1 if i == 0 else 2), StripConv(b, b, 3))
            for i, (a, b, kernel) in enumerate(zip(ins, d, self.kernels, strict=True))
        )
        self.dec = nn.ModuleList(
            [
                Refine(d[4], u[0]),
                nn.Sequential(Refine(d[3] + features[2] + u[0], u[1]), StripConv(u[1], u[1], 3)),
                nn.Sequential(Refine(d[2] + features[1] + u[1], u[2]), StripConv(u[2], u[2], 3)),
                Refine(d[1] + features[0] + u[2], u[3]),
                nn.Sequential(
                    StripConv(d[0] + u[3], u[4], 3),
                    nn.Identity(),
                    nn.Conv2d(u[4], u[5], 3, padding=1),
                    nn.LeakyReLU(SLOPE),
                ),
            ]
        )
        # the first three predict smaller images, which training wants and nobody else
        self.predictors = nn.ModuleList(
            nn.Sequential(nn.Identity(), nn.Conv2d(c, 1, 3, padding=1)) for c in (*u[:3], u[5])
        )

    def forward(self, x: Tensor, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        levels = []
        for layer in self.enc:
            x = layer(x)
            levels.append(x)
        x = self.dec[0](levels[4])
        x = self.dec[1](torch.cat([levels[3], features[2], x], 1))
        x = self.dec[2](torch.cat([levels[2], features[1], x], 1))
        x = self.dec[3](torch.cat([levels[1], features[0], x], 1))
        x = self.dec[4](torch.cat([levels[0], x], 1))
        near = self.predictors[3](x)[:, 0].tanh().abs()
        return FARTHEST + near * (NEAREST - FARTHEST)


class CrossCueFusion(nn.Module):
    """Volumes [N, 32, h, w] of the monocular and the multi-view cue -> [N, 64, h, w] (section 3.3
    of the paper)."""

    def __init__(self, halvings: int) -> None:
        super().__init__()
        self.mono_expand, self.multi_expand = (
            nn.Sequential(*(x for _ in range(halvings) for x in _convolution(3, 2)))
            for _ in range(2)
        )
        for name in ("mono", "multi"):
            for role in "kqv":
                self.add_module(f"lin_{name}_{role}", nn.Conv2d(WIDTH, WIDTH, 1))
        self.mono_reg = nn.Sequential(*_convolution(3), *_convolution(3))
        self.multi_reg = nn.Sequential(*_convolution(1))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, mono: Tensor, multi: Tensor) -> Tensor:
        small_mono, small_multi = self.mono_expand(mono), self.multi_expand(multi)
        # what belongs together according to one cue gathers the other cue's features
        multi_guided = self._attend(
            "mono", small_mono, self.get_submodule("lin_multi_v")(small_multi)
        )
        mono_guided = self._attend(
            "multi", small_multi, self.get_submodule("lin_mono_v")(small_mono)
        )
        gathered = F.interpolate(torch.cat([multi_guided, mono_guided], 1), size=mono.shape[-2:])
        return torch.cat([self.mono_reg(mono), self.multi_reg(multi)], 1) + self.gamma * gathered

    def _attend(self, name: str, guide: Tensor, value: Tensor) -> Tensor:
        q, k = (self.get_submodule(f"lin_{name}_{role}")(guide) for role in "qk")
        q, k, v = (
            x.flatten(2).transpose(1, 2).contiguous()[:, None] for x in (q, k, value)
        )  # [N, 1, pixels, WIDTH]
        return (
            F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0]
            .transpose(1, 2)
            .reshape(value.shape)
        )


def _convolution(kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(WIDTH, WIDTH, kernel, stride, kernel // 2), nn.BatchNorm2d(WIDTH), nn.ReLU()
