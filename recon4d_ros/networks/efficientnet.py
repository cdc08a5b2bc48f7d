"""EfficientNet-B5 (Tan and Le, ICML 2019) with TensorFlow's padding, under timm's parameter names,
without classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# of each stage: kernel, stride of its first block, expansion, channels, blocks (B0's, times 1.6 in
# width and 2.2 in depth)
STAGES = (
    (3, 1, 1, 24, 3),
    (3, 2, 6, 40, 5),
    (5, 2, 6, 64, 5),
    (3, 2, 6, 128, 7),
    (5, 1, 6, 176, 7),
    (5, 2, 6, 304, 9),
    (3, 1, 6, 512, 3),
)
STEM, HEAD = 48, 2048
USED = 3  # stages that the decoders read; the others are there because every checkpoint has them
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetB5(nn.Module):
    channels = (24, 40, 64)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, STEM, 3, 2)
        self.bn1 = _norm(STEM)
        stages, before = [], STEM
        for kernel, stride, expansion, channels, blocks in STAGES:
            first = _block(before, channels, kernel, stride, expansion)
            stages.append(
                nn.Sequential(
                    first,
                    *(_block(channels, channels, kernel, 1, expansion) for _ in range(blocks - 1)),
                )
            )
            before = channels
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(before, HEAD, 1, bias=False)
        self.bn2 = _norm(HEAD)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image [N, 3, h, w] in 0..1 -> features at a half, a quarter and an eighth of its size."""
        mean, deviation = (
            torch.tensor(x, device=image.device)[:, None, None] for x in (MEAN, DEVIATION)
        )
        x = F.silu(self.bn1(self.conv_stem((image - mean) / deviation)))
        half = self.blocks[0](x)
        quarter = self.blocks[1](half)
        return half, quarter, self.blocks[2](quarter)


class SameConv(nn.Conv2d):
    """TensorFlow's padding: as little as gives ceil(size / stride), the odd pixel at the end."""

    def __init__(
        self, before: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(before, channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (
            max(kernel - stride if size % stride == 0 else kernel - size % stride, 0)
            for size in x.shape[-2:]
        )
        return super().forward(
            F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(
            self.conv_expand(F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        )


class SeparableBlock(nn.Module):
    """Depthwise, then pointwise: the inverted bottleneck where nothing is expanded."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and before == channels
        self.conv_dw = SameConv(before, before, kernel, stride, groups=before)
        self.bn1 = _norm(before)
        self.se = SqueezeExcite(before, before // 4)
        self.conv_pw = nn.Conv2d(before, channels, 1, bias=False)
        self.bn2 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pw(self.se(F.silu(self.bn1(self.conv_dw(x))))))
        return x + y if self.residual else y


class InvertedBottleneck(nn.Module):
    def __init__(
        self, before: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inside = before * expansion
        self.residual = stride == 1 and before == channels
        self.conv_pw = nn.Conv2d(before, inside, 1, bias=False)
        self.bn1 = _norm(inside)
        self.conv_dw = SameConv(inside, inside, kernel, stride, groups=inside)
        self.bn2 = _norm(inside)
        self.se = SqueezeExcite(inside, before // 4)
        self.conv_pwl = nn.Conv2d(inside, channels, 1, bias=False)
        self.bn3 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn2(self.conv_dw(F.silu(self.bn1(self.conv_pw(x))))))
        y = self.bn3(self.conv_pwl(self.se(y)))
        return x + y if self.residual else y


def _block(before: int, channels: int, kernel: int, stride: int, expansion: int) -> nn.Module:
    if expansion == 1:
        return SeparableBlock(before, channels, kernel, stride)
    return InvertedBottleneck(before, channels, kernel, stride, expansion)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
