"""A matrix product on a GPU, rows of weights × columns of pixels: what all rules with a sum over channels share.

output[f, p] = Σ_k weight[f, k] · value[k, p]. A rule says what the factors and the store are; how a pixel's value comes
about (a load, a tap of a window, a whole depthwise convolution) is its own affair.

1. A block computes `rows` × `columns` outputs. Slices of both factors, `depth` × `splits` deep, go through shared
   memory, weights turned, so that a thread reads its factors in vectors.
2. A thread has `by_rows` × `by_columns` sums in registers: each factor that it reads serves a whole row or column.
3. Two buffers take turns: the next slice is fetched into registers while the current one is worked on and is written
   where nobody reads, so there is one barrier a slice.
4. Small maps leave too few blocks. With `splits`, groups of threads share the depth of a slice; their sums are added
   through shared memory at the end.

Registers: by_rows · by_columns sums, by_rows + by_columns factors, and the fetched slice (`Tile.fetched`). Shared
memory: `Tile.shared_bytes`. `tiles_for` keeps both within the GPU's limits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import unfuse
from tvmflow.schedules.cuda._grid import (
    MOST_THREADS,
    WARP,
    Expr,
    launch,
    local,
    multiprocessors,
    pieces,
    shared,
    shared_bytes,
    when,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

PADDING = 4
"""Floats after each row of turned weights, so that threads that write a column meet different banks."""
MOST_FETCHED = 32
MOST_PRODUCTS = 256
"""Of a thread in a slice, which are unrolled: with 1024 NVIDIA's compiler takes 16 s."""


Piece = tuple[int, Expr, Expr, "Expr | None"]
"""Where a thread has it in registers, its place along and across the depth of a slice, and whether there is one."""


class Tile(NamedTuple):
    """What may be chosen; the module's docstring says what each is."""

    rows: int
    columns: int
    depth: int
    by_rows: int
    by_columns: int
    splits: int

    @property
    def threads(self) -> int:
        return self.rows // self.by_rows * (self.columns // self.by_columns) * self.splits

    @property
    def slice(self) -> int:
        return self.depth * self.splits

    @property
    def fetched(self) -> int:
        """Floats of the next slice in a thread's registers."""
        return math.ceil(self.slice * self.rows / self.threads) + math.ceil(self.slice * self.columns / self.threads)

    @property
    def shared_bytes(self) -> int:
        slices = 2 * self.slice * (self.rows + PADDING + self.columns)
        return 4 * (slices + (self.splits * self.rows * self.columns if self.splits > 1 else 0))


@dataclass(frozen=True, kw_only=True)
class Product:
    """rows × columns outputs of `depth` products each.

    `weight(f, k)` and `value(k, p)` are the factors, `store(f, p, total)` emits the store of a result; all of them are
    called with indices in range. With `weight_lanes` of 4, four k from a multiple of 4 lie side by side and aligned;
    with `value_lanes` and `store_lanes` four p do.
    """

    func: tirx.PrimFunc
    rows: int
    columns: int
    depth: int
    weight: Callable[[Expr, Expr], Expr]
    value: Callable[[Expr, Expr], Expr]
    store: Callable[[Expr, Expr, Expr], None]
    weight_lanes: int = 1
    value_lanes: int = 1
    store_lanes: int = 1


def scheduled(product: Product | None, target: Target, tile: tuple[int, ...] | None) -> Schedule | None:
    """What a rule makes of a product that it serves: by `tile`, or by the most promising."""
    if product is None:
        return None
    return Schedule(loops(product, Tile(*tile) if tile else tiles_for(product, target)[0]))


def choices(product: Product | None, target: Target) -> list[tuple[int, ...]]:
    """What such a rule's `tile` may be; nothing if it serves no product."""
    return [] if product is None else [tuple(tile) for tile in tiles_for(product, target)]


