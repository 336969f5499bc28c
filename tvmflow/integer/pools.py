"""Averages, maxima and interpolations of Relax become layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer import probe
from tvmflow.integer.draft import Draft
from tvmflow.integer.network import canonical
from tvmflow.integer.operators import Function, Gather, MaxPool, Resample, Shape, Sum
from tvmflow.integer.views import View, added, constant_of, order_of, places_of_view, shape_of, unless_ordered
from tvmflow.integer.window import Window


def adaptive_average(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    return _average(draft, call, reads, (2, 3)) if shape_of(call)[2:] == (1, 1) else None


def mean(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    rank = len(shape_of(call.args[0]))
    axes = _axes(call, rank)
    inside = {4: {0: 0, 1: 1, 2: 2, 3: 3}, 3: {0: 0, 1: 1, 2: 3}, 2: {0: 0, 1: 1}}.get(rank, {})
    found = {inside.get(axis, 1) for axis in axes} - {0}
    batch = shape_of(call.args[0])[0]
    if found == {1} and rank <= 4 and batch == 1:
        return _channel_mean(draft, call, reads)
    if found and 1 not in found and rank <= 4 and batch == 1:
        return _average(draft, call, reads, tuple(sorted(found)))
    count = math.prod(shape_of(call.args[0])[axis] for axis in axes)
    return _weighted_rows(draft, draft.view(reads[0]), axes, 1 / count, shape_of(call))


def total(draft: Draft, call: Any, reads: Sequence[Any]) -> View:
    view = draft.view(reads[0])
    return _weighted_rows(draft, view, _axes(call, len(view.shape)), 1.0, shape_of(call))


def _axes(call: Any, rank: int) -> tuple[int, ...]:
    """Of a reduction; all of them where it names none."""
    if call.attrs.axis is None:
        return tuple(range(rank))
    return tuple(sorted({int(axis) % rank for axis in call.attrs.axis}))


def _weighted_rows(draft: Draft, view: View, axes: Sequence[int], weight: float, shape: Shape) -> View:
    """What lies along some axes, each times a number, is added up."""
    read, count = _rows(draft, view, axes)
    if count == 1:
        return View(layer=read, shape=shape)
    channels = draft.shapes[read][1]
    name = draft.append_weighted(
        read, kind="conv2d", weight=np.full((channels, 1, count, 1), weight), stride=(count, 1), groups=channels
    )
    return View(layer=name, shape=shape)


def _rows(draft: Draft, view: View, axes: Sequence[int]) -> tuple[str, int]:
    """A tensor in which what lies along these axes is a channel's only column, and how long it is."""
    kept = [axis for axis in range(len(view.shape)) if axis not in axes]
    count = math.prod(view.shape[axis] for axis in axes)
    own = draft.shapes[view.layer]
    places = places_of_view(view, own).reshape(view.shape).transpose(*kept, *axes).reshape(-1, count)
    turned = replace(view, shape=(1, len(places), count, 1), places=unless_ordered(places, own))
    return draft.laid(turned, turned.shape), count


NORMS: dict[Callable[[np.ndarray], np.ndarray], probe.Reduce] = {
    np.square: lambda x, axes: np.square(x).sum(axes),
    np.abs: lambda x, axes: np.abs(x).sum(axes),
}
"""What is added up by the norms of order 2 and 1, and the sums."""


