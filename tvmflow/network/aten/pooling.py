"""Pooling, and the windows of it: averages whose divisor PyTorch counts in its own way, maxima with their places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmflow.network.aten.call import Call, Converter, dtype_of, each, shape_of
from tvmflow.network.aten.reductions import extreme, first_extreme, maximum_of
from tvmflow.network.aten.resizing import resample, taps


def average_pool(call: Call) -> Any:
    """aten.avg_pool1d to 3d. TVM's operator where it means the same: without borders, or all of them counted.

    Elsewhere the number of elements that PyTorch divides by depends on the place, in each axis by itself, so averages
    are sums with weights that are read off PyTorch. A `divisor_override` divides all sums by one number.
    """
    from tvm import relax

    x, named = call.arguments[0], call.named
    kernel, spatial, outer = _window(call, x)
    stride = each(named["stride"], spatial) if named["stride"] else kernel
    padding, divisor = each(named["padding"], spatial), named.get("divisor_override")
    full = _with_batch(call, x, spatial)
    plain = not named["ceil_mode"] and (named["count_include_pad"] or not any(padding)) and is_float(full)
    if plain:
        operator = {1: relax.op.nn.avg_pool1d, 2: relax.op.nn.avg_pool2d, 3: relax.op.nn.avg_pool3d}[spatial]
        result = call.emit(operator(full, kernel, stride, (*padding, *padding), count_include_pad=True))
        if divisor:
            factor = relax.const(math.prod(kernel) / divisor, dtype_of(x))
            result = call.emit(relax.op.multiply(result, factor))
        return _without_batch(call, result, outer)

    def along(axis: int) -> Callable[[Any], Any]:
        def pool(columns: Any) -> Any:
            """In two dimensions, which have `divisor_override`; the other axis has length 1."""
            import torch

            lone = torch.ops.aten.avg_pool2d.default(
                columns.reshape(1, columns.shape[1], -1, 1),
                [kernel[axis], 1],
                [stride[axis], 1],
                [padding[axis], 0],
                named["ceil_mode"],
                named["count_include_pad"],
                1 if divisor else None,
            )
            return lone if not divisor else lone / (divisor if axis == 0 else 1)

        return pool

    tables = [taps(along(axis), shape_of(full), axis + 2) for axis in range(spatial)]
    return _without_batch(call, resample(call, full, tables), outer)


def adaptive_average(call: Call) -> Any:
    """Averages of windows that begin at ⌊o · in ÷ out⌋ and end at ⌈(o + 1) · in ÷ out⌉."""
    import torch
    from tvm import relax

    x, given = call.arguments
    spatial = int(call.overload._schema.name.split("pool")[1][0])
    out = each(given, spatial)
    full, outer = _with_batch(call, x, spatial), len(shape_of(x)) - spatial
    sizes = shape_of(full)[2:]
    if spatial == 2 and out == (1, 1):
        return _without_batch(call, call.emit(relax.op.nn.adaptive_avg_pool2d(full, (1, 1))), outer)
    if all(size % count == 0 for size, count in zip(sizes, out, strict=True)):
        window = tuple(size // count for size, count in zip(sizes, out, strict=True))
        operator = {1: relax.op.nn.avg_pool1d, 2: relax.op.nn.avg_pool2d, 3: relax.op.nn.avg_pool3d}[spatial]
        return _without_batch(call, call.emit(operator(full, window, window)), outer)

    def along(axis: int) -> Callable[[Any], Any]:
        return lambda columns: torch.ops.aten.adaptive_avg_pool1d(columns.reshape(1, columns.shape[1], -1), [out[axis]])

    tables = [taps(along(axis), shape_of(full), axis + 2) for axis in range(spatial)]
    return _without_batch(call, resample(call, full, tables), outer)


def max_pool(call: Call) -> list[Any]:
    """Maxima, and their places if the network reads these. TVM's own operator wherever they aren't read."""
    from tvm import relax

    x, named = call.arguments[0], call.named
    kernel, spatial, outer = _window(call, x)
    stride = each(named["stride"], spatial) if named["stride"] else kernel
    padding, dilation = each(named["padding"], spatial), each(named["dilation"], spatial)
    full = _with_batch(call, x, spatial)
    counts = tuple(call.shape[-spatial:])
    sizes = shape_of(full)[2:]
    places = _reads_places(call)
    regular = [
        (size + 2 * pad - span * (width - 1) - 1) / step + 1
        for size, pad, span, width, step in zip(sizes, padding, dilation, kernel, stride, strict=True)
    ]
    tight = all(
        count == (math.ceil(number) if named["ceil_mode"] else math.floor(number))
        for count, number in zip(counts, regular, strict=True)
    )
    if tight and not places and is_float(full):
        operator = {1: relax.op.nn.max_pool1d, 2: relax.op.nn.max_pool2d, 3: relax.op.nn.max_pool3d}[spatial]
        result = operator(full, kernel, stride, (*padding, *padding), dilation, named["ceil_mode"])
        return [_without_batch(call, call.emit(result), outer)]
    starts = [
        np.arange(count)[:, None] * step - pad + np.arange(width) * span
        for count, step, pad, span, width in zip(counts, stride, padding, dilation, kernel, strict=True)
    ]
    return _maxima(call, full, starts, outer, places=places)


def adaptive_max_pool(call: Call) -> list[Any]:
    """Maxima of windows that begin at ⌊o · in ÷ out⌋ and end at ⌈(o + 1) · in ÷ out⌉."""
    x, given = call.arguments
    spatial = int(call.overload._schema.name.split("pool")[1][0])
    out = each(given, spatial)
    full, outer = _with_batch(call, x, spatial), len(shape_of(x)) - spatial
    windows = []
    for size, count in zip(shape_of(full)[2:], out, strict=True):
        first = np.arange(count) * size // count
        last = -(-(np.arange(count) + 1) * size // count)
        most = int((last - first).max())
        windows.append(np.minimum(first[:, None] + np.arange(most), last[:, None] - 1))  # shorter ones read their last
    return _maxima(call, full, windows, outer, places=_reads_places(call))


def _maxima(call: Call, x: Any, windows: Sequence[np.ndarray], outer: int, *, places: bool) -> list[Any]:
    """`windows[axis][o, t]`: which input an output reads; one off the map is none. NaN is above all."""
    from tvm import te, tirx

    sizes = shape_of(x)[2:]
    dtype = dtype_of(x)
    lowest = extreme(dtype, largest=False)

    def make(x: Any, *tables: Any) -> Any:
        steps = [te.reduce_axis((0, window.shape[1]), name=f"tap{axis}") for axis, window in enumerate(windows)]

        def at(index: Sequence[Any]) -> tuple[list[Any], Any]:
            found = [table[o, step] for table, o, step in zip(tables, index[2:], steps, strict=True)]
            bounds = [
                tirx.all(place >= 0, place < size)
                for place, size, window in zip(found, sizes, windows, strict=True)
                if window.min() < 0 or window.max() >= size
            ]
            return found, (tirx.all(*bounds) if bounds else None)

        def value(*index: Any) -> Any:
            found, inside = at(index)
            read = x[(*index[:2], *found)]
            return read if inside is None else tirx.if_then_else(inside, read, lowest)

        shape = (*x.shape[:2], *(len(window) for window in windows))
        if not places:
            return te.compute(
                shape, lambda *index: maximum_of(dtype, largest=True)(value(*index), axis=steps), name="maxima"
            )

        def place(*index: Any) -> Any:
            found, inside = at(index)
            flat: Any = tirx.const(0, "int64")
            for where, size in zip(found, sizes, strict=True):
                flat = flat * size + where.astype("int64")
            return flat if inside is None else tirx.if_then_else(inside, flat, tirx.const(-1, "int64"))

        first = first_extreme(dtype, largest=True, last_nan=True)
        indices, values = te.compute(
            shape, lambda *index: first((place(*index), value(*index)), axis=steps), name="maxima"
        )
        return [values, indices]

    tables = [window.astype(np.int32) for window in windows]
    result = call.compute("max_pool", make, x, *tables)
    if not places:
        return [_without_batch(call, result, outer)]
    return [_without_batch(call, call.emit(result[number]), outer) for number in range(2)]


def is_float(value: Any) -> bool:
    return "float" in dtype_of(value)


def _window(call: Call, x: Any) -> tuple[tuple[int, ...], int, int]:
    """Kernel, number of spatial axes, and how many axes the input has before them."""
    spatial = int(call.overload._schema.name.split("pool")[1][0])
    return each(call.named["kernel_size"], spatial), spatial, len(shape_of(x)) - spatial


def _reads_places(call: Call) -> bool:
    return any(user.args[1] == 1 for user in call.node.users if user.args[0] is call.node and len(user.args) > 1)


def _with_batch(call: Call, x: Any, spatial: int) -> Any:
    from tvm import relax

    return x if len(shape_of(x)) == spatial + 2 else call.emit(relax.op.expand_dims(x, 0))


def _without_batch(call: Call, result: Any, outer: int) -> Any:
    from tvm import relax

    return result if outer == 2 else call.emit(relax.op.squeeze(result, [0]))


def im2col(call: Call) -> Any:
    """nn.Unfold: each window's elements of all channels as one column."""
    from tvm import te, tirx

    x, kernel, dilation, padding, stride = call.arguments
    kernel, dilation, padding, stride = (each(value, 2) for value in (kernel, dilation, padding, stride))
    outer, full = len(shape_of(x)) - 2, _with_batch(call, x, 2)
    batch, channels, height, width = shape_of(full)
    counts = _positions((height, width), kernel, dilation, padding, stride)

    def make(x: Any) -> Any:
        def value(n: Any, row: Any, column: Any) -> Any:
            channel, tap = row // (kernel[0] * kernel[1]), row % (kernel[0] * kernel[1])
            y = column // counts[1] * stride[0] - padding[0] + tap // kernel[1] * dilation[0]
            z = column % counts[1] * stride[1] - padding[1] + tap % kernel[1] * dilation[1]
            inside = tirx.all(y >= 0, y < height, z >= 0, z < width)
            read = x[n, channel, y, z]
            return tirx.if_then_else(inside, read, tirx.const(0, x.dtype)) if any(padding) else read

        return te.compute((batch, channels * math.prod(kernel), math.prod(counts)), value, name="columns")

    return _without_batch(call, call.compute("im2col", make, full), outer)


