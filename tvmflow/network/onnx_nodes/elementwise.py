"""Element-wise operators: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype
from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import Node, constant, convert, dtype_of, is_constant, is_float, reshape, shape_of

CASTS = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"} | {
    "float16",
    "bfloat16",
    "float32",
    "float64",
}


def unary(operator: Callable[[relax.Expr], relax.Expr]) -> Callable[[Node], relax.Expr]:
    return lambda node: operator(node.inputs[0])


def binary(operator: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Callable[[Node], relax.Expr]:
    return lambda node: operator(*operands(node))


def operands(node: Node) -> tuple[relax.Expr, relax.Expr]:
    """Both operands. Before opset 7 the second is laid along the first one's axes from `axis` on."""
    first, second = node.inputs
    if node.opset < 7 and node.get("broadcast") and "axis" in node.attributes:
        rank, axis = len(node.shape(0)), node.get("axis")
        behind = rank - axis % rank - len(shape_of(second))
        second = reshape(second, (*shape_of(second), *[1] * behind))
    return first, second


def variadic(operator: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Callable[[Node], relax.Expr]:
    return lambda node: functools.reduce(lambda left, right: node.bind(operator(left, right)), node.inputs)


def maximum(node: Node) -> relax.Expr:
    clipped = _bounded(node, lambda value: (value, math.inf))
    return variadic(op.maximum)(node) if clipped is None else clipped


def minimum(node: Node) -> relax.Expr:
    clipped = _bounded(node, lambda value: (-math.inf, value))
    return variadic(op.minimum)(node) if clipped is None else clipped


def _bounded(node: Node, bounds: Callable[[float], tuple[float, float]]) -> relax.Expr | None:
    """The extreme of floats and one number, as the clip that it is; None for any other."""
    if len(node.inputs) != 2:
        return None
    for bound, data in (node.inputs, node.inputs[::-1]):
        fits = is_constant(bound) and not is_constant(data) and is_float(dtype_of(data))
        if fits and bound.value.numpy().size == 1 and len(shape_of(bound)) <= len(shape_of(data)):
            return _clipped(data, *bounds(float(bound.value.numpy().reshape(()))))
    return None


def mean(node: Node) -> relax.Expr:
    return op.divide(variadic(op.add)(node), node.like(len(node.inputs)))


def divide(node: Node) -> relax.Expr:
    """Integers are divided towards zero, as C does."""
    first, second = operands(node)
    if not is_float(dtype_of(first)) and is_constant(second) and not second.value.numpy().all():
        raise node.refusal("it divides integers by zero")
    return op.divide(first, second)


def modulo(node: Node) -> relax.Expr:
    """The result has the divisor's sign, with `fmod` the dividend's."""
    first, second = node.inputs
    if not is_float(dtype_of(first)):
        return (op.mod if node.get("fmod", 0) else op.floor_mod)(first, second)
    rest = node.bind(op.subtract(first, op.multiply(op.trunc(op.divide(first, second)), second)))
    infinite = op.equal(op.abs(second), node.like(math.inf))
    found = node.bind(op.where(op.logical_and(infinite, op.isfinite(first)), first, rest))
    if node.get("fmod", 0):
        return found
    zero = node.like(0)
    other = op.logical_xor(op.less(found, zero), op.less(second, zero))
    return op.where(op.logical_and(other, op.not_equal(found, zero)), op.add(found, second), found)


def power(node: Node) -> relax.Expr:
    """The result has the base's dtype. Small whole powers are products, which need no library on the device."""
    base, exponent = operands(node)
    dtype = dtype_of(base)
    if is_constant(exponent) and exponent.value.numpy().size == 1 and len(shape_of(exponent)) <= len(shape_of(base)):
        value = float(exponent.value.numpy().reshape(-1)[0])
        if value in (1, 2, 3, 4):
            square = node.bind(op.multiply(base, base)) if value > 1 else base
            return {1: base, 2: square, 3: op.multiply(square, base), 4: op.multiply(square, square)}[int(value)]
        if value == 0.5 and is_float(dtype):
            return op.sqrt(base)
    if is_float(dtype):
        return op.power(base, convert(exponent, dtype))
    return op.astype(op.power(op.astype(base, "float64"), convert(exponent, "float64")), dtype)


def bit_shift(node: Node) -> relax.Expr:
    """A shift by as many bits as there are, or more, or by less than none, leaves nothing but the sign to the right."""
    data, shift = node.inputs
    dtype, left = node.dtype(), node.get("direction") == "LEFT"
    width, signed = np.iinfo(dtype).bits, not dtype.startswith("u")
    shifted = op.left_shift if left else op.right_shift
    if is_constant(shift) and (shift.value.numpy() < width).all() and (shift.value.numpy() >= 0).all():
        return shifted(data, shift)
    beyond = op.greater_equal(shift, constant(width, dtype))
    beyond = node.bind(op.logical_or(beyond, op.less(shift, constant(0, dtype))) if signed else beyond)
    made = shifted(data, op.where(beyond, constant(width - 1, dtype), shift))
    return made if signed and not left else op.where(beyond, constant(0, dtype), node.bind(made))


def is_infinite(node: Node) -> relax.Expr:
    data, infinity = node.inputs[0], node.like(math.inf)
    signs = [
        op.equal(data, infinity if name == "detect_positive" else node.like(-math.inf))
        for name in ("detect_positive", "detect_negative")
        if node.get(name, 1)
    ]
    return functools.reduce(op.logical_or, signs) if signs else constant(np.zeros(node.shape(), bool))


def select(node: Node) -> relax.Expr:
    return op.where(*node.inputs)


def identity(node: Node) -> relax.Expr:
    return node.inputs[0]


def dropout(node: Node) -> relax.Expr | tuple[relax.Expr, ...]:
    training = node.constant(2, "training mode") if node.opset >= 12 else None
    if training is not None and training.any():
        raise node.refusal("it drops values at random in training mode; export the network after .eval()")
    if node.results == 1:
        return node.inputs[0]
    return node.inputs[0], constant(np.ones(node.shape(), "bool" if node.opset >= 10 else node.dtype()))


def cast(node: Node) -> relax.Expr:
    """To integers of less than 32 bits by way of int32, whose low bits stay: what ONNX Runtime does with overflow."""
    target = node.get("to")
    if isinstance(target, str):  # opset 1 spells it
        from onnx import TensorProto

        target = TensorProto.DataType.Value(target)
    dtype = str(tensor_dtype_to_np_dtype(target))
    if dtype not in CASTS:
        raise node.refusal(f"it casts to {dtype}")
    return cast_to(node.inputs[0], dtype)


def cast_like(node: Node) -> relax.Expr:
    return cast_to(node.inputs[0], node.dtype(1))


def cast_to(data: relax.Expr, dtype: str) -> relax.Expr:
    source = dtype_of(data)
    if source == dtype:
        return data
    if is_constant(data) and is_float(dtype):  # a bound of Clip, say, that takes the dtype of what is clipped
        return constant(data.value.numpy(), dtype)
    if dtype == "bool":
        unequal = op.not_equal(data, constant(0, source))
        return op.logical_or(unequal, op.isnan(data)) if is_float(source) else unequal
    if is_float(source) and dtype in ("int8", "uint8", "int16", "uint16"):
        return op.astype(op.astype(data, "int32"), dtype)
    if is_float(source) and dtype == "uint32":
        return op.astype(op.astype(data, "int64"), dtype)
    return op.astype(data, dtype)


def relu(node: Node) -> relax.Expr:
    if is_float(node.dtype()):
        return op.nn.relu(node.inputs[0])
    return op.maximum(node.inputs[0], node.like(0))


def leaky_relu(node: Node) -> relax.Expr:
    return op.nn.leakyrelu(node.inputs[0], node.get("alpha", 0.01))


def prelu(node: Node) -> relax.Expr:
    data, slope = node.inputs
    if node.opset < 7 and len(shape_of(slope)) == 1:  # one slope for each channel
        slope = reshape(slope, (*shape_of(slope), *[1] * (len(node.shape()) - 2)))
    if len(shape_of(slope)) < len(node.shape()):
        slope = reshape(slope, (*[1] * (len(node.shape()) - len(shape_of(slope))), *shape_of(slope)))
    return op.where(op.greater(data, node.like(0)), data, op.multiply(slope, data))


def elu(node: Node) -> relax.Expr:
    data = node.inputs[0]
    bent = op.multiply(node.like(node.get("alpha", 1.0)), op.subtract(op.exp(data), node.like(1)))
    return op.where(op.greater(data, node.like(0)), data, bent)


def selu(node: Node) -> relax.Expr:
    data, alpha = node.inputs[0], node.like(node.get("alpha", 1.67326319217681884765625))
    bent = op.multiply(alpha, op.subtract(op.exp(data), node.like(1)))
    return op.multiply(
        node.like(node.get("gamma", 1.05070102214813232421875)), op.where(op.greater(data, node.like(0)), data, bent)
    )


def celu(node: Node) -> relax.Expr:
    data, alpha = node.inputs[0], node.like(node.get("alpha", 1.0))
    bent = op.multiply(alpha, op.subtract(op.exp(op.divide(data, alpha)), node.like(1)))
    return op.where(op.greater(data, node.like(0)), data, bent)


def softplus_of(node: Node, data: relax.Expr) -> relax.Expr:
    """`max(x, 0) + log(1 + e)` of `e = exp(−|x|)`, exact where e is lost beside 1: log(1 + e) · e / ((1 + e) − 1)."""
    dtype = dtype_of(data)
    small = node.bind(op.exp(op.negative(op.abs(data))))
    rounded = node.bind(op.add(small, constant(1, dtype)))
    lost = op.subtract(rounded, constant(1, dtype))
    tail = op.where(op.equal(rounded, constant(1, dtype)), small, op.divide(op.multiply(op.log(rounded), small), lost))
    return op.add(op.maximum(data, constant(0, dtype)), tail)


def softplus(node: Node) -> relax.Expr:
    return softplus_of(node, node.inputs[0])


def softsign(node: Node) -> relax.Expr:
    return op.divide(node.inputs[0], op.add(op.abs(node.inputs[0]), node.like(1)))


def mish(node: Node) -> relax.Expr:
    return op.multiply(node.inputs[0], op.tanh(softplus_of(node, node.inputs[0])))


def gelu(node: Node) -> relax.Expr:
    return (op.nn.gelu_tanh if node.get("approximate", "none") == "tanh" else op.nn.gelu)(node.inputs[0])


def bias_gelu(node: Node) -> relax.Expr:
    return op.nn.gelu(node.bind(op.add(*node.inputs)))


def fast_gelu(node: Node) -> relax.Expr:
    return op.nn.gelu_tanh(node.bind(op.add(*node.inputs)) if node.given(1) else node.inputs[0])


def swish(node: Node) -> relax.Expr:
    """`x · sigmoid(alpha · x)`; alpha is 1 in ONNX and 1.702 in ONNX Runtime's QuickGelu."""
    data = node.inputs[0]
    alpha = node.get("alpha", 1.702 if node.operator == "QuickGelu" else 1.0)
    return op.multiply(data, op.sigmoid(data if alpha == 1 else op.multiply(data, node.like(alpha))))


def hard_sigmoid(node: Node) -> relax.Expr:
    scaled = op.multiply(node.inputs[0], node.like(node.get("alpha", 0.2)))
    return op.clip(op.add(scaled, node.like(node.get("beta", 0.5))), 0, 1)


def hard_swish(node: Node) -> relax.Expr:
    data = node.inputs[0]
    raised = op.clip(op.add(data, node.like(3)), 0, 6)
    return op.divide(op.multiply(data, raised), node.like(6))


def thresholded_relu(node: Node) -> relax.Expr:
    data = node.inputs[0]
    return op.where(op.greater(data, node.like(node.get("alpha", 1.0))), data, node.like(0))


def shrink(node: Node) -> relax.Expr:
    data, bias, lambd = node.inputs[0], node.like(node.get("bias", 0.0)), node.get("lambd", 0.5)
    above = op.where(op.greater(data, node.like(lambd)), op.subtract(data, bias), node.like(0))
    return op.where(op.less(data, node.like(-lambd)), op.add(data, bias), above)


def _clipped(data: relax.Expr, least: float, most: float) -> relax.Expr | None:
    """None where a bound is NaN."""
    if math.isnan(least) or math.isnan(most):
        return None
    if (least, most) == (0, math.inf):
        return op.nn.relu(data)
    return data if (least, most) == (-math.inf, math.inf) else op.clip(data, min(least, most), most)


def clip(node: Node) -> relax.Expr:
    """Where the minimum is above the maximum, all become the maximum."""
    data, dtype = node.inputs[0], node.dtype()
    bounds = [node.optional(1), node.optional(2)]
    if node.opset < 11:
        bounds = [constant(node.get(name), dtype) if name in node.attributes else None for name in ("min", "max")]
    low, high = bounds
    if is_float(dtype) and all(bound is None or is_constant(bound) for bound in bounds):
        least, most = (
            empty if bound is None else float(bound.value.numpy().reshape(()))
            for bound, empty in ((low, -math.inf), (high, math.inf))
        )
        if (clipped := _clipped(data, least, most)) is not None:
            return clipped
    if low is not None:
        data = op.maximum(data, low)
    return data if high is None else op.minimum(data, high)
