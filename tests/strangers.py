"""Networks as users bring them, each narrow enough to be built in seconds: `--model strangers:NAME` finds them.

They are the architectures that embedded devices run, and the forms in which PyTorch networks are written: blocks with
skips and concatenations, normalisations in every place, one to three dimensions, recurrent layers, several inputs and
outputs. `STRANGERS` has them with the shapes of their inputs. `python -m benchmarks.strangers` takes all of them to a
board of each kind, and tests/test_strangers.py those that were wrong once to this computer.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shapes = tuple[tuple[int, ...], ...]
Make = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A network of the zoo: `about` is what it stands for, `shapes` are those of its float32 inputs."""

    make: Make
    shapes: Shapes
    about: str


STRANGERS: dict[str, Stranger] = {}


def stranger(about: str, *shapes: tuple[int, ...]) -> Callable[[Make], Make]:
    """Enter a factory into `STRANGERS`. Its weights come from a seed, and no normalisation is the identity."""

    def enter(make: Make) -> Make:
        @functools.wraps(make)
        def trained() -> nn.Module:
            torch.manual_seed(20)
            network = make()
            for layer in network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
                    nn.init.normal_(layer.running_mean, std=0.3)
                    nn.init.uniform_(layer.running_var, 0.5, 2)
                    nn.init.uniform_(layer.weight, 0.5, 1.5)
                    nn.init.normal_(layer.bias, std=0.3)
            return network.eval()

        STRANGERS[make.__name__] = Stranger(make=trained, shapes=shapes, about=about)
        return trained

    return enter


class Of(nn.Module):
    """A module of a function of (itself, inputs …) and of the parts that it is given by name."""

    def __init__(self, function: Callable, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor):
        return self.function(self, *inputs)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type | None = nn.ReLU):
    """Convolution without a bias, batch normalisation and activation, as nearly every paper has them."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), *([act()] if act else []))


def head(channels: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Add(nn.Sequential):
    """Its input is added to its result."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Concat(nn.ModuleList):
    """What each branch makes of the input, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


# ------------------------------------------------------------------------------------------------ classic classifiers


@stranger("LeNet-5: tanh, average pooling, three linear layers", (1, 1, 32, 32))
def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
        nn.Softmax(1),
    )


@stranger("AlexNet: large strides, local response normalisation, dropout", (1, 3, 63, 63))
def alexnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 11, 4, 2), nn.ReLU(True), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.Conv2d(32, 24, 3, padding=1)),
        *(nn.ReLU(True), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Dropout(), nn.Linear(96, 32), nn.ReLU(True)),
        *(nn.Dropout(), nn.Linear(32, 10)),
    )


@stranger("VGG with batch normalisation behind convolutions that have a bias", (1, 3, 32, 32))
def vgg_bn() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 24)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, 32), nn.ReLU(True), nn.Linear(32, 10))


@stranger("Network in network: 1×1 convolutions, global pooling", (1, 3, 32, 32))
def nin() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 16, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 10, 1), nn.AvgPool2d(16), nn.Flatten()),
    )


@stranger("SqueezeNet: fire modules, ceil pooling", (1, 3, 47, 47))
def squeezenet() -> nn.Module:
    def fire(inputs: int, squeeze: int, expand: int) -> nn.Module:
        wide = nn.Sequential(nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU(True))
        branches = Concat([nn.Sequential(nn.Conv2d(squeeze, expand, 1), nn.ReLU(True)), wide])
        return nn.Sequential(nn.Conv2d(inputs, squeeze, 1), nn.ReLU(True), branches)

    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True), fire(16, 4, 16)),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), fire(32, 6, 16), nn.Conv2d(32, 10, 1), nn.ReLU(True)),
        *(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()),
    )


@stranger("Inception: branches of four kinds, side by side", (1, 3, 24, 24))
def inception() -> nn.Module:
    block = Concat(
        [
            conv(16, 8, 1),
            nn.Sequential(conv(16, 8, 1), conv(8, 12)),
            nn.Sequential(conv(16, 4, 1), conv(4, 8, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(16, 8, 1)),
        ]
    )
    return nn.Sequential(conv(3, 16, 3, 2), block, nn.MaxPool2d(3, 2, ceil_mode=True), head(36))


@stranger("DenseNet: normalisation before convolution, growing concatenation", (1, 3, 24, 24))
def densenet() -> nn.Module:
    class Dense(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 16, 1, bias=False)
            self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            made = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
            return torch.cat([x, made], 1)

    transition = [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2)]
    body = [conv(3, 16, 3, 2), Dense(16), Dense(24), *transition, Dense(16)]
    return nn.Sequential(*body, nn.BatchNorm2d(24), nn.ReLU(), head(24))


# ---------------------------------------------------------------------------------------------------- residual networks


class Basic(nn.Module):
    """The residual block of two convolutions, with a projection where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.down = nn.Sequential() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.down(x))


