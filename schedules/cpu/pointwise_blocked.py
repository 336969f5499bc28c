"""1×1 convolution of stride 1 whose output has its channels in blocks: a matrix product, pixels × packed weights.

1. The lanes are output channels; a tile of the output is some pixels × the channels of one block of the weights. Its
   sums stay in registers: for each input channel, each vector of weights is loaded once and each pixel once, spread
   over the lanes. Where a product can take its factor from any place of a register (64-bit ARM), some channels of a
   pixel are loaded at once: MobileNetV1 at 32×32 takes 16.4 million instructions then, and 17.3 without.
2. Weights lie in the order in which they are read, and are read once if they are the larger operand: all pixels of
   all images meet one block of them before the next. Meanwhile the next block is fetched into the L2 cache, evenly:
   the hardware's own prefetching starts anew in every page.
3. Bias, ReLU and the like are applied to the registers, and each pixel's block of channels is stored whole.
4. The last tile of an axis that tiles don't divide starts earlier and computes some elements again.
5. Threads share the tiles.

The input may be NCHW: it is only ever read one element at a time. Lanes over pixels (`pointwise_nchw`) leave tiles of
one vector to maps of 4×4, which need a load for every product; without fetching ahead 1024→1024 at 4×4 takes 266 µs.

From 32→64 at 32×32 to 1024→1024 at 4×4: 163 to 188 GFLOP/s on one core, of 217 that it can do. At 4×4 the L3 cache
limits: 4 MB of weights in 200 µs are 20 GB/s, where reading alone does 23 to 29.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-23.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    Convolution,
    Vectors,
    blocked,
    kernel,
    most_pixels,
    most_vectors,
    prefetch,
    read_convolutions,
    starts,
    unfuse,
    vectors_of,
    worth_threads,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

CACHE_LINE = 64
FEWEST_PIXELS = 4
MOST_UNROLLED = 16
WEIGHTS, PIXELS = "weights", "pixels"


Tile = tuple[int, int, str]
"""Pixels, steps over the input channels that are unrolled, and which operand the outer loop walks."""


def pointwise_blocked(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """By default the pixels that should need the fewest instructions, and the larger operand outside."""
    conv, registers = _read(func, target), vectors_of(target)
    if conv is None:
        return None
    lanes = math.gcd(registers.lanes, conv.out_block)
    if tile is None:
        rows = min(_pixels(conv, registers), key=lambda rows: _cost(conv, rows, lanes))
        unroll = max(steps for steps in _unrolls(conv) if steps <= registers.unroll)
        tile = rows, unroll, WEIGHTS if conv.channels >= math.prod(conv.size) else PIXELS
    size = 2 if target.arithmetic == "float16" else 4  # which the weights are once kernels are narrowed
    by_element = registers.by_element and tile[1] == lanes
    return Schedule(_loops(conv, tile, lanes, worth_threads(conv.macs, target), size, by_element))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel."""
    conv = _read(func, target)
    if conv is None:
        return []
    return list(itertools.product(_pixels(conv, vectors_of(target)), _unrolls(conv), (WEIGHTS, PIXELS)))


def fits(conv: Convolution) -> bool:
    """Whether the rule can serve this kernel once its output and weights have their channels in blocks."""
    plain = not conv.depthwise and conv.kernel == (1, 1) and conv.stride == (1, 1) and conv.pad == (0, 0)
    return plain and conv.size == conv.out_size and math.prod(conv.size) >= FEWEST_PIXELS


def weight_block(channels: int, block: int, target: Target) -> int:
    """How many output channels a block of the weights has: whole blocks of the output, as registers allow."""
    registers = vectors_of(target)
    most = most_vectors(registers) * registers.lanes
    return max(length for length in range(block, max(block, most) + 1, block) if channels % length == 0)


def _read(func: tirx.PrimFunc, target: Target) -> Convolution | None:
    found, registers = read_convolutions(func), vectors_of(target)
    if len(found) != 1 or not fits(found[0]) or not found[0].out_block or not found[0].weight_block:
        return None
    lanes = math.gcd(registers.lanes, found[0].out_block)
    if lanes < 4 or found[0].weight_block // lanes > most_vectors(registers):
        return None
    return found[0] if found[0].weight_block % found[0].out_block == 0 else None


