"""Depthwise convolution in NCHW with columns of stride 1 or 2, straight from the rows of the input; and what follows.

1. The lanes are neighbouring outputs of a row. Rows are cut where the set of taps that meet the input changes, so a row
   of taps in the border is left out.
2. Vectors of the row's ends, which meet the border, are shuffled together from what lies in the row and zeros; with
   stride 2 every vector is the even or odd elements of two. Nothing is copied, no border is made.
3. Some rows are computed at once, a dilation apart, so that their taps meet the same rows: 3×3 reads 18 vectors for
   four outputs in place of 36. All taps of an output are added in registers, then the tail is applied and stored.
4. Of a small map whose rows fill no vector, all outputs are one vector, for which each tap is a shuffle of the map.
5. A vector that doesn't fit starts earlier and computes some elements again. Threads share the channels.

A copy with a border (`depthwise_nchw`) costs as much as the products: it has to be cleared, stored and read again at
odd addresses, which take two cycles each. It stays for strides of three and more and for large maps of narrow rows.

Registers: four sums, and the weights as far as there are any left; two sums where there are 16 registers.
3×3 on 32×56×56: 20 µs for any dilation up to 7, with stride 2: 8 to 10; `depthwise_nchw`: 40 to 44 and 18 to 23, on one
core. 32×16×16 with stride 2: 0.9 and 8.
AMD EPYC (Zen 4, AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-25.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.window import Cut
from tvmflow.schedules.convolutions import (
    Convolution,
    Expr,
    fitting,
    kernel,
    read_convolution,
    starts,
    unfuse,
    vectors_of,
    worth_threads,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_PRODUCTS = 2000
"""Products of vectors in the code of a kernel."""


MOST_PIXELS = 32
"""Pixels of a map that is held in registers whole."""


def depthwise_rows(func: tirx.PrimFunc, target: Target, tile: int | None = None) -> Schedule | None:
    """`tile` is how many rows are computed at once where there are enough, by default as many as registers allow."""
    possible = tiles(func, target)
    if not possible:
        return None
    conv = read_convolution(func)
    assert conv is not None
    lanes, parallel = _lanes(conv, target), worth_threads(conv.macs, target)
    return Schedule(_loops(conv, tile or possible[0], lanes, parallel) if lanes >= 4 else _maps(conv, parallel))


def tiles(func: tirx.PrimFunc, target: Target) -> list[int]:
    """What `tile` may be for this kernel, the default first."""
    conv = read_convolution(func)
    if conv is None or not conv.depthwise or conv.stride[1] > 2:
        return []
    if _lanes(conv, target) < 4:
        return [1] if math.prod(conv.size) <= MOST_PIXELS and math.prod(conv.out_size) >= 4 else []
    most = 4 if max(rows * columns for rows, columns in vectors_of(target).tiles) > 16 else 2
    possible = range(most, 0, -1)
    return [rows for rows in possible if _products(conv, rows, _lanes(conv, target)) <= MOST_PRODUCTS]


def _lanes(conv: Convolution, target: Target) -> int:
    """Outputs of a vector, all of whose inputs two vectors of a row hold."""
    lanes = fitting(vectors_of(target).lanes, conv.out_size[1])
    while conv.stride[1] * (lanes - 1) >= conv.size[1]:
        lanes //= 2
    return lanes


def _products(conv: Convolution, together: int, lanes: int) -> int:
    """Products of vectors in the code."""
    down = sum(len(taps) * rows_together(conv, cut, together)[0] for cut in conv.window.cuts(0) for taps in [cut[2]])
    return down * conv.kernel[1] * len(_columns(conv, lanes))


def rows_together(conv: Convolution, cut: Cut, most: int) -> tuple[int, int]:
    """How many rows of a cut are computed at once, and how far they lie apart: their taps meet the same rows."""
    _, height, taps = cut
    step = conv.dilation[0] // math.gcd(conv.dilation[0], conv.stride[0])

    def cost(count: int) -> int:
        met = {row * step * conv.stride[0] + tap * conv.dilation[0] for row in range(count) for tap in taps}
        groups = math.ceil(height / (count * step)) * step if count > 1 else height
        return groups * (2 * len(met) + count * len(taps))

    best = min((count for count in range(1, most + 1) if count == 1 or count * step <= height), key=cost)
    return best, step if best > 1 else 1


Columns = tuple[int, int, bool]
"""First output, how many vectors, and whether all that they read lies within the row."""


def _columns(conv: Convolution, lanes: int) -> list[Columns]:
    """The vectors of a row of outputs; those that read no border are together."""
    length, width = conv.out_size[1], conv.size[1]
    found: list[Columns] = []
    for index in range(math.ceil(length / lanes)):
        first = min(index * lanes, length - lanes)
        low = first * conv.stride[1] - conv.pad[1]
        high = low + (conv.kernel[1] - 1) * conv.dilation[1] + conv.stride[1] * lanes
        inner = low - (conv.stride[1] - 1) >= 0 and high <= width
        if found and inner and found[-1][2] and first == found[-1][0] + lanes * found[-1][1]:
            found[-1] = (found[-1][0], found[-1][1] + 1, True)
        else:
            found.append((first, 1, inner))
    return found


def _loops(conv: Convolution, most: int, lanes: int, parallel: bool) -> tirx.PrimFunc:
    with kernel(conv.func) as builder:
        sums = [T.sblock_alloc_buffer((lanes,), "float32") for _ in range(most)]
        with (T.parallel if parallel else T.serial)(0, conv.batch * conv.channels) as index:
            n, c = unfuse(index, conv.batch, conv.channels)
            for cut in conv.window.cuts(0):
                together, step = rows_together(conv, cut, most)
                groups, start = starts(cut[1], together * step)
                with T.serial(0, groups * step) as group:
                    y0 = cut[0] + start(tirx.floordiv(group, step)) + tirx.floormod(group, step)
                    rows = [y0 + row * step for row in range(together)]
                    for first, count, inner in _columns(conv, lanes):
                        if inner:
                            with T.serial(0, count) as vector:
                                _vector(conv, sums, (n, c), (rows, cut[2]), (first + vector * lanes, lanes, True))
                        else:
                            _vector(conv, sums, (n, c), (rows, cut[2]), (first, lanes, False))
    return builder.get()


def _maps(conv: Convolution, parallel: bool) -> tirx.PrimFunc:
    """Maps whose rows fill no vector: the whole map is one, from which each tap takes what it meets."""
    (height, width), pixels, outputs = conv.size, math.prod(conv.size), math.prod(conv.out_size)
    with kernel(conv.func) as builder:
        image = T.sblock_alloc_buffer((pixels,), "float32")
        total = T.sblock_alloc_buffer((outputs,), "float32")
        with (T.parallel if parallel else T.serial)(0, conv.batch * conv.channels) as index:
            n, c = unfuse(index, conv.batch, conv.channels)
            with T.vectorized(0, pixels) as lane:
                T.buffer_store(image, conv.data[n, c, tirx.floordiv(lane, width), tirx.floormod(lane, width)], [lane])
            value = T.Broadcast(T.float32(0), outputs)
            for r, s in itertools.product(*map(range, conv.kernel)):
                rows, columns = (
                    [out * conv.stride[axis] + tap * conv.dilation[axis] - conv.pad[axis] for out in range(length)]
                    for axis, tap, length in ((0, r, conv.out_size[0]), (1, s, conv.out_size[1]))
                )
                met = [
                    y * width + x if 0 <= y < height and 0 <= x < width else pixels
                    for y, x in itertools.product(rows, columns)
                ]
                if any(pixel < pixels for pixel in met):
                    taken = T.Shuffle([image[T.ramp(0, 1, pixels)], T.Broadcast(T.float32(0), pixels)], met)
                    value = value + taken * T.Broadcast(conv.weight[c, 0, r, s], outputs)
            T.buffer_store(total, value, [T.ramp(0, 1, outputs)])
            with T.vectorized(0, outputs) as lane:
                place = n, c, tirx.floordiv(lane, conv.out_size[1]), tirx.floormod(lane, conv.out_size[1])
                T.buffer_store(conv.output, conv.finish(total[lane], place), place)
    return builder.get()


def _vector(
    conv: Convolution,
    sums: Sequence[tirx.Buffer],
    image: tuple[Expr, Expr],
    rows: tuple[Sequence[Expr], tuple[int, ...]],
    columns: tuple[Expr, int, bool],
) -> None:
    """Emit one vector of some rows: these and their taps; its first column, its lanes, and whether it is inner."""
    (outputs, taps), (x0, lanes, inner) = rows, columns
    for row, total in zip(outputs, sums, strict=False):
        terms = []
        for r in taps:
            y = row * conv.stride[0] + r * conv.dilation[0] - conv.pad[0]
            for s in range(conv.kernel[1]):
                value = (_inner if inner else _outer)(conv, (*image, y), x0, s, lanes)
                if value is not None:
                    terms.append(value * T.Broadcast(conv.weight[image[1], 0, r, s], lanes))
        value = functools.reduce(operator.add, terms) if terms else T.Broadcast(T.float32(0), lanes)
        T.buffer_store(total, value, [T.ramp(0, 1, lanes)])
    for row, total in zip(outputs, sums, strict=False):
        with T.vectorized(0, lanes) as lane:
            place = (*image, row, x0 + lane)
            T.buffer_store(conv.output, conv.finish(total[lane], place), place)


def _inner(conv: Convolution, row: tuple[Expr, ...], x0: Expr, s: int, lanes: int) -> Expr:
    """What a tap meets for a vector of outputs whose taps all meet the input."""
    at = x0 * conv.stride[1] + s * conv.dilation[1] - conv.pad[1]
    if conv.stride[1] == 1:
        return _load(conv, row, at, lanes)
    odd = s % 2 if conv.dilation[1] == 1 else 0  # of neighbouring taps, one takes what the other leaves
    both = [_load(conv, row, at - odd + half, lanes) for half in (0, lanes)]
    return T.Shuffle(both, [2 * lane + odd for lane in range(lanes)])


def _outer(conv: Convolution, row: tuple[Expr, ...], x0: int, s: int, lanes: int) -> Expr | None:
    """What a tap meets for a vector of outputs, zero where that is the border; None if it is nothing else."""
    stride, width = conv.stride[1], conv.size[1]
    met = [(x0 + lane) * stride + s * conv.dilation[1] - conv.pad[1] for lane in range(lanes)]
    if not any(0 <= column < width for column in met):
        return None
    low = min(max(met[0], 0), width - lanes)
    if met == list(range(low, low + lanes)):
        return _load(conv, row, low, lanes)
    high = min(low + lanes, width - lanes)
    zero = T.Broadcast(T.float32(0), lanes)

    def element(column: int) -> int:
        if not 0 <= column < width:
            return 2 * lanes
        return column - low if low <= column < low + lanes else lanes + column - high

    return T.Shuffle([_load(conv, row, low, lanes), _load(conv, row, high, lanes), zero], list(map(element, met)))


def _load(conv: Convolution, row: tuple[Expr, ...], first: Expr, lanes: int) -> Expr:
    return conv.data[(*row, T.ramp(first, 1, lanes))]
