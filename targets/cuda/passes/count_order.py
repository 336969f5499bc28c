"""Sorting and running sums as loops that need nothing but kernels: each element counts what comes before it.

For GPUs TVM has these in a library that its wheels lack, or as kernels that start others, which no schedule serves. An
element's place in a sorted row is the number of elements that come before it; a running sum adds those. That is n²
steps for a row of n, all of them in parallel, so rows are no longer than LONGEST.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.network.names import module_path
from tvmflow.passes.exact_floats import opposite
from tvmflow.passes.multiply_adds import static_shape
from tvmflow.spec import Program, Target, UnsupportedOperatorError

LONGEST = 1 << 14
"""Elements of a row: 2²⁸ steps, milliseconds for the smallest GPU."""


def count_order(program: Program, target: Target) -> Program:
    """Of sort, argsort, topk, cumsum and cumprod; not a number is the largest, as in PyTorch.

    Raises UnsupportedOperatorError for rows longer than LONGEST.
    """
    bindings = [binding for block in program.module["main"].body.blocks for binding in block.bindings]
    counted = [binding for binding in bindings if _name(binding.value) in LOOPS]
    if not counted:
        return program
    for binding in counted:
        _check_length(binding)
    mutate = _Count(program.module)
    updated = mutate.visit_expr(program.module["main"])
    module = mutate.builder_.get()
    module["main"] = updated
    return replace(program, module=relax.transform.CanonicalizeBindings()(module))


def _check_length(binding: relax.VarBinding) -> None:
    shape, axis, operator = static_shape(binding.value.args[0].ty), binding.value.attrs.axis, _name(binding.value)
    length = math.prod(shape) if axis is None else shape[int(axis)]
    if length > LONGEST:
        path = module_path(binding.var.name)
        raise UnsupportedOperatorError(
            f"{operator.partition('.')[2]} in {path} goes over {length} elements; on GPUs it is made for {LONGEST} at "
            "most.",
            {operator: (path,)},
        )


def _name(value: relax.Expr) -> str:
    return getattr(getattr(value, "op", None), "name", "") if isinstance(value, relax.Call) else ""


@mutator
class _Count(PyExprMutator):
    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call, operator, name = binding.value, _name(binding.value), binding.var.name
        if operator not in LOOPS:
            super().visit_var_binding_(binding)
            return
        row = self.visit_expr(call.args[0])
        if call.attrs.axis is None:
            row = self.builder_.emit(relax.op.reshape(row, (-1,)), name)
        axis = int(call.attrs.axis or 0) % len(static_shape(row.ty))

        def kernel(make: Callable[..., te.Tensor], *tensors: relax.Expr, **how: Any) -> relax.Var:
            call = self.builder_.call_te(functools.partial(make, **how), *tensors, primfunc_name_hint=make.__name__)
            return self.builder_.emit(call, name)

        is_output = self.builder_.current_block_is_dataflow() and not isinstance(binding.var, relax.DataflowVar)
        emit = self.builder_.emit_output if is_output else self.builder_.emit
        self.set_var_remap(binding.var, emit(LOOPS[operator](kernel, row, axis, call.attrs), name))


Kernel = Callable[..., relax.Var]
"""`kernel(make, *tensors, **how)` calls a kernel that computes what `make` says of tensors."""


def _sort(kernel: Kernel, row: relax.Expr, axis: int, attrs: Any) -> relax.Expr:
    rank = kernel(ranks, row, axis=axis, descending=bool(attrs.descending))
    order = kernel(places, rank, axis=axis, count=static_shape(row.ty)[axis], dtype="int32")
    return kernel(taken, row, order, axis=axis)


def _argsort(kernel: Kernel, row: relax.Expr, axis: int, attrs: Any) -> relax.Expr:
    rank = kernel(ranks, row, axis=axis, descending=bool(attrs.descending))
    return kernel(places, rank, axis=axis, count=static_shape(row.ty)[axis], dtype=str(attrs.dtype))


def _topk(kernel: Kernel, row: relax.Expr, axis: int, attrs: Any) -> relax.Expr:
    count = int(attrs.k) if int(attrs.k) > 0 else static_shape(row.ty)[axis]
    rank = kernel(ranks, row, axis=axis, descending=bool(attrs.largest))
    order = kernel(places, rank, axis=axis, count=count, dtype=str(attrs.dtype))
    if attrs.ret_type == "indices":
        return order
    values = kernel(taken, row, order, axis=axis)
    return values if attrs.ret_type == "values" else relax.Tuple([values, order])


def _running(combine: Callable[..., Any], start: int) -> Callable[..., relax.Expr]:
    def running(kernel: Kernel, row: relax.Expr, axis: int, attrs: Any) -> relax.Expr:
        dtype = str(row.ty.dtype) if str(attrs.dtype) in ("None", "void") else str(attrs.dtype)
        how = {"axis": axis, "combine": combine, "start": start, "dtype": dtype, "exclusive": bool(attrs.exclusive)}
        return kernel(accumulated, row, **how)

    return running


LOOPS: dict[str, Callable[..., relax.Expr]] = {
    "relax.sort": _sort,
    "relax.argsort": _argsort,
    "relax.topk": _topk,
    "relax.cumsum": _running(te.sum, 0),
    "relax.cumprod": _running(te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="prod"), 1),
}
"""`loops(kernel, row, axis, attributes)` of each operator that is made here."""


def ranks(row: te.Tensor, axis: int, descending: bool) -> te.Tensor:
    """int32: how many elements of its row come before each; of equal ones the first comes first."""
    other = te.reduce_axis((0, row.shape[axis]), name="other")

    def rank(*index: Any) -> Any:
        mine, theirs = row(*index), row(*index[:axis], other, *index[axis + 1 :])
        before = _larger(theirs, mine) if descending else _larger(mine, theirs)
        after = _larger(mine, theirs) if descending else _larger(theirs, mine)
        first = tirx.all(opposite(after), other < index[axis])
        return te.sum(tirx.Cast("int32", tirx.any(before, first)), axis=other)

    return te.compute(row.shape, rank, name="ranks")


def _larger(a: Any, b: Any) -> Any:
    if "float" not in str(a.ty.dtype):
        return a > b
    return tirx.any(a > b, tirx.all(opposite(a <= a), b <= b))


def places(rank: te.Tensor, axis: int, count: int, dtype: str) -> te.Tensor:
    """Where the first `count` in order are in their rows."""
    place = te.reduce_axis((0, rank.shape[axis]), name="place")

    def find(*index: Any) -> Any:
        found = rank(*index[:axis], place, *index[axis + 1 :]) == tirx.Cast("int32", index[axis])
        return te.sum(tirx.Select(found, tirx.Cast(dtype, place), tirx.const(0, dtype)), axis=place)

    shape = [*rank.shape]
    shape[axis] = tirx.const(count, str(shape[axis].ty.dtype))
    return te.compute(shape, find, name="places")


def taken(row: te.Tensor, order: te.Tensor, axis: int) -> te.Tensor:
    """The elements of a row at the places `order`."""
    return te.compute(order.shape, lambda *index: row(*index[:axis], order(*index), *index[axis + 1 :]), name="taken")


def accumulated(
    row: te.Tensor, axis: int, combine: Callable[..., Any], start: int, dtype: str, exclusive: bool
) -> te.Tensor:
    """Each element's row from its beginning to it, with it unless `exclusive`, combined in this order."""
    other = te.reduce_axis((0, row.shape[axis]), name="other")

    def combined(*index: Any) -> Any:
        counts = other < index[axis] if exclusive else other <= index[axis]
        value = tirx.Cast(dtype, row(*index[:axis], other, *index[axis + 1 :]))
        return combine(tirx.if_then_else(counts, value, tirx.const(start, dtype)), axis=other)

    return te.compute(row.shape, combined, name="accumulated")
