"""Operators of a file with weights as layers.

A sum of the file is Σ (x − zero point) · w + bias; ours is Σ x · w + b, so that b has the zero points. Borders are
filled with the zero point: where that isn't 0, by a layer of its own that moves values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvmflow.integer.layers import RANGES, IntegerLayer
from tvmflow.integer.operators import OUTSIDE, Shape
from tvmflow.integer.tflite.fixed_point import factor
from tvmflow.integer.tflite.model import FileOperator, FileTensor
from tvmflow.integer.tflite.schema import ACTIVATIONS, SAME
from tvmflow.integer.tflite.values import Network, Refused, Value, check_type, inside, taken
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError

Pair = tuple[int, int]
MAX_CHANNELS = 1 << 16
"""Outputs of a layer with weights for each pixel."""
MOST = 127
"""Of a weight, in either direction."""


def limits_of(tensor: FileTensor | Value, activation: int) -> tuple[int, int]:
    """The least and the most that a tensor holds after a fused activation, whose number it is."""
    low, high = RANGES[tensor.dtype]
    name = ACTIVATIONS.get(activation, f"activation {activation}")
    bounds = {"NONE": (None, None), "RELU": (0, None), "RELU_N1_TO_1": (-1, 1), "RELU6": (0, 6)}
    if name not in bounds:
        raise Refused(f"the fused activation {name}")

    def steps(real: int) -> int:
        exact = float(np.float32(real) / np.float32(tensor.scale))
        return tensor.zero_point + int(math.copysign(math.floor(abs(exact) + 0.5), exact))

    least, most = bounds[name]
    if least is not None:
        low = max(low, steps(least))
    if most is not None:
        high = min(high, steps(most))
    if low >= high:
        raise Refused(f"the fused activation {name}, which leaves a single value")
    return low, high


def factors(reals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers and shifts, int32, of factors in float64."""
    try:
        pairs = [factor(float(real)) for real in reals]
    except ValueError as error:
        raise MalformedError(f"a result is scaled by {error}") from error
    multipliers, shifts = np.array(pairs, np.int64).T
    return multipliers.astype(np.int32), shifts.astype(np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """`values` int32 O×(I/groups)×KH×KW less their zero points, `scales` float32 of each output or of all."""

    values: np.ndarray
    scales: np.ndarray
    groups: int


def conv_2d(network: Network, operator: FileOperator) -> None:
    x, (tensor, raw) = network.value(operator), _weights(network, operator, 1, 4)
    _check_map(operator, x)
    outputs, inputs = raw.shape[0], raw.shape[3]
    channels = x.shape[3]
    if not inputs or channels % inputs or outputs % (channels // inputs):
        raise MalformedError(f"{operator.kind} has weights for {inputs} channels and reads {channels}")
    weights = Weights(values=raw.transpose(0, 3, 1, 2), scales=tensor.scales, groups=channels // inputs)
    _convolve(network, operator, x, weights)


def depthwise_conv_2d(network: Network, operator: FileOperator) -> None:
    x, (tensor, raw) = network.value(operator), _weights(network, operator, 1, 4, axis=3)
    _check_map(operator, x)
    channels = x.shape[3]
    if raw.shape[0] != 1 or raw.shape[3] != channels * positive(operator, "depth_multiplier"):
        raise MalformedError(f"{operator.kind} has weights {raw.shape} and reads {channels} channels")
    weights = Weights(values=raw.transpose(3, 0, 1, 2), scales=tensor.scales, groups=channels)
    _convolve(network, operator, x, weights)


def _check_map(operator: FileOperator, x: Value) -> None:
    if len(x.shape) != 4 or not math.prod(x.shape):
        raise MalformedError(f"{operator.kind} reads a tensor of {len(x.shape)} dimensions, or without elements")
    if x.shape[0] != 1:
        raise Refused(f"{operator.kind} with a batch of {x.shape[0]}")


def _weights(
    network: Network, operator: FileOperator, place: int, ndim: int, axis: int = 0
) -> tuple[FileTensor, np.ndarray]:
    """The tensor and its values, int32, less their zero points; scales are one, or one for each along `axis`."""
    tensor = network.constant(operator, place)
    if tensor is None or tensor.data is None or tensor.data.ndim != ndim or not tensor.data.size:
        raise MalformedError(f"{operator.kind} has no weights of {ndim} dimensions")
    if tensor.dtype not in RANGES:
        raise Refused(f"{operator.kind} with weights of {tensor.dtype}")
    count = tensor.shape[axis]
    if len(tensor.scales) not in (1, count) or (len(tensor.scales) > 1 and tensor.axis != axis):
        raise MalformedError(f"the weights {untrusted.shown(tensor.name)} have {len(tensor.scales)} scales")
    if not np.isfinite(tensor.scales).all() or (tensor.scales < 0).any():
        raise MalformedError(f"the weights {untrusted.shown(tensor.name)} have scales that aren't positive")
    zero = tensor.zero_points if len(tensor.zero_points) == count else np.array([tensor.zero_point])
    if (np.abs(zero) > 255).any():
        raise MalformedError(f"the weights {untrusted.shown(tensor.name)} have zero points beyond 255")
    shape = [-1 if place == axis else 1 for place in range(ndim)]
    return tensor, tensor.data.astype(np.int32) - zero.reshape(shape).astype(np.int32)


def _bias(network: Network, operator: FileOperator, place: int, count: int) -> np.ndarray:
    """int64, zeros where there is none."""
    tensor = network.constant(operator, place)
    if tensor is None or tensor.data is None:
        return np.zeros(count, np.int64)
    if tensor.dtype != "int32":
        raise Refused(f"{operator.kind} with a bias of {tensor.dtype}")
    if tensor.data.size != count:
        raise MalformedError(f"{operator.kind} has {tensor.data.size} biases for {count} outputs")
    return tensor.data.reshape(-1).astype(np.int64)


def _pair(operator: FileOperator, name: str) -> Pair:
    """Along rows and columns."""
    return positive(operator, f"{name}_h"), positive(operator, f"{name}_w")


def positive(operator: FileOperator, name: str) -> int:
    value = operator.integer(name)
    if not 1 <= value <= 1 << 16:
        raise MalformedError(f"the {name} of {operator.kind} is {value}")
    return value


def borders(size: int, kernel: int, stride: int, dilation: int = 1) -> Pair:
    """What lies before and after a map so that there are as many outputs as inputs, divided by the stride."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def padding_of(operator: FileOperator, size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[int, ...]:
    """Above, to the left, below and to the right."""
    if operator.integer("padding") != SAME:
        return (0, 0, 0, 0)
    ends = [borders(*of_axis) for of_axis in zip(size, kernel, stride, dilation, strict=True)]
    (top, bottom), (left, right) = ends
    return (top, left, bottom, right)


def _convolve(network: Network, operator: FileOperator, x: Value, weights: Weights) -> None:
    size, kernel = (x.shape[1], x.shape[2]), (weights.values.shape[2], weights.values.shape[3])
    stride, dilation = _pair(operator, "stride"), _pair(operator, "dilation")
    padding = padding_of(operator, size, kernel, stride, dilation)
    extents = [
        (size[axis] + padding[axis] + padding[axis + 2] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    if min(extents) < 1:
        raise MalformedError(f"{operator.kind} has a window that is larger than its map")
    x, padding = bordered(network, x, padding)
    shape = (1, *extents, len(weights.values))
    layer(network, operator, x, weights, bias_at=2, shape=shape, stride=stride, dilation=dilation, padding=padding)


def bordered(network: Network, x: Value, padding: tuple[int, ...]) -> tuple[Value, tuple[int, ...]]:
    """A map with its border, and what of the padding is left for the layer: all of it where the zero point is 0."""
    if not any(padding) or x.zero_point == 0:
        return x, padding
    top, left, bottom, right = padding
    if (x.shape[1] + top + bottom) * (x.shape[2] + left + right) * x.shape[3] > 1 << 24:
        raise MalformedError("a map with its border is too large")
    places = network.places(x)
    places = np.pad(places, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=OUTSIDE)
    return network.moved_to(x, places), (0, 0, 0, 0)


def layer(
    network: Network,
    operator: FileOperator,
    x: Value,
    weights: Weights,
    *,
    bias_at: int,
    shape: Shape,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    padding: tuple[int, ...] = (0, 0, 0, 0),
    source: str = "",
    kind: str = "conv2d",
) -> None:
    """Add a layer that reads `x`, in the order of `source` if that is given, and gives a tensor of `shape`."""
    result = network.result(operator)
    check_type(result)
    values, groups = weights.values, weights.groups
    if np.abs(values).max() > MOST:
        x, values = _halved(network, x, values, groups)
        source, kind = "", "conv2d"
    count = len(values)
    check_channels(operator, count)
    bias = _bias(network, operator, bias_at, count)
    bias = bias - x.zero_point * values.reshape(count, -1).sum(1, dtype=np.int64)
    if np.abs(bias).max() >= 2**31:
        raise Refused(f"{operator.kind} with a bias that, with the zero point, leaves int32")
    multipliers, shifts = factors(_scales(operator, x, weights, result, count))
    low, high = limits_of(result, operator.integer("fused"))
    source = source or network.read(x)
    name = network.unused(result.name)
    network.add(
        IntegerLayer(
            name=name,
            modules=(name,),
            kind=kind,  # type: ignore[arg-type]
            inputs=(source,),
            weight=np.ascontiguousarray(values, np.int8),
            bias=bias.astype(np.int32),
            stride=stride,
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,
            groups=groups,
            multiplier=multipliers,
            shift=shifts,
            minimum=low,
            maximum=high,
            dtype=result.dtype,
            scale=result.scale,
            zero_point=result.zero_point,
            input_shape=network.shapes[source],
            output_shape=inside(shape),
        )
    )
    network.result_of(operator, name, shape, result)


def check_channels(operator: FileOperator, count: int) -> None:
    """Raises MalformedError if a layer has no outputs, or too many."""
    if not 0 < count <= MAX_CHANNELS:
        raise MalformedError(f"{operator.kind} has {count:,} outputs for each pixel; there are up to {MAX_CHANNELS:,}")


def _scales(operator: FileOperator, x: Value, weights: Weights, result: FileTensor, count: int) -> np.ndarray:
    """By what sums are multiplied, float64 for each output.

    LiteRT multiplies the two scales in float32 for uint8, though not in FULLY_CONNECTED: the last bits decide where a
    result is all but a half.
    """
    scales = np.broadcast_to(weights.scales, count).astype(np.float64)
    product = x.scale * scales
    if result.dtype == "uint8" and operator.kind != "FULLY_CONNECTED":
        product = product.astype(np.float32).astype(np.float64)
    return product / result.scale


def _halved(network: Network, x: Value, values: np.ndarray, groups: int) -> tuple[Value, np.ndarray]:
    """Weights beyond int8 as two each, for which their channels are read twice."""
    if np.abs(values).max() > 2 * MOST:
        raise Refused("weights that are more than 254 steps from their zero point")
    count = values.shape[1]
    most = np.abs(values.reshape(groups, -1, *values.shape[1:])).max((1, 3, 4))
    # all groups have as many channels, so those are repeated that any group needs
    (again,) = np.nonzero((most > MOST).any(0))
    order = np.concatenate([np.arange(count), again])
    places = network.places(x)
    split = places.reshape(*places.shape[:-1], groups, count)[..., order]
    first = values.clip(-MOST, MOST)
    made = np.concatenate([first, (values - first)[:, again]], 1)
    return network.moved_to(x, split.reshape(*places.shape[:-1], -1)), made


def fully_connected(network: Network, operator: FileOperator) -> None:
    x, (tensor, raw) = network.value(operator), _weights(network, operator, 1, 2)
    if operator.integer("weights_format"):
        raise Refused("FULLY_CONNECTED with shuffled weights")
    outputs, inputs = raw.shape
    total = math.prod(x.shape)
    if not total or total % inputs:
        raise MalformedError(f"FULLY_CONNECTED has weights for {inputs} numbers and reads {total}")
    rows, keeps = total // inputs, bool(operator.integer("keep_num_dims"))
    if keeps and x.shape[-1] != inputs:
        raise MalformedError("FULLY_CONNECTED keeps dimensions that its weights don't fit")
    shape = (*x.shape[:-1], outputs) if keeps else (rows, outputs)
    source, kind, values = "", "conv2d", raw[..., None, None]
    if rows == 1:
        places = network.places(x).reshape(-1)
        whole = network.shapes[x.source]
        if np.abs(raw).max() <= MOST and np.array_equal(np.sort(places), np.arange(math.prod(whole))):
            # all values of a map in some order: the weights take it, as those of a convolution over the whole map
            found = np.empty_like(raw)
            found[:, places] = raw
            source, values = x.source, found.reshape(outputs, *whole[1:])
        x = network.moved_to(x, places.reshape(1, inputs))
        kind = "dense" if values.shape[2:] == (1, 1) else kind
    elif not keeps:
        x = network.moved_to(x, network.places(x).reshape(rows, inputs))
    weights = Weights(values=values, scales=tensor.scales, groups=1)
    layer(network, operator, x, weights, bias_at=2, shape=shape, source=source, kind=kind)


def transpose_conv(network: Network, operator: FileOperator) -> None:
    """A convolution over the map with zeros between its pixels, whose weights are turned round."""
    x, (tensor, raw) = network.value(operator, 2), _weights(network, operator, 1, 4)
    _check_map(operator, x)
    outputs, *kernel, inputs = raw.shape
    wanted, stride = network.integers(operator, 0), _pair(operator, "stride")
    if inputs != x.shape[3] or len(wanted) != 4 or wanted[0] != 1 or wanted[3] != outputs or min(wanted) < 1:
        raise MalformedError("TRANSPOSE_CONV has weights or an output shape that don't fit")
    if max(wanted[1], wanted[2]) > 1 << 13 or max(kernel) > 1 << 12:
        raise MalformedError("TRANSPOSE_CONV makes a map that is too large")
    places = network.places(x)
    for axis in (0, 1):
        before = 0
        if operator.integer("padding") == SAME:
            before, _ = borders(wanted[1 + axis], kernel[axis], stride[axis])
        at = np.arange(wanted[1 + axis] + kernel[axis] - 1) - (kernel[axis] - 1 - before)
        valid = (at >= 0) & (at % stride[axis] == 0) & (at // stride[axis] < x.shape[1 + axis])
        places = taken(places, np.where(valid, at // stride[axis], 0), 1 + axis)
        shape = [1, 1, 1, 1]
        shape[1 + axis] = -1
        places = np.where(valid.reshape(shape), places, OUTSIDE)
    values = raw[:, ::-1, ::-1].transpose(0, 3, 1, 2)
    weights = Weights(values=values, scales=tensor.scales, groups=1)
    layer(network, operator, network.moved_to(x, places), weights, bias_at=3, shape=tuple(wanted))


CONVERTERS = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "FULLY_CONNECTED": fully_connected,
    "TRANSPOSE_CONV": transpose_conv,
}
