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
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.network.names import NUMBER_SEPARATOR
from tvmflow.passes.constants import is_constant
from tvmflow.passes.multiply_adds import static_shape
from tvmflow.spec import Program, Target


def part_transposed(program: Program, target: Target) -> Program:
    """Those of two dimensions whose weights are known; others stay as they are.

    `Program.folded` has the multiply-adds of each phase: one for each element of the input and each weight, as before.
    """
    part = _Part(program.module)
    main = part.visit_expr(program.module["main"])
    if not part.works:
        return program
    module = part.builder_.get()
    module["main"] = main
    return replace(program, module=module, folded={**program.folded, **part.works})


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
    """Each transposed convolution becomes ordinary ones and a kernel that puts their results together.

    `works` are the multiply-adds of what has been made, by names of bindings.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.works: dict[str, dict[str, int]] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call, name = binding.value, binding.var.name
        axes = _phases(call)
        if axes is None:
            super().visit_var_binding_(binding)
            return
        is_output = self.builder_.current_block_is_dataflow() and not isinstance(binding.var, relax.DataflowVar)
        emit = self.builder_.emit_output if is_output else self.builder_.emit
        alike: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for down, right in itertools.product(*(range(len(axis)) for axis in axes)):
            here = axes[0][down], axes[1][right]
            borders = [width for phase in here for width in (len(phase.taps), phase.before, phase.after)]
            alike[tuple(borders)].append((down, right))
        places = list(alike.values())
        convolutions = [self._convolution(call, axes, alike) for alike in places]
        if len(axes[0]) * len(axes[1]) == 1:
            made, self.works[name] = emit(convolutions[0], name), {name: _multiply_adds(call, convolutions[0])}
        else:
            parts = [
                self.builder_.emit(convolution, f"{name}{NUMBER_SEPARATOR}phase{number}")
                for number, convolution in enumerate(convolutions)
            ]
            for part, convolution in zip(parts, convolutions, strict=True):
                self.works[part.name] = {part.name: _multiply_adds(call, convolution)}
            made = emit(self._together(call, parts, places), name)
        self.set_var_remap(binding.var, made)

    def _convolution(
        self, call: relax.Call, axes: tuple[list[Phase], list[Phase]], places: Sequence[tuple[int, int]]
    ) -> relax.Call:
        """The convolution of phases that meet the same pixels, the outputs of each group phase by phase."""
        groups = int(call.attrs.groups)
        weight = call.args[1].value.numpy()  # inputs × outputs of a group
        inputs, outputs, *_ = weight.shape
        parts = [weight[:, :, axes[0][down].taps][..., axes[1][right].taps] for down, right in places]
        of_group = np.stack(parts, 1).reshape(groups, inputs // groups, len(parts) * outputs, *parts[0].shape[2:])
        by_outputs = of_group.swapaxes(1, 2).reshape(-1, inputs // groups, *parts[0].shape[2:])
        vertical, horizontal = (axis[phase] for axis, phase in zip(axes, places[0], strict=True))
        return relax.op.nn.conv2d(
            self.visit_expr(call.args[0]),
            relax.const(np.ascontiguousarray(by_outputs), str(call.args[1].ty.dtype)),
            padding=[vertical.before, horizontal.before, vertical.after, horizontal.after],
            groups=groups,
        )

    def _together(
        self, call: relax.Call, parts: Sequence[relax.Var], places: Sequence[Sequence[tuple[int, int]]]
    ) -> relax.Expr:
        """Each element of the result from the part that has its phase."""
        strides = [int(step) for step in call.attrs.strides]
        shape, of_group = static_shape(call.ty), static_shape(call.args[1].ty)[1]

        def joined(*tensors: te.Tensor) -> te.Tensor:
            def read(n: Any, c: Any, *at: Any) -> Any:
                phase = [tirx.floormod(here, step) for here, step in zip(at, strides, strict=True)]
                place = [tirx.floordiv(here, step) for here, step in zip(at, strides, strict=True)]
                found = None
                for tensor, alike in zip(tensors, places, strict=True):
                    for number, (down, right) in enumerate(alike):
                        channel = (tirx.floordiv(c, of_group) * len(alike) + number) * of_group
                        element = tensor[(n, channel + tirx.floormod(c, of_group), *place)]
                        here = tirx.all(tirx.EQ(phase[0], down), tirx.EQ(phase[1], right))
                        found = element if found is None else tirx.if_then_else(here, element, found)
                return found

            return te.compute(shape, read, name="phases")

        return self.builder_.call_te(joined, *parts, primfunc_name_hint="phases")


def _multiply_adds(call: relax.Call, convolution: relax.Call) -> int:
    """One for each pixel of the input and each weight of a phase, borders left out."""
    batch, _, *size = static_shape(call.args[0].ty)
    return batch * math.prod(size) * math.prod(static_shape(convolution.args[1].ty))


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
