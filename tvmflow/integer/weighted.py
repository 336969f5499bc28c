"""Convolutions, transposed ones and matrix products of Relax become layers with weights, or products of two tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer.draft import Draft
from tvmflow.integer.network import canonical
from tvmflow.integer.operators import MatMul, Shape
from tvmflow.integer.views import (
    View,
    added,
    constant_of,
    is_permutation,
    order_of,
    places_of_view,
    shape_of,
    unless_ordered,
)


def conv2d(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    options, weight = call.attrs, constant_of(call.args[1])
    plain = (options.data_layout, options.kernel_layout) in (("NCHW", "OIHW"), ("NCW", "OIW"))
    if not plain or weight is None:
        return None
    padding = [int(size) for size in options.padding]
    strides, dilation = ([int(size) for size in sizes] for sizes in (options.strides, options.dilation))
    if weight.ndim == 3:
        weight, strides, dilation = weight[:, :, None], [1, *strides], [1, *dilation]
        padding = [0, padding[0], 0, padding[-1]]
    read, border = draft.bordered(draft.view(reads[0]))
    name = draft.append_weighted(
        read,
        kind="conv2d",
        weight=weight,
        stride=tuple(strides),
        padding=added(padding, border),
        dilation=tuple(dilation),
        groups=int(options.groups),
    )
    return View(layer=name, shape=shape_of(call))


def conv2d_transpose(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """A convolution at every phase of the stride, whose results are interleaved.

    Output `s·q + p` sums the inputs `q − t` with the taps `p + border + s·t`; the outputs that lie in the border
    are left out when the phases are interleaved.
    """
    options, weight = call.attrs, constant_of(call.args[1])
    if weight is None or (options.data_layout, options.kernel_layout) not in (("NCHW", "IOHW"), ("NCW", "IOW")):
        return None
    strides, dilation = ([int(size) for size in sizes] for sizes in (options.strides, options.dilation))
    padding = [int(size) for size in options.padding]
    if weight.ndim == 3:
        weight, strides, dilation = weight[:, :, None], [1, *strides], [1, *dilation]
        padding = [0, padding[0], 0, padding[-1]]
    groups = int(options.groups)
    inputs, outputs = weight.shape[:2]
    # O×I/groups×KH×KW, taps with zeros between them where they are dilated
    grouped = weight.reshape(groups, inputs // groups, outputs, *weight.shape[2:]).transpose(0, 2, 1, 3, 4)
    weight = grouped.reshape(groups * outputs, inputs // groups, *weight.shape[2:])
    lengths = (d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True))
    spread = np.zeros((*weight.shape[:2], *lengths))
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    taps = [-(-length // stride) for length, stride in zip(spread.shape[2:], strides, strict=True)]
    phases = np.zeros((len(spread), *strides, spread.shape[1], *taps))
    for r, s in np.ndindex(*spread.shape[2:]):
        (down, p), (along, q) = divmod(r, strides[0]), divmod(s, strides[1])
        # a convolution reads forward, so the taps come in the other order
        phases[:, p, q, :, taps[0] - 1 - down, taps[1] - 1 - along] = spread[:, :, r, s]
    count = len(spread) * math.prod(strides)
    read = draft.laid(draft.view(reads[0]))
    # output_padding may ask for rows beyond the last that reads an input, which are the bias alone
    size = canonical(shape_of(call))[2:]
    missing = [
        max(0, padding[axis] + size[axis] - (draft.shapes[read][2 + axis] + taps[axis] - 1) * strides[axis])
        for axis in (0, 1)
    ]
    more = [-(-count // stride) for count, stride in zip(missing, strides, strict=True)]
    name = draft.append_weighted(
        read,
        kind="conv2d",
        weight=phases.reshape(count, spread.shape[1], *taps),
        padding=(taps[0] - 1, taps[1] - 1, taps[0] - 1 + more[0], taps[1] - 1 + more[1]),
        groups=groups,
    )
    _, _, height, width = draft.shapes[name]
    order = order_of(draft.shapes[name]).reshape(len(spread), *strides, height, width).transpose(0, 3, 1, 4, 2)
    order = order.reshape(1, len(spread), height * strides[0], width * strides[1])
    order = order[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return View(layer=name, shape=shape_of(call), places=order)


def matmul(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    first, weight = (constant_of(value) for value in call.args)
    if first is None and weight is None:
        return _product_of_two(draft, call, reads)
    if first is not None and math.prod(first.shape[:-2]) == 1 and len(shape_of(call)) == 3:
        # what mixes rows of 1×rows×columns: rows are the channels inside
        first = first.reshape(first.shape[-2:])
        read = draft.laid(draft.view(reads[0]))
        name = draft.append_weighted(read, kind="conv2d", weight=first[:, :, None, None])
        return View(layer=name, shape=shape_of(call))
    if weight is None:
        return None
    weights = weight.reshape(-1, *weight.shape[-2:])
    if (weights != weights[:1]).any():
        draft.reason = "with weights of each row's own"
        return None
    weight = weights[0]
    view = draft.view(reads[0])
    shape = view.shape
    if math.prod(shape) == shape[-1]:
        return _dense(draft, view, weight, shape_of(call))
    # pixel by pixel: channels come first inside
    pixels = math.prod(shape[:-1])
    places = places_of_view(view, draft.shapes[view.layer]).reshape(pixels, shape[-1]).T
    own = unless_ordered(places, draft.shapes[view.layer])
    turned = View(layer=view.layer, shape=(1, shape[-1], 1, pixels), places=own)
    name = draft.append_weighted(draft.laid(turned), kind="conv2d", weight=weight.T.reshape(*weight.T.shape, 1, 1))
    order = np.arange(weight.shape[1] * pixels).reshape(weight.shape[1], pixels).T
    return View(layer=name, shape=shape_of(call), places=order)


def _dense(draft: Draft, view: View, weight: np.ndarray, shape: Shape) -> View:
    """Over the whole map that lies beneath, wherever its elements went."""
    own: Shape = draft.shapes[view.layer]
    places = places_of_view(view, own).reshape(-1)
    if not is_permutation(places, math.prod(own)):
        read = draft.laid(replace(view, shape=(1, places.size)))
        own, places = draft.shapes[read], np.arange(places.size)
    else:
        read = view.layer
    columns = np.zeros((weight.shape[1], math.prod(own)))
    columns[:, places] = weight.T
    name = draft.append_weighted(
        read, kind="dense" if own[2:] == (1, 1) else "conv2d", weight=columns.reshape(-1, *own[1:])
    )
    return View(layer=name, shape=shape)


def _product_of_two(draft: Draft, call: Any, reads: Sequence[Any]) -> View | None:
    """Matrix by matrix: all dimensions before the last two are channels inside."""
    shapes = [shape_of(value) for value in call.args]
    batches = [math.prod(shape[:-2]) for shape in shapes]
    if min(map(len, shapes)) < 2 or batches[0] != batches[1]:
        draft.reason = "of matrices of which one is for several others"
        return None
    views = [draft.view(draft.resolved(value)) for value in call.args]
    first, second = (
        draft.laid(view, (1, batch, *shape[-2:])) for view, batch, shape in zip(views, batches, shapes, strict=True)
    )
    return View(layer=draft.append("matmul", MatMul(), (first, second)), shape=shape_of(call))


CONVERTERS: dict[str, Callable[[Draft, Any, Sequence[Any]], View | None]] = {
    "nn.conv1d": conv2d,
    "nn.conv2d": conv2d,
    "nn.conv1d_transpose": conv2d_transpose,
    "nn.conv2d_transpose": conv2d_transpose,
    "matmul": matmul,
}