@stranger("ResNet-8 of MLPerf Tiny: biases before normalisations", (1, 3, 32, 32))
def resnet8() -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, Basic(16, 16), Basic(16, 32, 2), Basic(32, 64, 2), head(64))


@stranger("ResNet-18, all of its blocks, narrow", (1, 3, 64, 64))
def resnet18() -> nn.Module:
    widths = [8, 8, 12, 16, 24]
    blocks = []
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        blocks += [Basic(inputs, outputs, 2 if stage else 1), Basic(outputs, outputs)]
    return nn.Sequential(conv(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks, head(24))


@stranger("ResNet with bottlenecks and max pooling", (1, 3, 32, 32))
def resnet_bottleneck() -> nn.Module:
    block = Add(conv(32, 8, 1), conv(8, 8, 3), conv(8, 32, 1, act=None))
    return nn.Sequential(conv(3, 32, 7, 2), nn.MaxPool2d(3, 2, 1), block, nn.ReLU(), head(32))


@stranger("ResNet v2: normalisation and ReLU before each convolution", (1, 3, 16, 16))
def resnet_preactivation() -> nn.Module:
    def block(width: int) -> nn.Module:
        first = [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        return Add(*first, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), block(12), block(12), nn.BatchNorm2d(12), nn.ReLU(), head(12))


@stranger("ResNeXt: grouped 3×3 convolutions", (1, 3, 16, 16))
def resnext() -> nn.Module:
    block = Add(conv(32, 16, 1), conv(16, 16, 3, groups=4), conv(16, 32, 1, act=None))
    return nn.Sequential(conv(3, 32), block, nn.ReLU(), head(32))


@stranger("RepVGG before its branches are merged: 3×3, 1×1 and identity, each normalised", (1, 3, 16, 16))
def repvgg() -> nn.Module:
    def block(width: int) -> nn.Module:
        return Of(
            lambda s, x: F.relu(s.three(x) + s.one(x) + s.identity(x)),
            three=conv(width, width, act=None),
            one=conv(width, width, 1, act=None),
            identity=nn.BatchNorm2d(width),
        )

    return nn.Sequential(conv(3, 16, 3, 2), block(16), block(16), head(16))


@stranger("Wide ResNet with dropout and ELU, ending in log-softmax", (1, 3, 16, 16))
def resnet_elu() -> nn.Module:
    block = Add(nn.BatchNorm2d(16), nn.ELU(), nn.Conv2d(16, 16, 3, padding=1), nn.Dropout2d(), nn.ELU())
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), block, head(16), nn.LogSoftmax(1))


# --------------------------------------------------------------------------------------------------- mobile networks


def separable(inputs: int, outputs: int, stride: int = 1, act: type = nn.ReLU) -> nn.Module:
    return nn.Sequential(conv(inputs, inputs, 3, stride, inputs, act), conv(inputs, outputs, 1, act=act))


