"""Pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.convolutions import SPATIAL, window_pads
from tvmflow.network.onnx_nodes.node import Node, constant, dtype_of, is_float, padded, reshape, shape_of

MAXIMA = {1: op.nn.max_pool1d, 2: op.nn.max_pool2d, 3: op.nn.max_pool3d}
AVERAGES = {1: op.nn.avg_pool1d, 2: op.nn.avg_pool2d, 3: op.nn.avg_pool3d}


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a pool looks at: `pads` are the file's own borders, `ends` those behind that the last windows reach into."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[int]
    ends: Sequence[int]
    outputs: Sequence[int]

    @property
    def arguments(self) -> dict:
        spatial = len(self.kernel)
        return {
            "pool_size": list(self.kernel),
            "strides": list(self.strides),
            "dilation": list(self.dilations),
            "padding": [*self.pads[:spatial], *self.ends],
            "layout": f"NC{SPATIAL[spatial]}",
        }


def window_of(node: Node, data: relax.Expr) -> Window:
    extents = shape_of(data)[2:]
    if len(extents) not in MAXIMA:
        raise node.refusal(f"it is over {len(extents)} dimensions instead of 1, 2 or 3")
    kernel = node.get("kernel_shape")
    strides = node.get("strides") or [1] * len(kernel)
    dilations = node.get("dilations") or [1] * len(kernel)
    pads = window_pads(node, extents, kernel, strides, dilations)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    outputs, ends = [], []
    for axis, extent in enumerate(extents):
        begin, end, stride = pads[axis], pads[axis + len(kernel)], strides[axis]
        steps = (extent + begin + end - reach[axis]) / stride
        if node.get("ceil_mode", 0) and node.get("auto_pad", "NOTSET") in ("NOTSET", ""):
            count = math.ceil(steps) + 1
            count -= (count - 1) * stride >= extent + begin  # a window that begins behind the data
            end = max(0, (count - 1) * stride + reach[axis] - extent - begin)
        else:
            count = math.floor(steps) + 1
        outputs.append(count)
        ends.append(end)
    return Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads, ends=ends, outputs=outputs)


def max_pool(node: Node) -> relax.Expr | tuple[relax.Expr, relax.Expr]:
    data = node.inputs[0]
    window = window_of(node, data)
    if node.results == 1 and is_float(node.dtype()):
        return MAXIMA[len(window.kernel)](data, **window.arguments)
    return _max_and_indices(node, data, window)


def _max_and_indices(node: Node, data: relax.Expr, window: Window) -> relax.Expr | tuple[relax.Expr, relax.Expr]:
    """Where the largest of each window is: of the window's taps, each a strided view, the first that is largest."""
    dtype = dtype_of(data)
    lowest = -math.inf if is_float(dtype) else int(np.iinfo(dtype).min)
    spatial = len(window.kernel)
    extents = shape_of(data)[2:]
    bordered = node.bind(padded(data, [0, 0, *window.pads[:spatial]], [0, 0, *window.ends], lowest))
    taps, places = [], []
    places_in_order = np.arange(math.prod(extents), dtype="int64")
    by_columns = node.get("storage_order", 0)
    order = places_in_order.reshape(extents[::-1]).T if by_columns else places_in_order.reshape(extents)
    for tap in itertools.product(*map(range, window.kernel)):
        begins = [offset * dilation for offset, dilation in zip(tap, window.dilations, strict=True)]
        stops = [
            begin + (count - 1) * stride + 1
            for begin, count, stride in zip(begins, window.outputs, window.strides, strict=True)
        ]
        axes = list(range(2, 2 + spatial))
        taps.append(op.strided_slice(bordered, axes, begins, stops, list(window.strides), assume_inbound=True))
        rows = [
            np.clip(np.arange(begin, stop, stride) - pad, 0, extent - 1)
            for begin, stop, stride, pad, extent in zip(
                begins, stops, window.strides, window.pads[:spatial], extents, strict=True
            )
        ]
        places.append(order[np.ix_(*rows)])
    most, where = node.bind(taps[0]), constant(places[0][None, None])
    for tap, place in zip(taps[1:], places[1:], strict=True):
        tap = node.bind(tap)
        larger = node.bind(op.greater(tap, most))
        where = node.bind(op.where(larger, constant(place[None, None]), where))
        most = node.bind(op.where(larger, tap, most))
    if node.results == 1:
        return most
    n, c = node.shape()[:2]
    planes = np.arange(n * c, dtype="int64").reshape(n, c, *[1] * spatial) * math.prod(extents)
    return most, op.add(op.broadcast_to(where, shape_of(most)), constant(planes))


