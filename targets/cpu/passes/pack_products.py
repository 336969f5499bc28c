"""Lay the constant weights of matrix products out in panels, as the tiles of their schedule read them."""

from __future__ import annotations

import tvm

from tvmflow.passes.fuse_operators import kernel_calls
from tvmflow.passes.relayout import Layouts, Panels, relayout_calls
from tvmflow.schedules.cpu import RULES, products
from tvmflow.spec import Program, Target


def pack_products(program: Program, target: Target) -> Program:
    """Only of products that `products` serves, and no rule before it."""
    if "products" not in target.schedules:
        return program
    before = target.schedules[: target.schedules.index("products")]
    packed = {}
    for binding in kernel_calls(program.module):
        func, values = program.module[binding.value.args[0]], binding.value.args[1].fields
        length = products.panel_length(func, target)
        if not length or any(RULES[rule](func, target) is not None for rule in before):
            continue
        product = products.read_product(func)
        assert product is not None
        place = next(place for place, param in enumerate(func.params) if param.same_as(product.weight.source))
        layouts: Layouts = {place: Panels(length)}
        if place < len(values) and isinstance(values[place], tvm.ir.expr.GenericConst):
            packed[binding.var] = layouts
    return relayout_calls(program, packed, "packed") if packed else program