@stranger("MobileNetV1 of MLPerf Tiny's visual wake words, with ReLU6", (1, 3, 48, 48))
def mobilenet_v1() -> nn.Module:
    body = [separable(8, 16, act=nn.ReLU6), separable(16, 32, 2, nn.ReLU6), separable(32, 32, act=nn.ReLU6)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.ReLU6), *body, head(32, 2), nn.Softmax(-1))


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2 and its successors, with squeeze-and-excite if told so."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, act: type, excite: bool, kernel: int = 3):
        super().__init__()
        inner = inputs * expand
        self.skip = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [conv(inputs, inner, 1, act=act)] if expand > 1 else []
        layers += [conv(inner, inner, kernel, stride, inner, act)]
        layers += [excitation(inner)] if excite else []
        self.body = nn.Sequential(*layers, conv(inner, outputs, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def excitation(width: int, gate: type = nn.Hardsigmoid) -> nn.Module:
    squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, max(4, width // 4), 1), nn.ReLU()]
    return Of(
        lambda s, x: x * s.scale(x), scale=nn.Sequential(*squeeze, nn.Conv2d(max(4, width // 4), width, 1), gate())
    )


@stranger("MobileNetV2: inverted residuals, linear bottlenecks, ReLU6", (1, 3, 48, 48))
def mobilenet_v2() -> nn.Module:
    blocks = [Inverted(8, 12, 2, 4, nn.ReLU6, False), Inverted(12, 12, 1, 4, nn.ReLU6, False)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.ReLU6), *blocks, conv(12, 32, 1, act=nn.ReLU6), head(32))


@stranger("MobileNetV3: hard-swish, squeeze-and-excite, 5×5 depthwise", (1, 3, 48, 48))
def mobilenet_v3() -> nn.Module:
    blocks = [Inverted(8, 8, 1, 2, nn.ReLU, True), Inverted(8, 12, 2, 3, nn.Hardswish, True, 5)]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 24), nn.Hardswish(), nn.Dropout(0.2)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.Hardswish), *blocks, *last, nn.Linear(24, 10))


@stranger("EfficientNet: SiLU, squeeze-and-excite with a sigmoid", (1, 3, 40, 40))
def efficientnet() -> nn.Module:
    block = Inverted(8, 8, 1, 4, nn.SiLU, False)
    block.body.insert(2, excitation(32, nn.Sigmoid))
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.SiLU), block, conv(8, 24, 1, act=nn.SiLU), head(24))


@stranger("EfficientNet-Lite0: ReLU6 for SiLU, nothing squeezed, all of its stages, narrow", (1, 3, 64, 64))
def efficientnet_lite0() -> nn.Module:
    stages = [(1, 4, 1, 1, 3), (6, 4, 2, 2, 3), (6, 6, 2, 2, 5), (6, 8, 2, 2, 3), (6, 12, 2, 1, 5), (6, 16, 2, 2, 5)]
    blocks, inputs = [], 4
    for expand, outputs, count, stride, kernel in [*stages, (6, 24, 1, 1, 3)]:
        for number in range(count):
            blocks.append(Inverted(inputs, outputs, 1 if number else stride, expand, nn.ReLU6, False, kernel))
            inputs = outputs
    return nn.Sequential(conv(3, 4, 3, 2, act=nn.ReLU6), *blocks, conv(24, 32, 1, act=nn.ReLU6), head(32))


@stranger("ShuffleNetV2: channel split, shuffle, concatenation", (1, 3, 32, 32))
def shufflenet_v2() -> nn.Module:
    class Unit(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            half = width // 2
            self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, 3, 1, half, None), conv(half, half, 1))

        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, 1)
            n, c, h, w = x.shape
            mixed = torch.cat((left, self.branch(right)), 1)
            return mixed.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    return nn.Sequential(conv(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1), Unit(16), Unit(16), conv(16, 32, 1), head(32))


@stranger("GhostNet: half of the channels by cheap depthwise convolutions", (1, 3, 24, 24))
def ghostnet() -> nn.Module:
    ghost = Of(
        lambda s, x: torch.cat([y := s.primary(x), s.cheap(y)], 1), primary=conv(16, 8, 1), cheap=conv(8, 8, 3, 1, 8)
    )
    return nn.Sequential(conv(3, 16, 3, 2), ghost, head(16))


@stranger("MnasNet and MCUNet: kernels of 3, 5 and 7 in a row", (1, 3, 40, 40))
def mcunet() -> nn.Module:
    blocks = [Inverted(8, 12, 2, 3, nn.ReLU6, False, 7), Inverted(12, 12, 1, 4, nn.ReLU6, False, 5)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.ReLU6), *blocks, head(12, 2))


@stranger("Xception: separable convolutions with skips and max pooling", (1, 3, 24, 24))
def xception() -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Module:
        depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        return Of(
            lambda s, x: s.body(x) + s.skip(x),
            body=nn.Sequential(
                *(nn.ReLU(), depthwise, nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.MaxPool2d(3, 2, 1))
            ),
            skip=conv(inputs, outputs, 1, 2, act=None),
        )

    return nn.Sequential(conv(3, 8), block(8, 16), block(16, 24), head(24))