def _pixels(conv: Convolution, registers: Vectors) -> list[int]:
    lanes = math.gcd(registers.lanes, conv.out_block)
    vectors = conv.weight_block // lanes
    most = min(most_pixels(registers, vectors), math.prod(conv.size))
    return list(range(most, max(1, most // 2), -1))


def _unrolls(conv: Convolution) -> list[int]:
    return [steps for steps in range(1, MOST_UNROLLED + 1) if conv.in_channels % steps == 0]


def _cost(conv: Convolution, rows: int, lanes: int) -> int:
    """Instructions for each input channel, loads counted as products."""
    vectors = conv.weight_block // lanes
    return math.ceil(math.prod(conv.size) / rows) * (rows * vectors + rows + vectors)


def _loops(
    conv: Convolution, tile: Tile, lanes: int, parallel: bool, element_bytes: int, by_element: bool
) -> tirx.PrimFunc:
    rows, unroll, outside = tile
    pixels, width, block = math.prod(conv.size), conv.size[1], conv.weight_block
    vectors = block // lanes
    weight_tiles, (pixel_tiles, pixel_start) = conv.channels // block, starts(pixels, rows)
    weights_outside = outside == WEIGHTS
    steps = conv.in_channels // unroll
    # bytes of the next block of weights that are due with each step
    weight_bytes = element_bytes * conv.in_channels * block
    share = weight_bytes // (conv.batch * pixel_tiles * steps)

    def at(pixel):
        return tirx.floordiv(pixel, width), tirx.floormod(pixel, width)

    with kernel(conv.func) as builder:
        # one buffer for each: TVM puts a kilobyte on the heap, and then the sums are no registers to LLVM
        total = [T.sblock_alloc_buffer((vectors, lanes), "float32") for _ in range(rows)]
        sums = list(itertools.product(range(rows), range(vectors)))
        whole = by_element and conv.data_block % unroll == 0
        loaded = [T.sblock_alloc_buffer((unroll,), "float32") for _ in range(rows if whole else 0)]
        with (T.parallel if parallel else T.serial)(0, weight_tiles * conv.batch * pixel_tiles) as index:
            if weights_outside:
                weight_tile, n, pixel_tile = unfuse(index, weight_tiles, conv.batch, pixel_tiles)
            else:
                n, pixel_tile, weight_tile = unfuse(index, conv.batch, pixel_tiles, weight_tiles)
            p0 = pixel_start(pixel_tile)
            # One vectorised loop around many statements: TVM takes longer for an index the more loops come before.
            with T.vectorized(0, lanes) as lane:
                for p, v in sums:
                    T.buffer_store(total[p], T.float32(0), [v, lane])
            with T.serial(0, steps) as step:
                if weights_outside and share >= CACHE_LINE:
                    done = (n * pixel_tiles + pixel_tile) * steps + step
                    start = T.address_of(conv.weight[weight_tile, 0, 0, 0, 0])
                    for line in range(share // CACHE_LINE):
                        ahead = weight_bytes + done * share + line * CACHE_LINE
                        prefetch(tirx.handle_add_byte_offset(start, ahead))
                if whole:
                    with T.vectorized(0, unroll) as member:
                        for p in range(rows):
                            pixel = conv.data[blocked(conv.data, n, step * unroll + member, *at(p0 + p))]
                            T.buffer_store(loaded[p], pixel, [member])
                with T.unroll(0, unroll) as more, T.vectorized(0, lanes) as lane:
                    c = step * unroll + more
                    for p, v in sums:
                        pixel = loaded[p][more] if whole else conv.data[blocked(conv.data, n, c, *at(p0 + p))]
                        product = pixel * conv.weight[weight_tile, c, 0, 0, v * lanes + lane]
                        T.buffer_store(total[p], total[p][v, lane] + product, [v, lane])
            with T.vectorized(0, lanes) as lane:
                for p, v in sums:
                    place = (n, weight_tile * block + v * lanes + lane, *at(p0 + p))
                    T.buffer_store(conv.output, conv.finish(total[p][v, lane], place), blocked(conv.output, *place))
    return builder.get()
