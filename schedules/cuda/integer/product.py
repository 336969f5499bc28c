"""A layer that sums over channels, pointwise, dense or with a window: a matrix product of words by `__dp4a`.

1. A thread has `pixels` × OUTPUTS sums in registers. Neighbouring threads have neighbouring outputs: their weights
   lie together and are loaded 16 bytes at a time, while the words of the inputs, four at a time, are the same for all
   of a warp and come out of the first-level cache.
2. For each step of four words these are (pixels + 4) loads for 16 · pixels `__dp4a`. Taps that meet nothing but the
   border are left out; at a border the word of four zeros stands for the inputs.
3. Small maps leave too few threads. With `splits`, groups of threads share the steps, and their sums are added through
   shared memory after the only barrier. Then each word is requantised and stored once.

Inputs are signed bytes, as `__dp4a` multiplies no signed by unsigned ones: uint8 is stored with 128 taken off, which
the sums start by taking back. Where that could leave int32 the rule declines. GPUs older than sm_61 multiply byte by
byte. Checked without a GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.network import RANGES, accumulator_range
from tvmflow.schedules.cuda._grid import local, multiprocessors, shared, when
from tvmflow.schedules.cuda.integer import BYTES, VECTOR
from tvmflow.schedules.cuda.integer._words import (
    Expr,
    finish,
    inside,
    launch,
    live,
    packed,
    word,
    words_out,
    zero_word,
)
from tvmflow.schedules.gpu import Gpu
from tvmflow.schedules.integer_tasks import Kernel, Task
from tvmflow.schedules.integers import byte_of, fill, first_sums

if TYPE_CHECKING:
    from tvmflow.integer.layers import IntegerLayer
    from tvmflow.spec import Target

OUTPUTS = BYTES
"""Of a thread, for each of its pixels: one word."""
THREADS = 128
WANTED = 256
"""Threads for each multiprocessor, for their loads to hide each other's waits."""


