"""Depthwise convolution with its channels in blocks, or two of them one after the other; what follows each as well.

1. The lanes are channels. Each axis of the output is cut where the set of taps that meet the input changes: the first
   rows miss the upper taps, the last ones the lower. Within a cut no tap meets the border, so there is no border to
   make, no bound to check, and nothing is computed of it: of a dilation of 5 on 8×8 a third is left.
2. All taps of an output are added in registers, whose loads are whole vectors; the tail is applied and stored.
3. Of two convolutions, the first stores a few channels of the whole map into a buffer that the second reads at once.
4. Of large kernels, that would be too much code. The rows of taps are a loop then, which begins later at the upper
   border and ends earlier at the lower, and some neighbouring outputs of a row are a tile: each vector of weights is
   loaded once for all of them, and each of the input once for a row of taps.
5. Threads share the vectors of channels, and of large kernels the rows as well.

Lanes over the pixels of a row (`depthwise_nchw`) need a copy with a border, and maps of 4×4 don't fill them. Composing
the two filters into one is no option: what the first computes beyond the border is cut off, and 9×9 taps are more than
9 + 9. An infinite weight times a border would be NaN; that is lost.

3×3 of dilation 5 on 128×16×16: 6 µs; with a plain 3×3 behind it: 9 µs; `depthwise_nchw`: 16 and 29 µs, on one core.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-23.
7×7 on 64×56×56: 226 µs, `depthwise_rows`: 302; 13×13 on 96×24×24: 325 and 422, on one core of a busy machine.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-30.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.window import Cut
from tvmflow.schedules.convolutions import (
    Convolution,
    Expr,
    blocked,
    kernel,
    live_rows,
    most_pixels,
    read_convolutions,
    starts,
    unfuse,
    vectors_of,
    worth_threads,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_PRODUCTS = 400
"""Products in the code of one convolution: 5×5 taps have 361, as each cut has code of its own."""
LONGEST_ROWS = 400
"""Products of a row of taps in the code of one convolution: 15×15 taps with 8 outputs a tile have 288."""

MOST_PIXELS = 8
"""Outputs of a tile, of any processor."""

BUFFER_BYTES = 64 << 10  # in the L2 cache, with the input and the output


def depthwise_blocked(func: tirx.PrimFunc, target: Target, tile: int | None = None) -> Schedule | None:
    """`tile` is the number of vectors of channels that are done at a time, by default one."""
    possible = tiles(func, target)
    if not possible or (tile is not None and tile not in possible):
        return None
    convs = read_convolutions(func)
    lanes = math.gcd(vectors_of(target).lanes, convs[0].out_block)
    parallel = worth_threads(sum(conv.macs for conv in convs), target)
    if not _is_short(convs[0]):
        return Schedule(_row_loops(convs[0], lanes, most_pixels(vectors_of(target), 1), parallel))
    return Schedule(_loops(convs, (tile or possible[0]) * lanes, lanes, parallel))


def tiles(func: tirx.PrimFunc, target: Target) -> list[int]:
    """What `tile` may be for this kernel, the default first."""
    convs = read_convolutions(func)
    if not 1 <= len(convs) <= 2 or not all(fits(conv) for conv in convs):
        return []
    block = convs[0].out_block
    if not block or any(
        length != block for conv in convs for length in (conv.data_block, conv.weight_block, conv.out_block)
    ):
        return []
    lanes = math.gcd(vectors_of(target).lanes, block)
    if lanes < 4:
        return []
    if not all(map(_is_short, convs)):
        return [1] if len(convs) == 1 else []
    possible = [vectors for vectors in (1, 2, 4) if block % (vectors * lanes) == 0]
    return [vectors for vectors in possible if len(convs) == 1 or fuses(convs[0], convs[1], vectors * lanes)]


def fits(conv: Convolution) -> bool:
    """Whether the rule can serve this kernel once its tensors have their channels in blocks."""
    return conv.depthwise and (_is_short(conv) or _row_products(conv) <= LONGEST_ROWS)


def fuses(first: Convolution, second: Convolution, channels: int) -> bool:
    """Whether some channels of the result of the first of two convolutions fit into the buffer between them."""
    short = _is_short(first) and _is_short(second)
    return short and 4 * channels * math.prod(first.out_size) <= BUFFER_BYTES


def _is_short(conv: Convolution) -> bool:
    """Whether all taps of an output are written out."""
    vertical, horizontal = (sum(len(taps) for _, _, taps in conv.window.cuts(axis)) for axis in (0, 1))
    return vertical * horizontal <= MOST_PRODUCTS


def _row_products(conv: Convolution) -> int:
    """Products in the code if the rows of taps are a loop."""
    return sum(min(width, MOST_PIXELS) * len(taps) for _, width, taps in conv.window.cuts(1))


def _row_loops(conv: Convolution, lanes: int, most: int, parallel: bool) -> tirx.PrimFunc:
    """Of large kernels: some outputs of a row at a time, and a loop over the rows of taps."""
    groups, height = conv.channels // lanes, conv.out_size[0]
    with kernel(conv.func) as builder:
        # one buffer for each: TVM puts a kilobyte on the heap, and then the sums are no registers to LLVM
        sums = [T.sblock_alloc_buffer((lanes,), "float32") for _ in range(min(most, conv.out_size[1]))]
        with (T.parallel if parallel else T.serial)(0, conv.batch * groups * height) as index:
            n, group, y = unfuse(index, conv.batch, groups, height)
            begin, end = live_rows(conv, y)
            for left, width, horizontal in conv.window.cuts(1):
                pixels = min(width, most)
                count, start = starts(width, pixels)
                with T.serial(0, count) as tile:
                    x0 = left + start(tile)
                    _row_tile(conv, sums[:pixels], (n, group * lanes, y, x0), (begin, end), horizontal)
    return builder.get()


def _row_tile(
    conv: Convolution,
    sums: Sequence[tirx.Buffer],
    corner: tuple[Expr, Expr, Expr, Expr],
    rows: tuple[Expr, Expr],
    horizontal: Sequence[int],
) -> None:
    """Emit the loops of a tile. `corner` is its image, first channel, row and column."""
    n, channel, y, x0 = corner
    lanes = int(sums[0].shape[0])
    with T.vectorized(0, lanes) as lane:
        for total in sums:
            T.buffer_store(total, T.float32(0), [lane])
    with T.serial(*rows) as r, T.vectorized(0, lanes) as lane:
        down = y * conv.stride[0] + r * conv.dilation[0] - conv.pad[0]
        for s in horizontal:
            weight = conv.weight[blocked(conv.weight, channel + lane, 0, r, s, axis=0)]
            for x, total in enumerate(sums):
                right = (x0 + x) * conv.stride[1] + s * conv.dilation[1] - conv.pad[1]
                pixel = conv.data[blocked(conv.data, n, channel + lane, down, right)]
                T.buffer_store(total, total[lane] + pixel * weight, [lane])
    with T.vectorized(0, lanes) as lane:
        for x, total in enumerate(sums):
            place = (n, channel + lane, y, x0 + x)
            T.buffer_store(conv.output, conv.finish(total[lane], place), blocked(conv.output, *place))


def _loops(convs: Sequence[Convolution], channels: int, lanes: int, parallel: bool) -> tirx.PrimFunc:
    batch, groups = convs[0].batch, convs[0].channels // channels
    with kernel(convs[0].func) as builder:
        between: Expr = None
        if len(convs) == 2:
            between = T.sblock_alloc_buffer((*convs[0].out_size, channels), "float32", scope="local")
        with (T.parallel if parallel else T.serial)(0, batch * groups) as index:
            n, group = unfuse(index, batch, groups)

            def load(conv: Convolution) -> Callable[..., Expr]:
                if conv is convs[0]:
                    return lambda y, x, c: conv.data[blocked(conv.data, n, group * channels + c, y, x)]
                return lambda y, x, c: between[y, x, c]

            def store(conv: Convolution, value: Expr, y: Expr, x: Expr, c: Expr) -> None:
                place = (n, group * channels + c, y, x)
                if conv is convs[-1]:
                    T.buffer_store(conv.output, conv.finish(value, place), blocked(conv.output, *place))
                else:
                    T.buffer_store(between, conv.finish(value, place), [y, x, c])

            for conv in convs:
                for rows in conv.window.cuts(0):
                    for columns in conv.window.cuts(1):
                        _cut(conv, rows, columns, (group * channels, channels, lanes), load(conv), store)
    return builder.get()


def _cut(
    conv: Convolution,
    rows: Cut,
    columns: Cut,
    lanes_of: tuple[Expr, int, int],
    load: Callable[..., Expr],
    store: Callable[..., None],
) -> None:
    """Emit the loops of the outputs in these rows and columns."""
    (top, height, vertical), (left, width, horizontal) = rows, columns
    first, channels, lanes = lanes_of
    taps = [(r, s) for r in vertical for s in horizontal]
    with T.serial(0, height) as row, T.serial(0, width) as column:
        y, x = top + row, left + column
        with T.unroll(0, channels // lanes) as v, T.vectorized(0, lanes) as lane:
            c, total = v * lanes + lane, None
            for r, s in taps:
                down = y * conv.stride[0] + r * conv.dilation[0] - conv.pad[0]
                right = x * conv.stride[1] + s * conv.dilation[1] - conv.pad[1]
                product = load(down, right, c) * conv.weight[blocked(conv.weight, first + c, 0, r, s, axis=0)]
                total = product if total is None else total + product
            store(conv, T.float32(0) if total is None else total, y, x, c)
