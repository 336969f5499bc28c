"""Compute in float16 what was made for float32: half the bytes, and twice the lanes of a vector.

It comes after the schedules, which on CPUs have been written for twice the lanes already
(`schedules._convolution.vectors_of`), and rewrites kernels, weights and the tensors between kernels. Inputs and outputs
of the network stay as they are, and so do kernels that have vectors written out, with all that they read and write:
such are the first layers of a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import TensorLoad
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.fuse_operators import call_bytes, constant_bytes, kernel_calls
from tvmflow.schedules.convolutions import loads
from tvmflow.spec import Program, Target, UserError

WIDE, NARROW = "float32", "float16"
LARGEST = float(np.finfo(NARROW).max)
IN_FLOAT32 = ("dense", "pool_dense", "products", "lanes", "direct", "dlight", "default")
"""Schedules of kernels that read and write float16 and compute in float32: sums of any length, exponentials. They are
bound by memory. Convolutions sum in float16, as the vector instructions do."""

BINARY = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)
IF_THEN_ELSE = "prim.if_then_else"


def narrow_floats(program: Program, target: Target) -> Program:
    """Only if that is the target's arithmetic; `Layer.bytes` are counted anew. Raises UserError if weights overflow."""
    if target.arithmetic != NARROW:
        return program
    _check_weights(program.module)
    exact = {
        layer.kernel
        for layer in program.layers
        if layer.schedule in IN_FLOAT32 or not _numbers_fit(program.module[layer.kernel])
    }
    mutate = _Narrow(program.module, _stay_wide(program.module, exact), exact)
    updated = mutate.visit_expr(program.module["main"])
    module = mutate.builder_.get()
    module["main"] = updated
    module = relax.transform.DeadCodeElimination()(module)
    layers = tuple(
        replace(
            layer,
            kernel=binding.value.args[0].name_hint,
            bytes=call_bytes(binding),
            weight_bytes=constant_bytes(binding),
        )
        for layer, binding in zip(program.layers, kernel_calls(module), strict=True)
    )
    return replace(program, module=module, layers=layers)


def _stay_wide(module: tvm.IRModule, exact: set[str]) -> set[relax.Var]:
    """Variables of `main` whose tensors can't be narrowed: its inputs and outputs, sums in float32, and their views."""
    main = module["main"]
    calls = {binding.var: binding.value.args[0].name_hint for binding in kernel_calls(module)}
    others = [binding for block in main.body.blocks for binding in block.bindings if binding.var not in calls]
    summed = {var for var, name in calls.items() if name in exact and _sums_in_place(module[name])}
    wide = {*main.params, *_variables(main.body.body), *summed}
    for binding in kernel_calls(module):
        if has_vectors(module[binding.value.args[0]]):
            wide |= {binding.var, *_variables(binding.value.args[1])}
    while True:
        together = [{binding.var, *_variables(binding.value)} for binding in others]
        found = wide.union(*(group for group in together if group & wide))
        if found == wide:
            return wide
        wide = found


def _is_wide_constant(value: relax.Expr) -> bool:
    return isinstance(value, tvm.ir.expr.GenericConst) and str(value.ty.dtype) == WIDE


def _check_weights(module: tvm.IRModule) -> None:
    for value in (value for binding in kernel_calls(module) for value in binding.value.args[1].fields):
        if not _is_wide_constant(value):
            continue
        array = value.value.numpy()
        if (np.isfinite(array) & (np.abs(array) > LARGEST)).any():
            largest = np.abs(array[np.isfinite(array)]).max()
            raise UserError(f"The network has weights up to {largest:.3g}; {NARROW} holds no more than {LARGEST:.0f}.")


def _variables(value: relax.Expr) -> set[relax.Var]:
    found: set[relax.Var] = set()
    relax.analysis.post_order_visit(value, lambda e: found.add(e) if isinstance(e, relax.Var) else None)
    return found


