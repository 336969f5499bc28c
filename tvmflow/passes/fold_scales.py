"""Fold depthwise layers of which one tap is left into the weights of the convolutions that read them.

A tap that meets nothing but the border at every output does nothing: of a 3×3 filter with dilation 5 on a 4×4 map only
the centre stays, and what it does is to scale each channel. The convolution behind it takes the scale into its weights,
exactly but for rounding; an infinite weight times the border would be NaN, and that is lost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.constants import is_constant, keeps_precision
from tvmflow.passes.multiply_adds import multiply_adds, static_shape
from tvmflow.spec import Program, Target


def fold_scales(program: Program, target: Target) -> Program:
    """`Program.folded` tells which convolutions now do the work of others."""
    module, folded = program.module, {name: dict(works) for name, works in program.folded.items()}
    while (found := _find(module)) is not None:
        scale, factors, readers = found
        works = {**folded.pop(scale.var.name, {}), scale.var.name: multiply_adds(scale.value)}
        first = readers[0].var.name
        folded[first] = {**works, **folded.get(first, {})}
        fold = _Fold(scale, {reader.var: _scaled(reader.value, factors) for reader in readers})
        module = tvm.IRModule(module.functions, attrs=module.attrs)
        module["main"] = fold.visit_expr(module["main"])
    return replace(program, module=module, folded=folded)


def _find(module: tvm.IRModule) -> tuple[relax.VarBinding, np.ndarray, list[relax.VarBinding]] | None:
    """A layer that only scales and the convolutions that read it, if nothing else does and no weight is lost by it."""
    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    for binding in bindings:
        factors = _factors(binding.value)
        if factors is None or not np.isfinite(factors).all():
            continue
        readers = [other for other in bindings if binding.var in _variables(other.value)]
        if not readers or binding.var in _variables(module["main"].body.body):
            continue
        if all(_takes(reader.value, binding.var) for reader in readers) and all(
            keeps_precision(reader.value.args[1].value.numpy(), _scaled(reader.value, factors)) for reader in readers
        ):
            return binding, factors, readers
    return None


def _factors(value: relax.Expr) -> np.ndarray | None:
    """The factor of each channel if `value` is a depthwise convolution of which one tap is left, in place."""
    if not _is_conv(value) or not is_constant(value.args[1]):
        return None
    data, weight, result = (static_shape(tensor.ty) for tensor in (value.args[0], value.args[1], value))
    if int(value.attrs.groups) != data[1] or weight[0] != data[1] or data != result:
        return None
    alive = [_live_taps(value, axis, data[2 + axis], weight[2 + axis]) for axis in (0, 1)]
    if any(int(step) != 1 for step in value.attrs.strides) or any(len(taps) != 1 for taps in alive):
        return None
    (vertical, horizontal), padding = (taps[0] for taps in alive), value.attrs.padding
    for axis, tap in enumerate((vertical, horizontal)):
        if tap * int(value.attrs.dilation[axis]) != int(padding[axis]):
            return None
    return value.args[1].value.numpy()[:, 0, vertical, horizontal]


def _live_taps(value: relax.Call, axis: int, length: int, taps: int) -> list[int]:
    """Taps that meet the input itself, not only its border, for at least one output of a convolution of stride 1."""
    first = [tap * int(value.attrs.dilation[axis]) - int(value.attrs.padding[axis]) for tap in range(taps)]
    return [tap for tap in range(taps) if -length < first[tap] < length]


def _takes(value: relax.Expr, var: relax.Var) -> bool:
    """Whether a convolution reads `var` as its input and can take a scale into its weights."""
    return _is_conv(value) and value.args[0].same_as(var) and is_constant(value.args[1])


def _is_conv(value: relax.Expr) -> bool:
    if getattr(getattr(value, "op", None), "name", "") != "relax.nn.conv2d":
        return False
    layouts = str(value.attrs.data_layout), str(value.attrs.kernel_layout), str(value.attrs.out_layout)
    dtypes = {str(tensor.ty.dtype) for tensor in (value, *value.args)}
    return layouts == ("NCHW", "OIHW", "NCHW") and dtypes == {"float32"}


def _scaled(conv: relax.Call, factors: np.ndarray) -> np.ndarray:
    """The weights of a convolution (f, c in its group, r, s) times the factor of the channel that each one meets."""
    weight, groups = conv.args[1].value.numpy(), int(conv.attrs.groups)
    met = factors.reshape(groups, 1, weight.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        return (weight.reshape(groups, -1, *weight.shape[1:]) * met[..., None, None]).reshape(weight.shape)


def _variables(value: relax.Expr) -> list[relax.Var]:
    found: list[relax.Var] = []
    relax.analysis.post_order_visit(value, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
    return found


@mutator
class _Fold(PyExprMutator):
    """Readers of the layer get new weights and read what it has read."""

    def __init__(self, scale: relax.VarBinding, weights: dict[relax.Var, np.ndarray]) -> None:
        super().__init__()
        self.scale, self.weights = scale, weights

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var.same_as(self.scale.var):
            return
        if binding.var not in self.weights:
            super().visit_var_binding_(binding)
            return
        call = binding.value
        data = self.visit_expr(self.scale.value.args[0])
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        call = relax.Call(call.op, [data, relax.const(self.weights[binding.var])], call.attrs, call.ty_args)
        self.set_var_remap(binding.var, emit(call, binding.var.name))
