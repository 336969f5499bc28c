"""Convolution over all channels with packed weights, of tensors in blocks or NCHW; any kernel, stride and dilation.

1. The lanes are output channels; a tile of the output is a part of a row (or some short rows) × the channels of one
   block of the weights. Its sums stay in registers through all input channels and taps: each vector of weights is
   loaded once and each pixel once, spread over the lanes.
2. Each axis of the output is cut where the set of taps that meet the input changes within a tile, and each cut has code
   of its own: there is no border to make and no bound to check, and nothing is computed of it. Of 3×3 on 4×4 a third is
   left out. An infinite weight times a border would be NaN; that is lost.
3. Rows of taps are a loop where all of them meet the same pixels of the tile: unrolled, they are no faster, and LLVM
   takes up to six times as long. Where that would still be much code, rows of the output at the border share the code
   of the others, and their loops begin later or end earlier; and so many taps in a row are a loop too.
4. Bias, ReLU and the like are applied to the registers, and each pixel's block of channels is stored whole, or channel
   by channel if the result is NCHW: what is more than a bias and a ReLU is then applied to whole vectors before.
5. A vector or a tile that doesn't fit its axis starts earlier and computes some elements again. The larger operand is
   walked once, in the outer loop; threads share the weights' blocks and the rows of tiles.
6. Of groups, each block of the weights is of one, and reads the input's channels of that alone.

The input may be NCHW: it is only ever read one element at a time. Lanes along a row (`direct_nchw`) leave maps of 8×8
and 4×4 half and three quarters of a vector, and need a copy with a border. Eight pixels of two vectors are all that
LLVM keeps in the registers of AVX-512: twelve spill, at half the speed.

Registers: (pixels + 1) × vectors of the weights' block and one pixel, (8 + 1) × 2 + 1 with AVX-512.
3×3, 64→64 at 16×16: 125 GFLOP/s on one core, 256→256 at 4×4: 146, products with the border counted, of 118 that it can
do; `direct_nchw`: 113 and 48. 3→64 at 32×32: 107 and 76.
AMD EPYC (Zen 4, AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-25.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    Convolution,
    Expr,
    blocked,
    fitting,
    has_long_tail,
    kernel,
    live_rows,
    most_pixels,
    most_vectors,
    read_convolutions,
    unfuse,
    vectors_of,
    worth_threads,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_PRODUCTS = 4000
"""Products of vectors in the code of a kernel, which takes up to a minute to compile."""
MANY_PRODUCTS = 400
"""From so many on, code is shared, by rows or taps: TVM's time goes with the square, 640 take 7 s and 1,600 take 40.

CPU time, Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-29.
"""
FEW_CHANNELS = 8
"""Below so many input channels rows of taps are most of the loops, and bounds that vary cost an eighth of the speed.

