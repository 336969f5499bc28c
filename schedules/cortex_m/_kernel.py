"""What the kernels for Cortex-M have in common: functions over plain pointers, and how sums begin, grow and end."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.graph import FloatLayer, FloatNode
from tvmflow.integer.layers import RANGES, IntegerLayer, IntegerNode, accumulator_range
from tvmflow.integer.reference import twice
from tvmflow.schedules.integers import first_sums, requantised
from tvmflow.schedules.nodes import FLOATS, Arithmetic, FloatArithmetic

LEAST = -(1 << 31)
"""Of an int32: the bits of −0 in float32."""

Expr = Any
"""A tvm.ir.Expr or a Python number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedLayer(IntegerLayer):
    """A layer that reads its input as it is, where others have a copy made of it first.

    Beyond the input there is `border`, which isn't 0 where another number stands for the real 0. With `interleaved` the
    input lies as H×W×C.
    """

    border: int
    interleaved: bool


def border_of(layer: WeightedLayer) -> int:
    """What a layer meets beyond its input."""
    return layer.border if isinstance(layer, AdaptedLayer) else 0


def is_interleaved(layer: WeightedLayer) -> bool:
    """Whether the channels of a pixel of the input are neighbours in memory."""
    return isinstance(layer, AdaptedLayer) and layer.interleaved


def place_of(layer: WeightedLayer, channel: Expr, y: Expr, x: Expr) -> Expr:
    """Which element of a layer's input is at a channel, row and column."""
    _, channels, height, width = layer.input_shape
    if is_interleaved(layer):
        return (y * width + x) * channels + channel
    return (channel * height + y) * width + x


WeightedLayer = FloatLayer | IntegerLayer
"""A layer with weights, of a float32 network or of an integer one."""
Node = FloatNode | IntegerNode
"""A layer without."""
AnyLayer = WeightedLayer | Node


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A function `(sources…, destination, scratch…, constants…)`, or without the destination if it works in place.

    All are plain pointers. There is a source for each tensor that is read, once if it is read twice. `in_place` is the
    number of the one that the result overwrites, from its beginning on. `scratch` has the bytes of each scratch
    buffer. `schedule` is the file that made the function; `layers` are those whose work it does.
    """

    schedule: str
    layers: tuple[AnyLayer, ...]
    func: tirx.PrimFunc
    constants: Mapping[str, np.ndarray]
    scratch: Mapping[str, int] = field(default_factory=dict)
    in_place: int | None = None


Pointer = tuple[str, int | tuple[int, ...]]
"""dtype and number of elements, or lengths, of what a parameter points to."""


@contextmanager
def function(pointers: Mapping[str, Pointer]) -> Iterator[tuple[IRBuilder, dict[str, tirx.Buffer]]]:
    """A function of these parameters, whose loops are emitted inside; afterwards the builder's `get()` gives it."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True})
        arguments = {name: T.arg(name, T.handle(dtype)) for name, (dtype, _) in pointers.items()}
        buffers = {
            name: T.decl_buffer((count,) if isinstance(count, int) else count, dtype, data=arguments[name])
            for name, (dtype, count) in pointers.items()
        }
        yield builder, buffers


def constant_pointers(constants: Mapping[str, np.ndarray]) -> dict[str, Pointer]:
    return {name: (str(array.dtype), array.size) for name, array in constants.items()}


def accumulator(layer: WeightedLayer) -> str:
    """The dtype of a layer's sums."""
    return "float32" if layer.dtype == "float32" else "int32"


def parameters(layer: WeightedLayer) -> np.ndarray:
    """What each channel's sum begins with, float32 O×1; of integers int32 O×2, with multiplier or shift, or O×3.

    Half a step of a shift is added from the start, unless sums are rounded twice. The shift of a layer that
    `rounds_shortly` is to the right.
    """
    if isinstance(layer, IntegerLayer):
        if rounds_shortly(layer):
            assert layer.multiplier is not None
            return np.stack([layer.bias, layer.multiplier, _right(layer)], 1)
        if layer.multiplier is not None:
            return np.stack([layer.bias, *layer.factors], 1)
        assert layer.shift is not None
        return np.stack([first_sums(layer).astype(np.int32), layer.shift], 1)
    return layer.bias.astype(np.float32)[:, None]


