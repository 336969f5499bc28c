"""Convolution 3×3 by Winograd's minimal filtering, of tensors in blocks and weights that were transformed before.

`choose_winograd` decides which convolutions are computed so, and `schedules.winograd` has the mathematics.

1. A kernel goes by strips of tiles of the map. A strip's inputs are transformed for all channels, and stay in the L2
   cache until the next strip: three kernels, each over the whole map, would write and read all of it in between.
2. Lanes are channels in both transforms, which are written out: of a row of m + 2 numbers each sum that two results
   have in common is computed once. Only a tile at the border asks for each of its pixels whether it is there, and
   outputs beyond the map aren't stored.
3. Between the transforms are (m + 2)² matrix products, tiles × weights, for one block of output channels after the
   other. The lanes are output channels; the sums of some tiles stay in registers through all input channels, each
   vector of weights is loaded once for them and each input once, spread over the lanes.
4. Weights lie in the order in which they are read. They are four times as many as before (F(4×4)), and more than the L2
   cache holds in all but the narrowest layers, so the next product's are fetched into it during each.
5. Bias, ReLU and the like are applied to the outputs' vectors before they are stored.
6. Threads share the strips, each with inputs of its own, where all weights stay in the cache; elsewhere they share the
   tiles and then the blocks of weights of each strip, so that the weights come once for all threads.

A tile that two strips have is computed twice, and both times to the same bits.

64→64 at 56×56 by F(4×4): 0.47 ms on one core, `conv_blocked` 1.29; 128→128 at 28×28: 0.48 and 1.27; 256→256 at 14×14:
0.75 and 1.24. With weights that aren't fetched ahead the last takes 0.91.
Intel Xeon (AVX-512, 2 virtual cores, busy: the best of several rounds), TVM 0.27.0, 2026-11-30.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    LOOP_COST,
    Convolution,
    Expr,
    blocked,
    kernel,
    most_pixels,
    prefetch,
    starts,
    unfuse,
    vectors_of,
    worth_threads,
)
from tvmflow.schedules.winograd import POINTS, Winograd, read_winograd

if TYPE_CHECKING:
    from tvmflow.spec import Target

CACHE_LINE = 64
CACHE_SHARE = 2
"""One part of so many of the L2 cache is for a strip's transformed inputs."""
FEWEST_TILES = 4
"""Of a strip: with fewer tiles the weights would be loaded for too few products."""

Tile = tuple[int, int]
"""Tiles of the map in a strip, and how many of them a product takes at a time."""


