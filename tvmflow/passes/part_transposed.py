"""Transposed convolutions of a stride as ordinary ones, one for each phase of the output.

TVM puts zeros between the pixels and sums over all of them, a stride of 2 being four times the work, and no rule reads
such loops. Every s-th pixel of the result meets the same taps, and those meet pixels side by side: an ordinary
convolution gives all pixels of a phase, and what is left is to put the phases between one another. Phases that read the
same pixels are channels of one convolution, as all are of a kernel as large as its stride.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.network.names import NUMBER_SEPARATOR
from tvmflow.passes.constants import is_constant
from tvmflow.passes.multiply_adds import static_shape
from tvmflow.spec import Program, Target


def part_transposed(program: Program, target: Target) -> Program:
    """Those of two dimensions whose weights are known; others stay as they are."""
    part = _Part(program.module)
    main = part.visit_expr(program.module["main"])
    if not part.parted:
        return program
    module = part.builder_.get()
    module["main"] = main
    return replace(program, module=module)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Outputs first, first + stride … of an axis: which taps they meet, and the border that their convolution has."""

    taps: tuple[int, ...]
    before: int
    after: int


def phases_of(size: int, kernel: int, stride: int, pad: int, result: int) -> list[Phase] | None:
    """Of an axis, each ⌈result / stride⌉ outputs; None if one of them meets no tap, or less than the input has.

    Output y meets input i through tap t where y + pad = i · stride + t.
    """
    count, found = math.ceil(result / stride), []
    for phase in range(stride):
        first = (phase + pad) % stride
        taps = tuple(range(first, kernel, stride))[::-1]
        before = len(taps) - 1 - (phase + pad - first) // stride
        after = count + len(taps) - 1 - size - before
        if not taps or before < 0 or after < 0:
            return None
        found.append(Phase(taps=taps, before=before, after=after))
    return found


@mutator
class _Part(PyExprMutator):
    """Each transposed convolution becomes several ordinary ones and a kernel that puts their results together."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.parted = 0

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call = binding.value
        axes = _phases(call)
        if axes is None:
            super().visit_var_binding_(binding)
            return
        is_output = self.builder_.current_block_is_dataflow() and not isinstance(binding.var, relax.DataflowVar)
        emit = self.builder_.emit_output if is_output else self.builder_.emit
        data, groups = self.visit_expr(call.args[0]), int(call.attrs.groups)
        weight = _by_outputs(call.args[1].value.numpy(), groups)
        alike: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for number, place in enumerate(itertools.product(*(range(len(axis)) for axis in axes))):
            here = [axis[phase] for axis, phase in zip(axes, place, strict=True)]
            borders = [width for phase in here for width in (len(phase.taps), phase.before, phase.after)]
            alike[(*borders, number if groups > 1 else 0)].append(place)
        made = []
        for number, places in enumerate(alike.values()):
            vertical, horizontal = (axis[phase] for axis, phase in zip(axes, places[0], strict=True))
            parts = [weight[:, :, axes[0][down].taps][..., axes[1][right].taps] for down, right in places]
            conv = relax.op.nn.conv2d(
                data,
                relax.const(np.ascontiguousarray(np.concatenate(parts)), str(call.args[1].ty.dtype)),
                padding=[vertical.before, horizontal.before, vertical.after, horizontal.after],
                groups=groups,
            )
            if len(axes[0]) * len(axes[1]) == 1:
                self.set_var_remap(binding.var, emit(conv, binding.var.name))
                self.parted += 1
                return
            name = f"{binding.var.name}{NUMBER_SEPARATOR}phase{number}"
            made.append((self.builder_.emit(conv, name), places))
        self.set_var_remap(binding.var, emit(self._together(call, made), binding.var.name))
        self.parted += 1

    def _together(self, call: relax.Call, made: Sequence[tuple[relax.Var, list[tuple[int, int]]]]) -> relax.Expr:
        from tvm import te, tirx

        strides = [int(step) for step in call.attrs.strides]
        shape = static_shape(call.ty)

        def joined(*parts: te.Tensor) -> te.Tensor:
            def read(n, c, y, x):  # type: ignore[no-untyped-def]
                phase = tuple(tirx.floormod(at, step) for at, step in zip((y, x), strides, strict=True))
                place = tuple(tirx.floordiv(at, step) for at, step in zip((y, x), strides, strict=True))
                value = None
                for part, (_, places) in reversed(list(zip(parts, made, strict=True))):
                    for number, (down, right) in reversed(list(enumerate(places))):
                        element = part[(n, number * shape[1] + c, *place)]
                        here = tirx.all(tirx.EQ(phase[0], down), tirx.EQ(phase[1], right))
                        value = element if value is None else tirx.if_then_else(here, element, value)
                return value

            return te.compute(shape, read, name="phases")

        return self.builder_.call_te(joined, *(var for var, _ in made), primfunc_name_hint="phases")


def _phases(value: relax.Expr) -> tuple[list[Phase], list[Phase]] | None:
    """Of both axes of a transposed convolution that can be parted."""
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.nn.conv2d_transpose":
        return None
    layouts = str(value.attrs.data_layout), str(value.attrs.kernel_layout)
    if layouts != ("NCHW", "IOHW") or not is_constant(value.args[1]) or str(value.ty.dtype) != "float32":
        return None
    if any(int(distance) != 1 for distance in value.attrs.dilation):
        return None
    data, weight, result = (static_shape(tensor.ty) for tensor in (value.args[0], value.args[1], value))
    found = [
        phases_of(data[2 + a], weight[2 + a], int(value.attrs.strides[a]), int(value.attrs.padding[a]), result[2 + a])
        for a in (0, 1)
    ]
    vertical, horizontal = found
    return None if vertical is None or horizontal is None else (vertical, horizontal)


def _by_outputs(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights of inputs × outputs of a group as outputs × inputs of a group."""
    inputs, outputs, *taps = weight.shape
    parts = weight.reshape(groups, inputs // groups, outputs, *taps)
    return parts.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *taps)