@stranger("ConvMixer: large depthwise kernels, GELU, normalisation behind the activation", (1, 3, 28, 28))
def convmixer() -> nn.Module:
    def behind(layer: nn.Module, width: int) -> nn.Sequential:
        return nn.Sequential(layer, nn.GELU(), nn.BatchNorm2d(width))

    mixer = nn.Sequential(
        Add(behind(nn.Conv2d(16, 16, 7, groups=16, padding="same"), 16)), behind(nn.Conv2d(16, 16, 1), 16)
    )
    return nn.Sequential(behind(nn.Conv2d(3, 16, 4, 4), 16), mixer, head(16))


@stranger("ConvNeXt: layer normalisation over channels, layer scale", (1, 3, 28, 28))
def convnext() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.gamma = nn.Parameter(torch.full((width,), 0.1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            return x + (self.gamma * self.mlp(y)).permute(0, 3, 1, 2)

    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), Block(16), Block(16), head(16))


@stranger("CBAM: attention over channels and over places", (1, 3, 20, 20))
def cbam() -> nn.Module:
    def attend(s: nn.Module, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(s.mlp(x.mean((2, 3))) + s.mlp(x.amax((2, 3))))[:, :, None, None]
        where = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(s.place(where))

    mlp = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
    block = Of(attend, mlp=mlp, place=nn.Conv2d(2, 1, 7, padding=3, bias=False))
    return nn.Sequential(conv(3, 16, 3, 2), block, head(16))


# ------------------------------------------------------------------------------------------- detection, segmentation


@stranger("YOLOv8: SiLU, C2f with splits, SPPF, nearest upsampling, three outputs", (1, 3, 64, 64))
def yolo() -> nn.Module:
    class C2f(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            half = width // 2
            self.first, self.last = conv(width, width, 1, act=nn.SiLU), conv(3 * half, width, 1, act=nn.SiLU)
            self.middle = Add(conv(half, half, act=nn.SiLU), conv(half, half, act=nn.SiLU))

        def forward(self, x: Tensor) -> Tensor:
            parts = list(self.first(x).chunk(2, 1))
            return self.last(torch.cat([*parts, self.middle(parts[-1])], 1))

    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p1, self.c1 = conv(3, 8, 3, 2, act=nn.SiLU), C2f(8)
            self.p2, self.c2 = conv(8, 16, 3, 2, act=nn.SiLU), C2f(16)
            self.p3, self.squeeze = conv(16, 32, 3, 2, act=nn.SiLU), conv(32, 16, 1, act=nn.SiLU)
            self.sppf, self.pool = conv(64, 32, 1, act=nn.SiLU), nn.MaxPool2d(5, 1, 2)
            self.up, self.c4 = nn.Upsample(scale_factor=2, mode="nearest"), conv(48, 16, 1, act=nn.SiLU)
            self.heads = nn.ModuleList(nn.Conv2d(width, 6, 1) for width in (8, 16, 32))

        def forward(self, x: Tensor) -> list[Tensor]:
            first = self.c1(self.p1(x))
            second = self.c2(self.p2(first))
            third = self.squeeze(self.p3(second))
            pools = [third]
            for _ in range(3):
                pools.append(self.pool(pools[-1]))
            third = self.sppf(torch.cat(pools, 1))
            second = self.c4(torch.cat([self.up(third), second], 1))
            return [head(y) for head, y in zip(self.heads, (first, second, third), strict=True)]

    return Neck()


@stranger("Tiny YOLO: leaky ReLU, max pooling of stride 1, space to depth", (1, 3, 48, 48))
def yolo_tiny() -> nn.Module:
    leaky = functools.partial(nn.LeakyReLU, 0.1)
    layers = [conv(3, 8, act=leaky), nn.MaxPool2d(2), conv(8, 16, act=leaky), nn.MaxPool2d(2)]
    pad = nn.ZeroPad2d((0, 1, 0, 1))
    return nn.Sequential(
        *layers, pad, nn.MaxPool2d(2, 1), nn.PixelUnshuffle(2), conv(64, 32, act=leaky), nn.Conv2d(32, 18, 1)
    )


@stranger("SSD: boxes and scores of two maps, flattened and joined", (1, 3, 48, 48))
def ssd() -> nn.Module:
    def detect(s: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = [s.first(x)]
        maps.append(s.second(maps[0]))
        boxes = [layer(y).permute(0, 2, 3, 1).reshape(1, -1, 4) for layer, y in zip(s.boxes, maps, strict=True)]
        scores = [layer(y).permute(0, 2, 3, 1).reshape(1, -1, 3) for layer, y in zip(s.scores, maps, strict=True)]
        return torch.cat(boxes, 1), torch.cat(scores, 1).softmax(-1)

    return Of(
        detect,
        first=nn.Sequential(conv(3, 8, 3, 2), separable(8, 16, 2)),
        second=separable(16, 16, 2),
        boxes=nn.ModuleList(nn.Conv2d(16, 8, 3, padding=1) for _ in range(2)),
        scores=nn.ModuleList(nn.Conv2d(16, 6, 3, padding=1) for _ in range(2)),
    )


@stranger("BlazeFace: residuals over padded channels, pooled skips", (1, 3, 32, 32))
def blazeface() -> nn.Module:
    def block(s: nn.Module, x: Tensor) -> Tensor:
        skip = F.pad(F.max_pool2d(x, 2), (0, 0, 0, 0, 0, 8))
        return F.relu(s.body(F.pad(x, (0, 2, 0, 2))) + skip)

    body = nn.Sequential(nn.Conv2d(16, 16, 5, 2, 1, groups=16), nn.Conv2d(16, 24, 1))
    return nn.Sequential(conv(3, 16, 5, 2), Of(block, body=body), nn.Conv2d(24, 8, 1))


@stranger("Feature pyramid: lateral additions, nearest upsampling to a size, a dictionary of outputs", (1, 3, 52, 44))
def pyramid() -> nn.Module:
    def features(s: nn.Module, x: Tensor) -> dict[str, Tensor]:
        low = s.low(x)
        high = s.high(low)
        top = s.lateral_high(high)
        bottom = s.lateral_low(low) + F.interpolate(top, size=low.shape[-2:], mode="nearest")
        return OrderedDict(p2=s.smooth(bottom), p3=top)

    return Of(
        features,
        low=conv(3, 8, 3, 2),
        high=conv(8, 16, 3, 2),
        lateral_low=nn.Conv2d(8, 8, 1),
        lateral_high=nn.Conv2d(16, 8, 1),
        smooth=nn.Conv2d(8, 8, 3, padding=1),
    )


@stranger("U-Net: transposed convolutions, skips by concatenation", (1, 1, 32, 32))
def unet() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        first = s.down1(x)
        second = s.down2(F.max_pool2d(first, 2))
        up = torch.cat([s.up1(s.middle(F.max_pool2d(second, 2))), second], 1)
        return s.out(torch.cat([s.up2(s.fuse(up)), first], 1))

    def double(inputs: int, outputs: int) -> nn.Module:
        first = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    return Of(
        forward,
        down1=double(1, 8),
        down2=double(8, 16),
        middle=double(16, 24),
        up1=nn.ConvTranspose2d(24, 16, 2, 2),
        fuse=double(32, 16),
        up2=nn.ConvTranspose2d(16, 8, 2, 2),
        out=nn.Conv2d(16, 2, 1),
    )


@stranger("DeepLab: dilated branches, image pooling, bilinear upsampling", (1, 3, 33, 33))
def deeplab() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = s.stem(x)
        pooled = F.interpolate(s.pool(y), size=y.shape[-2:], mode="bilinear", align_corners=False)
        y = s.out(torch.cat([*(branch(y) for branch in s.branches), pooled], 1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)

    def dilated(rate: int) -> nn.Module:
        layer = nn.Conv2d(16, 8, 3, padding=rate, dilation=rate, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU())

    return Of(
        forward,
        stem=nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2)),
        branches=nn.ModuleList([conv(16, 8, 1), dilated(2), dilated(4), dilated(6)]),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(16, 8, 1)),
        out=nn.Sequential(conv(40, 16, 1), nn.Conv2d(16, 5, 1)),
    )


@stranger("ENet and ERFNet: factorised convolutions, PReLU, asymmetric kernels", (1, 3, 32, 32))
def erfnet() -> nn.Module:
    block = Add(
        *(nn.Conv2d(16, 16, (3, 1), padding=(1, 0)), nn.PReLU(), nn.Conv2d(16, 16, (1, 3), padding=(0, 1))),
        *(nn.BatchNorm2d(16), nn.PReLU(16)),
    )
    initial = Concat([nn.Conv2d(3, 13, 3, 2, 1), nn.MaxPool2d(2)])
    up = nn.ConvTranspose2d(16, 4, 3, 2, 1, output_padding=1)
    return nn.Sequential(initial, nn.BatchNorm2d(16), nn.PReLU(), block, up)


@stranger("Pyramid pooling (PSPNet): averages over bins that don't divide the map", (1, 3, 30, 30))
def pspnet() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = s.stem(x)
        sizes = [F.interpolate(branch(y), y.shape[-2:], mode="bilinear", align_corners=True) for branch in s.bins]
        return s.out(torch.cat([y, *sizes], 1))

    bins = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(size), conv(8, 4, 1)) for size in (1, 2, 3, 6))
    return Of(forward, stem=conv(3, 8, 3, 2), bins=bins, out=nn.Conv2d(24, 3, 1))


