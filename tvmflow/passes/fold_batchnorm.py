"""Fold batch normalisation into the weights and bias of the convolution before it, and fold what is then constant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.relax.dpl import TupleGetItemPattern, is_const, is_op, rewrite_call, wildcard

from tvmflow.passes.rename import rename
from tvmflow.spec import Program, Target


def fold_batchnorm(program: Program, target: Target) -> Program:
    """The convolutions, which are made anew, keep the names of the modules they came from.

    TVM's own folding leaves the arithmetic to FoldConstant, which compiles a kernel for each step of it: minutes for a
    network of sixty layers.
    """
    names = [binding.var.name for binding in _convolutions(program.module)]
    module = relax.transform.CanonicalizeBindings()(program.module)
    module["main"] = _into_convolutions(module["main"])
    module = tvm.ir.transform.Sequential(
        [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)
    folded = [binding.var for binding in _convolutions(module)]
    if len(folded) == len(names):
        module = rename(module, dict(zip(folded, names, strict=True)))
    return replace(program, module=module)


def _into_convolutions(func: relax.Function) -> relax.Function:
    """Scale the weights of convolutions that batch normalisation follows, and add the shift to their results."""
    data, weight = wildcard(), is_const()
    conv = is_op("relax.nn.conv2d")(data, weight)
    statistics = [is_const() for _ in ("gamma", "beta", "mean", "variance")]
    norm = is_op("relax.nn.batch_norm")(conv, *statistics)

    def fold(expr: relax.Expr, matches: tvm.ir.Map) -> relax.Expr:
        call = matches[conv]
        if (str(call.attrs.out_layout), str(call.attrs.kernel_layout)) != ("NCHW", "OIHW"):
            return expr
        gamma, beta, mean, variance = (matches[value].value.numpy().astype("float64") for value in statistics)
        scale = gamma / np.sqrt(variance + float(matches[norm].attrs.epsilon))
        scaled = matches[weight].value.numpy() * scale.reshape(-1, 1, 1, 1)
        shift = (beta - mean * scale).reshape(1, -1, 1, 1)
        dtype = str(call.ty.dtype)
        made = relax.Call(call.op, [matches[data], relax.const(scaled.astype(dtype))], call.attrs, call.ty_args)
        return relax.op.add(made, relax.const(shift.astype(dtype)))

    return rewrite_call(TupleGetItemPattern(norm, 0), fold, func)


def _convolutions(module: tvm.IRModule) -> list[relax.VarBinding]:
    return [
        binding
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and getattr(binding.value.op, "name", "") == "relax.nn.conv2d"
    ]