@mutator
class _Narrow(PyExprMutator):
    """Calls get narrowed kernels, constants and results."""

    def __init__(self, module: tvm.IRModule, wide: set[relax.Var], exact: set[str]) -> None:
        super().__init__(module)
        self.module, self.wide, self.exact = module, wide, exact
        self.made: dict[Any, tvm.ir.GlobalVar] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call = binding.value
        called = getattr(getattr(call, "op", None), "name", "")
        if called != "relax.call_tir" or has_vectors(self.module[call.args[0]]):
            super().visit_var_binding_(binding)
            return
        name, given = call.args[0].name_hint, [*call.args[1].fields, binding.var]
        places = tuple(place for place, value in enumerate(given) if value not in self.wide)
        if (name, places) not in self.made:
            func = narrow(self.module[name], places, sums=name not in self.exact)
            self.made[name, places] = self.builder_.add_func(func, f"{name}_{NARROW}")
        values = [self._array(value) if place in places else value for place, value in enumerate(given[:-1])]
        func = self.builder_.get()[self.made[name, places]]
        result = relax.TensorType([int(dim) for dim in func.params[-1].shape], str(func.params[-1].dtype))
        call = relax.call_tir(
            self.made[name, places], relax.Tuple([self.visit_expr(value) for value in values]), result
        )
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(call, binding.var.name))

    def _array(self, value: relax.Expr) -> relax.Expr:
        if not _is_wide_constant(value):
            return value
        return relax.const(value.value.numpy().astype(NARROW))


def _numbers_fit(func: tirx.PrimFunc) -> bool:
    """Whether float16 can hold the numbers in its code, which the lowest float32 as the start of a maximum isn't."""
    found: list[float] = []
    tvm_ffi.structural_walk(func.body, (tirx.FloatImm, lambda number: found.append(number.value)))
    return all(abs(value) <= LARGEST for value in found)


def has_vectors(func: tirx.PrimFunc) -> bool:
    """Whether a kernel has vectors written out, as for shuffles. Such a kernel stays as it is."""
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, ((tirx.Shuffle, tirx.Ramp, tirx.Broadcast), found.append))
    return bool(found)


def _sums_in_place(func: tirx.PrimFunc) -> bool:
    """Whether a kernel reads what it has stored in its result."""
    return any(load.source.same_as(func.params[-1]) for load in loads(func.body))


def narrow(func: tirx.PrimFunc, places: Iterable[int], *, sums: bool) -> tirx.PrimFunc:
    """`func` with the float32 parameters at `places` in float16; with `sums` its own buffers and arithmetic as well."""
    params = {param: place for place, param in enumerate(func.params)}
    arithmetic = NARROW if sums else WIDE
    made: dict[tirx.Var, tirx.Var] = {}

    def buffer(var: tirx.Var) -> tirx.Var:
        if not isinstance(var.ty, tirx.buffer.BufferType) or str(var.dtype) != WIDE:
            return var
        if var not in made:
            narrows = params[var] in places if var in params else sums
            options = {"scope": var.scope(), "layout": var.ty.layout}
            made[var] = tirx.decl_buffer(var.shape, NARROW, var.name, **options) if narrows else var
        return made[var]

    def cast(value: Any, dtype: str) -> Any:
        return (
            tirx.Cast(dtype, value) if str(value.ty.dtype) in (WIDE, NARROW) and str(value.ty.dtype) != dtype else value
        )

    def store(stored: tirx.BufferStore) -> tirx.BufferStore:
        return tirx.BufferStore(stored.buffer, cast(stored.value, str(stored.buffer.dtype)), stored.indices)

    def call(called: tvm.ir.Call) -> Any:
        """Functions are computed in float32; a choice isn't computed."""
        if getattr(called.op, "name", "") == IF_THEN_ELSE:
            return tirx.if_then_else(*called.args)
        if str(getattr(called.ty, "dtype", "")) != WIDE:
            return called
        arguments = [cast(argument, WIDE) if hasattr(argument.ty, "dtype") else argument for argument in called.args]
        return cast(tvm.ir.Call(called.op, arguments, called.attrs, ret_ty=called.ty), arithmetic)

    callbacks = [
        (tirx.Var, buffer),
        (TensorLoad, lambda load: cast(load.source[tuple(load.indices)], arithmetic)),
        (tirx.BufferStore, store),
        (tirx.FloatImm, lambda number: cast_number(number, arithmetic)),
        (tirx.Cast, lambda value: cast(value, arithmetic)),
        (tvm.ir.Call, call),
        *((kind, _again(kind)) for kind in BINARY),
    ]
    body = tvm_ffi.structural_map(func.body, callbacks, order="post")
    return tirx.PrimFunc([buffer(param) for param in func.params], body, func.ret_type, attrs=func.attrs)


def cast_number(number: tirx.FloatImm, dtype: str) -> tirx.FloatImm:
    return tirx.FloatImm(dtype, number.value) if str(number.ty.dtype) == WIDE else number


def _again(kind: type) -> Any:
    """An operator of operands whose type has changed is made anew, for it has the type of what it was made of."""
    return lambda value: kind(value.a, value.b)
