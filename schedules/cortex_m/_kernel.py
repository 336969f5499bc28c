"""What the kernels for Cortex-M have in common: functions over plain pointers, and how sums begin, grow and end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.graph import FloatLayer
from tvmflow.integer.layers import IntegerLayer

MINUS_INFINITY = -0x800000
"""The bits of −∞ in float32, read as an int32."""

Expr = Any
"""A tvm.ir.Expr or a Python number."""

AnyLayer = FloatLayer | IntegerLayer
"""A layer of a float32 network, or of an integer one."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A function `(source, destination, scratch…, constants…)`, or `(data, scratch…, constants…)` if `in_place`.

    All are plain pointers. The result of a kernel in place begins where its input began. `scratch` has the bytes of
    each scratch buffer. `schedule` is the file that made the function; `layers` are those whose work it does.
    """

    schedule: str
    layers: tuple[AnyLayer, ...]
    func: tirx.PrimFunc
    constants: Mapping[str, np.ndarray]
    scratch: Mapping[str, int] = field(default_factory=dict)
    in_place: bool = False


Pointer = tuple[str, int]
"""dtype and number of elements of what a parameter points to."""


@contextmanager
def function(pointers: Mapping[str, Pointer]) -> Iterator[tuple[IRBuilder, dict[str, tirx.Buffer]]]:
    """A function of these parameters, whose loops are emitted inside; afterwards the builder's `get()` gives it."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True})
        arguments = {name: T.arg(name, T.handle(dtype)) for name, (dtype, _) in pointers.items()}
        buffers = {
            name: T.decl_buffer((count,), dtype, data=arguments[name]) for name, (dtype, count) in pointers.items()
        }
        yield builder, buffers


def constant_pointers(constants: Mapping[str, np.ndarray]) -> dict[str, Pointer]:
    return {name: (str(array.dtype), array.size) for name, array in constants.items()}


def accumulator(layer: AnyLayer) -> str:
    """The dtype of a layer's sums."""
    return "float32" if layer.dtype == "float32" else "int32"


def parameters(layer: AnyLayer) -> np.ndarray:
    """What each channel's sum begins with, float32 O×1; of integers int32 O×2, with multiplier or shift.

    Half a step of a shift is added from the start.
    """
    if isinstance(layer, IntegerLayer):
        if layer.multiplier is not None:
            return np.stack([layer.bias, layer.multiplier], 1)
        assert layer.shift is not None
        return np.stack([layer.bias + ((1 << layer.shift) >> 1).astype(np.int32), layer.shift], 1)
    return layer.bias.astype(np.float32)[:, None]


def weights_of(layer: AnyLayer) -> np.ndarray:
    """As they lie in flash: int8 or float32."""
    return layer.weight if isinstance(layer, IntegerLayer) else layer.weight.astype(np.float32)


def parameters_at(layer: AnyLayer, table: tirx.Buffer, c: Expr) -> tuple[Expr, Expr]:
    """What the sum of channel `c` begins with, and the second parameter or None."""
    if isinstance(layer, IntegerLayer):
        return table[2 * c], table[2 * c + 1]
    return table[c], None


def multiply_add(core: str, total: Expr, a: Expr, b: Expr, lanes: int = 1) -> Expr:
    """total + a·b; in float32 rounded once, but in portable C, where the compiler decides."""
    if core == "plain" or not str(total.ty.dtype).startswith("float32"):
        return total + a * b
    return tirx.call_llvm_pure_intrin(vector_of("float32", lanes), "llvm.fma", a, b, total)


def finish(layer: AnyLayer, total: Expr, by: Expr) -> Expr:
    """A sum → the layer's output, in the dtype of the sum. `by` is the channel's second parameter."""
    if isinstance(layer, IntegerLayer):
        return requantize(layer, total, by)
    if layer.kind == "pool":
        total = total * T.float32(layer.weight.flat[0])
    return tirx.Select(total < T.float32(0), T.float32(0), total) if layer.relu else total  # NaN stays


