"""Give tensors between kernels and constants another layout: the kernels' accesses are rewritten, nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax, s_tir, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.fuse_operators import kernel_calls
from tvmflow.spec import Program


class Layout(Protocol):
    """Where elements lie: by their indices, and as NumPy rearranges an array. Equal layouts compare equal."""

    def place(self, *indices: Any) -> tuple[Any, ...]: ...

    def array(self, array: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Blocked:
    """One axis in blocks, whose elements come last: n×C×… becomes n×C/length×…×length."""

    axis: int
    length: int

    def place(self, *indices: Any) -> tuple[Any, ...]:
        block, within = indices[self.axis] // self.length, indices[self.axis] % self.length
        return (*indices[: self.axis], block, *indices[self.axis + 1 :], within)

    def array(self, array: np.ndarray) -> np.ndarray:
        before, after = array.shape[: self.axis], array.shape[self.axis + 1 :]
        split = array.reshape(*before, array.shape[self.axis] // self.length, self.length, *after)
        return np.ascontiguousarray(np.moveaxis(split, self.axis + 1, -1))


@dataclass(frozen=True)
class Transposed:
    """A matrix by columns."""

    def place(self, *indices: Any) -> tuple[Any, ...]:
        return indices[::-1]

    def array(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T)


@dataclass(frozen=True)
class Panels:
    """A matrix in panels of some columns, one after the other: K×N becomes N/length×K×length."""

    length: int

    def place(self, *indices: Any) -> tuple[Any, ...]:
        row, column = indices
        return column // self.length, row, column % self.length

    def array(self, array: np.ndarray) -> np.ndarray:
        rows, columns = array.shape
        return np.ascontiguousarray(array.reshape(rows, columns // self.length, self.length).swapaxes(0, 1))


Layouts = Mapping[int, Layout]
"""Layouts of some of a kernel's arguments, by their places; the result is the last."""


def relayout(func: tirx.PrimFunc, layouts: Layouts) -> tirx.PrimFunc:
    """`func` with parameters in other layouts."""
    for place, layout in layouts.items():
        sch = s_tir.Schedule(func)
        access = next(
            (name, (kind, index))
            for name in sch.get_child_blocks(sch.get_sblock("root"))
            for kind, regions in (("read", sch.get(name).reads), ("write", sch.get(name).writes))
            for index, region in enumerate(regions)
            if region.source.same_as(func.params[place])
        )
        sch.transform_layout(*access, layout.place)
        func = sch.mod["main"].with_attrs(func.attrs)
    return func


def relayout_calls(program: Program, layouts: Mapping[relax.Var, Layouts], suffix: str) -> Program:
    """`program` with arguments of kernels, found by their results, in other layouts; constants are rearranged.

    The layouts have to agree: whoever reads a tensor reads it as it was written.
    """
    mutate = _Rewrite(program.module, layouts, suffix)
    updated = mutate.visit_expr(program.module["main"])
    module = mutate.builder_.get()
    module["main"] = updated
    module = relax.transform.DeadCodeElimination()(module)
    layers = tuple(
        replace(layer, kernel=binding.value.args[0].name_hint)
        for layer, binding in zip(program.layers, kernel_calls(module), strict=True)
    )
    return replace(program, module=module, layers=layers)


@mutator
class _Rewrite(PyExprMutator):
    """Equal kernels whose layouts are the same stay one."""

    def __init__(self, module: tvm.IRModule, layouts: Mapping[relax.Var, Layouts], suffix: str) -> None:
        super().__init__(module)
        self.module, self.layouts, self.suffix = module, layouts, suffix
        self.made: dict[Any, tvm.ir.GlobalVar] = {}
        self.arrays: dict[tuple[relax.Expr, Layout], relax.Expr] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        layouts = self.layouts.get(binding.var)
        if layouts is None:
            super().visit_var_binding_(binding)
            return
        call = binding.value
        values = [self.visit_expr(value) for value in call.args[1].fields]
        for place, layout in layouts.items():
            if place < len(values) and isinstance(values[place], tvm.ir.expr.GenericConst):
                values[place] = self._array(values[place], layout)
        key = call.args[0], tuple(sorted(layouts.items()))
        if key not in self.made:
            name = call.args[0].name_hint
            self.made[key] = self.builder_.add_func(relayout(self.module[name], layouts), f"{name}_{self.suffix}")
        func = self.builder_.get()[self.made[key]]
        result = relax.TensorType([int(dim) for dim in func.params[-1].shape], str(func.params[-1].dtype))
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        call = relax.call_tir(self.made[key], relax.Tuple(values), result)
        self.set_var_remap(binding.var, emit(call, binding.var.name))

    def _array(self, constant: relax.Expr, layout: Layout) -> relax.Expr:
        """A constant that several kernels read stays one."""
        key = constant, layout
        if key not in self.arrays:
            self.arrays[key] = relax.const(layout.array(constant.value.numpy()))
        return self.arrays[key]
