"""What a layer without weights computes, as loops for every kind of target: one function an operator.

`value_of` emits what a single element needs and gives it as an int32, or, of a float32 network, as a float32. How
elements are read, where results go and which loops are around is the kind's own affair, so that an operator is written
once. What differs between integers and real numbers is their `Arithmetic`.

NaN and infinities of a float32 network go on as in PyTorch: a comparison with NaN never holds, so that limits keep it
and a maximum takes it once it has met it. What is outside of a map or has a weight of 0 isn't touched at all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.layers import IntegerNode, shares_of
from tvmflow.integer.operators import (
    OUTSIDE,
    ArgMax,
    AveragePool,
    Box,
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
    Shape,
    Softmax,
    Sum,
)
from tvmflow.integer.reference import NEWTON

if TYPE_CHECKING:
    from tvmflow.integer.graph import FloatNode

    AnyNode = IntegerNode | FloatNode  # of a quantised network or of a float32 one

Expr = Any
"""A tvm.ir.Expr or a Python number."""
Read = Callable[[int, Expr, Expr, Expr], Expr]
"""(number of the input, channel, row, column) → the network's value there, in the dtype of the arithmetic."""
Place = tuple[Expr, Expr, Expr]
"""Channel, row, column."""

SUMS = 4
"""Elements that `value_of` needs to work in, of the dtype of the arithmetic, for each lane."""
SUMMING = (MaxPool, AveragePool, Resample, Softmax, LogSoftmax, Normalise, MatMul, Probabilities, ArgMax)
"""Operators that need them."""
PASSING = (MaxPool, Concat, Gather)
"""Operators that pass values on and compute with none, so that `StoredArithmetic` will do."""


class Arithmetic:
    """Numbers of a quantised network: int32, and tables and factors of the node's own."""

    dtype = "int32"
    least: float = -(1 << 31)

    def number(self, value: float) -> Expr:
        return T.int32(int(value))

    def larger(self, known: Expr, new: Expr) -> Expr:
        return tirx.max(known, new)

    def limited(self, node: Any, value: Expr, sums: Sums) -> Expr:
        return tirx.max(tirx.min(value, sums.constant(node.maximum)), sums.constant(node.minimum))

    def shifted(self, node: Any, total: Expr, sums: Sums) -> Expr:
        """Divided by a power of two, and halves rounded up."""
        if not node.shift:
            return total
        return (total + sums.constant((1 << node.shift) >> 1)) >> sums.constant(node.shift)

    def twice(self, value: Expr, multiplier: int, shift: int, lanes: int) -> Expr:
        """A number, or a vector, times multiplier · 2^(shift − 31), rounded two times as in `integer.layers`."""
        return twice(value, multiplier, shift, lanes)

    def factors(self, node: Any) -> list[float | None]:
        """By what inputs, or their product, are multiplied; None for 1."""
        return node.factors.tolist()

    def weights(self, operator: Resample) -> tuple[np.ndarray, np.ndarray]:
        return operator.integers


class FloatArithmetic(Arithmetic):
    """Numbers of a float32 network, without lanes."""

    dtype = "float32"
    least = -math.inf

    def number(self, value: float) -> Expr:
        return T.float32(value)

    def larger(self, known: Expr, new: Expr) -> Expr:
        """NaN if either is. TVM takes `x ≠ x` for false, so that NaN is what neither comparison holds for."""
        return tirx.Select(known > new, known, tirx.Select(known <= new, new, known + new))

    def limited(self, node: Any, value: Expr, sums: Sums | None = None) -> Expr:
        if node.low > -math.inf:
            value = tirx.Select(self.below(value, node.low), T.float32(node.low), value)
        if node.high < math.inf:
            value = tirx.Select(self.above(value, node.high), T.float32(node.high), value)
        return value

    def below(self, value: Expr, limit: float) -> Expr:
        return value < T.float32(limit)

    def above(self, value: Expr, limit: float) -> Expr:
        return value > T.float32(limit)

    def shifted(self, node: Any, total: Expr, sums: Sums) -> Expr:
        return total

    def factors(self, node: Any) -> list[float | None]:
        signs = node.operator.signs if isinstance(node.operator, Sum) else (1,)
        return [None if sign == 1 else sign for sign in signs]

    def weights(self, operator: Resample) -> tuple[np.ndarray, np.ndarray]:
        first, second = (weights.astype(np.float32) for _, weights in operator.axes)
        return first, second