def finish_vector(layer: AnyLayer, total: Expr, by: Expr) -> Expr:
    """`finish` of four sums of one channel, by MVE.

    Its comparison "less than" holds for NaN too, so numbers are compared as integers: those from −0 to −∞ are the ones
    up to the bits of −∞, and NaN of either sign lies above.
    """
    if isinstance(layer, IntegerLayer):
        return requantize_vector(layer, total, by)
    zeros, lowest = T.Broadcast(T.float32(0), 4), T.Broadcast(T.int32(MINUS_INFINITY), 4)
    return tirx.Select(tirx.reinterpret("int32x4", total) <= lowest, zeros, total) if layer.relu else total


def requantize(layer: IntegerLayer, total: Expr, by: Expr) -> Expr:
    """A sum in int32 → the layer's output as int32, saturated. `by` is the channel's second parameter."""
    if layer.multiplier is not None:
        wide = T.Cast("int64", total) * T.Cast("int64", by) + T.int64(1 << 31)
        scaled = T.Cast("int32", tirx.shift_right(wide, T.int64(32)))
    else:
        scaled = tirx.shift_right(total, by)
    return tirx.max(tirx.min(scaled, T.int32(layer.maximum)), T.int32(layer.minimum))


def requantize_vector(layer: IntegerLayer, total: Expr, by: Expr) -> Expr:
    """`requantize` of four sums of one channel by MVE: VRMULH is the formula, VSHL by less than 0 shifts right."""
    lanes = 4
    if layer.multiplier is not None:
        scaled = intrinsic("mve.vrmulh", total, T.Broadcast(by, lanes), T.uint32(0), dtype="int32x4")
    else:
        scaled = tirx.shift_right(total, T.Broadcast(by, lanes))
    highest, lowest = (T.Broadcast(T.int32(bound), lanes) for bound in (layer.maximum, layer.minimum))
    return tirx.max(tirx.min(scaled, highest), lowest)


def intrinsic(name: str, *arguments: Expr, dtype: str = "int32") -> Expr:
    """An instruction by LLVM's name of it."""
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.arm.{name}", *arguments)


def vector_of(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def lanes_at(first: Expr, lanes: int) -> Expr:
    """The index of consecutive elements."""
    return T.ramp(first, 1, lanes) if lanes > 1 else first


def is_pointwise(layer: AnyLayer) -> bool:
    """Whether a layer is a product of matrices: each output pixel reads the channels of its own input pixel."""
    return layer.kind != "pool" and (*layer.weight.shape[2:], *layer.stride, layer.groups, *layer.padding) == (
        *(1, 1, 1, 1, 1),
        *(0, 0, 0, 0),
    )


def tap_of(layer: AnyLayer, number: Expr) -> tuple[Expr, Expr, Expr]:
    """Channel, row and column of the value of that number among those that a pixel of a whole convolution meets."""
    rows, columns = layer.weight.shape[2:]
    tap = tirx.truncmod(number, rows * columns)
    return tirx.truncdiv(number, rows * columns), tirx.truncdiv(tap, columns), tirx.truncmod(tap, columns)


def met_by(layer: AnyLayer, source: tirx.Buffer, tap: tuple[Expr, Expr, Expr], pixel: Expr) -> Expr:
    """What an output pixel meets at a channel, row and column of the weights; 0 beyond the border."""
    channel, row, column = tap
    if is_pointwise(layer):
        return source[channel * pixels_of(layer) + pixel]
    _, _, height, width = layer.input_shape
    y, x = tirx.truncdiv(pixel, layer.output_shape[3]), tirx.truncmod(pixel, layer.output_shape[3])
    y = y * layer.stride[0] - layer.padding[0] + row * layer.dilation[0]
    x = x * layer.stride[1] - layer.padding[1] + column * layer.dilation[1]
    value = source[(channel * height + y) * width + x]
    if not any(layer.padding):
        return value
    inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
    return tirx.if_then_else(inside, value, tirx.const(0, source.dtype))


def sizes(layer: AnyLayer) -> tuple[int, int]:
    """Elements of a layer's input and output."""
    return int(np.prod(layer.input_shape)), int(np.prod(layer.output_shape))


def pixels_of(layer: AnyLayer) -> int:
    return layer.output_shape[2] * layer.output_shape[3]


def block_start(block: Expr, length: int, whole: int) -> Expr:
    """Where a block of `length` begins among `whole`: the last overlaps the one before where they don't divide."""
    return tirx.min(block * length, T.int32(whole - length)) if whole % length else block * length
