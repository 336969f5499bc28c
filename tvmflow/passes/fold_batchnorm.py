"""Fold batch normalisation into the weights and bias of the convolution before it, and fold what is then constant."""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import relax

from tvmflow.passes.rename import rename
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
        module = rename(module, dict(zip(folded, names, strict=True)))
    return replace(program, module=module)


def _convolutions(module: tvm.IRModule) -> list[relax.VarBinding]:
    return [
        binding
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and getattr(binding.value.op, "name", "") == "relax.nn.conv2d"
    ]
