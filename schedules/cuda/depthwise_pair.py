"""Two depthwise convolutions in NCHW, of which the second alone reads the first, as one kernel.

1. A block has some channels and some rows of the last output. It computes what these need of the tensor between the
   two into shared memory, with the border of zeros that the second convolution meets, straight from global memory.
2. After one barrier its threads compute the outputs from there, `columns` side by side each.
3. Taps that meet nothing but the border are left out of both, and what follows either element by element is applied in
   registers.

The tensor between the two never leaves the multiprocessor, and there is one launch in place of two. Rows that two
blocks need are computed by both; on maps up to 32×32 a block has all rows of a channel.

Registers: the weights of one convolution and `columns` sums, under 40. Shared memory: channels × rows with borders, at
most what the board allows a block. Checked without a GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import Convolution, unfuse
from tvmflow.schedules.cuda._grid import (
    Expr,
    launch,
    live_taps,
    local,
    multiprocessors,
    pieces,
    read_convolutions,
    shared,
    shared_bytes,
    when,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_TAPS = 25
MOST_ROUNDS = 16
"""Rounds of a block's threads over the tensor between, which are unrolled."""

Tile = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Between:
    """What `rows` rows of the last output need of the tensor between, with the second convolution's border."""

    second: Convolution
    rows: int

    @property
    def height(self) -> int:
        return (self.rows - 1) * self.second.stride[0] + (self.second.kernel[0] - 1) * self.second.dilation[0] + 1

    @property
    def width(self) -> int:
        last = (self.second.out_size[1] - 1) * self.second.stride[1]
        return last + (self.second.kernel[1] - 1) * self.second.dilation[1] + 1


