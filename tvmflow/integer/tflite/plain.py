"""Sums, products and what is computed along axes as layers without weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tvmflow.integer.layers import RANGES
from tvmflow.integer.operators import ArgMax, Concat, Gather, Probabilities, Product, Shape, Sum
from tvmflow.integer.reference import twice
from tvmflow.integer.tflite import fixed_point
from tvmflow.integer.tflite.model import FileOperator, FileTensor
from tvmflow.integer.tflite.values import Network, Refused, Value, check_type, inside
from tvmflow.integer.tflite.weighted import factors, limits_of
from tvmflow.system.untrusted import MalformedError

WIDER = 20
"""Bits by which the terms of a sum are finer than what is read."""


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
        # LiteRT, whose kernels alone take uint8, does this in float32, and nothing else of sums and products
        real = np.float32 if result.dtype == "uint8" else np.float64
        factor = float(real(real(scales[0]) * real(scales[1])) / real(result.scale))
        (multiplier,), (shift,) = factors(np.array([factor]))
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
    if len(rests) != 1 or any(len(value.shape) != rank for value in values):
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
    "SOFTMAX": softmax,
    "ARG_MAX": arg_max,
    "CONCATENATION": concatenate,
}
