"""Depthwise convolution in NCHW straight from global memory: any stride, dilation and border, and what follows it.

1. A thread has a tile of outputs, rows × columns. They lie side by side (`spread` 1), or as far apart as the dilation
   makes them meet the same inputs ("phase": dilation 5 and stride 1 put them five apart).
2. Each input that the tile meets is loaded once, through the read-only cache, into a register, and so is each weight
   that is alive: a tap that meets nothing but the border at every output is left out. Four neighbours that are aligned
   and lie inside the row or outside it together are one load of 16 bytes.
3. All sums are made in registers, the element-wise tail is applied, and aligned neighbours are stored together.
4. Channels, row tiles and column tiles are one index, which threads and blocks share evenly, whatever the map's size.

No shared memory and no barrier. The stock search can only stage inputs there, the gaps of the dilation and the border
included. On a map of 4×4 with dilation 5 this is one load, one multiplication and one store.

Registers: rows × columns sums, (rows + taps − 1) × (columns + taps − 1) inputs at most and the weights: under 64 for
every tile but the largest. Checked without a GPU; no figure is given where none was measured.
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
from tvmflow.schedules.cuda._grid import Expr, launch, live_taps, local, multiprocessors, read_convolution, when

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_TAPS = 25
MOST_INPUTS = 64
"""Inputs in registers of one thread."""
VECTOR = 4
THREADS = (128, 64, 256)

WANTED = 256
"""Threads for each multiprocessor, for their loads to hide each other's waits."""

Tile = tuple[int, int, str, int]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a thread's tile: `count` outputs `step` apart, of an axis of `length` outputs."""

    size: int
    length: int
    stride: int
    dilation: int
    pad: int
    taps: tuple[int, ...]
    count: int
    step: int

    @property
    def tiles(self) -> int:
        return self.step * math.ceil(self.length / (self.step * self.count))

    def first(self, tile: Expr) -> Expr:
        """The first output of a tile."""
        if self.step == 1:
            return tile * self.count
        return tirx.floordiv(tile, self.step) * (self.step * self.count) + tirx.floormod(tile, self.step)

    def reach(self, place: int, tap: int) -> int:
        """From the input of the first output's tap 0 to that of another output's tap."""
        return place * self.step * self.stride + tap * self.dilation

    @property
    def reaches(self) -> list[int]:
        return sorted({self.reach(place, tap) for place in range(self.count) for tap in self.taps})

    @property
    def whole(self) -> bool:
        """Whether tiles cover the outputs exactly."""
        return self.length % (self.step * self.count) == 0


