"""Fold batch normalisation into the weights and bias of the convolution before it, and fold what is then constant."""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.spec import Program, Target


def fold_batchnorm(program: Program, target: Target) -> Program:
    """TVM's own folding; the convolutions, which it makes anew, keep the names of the modules they came from."""
    names = [binding.var.name for binding in _convolutions(program.module)]
    module = tvm.ir.transform.Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldBatchnormToConv2D(),
            relax.transform.DecomposeOpsForInference(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
    )(program.module)
    folded = [binding.var for binding in _convolutions(module)]
    if len(folded) == len(names):
        module["main"] = _Rename(dict(zip(folded, names, strict=True))).visit_expr(module["main"])
    return replace(program, module=module)


def _convolutions(module: tvm.IRModule) -> list[relax.VarBinding]:
    return [
        binding
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and getattr(binding.value.op, "name", "") == "relax.nn.conv2d"
    ]


@mutator
class _Rename(PyExprMutator):
    def __init__(self, names: dict[relax.Var, str]) -> None:
        super().__init__()
        self.names = names

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var not in self.names:
            super().visit_var_binding_(binding)
            return
        variable = self.builder_.emit(self.visit_expr(binding.value), self.names[binding.var])
        self.set_var_remap(binding.var, variable)
