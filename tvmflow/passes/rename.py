"""Give bindings of `main` other names; names are how a kernel knows whose work it does."""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def rename(module: tvm.IRModule, names: Mapping[relax.Var, str]) -> tvm.IRModule:
    """`module` with those variables of `main` renamed."""
    module = tvm.IRModule(module.functions, attrs=module.attrs)
    module["main"] = _Rename(names).visit_expr(module["main"])
    return module


@mutator
class _Rename(PyExprMutator):
    def __init__(self, names: Mapping[relax.Var, str]) -> None:
        super().__init__()
        self.names = names

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var not in self.names:
            super().visit_var_binding_(binding)
            return
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(self.visit_expr(binding.value), self.names[binding.var]))
