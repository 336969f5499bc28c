"""What layers of quantised networks compute, in NumPy: the oracle of every backend.

Arrays are N×C×H×W of the layers' dtypes. An operator without a line in REFERENCES does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvmflow.integer.layers import RANGES, AnyIntegerLayer, IntegerLayer, IntegerNode, accumulator_range, shares_of
from tvmflow.integer.operators import (
    OUTSIDE,
    ArgMax,
    AveragePool,
    Concat,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Probabilities,
    Product,
    Resample,
    Softmax,
    Sum,
    boxed,
)

BATCH = 16
"""Images that the reference computes at once: few enough for the caches, enough for vectors to be long."""
CACHED = 1 << 16
"""Outputs of a depthwise layer that it computes at once."""


def quantize(real: np.ndarray, scale: float, zero_point: int = 0, dtype: str = "int8") -> np.ndarray:
    """Real numbers → int8, or uint8, rounded half to even and saturated."""
    rounded = np.rint(np.asarray(real, np.float64) / scale) + zero_point
    return rounded.clip(*RANGES[dtype]).astype(dtype)


def run_layer(layer: AnyIntegerLayer, *inputs: np.ndarray) -> np.ndarray:
    """N×C×H×W of integers → the layer's output, N×O×OH×OW of its dtype."""
    if isinstance(layer, IntegerLayer):
        return requantize(layer, accumulate(layer, inputs[0]))
    wide = REFERENCES[type(layer.operator)](layer, *(x.astype(np.int64) for x in inputs))
    return wide.clip(layer.minimum, layer.maximum).astype(layer.dtype)


