"""Networks that others have made, small and untrained: what tvmflow does for the paper's network must not cost them.

All are for 3×32×32 images and ten classes, with a fixed random initialisation, in eval mode. Their batch normalisation
is not the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def conv_bn(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class MobileNetV1(nn.Module):
    """Howard et al. (2017), table 1, without the first halving of the map: 32×32 images are small enough."""

    WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, 3)
        widths = (32, *self.WIDTHS)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(conv_bn(before, before, 3, stride, before), conv_bn(before, after, 1))
                for before, after, stride in zip(widths, self.WIDTHS, self.STRIDES, strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.flatten(self.pool(self.blocks(self.stem(x)))))


class Fire(nn.Module):
    """SqueezeNet's module: 1×1 to few channels, then 1×1 and 3×3 side by side."""

    def __init__(self, before: int, squeezed: int, after: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, after // 2, 1)
        self.expand3 = nn.Conv2d(squeezed, after // 2, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1(x)), self.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """Iandola et al. (2016), version 1.1, with a first convolution of stride 1 for 32×32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Fire(64, 16, 128),
            Fire(128, 16, 128),
            nn.MaxPool2d(2),
            Fire(128, 32, 256),
            Fire(256, 32, 256),
            nn.MaxPool2d(2),
            Fire(256, 48, 384),
            Fire(384, 48, 384),
            Fire(384, 64, 512),
            Fire(512, 64, 512),
        )
        self.classifier = nn.Conv2d(512, 10, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flatten(self.pool(self.relu(self.classifier(self.features(x)))))


class SmallVGG(nn.Module):
    """Plain 3×3 convolutions and max pooling, after Simonyan and Zisserman (2014)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in (32, 64, 128, 256):
            layers += [conv_bn(before, width, 3), conv_bn(width, width, 3), nn.MaxPool2d(2)]
            before = width
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(256 * 2 * 2, 256)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.relu(self.hidden(self.flatten(self.features(x)))))


def _untrained(network: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = network().eval()
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 2)
    return made


def mobilenet_v1() -> nn.Module:
    """MobileNetV1, untrained."""
    return _untrained(MobileNetV1)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1, untrained."""
    return _untrained(SqueezeNet)


def small_vgg() -> nn.Module:
    """A VGG of eight convolutions, untrained."""
    return _untrained(SmallVGG)
