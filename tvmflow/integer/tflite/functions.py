"""Functions of each element as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tvmflow.integer.layers import RANGES
from tvmflow.integer.tflite import fixed_point
from tvmflow.integer.tflite.model import FileOperator, FileTensor
from tvmflow.integer.tflite.values import Network, Refused, Value, check_same_steps, check_type
from tvmflow.integer.tflite.weighted import limits_of
from tvmflow.system.untrusted import MalformedError


def _function(
    network: Network, operator: FileOperator, of: Callable[[Value, FileTensor], Callable[[np.ndarray], np.ndarray]]
) -> None:
    """A table of `of(what is read, what is given)`."""
    x, result = network.value(operator), network.result(operator)
    check_type(result)
    try:
        found = of(x, result)
        table = fixed_point.table(found, *RANGES[result.dtype], signed=x.dtype == "int8")
    except ValueError as error:
        raise MalformedError(f"{operator.kind} scales by {error}") from error
    network.set(operator, network.mapped(x, table, result, result.name))


def requantise(network: Network, operator: FileOperator) -> None:
    """QUANTIZE of integers; where nothing changes, there is no layer."""
    x, result = network.value(operator), network.result(operator)
    if (x.dtype, x.scale, x.zero_point) == (result.dtype, result.scale, result.zero_point):
        network.set(operator, x)
        return
    _function(network, operator, lambda x, y: fixed_point.rescaled(x.scale / y.scale, x.zero_point, y.zero_point))


def clamp(network: Network, operator: FileOperator) -> None:
    number = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}[operator.kind]

    if operator.kind != "RELU":
        # kernels of TensorFlow Lite don't agree about what the others do to a scale
        check_same_steps(operator, network.value(operator), network.result(operator))

    def of(x: Value, result: FileTensor) -> Callable[[np.ndarray], np.ndarray]:
        low, high = limits_of(result, number)
        scaled = fixed_point.rescaled(x.scale / result.scale, x.zero_point, result.zero_point)
        return lambda q: scaled(q).clip(low, high)

    _function(network, operator, of)


def _signed(operator: FileOperator, x: Value, result: FileTensor, scale: float, zero: int) -> None:
    if x.dtype != "int8" or (result.dtype, result.scale, result.zero_point) != ("int8", scale, zero):
        raise Refused(f"{operator.kind} whose result isn't int8 in steps of {scale} from {zero} on")


def logistic(network: Network, operator: FileOperator) -> None:
    _signed(operator, network.value(operator), network.result(operator), 1 / 256, -128)
    _function(network, operator, lambda x, y: fixed_point.logistic(x.scale, x.zero_point))


def tanh(network: Network, operator: FileOperator) -> None:
    _signed(operator, network.value(operator), network.result(operator), 1 / 128, 0)
    _function(network, operator, lambda x, y: fixed_point.tanh(x.scale, x.zero_point))


def hard_swish(network: Network, operator: FileOperator) -> None:
    def of(x: Value, y: FileTensor) -> Callable[[np.ndarray], np.ndarray]:
        return fixed_point.hard_swish(x.scale, x.zero_point, y.scale, y.zero_point)

    _function(network, operator, of)


def leaky_relu(network: Network, operator: FileOperator) -> None:
    alpha = float(operator.options["alpha"])

    def of(x: Value, y: FileTensor) -> Callable[[np.ndarray], np.ndarray]:
        above, below = x.scale / y.scale, x.scale * alpha / y.scale
        return fixed_point.leaky(above, below, x.zero_point, y.zero_point)

    _function(network, operator, of)


def prelu(network: Network, operator: FileOperator) -> None:
    x, result, alpha = network.value(operator), network.result(operator), network.constant(operator, 1)
    check_type(result)
    if alpha is None or alpha.data is None:
        raise MalformedError("PRELU has no slopes")
    check_type(alpha)
    slopes = alpha.data.reshape(-1).astype(np.int64) - alpha.zero_point
    if (
        alpha.data.ndim > len(x.shape)
        or len(slopes) not in (1, x.shape[-1])
        or alpha.shape[-1:] not in ((), (len(slopes),))
    ):
        raise Refused("PRELU whose slopes differ from pixel to pixel")
    try:
        made = [
            fixed_point.leaky(
                x.scale / result.scale, x.scale * alpha.scale / result.scale, x.zero_point, result.zero_point, slope
            )
            for slope in slopes.tolist()
        ]
    except ValueError as error:
        raise MalformedError(f"PRELU scales by {error}") from error
    bounds = RANGES[result.dtype]
    table = np.stack([fixed_point.table(of, *bounds, signed=x.dtype == "int8") for of in made])
    x = replace(x, source=network.read(x), places=None)
    network.set(operator, network.mapped(x, table if len(made) > 1 else table[0], result, result.name))


CONVERTERS = {
    "QUANTIZE": requantise,
    "RELU": clamp,
    "RELU_N1_TO_1": clamp,
    "RELU6": clamp,
    "LOGISTIC": logistic,
    "TANH": tanh,
    "HARD_SWISH": hard_swish,
    "LEAKY_RELU": leaky_relu,
    "PRELU": prelu,
}