def col2im(call: Call) -> Any:
    """nn.Fold: each pixel is the sum of all elements of columns that im2col would have taken from it."""
    from tvm import te, tirx

    x, out, kernel, dilation, padding, stride = call.arguments
    kernel, dilation, padding, stride = (each(value, 2) for value in (kernel, dilation, padding, stride))
    outer = len(shape_of(x))

    full = _with_batch(call, x, 1)
    batch, rows, _ = shape_of(full)
    counts = _positions(out, kernel, dilation, padding, stride)

    def make(x: Any) -> Any:
        down, right = (te.reduce_axis((0, size), name=name) for size, name in zip(kernel, ("ky", "kx"), strict=True))

        def value(n: Any, channel: Any, y: Any, z: Any) -> Any:
            top, left = y + padding[0] - down * dilation[0], z + padding[1] - right * dilation[1]
            at = top // stride[0] * counts[1] + left // stride[1]
            inside = tirx.all(
                top >= 0,
                left >= 0,
                top % stride[0] == 0,
                left % stride[1] == 0,
                top // stride[0] < counts[0],
                left // stride[1] < counts[1],
            )
            row = (channel * kernel[0] + down) * kernel[1] + right
            return te.sum(tirx.if_then_else(inside, x[n, row, at], tirx.const(0, x.dtype)), [down, right])

        return te.compute((batch, rows // math.prod(kernel), *out), value, name="image")

    return _without_batch(call, call.compute("col2im", make, full), 2 if outer == 3 else 1)


def _positions(
    sizes: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> tuple[int, ...]:
    return tuple(
        (size + 2 * pad - span * (width - 1) - 1) // step + 1
        for size, width, span, pad, step in zip(sizes, kernel, dilation, padding, stride, strict=True)
    )


OPERATORS: dict[str, Converter] = {
    "avg_pool1d.default": average_pool,
    "avg_pool2d.default": average_pool,
    "avg_pool3d.default": average_pool,
    "adaptive_avg_pool1d.default": adaptive_average,
    "_adaptive_avg_pool2d.default": adaptive_average,
    "_adaptive_avg_pool3d.default": adaptive_average,
    "max_pool2d_with_indices.default": max_pool,
    "max_pool3d_with_indices.default": max_pool,
    "adaptive_max_pool1d.default": adaptive_max_pool,
    "adaptive_max_pool2d.default": adaptive_max_pool,
    "adaptive_max_pool3d.default": adaptive_max_pool,
    "im2col.default": im2col,
    "col2im.default": col2im,
}
