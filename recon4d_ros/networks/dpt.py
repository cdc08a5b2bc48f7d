"""The dense prediction head of DUSt3R and its heirs: four sets of tokens -> one map at the image's
size (Ranftl et al., DPT, 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.errors import EngineError

WIDTH = 256  # of every published head
EIGHTHS = (3, 6, 12, 24)
# of the width: channels of the pyramid's levels, from fine (stride 4) to coarse (stride 32)


def levels(width: int) -> list[int]:
    return [width * part // 8 for part in EIGHTHS]


def width_of(shapes: Mapping[str, tuple[int, ...]], head: str) -> int:
    """Of the DenseHead under a name in a checkpoint: of every one, where it is not there."""
    return (*shapes.get(f"{head}.scratch.layer1_rn.weight", ()), WIDTH)[0]


def check_width(width: int) -> None:
    """Raises EngineError."""
    if width < 8 or width % 8:
        raise EngineError(f"its heads have {width} channels, expected a multiple of 8")


class DenseHead(nn.Module):
    """tokens: four [B, T, C_i] on one grid of patches -> [B, out, H, W]. `channels` are the four
    C_i."""

    def __init__(self, channels: Sequence[int], out: int, width: int = WIDTH) -> None:
        super().__init__()
        layers = levels(width)
        self.scratch = _Pyramid(width)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            _Double(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, out, 1),
        )
        reduce = [nn.Conv2d(c, layer, 1) for c, layer in zip(channels, layers, strict=True)]
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(reduce[0], nn.ConvTranspose2d(layers[0], layers[0], 4, stride=4)),
                nn.Sequential(reduce[1], nn.ConvTranspose2d(layers[1], layers[1], 2, stride=2)),
                nn.Sequential(reduce[2]),
                nn.Sequential(reduce[3], nn.Conv2d(layers[3], layers[3], 3, stride=2, padding=1)),
            ]
        )

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        maps = [
            level(x.transpose(1, 2).unflatten(2, grid))
            for level, x in zip(self.act_postprocess, tokens, strict=True)
        ]
        return self.head(self.scratch(maps))


class _Pyramid(nn.Module):
    """Checkpoints hold the layers' convolutions under two names, layer1_rn .. layer4_rn and
    layer_rn.0 .. 3; the second one counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [
            nn.Conv2d(layer, width, 3, padding=1, bias=False) for layer in levels(width)
        ]
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = convolutions
        self.layer_rn = nn.ModuleList(convolutions)
        self.refinenet1 = _Fusion(width)
        self.refinenet2 = _Fusion(width)
        self.refinenet3 = _Fusion(width)
        self.refinenet4 = _Fusion(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fine, middle, coarse, coarsest = (
            layer(x) for layer, x in zip(self.layer_rn, maps, strict=True)
        )
        path = self.refinenet4(coarsest)[
            :, :, : coarse.shape[2], : coarse.shape[3]
        ]  # an odd grid was rounded up
        path = self.refinenet3(path, coarse)
        path = self.refinenet2(path, middle)
        return self.refinenet1(path, fine)


class _Fusion(nn.Module):
    """Adds a level to what comes from the coarser ones and doubles the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = _Residual(
            width
        )  # of no use in the coarsest level, where checkpoints hold it all the same
        self.resConfUnit2 = _Residual(width)

    def forward(self, path: Tensor, level: Tensor | None = None) -> Tensor:
        if level is not None:
            path = path + self.resConfUnit1(level)
        return self.out_conv(_double(self.resConfUnit2(path)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _double(x)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def points_and_confidence(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 4, H, W] -> points [B, H, W, 3] whose distance grows as exp(.) - 1, and confidence [B, H,
    W] of at least 1 (DUSt3R's "exp" modes)."""
    x = x.float()
    xyz = x[:, :3].permute(0, 2, 3, 1)
    distance = xyz.norm(dim=-1, keepdim=True)
    return xyz / distance.clamp_min(1e-8) * torch.expm1(distance), 1 + x[:, 3].exp()