class Tile(NamedTuple):
    """What may be chosen; the module's docstring says what each is."""

    pixels: int
    splits: int


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What is summed over: live taps × words of a pixel, `step` words at a time."""

    taps: tuple[range, range]
    words: int
    step: int

    @property
    def steps(self) -> int:
        return self.words // self.step


def product(task: Task, target: Target, tile: Tile | None = None) -> Kernel | None:
    (layer,), source = task.layers, task.source
    if layer.groups != 1 or source.dtype != "int8":
        return None
    rows, columns = live(layer, 0), live(layer, 1)
    met = replace(layer, weight=layer.weight[:, :, rows.start : rows.stop, columns.start : columns.stop])
    first = first_sums(met, source.offset)  # what is left out has no 128 to take back
    lowest, highest = accumulator_range(replace(met, bias=first), *RANGES["int8"])
    if lowest.min() < -(2**31) or highest.max() >= 2**31:
        return None
    words = source.shape[1] if source.packed else math.ceil(source.channels / BYTES)
    depth = Depth(taps=(rows, columns), words=words, step=VECTOR if source.packed else 1)
    if not all(depth.taps):
        return None
    return _loops(task, target, depth, first, tile or tiles(task, target, depth)[0])


def tiles(task: Task, target: Target, depth: Depth) -> list[Tile]:
    """What `tile` may be, the most promising first: the fewest loads among those with threads enough."""
    pixels, words = math.prod(task.result.size), words_out(task)
    found = [
        Tile(count, splits)
        for count in (1, 2, 4)
        for splits in (1, 2, 4, 8, 16)
        if count < 2 * pixels and depth.steps % splits == 0
    ]
    wanted = WANTED * multiprocessors(target)

    def cost(tile: Tile) -> tuple[int, int, int]:
        threads = math.ceil(pixels / tile.pixels) * words * tile.splits
        return -min(threads, wanted), -tile.pixels, tile.splits

    return sorted(found, key=cost)


def _loops(task: Task, target: Target, depth: Depth, first: np.ndarray, tile: Tile) -> Kernel:
    layer = task.layers[0]
    pixels, words = math.prod(task.result.size), words_out(task)
    constants = (
        _weights(layer, depth, words),
        fill(first.astype(np.int32), words * BYTES),
        *(fill(factor, words * BYTES) for factor in layer.factors),
    )
    work = math.ceil(pixels / tile.pixels) * words
    group = min(work, max(32, THREADS // tile.splits))
    blocks = math.ceil(work / group)
    with launch(task, constants, blocks, group * tile.splits) as (builder, given, factors, out, block, thread):
        weights, biases, *by = factors
        sums = local(tile.pixels * OUTPUTS, dtype="int32")
        member, split = (
            (thread, 0) if tile.splits == 1 else (tirx.floormod(thread, group), tirx.floordiv(thread, group))
        )
        # threads beyond the work do the last one's, for all have to meet at the barrier
        index = block * group + member if work % group == 0 else tirx.min(block * group + member, work - 1)
        place, start = tirx.floormod(index, words), tirx.floordiv(index, words) * tile.pixels
        for number in range(tile.pixels * OUTPUTS):
            T.buffer_store(sums, T.int32(0), [number])
        rows, columns = depth.taps
        with (
            T.serial(0, len(rows)) as r,
            T.serial(0, len(columns)) as s,
            T.serial(0, depth.steps // tile.splits) as step,
        ):
            _step(task, target, depth, tile, given, weights, sums, (start, place, r, s, step * tile.splits + split))

        def store(row: Expr, totals: list[Expr]) -> None:
            pixel = start + row
            mine = [] if work % group == 0 else [block * group + member < work]
            mine += [pixel < pixels] if pixels % tile.pixels else []
            with when(tirx.all(*mine) if mine else None):
                channels = [place * BYTES + lane for lane in range(BYTES)]
                whole = [biases[channel] + total for channel, total in zip(channels, totals, strict=True)]
                finish(task, out, whole, [[factor[channel] for factor in by] for channel in channels], pixel, place)

        if tile.splits == 1:
            for row in range(tile.pixels):
                store(row, [sums[row * OUTPUTS + lane] for lane in range(OUTPUTS)])
        else:
            _add(tile, sums, group, member, split, store)
    return Kernel(func=builder.get(), constants=constants)


def _weights(layer: IntegerLayer, depth: Depth, words_out: int) -> np.ndarray:
    """int32 taps × taps × words in × outputs: four input channels in each."""
    rows, columns = depth.taps
    weight = layer.weight[:, :, rows.start : rows.stop, columns.start : columns.stop].transpose(2, 3, 0, 1)
    filled = fill(fill(weight, words_out * BYTES, 2), depth.words * BYTES, 3)
    return np.ascontiguousarray(packed(filled).transpose(0, 1, 3, 2))


def _step(
    task: Task, target: Target, depth: Depth, tile: Tile, given: Any, weights: Any, sums: Any, at: tuple[Expr, ...]
) -> None:
    """Add the products of one step: of `step` words, for one tap."""
    (layer,), source = task.layers, task.source
    start, place, r, s, step = at
    pixels, width = math.prod(task.result.size), task.result.size[1]
    data = local(tile.pixels * depth.step, dtype="int32")
    factors = local(depth.step * OUTPUTS, dtype="int32")
    dot = _dot(target)
    for row in range(tile.pixels):
        pixel = start + row if pixels % tile.pixels == 0 else tirx.min(start + row, pixels - 1)
        down = tirx.floordiv(pixel, width) * layer.stride[0] - layer.padding[0]
        down = down + (r + depth.taps[0].start) * layer.dilation[0]
        right = tirx.floormod(pixel, width) * layer.stride[1] - layer.padding[1]
        right = right + (s + depth.taps[1].start) * layer.dilation[1]
        within, read = inside(layer, down, right), down * layer.input_shape[3] + right

        def words(k: Expr, read: Expr = read) -> Expr:
            return word(source, given, read, step * depth.step + k)

        if within is None:
            _load(data, row * depth.step, depth.step, words)
            continue
        with T.If(within):
            with T.Then():
                _load(data, row * depth.step, depth.step, words)
            with T.Else():
                _load(data, row * depth.step, depth.step, lambda k: T.int32(zero_word(source)))
    for k in range(depth.step):

        def weight(o: Expr, k: int = k) -> Expr:
            return weights[r, s, step * depth.step + k, place * OUTPUTS + o]

        _load(factors, k * OUTPUTS, OUTPUTS, weight)
    for k in range(depth.step):
        for row in range(tile.pixels):
            for o in range(OUTPUTS):
                total = sums[row * OUTPUTS + o]
                T.buffer_store(
                    sums, dot(data[row * depth.step + k], factors[k * OUTPUTS + o], total), [row * OUTPUTS + o]
                )


def _load(into: Any, first: int, count: int, value: Callable[[Expr], Expr]) -> None:
    """One word, or neighbours in one load."""
    if count == 1:
        T.buffer_store(into, value(0), [first])
        return
    with T.vectorized(0, count) as lane:
        T.buffer_store(into, value(lane), [first + lane])


def _dot(target: Target) -> Callable[[Expr, Expr, Expr], Expr]:
    """(inputs, weights, sum) → the sum with four products of signed bytes added."""
    if Gpu.of(target).has_dp4a:
        return lambda data, weight, total: T.call_pure_extern("int32", "__dp4a", data, weight, total)

    def multiply(data: Expr, weight: Expr, total: Expr) -> Expr:
        for lane in range(BYTES):
            total = total + byte_of(data, lane, "int8") * byte_of(weight, lane, "int8")
        return total

    return multiply


def _add(
    tile: Tile, sums: Any, group: int, member: Expr, split: Expr, store: Callable[[Expr, list[Expr]], None]
) -> None:
    """Add the groups' sums; each group finishes some of the pixels."""
    count = tile.pixels * OUTPUTS
    parts = shared(tile.splits * count * group, dtype="int32")
    for number in range(count):
        T.buffer_store(parts, sums[number], [(split * count + number) * group + member])
    for first in range(0, tile.pixels, tile.splits):
        row = first + split
        with when(row < tile.pixels if first + tile.splits > tile.pixels else None):
            totals = []
            for lane in range(OUTPUTS):
                total = 0
                for other in range(tile.splits):
                    total = total + parts[(other * count + row * OUTPUTS + lane) * group + member]
                totals.append(total)
            store(row, totals)
