"""Write floating-point subtractions and comparisons so that TVM's simplifier leaves them as they are.

It takes numbers for exact: x − x becomes 0, (x + y) − y becomes x, x == x is true, and not x < y becomes y <= x. With
rounding, infinities and NaN that is wrong; rounding by adding and subtracting 1.5 · 2²³, as quantised networks do,
would vanish. Fused kernels meet such terms, so this comes before fusion. What is written instead means the same, bit
for bit, and compilers make the same instructions of it: x + y · −1 of x − y.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx


@tvm.transform.module_pass(opt_level=0, name="exact_floats")
def exact_floats(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Of all kernels of a legalised module."""
    rules = [
        (tirx.Sub, _subtraction),
        (tirx.EQ, _equality),
        (tirx.NE, _inequality),
        (tirx.Not, _negation),
    ]
    for var, func in module.functions.items():
        if isinstance(func, tirx.PrimFunc):
            body = tvm_ffi.structural_map(func.body, rules, order="post")
            module[var] = tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs)
    return module


def _is_float(value: tirx.PrimExpr) -> bool:
    return "float" in str(value.ty.dtype)


def _subtraction(node: tirx.Sub) -> tirx.PrimExpr:
    if not _is_float(node):
        return node
    return tirx.Add(node.a, node.b * tirx.const(-1, str(node.b.ty.dtype)))


def _equality(node: tirx.EQ) -> tirx.PrimExpr:
    return tirx.And(node.a <= node.b, node.b <= node.a) if _is_float(node.a) else node


def _inequality(node: tirx.NE) -> tirx.PrimExpr:
    return opposite(tirx.And(node.a <= node.b, node.b <= node.a)) if _is_float(node.a) else node


def _negation(node: tirx.Not) -> tirx.PrimExpr:
    return opposite(node.a)


def opposite(condition: tirx.PrimExpr) -> tirx.PrimExpr:
    """The simplifier makes of Not what holds for numbers alone, and leaves this."""
    return tirx.Select(condition, tirx.const(False, "bool"), tirx.const(True, "bool"))