def tiles_for(product: Product, target: Target) -> list[Tile]:
    """The tiles that this GPU can hold and that don't waste more than they must, the most promising first."""
    found = []
    for rows in (16, 32, 64, 128):
        for columns in (16, 32, 64, 128):
            for by_rows, by_columns in ((2, 2), (4, 2), (4, 4), (8, 4), (4, 8), (8, 8)):
                for depth in (4, 8, 16):
                    for splits in (1, 2, 4, 8):
                        tile = Tile(rows, columns, depth, by_rows, by_columns, splits)
                        if _possible(tile, product, target):
                            found.append(tile)
    return sorted(found, key=functools.partial(_cost, product, multiprocessors(target))) or [Tile(16, 16, 4, 2, 2, 1)]


def _possible(tile: Tile, product: Product, target: Target) -> bool:
    if not WARP <= tile.threads <= MOST_THREADS // 2 or tile.threads % WARP:
        return False
    if tile.depth * tile.by_rows * tile.by_columns > MOST_PRODUCTS:
        return False
    if tile.fetched > MOST_FETCHED or tile.shared_bytes > shared_bytes(target):
        return False
    if tile.slice > max(4, product.depth):
        return False
    return _no_wider(tile.rows, product.rows) and _no_wider(tile.columns, product.columns)


def _no_wider(tile: int, length: int) -> bool:
    """Whether half of a tile is still too little."""
    return tile == 16 or tile // 2 < length


