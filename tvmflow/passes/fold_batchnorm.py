"""Fold batch normalisation into the layer before it; where there is none, it becomes one scale and one shift."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.constants import fold_views, is_constant, keeps_precision, operator, read_constants
from tvmflow.passes.multiply_adds import static_shape
from tvmflow.spec import Program, Target


def fold_batchnorm(program: Program, target: Target) -> Program:
    """A convolution of any dimension, a transposed one and a matrix product take the normalisations behind them into
    their weights, along with the biases between, in float64, where nothing else reads what is between. Any other
    normalisation becomes `x × scale + shift`, which is how PyTorch computes it.

    TVM's own folding serves 2-D convolutions without a bias, and leaves the arithmetic to FoldConstant, which compiles
    a kernel for each step of it: minutes for a network of sixty layers.
    """
    module = relax.transform.CanonicalizeBindings()(program.module)
    module["main"] = _Fold(_find(module["main"])).visit_expr(module["main"])
    module = tvm.ir.transform.Sequential(
        [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
    )(fold_views(module))
    return replace(program, module=module)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer with weights and the biases and normalisations behind it, as one layer.

    `weight` and `bias` are float64, the bias of one value a channel. `last` is the variable that holds the result, and
    `passed` are the variables of the steps before it. `normalised` says whether a normalisation is among the steps.
    """

    call: relax.Call
    var: relax.Var
    weight: np.ndarray
    bias: np.ndarray
    last: relax.Var
    passed: tuple[relax.Var, ...] = ()
    normalised: bool = False


@dataclass(frozen=True, kw_only=True)
class _Norm:
    """A normalisation by itself: float64, one scale and one shift for each index of `axis` of `data`."""

    data: relax.Expr
    axis: int
    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Found:
    layers: dict[relax.Var, _Layer] = field(default_factory=dict)  # by `_Layer.var`
    norms: dict[relax.Var, _Norm] = field(default_factory=dict)  # by the variable of the result


def _find(func: relax.Function) -> _Found:
    bindings = [binding for block in func.body.blocks for binding in block.bindings]
    uses: Counter[relax.Var] = Counter()
    for expr in (*(binding.value for binding in bindings), func.body.body):
        relax.analysis.post_order_visit(expr, lambda e: uses.update([e]) if isinstance(e, relax.Var) else None)
    constants = read_constants(bindings)
    at: dict[relax.Var, _Layer] = {}  # by the variable of the last step so far
    tuples: dict[relax.Var, relax.Call] = {}
    found = _Found()
    for binding in bindings:
        var, value = binding.var, binding.value
        name, layer = operator(value), None
        if name in CHANNEL_AXES:
            layer = _begin(value, var, constants)
        elif name == "relax.add":
            layer = _biased(value, var, at, constants)
        elif name == "relax.nn.batch_norm" and all(map(is_constant, value.args[1:])):
            tuples[var] = value
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in tuples and value.index == 0:
            norm = _norm(tuples[value.tuple_value])
            before = at.get(norm.data)
            layer = _normalised(before, norm, value.tuple_value, var) if before and uses[before.last] == 1 else None
            if layer is None:
                found.norms[var] = norm
        if layer is None or (layer.passed and uses[layer.passed[-1]] > 1):
            continue
        at[var] = layer
        if layer.normalised:
            found.layers[layer.var] = layer
    return found


CHANNEL_AXES: dict[str, tuple[int, int]] = {
    "relax.nn.conv1d": (0, 1),
    "relax.nn.conv2d": (0, 1),
    "relax.nn.conv3d": (0, 1),
    "relax.nn.conv1d_transpose": (1, 1),
    "relax.nn.conv2d_transpose": (1, 1),
    "relax.nn.conv3d_transpose": (1, 1),
    "relax.matmul": (-1, -1),
}
"""Layers with weights: the axis of the output channels in the weights, and in the result.

Those of a transposed convolution are of one group: its weights have the input channels of all groups on axis 0.
"""


def _begin(call: relax.Call, var: relax.Var, constants: dict[relax.Var, np.ndarray]) -> _Layer | None:
    given = call.args[1]
    weight = given.value.numpy() if is_constant(given) else constants.get(given)
    if weight is None or not np.issubdtype(weight.dtype, np.floating) or weight.dtype != str(call.ty.dtype):
        return None
    layouts = [str(getattr(call.attrs, name, "NC")) for name in ("data_layout", "out_layout")]
    if any(layout[:2] != "NC" for layout in layouts) or (operator(call) == "relax.matmul" and weight.ndim != 2):
        return None
    channels = static_shape(call.ty)[CHANNEL_AXES[operator(call)][1]]
    return _Layer(call=call, var=var, weight=weight.astype(np.float64), bias=np.zeros(channels), last=var)