def weights_of(layer: WeightedLayer) -> np.ndarray:
    """As they lie in flash: int8 or float32."""
    return layer.weight if isinstance(layer, IntegerLayer) else layer.weight.astype(np.float32)


By = tuple[Expr, ...]
"""By what a channel's sum is requantised: the layer's `factors`, of float32 none."""


def parameters_at(layer: WeightedLayer, table: tirx.Buffer, c: Expr) -> tuple[Expr, By]:
    """What the sum of channel `c` begins with, and its other parameters."""
    if isinstance(layer, IntegerLayer):
        count = 1 + len(layer.factors)
        return table[count * c], tuple(table[count * c + place] for place in range(1, count))
    return table[c], ()


def multiply_add(core: str, total: Expr, a: Expr, b: Expr, lanes: int = 1) -> Expr:
    """total + a·b; in float32 rounded once, but in portable C, where the compiler decides."""
    if core == "plain" or not str(total.ty.dtype).startswith("float32"):
        return total + a * b
    return tirx.call_llvm_pure_intrin(vector_of("float32", lanes), "llvm.fma", a, b, total)


def finish(layer: WeightedLayer, total: Expr, by: By) -> Expr:
    """A sum → the layer's output, in the dtype of the sum. `by` are the channel's other parameters."""
    if isinstance(layer, IntegerLayer):
        return requantised_shortly(layer, total, *by) if rounds_shortly(layer) else requantised(layer, total, *by)
    if layer.kind == "pool":
        total = total * T.float32(layer.weight.flat[0])
    return FLOATS.limited(layer, total)


@functools.lru_cache(maxsize=4)  # asked several times of one layer, and it looks at all weights
def rounds_shortly(layer: IntegerLayer) -> bool:
    """Whether sums that are rounded twice are never shifted to the left, and twice of each is an int32.

    The first rounding is then the high half of a product, one SMMULR.
    """
    if not layer.twice:
        return False
    assert layer.multiplier is not None
    right = _right(layer)
    if right.min() < 0:
        return False
    least, most = accumulator_range(layer, min(RANGES["int8"]), max(RANGES["uint8"]))
    largest = np.maximum(-least, most)
    # what is scaled, with half a step and the zero point, before the second shift
    scaled = (largest * layer.multiplier >> 31) + (np.int64(256) << right)
    return bool(max(2 * largest.max(), scaled.max() + 2) < 1 << 31)


def settled(layer: AnyLayer, dtype: str) -> AnyLayer:
    """The same layer, but channels that are one number, whatever is read in `dtype`, have no weights any more.

    Where training left a channel dead, its scale is next to nothing, and its bias and its shift are too large for what
    holds for all others.
    """
    if not isinstance(layer, IntegerLayer) or not layer.twice or layer.kind == "pool":
        return layer
    assert layer.multiplier is not None
    assert layer.shift is not None
    products = accumulator_range(replace(layer, bias=np.zeros_like(layer.bias)), *RANGES[dtype])
    low, high = (twice(layer.bias + end, layer.multiplier, layer.shift) + layer.zero_point for end in products)
    low, high = (end.clip(layer.minimum, layer.maximum) for end in (low, high))
    dead = low == high
    return replace(
        layer,
        weight=np.where(dead[:, None, None, None], 0, layer.weight).astype(np.int8),
        bias=np.where(dead, 2 * (low - layer.zero_point), layer.bias).astype(np.int32),
        multiplier=np.where(dead, 1 << 30, layer.multiplier).astype(np.int32),
        shift=np.where(dead, 0, layer.shift).astype(np.int32),
    )


def _right(layer: IntegerLayer) -> np.ndarray:
    """int32 O: by how much is shifted to the right. What is multiplied by 0 may be shifted by anything."""
    assert layer.multiplier is not None
    assert layer.shift is not None
    return np.where(layer.multiplier == 0, 1, -layer.shift).astype(np.int32)


