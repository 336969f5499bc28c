"""What the loops of all integer kernels have in common: their arguments, requantisation, and how results are stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.instructions import Expr, Instructions, pack_bytes
from tvmflow.schedules.integer_tasks import Task, Tensor
from tvmflow.schedules.nodes import Sums, value_of

if TYPE_CHECKING:
    from tvmflow.integer.layers import IntegerLayer


def round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def fill(array: np.ndarray, length: int, axis: int = 0) -> np.ndarray:
    """With zeros, until it is so long."""
    widths = [(0, length - array.shape[axis] if place == axis else 0) for place in range(array.ndim)]
    return np.pad(array, widths)


@contextmanager
def kernel(task: Task, constants: Sequence[np.ndarray]) -> Iterator[tuple[IRBuilder, Any, list[Any], Any]]:
    """A function whose loops are emitted inside: its builder, and the buffers of source, constants and result."""
    with kernel_of_many(task, constants) as (builder, sources, buffers, result):
        yield builder, sources[0], buffers, result


@contextmanager
def kernel_of_many(
    task: Task, constants: Sequence[np.ndarray]
) -> Iterator[tuple[IRBuilder, list[Any], list[Any], Any]]:
    """`kernel` with all sources."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        several = len(task.sources) > 1
        sources = [
            T.arg(f"source_{place}" if several else "source", T.buffer(source.shape, source.memory_dtype))
            for place, source in enumerate(task.sources)
        ]
        buffers = [
            T.arg(f"constant_{place}", T.buffer(array.shape, str(array.dtype))) for place, array in enumerate(constants)
        ]
        result = T.arg("result", T.buffer(task.result.shape, task.result.memory_dtype))
        yield builder, sources, buffers, result


def vector(buffer: Any, *indices: Any, lanes: int) -> Expr:
    """Neighbouring elements along the last axis, from there on."""
    return buffer[(*indices[:-1], T.ramp(indices[-1], 1, lanes))]


def store_vector(buffer: Any, value: Expr, *indices: Any, lanes: int) -> None:
    T.buffer_store(buffer, value, [*indices[:-1], T.ramp(indices[-1], 1, lanes)])


def first_sums(layer: IntegerLayer, offset: int = 0) -> np.ndarray:
    """int64 O that sums start from: biases, with the inputs' `offset` taken back and the rounding of shifts added."""
    first = layer.bias.astype(np.int64) - offset * layer.weight.astype(np.int64).sum((1, 2, 3))
    return first if layer.multiplier is not None or layer.shift is None else first + _halves(layer.shift)


def _halves(shift: np.ndarray) -> np.ndarray:
    return (1 << shift.astype(np.int64)) >> 1


def requantised(layer: IntegerLayer, total: Expr, factor: Expr, shift: Expr = None) -> Expr:
    """An int32 sum that started from `first_sums` → the layer's output, as int32.

    `factor` and `shift` are the layer's `factors` for the output.
    """
    if layer.twice:
        value = requantised_twice(layer, total, factor, shift) + T.int32(layer.zero_point)
    elif layer.multiplier is not None:
        wide = T.cast(total, "int64") * T.cast(factor, "int64") + T.int64(1 << 31)
        value = T.cast(wide >> T.int64(32), "int32")
    else:
        value = total >> factor
    return tirx.max(tirx.min(value, T.int32(layer.maximum)), T.int32(layer.minimum))


def requantised_twice(
    layer: IntegerLayer, total: Expr, factor: Expr, shift: Expr, bind: Callable[[Expr], Expr] = T.bind
) -> Expr:
    """`integer.layers` has the formula; what no channel of the layer needs isn't computed."""
    assert layer.shift is not None
    one, zero = T.int32(1), T.int32(0)
    left = bind(tirx.max(shift, zero)) if layer.shift.max() > 0 else zero
    wide = T.cast(total, "int64") * T.cast(factor, "int64")
    half = T.cast(T.int32(1 << 30) >> left, "int64")
    once = bind(T.cast((wide + half) >> T.cast(T.int32(31) - left, "int64"), "int32"))
    right = bind(tirx.max(zero - shift, zero))
    half = (one << tirx.max(right - one, zero)) + (once >> T.int32(31))
    if layer.shift.max() >= 0:
        half = tirx.Select(right > zero, half, zero)
    return (once + half) >> right