@stranger("HRNet: two resolutions that exchange by stride and by upsampling", (1, 3, 32, 32))
def hrnet() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        high = s.stem(x)
        low = s.down(high)
        mixed = F.relu(high + F.interpolate(s.narrow(low), scale_factor=2.0, mode="bilinear"))
        return s.out(torch.cat([mixed, F.interpolate(F.relu(low + s.again(high)), scale_factor=2)], 1))

    parts = {"stem": conv(3, 8, 3, 2), "down": conv(8, 12, 3, 2), "again": conv(8, 12, 3, 2, act=None)}
    return Of(forward, **parts, narrow=conv(12, 8, 1, act=None), out=nn.Conv2d(20, 4, 1))


# ------------------------------------------------------------------------------------------------ images to images


@stranger("Super-resolution: pixel shuffle, clamp to an image", (1, 1, 20, 20))
def espcn() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 9, 3, padding=1), nn.PixelShuffle(3)]
    return nn.Sequential(*layers, nn.Hardtanh(0, 1))


@stranger("Style transfer: reflection padding, instance normalisation, nearest upsampling", (1, 3, 24, 24))
def style() -> nn.Module:
    def padded(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [nn.ReflectionPad2d(kernel // 2), nn.Conv2d(inputs, outputs, kernel, stride)]

    down = [*padded(3, 8, 9), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), *padded(8, 12, 3, 2)]
    return nn.Sequential(*down, nn.InstanceNorm2d(12), nn.ReLU(), nn.Upsample(scale_factor=2), *padded(12, 3, 9))


@stranger("GAN generator: transposed convolutions with normalisation, tanh", (1, 16))
def generator() -> nn.Module:
    layers = [
        nn.ConvTranspose2d(16, 16, 4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
    ]
    return nn.Sequential(
        nn.Unflatten(1, (16, 1, 1)), *layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3), nn.Tanh()
    )


@stranger("Denoiser: the noise is subtracted, convolutions with replicated borders", (1, 1, 24, 24))
def dncnn() -> nn.Module:
    layers = [nn.Conv2d(1, 12, 3, padding=1, padding_mode="replicate"), nn.ReLU()]
    return Of(lambda s, x: x - s.body(x), body=nn.Sequential(*layers, conv(12, 12), nn.Conv2d(12, 1, 3, padding=1)))


@stranger("Depth estimation: an encoder with upsampling by sizes, sigmoid, several scales as outputs", (1, 3, 36, 28))
def depth() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        low = s.encode(x)
        up = F.interpolate(low, size=(18, 14), mode="bilinear", align_corners=True)
        return 1 / (0.1 + torch.sigmoid(s.far(up))), torch.sigmoid(s.near(low))

    return Of(
        forward,
        encode=nn.Sequential(conv(3, 8, 3, 2), conv(8, 8, 3, 2)),
        far=nn.Conv2d(8, 1, 3, padding=1),
        near=nn.Conv2d(8, 1, 1),
    )


# ---------------------------------------------------------------------------------------------------- sound, sequences


@stranger("DS-CNN of MLPerf Tiny: keyword spotting with an asymmetric stem", (1, 1, 49, 10))
def ds_cnn() -> nn.Module:
    stem = [nn.Conv2d(1, 16, (10, 4), (2, 2), (5, 1)), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2)]
    block = [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)]
    return nn.Sequential(
        *stem, *block, nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(16, 12)
    )


