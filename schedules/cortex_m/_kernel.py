"""What the kernels for Cortex-M have in common: functions over plain pointers, and the exact requantisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.integer import IntegerLayer

Expr = Any
"""A tvm.ir.Expr or a Python number."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A function `(source, destination, scratch…, constants…)`, or `(data, scratch…, constants…)` if `in_place`.

    All are plain pointers. The result of a kernel in place begins where its input began. `scratch` has the bytes of
    each scratch buffer. `schedule` is the file that made the function; `layers` are those whose work it does.
    """

    schedule: str
    layers: tuple[IntegerLayer, ...]
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


def parameters(layer: IntegerLayer) -> np.ndarray:
    """int32 O×2: what a sum begins with, and multiplier or shift. Half a step of a shift is added from the start."""
    if layer.multiplier is not None:
        return np.stack([layer.bias, layer.multiplier], 1)
    assert layer.shift is not None
    return np.stack([layer.bias + ((1 << layer.shift) >> 1).astype(np.int32), layer.shift], 1)


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


def sizes(layer: IntegerLayer) -> tuple[int, int]:
    """Elements of a layer's input and output."""
    return int(np.prod(layer.input_shape)), int(np.prod(layer.output_shape))