def depthwise_direct(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """`tile` is (rows, columns, "side" or "phase", threads of a block)."""
    conv = _read(func)
    if conv is None:
        return None
    return Schedule(_loops(conv, tile or tiles(func, target)[0]))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel, the most promising first."""
    conv = _read(func)
    if conv is None:
        return []
    found = [
        (rows, columns, spread, threads)
        for threads in THREADS
        for rows in (1, 2, 4)
        for columns in (1, 2, 4)
        for spread in (("side", "phase") if rows * columns > 1 and _phases(conv) != (1, 1) else ("side",))
        if _fits(conv, rows, columns, spread)
    ]
    return sorted(found, key=functools.partial(_cost, conv, target))


def _read(func: tirx.PrimFunc) -> Convolution | None:
    conv = read_convolution(func)
    if conv is None or not conv.depthwise:
        return None
    taps = len(live_taps(conv, 0)) * len(live_taps(conv, 1))
    return conv if 0 < taps <= MOST_TAPS else None


def _phases(conv: Convolution) -> tuple[int, int]:
    """How far apart outputs lie that meet the same inputs."""
    vertical, horizontal = (conv.dilation[axis] // math.gcd(conv.dilation[axis], conv.stride[axis]) for axis in (0, 1))
    return vertical, horizontal


def _axes(conv: Convolution, rows: int, columns: int, spread: str) -> tuple[Axis, Axis]:
    found = [
        Axis(
            size=conv.size[axis],
            length=conv.out_size[axis],
            stride=conv.stride[axis],
            dilation=conv.dilation[axis],
            pad=conv.pad[axis],
            taps=tuple(live_taps(conv, axis)),
            count=count,
            step=_phases(conv)[axis] if spread == "phase" else 1,
        )
        for axis, count in enumerate((rows, columns))
    ]
    return found[0], found[1]


def _fits(conv: Convolution, rows: int, columns: int, spread: str) -> bool:
    """Whether a tile is no larger than the map, or much so, and its inputs are few enough."""
    vertical, horizontal = _axes(conv, rows, columns, spread)
    if len(vertical.reaches) * len(horizontal.reaches) > MOST_INPUTS:
        return False
    return all(
        axis.count == 1 or axis.tiles * axis.count <= 1.5 * axis.length + axis.step for axis in (vertical, horizontal)
    )


def _cost(conv: Convolution, target: Target, tile: Tile) -> tuple[bool, float]:
    """Loads for each output, once every multiprocessor has threads enough."""
    rows, columns, spread, _ = tile
    vertical, horizontal = _axes(conv, rows, columns, spread)
    threads = conv.batch * conv.channels * vertical.tiles * horizontal.tiles
    loads = len(vertical.reaches) * len(_chunks(horizontal))
    return threads < WANTED * multiprocessors(target) and rows * columns > 1, threads * (loads + rows * columns)


def _chunks(axis: Axis) -> list[tuple[int, ...]]:
    """Reaches of a row that are loaded together: four that are aligned, of which at least two are needed, or one."""
    reaches = axis.reaches
    vectors = axis.stride == 1 and axis.step == 1 and axis.count % VECTOR == 0 and axis.size % VECTOR == 0
    chunks: list[tuple[int, ...]] = []
    while reaches:
        start = reaches[0] - (reaches[0] - axis.pad) % VECTOR
        together = [reach for reach in reaches if reach < start + VECTOR]
        if vectors and len(together) >= VECTOR // 2:
            chunks.append(tuple(range(start, start + VECTOR)))
            reaches = [reach for reach in reaches if reach not in together]
        else:
            chunks.append((reaches.pop(0),))
    return chunks


def _loops(conv: Convolution, tile: Tile) -> tirx.PrimFunc:
    rows, columns, spread, threads = tile
    vertical, horizontal = _axes(conv, rows, columns, spread)
    # whole vectors first, so that they are aligned in the registers' array
    chunks = sorted(_chunks(horizontal), key=len, reverse=True)
    column_of = {reach: place for place, reach in enumerate(reach for chunk in chunks for reach in chunk)}
    row_of = {reach: place for place, reach in enumerate(vertical.reaches)}
    pitch = math.ceil(len(column_of) / VECTOR) * VECTOR if len(chunks) < len(column_of) else len(column_of)
    work = conv.batch * conv.channels * vertical.tiles * horizontal.tiles
    threads = min(threads, math.ceil(work / 32) * 32)
    blocks = math.ceil(work / threads)
    wide = horizontal.step == 1 and columns % VECTOR == 0 and horizontal.length % VECTOR == 0

    with launch(conv.func, blocks, threads) as (builder, block, thread):
        taps = [(r, s) for r in vertical.taps for s in horizontal.taps]
        inputs, weights, sums = local(len(row_of) * pitch), local(len(taps)), local(rows * columns)
        index = block * threads + thread
        with when(index < work if work % threads else None):
            n, c, row_tile, column_tile = unfuse(index, conv.batch, conv.channels, vertical.tiles, horizontal.tiles)
            y0, x0 = vertical.first(row_tile), horizontal.first(column_tile)
            top, left = y0 * conv.stride[0] - conv.pad[0], x0 * conv.stride[1] - conv.pad[1]
            for place, (r, s) in enumerate(taps):
                T.buffer_store(weights, conv.weight[c, 0, r, s], [place])
            for down, row in row_of.items():
                for chunk in chunks:
                    inside = _inside(top + down, conv.size[0], left + chunk[0], left + chunk[-1], conv.size[1])
                    start = row * pitch + column_of[chunk[0]]
                    if len(chunk) == 1:
                        value = T.if_then_else(inside, conv.data[n, c, top + down, left + chunk[0]], T.float32(0))
                        T.buffer_store(inputs, value, [start])
                        continue
                    with T.vectorized(0, VECTOR) as lane:
                        value = conv.data[n, c, top + down, left + chunk[0] + lane]
                        T.buffer_store(inputs, T.if_then_else(inside, value, T.float32(0)), [start + lane])
            for y in range(rows):
                for x in range(columns):
                    for place, (r, s) in enumerate(taps):
                        at = row_of[vertical.reach(y, r)] * pitch + column_of[horizontal.reach(x, s)]
                        product = inputs[at] * weights[place]
                        before = sums[y * columns + x]
                        T.buffer_store(sums, product if place == 0 else before + product, [y * columns + x])
            for y in range(rows):
                _store(conv, sums, (n, c, y0 + y * vertical.step, x0), y * columns, vertical, horizontal, wide)
    return builder.get()


def _store(conv, sums, first, offset, vertical: Axis, horizontal: Axis, wide: bool) -> None:
    """A row of a tile, as far as it lies in the output."""
    n, c, y, x0 = first
    with when(None if vertical.whole else y < vertical.length):
        if wide:
            for start in range(0, horizontal.count, VECTOR):
                with (
                    when(None if horizontal.whole else x0 + start < horizontal.length),
                    T.vectorized(0, VECTOR) as lane,
                ):
                    where = [n, c, y, x0 + start + lane]
                    T.buffer_store(conv.output, conv.finish(sums[offset + start + lane], where), where)
            return
        for place in range(horizontal.count):
            x = x0 + place * horizontal.step
            with when(None if horizontal.whole else x < horizontal.length):
                where = [n, c, y, x]
                T.buffer_store(conv.output, conv.finish(sums[offset + place], where), where)


def _inside(y: Expr, height: int, first: Expr, last: Expr, width: int) -> Expr:
    return tirx.all(y >= 0, y < height, first >= 0, last < width)