def accumulate(layer: IntegerLayer, x: np.ndarray) -> np.ndarray:
    """N×C×H×W, int8 or uint8 → the accumulators with bias, int32 N×O×OH×OW.

    Computed in floating point, whose sums of integers are exact as long as none can leave the significand.
    """
    lowest, highest = accumulator_range(layer, *RANGES[x.dtype.name])
    largest = max(abs(int(lowest.min())), abs(int(highest.max())))
    real: Any = np.float32 if largest <= 2**24 else np.float64
    count, groups, window = len(x), layer.groups, layer.window
    outputs, inputs, *kernel = layer.weight.shape
    height, width = layer.output_shape[2:]
    # The batch comes last: long vectors whatever the map's size, and one matrix product for the whole batch.
    planes = x.transpose(1, 2, 3, 0).astype(real).reshape(groups, inputs, *x.shape[2:], count)
    weight = layer.weight.astype(real).reshape(groups, outputs // groups, inputs, *kernel)
    acc = np.empty((groups, outputs // groups, height, width, count), real)
    acc[...] = layer.bias.reshape(groups, -1, 1, 1, 1)
    together = max(1, CACHED // (height * width * count))
    for row, column in np.ndindex(*kernel):
        to_rows, from_rows = window.span(0, row)
        to_columns, from_columns = window.span(1, column)
        if to_rows.start == to_rows.stop or to_columns.start == to_columns.stop:
            continue
        for first in range(0, groups, together):
            some = slice(first, first + together)
            part = planes[some, :, from_rows, from_columns]
            tap = weight[some, ..., row, column]
            if inputs == 1:
                products = tap[..., None, None] * part
            else:
                # all are finite integers, but BLAS may compute with what lies behind them, and drop it
                with np.errstate(invalid="ignore"):
                    products = tap @ part.reshape(len(part), inputs, -1)
                products = products.reshape(len(part), -1, *part.shape[2:])
            acc[some, :, to_rows, to_columns] += products
    return np.ascontiguousarray(acc.reshape(outputs, height, width, count).transpose(3, 0, 1, 2)).astype(np.int32)


def requantize(layer: IntegerLayer, acc: np.ndarray) -> np.ndarray:
    """int32 N×O×… → the output of the layer's dtype, scaled, rounded and saturated."""
    wide = acc.astype(np.int64)
    per_channel = (-1, *[1] * (acc.ndim - 2))
    if layer.multiplier is not None and layer.shift is not None:
        multiplier, shift = (array.astype(np.int64).reshape(per_channel) for array in (layer.multiplier, layer.shift))
        wide = twice(wide, multiplier, shift) + layer.zero_point
    elif layer.multiplier is not None:
        wide *= layer.multiplier.reshape(per_channel)
        wide += 1 << 31
        wide >>= 32
    else:
        assert layer.shift is not None
        shift = layer.shift.astype(np.int64).reshape(per_channel)
        wide += (1 << shift) >> 1
        wide >>= shift
    return wide.clip(layer.minimum, layer.maximum).astype(layer.dtype)


def twice(x: np.ndarray, multiplier: Any, shift: Any) -> np.ndarray:
    """int64 · multiplier · 2^(shift − 31), rounded two times, as `layers` says; numbers or arrays of them, int64."""
    left, right = np.maximum(shift, 0), np.maximum(-np.asarray(shift), 0)
    return halves_away((x * multiplier + (1 << (30 - left))) >> (31 - left), right)


def halves_away(x: np.ndarray, shift: Any) -> np.ndarray:
    """x ÷ 2^shift, rounded, halves away from 0."""
    half = (1 << np.asarray(shift, np.int64)) >> 1  # 1 << 31 is no int32
    return (x + half - ((x < 0) & (half > 0))) >> shift


def _shifted(node: IntegerNode, total: np.ndarray) -> np.ndarray:
    """Rounded, halves towards +∞."""
    return (total + ((1 << node.shift) >> 1)) >> node.shift


def _sum(node: IntegerNode, *inputs: np.ndarray) -> np.ndarray:
    assert node.factors is not None
    if node.factors.ndim == 2:
        assert isinstance(node.operator, Sum)
        *rows, (offset, multiplier, shift) = node.factors.tolist()
        total = np.zeros((), np.int64)
        for x, sign, (zero, factor, by) in zip(inputs, node.operator.signs, rows, strict=True):
            total = total + sign * twice((x + zero) << node.shift, factor, by)
        return twice(total, multiplier, shift) + offset
    products = (int(factor) * x for factor, x in zip(node.factors, inputs, strict=True))
    return _shifted(node, sum(products, start=np.zeros((), np.int64)))


def _product(node: IntegerNode, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert node.factors is not None
    if node.factors.ndim == 2:
        (first, *_), (second, *_), (offset, multiplier, shift) = node.factors.tolist()
        return twice((a + first) * (b + second), multiplier, shift) + offset
    return _shifted(node, a * b * int(node.factors[0]))


def _max_pool(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    operator = node.operator
    assert isinstance(operator, MaxPool)
    found = np.full((len(x), *node.output_shape[1:]), np.iinfo(np.int64).min)
    for row, column in np.ndindex(*operator.window.kernel):
        (to_rows, from_rows), (to_columns, from_columns) = operator.window.span(0, row), operator.window.span(1, column)
        place = (slice(None), slice(None), to_rows, to_columns)
        found[place] = np.maximum(found[place], x[:, :, from_rows, from_columns])
    return found


def _average_pool(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    operator = node.operator
    assert isinstance(operator, AveragePool)
    window = operator.window
    total, count = np.zeros((len(x), *node.output_shape[1:]), np.int64), np.zeros(node.output_shape[2:], np.int64)
    for row, column in np.ndindex(*window.kernel):
        (to_rows, from_rows), (to_columns, from_columns) = window.span(0, row), window.span(1, column)
        total[:, :, to_rows, to_columns] += x[:, :, from_rows, from_columns]
        count[to_rows, to_columns] += 1
    return np.sign(total) * ((np.abs(total) + count // 2) // count)


def _concat(node: IntegerNode, *inputs: np.ndarray) -> np.ndarray:
    assert isinstance(node.operator, Concat)
    return np.concatenate(inputs, node.operator.axis)


def _gather(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    assert isinstance(node.operator, Gather)
    places = node.operator.places[0]
    return np.where(places == OUTSIDE, node.operator.outside, x.reshape(len(x), -1)[:, places])


def _resample(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    operator = node.operator
    assert isinstance(operator, Resample)
    rows, columns = (table for table, _ in operator.axes)
    vertical, horizontal = operator.integers
    nothing = np.zeros((), np.int64)
    parts = (x[:, :, rows[:, tap]] * vertical[:, tap, None].astype(np.int64) for tap in range(rows.shape[1]))
    down = np.asarray(sum(parts, start=nothing))
    parts = (down[..., columns[:, tap]] * horizontal[:, tap].astype(np.int64) for tap in range(columns.shape[1]))
    total = np.asarray(sum(parts, start=nothing))
    return halves_away(total, node.shift) if operator.away else _shifted(node, total)


def _function(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    assert node.table is not None
    if node.table.ndim == 1:
        return node.table[x & 255]
    return node.table[np.arange(x.shape[1])[:, None, None], x & 255]


def _softmax(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    assert node.table is not None
    assert isinstance(node.operator, Softmax)
    axis = node.operator.axis
    exponentials = node.table[x.max(axis, keepdims=True) - x].astype(np.int64)
    share, bits = shares_of(node)
    total = exponentials.sum(axis, keepdims=True) << bits
    return (2 * share * exponentials + total) // (2 * total)


def _log_softmax(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    assert node.table is not None
    assert node.factors is not None
    assert isinstance(node.operator, LogSoftmax)
    axis, (factor, step) = node.operator.axis, (int(number) for number in node.factors)
    largest = x.max(axis, keepdims=True)
    total = node.table[largest - x].astype(np.int64).sum(axis, keepdims=True)
    logarithm = np.searchsorted(node.table[256:], total, side="right")
    return _shifted(node, (x - largest) * factor - logarithm * step)


def _normalise(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    assert node.table is not None
    assert node.factors is not None
    assert isinstance(node.operator, Normalise)
    boxes = boxed(x, node.operator.lengths)
    count, axes = node.operator.count, (2, 4, 6)
    sums, squares = (numbers.sum(axes, keepdims=True) for numbers in (boxes, boxes * boxes))
    wide = np.maximum(1, count * squares - sums * sums + (int(node.factors[0]) << int(node.factors[1])))
    quadrupled = np.zeros_like(wide)
    for _ in range(30):
        more = wide < 1 << 60
        wide, quadrupled = np.where(more, wide * 4, wide), quadrupled + more
    # float64 holds these numbers exactly, and the root of a square is exact
    root = np.floor(np.sqrt((wide >> 32).astype(np.float64))).astype(np.int64)
    inverse = (1 << 30) // root
    gamma, beta = (np.broadcast_to(row.astype(np.int64)[:, None, None], x.shape) for row in node.table)
    product = (count * boxes - sums) * (inverse * boxed(gamma, node.operator.lengths))
    scaled = product >> (38 - quadrupled + node.shift)
    return (scaled.reshape(x.shape) + beta + 128) >> 8


def _matmul(node: IntegerNode, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert node.factors is not None
    # as long as no sum leaves the significand, sums of float64 are exact, and faster
    total = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    return _shifted(node, total * int(node.factors[0]))


def _probabilities(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    """In fixed point: a product of two numbers of 31 bits of fraction is `twice(a, b, 0)`.

    `table` has exp(−d · the input's step) · 2³¹ for each distance d from the largest. Their sum s is scaled to 1 + a,
    0 ≤ a < 1, by a power of two; Newton's method finds 2 ÷ (1 + a), a number with 29 bits of fraction, in three steps.
    """
    assert node.table is not None
    assert isinstance(node.operator, Probabilities)
    axis, whole = node.operator.axis, node.operator.WHOLE
    exponentials = node.table[x.max(axis, keepdims=True) - x].astype(np.int64)
    total = halves_away(exponentials, whole).sum(axis, keepdims=True)
    zeros = np.zeros_like(total)
    for bits in (16, 8, 4, 2, 1):  # how many leading zeros 32 bits have
        zeros += np.where(total << zeros >> (32 - bits) == 0, bits, 0)
    scaled = reciprocal((total << zeros) - (1 << 31))
    return halves_away(twice(scaled, exponentials, 0), whole - zeros + 23) + node.zero_point


def reciprocal(a: np.ndarray) -> np.ndarray:
    """1 ÷ (1 + a), both with 31 bits of fraction, for 0 ≤ a < 1."""
    return np.minimum(twice_reciprocal(a) << 1, (1 << 31) - 1)


def twice_reciprocal(a: np.ndarray) -> np.ndarray:
    """2 ÷ (1 + a) with 29 bits of fraction, for `a` with 31, 0 ≤ a < 1."""
    half = (a + (1 << 31)) >> 1
    x = NEWTON[0] + twice(half, NEWTON[1], 0)
    for _ in range(3):
        x = x + (twice(x, (1 << 29) - twice(half, x, 0), 0) << 2)
    return x


NEWTON = (round(48 / 17 * 2**29), round(-32 / 17 * 2**29))
"""What Newton's method for reciprocals begins with: 48/17 − 32/17 · d for d between ½ and 1."""


def _argmax(node: IntegerNode, x: np.ndarray) -> np.ndarray:
    assert isinstance(node.operator, ArgMax)
    return x.argmax(node.operator.axis, keepdims=True)


REFERENCES: dict[type, Callable[..., np.ndarray]] = {
    Sum: _sum,
    Product: _product,
    MaxPool: _max_pool,
    AveragePool: _average_pool,
    Concat: _concat,
    Gather: _gather,
    Resample: _resample,
    Function: _function,
    Softmax: _softmax,
    LogSoftmax: _log_softmax,
    Normalise: _normalise,
    MatMul: _matmul,
    Probabilities: _probabilities,
    ArgMax: _argmax,
}