def requantised_shortly(layer: IntegerLayer, total: Expr, factor: Expr, right: Expr) -> Expr:
    """`requantised` of a layer that `rounds_shortly`; `right` is by how much is shifted."""
    wide = T.cast(wrapping(operator.add, total, total), "int64") * T.cast(factor, "int64") + T.int64(1 << 31)
    once = T.bind(T.cast(wide >> T.int64(32), "int32"))
    # half a step and the zero point, and 1 less of what is negative, unless nothing is shifted
    # (C leaves open what a negative number is that is shifted to the left)
    added = tirx.shift_right(T.int32(2 * layer.zero_point + 1) * tirx.shift_left(T.int32(1), right), T.int32(1))
    negative = once if _right(layer).min() else tirx.bitwise_and(once, T.int32(0) - right)
    value = (once + tirx.shift_right(negative, T.int32(31)) + added) >> right
    return tirx.max(tirx.min(value, T.int32(layer.maximum)), T.int32(layer.minimum))


def wrapping(operate: Callable[[Expr, Expr], Expr], a: Expr, b: Expr) -> Expr:
    """A sum or difference modulo 2³²: of signed numbers LLVM may assume that nothing is lost."""
    return T.Cast("int32", operate(T.Cast("uint32", a), T.Cast("uint32", b)))


def finish_vector(layer: WeightedLayer, total: Expr, by: By) -> Expr:
    """`finish` of four sums of one channel, by MVE."""
    if isinstance(layer, IntegerLayer):
        return requantize_vector(layer, total, by)
    return limited_vector(layer, total)


def limited_vector(layer: FloatLayer, total: Expr) -> Expr:
    """Four numbers between a layer's limits, by MVE; NaN stays.

    Its comparison "less than" holds for NaN too, so numbers are compared as integers. Those from −0 to −∞ are the ones
    from the least integer up to the bits of −∞, those from 0 to ∞ the ones from 0 up to the bits of ∞, and NaN of
    either sign lies above the infinity of its sign.
    """
    bits = tirx.reinterpret("int32x4", total)
    found = total
    for limit, spans in ((layer.low, _below(layer.low)), (layer.high, _above(layer.high))):
        if spans:
            found = tirx.Select(_within(bits, spans), T.Broadcast(T.float32(limit), 4), found)
    return found


def _within(bits: Expr, spans: Sequence[tuple[int, int]]) -> Expr:
    """Whether an int32, or each of a vector of four, is in one of the spans, whose first and last these are."""
    lanes = 4 if str(bits.ty.dtype).endswith("x4") else 1

    def number(value: int) -> Expr:
        return T.Broadcast(T.int32(value), lanes) if lanes > 1 else T.int32(value)

    conditions = [
        bits <= number(last) if first == LEAST else tirx.And(bits >= number(first), bits <= number(last))
        for first, last in spans
    ]
    return functools.reduce(tirx.Or, conditions)


class MveIntegers(Arithmetic):
    """Numbers of a quantised network, four at a time by MVE."""

    def twice(self, value: Expr, multiplier: int, shift: int, lanes: int) -> Expr:
        assert lanes == 4
        if shift > 0:
            value = tirx.shift_left(value, T.Broadcast(T.int32(shift), lanes))
        once = intrinsic("mve.vqrdmulh", value, T.Broadcast(T.int32(multiplier), lanes), dtype="int32x4")
        return once if shift >= 0 else halved_away(T.bind(once), T.int32(-shift))


class MveFloats(FloatArithmetic):
    """Numbers of float32 in loops of which LLVM may make vectors of MVE, for which "less than" isn't to be trusted."""

    def below(self, value: Expr, limit: float) -> Expr:
        return _within(tirx.reinterpret("int32", value), _below(limit))


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def _below(low: float) -> list[tuple[int, int]]:
    """The first and the last of the bits, as int32, of the numbers that are less than `low`."""
    if low == -math.inf:
        return []
    if low < 0:
        return [(_bits(low) + 1, _bits(-math.inf))]
    return [(LEAST, _bits(-math.inf)), *([(0, _bits(low) - 1)] if low > 0 else [])]


