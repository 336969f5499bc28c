"""Convolution over all channels in NCHW that isn't pointwise: 3×3 and the like, any stride, dilation and border.

1. The input is copied with its border of zeros, columns parted by phase of the stride, so that every tap reads
   neighbouring elements for neighbouring outputs. An input that needs no border and no stride is read as it is.
2. A tile of the output is some channels × some whole vectors along a row. Its sums stay in registers through all input
   channels and taps; each vector is loaded once and each weight once.
3. The element-wise tail is applied to the registers, and the tile is stored once.
4. The last tile of an axis that tiles don't divide starts earlier and computes some elements again.
5. Threads share first the channels of the copy, then the tiles.

A matrix product over unrolled patches would copy the input once for each tap. Winograd's transform does fewer products
but changes the rounding, and its weights are a layout of their own. `conv_blocked` goes first and is faster where
weights are constants and the channels part into blocks.

3×3, 128→128 at 28×28: 119 GFLOP/s, 512→512 at 7×7: 47, on one core; TVM's default: 1.8.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-23.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    INDEX_LIMIT,
    cheapest_tile,
    every_tile,
    fitting,
    kernel,
    read_convolution,
    starts,
    unfuse,
    vectors_of,
    worth_threads,
)
from tvmflow.schedules.patches import Patch

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_PRODUCTS = 512
"""Products of the innermost loop, which is unrolled: what keeps the code in the instruction cache."""


def direct_nchw(func: tirx.PrimFunc, target: Target, tile: tuple[int, int] | None = None) -> Schedule | None:
    """`tile` is (channels, vectors along a row), by default the one that should need the fewest instructions."""
    conv = read_convolution(func)
    if conv is None or conv.depthwise:
        return None
    window = Patch(conv)
    registers = vectors_of(target)
    lanes = fitting(registers.lanes, conv.out_size[1])
    if lanes < 4 or not window.taps or len(window.taps) > MOST_PRODUCTS // 4:
        return None
    elements = conv.batch * conv.in_channels * window.height(conv.out_size[0]) * window.pitch
    if elements >= INDEX_LIMIT:
        return None
    most = MOST_PRODUCTS // len(window.taps)
    rows, vectors = tile or cheapest_tile(conv.channels, conv.out_size[1], lanes, registers, most)
    return Schedule(_loops(window, rows, vectors, lanes, registers.lanes, worth_threads(conv.macs, target)))


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, int]]:
    """What `tile` may be for this kernel."""
    conv, registers = read_convolution(func), vectors_of(target)
    if conv is None or conv.depthwise or not (taps := Patch(conv).taps):
        return []
    lanes = fitting(registers.lanes, conv.out_size[1])
    return every_tile(conv.channels, conv.out_size[1], lanes, registers, MOST_PRODUCTS // len(taps))


def _loops(window: Patch, rows: int, vectors: int, lanes: int, native: int, parallel: bool) -> tirx.PrimFunc:
    conv = window.conv
    shared = T.parallel if parallel else T.serial
    height = window.height(conv.out_size[0])
    size = math.ceil(height * window.pitch / native) * native
    copied = window.bordered or conv.stride[1] > 1
    channel_tiles, channel_start = starts(conv.channels, rows)
    column_tiles, column_start = starts(conv.out_size[1], vectors * lanes)
    with kernel(conv.func) as builder:
        if copied:
            buffer = T.sblock_alloc_buffer((conv.batch, conv.in_channels, size), "float32")
            with shared(0, conv.batch * conv.in_channels) as index:
                n, c = unfuse(index, conv.batch, conv.in_channels)

                def store(place, value):
                    T.buffer_store(buffer, value, [n, c, place])

                if window.bordered:
                    window.clear(store, size, native)
                with T.serial(max(0, -window.above), min(height, conv.size[0] - window.above)) as row:
                    window.copy_row(store, row, (n, c, row + window.above), native)

        def read(n, c, tap, y, x):
            if copied:
                return buffer[n, c, window.place(tap, y, x)]
            down, right = tap[0] * conv.dilation[0] - conv.pad[0], tap[1] * conv.dilation[1] - conv.pad[1]
            return conv.data[n, c, y * conv.stride[0] + down, x + right]

        total = T.sblock_alloc_buffer((rows, vectors, lanes), "float32", scope="local")
        tiles = (conv.batch, channel_tiles, conv.out_size[0], column_tiles)
        with shared(0, math.prod(tiles)) as index:
            n, channel_tile, y, column_tile = unfuse(index, *tiles)
            f0, x0 = channel_start(channel_tile), column_start(column_tile)
            with T.unroll(0, rows) as f, T.unroll(0, vectors) as v, T.vectorized(0, lanes) as lane:
                T.buffer_store(total, T.float32(0), [f, v, lane])
            with T.serial(0, conv.in_channels) as c:
                for tap in window.taps:
                    with T.unroll(0, rows) as f, T.unroll(0, vectors) as v, T.vectorized(0, lanes) as lane:
                        product = read(n, c, tap, y, x0 + v * lanes + lane) * conv.weight[(f0 + f, c, *tap)]
                        T.buffer_store(total, total[f, v, lane] + product, [f, v, lane])
            with T.unroll(0, rows) as f, T.unroll(0, vectors) as v, T.vectorized(0, lanes) as lane:
                place = (n, f0 + f, y, x0 + v * lanes + lane)
                T.buffer_store(conv.output, conv.finish(total[f, v, lane], place), place)
    return builder.get()
