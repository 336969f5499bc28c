"""Operators whose elements belong together: concatenation, softmax and its logarithm, normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer.draft import Draft
from tvmflow.integer.normalisations import Normalisation
from tvmflow.integer.operators import Box, Concat, Gather, LogSoftmax, Normalise, Softmax, boxed
from tvmflow.integer.views import (
    View,
    constant_of,
    covers,
    order_of,
    places_of_view,
    read_by,
    shape_of,
    unless_ordered,
)


def concat(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    rank = len(shape_of(call))
    axis = int(call.attrs.axis) % rank if call.attrs.axis is not None else 0
    place = {4: axis, 3: {0: 0, 1: 1, 2: 3}.get(axis), 2: axis if axis < 2 else None}.get(rank)
    fields = getattr(call.args[0], "fields", None)
    if fields is None:
        return None
    arrays = [constant_of(field) for field in fields]
    if not draft.finite and any(array is not None for array in arrays):
        return None
    views = [
        draft.view(draft.resolved(field)) if array is None else _constant(draft, array)
        for field, array in zip(fields, arrays, strict=True)
    ]
    if place and shape_of(call)[0] == 1:
        inputs = tuple(map(draft.laid, views))
    else:  # what is before the axis become channels, and what is behind it columns
        place, before, behind = 2, math.prod(shape_of(call)[:axis]), math.prod(shape_of(call)[axis + 1 :])
        inputs = tuple(draft.laid(view, (1, before, view.shape[axis], behind)) for view in views)
    if len(inputs) == 1:
        return View(layer=inputs[0], shape=shape_of(call))
    return View(layer=draft.append("concat", Concat(axis=place), inputs), shape=shape_of(call))


def _constant(draft: Draft, array: np.ndarray) -> View:
    """A tensor that is the same for all finite inputs: biases of a layer whose weights are 0."""
    first = next(iter(draft.shapes))
    one = draft.append("gather", Gather(places=np.zeros((1, 1, 1, 1), np.int32)), (first,))
    weight = np.zeros((array.size, 1, 1, 1))
    name = draft.append_weighted(one, kind="dense", weight=weight, bias=array.reshape(-1))
    return View(layer=name, shape=array.shape)


def log_softmax(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    return _along(draft, LogSoftmax, call, reads)


def softmax(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    return _along(draft, Softmax, call, reads)


def _along(draft: Draft, operator: type[Softmax | LogSoftmax], call: Any, reads: Sequence[Any]) -> View | None:
    shape = shape_of(call)
    axis = int(call.attrs.axis) % len(shape)
    place = {4: axis, 3: {1: 1, 2: 3}.get(axis), 2: {1: 1}.get(axis)}.get(len(shape))
    if shape[0] == 1 and place:
        read = draft.laid(draft.view(reads[0]))
    else:
        place = 2
        laid = (1, math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
        read = draft.laid(draft.view(reads[0]), laid)
    return View(layer=draft.append(operator.kind, operator(axis=place), (read,)), shape=shape)


def normalised(draft: Draft, var: Any, found: Normalisation) -> View:
    """Where boxes of the layer beneath are normalised, as it is; else what is normalised become its channels.

    That is also done where each place in a box has a weight of its own, as in layer normalisation.
    """
    view = draft.view(found.source)
    shape, count = view.shape, math.prod(view.shape[axis] for axis in found.axes)
    kept = [axis for axis in range(len(shape)) if axis not in found.axes]
    pixels = math.prod(shape[axis] for axis in kept)
    own = draft.shapes[view.layer]
    if covers(view, own):
        groups = order_of(tuple(1 if axis in found.axes else length for axis, length in enumerate(shape)))
        laid = np.empty(math.prod(own), np.int64)
        laid[places_of_view(view, own).reshape(-1)] = np.broadcast_to(groups, shape).reshape(-1)
        lengths = _boxes(laid.reshape(own[1:]), count)
        if lengths == (count, 1, 1) or (lengths is not None and not _weighs(draft, var, found.axes)):
            operator = _normalise(draft, lengths, found, own[1])
            return replace(view, layer=draft.append("normalise", operator, (view.layer,)), sole=True)
    order = order_of(shape).transpose(*found.axes, *kept).reshape(count, pixels)
    places = places_of_view(view, own).reshape(-1)[order]
    turned = View(layer=view.layer, shape=(1, count, 1, pixels), places=unless_ordered(places, own))
    operator = _normalise(draft, (count, 1, 1), found, count)
    name = draft.append("normalise", operator, (draft.laid(turned),))
    return View(layer=name, shape=shape, places=np.argsort(order.reshape(-1)).reshape(shape))


def _weighs(draft: Draft, var: Any, axes: Sequence[int]) -> bool:
    """Whether a constant that differs along these axes is multiplied with the variable, or added to it."""
    from tvm import relax

    rank = len(shape_of(var))
    readers = (value for value in draft.values if isinstance(value, relax.Call) and var in read_by(value))
    arrays = (constant_of(value) for reader in readers for value in reader.args)
    shapes = [(*[1] * (rank - array.ndim), *array.shape) for array in arrays if array is not None]
    return any(shape[axis] > 1 for shape in shapes for axis in axes)


def _normalise(draft: Draft, lengths: Box, found: Normalisation, channels: int) -> Normalise:
    gamma, beta = np.ones(channels), np.zeros(channels)
    return Normalise(lengths=lengths, epsilon=found.epsilon, gamma=gamma, beta=beta)


def _boxes(groups: np.ndarray, count: int) -> Box | None:
    """The lengths of the boxes that the numbers of C×H×W are equal in, of `count` elements each, if they are boxes."""
    first = groups == groups[0, 0, 0]
    lengths = tuple(int(first.any(tuple(other for other in range(3) if other != axis)).sum()) for axis in range(3))
    whole = all(size % length == 0 for size, length in zip(groups.shape, lengths, strict=True))
    if math.prod(lengths) != count or not whole:
        return None
    apart = boxed(groups[None], (lengths[0], lengths[1], lengths[2]))
    alike = (apart == apart[:, :, :1, :, :1, :, :1]).all()
    return (lengths[0], lengths[1], lengths[2]) if alike else None


CONVERTERS: dict[str, Callable[[Draft, Any, Sequence[Any]], View | None]] = {
    "concat": concat,
    "nn.softmax": softmax,
    "nn.log_softmax": log_softmax,
}