@stranger("Autoencoder of MLPerf Tiny: linear layers with normalisation", (1, 64))
def autoencoder() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((64, 32), (32, 8), (8, 32)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 64))


@stranger("Temporal convolutions: causal padding, dilations, skips", (1, 6, 40))
def tcn() -> nn.Module:
    def block(width: int, rate: int) -> nn.Module:
        causal = [nn.ConstantPad1d((2 * rate, 0), 0.0), nn.Conv1d(width, width, 3, dilation=rate)]
        return Add(*causal, nn.BatchNorm1d(width), nn.ReLU())

    return nn.Sequential(
        nn.Conv1d(6, 8, 1),
        block(8, 1),
        block(8, 2),
        block(8, 4),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@stranger("WaveNet: gated activations, skip connections", (1, 4, 32))
def wavenet() -> nn.Module:
    def block(s: nn.Module, x: Tensor) -> Tensor:
        a, b = s.both(F.pad(x, (4, 0))).chunk(2, 1)
        return x + s.out(torch.tanh(a) * torch.sigmoid(b))

    layer = Of(block, both=nn.Conv1d(8, 16, 3, dilation=2), out=nn.Conv1d(8, 8, 1))
    return nn.Sequential(nn.Conv1d(4, 8, 1), layer, nn.ReLU(), nn.Conv1d(8, 5, 1))


@stranger("Convolutions and a GRU over their maps (CRNN)", (1, 1, 16, 24))
def crnn() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = s.body(x)
        steps, _ = s.gru(y.flatten(1, 2).transpose(1, 2))
        return s.out(steps).log_softmax(-1)

    body = nn.Sequential(conv(1, 4), nn.MaxPool2d((2, 2)), conv(4, 4), nn.MaxPool2d((4, 2)))
    return Of(forward, body=body, gru=nn.GRU(8, 8, batch_first=True, bidirectional=True), out=nn.Linear(16, 5))


@stranger("LSTM over a window of sensors, its last step classified", (1, 12, 6))
def lstm() -> nn.Module:
    return Of(lambda s, x: s.out(s.lstm(x)[0][:, -1]), lstm=nn.LSTM(6, 8, 2, batch_first=True), out=nn.Linear(8, 4))


@stranger("Human activity from one-dimensional convolutions with batch 2", (2, 3, 50))
def har() -> nn.Module:
    layers = [
        nn.Conv1d(3, 8, 5),
        nn.ReLU(),
        nn.BatchNorm1d(8),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 5, groups=2),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 19, 6), nn.Softmax(1))


