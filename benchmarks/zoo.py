"""Networks of the kinds and sizes that embedded devices run, which `benchmarks.peers --models all` takes.

Weights are random: what is compared is speed, and that answers agree. They come from a seed, keep the size of
activations over the depth, so that answers depend on every layer, and no normalisation is the identity, which a
compiler could leave out. `ZOO` has the factories with the shapes of their inputs, the batch among them, and
`benchmarks.networks` gives them the names that commands take; `tvmflow build --model benchmarks.zoo:NAME` builds one
like any user's. A network is written out here as its paper has it, or smaller where that one is too large for such
devices: most do between five and six hundred million multiply-adds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvmflow.models.baselines import GoogLeNet, SqueezeNet
from tvmflow.models.dilated_net import DilatedNet
from tvmflow.models.resnet8 import ResNet8

Make = Callable[[], nn.Module]
Act = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network of the zoo: `description` is what it stands for, `input_shape` that of its one float32 input."""

    name: str
    description: str
    input_shape: tuple[int, ...]
    make: Make

    @property
    def factory(self) -> str:
        """As `tvmflow build --model` takes it."""
        return f"{__name__}:{self.make.__name__}"

    def __call__(self) -> nn.Module:
        return self.make()


ZOO: dict[str, Entry] = {}
"""By the names that `benchmarks.peers --models` takes: the factories' with hyphens."""


def network(description: str, input_shape: tuple[int, ...]) -> Callable[[Make], Make]:
    """Enter a factory into `ZOO`; what it makes has the weights that the module's docstring tells of."""

    def enter(make: Make) -> Make:
        @functools.wraps(make)
        def seeded() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return _initialised(make())

        name = make.__name__.replace("_", "-")
        ZOO[name] = Entry(name=name, description=description, input_shape=input_shape, make=seeded)
        return seeded

    return enter


NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def _initialised(made: nn.Module) -> nn.Module:
    for layer in made.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, NORMALISATIONS) and layer.weight is not None:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return made.eval()


# ------------------------------------------------------------------------------------------------------------- parts


class Of(nn.Module):
    """A module of a function of (itself, input) and of the parts that it is given by name."""

    def __init__(self, function: Callable, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor):
        return self.function(self, x)