def norm(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """The sums of a norm, of what is a function of each element; what is done to the sum follows."""
    view = draft.view(reads[0])
    for term, sums in NORMS.items():
        axes = probe.axes_of(draft.module, call, view.shape, reads[0], sums)
        if axes is not None:
            name = draft.append("function", Function(real=term), (draft.laid(view),))
            return _weighted_rows(draft, View(layer=name, shape=view.shape), axes, 1.0, shape_of(call))
    return None


def _channel_mean(draft: Draft, call: Any, reads: Sequence[Any]) -> View:
    read = draft.laid(draft.view(reads[0]))
    channels = draft.shapes[read][1]
    name = draft.append_weighted(read, kind="conv2d", weight=np.full((1, channels, 1, 1), 1 / channels))
    return View(layer=name, shape=shape_of(call))


def _average(draft: Draft, call: Any, reads: Sequence[Any], axes: Sequence[int]) -> View:
    """Over whole rows, columns or both."""
    read = draft.laid(draft.view(reads[0]))
    _, channels, *size = draft.shapes[read]
    window = [size[axis - 2] if axis in axes or size[axis - 2] == 1 else 1 for axis in (2, 3)]
    if window == [1, 1]:
        return View(layer=read, shape=shape_of(call), sole=draft.views[reads[0]].sole and draft.uses[reads[0]] == 1)
    whole = window == size
    name = draft.append_weighted(
        read,
        kind="pool" if whole else "conv2d",
        weight=np.full((channels, 1, *window), 1 / math.prod(window)),
        stride=(1, 1) if whole else tuple(window),
        groups=channels,
    )
    return View(layer=name, shape=shape_of(call))


def average_pool(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    view = draft.view(reads[0])
    window = _window(draft, call, canonical(view.shape)[2:])
    if window is None:
        return None
    counted = bool(call.attrs.count_include_pad) or not any(window.padding)
    if not counted or not _within(window):
        axes = [_average_taps(window, axis, include=counted) for axis in (0, 1)]
        name = draft.append("resample", Resample(rows=axes[0], columns=axes[1]), (draft.laid(view),))
        return View(layer=name, shape=shape_of(call))
    read, border = draft.bordered(view)
    channels, size = draft.shapes[read][1], draft.shapes[read][2:]
    padding = added(window.padding, border)
    whole = not any(padding) and window.kernel == size
    if whole and size == (1, 1):
        return View(layer=read, shape=shape_of(call), sole=view.sole and draft.uses[reads[0]] == 1)
    name = draft.append_weighted(
        read,
        kind="pool" if whole else "conv2d",
        weight=np.full((channels, 1, *window.kernel), 1 / math.prod(window.kernel)),
        stride=(1, 1) if whole else window.stride,
        padding=padding,
        dilation=window.dilation,
        groups=channels,
    )
    return View(layer=name, shape=shape_of(call))


def largest(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """The largest along some axes: of each channel's map as it lies, else of rows that are laid out for it."""
    return _largest(draft, call, reads[0])


def largest_alone(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """Of the places of the largest and what is there, the latter, if nobody reads the former."""
    return _largest(draft, call, reads[0], field=1) if draft.fields == {1} else None


def _largest(draft: Draft, call: Any, read: Any, field: int | None = None) -> View | None:
    view = draft.view(read)
    shape = tuple(int(dim) for dim in (call.ty if field is None else call.ty.fields[field]).shape.values)
    axes = probe.axes_of(draft.module, call, view.shape, read, np.max, field)
    if axes is None:
        return None
    rank = len(view.shape)
    if view.shape[0] == 1 and rank in (3, 4) and axes == tuple(at for at in range(2, rank) if view.shape[at] > 1):
        read = draft.laid(view)
        size = (draft.shapes[read][2], draft.shapes[read][3])
    else:
        read, count = _rows(draft, view, axes)
        size = (count, 1)
    name = draft.append("max_pool", MaxPool(window=Window(kernel=size, size=size)), (read,))
    return View(layer=name, shape=shape)


def listed_max_pool(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """The largest of windows that tables list, outputs × places, one table for each axis.

    Unless they lie one after the other, as they are listed, what they read is laid out so.
    """
    view = draft.view(reads[0])
    tables = [array.astype(np.int64) for array in map(constant_of, call.args[1].fields[1:]) if array is not None]
    if len(tables) not in (1, 2) or len(view.shape) != len(tables) + 2 or not hasattr(call.ty, "shape"):
        return None
    if len(tables) == 1:
        tables.insert(0, np.zeros((1, 1), np.int64))
    read = draft.laid(view)
    shape = draft.shapes[read]
    if any(((table < 0) | (table >= length)).any() for table, length in zip(tables, shape[2:], strict=True)):
        return None
    rows, columns = (table.reshape(-1) for table in tables)
    places = order_of(shape)[:, :, rows][..., columns]
    if unless_ordered(places, shape) is not None:
        read = draft.append("gather", Gather(places=places), (read,))
    kernel = (tables[0].shape[1], tables[1].shape[1])
    window = Window(kernel=kernel, stride=kernel, size=(len(rows), len(columns)))
    return View(layer=draft.append("max_pool", MaxPool(window=window), (read,)), shape=shape_of(call))


def max_pool(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    view = draft.view(reads[0])
    window = _window(draft, call, canonical(view.shape)[2:])
    if window is None:
        return None
    read, border = draft.bordered(view, -math.inf)
    if any(border):
        window = replace(
            window,
            padding=added(window.padding, border),
            size=(draft.shapes[read][2], draft.shapes[read][3]),
        )
    operator = MaxPool(window=window)
    if not operator.out_shape(draft.shapes[read]):
        return None
    return View(layer=draft.append("max_pool", operator, (read,)), shape=shape_of(call))


def _window(draft: Draft, call: Any, size: Sequence[int]) -> Window | None:
    """Of a pool; borders reach as far as its last windows do."""
    options = call.attrs
    if options.layout not in ("NCHW", "NCW"):
        return None
    kernel, stride, dilation = (
        [int(number) for number in numbers] for numbers in (options.pool_size, options.strides, options.dilation)
    )
    padding = [int(number) for number in options.padding]
    if len(kernel) == 1:
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
        padding = [0, padding[0], 0, padding[-1]]
    out = canonical(shape_of(call))[2:]
    for axis in (0, 1):
        reach = (out[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        padding[axis + 2] = max(padding[axis + 2], reach - size[axis] - padding[axis])
    first = (kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1])
    window = Window(
        kernel=first[0],
        stride=first[1],
        dilation=first[2],
        padding=(padding[0], padding[1], padding[2], padding[3]),
        size=(size[0], size[1]),
    )
    return window if window.out_size() == tuple(out) else None


def resampled(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """What our converters of interpolations and averages made: tables of places and weights."""
    tables = probe.tables_of(draft.module, call)
    view = draft.view(reads[0])
    shape = canonical(view.shape)
    if tables is None or len(view.shape) not in (3, 4):
        return None
    own = {2: 2, 3: 3} if len(view.shape) == 4 else {3: 2}
    if not set(tables) <= set(own.values()):
        draft.reason = "of channels"
        return None
    axes = []
    for axis in (2, 3):
        table = tables.get(own[axis]) if axis in own else None
        axes.append(table or (np.arange(shape[axis], dtype=np.int32)[:, None], np.ones((shape[axis], 1))))
    if all(places.shape[1] == 1 and (weights == 1).all() for places, weights in axes):
        rows, columns = (places[:, 0] for places, _ in axes)
        chosen = places_of_view(view, draft.shapes[view.layer]).reshape(shape)[:, :, rows][..., columns]
        sole = view.sole and draft.uses[reads[0]] == 1
        return View(layer=view.layer, shape=shape_of(call), places=chosen, sole=sole)
    operator = Resample(rows=axes[0], columns=axes[1])
    return View(layer=draft.append("resample", operator, (draft.laid(view),)), shape=shape_of(call))


def _average_taps(window: Window, axis: int, *, include: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the outputs along an axis read, and how much of each: one over how many there are."""
    outs, size = window.out_size()[axis], window.size[axis]
    places = np.zeros((outs, window.kernel[axis]), np.int32)
    weights = np.zeros((outs, window.kernel[axis]))
    for out in range(outs):
        inside = [place for place in window.places(axis, out) if 0 <= place < size]
        places[out, : len(inside)] = inside
        weights[out, : len(inside)] = 1 / (window.kernel[axis] if include else max(1, len(inside)))
    return places, weights


def _within(window: Window) -> bool:
    """Whether the borders are what the network says, and not longer for the last windows."""
    return window.padding[0] >= window.padding[2] and window.padding[1] >= window.padding[3]


def plain_mean(draft: Draft, call: Any, reads: Sequence[Any]) -> View:
    """Our kernel's, which keeps its axes with length 1."""
    view = draft.view(reads[0])
    axes = _flattened(view.shape, shape_of(call))
    return _weighted_rows(draft, view, axes, 1 / math.prod(view.shape[axis] for axis in axes), shape_of(call))


def variance(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """Our kernel's: the mean square of how far off the second tensor the first is; axes keep length 1."""
    if len(reads) != 2:
        return None
    view, middle = (draft.view(read) for read in reads)
    rows, count = _rows(draft, view, _flattened(view.shape, shape_of(call)))
    channels = draft.shapes[rows][1]
    apart = draft.append("sum", Sum(signs=(1, -1)), (rows, draft.laid(middle, (1, channels, 1, 1))))
    square = draft.append("function", Function(real=np.square), (apart,))
    columns = View(layer=square, shape=(1, channels, count, 1))
    return _weighted_rows(draft, columns, (2,), 1 / count, shape_of(call))


def _flattened(shape: Shape, kept: Shape) -> tuple[int, ...]:
    """The axes that have become 1."""
    return tuple(axis for axis, (length, left) in enumerate(zip(shape, kept, strict=True)) if length != left)


CONVERTERS: dict[str, Callable[[Draft, Any, Sequence[Any]], View | None]] = {
    "mean": mean,
    "sum": total,
    "kernel.norm": norm,
    "kernel.mean": plain_mean,
    "kernel.variance": variance,
    "max": largest,
    "kernel.max": largest,
    "kernel.argmax": largest_alone,
    "kernel.max_pool": listed_max_pool,
    "kernel.amax": largest,
    "nn.adaptive_avg_pool2d": adaptive_average,
    "nn.avg_pool1d": average_pool,
    "nn.avg_pool2d": average_pool,
    "nn.max_pool1d": max_pool,
    "nn.max_pool2d": max_pool,
}