def _biased(
    call: relax.Call, var: relax.Var, at: dict[relax.Var, _Layer], constants: dict[relax.Var, np.ndarray]
) -> _Layer | None:
    """The layer that one operand is with the other operand, a constant of one value a channel, as its bias."""
    for data, other in (call.args, reversed(call.args)):
        layer = at.get(data)
        constant = other.value.numpy() if is_constant(other) else constants.get(other)
        if layer is None or constant is None:
            continue
        shape, axis = static_shape(call.ty), _axis(layer)
        padded = (1,) * (len(shape) - constant.ndim) + constant.shape
        one_a_channel = tuple(size if place == axis else 1 for place, size in enumerate(shape))
        if shape == static_shape(data.ty) and padded in (one_a_channel, (1,) * len(shape)):
            return replace(layer, bias=layer.bias + constant.reshape(-1), last=var, passed=(*layer.passed, layer.last))
    return None


def _norm(call: relax.Call) -> _Norm:
    gamma, beta, mean, variance = (argument.value.numpy().astype(np.float64) for argument in call.args[1:])
    with np.errstate(all="ignore"):  # a variance of nothing: infinite, as in PyTorch
        scale = (gamma if call.attrs.scale else 1) / np.sqrt(variance + float(call.attrs.epsilon))
        shift = (beta if call.attrs.center else 0) - mean * scale
    axis = int(call.attrs.axis) % len(static_shape(call.args[0].ty))
    return _Norm(data=call.args[0], axis=axis, scale=scale, shift=shift)


def _normalised(layer: _Layer, norm: _Norm, result: relax.Var, var: relax.Var) -> _Layer | None:
    """The layer with a normalisation of what it computes; None if its dtype can't hold the weights well."""
    if _axis(layer) != norm.axis:
        return None
    with np.errstate(invalid="ignore"):  # an infinite scale isn't folded, below
        weight = _scaled(layer, norm.scale)
        bias = layer.bias * norm.scale + norm.shift
    given = np.zeros(0, str(layer.call.ty.dtype))
    if not keeps_precision(layer.weight.astype(given.dtype), weight) or not np.isfinite(bias.astype(given.dtype)).all():
        return None
    passed = (*layer.passed, layer.last, result)
    return replace(layer, weight=weight, bias=bias, last=var, passed=passed, normalised=True)


def _axis(layer: _Layer) -> int:
    return CHANNEL_AXES[operator(layer.call)][1] % len(static_shape(layer.call.ty))


def _scaled(layer: _Layer, scale: np.ndarray) -> np.ndarray:
    """The weights with each output channel's times its scale."""
    weight, axis = layer.weight, CHANNEL_AXES[operator(layer.call)][0]
    if axis != 1:
        return weight * np.expand_dims(scale, tuple(d for d in range(weight.ndim) if d != axis % weight.ndim))
    groups = int(layer.call.attrs.groups)  # transposed: (I, O/groups, …), the input channels of each group in a row
    met = np.repeat(scale.reshape(groups, -1), len(weight) // groups, axis=0)
    return weight * met.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))


@mutator
class _Fold(PyExprMutator):
    def __init__(self, found: _Found) -> None:
        super().__init__()
        self.found = found
        self.last = {layer.last: layer for layer in found.layers.values()}
        self.passed = {var for layer in found.layers.values() for var in layer.passed if not var.same_as(layer.var)}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        var = binding.var
        if var in self.passed:
            return
        emit = self.builder_.emit if isinstance(var, relax.DataflowVar) else self.builder_.emit_output
        if var in self.found.layers:
            layer = self.found.layers[var]
            call, weight = layer.call, _const(layer.weight, layer.call)
            made = relax.Call(call.op, [self.visit_expr(call.args[0]), weight], call.attrs, call.ty_args)
            self.set_var_remap(var, self.builder_.emit(made, var.name))
        elif var in self.last:
            layer = self.last[var]
            bias = _along(layer.bias, _axis(layer), layer.call)
            self.set_var_remap(var, emit(relax.op.add(self.visit_expr(layer.var), bias), var.name))
        elif var in self.found.norms:
            norm = self.found.norms[var]
            scale, shift = (_along(array, norm.axis, norm.data) for array in (norm.scale, norm.shift))
            scaled = self.builder_.emit(relax.op.multiply(self.visit_expr(norm.data), scale), var.name)
            self.set_var_remap(var, emit(relax.op.add(scaled, shift), var.name))
        else:
            super().visit_var_binding_(binding)


def _const(array: np.ndarray, like: relax.Expr) -> relax.Expr:
    with np.errstate(over="ignore"):
        return relax.const(array.astype(str(like.ty.dtype)), str(like.ty.dtype))


def _along(array: np.ndarray, axis: int, like: relax.Expr) -> relax.Expr:
    """One value for each index of an axis, of the dtype of `like` and in a shape that broadcasts to its own."""
    dims = len(static_shape(like.ty))
    return _const(np.expand_dims(array, tuple(d for d in range(dims) if d != axis)), like)