@stranger("Spectrogram by convolution with fixed filters, logarithm, batch normalisation of the input", (1, 1, 256))
def spectrogram() -> nn.Module:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            angle = 2 * math.pi * torch.arange(17)[:, None] * torch.arange(32)[None] / 32
            self.register_buffer("real", (torch.cos(angle) * torch.hann_window(32))[:, None])
            self.register_buffer("imaginary", (torch.sin(angle) * torch.hann_window(32))[:, None])

        def forward(self, x: Tensor) -> Tensor:
            power = F.conv1d(x, self.real, stride=16) ** 2 + F.conv1d(x, self.imaginary, stride=16) ** 2
            return torch.log(power + 1e-3).unsqueeze(1)

    return nn.Sequential(Spectrum(), nn.BatchNorm2d(1), conv(1, 8, 3, 2), head(8, 4))


# ------------------------------------------------------------------------------------------------------ transformers


@stranger("Vision transformer: patches, class token, attention, GELU", (1, 3, 16, 16))
def vit() -> nn.Module:
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            self.token, self.place = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.out = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.patches(x).flatten(2).transpose(1, 2)
            y = torch.cat([self.token.expand(len(y), -1, -1), y], 1) + self.place
            return self.out(self.encoder(y)[:, 0])

    return Vit()