def _cost(product: Product, processors: int, tile: Tile) -> float:
    """A rough count of a multiprocessor's cycles: sums, slices to wait for, waves of blocks."""
    blocks = math.ceil(product.rows / tile.rows) * math.ceil(product.columns / tile.columns)
    sums = tile.by_rows * tile.by_columns
    share = sums / (sums + (tile.by_rows + tile.by_columns) / 2)
    together = max(1, min(8, 1024 // tile.threads))  # blocks that hide each other's waits
    waves = math.ceil(blocks / processors)
    lanes = min(128, tile.threads * min(waves, together))
    work = waves * product.depth * tile.rows * tile.columns / (lanes * share)
    waits = math.ceil(waves / together) * math.ceil(product.depth / tile.slice) * 400
    return work + waits + (200 * math.log2(tile.splits) if tile.splits > 1 else 0)


def loops(product: Product, tile: Tile) -> tirx.PrimFunc:
    """The kernel."""
    across = math.ceil(product.columns / tile.columns)
    blocks = math.ceil(product.rows / tile.rows) * across
    slices = math.ceil(product.depth / tile.slice)
    with launch(product.func, blocks, tile.threads) as (builder, block, thread):
        kernel_ = _Kernel(product, tile, block, thread, across, slices)
        kernel_.clear()
        kernel_.fetch(0)
        kernel_.write(0)
        if slices > 1:
            with T.serial(0, slices // 2) as pair:
                for side in (0, 1):
                    following = pair * 2 + side + 1
                    last = side == 1 and slices % 2 == 0  # only in the last turn is there no following slice
                    with when(following < slices if last else None):
                        kernel_.fetch(following)
                    kernel_.compute(side)
                    with when(following < slices if last else None):
                        kernel_.write(1 - side)
        if slices % 2:
            kernel_.compute(0)
        if tile.splits > 1:
            kernel_.add_splits()
        else:
            kernel_.store()
    return builder.get()


class _Kernel:
    """Emits the parts of one kernel."""

    def __init__(self, product: Product, tile: Tile, block: Expr, thread: Expr, across: int, slices: int) -> None:
        self.product, self.tile, self.thread = product, tile, thread
        self.f0 = tirx.floordiv(block, across) * tile.rows
        self.p0 = tirx.floormod(block, across) * tile.columns
        group = tile.threads // tile.splits
        in_group = tirx.floormod(thread, group)
        beside = tile.columns // tile.by_columns
        self.split = tirx.floordiv(thread, group)
        self.row_place, self.column_place = tirx.floordiv(in_group, beside), tirx.floormod(in_group, beside)
        self.row_lanes, self.column_lanes = min(4, tile.by_rows), min(4, tile.by_columns)
        self.pitch = tile.rows + PADDING
        turns = 2 if slices > 1 else 1
        self.weights = [shared(tile.slice * self.pitch) for _ in range(turns)]
        self.values = [shared(tile.slice * tile.columns) for _ in range(turns)]
        self.next_weights = local(_rounds(tile.slice * tile.rows, tile.threads, product.weight_lanes))
        self.next_values = local(_rounds(tile.slice * tile.columns, tile.threads, product.value_lanes))
        self.sums = local(tile.by_rows * tile.by_columns)
        self.row, self.column = local(tile.by_rows), local(tile.by_columns)
        self.partial: Expr = shared(tile.splits * tile.rows * tile.columns) if tile.splits > 1 else None

    def clear(self) -> None:
        with T.unroll(0, self.tile.by_rows * self.tile.by_columns) as index:
            T.buffer_store(self.sums, T.float32(0), [index])

    def _weight_pieces(self) -> Iterator[Piece]:
        """Neighbouring threads take 32 bytes of a row, then other rows: whole sectors read, no bank written twice."""
        lanes, rows = self.product.weight_lanes, self.tile.rows
        near = min(self.tile.slice, 8) // lanes
        for place, (piece, condition) in enumerate(self._pieces(self.tile.slice // lanes * rows)):
            far, f, k = unfuse(piece, self.tile.slice // lanes // near, rows, near)
            yield place * lanes, (far * near + k) * lanes, f, condition

    def _value_pieces(self) -> Iterator[Piece]:
        lanes = self.product.value_lanes
        beside = self.tile.columns // lanes
        for place, (piece, condition) in enumerate(self._pieces(beside * self.tile.slice)):
            yield place * lanes, tirx.floordiv(piece, beside), tirx.floormod(piece, beside) * lanes, condition

    def _pieces(self, count: int) -> Iterator[tuple[Expr, Expr | None]]:
        return pieces(count, self.tile.threads, self.thread)

    def fetch(self, number: Expr) -> None:
        """A slice of both factors from global memory into registers; zeros beyond the edges."""
        product, tile = self.product, self.tile
        k0 = number * tile.slice
        for place, k, f, condition in self._weight_pieces():
            inside = [] if condition is None else [condition]
            inside += [] if product.rows % tile.rows == 0 else [self.f0 + f < product.rows]
            inside += [] if product.depth % tile.slice == 0 else [k0 + k < product.depth]
            self._load(
                self.next_weights,
                place,
                product.weight_lanes,
                inside,
                functools.partial(lambda f, k, lane: product.weight(f, k + lane), self.f0 + f, k0 + k),
            )
        for place, k, p, condition in self._value_pieces():
            inside = [] if condition is None else [condition]
            inside += [] if product.columns % tile.columns == 0 else [self.p0 + p < product.columns]
            inside += [] if product.depth % tile.slice == 0 else [k0 + k < product.depth]
            self._load(
                self.next_values,
                place,
                product.value_lanes,
                inside,
                functools.partial(lambda k, p, lane: product.value(k, p + lane), k0 + k, self.p0 + p),
            )

    def _load(self, registers, place: int, lanes: int, inside: list[Expr], read: Callable[[Expr], Expr]) -> None:
        def value(lane: Expr) -> Expr:
            return T.if_then_else(tirx.all(*inside), read(lane), T.float32(0)) if inside else read(lane)

        if lanes == 1:
            T.buffer_store(registers, value(0), [place])
            return
        with T.vectorized(0, lanes) as lane:
            T.buffer_store(registers, value(lane), [place + lane])

    def write(self, side: int) -> None:
        """The fetched slice from registers into shared memory."""
        lanes = self.product.weight_lanes
        for place, k, f, condition in self._weight_pieces():
            with when(condition):
                for lane in range(lanes):
                    T.buffer_store(self.weights[side], self.next_weights[place + lane], [(k + lane) * self.pitch + f])
        lanes = self.product.value_lanes
        for place, k, p, condition in self._value_pieces():
            with when(condition):
                if lanes == 1:
                    T.buffer_store(self.values[side], self.next_values[place], [k * self.tile.columns + p])
                else:
                    with T.vectorized(0, lanes) as lane:
                        T.buffer_store(
                            self.values[side], self.next_values[place + lane], [k * self.tile.columns + p + lane]
                        )

    def compute(self, side: int) -> None:
        """Add what a slice contributes to a thread's sums."""
        tile = self.tile
        with T.unroll(0, tile.depth) as step:
            k = self.split * tile.depth + step
            for group in range(tile.by_rows // self.row_lanes):
                with T.vectorized(0, self.row_lanes) as lane:
                    at = k * self.pitch + self._row(group, lane)
                    T.buffer_store(self.row, self.weights[side][at], [group * self.row_lanes + lane])
            for group in range(tile.by_columns // self.column_lanes):
                with T.vectorized(0, self.column_lanes) as lane:
                    at = k * tile.columns + self._column(group, lane)
                    T.buffer_store(self.column, self.values[side][at], [group * self.column_lanes + lane])
            with T.unroll(0, tile.by_rows) as m, T.unroll(0, tile.by_columns) as n:
                at = m * tile.by_columns + n
                T.buffer_store(self.sums, self.sums[at] + self.row[m] * self.column[n], [at])

    def _row(self, group: int, lane: Expr) -> Expr:
        """Of a thread's rows, that of a lane of a vector, within the block's."""
        groups = self.tile.by_rows // self.row_lanes
        return group * (self.tile.rows // groups) + self.row_place * self.row_lanes + lane

    def _column(self, group: int, lane: Expr) -> Expr:
        groups = self.tile.by_columns // self.column_lanes
        return group * (self.tile.columns // groups) + self.column_place * self.column_lanes + lane

    def store(self) -> None:
        """Each thread stores its own sums."""
        tile, product = self.tile, self.product
        wide = product.store_lanes == 4 and self.column_lanes == 4
        for m in range(tile.by_rows):
            f = self.f0 + self._row(m // self.row_lanes, m % self.row_lanes)
            with when(None if product.rows % tile.rows == 0 else f < product.rows):
                for group in range(tile.by_columns // self.column_lanes):
                    first = m * tile.by_columns + group * self.column_lanes
                    p = self.p0 + self._column(group, 0)
                    inside = product.columns % tile.columns == 0
                    if wide:
                        with when(None if inside else p < product.columns), T.vectorized(0, 4) as lane:
                            product.store(f, p + lane, self.sums[first + lane])
                        continue
                    for lane in range(self.column_lanes):
                        with when(None if inside else p + lane < product.columns):
                            product.store(f, p + lane, self.sums[first + lane])

    def add_splits(self) -> None:
        """All threads add the sums of the groups, neighbours for neighbouring pixels, and store them."""
        tile, product = self.tile, self.product
        outputs = tile.rows * tile.columns
        for m in range(tile.by_rows):
            for n in range(tile.by_columns):
                row = self._row(m // self.row_lanes, m % self.row_lanes)
                column = self._column(n // self.column_lanes, n % self.column_lanes)
                at = self.split * outputs + row * tile.columns + column
                T.buffer_store(self.partial, self.sums[m * tile.by_columns + n], [at])
        for piece, condition in self._pieces(outputs):
            f, p = self.f0 + tirx.floordiv(piece, tile.columns), self.p0 + tirx.floormod(piece, tile.columns)
            inside = [] if condition is None else [condition]
            inside += [] if product.rows % tile.rows == 0 else [f < product.rows]
            inside += [] if product.columns % tile.columns == 0 else [p < product.columns]
            with when(tirx.all(*inside) if inside else None):
                total = self.partial[piece]
                for split in range(1, tile.splits):
                    total = total + self.partial[split * outputs + piece]
                product.store(f, p, total)


def _rounds(count: int, threads: int, lanes: int) -> int:
    """Floats that a thread holds if `threads` share `count` in pieces of `lanes`."""
    return math.ceil(count // lanes / threads) * lanes
