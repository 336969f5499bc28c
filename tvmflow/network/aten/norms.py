"""Normalisations over elements of the input: mean first, then the mean of squared distances from it.

E[x²] − E[x]², which TVM's own operators compute, loses all digits where the mean is large beside the deviation: pixels
of 200 ± 2 come out 0.5 % off, a mean of 3,000 gives the root of a negative number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvmflow.network.aten.call import Call, Converter, axes_of, dtype_of, shape_of, size


def native_layer_norm(call: Call) -> list[Any]:
    """(x − mean) ÷ √(variance + eps) · weight + bias over the last axes."""
    x, normalized, weight, bias, eps = call.arguments
    rank = len(shape_of(x))
    axes = list(range(rank - len(normalized), rank))
    normal, middle, inverse = standardise(call, x, axes, eps)
    return [affine(call, normal, weight, bias, tuple(normalized)), middle, inverse]


def native_group_norm(call: Call) -> list[Any]:
    """Mean and variance of each image's group of channels, and a weight for each channel."""
    from tvm import relax

    x, weight, bias, batch, channels, _, groups, eps = call.arguments
    shape = shape_of(x)
    grouped = call.emit(relax.op.reshape(x, (batch, groups, channels // groups, *shape[2:])))
    normal, middle, inverse = standardise(call, grouped, list(range(2, len(shape) + 1)), eps)
    normal = call.emit(relax.op.reshape(normal, shape))
    flat = [call.emit(relax.op.reshape(value, (batch, groups))) for value in (middle, inverse)]
    return [affine(call, normal, weight, bias, (channels, *[1] * (len(shape) - 2))), *flat]


def batch_norm_without_statistics(call: Call) -> list[Any]:
    """A batch norm that has no running statistics normalises by those of its input. Instance norm becomes this."""
    x, weight, bias, _, _, eps = call.arguments
    shape = shape_of(x)
    normal, middle, inverse = standardise(call, x, [0, *range(2, len(shape))], eps)
    return [affine(call, normal, weight, bias, (shape[1], *[1] * (len(shape) - 2))), middle, inverse]


def batch_norm(call: Call) -> list[Any]:
    """By running statistics."""
    import numpy as np
    from tvm import relax

    x, weight, bias, mean, variance, momentum, eps = call.arguments
    channels = shape_of(x)[1]
    ones, zeros = np.ones(channels, dtype_of(x)), np.zeros(channels, dtype_of(x))
    gamma, beta = call.tensor(ones if weight is None else weight), call.tensor(zeros if bias is None else bias)
    result = relax.op.nn.batch_norm(
        x, gamma, beta, mean, variance, axis=1, epsilon=eps, momentum=momentum, training=False
    )
    return [call.emit(call.emit(result)[0])]


def standardise(call: Call, x: Any, axes: Sequence[int], eps: float) -> tuple[Any, Any, Any]:
    """(x − mean) ÷ √(variance + eps), mean and 1 ÷ √(variance + eps); the last two keep the axes with length 1."""
    from tvm import relax

    middle, variance = moments(call, x, axes)
    dtype = dtype_of(x)
    inverse = call.emit(relax.op.rsqrt(call.emit(relax.op.add(variance, relax.const(eps, dtype)))))
    centred = call.emit(relax.op.subtract(x, middle))
    return call.emit(relax.op.multiply(centred, inverse)), middle, inverse


def affine(call: Call, normal: Any, weight: Any, bias: Any, shape: tuple[int, ...]) -> Any:
    """· weight + bias, each of which may be missing, of that shape."""
    from tvm import relax

    if weight is not None:
        normal = call.emit(relax.op.multiply(normal, call.emit(relax.op.reshape(weight, shape))))
    if bias is not None:
        normal = call.emit(relax.op.add(normal, call.emit(relax.op.reshape(bias, shape))))
    return normal


def moments(call: Call, x: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Mean and variance over `axes`, which stay with length 1. Sums are of float64: a long one must not drift."""
    count = size(shape_of(x), axes)
    middle = call.compute("mean", lambda x: _mean(x, axes, count), x)
    return middle, call.compute("variance", lambda x, middle: _mean(x, axes, count, middle), x, middle)


def _mean(x: Any, axes: Sequence[int], count: int, middle: Any = None) -> Any:
    """Of x, or of its squared distances from `middle`. Divided at the end: the mean of equal numbers is that number."""
    from tvm import te, tirx

    reduced = {axis: te.reduce_axis((0, x.shape[axis]), name=f"r{axis}") for axis in axes}
    shape = [1 if axis in reduced else dim for axis, dim in enumerate(x.shape)]

    def total(*index: Any) -> Any:
        value = x[tuple(reduced.get(axis, at) for axis, at in enumerate(index))]
        if middle is not None:
            distance = value - middle[index]
            value = distance * distance
        return te.sum(value.astype("float64"), list(reduced.values()))

    sums = te.compute(shape, total, name="sums")
    return te.compute(shape, lambda *index: (sums[index] / tirx.const(count, "float64")).astype(x.dtype), name="mean")


def variance(call: Call) -> Any:
    """aten.var.correction: squared distances from the mean, summed, ÷ (count − correction)."""
    return _variance_and_mean(call)[0]


def variance_and_mean(call: Call) -> list[Any]:
    """aten.var_mean.correction."""
    return list(_variance_and_mean(call))


def _variance_and_mean(call: Call) -> tuple[Any, Any]:
    from tvm import relax

    x, dim, correction, keep = call.arguments
    axes = axes_of(dim, len(shape_of(x)))
    middle, spread = moments(call, x, axes)
    count, correction = size(shape_of(x), axes), 1 if correction is None else correction
    if correction:
        factor = count / (count - correction) if count > correction else math.inf
        spread = call.emit(relax.op.multiply(spread, relax.const(factor, dtype_of(x))))
    if keep:
        return spread, middle
    return call.emit(relax.op.reshape(spread, call.shape)), call.emit(relax.op.reshape(middle, call.shape))


OPERATORS: dict[str, Converter] = {
    "native_layer_norm.default": native_layer_norm,
    "native_group_norm.default": native_group_norm,
    "_native_batch_norm_legit.no_stats": batch_norm_without_statistics,
    "_native_batch_norm_legit_no_training.default": batch_norm,
    "var.correction": variance,
    "var_mean.correction": variance_and_mean,
}