def _above(high: float) -> list[tuple[int, int]]:
    """The first and the last of the bits of the numbers that are more than `high`."""
    if high == math.inf:
        return []
    if high < 0:
        return [(LEAST, _bits(high) - 1), (0, _bits(math.inf))]
    return [(_bits(high) + 1 if high > 0 else 1, _bits(math.inf))]


def requantize_vector(layer: IntegerLayer, total: Expr, by: By) -> Expr:
    """`requantised` of four sums by MVE: VRMULH is the formula, VSHL by less than 0 shifts right.

    The sums are of one channel, or, unless they are rounded twice and not shortly, each of its own: then the channels'
    other parameters `by` are vectors.
    """
    lanes = 4
    if rounds_shortly(layer):
        factor, right = by
        once = T.bind(intrinsic("mve.vqrdmulh", total, _four(factor), dtype="int32x4"))
        scaled = halved_away(once, right, exact=not _right(layer).min()) + T.Broadcast(T.int32(layer.zero_point), lanes)
    elif layer.twice:
        scaled = _twice_vector(layer, total, *by) + T.Broadcast(T.int32(layer.zero_point), lanes)
    elif layer.multiplier is not None:
        scaled = intrinsic("mve.vrmulh", total, _four(by[0]), T.uint32(0), dtype="int32x4")
    else:
        scaled = tirx.shift_right(total, _four(by[0]))
    highest, lowest = (T.Broadcast(T.int32(bound), lanes) for bound in (layer.maximum, layer.minimum))
    return tirx.max(tirx.min(scaled, highest), lowest)


def _four(value: Expr) -> Expr:
    """A vector as it is, or of four times the same number."""
    return value if str(value.ty.dtype).endswith("x4") else T.Broadcast(value, 4)


def halved_away(value: Expr, right: Expr, exact: bool = False) -> Expr:
    """Four numbers divided by 2^right, or by 2 to the power of each of a vector; `exact` if that may be by 1.

    Halves are rounded away from 0. VRSHL rounds them up, so that 1 is taken off what is negative.
    """
    left = (T.Broadcast(T.int32(0), 4) if str(right.ty.dtype).endswith("x4") else T.int32(0)) - right
    negative = tirx.bitwise_and(value, _four(left)) if exact else value
    value = value + tirx.shift_right(negative, T.Broadcast(T.int32(31), 4))
    saturating, rounding, unsigned = T.int32(0), T.int32(1), T.int32(0)
    form = "vector" if str(right.ty.dtype).endswith("x4") else "scalar"
    return intrinsic(f"mve.vshl.{form}", value, left, saturating, rounding, unsigned, dtype="int32x4")


def _twice_vector(layer: IntegerLayer, total: Expr, factor: Expr, shift: Expr) -> Expr:
    """The first rounding is VQRDMULH, which saturates for −2³¹ times itself only."""
    assert layer.shift is not None
    zero, one = T.int32(0), T.int32(1)
    if layer.shift.max() > 0:
        total = tirx.shift_left(total, T.Broadcast(tirx.max(shift, zero), 4))
    once = T.bind(intrinsic("mve.vqrdmulh", total, T.Broadcast(factor, 4), dtype="int32x4"))
    right = T.bind(tirx.max(zero - shift, zero))
    half = tirx.shift_left(one, tirx.max(right - one, zero))
    negative = tirx.shift_right(once, T.Broadcast(T.int32(31), 4))
    if layer.shift.max() >= 0:
        half = tirx.Select(right > zero, half, zero)
        negative = negative & T.Broadcast(tirx.Select(right > zero, T.int32(-1), zero), 4)
    return tirx.shift_right(once + T.Broadcast(half, 4) + negative, T.Broadcast(right, 4))


def intrinsic(name: str, *arguments: Expr, dtype: str = "int32") -> Expr:
    """An instruction by LLVM's name of it."""
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.arm.{name}", *arguments)


