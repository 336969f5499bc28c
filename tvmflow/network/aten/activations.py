"""Activations that aren't left in parts by PyTorch's exporter, as PyTorch computes them far out as well."""

from __future__ import annotations

import math
from typing import Any

from tvmflow.network.aten.arithmetic import exp_minus_1, pointwise
from tvmflow.network.aten.call import Call, Converter


def elu(call: Call) -> Any:
    """ELU, SELU and CELU: scale · x above 0, scale · alpha · expm1(input_scale · x) below."""
    from tvm import tirx

    x, alpha, scale, input_scale = call.arguments

    def value(x: Any) -> Any:
        dtype = x.ty.dtype
        below = tirx.const(alpha * scale, dtype) * exp_minus_1(x * tirx.const(input_scale, dtype))
        return tirx.Select(x > tirx.const(0, dtype), x * tirx.const(scale, dtype), below)

    return pointwise(call, "elu", value, call.tensor(x, call.dtype))


def gelu(call: Call) -> Any:
    """x · Φ(x), with the error function or with tanh. Of ∞, PyTorch's kernel for some CPUs gives NaN: it is asked."""
    import torch
    from tvm import relax, tirx

    x, approximate = call.arguments
    result = call.emit((relax.op.nn.gelu if approximate == "none" else relax.op.nn.gelu_tanh)(x))
    if not torch.nn.functional.gelu(torch.full((64,), math.inf), approximate=approximate).isnan().any():
        return result

    def odd(x: Any, result: Any) -> Any:
        return tirx.Select(x == tirx.const(math.inf, x.ty.dtype), tirx.const(math.nan, x.ty.dtype), result)

    return pointwise(call, "gelu_of_infinity", odd, x, result)


def rrelu(call: Call) -> list[Any]:
    """Outside training the slope of negative numbers is the middle of its range."""
    from tvm import relax

    x, _, lower, upper, *_ = call.arguments
    return [call.emit(relax.op.nn.leakyrelu(x, (lower + upper) / 2))]


def leaky_relu(call: Call) -> Any:
    from tvm import relax

    x, slope = call.arguments
    return call.emit(relax.op.nn.leakyrelu(x, slope))


def softmax(call: Call) -> Any:
    return _softmax(call, logarithm=False)


def log_softmax(call: Call) -> Any:
    return _softmax(call, logarithm=True)


def _softmax(call: Call, *, logarithm: bool) -> Any:
    """Of a 0-d tensor too."""
    from tvm import relax

    x, axis = call.tensor(call.arguments[0], call.dtype), call.arguments[1]
    operator = relax.op.nn.log_softmax if logarithm else relax.op.nn.softmax
    if call.shape:
        return call.emit(operator(x, axis % len(call.shape)))
    return call.emit(relax.op.reshape(call.emit(operator(call.emit(relax.op.reshape(x, (1,))), 0)), ()))


OPERATORS: dict[str, Converter] = {
    "elu.default": elu,
    "gelu.default": gelu,
    "rrelu_with_noise_functional.default": rrelu,
    "leaky_relu.default": leaky_relu,
    "_softmax.default": softmax,
    "_log_softmax.default": log_softmax,
}
