"""Quantising operators, computed as ONNX Runtime does: ties to even, saturated, products exact in integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype
from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.convolutions import convolve
from tvmflow.network.onnx_nodes.node import Node, constant, dtype_of, is_constant, reshape, shape_of
from tvmflow.network.onnx_nodes.products import is_zero

RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def along(node: Node, value: relax.Expr, rank: int) -> relax.Expr:
    """A scale or zero point of one axis, shaped to stand beside a tensor of that rank."""
    size = int(np.prod(shape_of(value), dtype="int64"))
    if size == 1:
        return _bound(node, reshape(value, ()))
    if len(shape_of(value)) != 1 or node.get("block_size", 0):
        raise node.refusal("it is quantised in blocks")
    axis = node.get("axis", 1) % rank
    return _bound(node, reshape(value, [size if other == axis else 1 for other in range(rank)]))


def _bound(node: Node, value: relax.Expr) -> relax.Expr:
    """Of a dtype that is known, where a scale or a zero point is an input."""
    return value if is_constant(value) else node.bind(value)


def quantized(node: Node, data: relax.Expr, scale: relax.Expr, zero: relax.Expr | None, dtype: str) -> relax.Expr:
    """`saturate(round(data / scale) + zero point)`, of operands that stand beside each other."""
    if dtype not in RANGES:
        raise node.refusal(f"it quantises to {dtype}")
    low, high = RANGES[dtype]
    steps = op.round(op.divide(data, scale))
    if not is_zero(zero):
        steps = op.add(steps, op.astype(zero, dtype_of(data)) if not is_constant(zero) else _wide(zero, dtype_of(data)))
    return op.astype(op.clip(steps, low, high), dtype)


def _wide(value: relax.Expr, dtype: str) -> relax.Expr:
    return constant(value.value.numpy(), dtype) if is_constant(value) else op.astype(value, dtype)


def dequantized(data: relax.Expr, scale: relax.Expr, zero: relax.Expr | None) -> relax.Expr:
    """`(data − zero point) · scale`; the difference is exact in int32."""
    wide = op.astype(data, "int32")
    if not is_zero(zero):
        wide = op.subtract(wide, _wide(zero, "int32"))
    return op.multiply(op.astype(wide, dtype_of(scale)), scale)


def quantize_linear(node: Node) -> relax.Expr:
    rank = len(node.shape())
    dtype = node.dtype(2) if node.given(2) else "uint8"
    if node.get("output_dtype", 0):
        dtype = str(tensor_dtype_to_np_dtype(node.get("output_dtype")))
    zero = along(node, node.inputs[2], rank) if node.given(2) else None
    return quantized(node, node.inputs[0], along(node, node.inputs[1], rank), zero, dtype)


def dequantize_linear(node: Node) -> relax.Expr:
    rank = len(node.shape())
    if node.dtype() not in (*RANGES, "int32"):
        raise node.refusal(f"it takes {node.dtype()}")
    zero = along(node, node.inputs[2], rank) if node.given(2) else None
    return dequantized(node.inputs[0], along(node, node.inputs[1], rank), zero)


def dynamic_quantize_linear(node: Node) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    data, zero = node.inputs[0], node.like(0)
    most, least = node.bind(op.maximum(op.max(data), zero)), node.bind(op.minimum(op.min(data), zero))
    span = op.divide(op.subtract(most, least), node.like(255))
    scale = node.bind(op.where(op.equal(most, least), node.like(1), span))
    point = op.round(op.clip(op.divide(op.negative(least), scale), 0, 255))
    zero_point = node.bind(op.astype(point, "uint8"))
    return quantized(node, data, scale, zero_point, "uint8"), scale, zero_point


def _centered(node: Node, data: relax.Expr, zero: relax.Expr | None) -> relax.Expr:
    """`data − zero point` in int32."""
    if is_constant(data) and (zero is None or is_constant(zero)):
        values = data.value.numpy().astype("int32")
        return constant(values if zero is None else values - zero.value.numpy().astype("int32"))
    wide = op.astype(data, "int32")
    return node.bind(wide if is_zero(zero) else op.subtract(wide, _wide(zero, "int32")))


def _requantized(
    node: Node, summed: relax.Expr, scales: Sequence[relax.Expr], zero: relax.Expr | None, dtype: str
) -> relax.Expr:
    """`saturate(round(sum · (a · b / c)) + zero point)` with the factor in float32."""
    first, second, result = scales
    if all(is_constant(scale) for scale in scales):
        factor = constant(first.value.numpy() * second.value.numpy() / result.value.numpy(), "float32")
    else:
        wide = [_wide(scale, "float32") for scale in scales]
        factor = node.bind(op.divide(op.multiply(wide[0], wide[1]), wide[2]))
    low, high = RANGES[dtype]
    steps = op.round(op.multiply(op.astype(summed, "float32"), factor))
    if not is_zero(zero):
        steps = op.add(steps, _wide(zero, "float32"))
    return op.astype(op.clip(steps, low, high), dtype)


def _channels(node: Node, value: relax.Expr | None, rank: int, axis: int) -> relax.Expr | None:
    if value is None:
        return None
    size = int(np.prod(shape_of(value), dtype="int64"))
    return reshape(value, () if size == 1 else [size if other == axis else 1 for other in range(rank)])


def _convolved(node: Node, data: relax.Expr, data_zero: relax.Expr | None, weight: relax.Expr, zero: relax.Expr | None):
    """The border holds the zero point, so what is convolved is centred and its border is 0."""
    rank = len(shape_of(data))
    return convolve(
        node,
        _centered(node, data, _channels(node, data_zero, 0, 0)),
        _centered(node, weight, _channels(node, zero, rank, 0)),
        "int32",
    )


def conv_integer(node: Node) -> relax.Expr:
    return _convolved(node, node.inputs[0], node.optional(2), node.inputs[1], node.optional(3))


def qlinear_conv(node: Node) -> relax.Expr:
    data, data_scale, data_zero, weight, weight_scale, weight_zero, scale, zero = node.inputs[:8]
    rank = len(node.shape())
    summed = node.bind(_convolved(node, data, data_zero, weight, weight_zero))
    if node.given(8):
        summed = node.bind(op.add(summed, reshape(node.inputs[8], (1, *shape_of(node.inputs[8]), *[1] * (rank - 2)))))
    scales = (reshape(data_scale, ()), _channels(node, weight_scale, rank, 1), reshape(scale, ()))
    return _requantized(node, summed, scales, reshape(zero, ()), dtype_of(zero))


def qlinear_matmul(node: Node) -> relax.Expr:
    first, first_scale, first_zero, second, second_scale, second_zero, scale, zero = node.inputs
    sides = []
    for value, point, other in ((first, first_zero, -2), (second, second_zero, -1)):
        rank = len(shape_of(value))
        sides.append(_centered(node, value, _channels(node, point, rank, other % rank)))
    summed = node.bind(op.matmul(*sides, out_dtype="int32"))
    rank = len(shape_of(summed))
    scales = (
        _channels(node, first_scale, rank, rank - 2),
        _channels(node, second_scale, rank, rank - 1),
        reshape(scale, ()),
    )
    return _requantized(node, summed, scales, reshape(zero, ()), dtype_of(zero))


def _real(node: Node, index: int) -> relax.Expr:
    """An input of ONNX Runtime's QLinear operators: value, scale, zero point."""
    zero = node.optional(index + 2)
    return node.bind(
        dequantized(
            node.inputs[index], reshape(node.inputs[index + 1], ()), None if zero is None else reshape(zero, ())
        )
    )