class StoredArithmetic(Arithmetic):
    """Numbers of a quantised network as they lie in memory, `offset` added: as many more as they are narrower."""

    def __init__(self, dtype: str, offset: int) -> None:
        self.dtype, self.offset = dtype, offset
        limits = np.iinfo(dtype)
        self.least, self.most = int(limits.min) - offset, int(limits.max) - offset

    def number(self, value: float) -> Expr:
        return tirx.const(int(value) + self.offset, self.dtype)

    def limited(self, node: Any, value: Expr, sums: Sums) -> Expr:
        low, high = max(node.minimum, self.least), min(node.maximum, self.most)
        return tirx.max(tirx.min(value, sums.constant(high)), sums.constant(low))


INTEGERS, FLOATS = Arithmetic(), FloatArithmetic()


def arithmetic_of(node: AnyNode) -> Arithmetic:
    return INTEGERS if isinstance(node, IntegerNode) else FLOATS


@dataclass(frozen=True)
class Sums:
    """Where `value_of` works, and in which arithmetic: a buffer of SUMS numbers, or as many vectors of them."""

    buffer: Any
    lanes: int = 1
    numbers: Arithmetic = INTEGERS

    def _place(self, number: int) -> Expr:
        return number if self.lanes == 1 else T.ramp(number * self.lanes, 1, self.lanes)

    def load(self, number: int) -> Expr:
        return self.buffer[self._place(number)]

    def store(self, number: int, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [self._place(number)])

    def constant(self, value: float) -> Expr:
        number = self.numbers.number(value)
        return number if self.lanes == 1 else T.broadcast(number, self.lanes)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A box of the result that is computed alike: where it begins, its lengths, and of Concat the input it is from."""

    start: tuple[int, int, int]
    lengths: tuple[int, int, int]
    source: int | None = None


def parts_of(node: AnyNode) -> list[Part]:
    """The whole result, or, of Concat, what each input gives."""
    if not isinstance(node.operator, Concat):
        return [Part(start=(0, 0, 0), lengths=_three(node.output_shape))]
    axis, begin, parts = node.operator.axis - 1, 0, []
    for number, shape in enumerate(node.input_shapes):
        start = [0, 0, 0]
        start[axis] = begin
        parts.append(Part(start=(start[0], start[1], start[2]), lengths=_three(shape), source=number))
        begin += shape[axis + 1]
    return parts


def _three(shape: Shape) -> tuple[int, int, int]:
    return shape[1], shape[2], shape[3]


def constants_of(node: AnyNode) -> tuple[np.ndarray, ...]:
    """The arrays that `value_of` reads."""
    operator = node.operator
    if isinstance(operator, Function | Softmax | Probabilities):
        assert isinstance(node, IntegerNode)
        assert node.table is not None
        return (_narrow(node.table),)
    if isinstance(operator, LogSoftmax):
        assert isinstance(node, IntegerNode)
        assert node.table is not None
        return node.table[:256], node.table[256:]
    if isinstance(operator, Normalise):
        assert isinstance(node, IntegerNode)
        assert node.table is not None
        return node.table[0], node.table[1]
    if isinstance(operator, Resample):
        weights = arithmetic_of(node).weights(operator)
        pairs = zip(operator.axes, weights, strict=True)
        return tuple(array for (places, _), factors in pairs for array in (places.astype(np.int32), factors))
    if isinstance(operator, Gather):
        return _tables(operator, node.input_shapes[0])
    return ()


def _narrow(table: np.ndarray) -> np.ndarray:
    """In bytes, where it is of bytes: the cache has more room."""
    for dtype in (np.int8, np.uint8):
        if (table.astype(dtype) == table).all():
            return table.astype(dtype)
    return table


def box_of(node: AnyNode) -> Box | None:
    """The lengths of what `prepare` is for; None if each element is computed by itself."""
    if isinstance(node.operator, Softmax | LogSoftmax | Normalise | Probabilities):
        return node.operator.box(node.output_shape)
    return None


def prepare(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, corner: Place) -> None:
    """Emit what the elements of a box have in common, its largest and its sums for one. It stays in `sums`.

    `corner` is the box's first channel, row and column.
    """
    PREPARED[type(node.operator)](node, read, constants, sums, corner)


def value_of(
    node: AnyNode,
    read: Read,
    constants: Sequence[Any],
    sums: Sums,
    place: Place,
    source: int | None = None,
    *,
    prepared: bool = False,
) -> Expr:
    """Emit what an element needs; the element itself, clipped, in the dtype of the arithmetic.

    `constants` are buffers of `constants_of`; `sums` needs no buffer unless the operator is SUMMING. With `source`,
    `place` counts from where Concat's part begins. Of `sums` with lanes, the channel is the first of that many, and
    `read` gives vectors. Unless `sums` are `prepared` for the element's box, that is done for each element.
    """
    if (box := box_of(node)) is not None and not prepared:
        c, y, x = (at - tirx.floormod(at, length) for at, length in zip(place, box, strict=True))
        prepare(node, read, constants, sums, (c, y, x))
    if isinstance(node.operator, Concat) and source is not None:
        return sums.numbers.limited(node, read(source, *place), sums)
    value = VALUES[type(node.operator)](node, read, constants, sums, place)
    return sums.numbers.limited(node, value, sums)


def _times(value: Expr, factor: float | None, sums: Sums) -> Expr:
    return value if factor is None else value * sums.constant(factor)


def _broadcast(node: AnyNode, number: int, place: Place) -> Place:
    """Where an input is read that has a length of 1 where the result has more."""
    lengths = _three(node.input_shapes[number])
    first, second, third = (0 if length == 1 else at for length, at in zip(lengths, place, strict=True))
    return first, second, third


def twice(value: Expr, multiplier: int, shift: int, lanes: int = 1) -> Expr:
    """An int32, or a vector of them, times multiplier · 2^(shift − 31), rounded two times as in `integer.layers`."""

    def number(of: int, dtype: str) -> Expr:
        constant = tirx.const(of, dtype)
        return constant if lanes == 1 else T.broadcast(constant, lanes)

    def cast(of: Expr, dtype: str) -> Expr:
        return T.cast(of, dtype if lanes == 1 else f"{dtype}x{lanes}")

    left, right = max(shift, 0), max(-shift, 0)
    wide = cast(value, "int64") * number(multiplier, "int64") + number(1 << (30 - left), "int64")
    once = cast(wide >> number(31 - left, "int64"), "int32")
    if not right:
        return once
    once = T.bind(once)
    return (once + number((1 << right) >> 1, "int32") + (once >> number(31, "int32"))) >> number(right, "int32")


def _rescaled(node: AnyNode, read: Read, sums: Sums, place: Place) -> Expr:
    """A Sum or a Product whose factors are rows of an offset, a multiplier and a shift."""
    assert isinstance(node, IntegerNode)
    assert node.factors is not None
    *rows, (offset, multiplier, shift) = node.factors.tolist()
    found = []
    for number, (zero, factor, by) in enumerate(rows):
        value = read(number, *_broadcast(node, number, place)) + sums.constant(zero)
        if isinstance(node.operator, Sum):
            # C leaves open what a negative number is that is shifted to the left
            value = sums.numbers.twice(value * sums.constant(1 << node.shift), factor, by, sums.lanes)
            value = value if node.operator.signs[number] == 1 else sums.constant(0) - value
        found.append(value)
    total = found[0] * found[1] if isinstance(node.operator, Product) else sum(found[1:], start=found[0])
    return sums.numbers.twice(total, multiplier, shift, sums.lanes) + sums.constant(offset)


def _sum(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    if isinstance(node, IntegerNode) and node.factors is not None and node.factors.ndim == 2:
        return _rescaled(node, read, sums, place)
    total: Expr = None
    for number, factor in enumerate(sums.numbers.factors(node)):
        product = _times(read(number, *_broadcast(node, number, place)), factor, sums)
        total = product if total is None else total + product
    return sums.numbers.shifted(node, total, sums)


def _product(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    if isinstance(node, IntegerNode) and node.factors is not None and node.factors.ndim == 2:
        return _rescaled(node, read, sums, place)
    a, b = (read(number, *_broadcast(node, number, place)) for number in (0, 1))
    (factor,) = sums.numbers.factors(node)
    return sums.numbers.shifted(node, _times(a * b, factor, sums), sums)


def _max_pool(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    assert isinstance(node.operator, MaxPool)
    sums.store(0, sums.constant(sums.numbers.least))
    _for_each(node.operator.window, read, place, lambda value: sums.store(0, sums.numbers.larger(sums.load(0), value)))
    return sums.load(0)


def _average_pool(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    assert isinstance(node.operator, AveragePool)
    window = node.operator.window
    sums.store(0, sums.constant(0))
    _for_each(window, read, place, lambda value: sums.store(0, sums.load(0) + value))
    count: Expr = 1
    for axis, at in enumerate(place[1:]):
        taps = window.kernel[axis]
        if not all(all(window.meets(axis, tap)) for tap in range(taps)):
            first = at * window.stride[axis] - window.padding[axis]
            taps = tirx.min(first + taps, window.size[axis]) - tirx.max(first, 0)
        count = count * taps
    count = T.bind(T.cast(count, "int32") if not isinstance(count, int) else T.int32(count))
    by = T.broadcast(count, sums.lanes) if sums.lanes > 1 else count
    total, half = sums.load(0), by >> sums.constant(1)
    return tirx.truncdiv(tirx.Select(total > sums.constant(0), total + half, total - half), by)


def _for_each(window: Any, read: Read, place: Place, meet: Callable[[Expr], None]) -> None:
    """Loops over the taps of a window, with a condition where some are off the map."""
    c, y, x = place
    with T.serial(0, window.kernel[0]) as r, T.serial(0, window.kernel[1]) as s:
        row = y * window.stride[0] + r * window.dilation[0] - window.padding[0]
        column = x * window.stride[1] + s * window.dilation[1] - window.padding[1]
        conditions = []
        for axis, at in enumerate((row, column)):
            if not all(all(window.meets(axis, tap)) for tap in range(window.kernel[axis])):
                conditions += [at >= 0, at < window.size[axis]]

        if conditions:
            with T.If(tirx.all(*conditions)), T.Then():
                meet(read(0, c, row, column))
        else:
            meet(read(0, c, row, column))


def _concat(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    """Which input an element is from is asked; `parts_of` is for those who'd rather not."""
    assert isinstance(node.operator, Concat)
    axis = node.operator.axis - 1
    ends = np.cumsum([shape[axis + 1] for shape in node.input_shapes]).tolist()
    value: Expr = None
    for number in reversed(range(len(ends))):
        begin = ends[number - 1] if number else 0
        at = [*place]
        at[axis] = at[axis] - begin
        found = read(number, at[0], at[1], at[2])
        value = found if value is None else T.if_then_else(place[axis] < ends[number], found, value)
    return value