@dataclass(frozen=True, kw_only=True)
class Requantisation:
    """What follows a layer's sum, for vectors of `channels`: `arrays` are its bias and its `factors`.

    The sums start from the bias, which takes the offset of the layer's inputs back and has the rounding of shifts.
    """

    layer: IntegerLayer
    arrays: tuple[np.ndarray, ...]
    instructions: Instructions

    @staticmethod
    def of(layer: IntegerLayer, instructions: Instructions, channels: int, offset: int = 0) -> Requantisation:
        """`channels` are those of the layer, filled up; `offset` is what its inputs have added."""
        bias = first_sums(layer, offset)
        by = layer.factors
        if layer.multiplier is not None and instructions.half and not layer.twice:
            by = (layer.multiplier // 2,)
        # with an offset the sum may leave int32 and come back, as its terms do
        wrapped = (bias & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
        arrays = (fill(wrapped, channels), *(fill(np.asarray(factor, np.int32), channels) for factor in by))
        return Requantisation(layer=layer, arrays=arrays, instructions=instructions)

    def finish(self, total: Expr, by: Sequence[Expr], result: Tensor) -> Expr:
        """A vector of sums as the layer gives them, in the form of `result`. `by` are of its `factors`."""
        return T.cast(self.value(total, by, result.offset), f"{result.dtype}x{self.instructions.lanes}")

    def value(self, total: Expr, by: Sequence[Expr], offset: int = 0) -> Expr:
        """A vector of sums as the layer gives them, plus `offset`, as int32."""
        low, high = (self._number(end + offset) for end in (self.layer.minimum, self.layer.maximum))
        return tirx.max(tirx.min(self.scaled(total, by, offset), high), low)

    def scaled(self, total: Expr, by: Sequence[Expr], offset: int = 0) -> Expr:
        """`value` before it is clipped."""
        if self.layer.twice:
            return self._twice(total, *by) + self._number(offset + self.layer.zero_point)
        if self.layer.multiplier is not None:
            return self.instructions.high(total, by[0], offset)
        value = total >> by[0]
        return value + self._number(offset) if offset else value

    def _twice(self, total: Expr, factor: Expr, shift: Expr) -> Expr:
        number, shifts = self._number, self.layer.shift
        assert shifts is not None
        if shifts.max() > 0:
            total = total << tirx.max(shift, number(0))
        once = T.bind(self.instructions.doubled_high(total, factor))
        right = T.bind(tirx.max(number(0) - shift, number(0)))
        half = (number(1) << tirx.max(right - number(1), number(0))) + (once >> number(31))
        if shifts.max() >= 0:
            half = tirx.Select(right > number(0), half, number(0))
        return (once + half) >> right

    def packed(self, sums: Sequence[tuple[Expr, Sequence[Expr]]], result: Tensor) -> Expr:
        """Two or four vectors of sums, with their factors, in the form of `result`, in the order of `packing_order`."""
        values = [self.scaled(total, by, result.offset) for total, by in sums]
        low, high = self.layer.minimum + result.offset, self.layer.maximum + result.offset
        return pack_bytes(values, low, high, result.dtype, self.instructions.lanes)

    def _number(self, value: int) -> Expr:
        return T.broadcast(T.int32(value), self.instructions.lanes)


def with_tail(task: Task, value: Expr, others: Sequence[Any], pixel: Expr, channel: Expr, lanes: int) -> Expr:
    """What the tail makes of an int32 vector of the layer's values there, in the form of the result.

    `others` are the buffers of the sources behind the layer's own.
    """
    before, left = task.layers[-1].name, list(zip(task.sources[1:], others, strict=True))
    for node in task.tail:
        operands = [
            value if name == before else _vector_of(*left.pop(0), pixel, channel, lanes) for name in node.inputs
        ]

        def read(number: int, *place: Expr, operands: list[Expr] = operands) -> Expr:
            return operands[number]

        value = value_of(node, read, (), Sums(None, lanes), (channel, 0, 0))
        before = node.name
    value = value + T.broadcast(T.int32(task.result.offset), lanes)
    return T.cast(value, f"{task.result.dtype}x{lanes}")


def _vector_of(tensor: Tensor, buffer: Any, pixel: Expr, channel: Expr, lanes: int) -> Expr:
    """The network's values of neighbouring channels, as int32."""
    value = T.cast(vector(buffer, pixel, channel, lanes=lanes), f"int32x{lanes}")
    return value - T.broadcast(T.int32(tensor.offset), lanes) if tensor.offset else value


def scratch_of(result: Tensor, lanes: int) -> Any:
    """What `store_result` needs."""
    return T.sblock_alloc_buffer((lanes,), result.dtype) if result.is_plain else None


def store_result(result: Tensor, buffer: Any, value: Expr, pixel: Any, channel: Any, lanes: int, scratch: Any) -> None:
    """Store a vector of neighbouring channels of a pixel; one by one, through `scratch`, where the user gets them."""
    if not result.is_plain:
        store_vector(buffer, value, pixel, channel, lanes=lanes)
        return
    store_vector(scratch, value, 0, lanes=lanes)
    with T.serial(0, lanes) as lane, T.If(channel + lane < result.channels), T.Then():
        T.buffer_store(buffer, scratch[lane], plain_place(result, channel + lane, pixel))


def plain_place(tensor: Tensor, channel: Any, pixel: Any) -> list[Any]:
    """Where an element lies in a tensor as the user gives or gets it."""
    if len(tensor.shape) == 2:
        return [0, channel]
    if tuple(tensor.shape) == (1, tensor.channels, *tensor.size):
        return [0, channel, tirx.floordiv(pixel, tensor.size[1]), tirx.floormod(pixel, tensor.size[1])]
    flat, place = channel * math.prod(tensor.size) + pixel, []
    for length in reversed(tensor.shape[1:]):
        place.append(tirx.floormod(flat, length))
        flat = tirx.floordiv(flat, length)
    return [0, *reversed(place)]


def element(tensor: Tensor, buffer: Any, channel: Any, y: Any, x: Any) -> Expr:
    """The network's value there, as int32."""
    pixel = y * tensor.size[1] + x
    if tensor.packed:
        value = byte_of(buffer[pixel, tirx.floordiv(channel, 4)], tirx.floormod(channel, 4), tensor.dtype)
    else:
        place = plain_place(tensor, channel, pixel) if tensor.is_plain else [pixel, channel]
        value = T.cast(buffer[tuple(place)], "int32")
    return value - tensor.offset if tensor.offset else value


def byte_of(word: Expr, place: Any, dtype: str) -> Expr:
    """A byte of an int32, the lowest being 0, as the int32 that `dtype` makes of it."""
    if dtype == "uint8":
        return (word >> (place * 8)) & T.int32(255)
    return (word << (24 - place * 8)) >> T.int32(24)