def qlinear_binary(operator: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Callable[[Node], relax.Expr]:
    def convert_(node: Node) -> relax.Expr:
        result = node.bind(operator(_real(node, 0), _real(node, 3)))
        zero = node.optional(7)
        return quantized(
            node, result, reshape(node.inputs[6], ()), None if zero is None else reshape(zero, ()), node.dtype(0)
        )

    return convert_


def qlinear_unary(operator: Callable[[Node, relax.Expr], relax.Expr]) -> Callable[[Node], relax.Expr]:
    """Of a quantised value: input, scale, zero point, output scale, output zero point."""

    def convert_(node: Node) -> relax.Expr:
        result = node.bind(operator(node, _real(node, 0)))
        zero = node.optional(4)
        return quantized(
            node, result, reshape(node.inputs[3], ()), None if zero is None else reshape(zero, ()), node.dtype(0)
        )

    return convert_


def qlinear_global_average(node: Node) -> relax.Expr:
    if node.get("channels_last", 0):
        raise node.refusal("its channels are last")
    axes = list(range(2, len(node.shape())))
    return qlinear_unary(lambda node, data: op.mean(data, axes, True))(node)


def qlinear_concat(node: Node) -> relax.Expr:
    """ONNX Runtime's: output scale and zero point, then value, scale and zero point of each part."""
    parts = [_real(node, index) for index in range(2, len(node.inputs), 3)]
    whole = node.bind(op.concat(parts, node.get("axis")))
    return quantized(node, whole, reshape(node.inputs[0], ()), reshape(node.inputs[1], ()), dtype_of(node.inputs[1]))


def dynamic_quantize_matmul(node: Node) -> relax.Expr:
    """ONNX Runtime's: the first side is quantised as it comes, the second has a scale, zero point and bias."""
    values, scale, zero = (node.bind(value) for value in dynamic_quantize_linear(node))
    second_zero = node.optional(3)
    first = _centered(node, values, zero)
    second = _centered(node, node.inputs[1], None if second_zero is None else _channels(node, second_zero, 2, 1))
    summed = op.astype(op.matmul(first, second, out_dtype="int32"), "float32")
    result = op.multiply(summed, op.multiply(scale, _channels(node, node.inputs[2], 1, 0)))
    return op.add(node.bind(result), node.inputs[4]) if node.given(4) else result


def matmul_integer_to_float(node: Node) -> relax.Expr:
    """ONNX Runtime's: A, B, scale of A, scale of B, zero points of A and B, bias."""
    sides = []
    for index, other in ((0, 0), (1, 1)):
        zero = node.optional(4 + index)
        rank = len(node.shape(index))
        sides.append(
            _centered(node, node.inputs[index], None if zero is None else _channels(node, zero, rank, rank - 2 + other))
        )
    summed = op.astype(op.matmul(*sides, out_dtype="int32"), "float32")
    result = op.multiply(
        summed, op.multiply(_channels(node, node.inputs[2], 1, 0), _channels(node, node.inputs[3], 1, 0))
    )
    return op.add(node.bind(result), node.inputs[6]) if node.given(6) else result
