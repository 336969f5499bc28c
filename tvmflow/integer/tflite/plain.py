"""Operators of a file without weights as layers: sums, products, pools, functions of each element, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tvmflow.integer.layers import RANGES
from tvmflow.integer.operators import (
    ArgMax,
    AveragePool,
    Concat,
    Gather,
    MaxPool,
    Operator,
    Probabilities,
    Product,
    Resample,
    Shape,
    Sum,
)
from tvmflow.integer.reference import twice
from tvmflow.integer.tflite import fixed_point
from tvmflow.integer.tflite.model import FileOperator, FileTensor
from tvmflow.integer.tflite.values import Network, Refused, Value, check_type, inside, taken
from tvmflow.integer.tflite.weighted import factors, limits_of, padding_of, positive
from tvmflow.integer.window import Window
from tvmflow.system.untrusted import MalformedError

FINE = 128
"""Parts of a weight with which kernels of uint8, which compute in float32, are exact."""
MAX_TAPS = 1 << 20
"""What the outputs of a pool along an axis read there together."""
WIDER = 20
"""Bits by which the terms of a sum are finer than what is read."""


# ------------------------------------------------------------------------------------------------ sums and products


def add(network: Network, operator: FileOperator) -> None:
    _arithmetic(network, operator, Sum(signs=(1, 1)))


def subtract(network: Network, operator: FileOperator) -> None:
    _arithmetic(network, operator, Sum(signs=(1, -1)))


def multiply(network: Network, operator: FileOperator) -> None:
    _arithmetic(network, operator, Product())


def _arithmetic(network: Network, operator: FileOperator, kind: Sum | Product) -> None:
    result = network.result(operator)
    check_type(result)
    if len(operator.inputs) != 2:
        raise MalformedError(f"{operator.kind} reads {len(operator.inputs)} tensors")
    read = [network.tensor(number) for number in operator.inputs]
    for tensor in read:
        check_type(tensor)
    low, high = limits_of(result, operator.integer("fused"))
    rows = _rows(kind, [tensor.scale for tensor in read], [tensor.zero_point for tensor in read], result)
    constants = [tensor.data for tensor in read]
    if all(number in network.values for number in operator.inputs):
        values = [network.values[number] for number in operator.inputs]
        shape = _spread(operator, values)
        names = tuple(network.read(_expanded(network, value, len(shape))) for value in values)
        try:
            fits = kind.out_shape(*(network.shapes[name] for name in names)) == inside(shape)
        except ValueError:
            fits = False
        if not fits:
            raise Refused(f"{operator.kind} of tensors that are spread over others in such a way")
        shift = WIDER if isinstance(kind, Sum) else 0
        limits = {"minimum": low, "maximum": high}
        name = network.node(kind, names, result, result.name, factors=rows, shift=shift, **limits)
        network.result_of(operator, name, shape, result)
        return
    place = 0 if constants[1] is not None else 1
    value, constant = network.value(operator, place), constants[1 - place]
    if constant is None:
        raise Refused(f"{operator.kind} of two constants")
    channels = value.shape[-1] if value.shape else 1
    fits = math.prod(constant.shape) in (1, constant.shape[-1] if constant.ndim else 1)
    if not fits or constant.size not in (1, channels) or constant.ndim > len(value.shape):
        raise Refused(f"{operator.kind} with a constant that differs from pixel to pixel")
    fixed = constant.reshape(-1).astype(np.int64)

    def of(q: np.ndarray) -> np.ndarray:
        both = (q, fixed[:, None]) if place == 0 else (fixed[:, None], q)
        return _computed(kind, rows, *both)

    table = fixed_point.table(of, low, high, value.dtype == "int8")
    if len(table) == 1:
        network.set(operator, network.mapped(value, table[0], result, result.name))
        return
    value = replace(value, source=network.read(value), places=None)
    network.set(operator, network.mapped(value, table, result, result.name))


def _spread(operator: FileOperator, values: list[Value]) -> Shape:
    """The shape of both, spread over each other."""
    try:
        return tuple(np.broadcast_shapes(*(value.shape for value in values)))
    except ValueError as error:
        raise MalformedError(f"{operator.kind} reads tensors that don't fit together") from error


def _expanded(network: Network, value: Value, rank: int) -> Value:
    """With leading dimensions of 1, so that it has so many."""
    if len(value.shape) in (0, rank):
        return value
    return network.moved_to(value, network.places(value).reshape(*[1] * (rank - len(value.shape)), *value.shape))


def _rows(kind: Sum | Product, scales: list[float], zeros: list[int], result: FileTensor) -> np.ndarray:
    """int32, for each input and the result: offset, multiplier, shift."""
    if isinstance(kind, Product):
        (multiplier,), (shift,) = factors(np.array([scales[0] * scales[1] / result.scale]))
        rows = [(-zero, 0, 0) for zero in zeros]
    else:
        largest = 2 * max(scales)
        terms = factors(np.array([scale / largest for scale in scales]))
        rows = [(-zero, *row) for zero, row in zip(zeros, np.stack(terms, 1).tolist(), strict=True)]
        (multiplier,), (shift,) = factors(np.array([largest / ((1 << WIDER) * result.scale)]))
    return np.array([*rows, (result.zero_point, multiplier, shift)], np.int32)


def _computed(kind: Sum | Product, rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    first, second, (offset, multiplier, shift) = rows.tolist()
    if isinstance(kind, Product):
        total = (a + first[0]) * (b + second[0])
    else:
        terms = (twice((x + row[0]) << WIDER, *row[1:]) for x, row in ((a, first), (b, second)))
        total = sum(sign * term for sign, term in zip(kind.signs, terms, strict=True))
    return twice(np.asarray(total), multiplier, shift) + offset


# ------------------------------------------------------------------------------------------------------------ pools


def max_pool(network: Network, operator: FileOperator) -> None:
    _pool(network, operator, MaxPool)


def average_pool(network: Network, operator: FileOperator) -> None:
    _pool(network, operator, AveragePool)


def _pool(network: Network, operator: FileOperator, kind: type[MaxPool] | type[AveragePool]) -> None:
    x, result = network.value(operator), network.result(operator)
    check_type(result)
    _same_steps(operator, x, result)
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


def _same_steps(operator: FileOperator, x: Value, result: FileTensor | Value) -> None:
    if (x.dtype, x.scale, x.zero_point) != (result.dtype, result.scale, result.zero_point):
        raise Refused(f"{operator.kind} that changes the scale")


# -------------------------------------------------------------------------------------------------------- functions


def _function(
    network: Network, operator: FileOperator, of: Callable[[Value, FileTensor], Callable[[np.ndarray], np.ndarray]]
) -> None:
    """A table of `of(what is read, what is given)`."""
    x, result = network.value(operator), network.result(operator)
    check_type(result)
    try:
        found = of(x, result)
        table = fixed_point.table(found, *RANGES[result.dtype], signed=x.dtype == "int8")
    except ValueError as error:
        raise MalformedError(f"{operator.kind} scales by {error}") from error
    network.set(operator, network.mapped(x, table, result, result.name))


def requantise(network: Network, operator: FileOperator) -> None:
    """QUANTIZE of integers; where nothing changes, there is no layer."""
    x, result = network.value(operator), network.result(operator)
    if (x.dtype, x.scale, x.zero_point) == (result.dtype, result.scale, result.zero_point):
        network.set(operator, x)
        return
    _function(network, operator, lambda x, y: fixed_point.rescaled(x.scale / y.scale, x.zero_point, y.zero_point))


def clamp(network: Network, operator: FileOperator) -> None:
    number = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}[operator.kind]

    if operator.kind != "RELU":
        # kernels of TensorFlow Lite don't agree about what the others do to a scale
        _same_steps(operator, network.value(operator), network.result(operator))

    def of(x: Value, result: FileTensor) -> Callable[[np.ndarray], np.ndarray]:
        low, high = limits_of(result, number)
        scaled = fixed_point.rescaled(x.scale / result.scale, x.zero_point, result.zero_point)
        return lambda q: scaled(q).clip(low, high)

    _function(network, operator, of)


def _signed(operator: FileOperator, x: Value, result: FileTensor, scale: float, zero: int) -> None:
    if x.dtype != "int8" or (result.dtype, result.scale, result.zero_point) != ("int8", scale, zero):
        raise Refused(f"{operator.kind} whose result isn't int8 in steps of {scale} from {zero} on")


def logistic(network: Network, operator: FileOperator) -> None:
    _signed(operator, network.value(operator), network.result(operator), 1 / 256, -128)
    _function(network, operator, lambda x, y: fixed_point.logistic(x.scale, x.zero_point))


def tanh(network: Network, operator: FileOperator) -> None:
    _signed(operator, network.value(operator), network.result(operator), 1 / 128, 0)
    _function(network, operator, lambda x, y: fixed_point.tanh(x.scale, x.zero_point))


def hard_swish(network: Network, operator: FileOperator) -> None:
    def of(x: Value, y: FileTensor) -> Callable[[np.ndarray], np.ndarray]:
        return fixed_point.hard_swish(x.scale, x.zero_point, y.scale, y.zero_point)

    _function(network, operator, of)


def leaky_relu(network: Network, operator: FileOperator) -> None:
    alpha = float(operator.options["alpha"])

    def of(x: Value, y: FileTensor) -> Callable[[np.ndarray], np.ndarray]:
        above, below = x.scale / y.scale, x.scale * alpha / y.scale
        return fixed_point.leaky(above, below, x.zero_point, y.zero_point)

    _function(network, operator, of)


def prelu(network: Network, operator: FileOperator) -> None:
    x, result, alpha = network.value(operator), network.result(operator), network.constant(operator, 1)
    check_type(result)
    if alpha is None or alpha.data is None:
        raise MalformedError("PRELU has no slopes")
    check_type(alpha)
    slopes = alpha.data.reshape(-1).astype(np.int64) - alpha.zero_point
    if (
        alpha.data.ndim > len(x.shape)
        or len(slopes) not in (1, x.shape[-1])
        or alpha.shape[-1:] not in ((), (len(slopes),))
    ):
        raise Refused("PRELU whose slopes differ from pixel to pixel")
    try:
        made = [
            fixed_point.leaky(
                x.scale / result.scale, x.scale * alpha.scale / result.scale, x.zero_point, result.zero_point, slope
            )
            for slope in slopes.tolist()
        ]
    except ValueError as error:
        raise MalformedError(f"PRELU scales by {error}") from error
    bounds = RANGES[result.dtype]
    table = np.stack([fixed_point.table(of, *bounds, signed=x.dtype == "int8") for of in made])
    x = replace(x, source=network.read(x), places=None)
    network.set(operator, network.mapped(x, table if len(made) > 1 else table[0], result, result.name))


# ------------------------------------------------------------------------------------------------- along an axis


def softmax(network: Network, operator: FileOperator) -> None:
    x, result = network.value(operator), network.result(operator)
    if x.dtype != result.dtype or (result.scale, result.zero_point) != (1 / 256, RANGES[result.dtype][0]):
        raise Refused("SOFTMAX whose result isn't in steps of 1/256 from the least on")
    if not x.shape or x.shape[-1] > Probabilities.MOST:
        raise Refused(f"SOFTMAX over more than {Probabilities.MOST} numbers")
    beta = float(operator.options["beta"])
    try:
        table = fixed_point.exponentials(beta * x.scale)
    except ValueError as error:
        raise MalformedError(f"SOFTMAX scales by {error}") from error
    name = network.node(Probabilities(axis=1), (network.read(x),), result, result.name, table=table)
    network.result_of(operator, name, x.shape, result)


def arg_max(network: Network, operator: FileOperator) -> None:
    """As uint8, whatever the file has: there are up to 256 places along an axis."""
    x = network.value(operator)
    axis = network.integers(operator, 1)
    if axis not in ([-1], [len(x.shape) - 1]) or not x.shape or not 0 < x.shape[-1] <= 256 or not math.prod(x.shape):
        raise Refused("ARG_MAX along another axis than the last, or over more than 256 numbers")
    numbers = Value(shape=x.shape[:-1], source="", places=None, dtype="uint8", scale=1.0, zero_point=0)
    name = network.node(ArgMax(axis=1), (network.read(x),), numbers, network.result(operator).name)
    count = math.prod(numbers.shape)
    places = np.arange(count, dtype=np.int32).reshape(numbers.shape)
    network.set(operator, replace(numbers, source=name, places=places))


def concatenate(network: Network, operator: FileOperator) -> None:
    """Along the last axes as they lie inside; along any other, as pixels of what is before and after it."""
    result = network.result(operator)
    check_type(result)
    values = []
    for place in range(len(operator.inputs)):
        value = network.value(operator, place)
        if (value.dtype, value.scale, value.zero_point) != (result.dtype, result.scale, result.zero_point):
            if value.dtype != "uint8" or result.dtype != "uint8":
                raise Refused("CONCATENATION of tensors of int8 in different steps, which TensorFlow Lite refuses too")
            of = fixed_point.in_floats(value.scale, value.zero_point, result.scale, result.zero_point)
            table = fixed_point.table(of, *RANGES[result.dtype], signed=False)
            value = network.mapped(value, table, result, f"{value.source}.rescaled")
        values.append(value)
    if not values:
        raise MalformedError("CONCATENATION of nothing")
    low, high = limits_of(result, operator.integer("fused"))
    rank, axis = len(values[0].shape), operator.integer("axis")
    if not -rank <= axis < rank:
        raise MalformedError(f"CONCATENATION along the axis {axis} of {rank} dimensions")
    axis %= rank
    rests = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    if len(rests) != 1:
        raise MalformedError("CONCATENATION of tensors that don't fit together")
    first = values[0].shape
    shape = (*first[:axis], sum(value.shape[axis] for value in values), *first[axis + 1 :])
    inner = _inner_axis(shape, axis)
    limits = {"minimum": low, "maximum": high}
    if inner is not None:
        names = tuple(map(network.read, values))
        name = network.node(Concat(axis=inner), names, result, result.name, **limits)
        network.result_of(operator, name, shape, result)
        return
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    moved = [
        network.moved_to(value, network.places(value).reshape(1, before, value.shape[axis], after)) for value in values
    ]
    name = network.node(Concat(axis=3), tuple(map(network.read, moved)), result, result.name, **limits)
    whole = (1, before, shape[axis], after)
    made = Value(
        shape=whole, source=name, places=None, dtype=result.dtype, scale=result.scale, zero_point=result.zero_point
    )
    network.set(operator, network.moved_to(made, network.places(made).reshape(shape)))


def _inner_axis(shape: Shape, axis: int) -> int | None:
    """Which of 1×C×H×W an axis of a file's shape is, if it is one of them alone."""
    rank = len(shape)
    if axis == rank - 1:
        return 1
    if rank > 4 or (rank > 1 and shape[0] != 1 and rank != 2) or (axis == 0 and rank > 2):
        return None
    if axis == rank - 2:
        return 3 if rank != 2 or shape[0] != 1 else None
    return 2 if rank == 4 else None


