"""Pools and means: averages are divided as integers, means are scaled by their number's reciprocal."""

from __future__ import annotations

import math

import numpy as np

from tvmflow.integer.layers import RANGES, IntegerLayer
from tvmflow.integer.operators import AveragePool, MaxPool
from tvmflow.integer.tflite.model import FileOperator
from tvmflow.integer.tflite.values import Network, Refused, Value, check_same_steps, check_type
from tvmflow.integer.tflite.weighted import check_channels, factors, limits_of, padding_of, positive
from tvmflow.integer.window import Window
from tvmflow.system.untrusted import MalformedError

MAX_TAPS = 1 << 20
"""What the outputs of a pool along an axis read there together."""


def max_pool(network: Network, operator: FileOperator) -> None:
    _pool(network, operator, MaxPool)


def average_pool(network: Network, operator: FileOperator) -> None:
    _pool(network, operator, AveragePool)


def _pool(network: Network, operator: FileOperator, kind: type[MaxPool] | type[AveragePool]) -> None:
    x, result = network.value(operator), network.result(operator)
    check_type(result)
    check_same_steps(operator, x, result)
    if len(x.shape) != 4 or x.shape[0] != 1 or not math.prod(x.shape):
        raise Refused(f"{operator.kind} of a batch, or not of a map")
    size = x.shape[1], x.shape[2]
    kernel = positive(operator, "filter_height"), positive(operator, "filter_width")
    stride = positive(operator, "stride_h"), positive(operator, "stride_w")
    padding = padding_of(operator, size, kernel, stride, (1, 1))
    window = Window(kernel=kernel, stride=stride, padding=padding, size=size)  # type: ignore[arg-type]
    extents = window.out_size()
    if min(extents) < 1 or max(taps * outputs for taps, outputs in zip(kernel, extents, strict=True)) > MAX_TAPS:
        raise MalformedError(f"{operator.kind} has a window that is larger than its map, or a map that is too large")
    low, high = limits_of(result, operator.integer("fused"))
    limits = {"minimum": low, "maximum": high}
    name = network.node(kind(window=window), (network.read(x),), result, result.name, **limits)
    network.result_of(operator, name, (1, *extents, x.shape[3]), result)


def mean(network: Network, operator: FileOperator) -> None:
    """An average pool: the sum less the zero points, times 1 ÷ their number in the multiplier."""
    x, result = network.value(operator), network.result(operator)
    check_type(result)
    rank = len(x.shape)
    given = network.integers(operator, 1)
    if not given or any(not -rank <= axis < rank for axis in given):
        raise MalformedError("MEAN has axes that its tensor doesn't have")
    axes = sorted({axis % rank for axis in given})
    kept = [axis for axis in range(rank) if axis not in axes]
    count = math.prod(x.shape[axis] for axis in axes)
    if not count or not math.prod(x.shape):
        raise MalformedError("MEAN of nothing")
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if not operator.integer("keep_dims"):
        shape = tuple(x.shape[axis] for axis in kept)
    channels = math.prod(x.shape[axis] for axis in kept)
    check_channels(operator, channels)
    if rank == 4 and axes == [1, 2] and x.shape[0] == 1:
        source = network.read(x)
    else:
        places = network.places(x).transpose(*axes, *kept).reshape(1, count, 1, channels)
        source = network.read(network.moved_to(x, places))
    height, width = network.shapes[source][2:]
    multiplier, shift = mean_factor(x.scale / result.scale, count)
    name = network.unused(result.name)
    low, high = RANGES[result.dtype]
    network.add(
        IntegerLayer(
            name=name,
            modules=(name,),
            kind="pool",
            inputs=(source,),
            weight=np.ones((channels, 1, height, width), np.int8),
            bias=np.full(channels, -x.zero_point * count, np.int32),
            groups=channels,
            multiplier=np.full(channels, multiplier, np.int32),
            shift=np.full(channels, shift, np.int32),
            minimum=low,
            maximum=high,
            dtype=result.dtype,
            scale=result.scale,
            zero_point=result.zero_point,
            input_shape=network.shapes[source],
            output_shape=(1, channels, 1, 1),
        )
    )
    made = Value(
        shape=shape,
        source=name,
        places=np.arange(channels, dtype=np.int32).reshape(shape),
        dtype=result.dtype,
        scale=result.scale,
        zero_point=result.zero_point,
    )
    network.set(operator, made)


def mean_factor(real: float, count: int) -> tuple[int, int]:
    """`real` ÷ count: the multiplier of `real` is divided, as finely as 64 bits allow, and cut off."""
    (multiplier,), (shift,) = (array.tolist() for array in factors(np.array([real])))
    finer = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << finer) // count, shift - finer


CONVERTERS = {
    "MAX_POOL_2D": max_pool,
    "AVERAGE_POOL_2D": average_pool,
    "MEAN": mean,
}
