"""ResNet-8, MLPerf Tiny's network for image classification, in PyTorch.

Banbury et al., "MLPerf Tiny Benchmark" (2021): three stages of one residual block each, 16, 32 and 64 channels wide, on
CIFAR-10, with a bar of 85 % for whoever takes part. The two blocks that halve the map have a 1×1 convolution beside
them. Convolutions have biases there; batch normalisation, which follows each but those, has its own.
"""

from __future__ import annotations

import torch
from torch import nn

from tvmflow.models.dilated_net import WEIGHTS, load_weights


class Block(nn.Module):
    """Two 3×3 convolutions, and what was read added to their result."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.first_bn = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_bn = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.first_bn(self.first(x)))
        return self.relu(self.second_bn(self.second(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """N×3×32×32 images, normalised, → N×classes logits; 77,946 parameters, 12.5 million multiply-adds."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.relu(self.stem_bn(self.stem(x))))
        return self.classifier(self.flatten(self.pool(x)))


def resnet_8() -> nn.Module:
    """The network with its trained weights, in eval mode. Raises UserError if the weights don't fit."""
    return load_weights(ResNet8(), WEIGHTS / "resnet-8.safetensors")