# --------------------------------------------------------------------------------------------------------- resizing


def resize_bilinear(network: Network, operator: FileOperator) -> None:
    x, result, size = _resized(network, operator)
    align, half = (bool(operator.integer(name)) for name in ("align_corners", "half_pixel_centers"))
    axes = [bilinear(x.shape[1 + axis], size[axis], align=align, half=half) for axis in (0, 1)]
    less = [int(align and size[axis] > 1) for axis in (0, 1)]
    whole = all((x.shape[1 + axis] - less[axis]) * 1024 % (size[axis] - less[axis]) == 0 for axis in (0, 1))
    if x.dtype == "uint8" and (not whole or any((weights * FINE % 1).any() for _, weights in axes)):
        raise Refused(f"RESIZE_BILINEAR of uint8 with weights that aren't whole parts of {FINE}")
    kind = Resample(rows=axes[0], columns=axes[1], away=True)
    _add_resized(network, operator, kind, x, result, size, shift=2 * kind.bits)


def bilinear(length: int, wanted: int, *, align: bool, half: bool) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights, wanted×2; weights are in units of 1/1024, and so is the step from place to place."""
    step = ((1 << 10) * length + wanted // 2) // wanted
    if align and wanted > 1:
        step = ((1 << 10) * (length - 1) + (wanted - 1) // 2) // (wanted - 1)
    at = step * np.arange(wanted, dtype=np.int64)
    if half:
        at = at + step // 2 - (1 << 9)
    first = np.maximum(at >> 10, 0)
    second = np.minimum((at + 1023) >> 10, length - 1)
    first = np.minimum(first, length - 1)
    part = at - (first << 10)
    weights = np.stack([1024 - part, part], 1) / 1024
    return np.stack([first, np.maximum(second, 0)], 1).astype(np.int32), weights


def resize_nearest(network: Network, operator: FileOperator) -> None:
    x, _, size = _resized(network, operator)
    places = network.places(x)
    for axis in (0, 1):
        rows = nearest(
            x.shape[1 + axis],
            size[axis],
            align=bool(operator.integer("align_corners")),
            half=bool(operator.integer("half_pixel_centers")),
        )
        places = taken(places, rows, 1 + axis)
    network.set(operator, network.moved_to(x, places))


def nearest(length: int, wanted: int, *, align: bool, half: bool) -> np.ndarray:
    """Which pixels are taken, computed in float32."""
    one = np.float32(1)
    scale = np.float32(length) / np.float32(wanted)
    if align and wanted > 1:
        scale = np.float32(length - 1) / np.float32(wanted - 1)
    at = (np.arange(wanted, dtype=np.float32) + (one / 2 if half else np.float32(0))) * scale
    found = np.floor(at + one / 2) if align else np.floor(at)
    return np.minimum(found.astype(np.int64), length - 1)


def _resized(network: Network, operator: FileOperator) -> tuple[Value, FileTensor, tuple[int, int]]:
    x, result, size = network.value(operator), network.result(operator), network.integers(operator, 1)
    check_type(result)
    _same_steps(operator, x, result)
    if len(x.shape) != 4 or x.shape[0] != 1 or not math.prod(x.shape):
        raise Refused(f"{operator.kind} of a batch, or not of a map")
    if len(size) != 2 or min(size) < 1 or size[0] * size[1] * x.shape[3] > 1 << 24:
        raise MalformedError(f"{operator.kind} makes a map of {size}")
    return x, result, (size[0], size[1])


def _add_resized(
    network: Network,
    operator: FileOperator,
    kind: Operator,
    x: Value,
    result: FileTensor,
    size: tuple[int, int],
    **more: object,
) -> None:
    name = network.node(kind, (network.read(x),), result, result.name, **more)
    network.result_of(operator, name, (1, *size, x.shape[3]), result)


def copied(network: Network, value: Value, name: str, places: np.ndarray) -> str:
    """The name of a layer, never of an input, whose elements are those of the value at these places, 1×C×H×W."""
    found = network.ordered(value, places)
    if any(layer.name == found for layer in network.layers):
        return found
    gather = Gather(places=np.ascontiguousarray(places, np.int32))
    return network.node(gather, (value.source,), value, name)


CONVERTERS = {
    "ADD": add,
    "SUB": subtract,
    "MUL": multiply,
    "MAX_POOL_2D": max_pool,
    "AVERAGE_POOL_2D": average_pool,
    "QUANTIZE": requantise,
    "RELU": clamp,
    "RELU_N1_TO_1": clamp,
    "RELU6": clamp,
    "LOGISTIC": logistic,
    "TANH": tanh,
    "HARD_SWISH": hard_swish,
    "LEAKY_RELU": leaky_relu,
    "PRELU": prelu,
    "SOFTMAX": softmax,
    "ARG_MAX": arg_max,
    "CONCATENATION": concatenate,
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
}