11×11, stride 4, 3→96 at 224×224: 1.69 ms instead of 1.52, minima in one run on the same machine.
"""

Tile = tuple[int, int]
"""Rows and columns of the output."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """`count` tiles along an axis, from output `first` on; `live[tap]` are their pixels where a tap meets the input.

    If that `varies` among the tiles, which have one pixel then, `live` is as if all taps met the input.
    """

    first: int
    count: int
    live: tuple[tuple[int, ...], ...]
    varies: bool = False


def conv_blocked(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """`tile` is (rows, columns), by default the one that should need the fewest instructions."""
    possible = tiles(func, target)
    if not possible:
        return None
    conv = _read(func)
    assert conv is not None
    vectors = len(_vectors(conv, target))
    tile = tile or min(possible, key=lambda tile: _cost(conv, tile, vectors))
    return Schedule(_loops(conv, tile, target))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel."""
    conv = _read(func)
    if conv is None or _lanes(conv, target) < 4:
        return []
    vectors, (height, width) = len(_vectors(conv, target)), conv.out_size
    if vectors > most_vectors(vectors_of(target)):
        return []
    most = most_pixels(vectors_of(target), vectors)
    possible = [(1, columns) for columns in range(1, min(width, most) + 1)]
    possible += [(rows, width) for rows in range(2, min(height, most // width) + 1)]
    return [tile for tile in possible if _products(conv, tile, vectors) <= MOST_PRODUCTS]


def instructions(func: tirx.PrimFunc, target: Target) -> float:
    """Of vectors, loads counted, by the tile that is taken by default; infinity where the rule doesn't serve it."""
    conv, possible = _read(func), tiles(func, target)
    if conv is None or not possible:
        return math.inf
    vectors = len(_vectors(conv, target))
    steps = conv.batch * conv.in_channels * (conv.channels // conv.weight_block)
    return steps * min(_cost(conv, tile, vectors) for tile in possible)


def weight_block(channels: int, target: Target) -> int:
    """Output channels of a block of the weights if the result is NCHW; 0 if there is no good one."""
    registers = vectors_of(target)
    fit = [
        length
        for length in range(4, most_vectors(registers) * registers.lanes + 1)
        if channels % length == 0 and length >= min(channels, registers.lanes)
    ]

    def wasted(length: int) -> float:
        lanes = fitting(registers.lanes, length)
        return math.ceil(length / lanes) * lanes / length

    return min(fit, key=lambda length: (wasted(length), -length), default=0)


def _read(func: tirx.PrimFunc) -> Convolution | None:
    found = read_convolutions(func, grouped=True)
    if len(found) != 1 or found[0].depthwise or not found[0].weight_block:
        return None
    (conv,) = found
    parted = conv.channels // conv.groups % conv.weight_block or conv.in_channels % (conv.data_block or 1)
    if conv.groups > 1 and parted:  # a block of weights has to be of one group, and a group of inputs whole blocks
        return None
    return conv if not conv.out_block or conv.weight_block % conv.out_block == 0 else None


def _lanes(conv: Convolution, target: Target) -> int:
    most = vectors_of(target).lanes
    return math.gcd(most, conv.out_block) if conv.out_block else fitting(most, conv.weight_block)


def _vectors(conv: Convolution, target: Target) -> list[int]:
    """Where the vectors begin in a block of the weights."""
    block, lanes = conv.weight_block, _lanes(conv, target)
    return [min(first, block - lanes) for first in range(0, block, lanes)]


def cuts(conv: Convolution, axis: int, tile: int) -> list[Cut]:
    """The tiles of an axis, those together that are alike and follow one another."""
    found: list[Cut] = []
    for index in range(math.ceil(conv.out_size[axis] / tile)):
        first = min(index * tile, conv.out_size[axis] - tile)
        meets = [
            [(first + place) * conv.stride[axis] + tap * conv.dilation[axis] - conv.pad[axis] for place in range(tile)]
            for tap in range(conv.kernel[axis])
        ]
        live = tuple(tuple(p for p, at in enumerate(row) if 0 <= at < conv.size[axis]) for row in meets)
        last = found[-1] if found else None
        if last is not None and last.live == live and first == last.first + last.count * tile:
            found[-1] = Cut(first=last.first, count=last.count + 1, live=live)
        else:
            found.append(Cut(first=first, count=1, live=live))
    return found


def _is_loop(rows: Cut) -> bool:
    """Whether all rows of taps do the same work."""
    return len({places for places in rows.live if places}) == 1


def _products(conv: Convolution, tile: Tile, vectors: int) -> int:
    """Products of vectors in the code."""
    columns = _in_a_row(cuts(conv, 1, tile[1]), vectors)
    return columns * sum(map(_copies, _rows(conv, tile, columns)))


def _in_a_row(horizontal: Sequence[Cut], vectors: int) -> int:
    """Products of vectors in the code for one row of taps and one of pixels."""
    return vectors * sum((max if _is_long(cut, vectors) else sum)(map(len, cut.live)) for cut in horizontal)


def _is_long(columns: Cut, vectors: int) -> bool:
    """Whether the taps of a row are a loop: they do the same work, and would be too much code one by one."""
    return _is_loop(columns) and vectors * sum(map(len, columns.live)) >= MANY_PRODUCTS


def _copies(rows: Cut) -> int:
    """How often the products of a row of taps and pixels are in the code."""
    return (max if _is_loop(rows) else sum)(map(len, rows.live))


def _rows(conv: Convolution, tile: Tile, products: int) -> list[Cut]:
    """The cuts of the rows, as one if that saves much of the code; `products` has a row of taps and pixels."""
    found = cuts(conv, 0, tile[0])
    many = MANY_PRODUCTS if conv.in_channels >= FEW_CHANNELS else MOST_PRODUCTS // 2
    if len(found) > 1 and tile[0] == 1 and all(map(_is_loop, found)) and products * len(found) >= many:
        return [Cut(first=0, count=conv.out_size[0], live=((0,),) * conv.kernel[0], varies=True)]
    return found


def _cost(conv: Convolution, tile: Tile, vectors: int) -> int:
    """Instructions for each input channel, loads counted as products."""
    rows, columns = (
        [(cut.count, len(places)) for cut in cuts(conv, axis, tile[axis]) for places in cut.live if places]
        for axis in (0, 1)
    )
    return sum(
        many * several * (down * right * (vectors + 1) + vectors) for many, down in rows for several, right in columns
    )


def _loops(conv: Convolution, tile: Tile, target: Target) -> tirx.PrimFunc:
    lanes, vectors = _lanes(conv, target), _vectors(conv, target)
    weight_tiles = conv.channels // conv.weight_block
    horizontal = cuts(conv, 1, tile[1])
    vertical = _rows(conv, tile, _in_a_row(horizontal, len(vectors)))
    row_tiles = sum(cut.count for cut in vertical)
    weights_outside = conv.channels * math.prod(conv.kernel) >= math.prod(conv.size)
    parallel = worth_threads(conv.macs, target)
    with kernel(conv.func) as builder:
        # one buffer for each: TVM puts a kilobyte on the heap, and then the sums are no registers to LLVM
        sums = [T.sblock_alloc_buffer((len(vectors), lanes), "float32") for _ in range(math.prod(tile))]
        with (T.parallel if parallel else T.serial)(0, weight_tiles * conv.batch * row_tiles) as index:
            if weights_outside:
                weight_tile, n, row_tile = unfuse(index, weight_tiles, conv.batch, row_tiles)
            else:
                n, row_tile, weight_tile = unfuse(index, conv.batch, row_tiles, weight_tiles)
            before = 0
            for rows in vertical:
                with T.If(tirx.all(row_tile >= before, row_tile < before + rows.count)), T.Then():
                    y0 = rows.first + (row_tile - before) * tile[0]
                    for columns in horizontal:
                        with T.serial(0, columns.count) as column_tile:
                            corner = n, weight_tile, y0, columns.first + column_tile * tile[1]
                            _tile(conv, sums, corner, tile[1], (rows, columns), (vectors, lanes))
                before += rows.count
    return builder.get()


def _tile(
    conv: Convolution,
    sums: Sequence[tirx.Buffer],
    corner: tuple[Expr, ...],
    width: int,
    cut: tuple[Cut, Cut],
    lanes_of: tuple[list[int], int],
) -> None:
    """Emit the loops of one tile. `corner` is its image, block of weights, row and column."""
    n, weight_tile, y0, x0 = corner
    (rows, columns), (vectors, lanes) = cut, lanes_of
    # One vectorised loop around many statements: what TVM takes to flatten an index grows with the loops before it.
    with T.vectorized(0, lanes) as lane:
        for total in sums:
            for v in range(len(vectors)):
                T.buffer_store(total, T.float32(0), [v, lane])

    first_channel = conv.first_channel(weight_tile * conv.weight_block)

    def pixel_of(c: Expr, y: Expr, x: Expr) -> tuple[Expr, ...]:
        if not conv.data_block:
            return n, first_channel + c, y, x
        first_block = tirx.floordiv(first_channel, conv.data_block)
        return n, first_block + tirx.floordiv(c, conv.data_block), y, x, tirx.floormod(c, conv.data_block)

    def tap(c: Expr, r: Expr, s: Expr, lane: Expr, down: Sequence[int], right: Sequence[int]) -> None:
        for dy, dx in ((dy, dx) for dy in down for dx in right):
            y = (y0 + dy) * conv.stride[0] + r * conv.dilation[0] - conv.pad[0]
            x = (x0 + dx) * conv.stride[1] + s * conv.dilation[1] - conv.pad[1]
            pixel, total = conv.data[pixel_of(c, y, x)], sums[dy * width + dx]
            for v, first in enumerate(vectors):
                product = pixel * conv.weight[weight_tile, c, r, s, first + lane]
                T.buffer_store(total, total[v, lane] + product, [v, lane])

    def row_of_taps(c: Expr, r: Expr, lane: Expr, down: Sequence[int]) -> None:
        met = [s for s, right in enumerate(columns.live) if right]
        if _is_long(columns, len(vectors)):
            with T.serial(met[0], met[-1] + 1) as s:
                tap(c, r, s, lane, down, columns.live[met[0]])
        else:
            for s in met:
                tap(c, r, s, lane, down, columns.live[s])

    live = [r for r, places in enumerate(rows.live) if places]
    if live and any(columns.live):
        step = conv.data_block or 1  # two loops, so that no index needs a division
        with T.serial(0, conv.in_channels // step) as group, T.serial(0, step) as member:
            c = group * step + member
            with T.vectorized(0, lanes) as lane:
                if _is_loop(rows):
                    begin, end = live_rows(conv, y0) if rows.varies else (live[0], live[-1] + 1)
                    with T.serial(begin, end) as r:
                        row_of_taps(c, r, lane, rows.live[live[0]])
                else:
                    for r in live:
                        row_of_taps(c, r, lane, rows.live[r])

    def place_of(pixel: int, v: int, lane: Expr) -> tuple[Expr, ...]:
        return n, weight_tile * conv.weight_block + vectors[v] + lane, y0 + pixel // width, x0 + pixel % width

    def finished(pixel: int, v: int, lane: Expr) -> Expr:
        return conv.finish(sums[pixel][v, lane], place_of(pixel, v, lane))

    results = list(itertools.product(range(len(sums)), range(len(vectors))))
    first = has_long_tail(conv.func) and not conv.out_block
    if first:  # it is computed in vectors, before their elements go apart
        with T.vectorized(0, lanes) as lane:
            for pixel, v in results:
                T.buffer_store(sums[pixel], finished(pixel, v, lane), [v, lane])

    def store(pixel: int, v: int, lane: Expr) -> None:
        value = sums[pixel][v, lane] if first else finished(pixel, v, lane)
        T.buffer_store(conv.output, value, blocked(conv.output, *place_of(pixel, v, lane)))

    if conv.out_block:
        with T.vectorized(0, lanes) as lane:
            for pixel, v in results:
                store(pixel, v, lane)
    else:
        for pixel, v in results:
            with T.unroll(0, lanes) as lane:
                store(pixel, v, lane)
