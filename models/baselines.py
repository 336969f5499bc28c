"""Networks that others have made, untrained: what tvmflow does for the paper's network must not cost them.

Those of the paper's Table 1 are MobileNetV1, GoogLeNet, SqueezeNet and VGG16. Each is made for 3×32×32 images and ten
classes, or, with `small=False`, as it was published, for 3×224×224. Initialisation is random and fixed, and keeps the
size of activations over the depth, so that answers depend on every layer; batch normalisation is not the identity.
"""

from __future__ import annotations

import itertools
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
    """Howard et al. (2017), table 1; small, without the first halving of the map."""

    WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self, classes: int = 10, *, small: bool = True) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, 3, 1 if small else 2)
        widths = (32, *self.WIDTHS)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(conv_bn(before, before, 3, stride, before), conv_bn(before, after, 1))
                for before, after, stride in zip(widths, self.WIDTHS, self.STRIDES, strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(1024, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.flatten(self.pool(self.blocks(self.stem(x)))))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1×1 to more channels, depthwise 3×3, 1×1 to few, added to what was read if it is alike."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = before * expansion
        expanded = [conv_bn(before, width, 1)] if expansion > 1 else []
        layers = [*expanded, conv_bn(width, width, 3, stride, width)]
        for layer in layers:
            layer[2] = nn.ReLU6()
        last = nn.Sequential(nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after))
        self.layers = nn.Sequential(*layers, last)
        self.added = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.added else self.layers(x)


class MobileNetV2(nn.Module):
    """Sandler et al. (2018), table 2; small, without the first two halvings of the map."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    """Expansion, channels, blocks and stride of the first block."""

    def __init__(self, classes: int = 10, *, small: bool = True) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, 3, 1 if small else 2)
        self.stem[2] = nn.ReLU6()
        blocks: list[nn.Module] = []
        before = 32
        for stage, (expansion, after, count, stride) in enumerate(self.STAGES):
            for number in range(count):
                step = stride if number == 0 and not (small and stage == 1) else 1
                blocks.append(InvertedResidual(before, after, step, expansion))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(320, 1280, 1)
        self.last[2] = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.flatten(self.pool(self.last(self.blocks(self.stem(x))))))


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
    """Iandola et al. (2016), version 1.1; small, with a first convolution of stride 1 and pooling over 2×2."""

    def __init__(self, classes: int = 10, *, small: bool = True) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(2) if small else nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1) if small else nn.Conv2d(3, 64, 3, 2),
            nn.ReLU(),
            pool(),
            Fire(64, 16, 128),
            Fire(128, 16, 128),
            pool(),
            Fire(128, 32, 256),
            Fire(256, 32, 256),
            pool(),
            Fire(256, 48, 384),
            Fire(384, 48, 384),
            Fire(384, 64, 512),
            Fire(512, 64, 512),
        )
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(512, classes, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flatten(self.pool(self.relu(self.classifier(self.dropout(self.features(x))))))


class Inception(nn.Module):
    """GoogLeNet's module: 1×1, 3×3, 5×5 and pooling side by side, the last three with a 1×1 that saves work."""

    def __init__(self, before: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.one = conv_bn(before, one, 1)
        self.three = nn.Sequential(conv_bn(before, three[0], 1), conv_bn(*three, 3))
        self.five = nn.Sequential(conv_bn(before, five[0], 1), conv_bn(*five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(before, pooled, 1))
        self.width = one + three[1] + five[1] + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


class GoogLeNet(nn.Module):
    """Szegedy et al. (2014), table 1, without the auxiliary classifiers; small, with a stem that keeps the map.

    Batch normalisation is in the place of biases and local response normalisation, as everywhere since 2015.
    """

    STAGES = (
        ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
        (
            (192, (96, 208), (16, 48), 64),
            (160, (112, 224), (24, 64), 64),
            (128, (128, 256), (24, 64), 64),
            (112, (144, 288), (32, 64), 64),
            (256, (160, 320), (32, 128), 128),
        ),
        ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
    )
    """Of each module: channels of 1×1; before and of 3×3; before and of 5×5; of pooling. Between stages is pooling."""

    def __init__(self, classes: int = 10, *, small: bool = True) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        first = conv_bn(3, 64, 3) if small else conv_bn(3, 64, 7, 2)
        others = conv_bn(64, 64, 1), conv_bn(64, 192, 3)
        self.stem = nn.Sequential(first, *others) if small else nn.Sequential(first, pool(), *others, pool())
        stages, before = [], 192
        for place, stage in enumerate(self.STAGES):
            layers: list[nn.Module] = [pool()] if place else []
            for widths in stage:
                layers.append(module := Inception(before, *widths))
                before = module.width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.4)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.flatten(self.pool(self.stages(self.stem(x))))))


class VGG16(nn.Module):
    """Simonyan and Zisserman (2014), configuration D.

    Small, it has batch normalisation and one hidden layer of 512 in the place of two of 4096, as Liu and Deng (2015)
    made it for such images.
    """

    WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self, classes: int = 10, *, small: bool = True) -> None:
        super().__init__()

        def convolution(before: int, after: int) -> nn.Module:
            if small:
                return conv_bn(before, after, 3)
            return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU())

        layers: list[nn.Module] = []
        before = 3
        for stage in self.WIDTHS:
            for width in stage:
                layers.append(convolution(before, width))
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        widths = (512, 512) if small else (512 * 7 * 7, 4096, 4096)
        self.hidden = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.5))
                for before, after in itertools.pairwise(widths)
            )
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.hidden(self.flatten(self.features(x))))


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


def untrained(network: Callable[[], nn.Module]) -> nn.Module:
    """What `network` makes, in eval mode, initialised as the module's docstring says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = network().eval()
        for layer in made.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 2)
    return made


def mobilenet_v1() -> nn.Module:
    """MobileNetV1, untrained."""
    return untrained(MobileNetV1)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2, untrained."""
    return untrained(MobileNetV2)


def mobilenet_v2_224() -> nn.Module:
    """MobileNetV2 as it was published, for 3×224×224 and a thousand classes, untrained."""
    return untrained(lambda: MobileNetV2(1000, small=False))


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1, untrained."""
    return untrained(SqueezeNet)


def googlenet() -> nn.Module:
    """GoogLeNet, untrained."""
    return untrained(GoogLeNet)


def vgg16() -> nn.Module:
    """VGG16, untrained."""
    return untrained(VGG16)


def small_vgg() -> nn.Module:
    """A VGG of eight convolutions, untrained."""
    return untrained(SmallVGG)