class Add(nn.Sequential):
    """Its input is added to its result."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Concat(nn.ModuleList):
    """What each branch makes of the input, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class SameConv2d(nn.Conv2d):
    """With TensorFlow's SAME borders for even maps: where it strides, the border is wider below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.kernel_size[0] - self.stride[0]
        return super().forward(F.pad(x, (whole // 2, whole - whole // 2) * 2))


def conv(
    before: int,
    after: int,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: Act | None = nn.ReLU,
    dilation: int = 1,
    kind: type[nn.Conv2d] = nn.Conv2d,
) -> nn.Sequential:
    """Convolution without a bias, batch normalisation and activation."""
    border = 0 if kind is SameConv2d else size // 2 * dilation
    layer = kind(before, after, size, stride, border, dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), *([act()] if act else []))


def head(channels: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def separable(
    before: int, after: int, stride: int = 1, act: Act = nn.ReLU, kind: type[nn.Conv2d] = nn.Conv2d, size: int = 3
) -> nn.Sequential:
    return nn.Sequential(
        conv(before, before, size, stride, before, act, kind=kind if stride > 1 else nn.Conv2d),
        conv(before, after, 1, act=act),
    )


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2 and its successors, squeezed to `squeezed` channels if told so."""

    def __init__(
        self,
        before: int,
        after: int,
        stride: int = 1,
        inner: int = 0,
        act: Act = nn.ReLU6,
        size: int = 3,
        squeezed: int = 0,
        gate: Act = nn.Sigmoid,
        kind: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        inner = inner or before
        self.skip = stride == 1 and before == after
        layers: list[nn.Module] = [conv(before, inner, 1, act=act)] if inner != before else []
        layers.append(conv(inner, inner, size, stride, inner, act, kind=kind if stride > 1 else nn.Conv2d))
        if squeezed:
            layers.append(excitation(inner, squeezed, nn.SiLU if act is nn.SiLU else nn.ReLU, gate))
        self.body = nn.Sequential(*layers, conv(inner, after, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def excitation(width: int, squeezed: int, act: Act = nn.ReLU, gate: Act = nn.Sigmoid) -> nn.Module:
    layers = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, squeezed, 1), act(), nn.Conv2d(squeezed, width, 1), gate()]
    return Of(lambda s, x: x * s.scale(x), scale=nn.Sequential(*layers))


def inverted_stages(
    before: int,
    stages: Sequence[tuple[int, int, int, int, int]],
    act: Act = nn.ReLU6,
    excite: bool = False,
    kind: type[nn.Conv2d] = nn.Conv2d,
) -> list[nn.Module]:
    """Stages of (expansion, channels, blocks, stride of the first, side of the filters)."""
    blocks: list[nn.Module] = []
    for expand, after, count, stride, size in stages:
        for number in range(count):
            squeezed = max(1, before // 4) if excite else 0
            step = 1 if number else stride
            blocks.append(Inverted(before, after, step, before * expand, act, size, squeezed, kind=kind))
            before = after
    return blocks


def upsampled(x: Tensor, like: Tensor) -> Tensor:
    """As large as another map, by bilinear interpolation."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


# ------------------------------------------------------------------------------------------ classifiers of the classics


@network("ResNet-8 of MLPerf Tiny, eight images at a time", (8, 3, 32, 32))
def resnet_8_batch_8() -> nn.Module:
    return ResNet8()


@network("the paper's network for images of 65×65", (1, 3, 65, 65))
def dilated_net_65() -> nn.Module:
    return DilatedNet()


class Basic(nn.Module):
    """The residual block of two 3×3 convolutions, with a projection where shapes differ."""

    def __init__(self, before: int, after: int, stride: int = 1, norm: Callable = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), norm(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), norm(after)
        same = stride == 1 and before == after
        projection = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))
        self.skip = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


def resnet(widths: Sequence[int], stem: Sequence[nn.Module], classes: int, norm: Callable = nn.BatchNorm2d):
    blocks = []
    for stage, (before, after) in enumerate(itertools.pairwise((widths[0], *widths))):
        blocks += [Basic(before, after, 2 if stage else 1, norm), Basic(after, after, 1, norm)]
    return nn.Sequential(*stem, *blocks, head(widths[-1], classes))


@network("ResNet-18 for small images, without the first halvings of the map but one", (1, 3, 64, 64))
def resnet_18_64() -> nn.Module:
    return resnet((64, 128, 256, 512), [conv(3, 64, 3, 2)], 10)


@network("ResNet-18 as it was published", (1, 3, 224, 224))
def resnet_18_224() -> nn.Module:
    return resnet((64, 128, 256, 512), [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 1000)


@network("a residual network with group normalisation, eight channels a group", (1, 3, 64, 64))
def resnet_groupnorm_64() -> nn.Module:
    def norm(width: int) -> nn.Module:
        return nn.GroupNorm(width // 8, width)

    stem = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), norm(32), nn.ReLU()]
    return resnet((32, 64, 128), stem, 10, norm)


@network("ResNeXt with 26 layers, 3×3 convolutions in 32 groups, half as wide as published", (1, 3, 96, 96))
def resnext_26_96() -> nn.Module:
    def block(before: int, inner: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            conv(before, inner, 1), conv(inner, inner, 3, stride, 32), conv(inner, 2 * inner, 1, act=None)
        )
        same = before == 2 * inner and stride == 1
        skip = nn.Identity() if same else conv(before, 2 * inner, 1, stride, act=None)
        return Of(lambda s, x: F.relu(s.body(x) + s.skip(x)), body=body, skip=skip)

    blocks, before = [], 32
    for stage, inner in enumerate((64, 128, 256, 512)):
        blocks += [block(before, inner, 2 if stage else 1), block(2 * inner, inner, 1)]
        before = 2 * inner
    return nn.Sequential(conv(3, 32, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks, head(before, 100))


def vgg(widths: Sequence[Sequence[int]], classifier: nn.Module, norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for stage in widths:
        for after in stage:
            bn = [nn.BatchNorm2d(after)] if norm else []
            layers += [nn.Conv2d(before, after, 3, padding=1), *bn, nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), classifier)


@network("a VGG of six convolutions without normalisation, and two linear layers", (1, 3, 96, 96))
def vgg_small_96() -> nn.Module:
    classifier = nn.Sequential(nn.Linear(128 * 12 * 12, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10))
    return vgg(((32, 32), (64, 64), (128, 128)), classifier, norm=False)


@network("VGG11 with batch normalisation for small images", (1, 3, 32, 32))
def vgg_11_bn_32() -> nn.Module:
    widths = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    return vgg(widths, nn.Sequential(nn.Dropout(), nn.Linear(512, 10)), norm=True)


@network("SqueezeNet 1.1 as it was published", (1, 3, 224, 224))
def squeezenet_224() -> nn.Module:
    return SqueezeNet(1000, small=False)


@network("GoogLeNet with batch normalisation, its published stem", (1, 3, 128, 128))
def googlenet_128() -> nn.Module:
    return GoogLeNet(100, small=False)


@network("DenseNet with bottlenecks, growth 16, three blocks of eight layers", (1, 3, 64, 64))
def densenet_64() -> nn.Module:
    def layer(before: int) -> nn.Module:
        first = [nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, 64, 1, bias=False)]
        second = [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 16, 3, padding=1, bias=False)]
        return Concat([nn.Identity(), nn.Sequential(*first, *second)])

    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False)]
    width = 32
    for block in range(3):
        if block:
            narrow = nn.Conv2d(width, width // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(width), nn.ReLU(), narrow, nn.AvgPool2d(2)]
            width //= 2
        for _ in range(8):
            layers.append(layer(width))
            width += 16
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), head(width))


@network("convolutions of 2×2 and 4×4 that keep the map's size", (1, 3, 64, 64))
def even_kernels_64() -> nn.Module:
    def same(before: int, after: int, size: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, size, padding="same", bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *(*same(3, 32, 4), nn.MaxPool2d(2), *same(32, 64, 2), *same(64, 64, 4), nn.MaxPool2d(2)),
        *(*same(64, 128, 2), *same(128, 128, 4), nn.MaxPool2d(2), *same(128, 128, 2), head(128)),
    )


# ---------------------------------------------------------------------------------------------------- mobile networks


MOBILE_WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
MOBILE_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def mobilenet_v1(width: float, classes: int, kind: type[nn.Conv2d], act: Act) -> nn.Module:
    widths = [int(32 * width), *(int(channels * width) for channels in MOBILE_WIDTHS)]
    blocks = [
        separable(before, after, stride, act, kind)
        for (before, after), stride in zip(itertools.pairwise(widths), MOBILE_STRIDES, strict=True)
    ]
    return nn.Sequential(conv(3, widths[0], 3, 2, act=act, kind=kind), *blocks, head(widths[-1], classes))


@network("MobileNetV1 ×0.25 of MLPerf Tiny's visual wake words", (1, 3, 96, 96))
def mobilenet_v1_025_96() -> nn.Module:
    return mobilenet_v1(0.25, 2, nn.Conv2d, nn.ReLU)


@network("MobileNetV1 ×0.5 with TensorFlow's borders, unlike on both sides where it strides", (1, 3, 160, 160))
def mobilenet_v1_050_tf_160() -> nn.Module:
    return mobilenet_v1(0.5, 1000, SameConv2d, nn.ReLU6)


@network("MobileNetV2 ×0.5 with TensorFlow's borders, unlike on both sides where it strides", (1, 3, 128, 128))
def mobilenet_v2_050_tf_128() -> nn.Module:
    stages = (
        (6, 16, 2, 2, 3),
        (6, 16, 3, 2, 3),
        (6, 32, 4, 2, 3),
        (6, 48, 3, 1, 3),
        (6, 80, 3, 2, 3),
        (6, 160, 1, 1, 3),
    )
    first = [conv(3, 16, 3, 2, act=nn.ReLU6, kind=SameConv2d), Inverted(16, 8)]
    last = [conv(160, 1280, 1, act=nn.ReLU6), head(1280, 1000)]
    return nn.Sequential(*first, *inverted_stages(8, stages, kind=SameConv2d), *last)


@network("MobileNetV3-small: hard-swish, squeeze-and-excite, 5×5 depthwise", (1, 3, 224, 224))
def mobilenet_v3_small_224() -> nn.Module:
    rows = (
        *((3, 16, 16, True, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 2), (3, 88, 24, False, nn.ReLU, 1)),
        *((5, 96, 40, True, nn.Hardswish, 2), (5, 240, 40, True, nn.Hardswish, 1), (5, 240, 40, True, nn.Hardswish, 1)),
        *((5, 120, 48, True, nn.Hardswish, 1), (5, 144, 48, True, nn.Hardswish, 1)),
        *(
            (5, 288, 96, True, nn.Hardswish, 2),
            (5, 576, 96, True, nn.Hardswish, 1),
            (5, 576, 96, True, nn.Hardswish, 1),
        ),
    )
    blocks, before = [], 16
    for size, inner, after, excite, act, stride in rows:
        squeezed = -(-inner // 32) * 8 if excite else 0
        blocks.append(Inverted(before, after, stride, inner, act, size, squeezed, nn.Hardsigmoid))
        before = after
    last = [conv(96, 576, 1, act=nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 1024)]
    classifier = [nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, 1000)]
    return nn.Sequential(conv(3, 16, 3, 2, act=nn.Hardswish), *blocks, *last, *classifier)


EFFICIENT = (
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


@network("EfficientNet-B0: SiLU, squeeze-and-excite", (1, 3, 128, 128))
def efficientnet_b0_128() -> nn.Module:
    first = [conv(3, 32, 3, 2, act=nn.SiLU), Inverted(32, 16, act=nn.SiLU, squeezed=8)]
    last = [conv(320, 1280, 1, act=nn.SiLU), head(1280, 1000)]
    return nn.Sequential(*first, *inverted_stages(16, EFFICIENT, nn.SiLU, excite=True), *last)


@network("EfficientNet-Lite0: ReLU6 for SiLU, nothing squeezed", (1, 3, 160, 160))
def efficientnet_lite0_160() -> nn.Module:
    first = [conv(3, 32, 3, 2, act=nn.ReLU6), Inverted(32, 16)]
    last = [conv(320, 1280, 1, act=nn.ReLU6), head(1280, 1000)]
    return nn.Sequential(*first, *inverted_stages(16, EFFICIENT), *last)


@network("MnasNet ×0.5: depthwise 3×3 and 5×5", (1, 3, 128, 128))
def mnasnet_050_128() -> nn.Module:
    stages = (
        (3, 16, 3, 2, 3),
        (3, 24, 3, 2, 5),
        (6, 40, 3, 2, 5),
        (6, 48, 2, 1, 3),
        (6, 96, 4, 2, 5),
        (6, 160, 1, 1, 3),
    )
    first = [conv(3, 16, 3, 2), Inverted(16, 8, act=nn.ReLU)]
    return nn.Sequential(*first, *inverted_stages(8, stages, nn.ReLU), conv(160, 1280, 1), head(1280, 1000))


@network("the kind of network that MCUNet's search finds: depthwise 3×3, 5×5 and 7×7 in turns", (1, 3, 160, 160))
def mcunet_160() -> nn.Module:
    stages = (
        *((3, 16, 1, 2, 7), (4, 16, 1, 1, 3), (3, 24, 1, 2, 7), (5, 24, 1, 1, 5), (4, 24, 1, 1, 5), (6, 40, 1, 2, 7)),
        *((5, 40, 1, 1, 7), (4, 48, 1, 1, 5), (3, 48, 1, 1, 5), (6, 96, 1, 2, 7), (4, 96, 1, 1, 3), (5, 160, 1, 1, 7)),
    )
    first = [conv(3, 16, 3, 2, act=nn.ReLU6), Inverted(16, 8)]
    return nn.Sequential(*first, *inverted_stages(8, stages), head(160, 1000))


@network("ShuffleNetV1 in three groups: grouped 1×1 convolutions, channels shuffled between them", (1, 3, 224, 224))
def shufflenet_v1_g3_224() -> nn.Module:
    class Unit(nn.Module):
        def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
            super().__init__()
            inner, self.stride = after // 4, stride
            made = after - before if stride > 1 else after
            self.squeeze = conv(before, inner, 1, groups=groups)
            self.spread = nn.Sequential(
                conv(inner, inner, 3, stride, inner, None), conv(inner, made, 1, groups=3, act=None)
            )
            self.pool = nn.AvgPool2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.spread(shuffled(self.squeeze(x), 3))
            return F.relu(torch.cat([self.pool(x), y], 1) if self.stride > 1 else x + y)

    units, before = [], 24
    for after, count in ((240, 4), (480, 8), (960, 4)):
        units += [Unit(before, after, 2, 1 if before == 24 else 3)]
        units += [Unit(after, after, 1, 3) for _ in range(count - 1)]
        before = after
    return nn.Sequential(conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1), *units, head(960, 1000))


def shufflenet_v2(widths: Sequence[int]) -> nn.Module:
    class Unit(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            half = width // 2
            self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, 3, 1, half, None), conv(half, half, 1))

        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, 1)
            return shuffled(torch.cat([left, self.branch(right)], 1), 2)

    def down(before: int, after: int) -> nn.Module:
        half = after // 2
        left = nn.Sequential(conv(before, before, 3, 2, before, None), conv(before, half, 1))
        right = nn.Sequential(conv(before, half, 1), conv(half, half, 3, 2, half, None), conv(half, half, 1))
        return Of(lambda s, x: shuffled(s.both(x), 2), both=Concat([left, right]))

    units: list[nn.Module] = []
    for (before, after), count in zip(itertools.pairwise((24, *widths)), (3, 7, 3), strict=True):
        units += [down(before, after), *(Unit(after) for _ in range(count))]
    last = [conv(widths[-1], 1024, 1), head(1024, 1000)]
    return nn.Sequential(conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1), *units, *last)


@network("ShuffleNetV2 ×0.5: channels split, shuffled, joined", (1, 3, 224, 224))
def shufflenet_v2_050_224() -> nn.Module:
    return shufflenet_v2((48, 96, 192))


@network("ShuffleNetV2 ×1.0: channels split, shuffled, joined", (1, 3, 224, 224))
def shufflenet_v2_100_224() -> nn.Module:
    return shufflenet_v2((116, 232, 464))


@network("GhostNet: half of the channels by cheap depthwise convolutions", (1, 3, 160, 160))
def ghostnet_160() -> nn.Module:
    def ghost(before: int, after: int, act: Act | None) -> nn.Module:
        half = after // 2
        parts = {"primary": conv(before, half, 1, act=act), "cheap": conv(half, half, 3, 1, half, act)}
        return Of(lambda s, x: torch.cat([y := s.primary(x), s.cheap(y)], 1), **parts)

    def bottleneck(before: int, inner: int, after: int, size: int, stride: int, excite: bool) -> nn.Module:
        layers = [ghost(before, inner, nn.ReLU)]
        layers += [conv(inner, inner, size, stride, inner, None)] if stride > 1 else []
        layers += [excitation(inner, -(-inner // 16) * 4, gate=nn.Hardsigmoid)] if excite else []
        body = nn.Sequential(*layers, ghost(inner, after, None))
        if stride == 1 and before == after:
            return Add(*body)
        skip = nn.Sequential(conv(before, before, size, stride, before, None), conv(before, after, 1, act=None))
        return Of(lambda s, x: s.body(x) + s.skip(x), body=body, skip=skip)

    rows = (
        *((16, 16, 3, 1, False), (48, 24, 3, 2, False), (72, 24, 3, 1, False), (72, 40, 5, 2, True)),
        *((120, 40, 5, 1, True), (240, 80, 3, 2, False), (200, 80, 3, 1, False), (184, 80, 3, 1, False)),
        *((184, 80, 3, 1, False), (480, 112, 3, 1, True), (672, 112, 3, 1, True), (672, 160, 5, 2, True)),
        *((960, 160, 5, 1, False), (960, 160, 5, 1, True), (960, 160, 5, 1, False), (960, 160, 5, 1, True)),
    )
    blocks, before = [], 16
    for inner, after, size, stride, excite in rows:
        blocks.append(bottleneck(before, inner, after, size, stride, excite))
        before = after
    last = [conv(160, 960, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(960, 1280, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(conv(3, 16, 3, 2), *blocks, *last, nn.Linear(1280, 1000))


@network("depthwise convolutions that make two channels, or four, of each", (1, 3, 96, 96))
def depthwise_multiplier_96() -> nn.Module:
    def block(width: int, multiplier: int, after: int, stride: int) -> list[nn.Module]:
        made = width * multiplier
        return [conv(width, made, 3, stride, width), conv(made, after, 1)]

    stages = [*block(3, 8, 32, 2), *block(32, 2, 64, 2), *block(64, 4, 64, 1), *block(64, 2, 128, 2)]
    return nn.Sequential(*stages, *block(128, 2, 128, 1), *block(128, 2, 256, 2), head(256))


# ------------------------------------------------------------------------------------ large kernels, layers normalised


@network("ConvMixer of eight blocks: 9×9 depthwise, GELU, normalised behind it", (1, 3, 128, 128))
def convmixer_128() -> nn.Module:
    def behind(layer: nn.Module, width: int = 192) -> nn.Sequential:
        return nn.Sequential(layer, nn.GELU(), nn.BatchNorm2d(width))

    def block(size: int) -> nn.Module:
        depthwise = Add(behind(nn.Conv2d(192, 192, size, groups=192, padding="same")))
        return nn.Sequential(depthwise, behind(nn.Conv2d(192, 192, 1)))

    return nn.Sequential(behind(nn.Conv2d(3, 192, 8, 8)), *(block(size) for size in (9, 7) * 4), head(192, 100))


@network("RepLKNet, small: 13×13 depthwise between 1×1 convolutions", (1, 3, 96, 96))
def replknet_96() -> nn.Module:
    def block(width: int) -> nn.Module:
        large = [nn.BatchNorm2d(width), conv(width, width, 1), conv(width, width, 13, 1, width)]
        feed = [nn.BatchNorm2d(width), conv(width, 4 * width, 1, act=nn.GELU), conv(4 * width, width, 1, act=None)]
        return nn.Sequential(Add(*large, conv(width, width, 1, act=None)), Add(*feed))

    def down(before: int, after: int) -> list[nn.Module]:
        return [conv(before, after, 1), conv(after, after, 3, 2, after)]

    stem = [conv(3, 32, 3, 2), conv(32, 32, 3, 1, 32), *down(32, 48)]
    first = [block(48), block(48), *down(48, 96), block(96), block(96)]
    return nn.Sequential(*stem, *first, *down(96, 192), block(192), head(192, 100))


@network("ConvNeXt-atto: 7×7 depthwise, layer normalisation over channels, GELU", (1, 3, 128, 128))
def convnext_atto_128() -> nn.Module:
    class Normalised(nn.LayerNorm):
        """Over the channels of N×C×H×W."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.scale = nn.Parameter(torch.rand(width))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            return x + (self.scale * self.mlp(y)).permute(0, 3, 1, 2)

    layers: list[nn.Module] = [nn.Conv2d(3, 40, 4, 4), Normalised(40, eps=1e-6)]
    for (before, after), count in zip(itertools.pairwise((40, 40, 80, 160, 320)), (2, 2, 6, 2), strict=True):
        layers += [Normalised(before, eps=1e-6), nn.Conv2d(before, after, 2, 2)] if before != after else []
        layers += [Block(after) for _ in range(count)]
    pool = Of(lambda s, x: x.mean((-2, -1)))
    return nn.Sequential(*layers, pool, nn.LayerNorm(320, eps=1e-6), nn.Linear(320, 1000))


# ------------------------------------------------------------------------------------------------------- transformers


class Attention(nn.Module):
    """Multi-head attention of N×places×width with itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, places, width = x.shape
        split = self.qkv(x).reshape(n, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = split.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, places, width))


def encoder_block(width: int, heads: int, hidden: int, act: Act = nn.GELU) -> nn.Module:
    mlp = [nn.Linear(width, hidden), act(), nn.Linear(hidden, width)]
    return nn.Sequential(Add(nn.LayerNorm(width), Attention(width, heads)), Add(nn.LayerNorm(width), *mlp))


class Vit(nn.Module):
    """A vision transformer of 192 channels and three heads, as DeiT-tiny has them."""

    def __init__(self, side: int, patch: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, 192))
        self.place = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, 192))
        self.blocks = nn.Sequential(*(encoder_block(192, 3, 768) for _ in range(blocks)))
        self.norm, self.out = nn.LayerNorm(192), nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(y), -1, -1), y], 1) + self.place
        return self.out(self.norm(self.blocks(y))[:, 0])


@network("ViT-tiny of twelve blocks over patches of 8×8", (1, 3, 64, 64))
def vit_tiny_64() -> nn.Module:
    return Vit(64, 8, 12, 10)


@network("ViT-tiny's first four blocks over patches of 16×16", (1, 3, 224, 224))
def vit_tiny_224() -> nn.Module:
    return Vit(224, 16, 4, 1000)


@network("a Transformer encoder of four blocks over 128 places, as of embedded words or frames of sound", (1, 128, 192))
def transformer_encoder_128() -> nn.Module:
    blocks = [encoder_block(192, 4, 768) for _ in range(4)]
    return nn.Sequential(*blocks, nn.LayerNorm(192), Of(lambda s, x: x.mean(1)), nn.Linear(192, 12))


@network("the Keyword Transformer's smallest: 98 frames of 40 coefficients, attention with one head", (1, 98, 40))
def keyword_transformer() -> nn.Module:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.place = nn.Linear(40, 64), nn.Parameter(torch.randn(1, 98, 64))
            self.blocks = nn.Sequential(*(encoder_block(64, 1, 256) for _ in range(12)))
            self.out = nn.Linear(64, 35)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.blocks(self.project(x) + self.place).mean(1))

    return Keywords()


@network("MLP-Mixer of six blocks: linear layers over places and over channels", (1, 3, 64, 64))
def mlp_mixer_64() -> nn.Module:
    def mlp(width: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def mix(s: nn.Module, x: Tensor) -> Tensor:
        x = x + s.places(s.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + s.channels(s.norm2(x))

    def block() -> nn.Module:
        parts = {"places": mlp(64, 128), "channels": mlp(256, 1024)}
        return Of(mix, **parts, norm1=nn.LayerNorm(256), norm2=nn.LayerNorm(256))

    patches = [nn.Conv2d(3, 256, 8, 8), nn.Flatten(2), Of(lambda s, x: x.transpose(1, 2))]
    last = [nn.LayerNorm(256), Of(lambda s, x: x.mean(1)), nn.Linear(256, 10)]
    return nn.Sequential(*patches, *(block() for _ in range(6)), *last)


@network("MobileViT-XXS: inverted residuals, and attention over places that are unfolded", (1, 3, 128, 128))
def mobilevit_xxs_128() -> nn.Module:
    def attend(s: nn.Module, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = s.enter(x)
        c = y.shape[1]
        y = y.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1).reshape(n * 4, h * w // 4, c)
        y = s.norm(s.blocks(y))
        y = y.reshape(n, 2, 2, h // 2, w // 2, c).permute(0, 5, 3, 1, 4, 2).reshape(n, c, h, w)
        return s.fuse(torch.cat([x, s.leave(y)], 1))

    def block(width: int, inner: int, count: int) -> nn.Module:
        return Of(
            attend,
            enter=nn.Sequential(conv(width, width, act=nn.SiLU), nn.Conv2d(width, inner, 1, bias=False)),
            blocks=nn.Sequential(*(encoder_block(inner, 4, 2 * inner, nn.SiLU) for _ in range(count))),
            norm=nn.LayerNorm(inner),
            leave=conv(inner, width, 1, act=nn.SiLU),
            fuse=conv(2 * width, width, act=nn.SiLU),
        )

    def inverted(before: int, after: int, stride: int = 1) -> nn.Module:
        return Inverted(before, after, stride, 2 * before, nn.SiLU)

    return nn.Sequential(
        *(conv(3, 16, 3, 2, act=nn.SiLU), inverted(16, 16), inverted(16, 24, 2), inverted(24, 24), inverted(24, 24)),
        *(inverted(24, 48, 2), block(48, 64, 2), inverted(48, 64, 2), block(64, 80, 4), inverted(64, 80, 2)),
        *(block(80, 96, 3), conv(80, 320, 1, act=nn.SiLU), head(320, 1000)),
    )


# --------------------------------------------------------------------------------------------------------- detection


class C3(nn.Module):
    """YOLOv5's block, or, with `split`, YOLOv8's, which keeps what each residual makes."""

    def __init__(self, before: int, after: int, count: int, skip: bool, split: bool) -> None:
        super().__init__()
        half, kind = after // 2, Add if skip else nn.Sequential
        self.split = split
        self.first = conv(before, after, 1, act=nn.SiLU)
        inner = 3 if split else 1
        self.middle = nn.ModuleList(
            kind(conv(half, half, inner, act=nn.SiLU), conv(half, half, act=nn.SiLU)) for _ in range(count)
        )
        self.last = conv(half * (2 + count) if split else after, after, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.middle:
            made = block(parts[-1])
            parts = [*parts, made] if self.split else [parts[0], made]
        return self.last(torch.cat(parts, 1))


class Sppf(nn.Module):
    """Maxima of ever larger surroundings, side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = conv(width, width // 2, 1, act=nn.SiLU), conv(2 * width, width, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """A backbone, a neck that goes up and down again, and what it says of three sizes of maps."""

    def __init__(self, *, split: bool) -> None:
        super().__init__()

        def down(before: int, after: int) -> nn.Module:
            return conv(before, after, 3, 2, act=nn.SiLU)

        def block(before: int, after: int, count: int = 1, skip: bool = False) -> nn.Module:
            return C3(before, after, count, skip, split)

        stem = conv(3, 16, 3 if split else 6, 2, act=nn.SiLU)
        stem[0].padding = (1, 1) if split else (2, 2)
        self.p3 = nn.Sequential(stem, down(16, 32), block(32, 32, 1, True), down(32, 64), block(64, 64, 2, True))
        self.p4 = nn.Sequential(down(64, 128), block(128, 128, 2 if split else 3, True))
        self.p5 = nn.Sequential(down(128, 256), block(256, 256, 1, True), Sppf(256))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up4, self.up3 = block(384, 128), block(192, 64)
        self.down3, self.down4 = down(64, 64), down(128, 128)
        self.low4, self.low5 = block(192, 128), block(384, 256)
        widths = (64, 128, 256)
        if split:
            self.heads = nn.ModuleList(
                Concat([self.branch(width, 64, 64), self.branch(width, 80, 80)]) for width in widths
            )
        else:
            self.heads = nn.ModuleList(nn.Conv2d(width, 255, 1) for width in widths)

    @staticmethod
    def branch(before: int, inner: int, after: int) -> nn.Module:
        act = nn.SiLU
        return nn.Sequential(conv(before, inner, act=act), conv(inner, inner, act=act), nn.Conv2d(inner, after, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        third = self.p3(x)
        fourth = self.p4(third)
        fifth = self.p5(fourth)
        fourth = self.up4(torch.cat([self.up(fifth), fourth], 1))
        third = self.up3(torch.cat([self.up(fourth), third], 1))
        fourth = self.low4(torch.cat([self.down3(third), fourth], 1))
        fifth = self.low5(torch.cat([self.down4(fourth), fifth], 1))
        return tuple(layer(y) for layer, y in zip(self.heads, (third, fourth, fifth), strict=True))


@network("YOLOv5n: C3 blocks, SPPF, nearest upsampling, three outputs", (1, 3, 160, 160))
def yolo_v5n_160() -> nn.Module:
    return Yolo(split=False)


@network("YOLOv8n: C2f blocks, SPPF, heads of two branches, three outputs", (1, 3, 160, 160))
def yolo_v8n_160() -> nn.Module:
    return Yolo(split=True)


@network("Tiny YOLOv3, half as wide: leaky ReLU, max pooling, two outputs", (1, 3, 160, 160))
def yolo_v3_tiny_160() -> nn.Module:
    leaky = functools.partial(nn.LeakyReLU, 0.1)

    def forward(s: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        near = s.near(x)
        far = s.far(near)
        low = torch.cat([F.interpolate(s.narrow(far), scale_factor=2.0, mode="nearest"), near], 1)
        return s.coarse(far), s.fine(low)

    widths = (8, 16, 32, 64, 128)
    stem: list[nn.Module] = [conv(3, 8, act=leaky)]
    for before, after in itertools.pairwise(widths):
        stem += [nn.MaxPool2d(2), conv(before, after, act=leaky)]
    pooled = [nn.MaxPool2d(2), conv(128, 256, act=leaky), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)]
    return Of(
        forward,
        near=nn.Sequential(*stem),
        far=nn.Sequential(*pooled, conv(256, 512, act=leaky), conv(512, 128, 1, act=leaky)),
        narrow=conv(128, 64, 1, act=leaky),
        coarse=nn.Sequential(conv(128, 256, act=leaky), nn.Conv2d(256, 75, 1)),
        fine=nn.Sequential(conv(192, 128, act=leaky), nn.Conv2d(128, 75, 1)),
    )


@network("SSD-Lite on MobileNetV2 ×0.5: boxes and scores of four maps, joined", (1, 3, 160, 160))
def ssdlite_160() -> nn.Module:
    def detect(s: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = [s.body(x)]
        for layer in s.extras:
            maps.append(layer(maps[-1]))
        boxes = [layer(y).permute(0, 2, 3, 1).reshape(len(y), -1, 4) for layer, y in zip(s.boxes, maps, strict=True)]
        scores = [layer(y).permute(0, 2, 3, 1).reshape(len(y), -1, 21) for layer, y in zip(s.scores, maps, strict=True)]
        return torch.cat(boxes, 1), torch.cat(scores, 1).softmax(-1)

    def lite(before: int, after: int) -> nn.Module:
        return nn.Sequential(conv(before, before, 3, 1, before, nn.ReLU6), nn.Conv2d(before, after, 1))

    stages = ((6, 16, 2, 2, 3), (6, 16, 3, 2, 3), (6, 32, 4, 2, 3), (6, 48, 3, 1, 3))
    body = [conv(3, 16, 3, 2, act=nn.ReLU6), Inverted(16, 8), *inverted_stages(8, stages)]
    widths = (48, 160, 128, 128)
    extras = [nn.Sequential(*inverted_stages(48, ((6, 80, 3, 2, 3), (6, 160, 1, 1, 3))))]
    for before, after in itertools.pairwise(widths[1:]):
        extras.append(
            nn.Sequential(conv(before, after // 2, 1, act=nn.ReLU6), separable(after // 2, after, 2, nn.ReLU6))
        )
    return Of(
        detect,
        body=nn.Sequential(*body),
        extras=nn.ModuleList(extras),
        boxes=nn.ModuleList(lite(width, 6 * 4) for width in widths),
        scores=nn.ModuleList(lite(width, 6 * 21) for width in widths),
    )


@network("BlazeFace: 5×5 depthwise, skips over pooled and padded channels, two maps of boxes", (1, 3, 128, 128))
def blazeface_128() -> nn.Module:
    def block(before: int, after: int, stride: int = 1) -> nn.Module:
        def forward(s: nn.Module, x: Tensor) -> Tensor:
            skip = F.max_pool2d(x, 2) if stride > 1 else x
            skip = F.pad(skip, (0, 0, 0, 0, 0, after - before)) if after > before else skip
            return F.relu(s.body(F.pad(x, (1, 2, 1, 2)) if stride > 1 else x) + skip)

        depthwise = nn.Conv2d(before, before, 5, stride, 0 if stride > 1 else 2, groups=before)
        return Of(forward, body=nn.Sequential(depthwise, nn.Conv2d(before, after, 1)))

    def forward(s: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        near = s.near(F.relu(s.stem(F.pad(x, (1, 2, 1, 2)))))
        far = s.far(near)
        joined = [
            torch.cat(
                [
                    layer(y).permute(0, 2, 3, 1).reshape(len(y), -1, size)
                    for layer, y in zip(kind, (near, far), strict=True)
                ],
                1,
            )
            for kind, size in ((s.scores, 1), (s.boxes, 16))
        ]
        return tuple(joined)

    near = [block(24, 24), block(24, 28), block(28, 32, 2), block(32, 36), block(36, 42), block(42, 48, 2)]
    near += [block(width, width + 8) for width in (48, 56, 64, 72, 80)]
    far = [block(88, 96, 2), *(block(96, 96) for _ in range(4))]
    return Of(
        forward,
        stem=nn.Conv2d(3, 24, 5, 2),
        near=nn.Sequential(*near),
        far=nn.Sequential(*far),
        scores=nn.ModuleList([nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)]),
        boxes=nn.ModuleList([nn.Conv2d(88, 32, 1), nn.Conv2d(96, 96, 1)]),
    )


# ------------------------------------------------------------------------------------------------------- segmentation


@network("U-Net of four levels: transposed convolutions, skips by concatenation", (1, 3, 128, 128))
def unet_128() -> nn.Module:
    def double(before: int, after: int) -> nn.Module:
        return nn.Sequential(conv(before, after), conv(after, after))

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        kept = []
        for layer in s.down:
            x = layer(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = s.middle(x)
        for rise, layer, skip in zip(s.rise, s.up, reversed(kept), strict=True):
            x = layer(torch.cat([skip, rise(x)], 1))
        return s.out(x)

    widths = (12, 24, 48, 96)
    return Of(
        forward,
        down=nn.ModuleList(double(before, after) for before, after in itertools.pairwise((3, *widths))),
        middle=double(96, 192),
        rise=nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in reversed(widths)),
        up=nn.ModuleList(double(2 * width, width) for width in reversed(widths)),
        out=nn.Conv2d(12, 4, 1),
    )


@network("DeepLabV3 on MobileNetV2 ×0.5: dilated branches, image pooling, bilinear resizing", (1, 3, 160, 160))
def deeplab_160() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = s.body(x)
        pooled = upsampled(s.pool(y), y)
        return upsampled(s.out(torch.cat([*(branch(y) for branch in s.branches), pooled], 1)), x)

    stages = ((6, 16, 2, 2, 3), (6, 16, 3, 2, 3), (6, 32, 4, 2, 3), (6, 48, 3, 1, 3))
    body = [conv(3, 16, 3, 2, act=nn.ReLU6), Inverted(16, 8), *inverted_stages(8, stages)]
    return Of(
        forward,
        body=nn.Sequential(*body),
        branches=nn.ModuleList([conv(48, 64, 1), *(conv(48, 64, 3, dilation=rate) for rate in (2, 4, 6))]),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(48, 64, 1)),
        out=nn.Sequential(conv(320, 64, 1), conv(64, 64), nn.Conv2d(64, 21, 1)),
    )


@network("BiSeNet, narrow: a path of detail, one of context with attention, bilinear resizing", (1, 3, 160, 160))
def bisenet_160() -> nn.Module:
    def refined(before: int) -> nn.Module:
        gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(32, 32, 1, act=nn.Sigmoid))
        return nn.Sequential(conv(before, 32), Of(lambda s, x: x * s.gate(x), gate=gate))

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        detail = s.detail(x)
        middle = s.middle(s.near(x))
        deep = s.deep(middle)
        context = s.refine_deep(deep) + upsampled(s.whole(deep), deep)
        context = s.refine_middle(middle) + s.smooth(upsampled(context, middle))
        joined = s.fuse(torch.cat([detail, upsampled(context, detail)], 1))
        return upsampled(s.out(joined + joined * s.weigh(joined)), x)

    return Of(
        forward,
        detail=nn.Sequential(conv(3, 16, 7, 2), conv(16, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 32, 1)),
        near=nn.Sequential(conv(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1), Basic(16, 32, 2), Basic(32, 32)),
        middle=nn.Sequential(Basic(32, 64, 2), Basic(64, 64)),
        deep=nn.Sequential(Basic(64, 128, 2), Basic(128, 128)),
        refine_middle=refined(64),
        refine_deep=refined(128),
        whole=nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(128, 32, 1)),
        smooth=conv(32, 32),
        fuse=conv(64, 64, 1),
        weigh=nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 16, 1), nn.ReLU(), nn.Conv2d(16, 64, 1), nn.Sigmoid()
        ),
        out=nn.Sequential(conv(64, 64), nn.Conv2d(64, 19, 1)),
    )


@network("a context module: 3×3 convolutions of dilations from 1 to 16 at one resolution", (1, 3, 64, 64))
def context_module_64() -> nn.Module:
    rates = (1, 1, 2, 4, 8, 16, 1)
    layers = [conv(32, 32, dilation=rate) for rate in rates]
    return nn.Sequential(conv(3, 32), *layers, nn.Conv2d(32, 8, 1))


# --------------------------------------------------------------------------------------------------- images to images


@network("ESPCN: three times the resolution by pixel shuffle", (1, 1, 128, 128))
def espcn_128() -> nn.Module:
    layers = [nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3), nn.Sigmoid())


@network("FSRCNN: PReLU, three times the resolution by a transposed convolution of 9×9", (1, 1, 96, 96))
def fsrcnn_96() -> nn.Module:
    middle: list[nn.Module] = [nn.Conv2d(56, 12, 1), nn.PReLU(12)]
    for _ in range(4):
        middle += [nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)]
    return nn.Sequential(
        *(nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56), *middle, nn.Conv2d(12, 56, 1), nn.PReLU(56)),
        nn.ConvTranspose2d(56, 1, 9, 3, 4, output_padding=2),
    )