def average_pool(node: Node) -> relax.Expr:
    """A window that reaches behind the border counts no more than is there, whatever `count_include_pad` says."""
    data, border = node.inputs[0], None
    if data in node.borders and not node.get("ceil_mode", 0) and node.get("auto_pad", "NOTSET") in ("NOTSET", ""):
        data, border = node.borders[data]
    window = window_of(node, node.inputs[0])
    pool = AVERAGES[len(window.kernel)]
    own = list(window.pads)[len(window.kernel) :]
    if border is not None and not any(window.pads):  # zeros that the file put there itself: they count
        spatial = len(window.kernel)
        arguments = {**window.arguments, "padding": [*border[:spatial], *border[spatial:]]}
        return pool(data, **arguments, count_include_pad=True)
    data = node.inputs[0]
    if list(window.ends) == own:
        return pool(data, **window.arguments, count_include_pad=bool(node.get("count_include_pad", 0)))
    averaged = node.bind(pool(data, **window.arguments, count_include_pad=True))
    return op.multiply(averaged, constant(math.prod(window.kernel) / _counts(node, window), dtype_of(data)))


def _counts(node: Node, window: Window) -> np.ndarray:
    """How many elements each window has that count, as 1×1×outputs."""
    counts = np.ones((1, 1))
    for axis, extent in enumerate(node.shape()[2:]):
        begin, end = window.pads[axis], window.pads[axis + len(window.kernel)]
        starts = np.arange(window.outputs[axis])[:, None] * window.strides[axis] - begin
        taps = starts + np.arange(window.kernel[axis]) * window.dilations[axis]
        inside = (taps < extent + end) if node.get("count_include_pad", 0) else (taps >= 0) & (taps < extent)
        counts = counts[..., None] * inside.sum(1)
    return np.maximum(counts, 1)


def lp_pool(node: Node) -> relax.Expr:
    p, data = node.get("p", 2), node.inputs[0]
    window = window_of(node, data)
    powered = node.bind(_powered(node, data, p))
    averaged = AVERAGES[len(window.kernel)](powered, **window.arguments, count_include_pad=True)
    return _rooted(node, op.multiply(averaged, node.like(math.prod(window.kernel))), p)


def _powered(node: Node, data: relax.Expr, p: float) -> relax.Expr:
    return op.multiply(data, data) if p == 2 else op.power(op.abs(data), node.like(p)) if p != 1 else op.abs(data)


def _rooted(node: Node, summed: relax.Expr, p: float) -> relax.Expr:
    return op.sqrt(summed) if p == 2 else op.power(summed, node.like(1 / p)) if p != 1 else summed


def _spatial(node: Node) -> list[int]:
    return list(range(2, len(node.shape())))


def global_average_pool(node: Node) -> relax.Expr:
    return op.mean(node.inputs[0], _spatial(node), True)


def global_max_pool(node: Node) -> relax.Expr:
    return op.max(node.inputs[0], _spatial(node), True)


def global_lp_pool(node: Node) -> relax.Expr:
    p = node.get("p", 2)
    return _rooted(node, op.sum(_powered(node, node.inputs[0], p), _spatial(node), True), p)


def max_unpool(node: Node) -> relax.Expr:
    """Values go back to where their indices say; the rest is zero."""
    kernel = node.get("kernel_shape")
    strides, pads = node.get("strides") or [1] * len(kernel), node.get("pads") or [0] * (2 * len(kernel))
    natural = [
        (dim - 1) * stride + size - pads[axis] - pads[axis + len(kernel)]
        for axis, (dim, stride, size) in enumerate(zip(node.shape()[2:], strides, kernel, strict=True))
    ]
    shape = (*node.shape()[:2], *natural)
    wanted = node.integers(2, "output_shape")
    if wanted is not None and tuple(wanted) != shape:
        raise node.refusal("its output_shape is not that of its windows")
    zeros = constant(np.zeros(math.prod(shape)), node.dtype())
    flat, places = (node.bind(reshape(node.inputs[index], (math.prod(node.shape()),))) for index in (0, 1))
    return reshape(node.bind(op.scatter_elements(zeros, places, flat, 0)), shape)
