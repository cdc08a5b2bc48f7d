"""ResNet-18 (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016), under
torchvision's parameter names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block


class ResNet18(nn.Module):
    """Only what the decoders read is computed; the later stages and the classifier are there
    because every checkpoint has them."""

    channels = (64, 64, 128)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for i, (channels, stride) in enumerate(STAGES, 1):
            self.add_module(
                f"layer{i}",
                nn.Sequential(
                    BasicBlock(before, channels, stride), BasicBlock(channels, channels, 1)
                ),
            )
            before = channels
        self.fc = nn.Linear(before, 1000)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image [N, 3, h, w] in 0..1 -> features at a half, a quarter and an eighth of its size."""
        half = F.relu(self.bn1(self.conv1((image - 0.45) / 0.225)))
        quarter = self.get_submodule("layer1")(F.max_pool2d(half, 3, 2, 1))
        return half, quarter, self.get_submodule("layer2")(quarter)


class BasicBlock(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))