@network("style transfer: reflected borders, instance normalisation, nearest upsampling", (1, 3, 128, 128))
def style_transfer_128() -> nn.Module:
    def padded(before: int, after: int, size: int, stride: int = 1, norm: bool = True) -> list[nn.Module]:
        layers = [nn.ReflectionPad2d(size // 2), nn.Conv2d(before, after, size, stride)]
        return [*layers, nn.InstanceNorm2d(after, affine=True)] if norm else layers

    def block() -> nn.Module:
        return Add(*padded(48, 48, 3), nn.ReLU(), *padded(48, 48, 3))

    down = [*padded(3, 12, 9), nn.ReLU(), *padded(12, 24, 3, 2), nn.ReLU(), *padded(24, 48, 3, 2), nn.ReLU()]
    up = [nn.Upsample(scale_factor=2.0), *padded(48, 24, 3), nn.ReLU(), nn.Upsample(scale_factor=2.0)]
    return nn.Sequential(
        *down, *(block() for _ in range(5)), *up, *padded(24, 12, 3), nn.ReLU(), *padded(12, 3, 9, norm=False)
    )


@network("the generator of a DCGAN for 64×64 images: transposed convolutions of 4×4", (1, 100))
def dcgan_generator() -> nn.Module:
    layers: list[nn.Module] = [nn.ConvTranspose2d(100, 256, 4, bias=False)]
    for before, after in itertools.pairwise((256, 128, 64, 32)):
        layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
    last = [nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()]
    return nn.Sequential(nn.Unflatten(1, (100, 1, 1)), *layers, *last)


# --------------------------------------------------------------------------------------------------- sound, sequences


@network("DS-CNN of MLPerf Tiny: keywords in 49 frames of ten coefficients, TensorFlow's borders", (1, 1, 49, 10))
def ds_cnn() -> nn.Module:
    stem = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.2)]
    blocks = [separable(64, 64) for _ in range(4)]
    return nn.Sequential(*stem, *blocks, nn.Dropout(0.4), nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(64, 12))


