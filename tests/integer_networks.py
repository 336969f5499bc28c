"""Random integer networks: what backends of int8 are compared on, and a reference slow enough to be plainly right."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from tvmflow.integer.network import IntegerLayer, IntegerNetwork, Scheme, accumulate, requantize


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A layer to be drawn. `channels` are its outputs; a `depthwise` has as many as it reads, a `pool` as well."""

    kind: str  # conv, depthwise, pool, dense
    channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    relu: bool = False


def conv(channels: int, size: int = 1, stride: int = 1, groups: int = 1, relu: bool = True) -> Shape:
    """A convolution that keeps the map but for its stride; of size 1 a pointwise one."""
    padding = (size // 2, size // 2)
    return Shape(
        kind="conv",
        channels=channels,
        kernel=(size, size),
        stride=(stride, stride),
        padding=padding,
        groups=groups,
        relu=relu,
    )


def depthwise(size: int = 3, stride: int = 1, dilation: int = 1, relu: bool = False) -> Shape:
    """A depthwise convolution that keeps the map but for its stride."""
    padding = dilation * (size // 2)
    return Shape(
        kind="depthwise",
        kernel=(size, size),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        relu=relu,
    )


POOL = Shape(kind="pool")


def dense(channels: int, relu: bool = False) -> Shape:
    return Shape(kind="dense", channels=channels, relu=relu)


JOINT_MODULES = (
    *(depthwise(dilation=5), depthwise(), conv(20)),
    *(depthwise(dilation=5), depthwise(stride=2), conv(37)),
    *(depthwise(dilation=5), depthwise(), conv(33)),
    *(POOL, dense(10)),
)
"""As the paper's network, narrow: some taps of the dilated filters are always off the map."""
ONE_JOINT_MODULE = (*JOINT_MODULES[:3], POOL, dense(10))

VARIETY = (
    *(conv(24, 3, stride=2), conv(18, 3, groups=6, relu=False), depthwise(relu=True)),
    Shape(kind="conv", channels=21, kernel=(2, 3), stride=(1, 2), padding=(2, 0), dilation=(2, 1), relu=True),
    *(conv(16, relu=False), depthwise(size=5), conv(5), POOL, dense(19, relu=True), dense(7)),
)


def random_network(
    rng: np.random.Generator,
    scheme: Scheme,
    *,
    shapes: tuple[Shape, ...] = JOINT_MODULES,
    input_shape: tuple[int, ...] = (1, 3, 13, 11),
    block: int = 16,
) -> IntegerNetwork:
    """Outputs use their range and some saturate. Shifts of the scheme that has them are per `block` channels."""
    layers: list[IntegerLayer] = []
    x = random_input(rng, input_shape, 8)
    for index, shape in enumerate(shapes):
        layer = _layer(rng, scheme, shape, f"layers.{index}", layers[-1] if layers else None, input_shape, x, block)
        layers.append(layer)
        x = requantize(layer, accumulate(layer, x))
    return IntegerNetwork.chain(
        name="random", scheme=scheme, input_shape=input_shape, input_scale=2**-6, layers=tuple(layers)
    )


def random_input(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """int8 N×C×H×W over the whole range."""
    return rng.integers(-128, 128, (count, *shape[1:]), np.int8)


def _layer(
    rng: np.random.Generator,
    scheme: Scheme,
    shape: Shape,
    name: str,
    before: IntegerLayer | None,
    input_shape: tuple[int, ...],
    x: np.ndarray,
    block: int,
) -> IntegerLayer:
    input_shape = before.output_shape if before else input_shape
    read = input_shape[1]
    alone = shape.kind in ("depthwise", "pool")
    channels = read if alone else shape.channels
    groups = read if alone else shape.groups
    kernel = input_shape[2:] if shape.kind == "pool" else shape.kernel
    weight = rng.integers(-127, 128, (channels, read // groups, *kernel)).astype(np.int8)
    if shape.kind == "pool":
        weight[:] = 1
    extents = [
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, padding, dilation, taps, stride in zip(
            input_shape[2:], shape.padding, shape.dilation, kernel, shape.stride, strict=True
        )
    ]
    signed = scheme == "power-of-two" or not shape.relu
    if shape.kind == "pool" and before is not None:
        signed = before.dtype == "int8"
    layer = IntegerLayer(
        name=name,
        modules=(name,),
        kind="conv2d" if shape.kind in ("conv", "depthwise") else shape.kind,  # type: ignore[arg-type]
        inputs=(before.name if before else "input",),
        weight=weight,
        bias=np.zeros(channels, np.int32),
        stride=shape.stride,
        padding=shape.padding,
        dilation=shape.dilation,
        groups=groups,
        minimum=0 if shape.relu or not signed else -128,
        maximum=127 if signed else 255,
        dtype="int8" if signed else "uint8",
        scale=1.0,
        input_shape=input_shape,
        output_shape=(1, channels, *extents),
    )
    acc = accumulate(layer, x)
    spread = acc.std((0, 2, 3))
    spread = np.maximum(spread, np.median(spread) / 10 + 1)
    if shape.kind == "pool":
        scale = rng.uniform(1, 2, channels) / weight[0].size
    else:
        bias = rng.normal(0, 0.7, channels) * spread - acc.mean((0, 2, 3))
        layer = replace(layer, bias=bias.round().astype(np.int32))
        scale = rng.uniform(40, 90, channels) / spread
    if scheme == "per-channel":
        return replace(layer, multiplier=(2 * np.rint(np.minimum(scale, 0.49) * 2**31)).astype(np.int32))
    shift = np.zeros(channels, np.int32)
    for start in range(0, channels, block):
        part = slice(start, start + block)
        shift[part] = np.rint(-np.log2(np.median(scale[part]))).clip(0, 31)
    return replace(layer, shift=shift)


def slow_layer(layer: IntegerLayer, x: np.ndarray) -> np.ndarray:
    """One image C×H×W → O×OH×OW in Python's unbounded integers, as the definition says it."""
    _, outputs, out_height, out_width = layer.output_shape
    per_group = layer.weight.shape[1]
    result = np.zeros((outputs, out_height, out_width), layer.dtype)
    for o, row, column in itertools.product(range(outputs), range(out_height), range(out_width)):
        acc = int(layer.bias[o])
        first = o // (outputs // layer.groups) * per_group
        for i, ky, kx in np.ndindex(*layer.weight.shape[1:]):
            y = row * layer.stride[0] + ky * layer.dilation[0] - layer.padding[0]
            z = column * layer.stride[1] + kx * layer.dilation[1] - layer.padding[1]
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                acc += int(x[first + i, y, z]) * int(layer.weight[o, i, ky, kx])
        if layer.multiplier is not None:
            scaled = (acc * int(layer.multiplier[o]) + 2**31) >> 32
        else:
            assert layer.shift is not None
            shift = int(layer.shift[o])
            scaled = (acc + (1 << (shift - 1) if shift else 0)) >> shift
        result[o, row, column] = min(max(scaled, layer.minimum), layer.maximum)
    return result
