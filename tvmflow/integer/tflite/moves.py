"""Operators of a file that move values: no layer is made of them before somebody reads the result."""

from __future__ import annotations

import math

import numpy as np

from tvmflow.integer.operators import OUTSIDE
from tvmflow.integer.tflite.model import MAX_ELEMENTS, FileOperator
from tvmflow.integer.tflite.values import Network, Refused
from tvmflow.system.untrusted import MalformedError


def reshape(network: Network, operator: FileOperator) -> None:
    """To the shape that the file says its result has; SQUEEZE and EXPAND_DIMS are such too."""
    x, shape = network.value(operator), network.result(operator).shape
    if math.prod(shape) != math.prod(x.shape):
        raise MalformedError(f"{operator.kind} makes {math.prod(shape):,} values of {math.prod(x.shape):,}")
    if shape == x.shape:
        network.set(operator, x)
        return
    network.set(operator, network.moved_to(x, network.places(x).reshape(shape)))


def transpose(network: Network, operator: FileOperator) -> None:
    x, order = network.value(operator), network.integers(operator, 1)
    if sorted(order) != list(range(len(x.shape))):
        raise MalformedError(f"TRANSPOSE has the order {order} for {len(x.shape)} dimensions")
    network.set(operator, network.moved_to(x, network.places(x).transpose(order)))


def pad(network: Network, operator: FileOperator) -> None:
    x, widths = network.value(operator), network.integers(operator, 1)
    rank = len(x.shape)
    if len(widths) != 2 * rank or min(widths, default=0) < 0:
        raise MalformedError(f"PAD has {len(widths)} widths for {rank} dimensions, or negative ones")
    if len(operator.inputs) > 2:
        with_ = network.constant(operator, 2)
        if with_ is not None and (
            with_.data is None or with_.data.size != 1 or with_.data.reshape(-1)[0] != x.zero_point
        ):
            raise Refused(f"{operator.kind} with another value than 0")
    pairs = [(widths[2 * axis], widths[2 * axis + 1]) for axis in range(rank)]
    wanted = math.prod(sum(pair) + length for pair, length in zip(pairs, x.shape, strict=True))
    if wanted > MAX_ELEMENTS:
        raise MalformedError(f"PAD makes {wanted:,} values")
    result = network.result(operator)
    if (x.dtype, x.scale, x.zero_point) != (result.dtype, result.scale, result.zero_point):
        raise Refused("PAD that changes the scale")
    network.set(operator, network.moved_to(x, np.pad(network.places(x), pairs, constant_values=OUTSIDE)))


def strided_slice(network: Network, operator: FileOperator) -> None:
    x = network.value(operator)
    begin, end, steps = (network.integers(operator, place) for place in (1, 2, 3))
    masks = {name: operator.integer(f"{name}_mask") for name in ("begin", "end", "shrink_axis")}
    if operator.integer("ellipsis_mask") or operator.integer("new_axis_mask") or operator.integer("offset"):
        raise Refused("STRIDED_SLICE with an ellipsis, new axes, or lengths in place of ends")
    if not len(begin) == len(end) == len(steps) <= len(x.shape) or 0 in steps:
        raise MalformedError("STRIDED_SLICE has places that don't fit")
    index: list[slice | int] = []
    for axis, (first, last, step) in enumerate(zip(begin, end, steps, strict=True)):
        bit = 1 << axis
        if masks["shrink_axis"] & bit:
            if not -x.shape[axis] <= first < x.shape[axis]:
                raise MalformedError("STRIDED_SLICE takes a place that isn't there")
            index.append(first)
            continue
        index.append(slice(None if masks["begin"] & bit else first, None if masks["end"] & bit else last, step))
    network.set(operator, network.moved_to(x, np.asarray(network.places(x)[tuple(index)])))


def slice_(network: Network, operator: FileOperator) -> None:
    x, begin, size = network.value(operator), network.integers(operator, 1), network.integers(operator, 2)
    if not len(begin) == len(size) == len(x.shape):
        raise MalformedError("SLICE has places that don't fit")
    index = []
    for first, count, length in zip(begin, size, x.shape, strict=True):
        last = length if count == -1 else first + count
        if not 0 <= first <= last <= length:
            raise MalformedError("SLICE goes beyond its tensor")
        index.append(slice(first, last))
    network.set(operator, network.moved_to(x, network.places(x)[tuple(index)]))


def split(network: Network, operator: FileOperator) -> None:
    """SPLIT has the axis first, and parts that are all as long."""
    axis = network.integers(operator, 0)
    _split(network, operator, 1, axis, None)


def split_v(network: Network, operator: FileOperator) -> None:
    _split(network, operator, 0, network.integers(operator, 2), network.integers(operator, 1))


def _split(network: Network, operator: FileOperator, place: int, axes: list[int], sizes: list[int] | None) -> None:
    x, count = network.value(operator, place), len(operator.outputs)
    rank = len(x.shape)
    if len(axes) != 1 or not -rank <= axes[0] < rank or not count:
        raise MalformedError(f"{operator.kind} along an axis that isn't there")
    axis = axes[0] % rank
    length = x.shape[axis]
    parts = [length // count] * count if sizes is None else list(sizes)
    if parts.count(-1) == 1:
        parts[parts.index(-1)] = length - sum(parts) - 1
    if len(parts) != count or sum(parts) != length or min(parts) < 0:
        raise MalformedError(f"{operator.kind} makes {count} parts of {length} that don't fit")
    places, begin = network.places(x), 0
    for number, part in enumerate(parts):
        index = [slice(None)] * rank
        index[axis] = slice(begin, begin + part)
        network.set(operator, network.moved_to(x, places[tuple(index)]), number)
        begin += part


CONVERTERS = {
    "RESHAPE": reshape,
    "SQUEEZE": reshape,
    "EXPAND_DIMS": reshape,
    "TRANSPOSE": transpose,
    "PAD": pad,
    "PADV2": pad,
    "STRIDED_SLICE": strided_slice,
    "SLICE": slice_,
    "SPLIT": split,
    "SPLIT_V": split_v,
}
