"""Matrix products in the dtype of their operands, and convolutions in one to three dimensions."""

from __future__ import annotations

from typing import Any

from tvmflow.network.aten.call import Call, Converter, is_floating, shape_of


def matmul(call: Call) -> Any:
    return _matmul(call, *call.arguments[:2])


def _matmul(call: Call, x: Any, y: Any) -> Any:
    from tvm import relax

    return call.emit(relax.op.matmul(call.tensor(x, call.dtype), call.tensor(y, call.dtype)))


def add_product(call: Call) -> Any:
    """addmm, baddbmm, addmv: beta · bias + alpha · (x @ y); with beta 0 the bias isn't looked at, NaN or not."""
    from tvm import relax

    bias, x, y, beta, alpha = call.arguments
    result = _matmul(call, x, y)
    if alpha != 1:
        result = call.emit(relax.op.multiply(result, relax.const(alpha, call.dtype)))
    if beta == 0:
        return result
    bias = call.tensor(bias, call.dtype)
    if beta != 1:
        bias = call.emit(relax.op.multiply(bias, relax.const(beta, call.dtype)))
    return call.emit(relax.op.add(result, bias))


def convolution(call: Call) -> Any:
    """One to three dimensions, transposed or not, with or without a batch axis."""
    from tvm import relax

    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = call.arguments
    spatial = len(shape_of(weight)) - 2
    batched = len(shape_of(x)) == spatial + 2
    if not batched:
        x = call.emit(relax.op.expand_dims(x, 0))

    def each(values: Any) -> list[int]:
        return list(values) * spatial if len(values) == 1 else list(values)

    stride, padding, dilation, output_padding = map(each, (stride, padding, dilation, output_padding))
    options: dict[str, Any] = {
        "strides": stride,
        "padding": [*padding, *padding],
        "dilation": dilation,
        "groups": groups,
    }
    if transposed:
        operator = {
            1: relax.op.nn.conv1d_transpose,
            2: relax.op.nn.conv2d_transpose,
            3: relax.op.nn.conv3d_transpose,
        }[spatial]
        options["output_padding"] = output_padding
    else:
        operator = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}[spatial]
    result = call.emit(operator(x, weight, **options, **({"out_dtype": call.dtype} if is_floating(call.dtype) else {})))
    if bias is not None:
        shaped = call.emit(relax.op.reshape(bias, (1, -1, *[1] * spatial)))
        result = call.emit(relax.op.add(result, shaped))
    return result if batched else call.emit(relax.op.squeeze(result, [0]))


def trilinear(call: Call) -> Any:
    """∑ of products of three tensors that are expanded and summed over axes, as nn.Bilinear needs them."""
    from tvm import relax

    *tensors, first, second, third, summed, _ = call.arguments
    grown = []
    for tensor, axes in zip(tensors, (first, second, third), strict=True):
        shape = list(shape_of(tensor))
        for axis in sorted(axes):
            shape.insert(axis, 1)
        grown.append(call.emit(relax.op.reshape(tensor, shape)))
    product = call.emit(relax.op.multiply(call.emit(relax.op.multiply(grown[0], grown[1])), grown[2]))
    return call.emit(relax.op.sum(product, list(summed))) if summed else product


OPERATORS: dict[str, Converter] = {
    "mm.default": matmul,
    "bmm.default": matmul,
    "mv.default": matmul,
    "dot.default": matmul,
    "addmm.default": add_product,
    "baddbmm.default": add_product,
    "convolution.default": convolution,
    "_trilinear.default": trilinear,
}
