"""Turn the weights of fully connected layers round, so that what makes one output lies together."""

from __future__ import annotations

import tvm

from tvmflow.passes.fuse_operators import kernel_calls
from tvmflow.passes.relayout import Layouts, Transposed, relayout, relayout_calls
from tvmflow.schedules.cpu import RULES, dense
from tvmflow.spec import Program, Target


def transpose_dense(program: Program, target: Target) -> Program:
    """Only of products that the rule for such weights serves."""
    if "dense" not in target.schedules:
        return program
    turned = {}
    for binding in kernel_calls(program.module):
        func, values = program.module[binding.value.args[0]], binding.value.args[1].fields
        product = dense.read_product(func)
        if product is None or product.by_output or len(func.params) != len(values) + 1:
            continue
        place = next(place for place, param in enumerate(func.params) if param.same_as(product.weight))
        layouts: Layouts = {place: Transposed()}
        constant = isinstance(values[place], tvm.ir.expr.GenericConst)
        if constant and RULES["dense"](relayout(func, layouts), target) is not None:
            turned[binding.var] = layouts
    return relayout_calls(program, turned, "transposed") if turned else program