def winograd(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """`tile` is (tiles of a strip, tiles at a time), by default those that should need the fewest instructions."""
    form = read_winograd(func)
    if form is None or lanes_of(form.conv, target) < 4:
        return None
    return Schedule(_Kernel(form, tile or default_tile(form, target), target).loops())


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel, from the one that is taken by default on."""
    form = read_winograd(func)
    if form is None or lanes_of(form.conv, target) < 4:
        return []
    strip, rows = default_tile(form, target)
    count = _count(form)
    strips = [strip, *(max(1, min(count, math.ceil(strip * part))) for part in (0.5, 2, 0.25))]
    most = min(rows + 1, _most_rows(form, target))
    found = [(many, several) for many in dict.fromkeys(strips) for several in range(most, 1, -1) if several <= many]
    return list(dict.fromkeys([(strip, rows), *found]))


def lanes_of(conv: Convolution, target: Target) -> int:
    return math.gcd(vectors_of(target).lanes, conv.out_block)


def default_tile(form: Winograd, target: Target) -> Tile:
    """Strips that are as long as each other and fit the cache, and the tiles at a time that need the fewest steps."""
    conv, cores = form.conv, _cores(form, target)
    count = _count(form)
    room = target.cpu.l2_bytes // CACHE_SHARE
    if _is_apart(form, target):  # each thread has a strip in the cache, beside all weights
        own = room if target.cpu.l3_bytes else room // cores  # without an L3 cache, L2 is what the cores share
        room = max(own - weight_bytes(form), own // 4)
    most = max(FEWEST_TILES, room // (4 * form.inputs**2 * conv.in_channels))
    strips = math.ceil(count / most)
    if _is_apart(form, target):
        strips = min(math.ceil(strips / cores) * cores, max(1, count // FEWEST_TILES))
    strip = math.ceil(count / strips)
    vectors = conv.weight_block // lanes_of(conv, target)

    def steps(rows: int) -> int:
        return math.ceil(strip / rows) * (rows * vectors + rows + vectors + LOOP_COST)

    return strip, min(range(min(_most_rows(form, target), strip), 0, -1), key=steps)


def weight_bytes(form: Winograd) -> int:
    return 4 * form.inputs**2 * form.conv.in_channels * form.conv.channels


def _most_rows(form: Winograd, target: Target) -> int:
    return most_pixels(vectors_of(target), form.conv.weight_block // lanes_of(form.conv, target))


def _cores(form: Winograd, target: Target) -> int:
    return target.cpu.cores if worth_threads(form.macs, target) else 1


def busy_cores(form: Winograd, target: Target) -> float:
    """How many cores have something to do, on average over a kernel."""
    strips = math.ceil(_count(form) / default_tile(form, target)[0])
    parts = strips if _is_apart(form, target) else form.conv.channels // form.conv.weight_block
    return parts / math.ceil(parts / _cores(form, target))


def _count(form: Winograd) -> int:
    """Tiles of all maps."""
    return form.conv.batch * math.prod(form.tiles)


def _is_apart(form: Winograd, target: Target) -> bool:
    """Whether threads share the strips, and not what is in a strip."""
    cores, weight_tiles = _cores(form, target), form.conv.channels // form.conv.weight_block
    if _count(form) < cores * FEWEST_TILES:
        return False
    uneven = weight_tiles % cores > 0 and weight_tiles < 2 * cores
    return uneven or weight_bytes(form) <= target.cpu.l2_bytes // CACHE_SHARE


@dataclass(frozen=True)
class _Kept:
    """Numbers that are used more than once, a vector each, in the rows of a buffer from the first on."""

    buffer: tirx.Buffer
    lane: Expr

    def __call__(self, *values: Expr) -> list[Expr]:
        for place, value in enumerate(values):
            T.buffer_store(self.buffer, value, [place, self.lane])
        return [self.buffer[place, self.lane] for place in range(len(values))]


Transform = Callable[[Sequence[Expr], _Kept], "list[Expr]"]
"""A matrix times a column, as few operations as it takes."""


def _data_2(d: Sequence[Expr], keep: _Kept) -> list[Expr]:
    return [d[2] - d[0], d[1] + d[2], d[2] - d[1], d[3] - d[1]]


def _restore_2(m: Sequence[Expr], keep: _Kept) -> list[Expr]:
    return [m[0] + m[1] + m[2], m[1] - m[2] + m[3]]


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")


def _data_4(d: Sequence[Expr], keep: _Kept) -> list[Expr]:
    (p, q), both = _pair(), _number(sum(point**2 for point in _pair()))
    evens = [d[4] - _number(other**2) * d[2] for other in (q, p)]
    odds = [d[3] - _number(other**2) * d[1] for other in (q, p)]
    even_p, even_q, odd_p, odd_q = keep(*evens, *odds)
    pairs = ((even_p, _number(p) * odd_p), (even_q, _number(q) * odd_q))
    middle = [value for even, odd in pairs for value in (even + odd, even - odd)]
    return [d[4] - both * d[2] + d[0], *middle, d[5] - both * d[3] + d[1]]  # (p·q)² is 1


def _restore_4(m: Sequence[Expr], keep: _Kept) -> list[Expr]:
    p, q = _pair()
    even_p, even_q, odd_p, odd_q = keep(m[1] + m[2], m[3] + m[4], m[1] - m[2], m[3] - m[4])
    return [
        m[0] + even_p + even_q,
        _number(p) * odd_p + _number(q) * odd_q,
        _number(p**2) * even_p + _number(q**2) * even_q,
        _number(p**3) * odd_p + (_number(q**3) * odd_q + m[5]),
    ]


def _pair() -> tuple[float, float]:
    """The positive points of F(4×4, 3×3)."""
    _, p, _, q, _ = POINTS[4]
    return p, q


DATA: dict[int, Transform] = {2: _data_2, 4: _data_4}
"""By m: Bᵀ times a column of m + 2 inputs."""
RESTORE: dict[int, Transform] = {2: _restore_2, 4: _restore_4}
"""By m: Aᵀ times a column of m + 2 products."""


class _Kernel:
    """The loops of one kernel."""

    def __init__(self, form: Winograd, tile: Tile, target: Target) -> None:
        self.form, self.conv, self.target = form, form.conv, target
        self.strip, self.rows = tile
        self.lanes = lanes_of(form.conv, target)
        self.channel_lanes = math.gcd(self.lanes, form.conv.data_block)
        self.vectors = form.conv.weight_block // self.lanes
        self.places = form.inputs**2

    def loops(self) -> tirx.PrimFunc:
        conv, taken, outputs = self.conv, self.form.inputs, self.form.outputs
        strips, strip_start = starts(_count(self.form), self.strip)
        threads, apart = worth_threads(self.form.macs, self.target), _is_apart(self.form, self.target)
        over_strips, within = (T.parallel if threads and here else T.serial for here in (apart, not apart))

        def registers(rows: int, lanes: int) -> tirx.Buffer:
            return T.sblock_alloc_buffer((rows, lanes), "float32")

        with kernel(conv.func) as builder:
            seen = T.sblock_alloc_buffer((self.places, self.strip, conv.in_channels), "float32")
            made = T.sblock_alloc_buffer((self.places, self.strip, conv.weight_block), "float32")
            # one buffer for each: TVM puts a kilobyte on the heap, and then the sums are no registers to LLVM
            sums = [registers(self.vectors, self.lanes) for _ in range(self.rows)]
            data = [registers(taken, self.channel_lanes) for _ in range(taken)], registers(4, self.channel_lanes)
            results = [registers(taken, self.lanes) for _ in range(outputs)], registers(4, self.lanes)
            with over_strips(0, strips) as index:
                first = strip_start(index)
                with within(0, self.strip) as number, T.serial(0, conv.in_channels // self.channel_lanes) as vector:
                    self.transform(first, number, vector, seen, *data)
                with within(0, conv.channels // conv.weight_block) as weight_tile:
                    self.multiply(weight_tile, seen, made, sums)
                    with T.serial(0, self.strip) as number, T.serial(0, self.vectors) as vector:
                        self.restore(first, number, weight_tile, vector, made, *results)
        return builder.get()

    def corner(self, tile: Expr) -> tuple[Expr, Expr, Expr]:
        """The image of a tile, and the row and column where its outputs begin."""
        n, y, x = unfuse(tile, self.conv.batch, *self.form.tiles)
        return n, y * self.form.outputs, x * self.form.outputs

    def transform(
        self,
        first: Expr,
        number: Expr,
        vector: Expr,
        seen: tirx.Buffer,
        halves: Sequence[tirx.Buffer],
        parts: tirx.Buffer,
    ) -> None:
        """The inputs of a tile, for one vector of channels."""
        conv, taken, columns = self.conv, range(self.form.inputs), DATA[self.form.outputs]
        n, below, right = self.corner(first + number)
        y0, x0 = below - conv.pad[0], right - conv.pad[1]

        def element(r: int, s: int, lane: Expr, guarded: bool) -> Expr:
            y, x = y0 + r, x0 + s
            value = conv.data[blocked(conv.data, n, vector * self.channel_lanes + lane, y, x)]
            if not guarded:
                return value
            there = tirx.all(y >= 0, y < conv.size[0], x >= 0, x < conv.size[1])
            return tirx.if_then_else(there, value, _number(0))

        def down_each_column(guarded: bool) -> None:
            with T.vectorized(0, self.channel_lanes) as lane:
                for s in taken:
                    column = [element(r, s, lane, guarded) for r in taken]
                    for r, value in enumerate(columns(column, _Kept(parts, lane))):
                        T.buffer_store(halves[r], value, [s, lane])

        ends = y0 + self.form.inputs, x0 + self.form.inputs
        whole = tirx.all(y0 >= 0, ends[0] <= conv.size[0], x0 >= 0, ends[1] <= conv.size[1])
        with T.If(whole):
            with T.Then():
                down_each_column(guarded=False)
            with T.Else():
                down_each_column(guarded=True)
        with T.vectorized(0, self.channel_lanes) as lane:
            for r in taken:
                row = columns([halves[r][s, lane] for s in taken], _Kept(parts, lane))
                for s, value in enumerate(row):
                    where = [r * self.form.inputs + s, number, vector * self.channel_lanes + lane]
                    T.buffer_store(seen, value, where)

    def multiply(self, weight_tile: Expr, seen: tirx.Buffer, made: tirx.Buffer, sums: Sequence[tirx.Buffer]) -> None:
        """The products of all tiles of a strip with one block of the weights."""
        conv, taken = self.conv, self.form.inputs
        groups, group_start = starts(self.strip, self.rows)
        every = list(itertools.product(range(self.rows), range(self.vectors)))
        panel_bytes = 4 * conv.in_channels * conv.weight_block
        unroll = math.gcd(conv.in_channels, vectors_of(self.target).unroll)
        steps = conv.in_channels // unroll
        share = panel_bytes // (groups * steps)  # of the next panel, with each step
        whole = unroll if vectors_of(self.target).by_element and unroll == self.lanes else 0
        loaded = [T.sblock_alloc_buffer((whole,), "float32") for _ in range(self.rows if whole else 0)]
        with T.serial(0, self.places) as place, T.serial(0, groups) as group:
            t0 = group_start(group)
            # One vectorised loop around many statements: TVM takes longer for an index the more loops come before.
            with T.vectorized(0, self.lanes) as lane:
                for row, v in every:
                    T.buffer_store(sums[row], T.float32(0), [v, lane])
            with T.serial(0, conv.in_channels // unroll) as step:
                start = T.address_of(conv.weight[0, 0, 0, 0, 0])
                for line in range(share // CACHE_LINE):
                    panel = weight_tile * self.places + place + 1
                    ahead = panel * panel_bytes + (group * steps + step) * share + line * CACHE_LINE
                    prefetch(tirx.handle_add_byte_offset(start, ahead))
                if whole:
                    with T.vectorized(0, whole) as member:
                        for row, held in enumerate(loaded):
                            T.buffer_store(held, seen[place, t0 + row, step * unroll + member], [member])
                with T.unroll(0, unroll) as more, T.vectorized(0, self.lanes) as lane:
                    c = step * unroll + more
                    for row, v in every:
                        i, j = tirx.floordiv(place, taken), tirx.floormod(place, taken)
                        weight = conv.weight[weight_tile, i, j, c, v * self.lanes + lane]
                        value = loaded[row][more] if whole else seen[place, t0 + row, c]
                        T.buffer_store(sums[row], sums[row][v, lane] + value * weight, [v, lane])
            with T.vectorized(0, self.lanes) as lane:
                for row, v in every:
                    T.buffer_store(made, sums[row][v, lane], [place, t0 + row, v * self.lanes + lane])

    def restore(
        self,
        first: Expr,
        number: Expr,
        weight_tile: Expr,
        vector: Expr,
        made: tirx.Buffer,
        halves: Sequence[tirx.Buffer],
        parts: tirx.Buffer,
    ) -> None:
        """The outputs of a tile, for one vector of channels."""
        conv, taken, columns = self.conv, self.form.inputs, RESTORE[self.form.outputs]
        n, y0, x0 = self.corner(first + number)
        with T.vectorized(0, self.lanes) as lane:
            for s in range(taken):
                column = [made[r * taken + s, number, vector * self.lanes + lane] for r in range(taken)]
                for r, value in enumerate(columns(column, _Kept(parts, lane))):
                    T.buffer_store(halves[r], value, [s, lane])
        with T.vectorized(0, self.lanes) as lane:
            for r, half in enumerate(halves):
                row = columns([half[s, lane] for s in range(taken)], _Kept(parts, lane))
                for s, value in enumerate(row):
                    channel = weight_tile * conv.weight_block + vector * self.lanes + lane
                    self.store(value, (n, channel, y0 + r, x0 + s))

    def store(self, value: Expr, where: tuple[Expr, ...]) -> None:
        conv, outputs = self.conv, self.form.outputs
        within: list[Any] = [
            at < length for at, length in zip(where[2:], conv.out_size, strict=True) if length % outputs
        ]
        if not within:
            T.buffer_store(conv.output, conv.finish(value, where), blocked(conv.output, *where))
            return
        with T.If(tirx.all(*within)), T.Then():
            T.buffer_store(conv.output, conv.finish(value, where), blocked(conv.output, *where))