def depthwise_pair(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """`tile` is (channels, rows, columns, threads of a block)."""
    pair, possible = _read(func), tiles(func, target)
    if pair is None or not possible:
        return None
    return Schedule(_loops(func, *pair, tile or possible[0]))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel, the most promising first."""
    pair = _read(func)
    if pair is None:
        return []
    found = [
        (channels, rows, columns, threads)
        for channels in (1, 2, 4, 8, 16)
        for rows in dict.fromkeys((4, 8, 16, 32, pair[1].out_size[0]))
        for columns in (1, 2, 4)
        for threads in (64, 128, 256, 512)
        if _possible(pair[1], channels, rows, columns, threads, target)
    ]
    return sorted(found, key=functools.partial(_cost, *pair, multiprocessors(target)))


def pays(first: Convolution, second: Convolution, target: Target) -> bool:
    """Whether a kernel of both should take less time than two: if few rows have to be computed twice."""
    if not fits(first, second):
        return False
    whole = Between(second=second, rows=second.out_size[0])
    return 4 * whole.height * whole.width <= shared_bytes(target)


def fits(first: Convolution, second: Convolution) -> bool:
    """Whether this rule serves the two as one kernel."""
    taps = [len(live_taps(conv, 0)) * len(live_taps(conv, 1)) for conv in (first, second)]
    return first.depthwise and second.depthwise and all(0 < count <= MOST_TAPS for count in taps)


def _read(func: tirx.PrimFunc) -> tuple[Convolution, Convolution] | None:
    convs = read_convolutions(func)
    if len(convs) != 2:
        return None
    return (convs[0], convs[1]) if fits(*convs) else None


def _possible(second: Convolution, channels: int, rows: int, columns: int, threads: int, target: Target) -> bool:
    between = Between(second=second, rows=rows)
    elements = channels * between.height * between.width
    outputs = channels * rows * math.ceil(second.out_size[1] / columns)
    if rows > second.out_size[0] or columns > second.out_size[1] or channels > max(1, second.channels):
        return False
    return 4 * elements <= shared_bytes(target) and threads / 4 < max(outputs, 17) and elements <= MOST_ROUNDS * threads


def _cost(first: Convolution, second: Convolution, processors: int, tile: Tile) -> float:
    """Rounds of a warp on each multiprocessor, at most eight of them side by side."""
    channels, rows, columns, threads = tile
    between = Between(second=second, rows=rows)
    blocks = second.batch * math.ceil(second.channels / channels) * math.ceil(second.out_size[0] / rows)
    first_taps, second_taps = (len(live_taps(conv, 0)) * len(live_taps(conv, 1)) for conv in (first, second))
    before = math.ceil(channels * between.height * between.width / threads) * (first_taps + 8)
    after = math.ceil(channels * rows * math.ceil(second.out_size[1] / columns) / threads) * columns * (second_taps + 8)
    waves = math.ceil(blocks / processors)
    return waves * (before + after + 20) * max(4, threads / 32 * min(waves, 4)) / 4


def _loops(func: tirx.PrimFunc, first: Convolution, second: Convolution, tile: Tile) -> tirx.PrimFunc:
    channels, rows, columns, threads = tile
    between = Between(second=second, rows=rows)
    channel_groups, row_groups = math.ceil(second.channels / channels), math.ceil(second.out_size[0] / rows)
    across = math.ceil(second.out_size[1] / columns)
    with launch(func, second.batch * channel_groups * row_groups, threads) as (builder, block, thread):
        middle = shared(channels * between.height * between.width)
        taps, before = _taps(first), _taps(second)
        weights, total = local(len(taps)), local(1)
        second_weights, sums = local(len(before)), local(columns)
        n, channel_group, row_group = unfuse(block, second.batch, channel_groups, row_groups)
        c0, y0 = channel_group * channels, row_group * rows
        top = y0 * second.stride[0] - second.pad[0]
        some = [] if second.channels % channels == 0 else [lambda c: c0 + c < second.channels]
        for piece, condition in pieces(channels * between.height * between.width, threads, thread):
            c, row, column = unfuse(piece, channels, between.height, between.width)
            y, x = top + row, column - second.pad[1]
            inside = [y >= 0, y < first.out_size[0], x >= 0, x < first.out_size[1], *(test(c) for test in some)]
            with when(condition):
                T.buffer_store(total, T.float32(0), [0])
                with when(tirx.all(*inside)):
                    for place, (r, s) in enumerate(taps):
                        T.buffer_store(weights, first.weight[c0 + c, 0, r, s], [place])
                    for place, (r, s) in enumerate(taps):
                        value = _bordered(first, n, c0 + c, y, x, r, s)
                        T.buffer_store(total, total[0] + value * weights[place], [0])
                    T.buffer_store(total, first.finish(total[0], [n, c0 + c, y, x]), [0])
                T.buffer_store(middle, total[0], [piece])
        for piece, condition in pieces(channels * rows * across, threads, thread):
            c, row, tile_column = unfuse(piece, channels, rows, across)
            y, x0 = y0 + row, tile_column * columns
            inside = [] if condition is None else [condition]
            inside += [test(c) for test in some]
            inside += [] if second.out_size[0] % rows == 0 else [y < second.out_size[0]]
            with when(tirx.all(*inside) if inside else None):
                for place, (r, s) in enumerate(before):
                    T.buffer_store(second_weights, second.weight[c0 + c, 0, r, s], [place])
                for index in range(columns):
                    with when(None if second.out_size[1] % columns == 0 else x0 + index < second.out_size[1]):
                        for place, (r, s) in enumerate(before):
                            down = row * second.stride[0] + r * second.dilation[0]
                            right = (x0 + index) * second.stride[1] + s * second.dilation[1]
                            at = (c * between.height + down) * between.width + right
                            product = middle[at] * second_weights[place]
                            T.buffer_store(sums, product if place == 0 else sums[index] + product, [index])
                        where = [n, c0 + c, y, x0 + index]
                        T.buffer_store(second.output, second.finish(sums[index], where), where)
    return builder.get()


def _taps(conv: Convolution) -> list[tuple[int, int]]:
    return [(r, s) for r in live_taps(conv, 0) for s in live_taps(conv, 1)]


def _bordered(conv: Convolution, n: Expr, c: Expr, y: Expr, x: Expr, r: int, s: int) -> Expr:
    """What a tap of a convolution meets: an element of the input, or a zero of its border."""
    row = y * conv.stride[0] + r * conv.dilation[0] - conv.pad[0]
    column = x * conv.stride[1] + s * conv.dilation[1] - conv.pad[1]
    inside = tirx.all(row >= 0, row < conv.size[0], column >= 0, column < conv.size[1])
    return T.if_then_else(inside, conv.data[n, c, row, column], T.float32(0))
