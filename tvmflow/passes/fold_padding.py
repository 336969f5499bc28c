"""Give borders of zeros to the convolutions that read them, as padding of their own.

TensorFlow's `SAME` is unlike on both sides where the stride is 2, and PyTorch's convolutions pad alike: networks that
come from there have an operator for it, and `ZeroPad2d` before a convolution is another. A border of its own is a pass
through memory, and a convolution that checks where its input ends does without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.spec import Program, Target

CONVOLUTIONS: Mapping[str, Callable[..., relax.Call]] = {
    "relax.nn.conv1d": relax.op.nn.conv1d,
    "relax.nn.conv2d": relax.op.nn.conv2d,
    "relax.nn.conv3d": relax.op.nn.conv3d,
}


def fold_padding(program: Program, target: Target) -> Program:
    """In `Program.module`; borders that something else reads as well stay for that."""
    module = program.module
    bound = {binding.var: binding.value for block in module["main"].body.blocks for binding in block.bindings}
    fold = _Fold(module, bound)
    main = fold.visit_expr(module["main"])
    if not fold.folded:
        return program
    module = fold.builder_.get()
    module["main"] = main
    return replace(program, module=relax.transform.DeadCodeElimination()(module))


@mutator
class _Fold(PyExprMutator):
    """Convolutions of a border read what the border is around."""

    def __init__(self, module: tvm.IRModule, bound: dict[relax.Var, relax.Expr]) -> None:
        super().__init__(module)
        self.bound = bound
        self.folded = 0

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call = binding.value
        border = _zeros(self.bound.get(call.args[0])) if _is_convolution(call) else None
        if border is None:
            super().visit_var_binding_(binding)
            return
        data, before, after = border
        axes, padding = len(before), [int(width) for width in call.attrs.padding]
        sides = [
            *map(sum, zip(before, padding[:axes], strict=True)),
            *map(sum, zip(after, padding[axes:], strict=True)),
        ]
        made = CONVOLUTIONS[call.op.name](
            *(self.visit_expr(argument) for argument in (data, *call.args[1:])),
            strides=call.attrs.strides,
            padding=sides,
            dilation=call.attrs.dilation,
            groups=int(call.attrs.groups),
            data_layout=call.attrs.data_layout,
            kernel_layout=call.attrs.kernel_layout,
            out_layout=call.attrs.out_layout,
            out_dtype=call.attrs.out_dtype,
        )
        is_output = self.builder_.current_block_is_dataflow() and not isinstance(binding.var, relax.DataflowVar)
        emit = self.builder_.emit_output if is_output else self.builder_.emit
        self.set_var_remap(binding.var, emit(made, binding.var.name))
        self.folded += 1


def _is_convolution(value: relax.Expr) -> bool:
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") not in CONVOLUTIONS:
        return False
    return str(value.attrs.data_layout).startswith("NC")


def _zeros(value: relax.Expr | None) -> tuple[relax.Expr, list[int], list[int]] | None:
    """What is surrounded by zeros along the axes behind the second, and by how many before and behind each."""
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.nn.pad":
        return None
    widths = [int(width) for width in value.attrs.pad_width]
    if str(value.attrs.pad_mode) != "constant" or float(value.attrs.pad_value) != 0 or any(widths[:4]):
        return None
    return value.args[0], widths[4::2], widths[5::2]