@stranger("MobileViT: convolution and attention over unfolded places", (1, 8, 8, 8))
def mobilevit() -> nn.Module:
    def attend(s: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1).reshape(n * 4, h * w // 4, c)
        q, k, v = s.qkv(s.norm(y)).chunk(3, -1)
        y = y + F.scaled_dot_product_attention(q, k, v)
        return y.reshape(n, 2, 2, h // 2, w // 2, c).permute(0, 5, 3, 1, 4, 2).reshape(n, c, h, w)

    block = Of(attend, qkv=nn.Linear(8, 24), norm=nn.LayerNorm(8))
    return nn.Sequential(conv(8, 8, act=nn.SiLU), block, conv(8, 8, 1, act=nn.SiLU), head(8))


@stranger("MLP-Mixer: linear layers over places and over channels", (1, 3, 16, 16))
def mixer() -> nn.Module:
    def mix(s: nn.Module, x: Tensor) -> Tensor:
        x = x + s.places(s.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + s.channels(s.norm2(x))

    def mlp(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    block = Of(mix, places=mlp(16), channels=mlp(12), norm1=nn.LayerNorm(12), norm2=nn.LayerNorm(12))
    patches = [nn.Conv2d(3, 12, 4, 4), nn.Flatten(2), Of(lambda s, x: x.transpose(1, 2))]
    return nn.Sequential(*patches, block, Of(lambda s, x: x.mean(1)), nn.Linear(12, 5))


# ------------------------------------------------------------------------------------------- several inputs, odd forms


@stranger("Siamese: one body for two images, cosine similarity", (1, 1, 16, 16), (1, 1, 16, 16))
def siamese() -> nn.Module:
    body = nn.Sequential(conv(1, 8, 3, 2), conv(8, 8, 3, 2), nn.Flatten(), nn.Linear(128, 16))
    return Of(lambda s, a, b: F.cosine_similarity(F.normalize(s.body(a)), s.body(b)), body=body)


@stranger("Fusion of an image and a vector of sensors", (1, 3, 16, 16), (1, 5))
def fusion() -> nn.Module:
    def forward(s: nn.Module, image: Tensor, sensors: Tensor) -> Tensor:
        return s.out(torch.cat([s.image(image), F.relu(s.sensors(sensors))], -1))

    parts = {"image": nn.Sequential(conv(3, 8, 3, 2), head(8, 8)), "sensors": nn.Linear(5, 8)}
    return Of(forward, **parts, out=nn.Linear(16, 3))


@stranger("PointNet: one-dimensional convolutions, the largest over points, a learned transform", (1, 3, 32))
def pointnet() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        turn = s.turn(s.points(x).max(2)[0]).view(-1, 3, 3) + torch.eye(3)
        return s.out(s.features(torch.bmm(turn, x)).amax(2))

    def points() -> nn.Module:
        return nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())

    return Of(forward, points=points(), turn=nn.Linear(16, 9), features=points(), out=nn.Linear(16, 4))


@stranger("Video: three-dimensional convolutions with normalisation", (1, 3, 6, 12, 12))
def video() -> nn.Module:
    layers = [nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2)]
    return nn.Sequential(*layers, nn.Conv3d(8, 8, (1, 3, 3)), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4))


@stranger("A classifier that answers with the class, its score and all scores", (1, 3, 12, 12))
def top_class() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = s.body(x).softmax(1)
        return scores.argmax(1), scores.max(1)[0], scores

    return Of(forward, body=nn.Sequential(conv(3, 8, 3, 2), head(8, 6)))


@stranger("One normalisation used in two places", (1, 3, 12, 12))
def shared_normalisation() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 1), norm, nn.ReLU())


@stranger("Group normalisation and SELU", (1, 3, 16, 16))
def groupnorm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2),
        nn.GroupNorm(4, 16),
        nn.SELU(),
        nn.Conv2d(16, 8, 3),
        nn.GroupNorm(1, 8),
        nn.Softplus(),
        head(8),
    )


@stranger("Squeeze and slices: steps, negative indices, stacking, a mean over places", (1, 4, 10, 10))
def slices() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        focus = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        y = torch.stack([s.conv(focus)[:, :, -1], s.conv(focus)[:, :, 0]], 0)
        return y.mean(0).std(-1)

    return Of(forward, conv=nn.Conv2d(16, 8, 3, padding=1))
