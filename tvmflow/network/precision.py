"""Arithmetic in the dtype that PyTorch has it in, of networks that aren't float32.

PyTorch computes what is float16 or bfloat16 in float32, operator by operator, and rounds each result; TVM would sum in
the narrow dtype, where a sum of a few hundred terms stands still. Its importer takes every product of matrices, every
convolution among them, to give float32, whatever it is of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

NARROW = ("float16", "bfloat16")
WIDE, DOUBLE = "float32", "float64"
SHORT, LONG = ("int8", "int16", "uint8"), "int32"
"""Floats become short integers by way of a long one, whose low bits they are; by itself each processor has its own way
with values that don't fit."""

MOVES = frozenset(
    f"relax.{name}"
    for name in (
        *("astype", "broadcast_to", "concat", "expand_dims", "flatten", "flip", "full", "full_like", "gather_elements"),
        *(
            "gather_nd",
            "layout_transform",
            "ones",
            "ones_like",
            "permute_dims",
            "repeat",
            "reshape",
            "scatter_elements",
        ),
        *(
            "scatter_elements",
            "shape_of",
            "split",
            "squeeze",
            "stack",
            "strided_slice",
            "take",
            "tile",
            "where",
            "zeros",
        ),
        "zeros_like",
    )
)
"""Operators that compute nothing: what they move stays as it is."""


class Precision:
    """Wraps a block builder's `emit`. Calls with narrow operands are made in float32, and their results narrowed."""

    def __init__(self) -> None:
        self.widened: dict[relax.Var, str] = {}  # tuples of float32 that stand for narrow ones

    def wrap(self, emit: Callable[..., relax.Var]) -> Callable[..., relax.Var]:
        def bound(argument: relax.Expr) -> relax.Expr:
            """What a call is called with, of a dtype that is known."""
            return emit_exactly(argument) if isinstance(argument, relax.Call) else argument

        def emit_exactly(expr: Any, name_hint: str = "") -> relax.Var:
            if isinstance(expr, relax.TupleGetItem) and expr.tuple_value in self.widened:
                return self._narrow(emit, emit(expr, name_hint), self.widened[expr.tuple_value])
            if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.Op):
                return emit(expr, name_hint)
            if expr.op.name == "relax.astype" and str(expr.attrs.dtype) in SHORT:
                source = bound(expr.args[0])
                if _dtypes(source)[0] in (*NARROW, WIDE, DOUBLE):
                    source = emit(relax.op.astype(source, LONG))
                return emit(relax.op.astype(source, str(expr.attrs.dtype)), name_hint)
            if expr.op.name in MOVES:
                return emit(expr, name_hint)
            expr = relax.Call(expr.op, [bound(argument) for argument in expr.args], expr.attrs, expr.ty_args)
            dtypes = {dtype for argument in expr.args for dtype in _dtypes(argument)}
            if DOUBLE in dtypes:
                return emit(relax.Call(expr.op, expr.args, _attributes(expr, DOUBLE), expr.ty_args), name_hint)
            narrow = next((dtype for dtype in NARROW if dtype in dtypes), None)
            if narrow is None or len(dtypes.intersection((*NARROW, WIDE))) > 1:
                return emit(expr, name_hint)
            arguments = [self._widen(emit, argument, narrow) for argument in expr.args]
            wide = emit(relax.Call(expr.op, arguments, _attributes(expr, WIDE), expr.ty_args), name_hint)
            if isinstance(wide.ty, relax.TupleType):
                self.widened[wide] = narrow
                return wide
            return self._narrow(emit, wide, narrow)

        return emit_exactly

    def _widen(self, emit: Callable[..., relax.Var], argument: relax.Expr, narrow: str) -> relax.Expr:
        if isinstance(argument, relax.Tuple):
            return relax.Tuple([self._widen(emit, field, narrow) for field in argument.fields])
        return emit(relax.op.astype(argument, WIDE)) if narrow in _dtypes(argument) else argument

    def _narrow(self, emit: Callable[..., relax.Var], value: relax.Var, narrow: str) -> relax.Var:
        return emit(relax.op.astype(value, narrow)) if WIDE in _dtypes(value) else value


def _dtypes(value: Any) -> tuple[str, ...]:
    """Of a tensor or a tuple of some; none of shapes, types and numbers."""
    if isinstance(value, relax.Tuple):
        return tuple(dtype for field in value.fields for dtype in _dtypes(field))
    kind = getattr(value, "ty", None)
    return (str(kind.dtype),) if isinstance(kind, relax.TensorType) else ()


def _attributes(call: relax.Call, dtype: str) -> Any:
    """The call's attributes, with that dtype for its result if they say one."""
    if getattr(call.attrs, "out_dtype", None) is None:
        return call.attrs
    described = type(call.attrs).__tvm_ffi_type_info__
    fields = {field.name: getattr(call.attrs, field.name) for field in described.fields}
    return tvm.ir.make_node(described.type_key, **{**fields, "out_dtype": dtype})
