"""An average of whole maps that is only flattened has no axes of length 1: no view stands before what reads it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.multiply_adds import static_shape
from tvmflow.spec import Program, Target


def flatten_averages(program: Program, target: Target) -> Program:
    """`mean(keepdims=True)` and the reshape that drops its axes become one `mean`, under the former's name."""
    bindings = [binding for block in program.module["main"].body.blocks for binding in block.bindings]
    averages = {binding.var: binding for binding in bindings if _operator(binding) == "relax.mean"}
    uses: Counter[relax.Var] = Counter()
    for binding in bindings:
        relax.analysis.post_order_visit(
            binding.value, lambda part: uses.update([part]) if isinstance(part, relax.Var) else None
        )
    flattened = {
        binding.var: averages[binding.value.args[0]]
        for binding in bindings
        if _operator(binding) == "relax.reshape"
        and binding.value.args[0] in averages
        and uses[binding.value.args[0]] == 1
        and _drops_axes(averages[binding.value.args[0]].value, binding.value)
    }
    if not flattened:
        return program
    module = tvm.IRModule(program.module.functions, attrs=program.module.attrs)
    module["main"] = _Flatten(flattened).visit_expr(module["main"])
    return replace(program, module=relax.transform.DeadCodeElimination()(module))


def _operator(binding: relax.Binding) -> str:
    return getattr(getattr(binding.value, "op", None), "name", "")


def _drops_axes(average: relax.Call, view: relax.Call) -> bool:
    shape = static_shape(average.args[0].ty)
    axes = {int(axis) % len(shape) for axis in average.attrs.axis or ()}
    return static_shape(view.ty) == tuple(size for axis, size in enumerate(shape) if axis not in axes)


@mutator
class _Flatten(PyExprMutator):
    def __init__(self, flattened: dict[relax.Var, relax.VarBinding]) -> None:
        super().__init__()
        self.flattened = flattened

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var not in self.flattened:
            super().visit_var_binding_(binding)
            return
        average = self.flattened[binding.var]
        axes = [int(axis) for axis in average.value.attrs.axis]
        value = relax.op.mean(self.visit_expr(average.value.args[0]), axes, keepdims=False)
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(value, average.var.name))