@network("the autoencoder of MLPerf Tiny: linear layers, normalised", (1, 640))
def autoencoder() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((640, 128, 128, 128, 128, 8, 128, 128, 128, 128)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


def conv1d(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv1d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm1d(after), nn.ReLU())


def head1d(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, classes))


@network("human activity in windows of 128 samples of nine sensors, one-dimensional convolutions", (1, 9, 128))
def har_cnn() -> nn.Module:
    first = [nn.Conv1d(9, 64, 5), nn.ReLU(), nn.Conv1d(64, 64, 5), nn.ReLU(), nn.Dropout(), nn.MaxPool1d(2)]
    second = [nn.Conv1d(64, 128, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(128 * 29, 100), nn.ReLU(), nn.Linear(100, 6))


@network("M5: keywords in half a second of raw sound, a first filter of 80 samples", (1, 1, 8000))
def m5_keywords() -> nn.Module:
    stem = [nn.Conv1d(1, 64, 80, 4), nn.BatchNorm1d(64), nn.ReLU(), nn.MaxPool1d(4)]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((64, 64, 128, 256)):
        layers += [conv1d(before, after, 3), nn.MaxPool1d(4)]
    return nn.Sequential(*stem, *layers, head1d(256, 35))


@network("TC-ResNet14 ×1.5: frequencies as channels, convolutions of nine frames with skips", (1, 40, 101))
def tc_resnet_14() -> nn.Module:
    def block(before: int, after: int, stride: int) -> nn.Module:
        last = [nn.Conv1d(after, after, 9, padding=4, bias=False), nn.BatchNorm1d(after)]
        same = stride == 1 and before == after
        return Of(
            lambda s, x: F.relu(s.body(x) + s.skip(x)),
            body=nn.Sequential(conv1d(before, after, 9, stride), *last),
            skip=nn.Identity() if same else conv1d(before, after, 1, stride),
        )

    blocks: list[nn.Module] = []
    for before, after in itertools.pairwise((24, 36, 48, 72)):
        blocks += [block(before, after, 2), block(after, after, 1)]
    return nn.Sequential(nn.Conv1d(40, 24, 3, padding=1, bias=False), *blocks, head1d(72, 12))


@network("temporal convolutions: causal borders, dilations from 1 to 32, skips", (1, 9, 256))
def tcn_256() -> nn.Module:
    def causal(before: int, after: int, rate: int) -> list[nn.Module]:
        border = nn.ConstantPad1d((2 * rate, 0), 0.0)
        return [border, nn.Conv1d(before, after, 3, dilation=rate), nn.BatchNorm1d(after), nn.ReLU()]

    def block(before: int, after: int, rate: int) -> nn.Module:
        skip = nn.Conv1d(before, after, 1) if before != after else nn.Identity()
        body = nn.Sequential(*causal(before, after, rate), *causal(after, after, rate))
        return Of(lambda s, x: F.relu(s.body(x) + s.skip(x)), body=body, skip=skip)

    rates = (1, 2, 4, 8, 16, 32)
    blocks = [block(before, 64, rate) for before, rate in zip((9, *(64,) * 5), rates, strict=True)]
    return nn.Sequential(*blocks, Of(lambda s, x: x[:, :, -1]), nn.Linear(64, 6))


@network("WaveNet: gated activations, dilations from 1 to 512, what each layer skips is summed", (1, 1, 4000))
def wavenet_4000() -> nn.Module:
    class Wavenet(nn.Module):
        RATES = tuple(2**power for power in range(10))

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(1, 24, 1)
            self.both = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=rate) for rate in self.RATES)
            self.skips = nn.ModuleList(nn.Conv1d(24, 32, 1) for _ in self.RATES)
            self.onward = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in self.RATES)
            self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1))

        def forward(self, x: Tensor) -> Tensor:
            x, total = self.first(x), torch.zeros(())
            for rate, both, skip, onward in zip(self.RATES, self.both, self.skips, self.onward, strict=True):
                values, gates = both(F.pad(x, (rate, 0))).chunk(2, 1)
                gated = torch.tanh(values) * torch.sigmoid(gates)
                total = total + skip(gated)
                x = x + onward(gated)
            return self.last(total)

    return Wavenet()


@network("an LSTM of two layers over 128 samples of nine sensors", (1, 128, 9))
def lstm_har() -> nn.Module:
    return Of(lambda s, x: s.out(s.lstm(x)[0][:, -1]), lstm=nn.LSTM(9, 64, 2, batch_first=True), out=nn.Linear(64, 6))


@network("a GRU over 49 frames of ten coefficients, keywords", (1, 49, 10))
def gru_keywords() -> nn.Module:
    return Of(lambda s, x: s.out(s.gru(x)[0][:, -1]), gru=nn.GRU(10, 154, batch_first=True), out=nn.Linear(154, 12))