def _gather(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    operator, shape = node.operator, node.input_shapes[0]
    assert isinstance(operator, Gather)
    left = list(constants)
    axes = operator.axes(shape)
    if axes is not None:
        at, conditions = [], []
        for table, index in zip(axes, place, strict=True):
            line = _line(table)
            if line is None:
                buffer = left.pop(0)
                at.append(buffer[index])
                if (table == OUTSIDE).any():
                    conditions.append(buffer[index] >= 0)
                continue
            begin, step, first, last = line
            at.append(index * step + begin)
            if first > 0:
                conditions.append(index >= first)
            if last < len(table):
                conditions.append(index < last)
        value = read(0, at[0], at[1], at[2])
        return T.if_then_else(tirx.all(*conditions), value, sums.constant(operator.outside)) if conditions else value
    offsets = _offsets(operator)
    if offsets is not None:
        flat: Expr = 0
        for table, index in zip(offsets, place, strict=True):
            line = _line(table)
            flat = flat + (left.pop(0)[index] if line is None else index * line[1] + line[0])
        return _read_flat(read, flat, shape)
    (places,) = left
    _, _, height, width = node.output_shape
    flat = places[(place[0] * height + place[1]) * width + place[2]]
    value = _read_flat(read, flat, shape)
    if (operator.places == OUTSIDE).any():
        return T.if_then_else(flat >= 0, value, sums.constant(operator.outside))
    return value


def _read_flat(read: Read, flat: Expr, shape: Shape) -> Expr:
    _, _, height, width = shape
    rest = tirx.floormod(flat, height * width)
    return read(0, tirx.floordiv(flat, height * width), tirx.floordiv(rest, width), tirx.floormod(rest, width))


def _tables(operator: Gather, shape: Shape) -> tuple[np.ndarray, ...]:
    """What of the places can't be computed by a multiplication and an addition."""
    found = operator.axes(shape) or _offsets(operator)
    if found is not None:
        return tuple(table for table in found if _line(table) is None)
    return (np.ascontiguousarray(operator.places.reshape(-1), np.int32),)


def _line(table: np.ndarray) -> tuple[int, int, int, int] | None:
    """(begin, step, first, last) if elements from `first` to `last` are begin + index · step and the others OUTSIDE."""
    (inside,) = np.nonzero(table != OUTSIDE)
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1]) + 1
    values = table[first:last].astype(np.int64)
    step = int(values[1] - values[0]) if len(values) > 1 else 0
    begin = int(values[0]) - first * step
    return (begin, step, first, last) if (values == begin + np.arange(first, last) * step).all() else None