def scatter(buffer: tirx.Buffer, first: Expr, places: Expr, values: Expr) -> None:
    """The lowest bytes of four numbers, each at its place behind the first, by one VSTRB."""
    bits, scaled = T.int32(8), T.int32(0)
    pointer = buffer.access_ptr("w", offset=first)
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.arm.mve.vstr.scatter.offset", pointer, places, values, bits, scaled))


def gather(buffer: tirx.Buffer, first: Expr, places: Expr) -> Expr:
    """The bytes at four places behind the first as int32, by one VLDRB."""
    bits, scaled, unsigned = T.int32(8), T.int32(0), T.int32(int(str(buffer.dtype) == "uint8"))
    pointer = buffer.access_ptr("r", offset=first)
    return tirx.call_llvm_intrin("int32x4", "llvm.arm.mve.vldr.gather.offset", pointer, places, bits, scaled, unsigned)


def vector_of(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def lanes_at(first: Expr, lanes: int) -> Expr:
    """The index of consecutive elements."""
    return T.ramp(first, 1, lanes) if lanes > 1 else first


def is_pointwise(layer: WeightedLayer) -> bool:
    """Whether a layer is a product of matrices: each output pixel reads the channels of its own input pixel."""
    return layer.kind != "pool" and (*layer.weight.shape[2:], *layer.stride, layer.groups, *layer.padding) == (
        *(1, 1, 1, 1, 1),
        *(0, 0, 0, 0),
    )


def tap_of(layer: WeightedLayer, number: Expr) -> tuple[Expr, Expr, Expr]:
    """Channel, row and column of the value of that number among those that a pixel of a whole convolution meets."""
    rows, columns = layer.weight.shape[2:]
    tap = tirx.truncmod(number, rows * columns)
    return tirx.truncdiv(number, rows * columns), tirx.truncdiv(tap, columns), tirx.truncmod(tap, columns)


def met_by(layer: WeightedLayer, source: tirx.Buffer, tap: tuple[Expr, Expr, Expr], pixel: Expr) -> Expr:
    """What an output pixel meets at a channel, row and column of the weights."""
    channel, row, column = tap
    if is_pointwise(layer):
        return source[place_of(layer, channel, 0, 0) + pixel * (layer.input_shape[1] if is_interleaved(layer) else 1)]
    _, _, height, width = layer.input_shape
    y, x = tirx.truncdiv(pixel, layer.output_shape[3]), tirx.truncmod(pixel, layer.output_shape[3])
    y = y * layer.stride[0] - layer.padding[0] + row * layer.dilation[0]
    x = x * layer.stride[1] - layer.padding[1] + column * layer.dilation[1]
    value = source[place_of(layer, channel, y, x)]
    if not any(layer.padding):
        return value
    inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
    return tirx.if_then_else(inside, value, tirx.const(border_of(layer), source.dtype))


Weighted = TypeVar("Weighted", bound=WeightedLayer)


def exchanged(layer: Weighted) -> Weighted:
    """The same layer over the same maps, whose columns are taken for rows."""
    top, left, bottom, right = layer.padding
    (*_, height, width), (*_, made_height, made_width) = layer.input_shape, layer.output_shape
    return replace(
        layer,
        weight=np.ascontiguousarray(layer.weight.transpose(0, 1, 3, 2)),
        stride=layer.stride[::-1],
        padding=(left, top, right, bottom),
        dilation=layer.dilation[::-1],
        input_shape=(*layer.input_shape[:2], width, height),
        output_shape=(*layer.output_shape[:2], made_width, made_height),
    )


def sizes(layer: WeightedLayer) -> tuple[int, int]:
    """Elements of a layer's input and output."""
    return int(np.prod(layer.input_shape)), int(np.prod(layer.output_shape))


def pixels_of(layer: WeightedLayer) -> int:
    return layer.output_shape[2] * layer.output_shape[3]


def block_start(block: Expr, length: int, whole: int) -> Expr:
    """Where a block of `length` begins among `whole`: the last overlaps the one before where they don't divide."""
    return tirx.min(block * length, T.int32(whole - length)) if whole % length else block * length
