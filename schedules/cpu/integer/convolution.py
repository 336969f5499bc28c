"""Convolution of all channels with all, and fully connected layers: pixels × packed weights, in int32 registers.

1. The lanes are output channels; a tile of the output is some pixels × up to four vectors of channels, whose sums stay
   in registers. They start from the bias.
2. Each step takes four input channels: four bytes of a pixel are spread over the lanes as one number, and meet four
   weights a lane. That is one VPDPBUSD or SDOT; without such an instruction, products of 16 bits added by pairs.
   Weights lie in the order in which they are read.
3. VPDPBUSD wants unsigned inputs and SDOT signed ones. Tensors of the other kind are stored with ±128 added, which
   their writer does for nothing, and the bias takes it back. For PMADDWD they are stored in 16 bits, so that two inputs
   are spread by one load; bytes would have to be widened anew for each block of weights.
4. A border is made by a copy, whose channels are filled up to four; so is the user's NCHW.
5. Sums with other tensors that follow the layer are done in registers, before anything is stored; and what is
   concatenated is stored where it then lies.
6. The last tile of pixels starts earlier and computes some again. Of weights that are the larger operand, all pixels
   meet one block before the next, which is meanwhile fetched into the L2 cache. Threads share the tiles.

Registers: with AVX-512 24 sums, 4 of weights and one of data, of 32 (6 pixels × 4 vectors); with NEON 20 or 16 sums of
32, in 32-bit code 8 of 16; with AVX2 8 of 16, as products of 16 bits need more of them.

1024→1024 at 4×4: 75 µs or 223 G multiply-adds a second on one core, of 236 that are four times what it does in float32;
from 128→256 at 16×16 on never below 195. ONNX Runtime's int8 takes 1.5 times as long for the whole network.
AMD EPYC (Zen 4, 2 virtual cores), TVM 0.27.0, 2026-11-25.
With AVX2 alone: 1024→1024 at 4×4 in about 320 µs, and in about 440 with inputs in bytes. AMD EPYC (Zen 3, 2 virtual
cores that other work shared), 2026-11-27.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import starts, unfuse, worth_threads
from tvmflow.schedules.cpu.integer._borders import copy_with_border
from tvmflow.schedules.instructions import GROUP, Instructions, instructions_of, packing_order
from tvmflow.schedules.integer_tasks import Kernel, Task
from tvmflow.schedules.integers import (
    Requantisation,
    fill,
    kernel_of_many,
    round_up,
    scratch_of,
    store_result,
    store_vector,
    vector,
    with_tail,
)

if TYPE_CHECKING:
    from tvmflow.integer.layers import IntegerLayer
    from tvmflow.spec import Target

MOST_ROWS = 12
MOST_UNROLLED = 4
ADDRESS = 2
"""What it costs to find a pixel's input where it doesn't lie at a fixed distance, in the time of a product."""
CACHE_LINE = 64
TO_L2 = 2  # llvm.prefetch's locality: everywhere but in L1, which the tile itself needs
SPEED = 4
"""Multiply-adds in the time of one in float32, when it is weighed whether threads pay."""

Tile = tuple[int, int]
"""Pixels, vectors of channels."""


def convolution(task: Task, target: Target, tile: Tile | None = None) -> Kernel | None:
    """By default the tile that should need the fewest instructions."""
    layer, instructions = task.layers[0], instructions_of(target)
    if len(task.layers) != 1 or layer.groups != 1:
        return None
    possible = tiles(layer, instructions)
    if tile is not None and tile not in possible:
        return None
    return _loops(task, instructions, tile or possible[0], worth_threads(layer.macs // SPEED, target))


def tiles(layer: IntegerLayer, instructions: Instructions) -> list[Tile]:
    """Those whose sums fit into registers, the cheapest first."""
    all_vectors, pixels = -(-len(layer.weight) // instructions.lanes), math.prod(layer.output_shape[2:])

    def cost(tile: Tile) -> int:
        count, addresses = _count(layer, tile[0], _is_in_rows(layer, tile))
        return count * all_vectors // tile[1] * (_products(tile) + addresses)

    possible = [
        (rows, vectors)
        for vectors in range(1, instructions.vectors + 1)
        for rows in range(1, min(pixels, MOST_ROWS, instructions.sums // vectors) + 1)
        if all_vectors % vectors == 0
    ]
    return sorted(possible, key=cost)


def _products(tile: Tile) -> int:
    """Instructions of a step: products and loads."""
    rows, vectors = tile
    return rows * vectors + rows + vectors


def _count(layer: IntegerLayer, rows: int, in_rows: bool) -> tuple[int, int]:
    """How many tiles of that many pixels there are, in rows of the output or over their ends, and what it costs a step
    to find their inputs: in a row these follow each other."""
    height, width = layer.output_shape[2:]
    if in_rows:
        return height * math.ceil(width / rows), 0
    return math.ceil(height * width / rows), 0 if _is_direct(layer) else rows * ADDRESS


def _is_in_rows(layer: IntegerLayer, tile: Tile) -> bool:
    """Whether it is cheaper that no tile goes over the end of a row."""
    if _is_direct(layer) or tile[0] > layer.output_shape[3]:
        return False
    inside, across = (_count(layer, tile[0], in_rows) for in_rows in (True, False))
    products = _products(tile)
    return inside[0] * (products + inside[1]) <= across[0] * (products + across[1])


def _is_direct(layer: IntegerLayer) -> bool:
    """Whether an output reads the input at its own place alone."""
    return layer.weight.shape[2:] == (1, 1) and layer.stride == (1, 1)


def _loops(task: Task, instructions: Instructions, tile: Tile, parallel: bool) -> Kernel:
    (layer,), (rows, vectors), lanes = task.layers, tile, instructions.lanes
    outputs, inputs, *taps = layer.weight.shape
    filled, stored = round_up(inputs, GROUP), round_up(outputs, lanes)
    groups, block = filled // GROUP, vectors * lanes
    unroll = next(steps for steps in range(MOST_UNROLLED, 0, -1) if groups % steps == 0)
    (height, width), in_rows = layer.output_shape[2:], _is_in_rows(layer, tile)

    source = task.source
    dtype = instructions.data
    copied = source.is_plain or any(layer.padding) or source.dtype != dtype or source.stored % GROUP
    offset = source.offset
    if copied:
        offset = {("int8", "uint8"): 128, ("uint8", "int8"): -128}.get((_own(source), dtype), 0)
    size = [source.size[axis] + (layer.padding[axis] + layer.padding[axis + 2]) * bool(copied) for axis in (0, 1)]

    requantisation = Requantisation.of(layer, instructions, stored, offset)
    parts, order = _parts(task, instructions, vectors)
    channels = (np.arange(0, stored, block)[:, None] + order).reshape(-1)
    packed = fill(fill(layer.weight, stored), filled, 1)[channels].transpose(2, 3, 1, 0)
    packed = packed.reshape(*taps, groups, GROUP, stored // block, vectors, lanes).transpose(4, 0, 1, 2, 5, 6, 3)
    constants = (instructions.pack(packed), *(array[channels] for array in requantisation.arrays))
    blocks, (pixel_tiles, pixel_start) = stored // block, starts(width if in_rows else height * width, rows)
    lines = height if in_rows else 1
    weights_outside = outputs >= height * width
    steps = math.prod(taps) * groups // unroll
    # bytes of the next block that are due with each step
    share = filled * math.prod(taps) * block // (lines * pixel_tiles * steps)

    with kernel_of_many(task, constants) as (builder, (given, *others), (weight, bias, *by), result):
        data = given
        if copied:
            data = T.sblock_alloc_buffer((math.prod(size) * filled,), dtype)
            copy_with_border(task, layer, given, data, offset, filled)
        with (T.parallel if parallel else T.serial)(0, blocks * lines * pixel_tiles) as index:
            total = [T.sblock_alloc_buffer((vectors, lanes), "int32") for _ in range(rows)]
            scratch = scratch_of(task.result, lanes)
            if weights_outside:
                place, pixel_tile = unfuse(index, blocks, lines * pixel_tiles)
            else:
                pixel_tile, place = unfuse(index, lines * pixel_tiles, blocks)
            if in_rows:
                line, column = unfuse(pixel_tile, lines, pixel_tiles)
                column = pixel_start(column)
                first = line * width + column
            else:
                first = pixel_start(pixel_tile)
            for p in range(rows):
                with T.unroll(0, vectors) as v:
                    start = vector(bias, place * block + v * lanes, lanes=lanes)
                    store_vector(total[p], start, v, 0, lanes=lanes)
            with T.serial(0, steps) as step:
                r, s, c = unfuse(step, *taps, groups // unroll)
                if weights_outside and lines * pixel_tiles > 1 and share >= CACHE_LINE:
                    _fetch_ahead(weight, place, (pixel_tile * steps + step) * share, share)
                with T.unroll(0, unroll) as more:
                    group = c * unroll + more
                    for p in range(rows):
                        pixel = first + p
                        if not _is_direct(layer):
                            y, x = tirx.floordiv(pixel, width), tirx.floormod(pixel, width)
                            if in_rows:
                                y, x = line, column + p
                            y = y * layer.stride[0] + r * layer.dilation[0]
                            pixel = y * size[1] + x * layer.stride[1] + s * layer.dilation[1]

                        def four(begin: int, length: int, pixel: Any = pixel, group: Any = group) -> Any:
                            place = group * GROUP + begin
                            at = (pixel * filled + place,) if copied else (pixel, place)
                            return vector(data, *at, lanes=length)

                        with T.unroll(0, vectors) as v:

                            def weights(begin: int, length: int, v: Any = v, group: Any = group) -> Any:
                                return vector(weight, place, r, s, group, v, begin, lanes=length)

                            value = instructions.dot(vector(total[p], v, 0, lanes=lanes), four, weights)
                            store_vector(total[p], value, v, 0, lanes=lanes)
            for p in range(rows):
                for start, count in parts:
                    channel = place * block + start * lanes
                    sums = [
                        (
                            vector(total[p], v, 0, lanes=lanes),
                            [vector(factor, place * block + v * lanes, lanes=lanes) for factor in by],
                        )
                        for v in range(start, start + count)
                    ]
                    if count > 1:
                        value = requantisation.packed(sums, task.result)
                        place_in = channel + task.result.first
                        store_vector(result, value, first + p, place_in, lanes=count * lanes)
                        continue
                    if task.tail:
                        value = with_tail(task, requantisation.value(*sums[0]), others, first + p, channel, lanes)
                    else:
                        value = requantisation.finish(*sums[0], task.result)
                    store_result(task.result, result, value, first + p, channel + task.result.first, lanes, scratch)
    return Kernel(func=builder.get(), constants=constants)


def _parts(task: Task, instructions: Instructions, vectors: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Which of a tile's vectors of channels are stored together, (first, count), and the order of the channels."""
    if instructions.data != "uint8" or task.result.is_plain or task.tail:
        return [(v, 1) for v in range(vectors)], np.arange(vectors * instructions.lanes)
    parts: list[tuple[int, int]] = []
    while (done := sum(count for _, count in parts)) < vectors:
        parts.append((done, next(count for count in (4, 2, 1) if count <= vectors - done)))
    lanes = instructions.lanes
    return parts, np.concatenate([start * lanes + packing_order(count, lanes) for start, count in parts])


def _own(tensor: Any) -> str:
    """The dtype of the network's values, without their offset."""
    return {128: "int8", -128: "uint8"}.get(tensor.offset, tensor.dtype)


def _fetch_ahead(weight: Any, place: Any, done: Any, share: int) -> None:
    """Of the next block of weights, what is due. Beyond the end of the weights it does nothing."""
    block_bytes = math.prod(int(length) for length in weight.shape[1:])
    start = T.address_of(weight[(place, *[0] * (len(weight.shape) - 1))])
    for line in range(share // CACHE_LINE):
        address = tirx.handle_add_byte_offset(start, block_bytes + done + line * CACHE_LINE)
        options = (tirx.const(number, "int32") for number in (0, TO_L2, 1))
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *options))