def _offsets(operator: Gather) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Tables of channel, row and column whose sum is the place, where there are such: transposes, pixel shuffles."""
    places = operator.places[0].astype(np.int64)
    if (places == OUTSIDE).any():
        return None
    channel, row, column = places[:, 0, 0], places[0, :, 0] - places[0, 0, 0], places[0, 0] - places[0, 0, 0]
    if not np.array_equal(places, channel[:, None, None] + row[:, None] + column):
        return None
    # a place of −1 can't be meant, as it would be OUTSIDE
    first, second, third = (table.astype(np.int32) for table in (channel, row, column))
    return (first, second, third) if min(second.min(), third.min()) >= 0 else None


def _resample(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    operator = node.operator
    assert isinstance(operator, Resample)
    rows, down, columns, along = constants
    vertical, horizontal = (table.shape[1] for table, _ in operator.axes)
    c, y, x = place
    sums.store(0, sums.constant(0))
    with T.serial(0, vertical) as r, T.serial(0, horizontal) as s:
        weight = down[y, r] * along[x, s]
        if sums.lanes > 1:
            weight = T.broadcast(weight, sums.lanes)
        product = read(0, c, rows[y, r], columns[x, s]) * weight
        if sums.numbers is not INTEGERS and any((table == 0).any() for _, table in operator.axes):
            # of fewer places than others have, the weights are filled up with 0, which infinity mustn't meet
            product = T.if_then_else(weight != sums.constant(0), product, sums.constant(0))
        sums.store(0, sums.load(0) + product)
    total = sums.load(0)
    if operator.away and sums.numbers is INTEGERS:
        total = total + (total >> sums.constant(31))
    return sums.numbers.shifted(node, total, sums)


def _function(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    (table,), index = constants, read(0, *place) & T.int32(255)
    assert isinstance(node, IntegerNode)
    assert node.table is not None
    return T.cast(table[(place[0], index) if node.table.ndim > 1 else index], "int32")


@contextlib.contextmanager
def _every(lengths: Box, corner: Place) -> Iterator[Place]:
    """Loops over a box that begins there."""
    with T.serial(0, lengths[0]) as c, T.serial(0, lengths[1]) as y, T.serial(0, lengths[2]) as x:
        yield corner[0] + c, corner[1] + y, corner[2] + x


def _exponentials(
    node: AnyNode,
    read: Read,
    constants: Sequence[Any],
    sums: Sums,
    corner: Place,
    scaled: Callable[[Expr], Expr] = lambda found: found,
) -> None:
    """0: the largest; 1: the sum of the exponentials of how far the others are below it, each `scaled`."""
    box = box_of(node)
    assert box is not None
    sums.store(0, sums.constant(sums.numbers.least))
    with _every(box, corner) as place:
        sums.store(0, tirx.max(sums.load(0), read(0, *place)))
    sums.store(1, T.int32(0))
    with _every(box, corner) as place:
        sums.store(1, sums.load(1) + scaled(T.cast(constants[0][sums.load(0) - read(0, *place)], "int32")))


def _softmax(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    own = T.cast(constants[0][sums.load(0) - read(0, *place)], "int32")
    assert isinstance(node, IntegerNode)
    share, bits = shares_of(node)
    total = sums.load(1) << T.int32(bits) if bits else sums.load(1)
    return tirx.floordiv(own * T.int32(2 * share) + total, total * T.int32(2))


def _reciprocal(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, corner: Place) -> None:
    """0: the largest; 1: the reciprocal of the sum of the exponentials; 3: by how much a product with it is shifted.

    As `integer.reference` has it. The sum has at least 1 and at most half of 2¹², so 1 to 12 leading zeros.
    """
    operator = node.operator
    assert isinstance(operator, Probabilities)
    whole, total, denominator, x, zeros = operator.WHOLE, 1, 2, 1, 3

    def rounded_off(found: Expr) -> Expr:
        """÷ 2^whole, halves up; to add a half first would overflow."""
        return (found >> T.int32(whole)) + ((found >> T.int32(whole - 1)) & T.int32(1))

    # each step is stored: of expressions within each other TVM's simplification would make ever longer ones
    _exponentials(node, read, constants, sums, corner, rounded_off)
    sums.store(zeros, T.int32(1))
    for bits in range(31 - whole + 1, 31):
        sums.store(zeros, sums.load(zeros) + T.cast(sums.load(total) < T.int32(1 << bits), "int32"))
    sums.store(denominator, sums.load(total) << (sums.load(zeros) - T.int32(1)))
    first, slope = NEWTON
    sums.store(x, T.int32(first) + _product_of(sums.load(denominator), T.int32(slope)))
    for _ in range(3):
        rest = T.int32(1 << 29) - _product_of(sums.load(denominator), sums.load(x))
        sums.store(x, sums.load(x) + _product_of(sums.load(x), rest) * T.int32(4))
    sums.store(x, tirx.Select(sums.load(x) >= T.int32(1 << 30), T.int32((1 << 31) - 1), sums.load(x) << T.int32(1)))
    sums.store(zeros, T.int32(whole + 23) - sums.load(zeros))


def _probabilities(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    assert isinstance(node, IntegerNode)
    own = T.cast(constants[0][sums.load(0) - read(0, *place)], "int32")
    sums.store(2, _product_of(sums.load(1), own))
    by = tirx.min(sums.load(3), T.int32(31))
    rounded = (sums.load(2) >> by) + ((sums.load(2) >> (by - T.int32(1))) & T.int32(1))
    return tirx.Select(sums.load(3) > T.int32(31), T.int32(0), rounded) + T.int32(node.zero_point)


def _product_of(a: Expr, b: Expr) -> Expr:
    """(a · b + 2³⁰) >> 31."""
    return T.cast((T.cast(a, "int64") * T.cast(b, "int64") + T.int64(1 << 30)) >> T.int64(31), "int32")


def _argmax(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    operator = node.operator
    assert isinstance(operator, ArgMax)
    sums.store(0, sums.constant(sums.numbers.least))
    sums.store(1, T.int32(0))
    with T.serial(0, node.input_shapes[0][operator.axis]) as index:
        at = [*place]
        at[operator.axis - 1] = index
        value = T.bind(read(0, at[0], at[1], at[2]))
        sums.store(1, tirx.Select(value > sums.load(0), index, sums.load(1)))
        sums.store(0, tirx.max(sums.load(0), value))
    return sums.load(1)


def _logarithm(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, corner: Place) -> None:
    """0: the largest; 2: how many thresholds the sum of the exponentials reaches, found by halving."""
    _exponentials(node, read, constants, sums, corner)
    sums.store(2, T.int32(0))
    with T.serial(0, 8) as step:
        more = T.int32(128) >> step
        reached = sums.load(1) >= constants[1][sums.load(2) + more - 1]
        sums.store(2, sums.load(2) + tirx.Select(reached, more, T.int32(0)))


def _log_softmax(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    factor, step = sums.numbers.factors(node)
    below = read(0, *place) - sums.load(0)
    return sums.numbers.shifted(node, _times(below, factor, sums) - _times(sums.load(2), step, sums), sums)


def _moments(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, corner: Place) -> None:
    """0: the sum; 2 and 1: r and z of the reciprocal root of the variance, which is r · 2^(z − 46) (see layers.py)."""
    operator = node.operator
    assert isinstance(operator, Normalise)
    assert isinstance(node, IntegerNode)
    assert node.factors is not None
    sums.store(0, T.int32(0))
    sums.store(1, T.int32(0))
    with _every(operator.lengths, corner) as place:
        sums.store(0, sums.load(0) + read(0, *place))
        sums.store(1, sums.load(1) + read(0, *place) * read(0, *place))
    epsilon = int(node.factors[0]) << int(node.factors[1])
    total, squares = (T.cast(sums.load(number), "int64") for number in (0, 1))
    wide = squares * T.int64(operator.count) - total * total + T.int64(epsilon)
    wide = tirx.max(wide, T.int64(1))
    # in two halves of 31 bits, 2 and 3, multiplied by 4 while they have room
    sums.store(2, T.cast(wide >> T.int64(31), "int32"))
    sums.store(3, T.cast(wide & T.int64((1 << 31) - 1), "int32"))
    sums.store(1, T.int32(0))
    with T.serial(0, 30), T.If(sums.load(2) < T.int32(1 << 29)), T.Then():
        sums.store(2, sums.load(2) * T.int32(4) + (sums.load(3) >> T.int32(29)))
        sums.store(3, (sums.load(3) & T.int32((1 << 29) - 1)) * T.int32(4))
        sums.store(1, sums.load(1) + T.int32(1))
    sums.store(3, T.int32(0))
    with T.serial(0, 15) as step:
        root = sums.load(3) + (T.int32(1 << 14) >> step)
        sums.store(3, tirx.Select(root * root <= sums.load(2) >> T.int32(1), root, sums.load(3)))
    sums.store(2, tirx.floordiv(T.int32(1 << 30), sums.load(3)))


def _normalise(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    operator, (gamma, beta) = node.operator, constants
    assert isinstance(operator, Normalise)
    assert isinstance(node, IntegerNode)
    distance = T.cast(read(0, *place), "int64") * T.int64(operator.count) - T.cast(sums.load(0), "int64")
    product = distance * T.cast(sums.load(2) * gamma[place[0]], "int64")
    scaled = product >> T.cast(T.int32(38 + node.shift) - sums.load(1), "int64")
    return _narrowed((scaled + T.cast(beta[place[0]] + T.int32(128), "int64")) >> T.int64(8))


def _matmul(node: AnyNode, read: Read, constants: Sequence[Any], sums: Sums, place: Place) -> Expr:
    assert isinstance(node, IntegerNode)
    assert node.factors is not None
    c, y, x = place
    sums.store(0, T.int32(0))
    with T.serial(0, node.input_shapes[0][3]) as k:
        sums.store(0, sums.load(0) + read(0, c, y, k) * read(1, c, k, x))
    wide = T.cast(sums.load(0), "int64") * T.int64(int(node.factors[0]))
    half = T.int64((1 << node.shift) >> 1)
    return _narrowed((wide + half) >> T.int64(node.shift))


def _narrowed(value: Expr) -> Expr:
    """int64 as int32: what is beyond all limits stays beyond them."""
    return T.cast(tirx.max(tirx.min(value, T.int64(1 << 20)), T.int64(-(1 << 20))), "int32")


PREPARED: dict[type, Callable[[AnyNode, Read, Sequence[Any], Any, Place], None]] = {
    Softmax: _exponentials,
    LogSoftmax: _logarithm,
    Normalise: _moments,
    Probabilities: _reciprocal,
}
"""Operators whose elements have something in common, and how it is computed."""

VALUES: dict[type, Callable[[AnyNode, Read, Sequence[Any], Any, Place], Expr]] = {
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


VALUES_OF_FLOATS = {
    operator: value
    for operator, value in VALUES.items()
    if operator not in (AveragePool, Function, MatMul, ArgMax, *PREPARED)
}
"""Those that are the same of real numbers. The others have tables, or arithmetic of integers alone."""


def in_vectors(node: AnyNode) -> bool:
    """Whether neighbouring channels are computed alike, from neighbouring channels of what is read."""
    operator = node.operator
    if isinstance(operator, Gather):
        axes = operator.axes(node.input_shapes[0])
        line = None if axes is None else _line(axes[0])
        return line is not None and line[1:] == (1, 0, node.output_shape[1])
    return not isinstance(operator, (Function, MatMul, ArgMax, *PREPARED))


def work_of(node: AnyNode) -> int:
    """Elements that are read, by which it is weighed whether threads pay."""
    count, operator = math.prod(node.output_shape), node.operator
    if isinstance(operator, MaxPool | AveragePool):
        return count * math.prod(operator.window.kernel)
    if isinstance(operator, Resample):
        return count * operator.rows[0].shape[1] * operator.columns[0].shape[1]
    if isinstance(operator, ArgMax):
        return count * node.input_shapes[0][operator.axis]
    if isinstance(operator, MatMul):
        return count * node.input_shapes[0][3]
    return count * len(node.inputs)
