"""1×1 convolution of stride 1 in NCHW with whatever element-wise work follows it: a matrix product, weights × pixels.

1. Rows and columns are one axis of pixels; a tile of the output is some channels × some whole vectors of pixels.
2. Its sums stay in registers: for each input channel, each vector of pixels is loaded once and each weight once,
   spread over the lanes.
3. Bias, ReLU and the like are applied to the registers, and the tile is stored once.
4. The last tile of an axis that tiles don't divide starts earlier and computes some elements again, so every tile is
   whole and no lane is ever masked. Two threads may store the same value at the same place.
5. The larger operand is walked once, in the outer loop; threads share the tiles.

A vector of 7 or 14 lanes for maps of 7×7 would do no work twice, but LLVM spills its lanes one by one: 12 GFLOP/s
against 100. Weights packed by tile would spare the strided walk through them; that is a layout of the whole graph.

From 32→64 at 32×32 to 1024→1024 at 4×4: 100 to 160 GFLOP/s on one core; TVM's default: 24 to 1.9.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-23.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    Convolution,
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

if TYPE_CHECKING:
    from tvmflow.spec import Target


def pointwise_nchw(func: tirx.PrimFunc, target: Target, tile: tuple[int, int] | None = None) -> Schedule | None:
    """`tile` is (channels, vectors of pixels), by default the one that should need the fewest instructions."""
    conv = _read(func)
    if conv is None:
        return None
    pixels, registers = math.prod(conv.size), vectors_of(target)
    lanes = fitting(registers.lanes, pixels)
    if lanes < 4:
        return None  # nothing to fill a vector with
    rows, vectors = tile or cheapest_tile(conv.channels, pixels, lanes, registers)
    return Schedule(_loops(conv, rows, vectors, lanes, registers.unroll, worth_threads(conv.macs, target)))


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, int]]:
    """What `tile` may be for this kernel."""
    conv, registers = _read(func), vectors_of(target)
    if conv is None:
        return []
    pixels = math.prod(conv.size)
    return every_tile(conv.channels, pixels, fitting(registers.lanes, pixels), registers)


def _read(func: tirx.PrimFunc) -> Convolution | None:
    conv = read_convolution(func)
    if conv is None or conv.depthwise or conv.kernel != (1, 1) or conv.stride != (1, 1) or conv.size != conv.out_size:
        return None
    return conv if conv.pad == (0, 0) else None


def _loops(conv: Convolution, rows: int, vectors: int, lanes: int, unroll: int, parallel: bool) -> tirx.PrimFunc:
    pixels = math.prod(conv.size)
    width = conv.size[1]
    channel_tiles, channel_start = starts(conv.channels, rows)
    pixel_tiles, pixel_start = starts(pixels, vectors * lanes)
    weights_outside = conv.channels >= pixels
    unroll = next(step for step in range(unroll, 0, -1) if conv.in_channels % step == 0)

    def at(pixel):
        return tirx.floordiv(pixel, width), tirx.floormod(pixel, width)

    with kernel(conv.func) as builder:
        total = T.sblock_alloc_buffer((rows, vectors, lanes), "float32", scope="local")
        with (T.parallel if parallel else T.serial)(0, conv.batch * channel_tiles * pixel_tiles) as index:
            if weights_outside:
                n, channel_tile, pixel_tile = unfuse(index, conv.batch, channel_tiles, pixel_tiles)
            else:
                n, pixel_tile, channel_tile = unfuse(index, conv.batch, pixel_tiles, channel_tiles)
            f0, p0 = channel_start(channel_tile), pixel_start(pixel_tile)
            with T.unroll(0, rows) as f, T.unroll(0, vectors) as v, T.vectorized(0, lanes) as lane:
                T.buffer_store(total, T.float32(0), [f, v, lane])
            with T.serial(0, conv.in_channels // unroll) as step, T.unroll(0, unroll) as more:
                c = step * unroll + more
                with T.unroll(0, rows) as f, T.unroll(0, vectors) as v, T.vectorized(0, lanes) as lane:
                    y, x = at(p0 + v * lanes + lane)
                    product = conv.data[n, c, y, x] * conv.weight[f0 + f, c, 0, 0]
                    T.buffer_store(total, total[f, v, lane] + product, [f, v, lane])
            with T.unroll(0, rows) as f, T.unroll(0, vectors) as v, T.vectorized(0, lanes) as lane:
                place = (n, f0 + f, *at(p0 + v * lanes + lane))
                T.buffer_store(conv.output, conv.finish(total[f, v, lane], place), place)
    return builder.get()
