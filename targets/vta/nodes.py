"""Layers without weights as instructions: sums, concatenations, moved elements and largest values of windows.

There is no way on chip from INP to ACC but GEMM, so whatever is moved is multiplied: by tiles of zeros and ones that
say which lane goes where, or, in a sum, by tiles with the factors on their diagonal. Which pixels go where is in GEMM's
loops. Factors beyond int8 are summed in digits, the highest first, and the ALU shifts left between them. The largest
value of a window is what the ALU's MAX of two tiles leaves, one instruction for each tap.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tvmflow.integer.layers import IntegerNode
from tvmflow.integer.operators import OUTSIDE, Concat, Gather, MaxPool, Operator, Shape, Sum
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.emit import Loop, Stream
from tvmflow.targets.vta.isa import Memory, Operation, Uop
from tvmflow.targets.vta.layout import Tensor
from tvmflow.targets.vta.tiles import MAX_SHIFT, ONCE, OutputTile, Tiling, Weights, moved_start, parts

KERNELS: dict[type, str] = {Sum: "vta_add", MaxPool: "vta_max_pool", Concat: "vta_concat", Gather: "vta_gather"}
"""The operators that the accelerator computes, and what a report calls them."""

DIGIT = 7
"""Bits of a digit of a factor that int8 can't hold; digits lie between −64 and 63."""

LARGEST_FACTOR = 127
LARGEST_STEP = 16
"""How far apart the outputs of a run may lie."""

LEAST_TILES, MOST_TILES, PIECE = 32, 256, 64
"""Of the output: how many are computed at once by default, and how many of the last are finished and stored at once."""

RESIDUES = ((1, 2, 3, 4, 9, 16), (1, 2, 3, 4), (1, 2, 3, 4))
"""Channels, rows and columns are looked at together if their numbers are the same modulo one of these."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Rows or columns at equal distances: output `first` + k · `step` reads input `start` + k · `stride`."""

    first: int
    step: int
    start: int
    stride: int
    count: int

    def within(self, outputs: range) -> Run | None:
        """The part of it whose outputs lie there."""
        low = max(0, -(-(outputs.start - self.first) // self.step))
        high = min(self.count, -(-(outputs.stop - self.first) // self.step))
        if low >= high:
            return None
        return Run(
            first=self.first + low * self.step,
            step=self.step,
            start=self.start + low * self.stride,
            stride=self.stride,
            count=high - low,
        )

    @property
    def reads(self) -> range:
        """From the first input to the last."""
        return range(self.start, self.start + (self.count - 1) * self.stride + 1)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A block of the output gets a block of an input, multiplied by the weight tile of this number."""

    target: int
    source: int
    tile: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one input adds to the output: all its pairs of blocks at all its rows and columns."""

    source: int
    pairs: tuple[Pair, ...]
    rows: tuple[Run, ...]
    columns: tuple[Run, ...]

    @property
    def pixels(self) -> int:
        return sum(run.count for run in self.rows) * sum(run.count for run in self.columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeWork:
    """A layer without weights as the accelerator sees it.

    `ranges` are the least and the most of each input. `placed` are the inputs that lie in memory where the output has
    them, so that nothing has to be moved; a work that has all of them `placed` is no work. `kept` are the tiles of
    inputs that may be on chip already, as an earlier layer reads them, too.
    """

    layer: IntegerNode
    sources: tuple[Tensor, ...]
    target: Tensor
    ranges: tuple[tuple[int, int], ...]
    placed: frozenset[int] = frozenset()
    kept: int = 0

    @property
    def block(self) -> int:
        return self.target.block

    @property
    def operator(self) -> Operator:
        return self.layer.operator

    @cached_property
    def blocks(self) -> tuple[range, ...]:
        """The blocks of the output that have to be computed, in runs."""
        todo = [True] * self.target.blocks
        for number in self.placed:
            if isinstance(self.operator, Gather):
                return ()
            first = sum(source.shape[0] for source in self.sources[:number]) // self.block
            todo[first : first + self.sources[number].blocks] = [False] * self.sources[number].blocks
        return tuple(_ranges([block for block, wanted in enumerate(todo) if wanted]))

    @property
    def tiles(self) -> int:
        """Tiles of the output that are computed."""
        return sum(map(len, self.blocks)) * self.target.pixels

    # ------------------------------------------------------------------------------------------- what is multiplied

    @cached_property
    def _made(self) -> tuple[tuple[tuple[Part, ...], ...], np.ndarray]:
        tiles = _Tiles(self.block)
        if isinstance(self.operator, Sum):
            levels = self._sum(tiles)
        elif isinstance(self.operator, Concat):
            levels = [self._concat(self.operator, tiles)]
        elif isinstance(self.operator, Gather):
            levels = [self._gather(self.operator, tiles)]
        else:
            tiles.add(np.eye(self.block, dtype=np.int8))
            levels = []
        return tuple(map(tuple, levels)), tiles.array

    @property
    def levels(self) -> tuple[tuple[Part, ...], ...]:
        """What is added up, and shifted left by DIGIT before the next is added."""
        return self._made[0]

    @property
    def weights(self) -> np.ndarray:
        """int8 count × block × block: the tiles that pairs name; of a pool the unit matrix alone."""
        return self._made[1]

    @cached_property
    def tiles_of_a_block(self) -> int:
        """Weight tiles that a block of the output takes at most, at a time."""
        counts = (Counter(pair.target for part in level for pair in part.pairs) for level in self.levels)
        return max((max(count.values()) for count in counts if count), default=1)

    def _sum(self, tiles: _Tiles) -> list[list[Part]]:
        assert self.layer.factors is not None
        digits = _digits([int(factor) for factor in self.layer.factors])
        channels = self.target.shape[0]
        levels = []
        for level in digits:
            parts = []
            for number, (digit, source) in enumerate(zip(level, self.sources, strict=True)):
                if digit == 0:
                    continue
                reads = np.arange(channels) if source.shape[0] == channels else np.zeros(channels, np.int64)
                pairs = _pairs(np.arange(channels), reads, digit, tiles, self.block)
                rows, columns = (
                    Run(first=0, step=1, start=0, stride=int(source.shape[axis] > 1), count=self.target.shape[axis])
                    for axis in (1, 2)
                )
                parts.append(Part(source=number, pairs=pairs, rows=(rows,), columns=(columns,)))
            levels.append(parts)
        return levels

    def _concat(self, operator: Concat, tiles: _Tiles) -> list[Part]:
        parts, offset = [], 0
        for number, source in enumerate(self.sources):
            first = [0, 0, 0]
            first[operator.axis - 1] = offset
            offset += source.shape[operator.axis - 1]
            if number in self.placed:
                continue
            channels = np.arange(source.shape[0])
            pairs = _pairs(channels + first[0], channels, 1, tiles, self.block)
            rows, columns = (
                Run(first=first[axis], step=1, start=0, stride=1, count=source.shape[axis]) for axis in (1, 2)
            )
            parts.append(Part(source=number, pairs=pairs, rows=(rows,), columns=(columns,)))
        return parts

    def _gather(self, operator: Gather, tiles: _Tiles) -> list[Part]:
        if self.placed:
            return []
        found = separated(operator, self.layer.input_shape)
        assert found is not None
        return [
            Part(
                source=0,
                pairs=_pairs(*channels, 1, tiles, self.block),
                rows=tuple(_runs(*rows)),
                columns=tuple(_runs(*columns)),
            )
            for channels, rows, columns in found
        ]

    # ------------------------------------------------------------------------------------------------ how it finishes

    @property
    def shifts(self) -> tuple[int, ...]:
        """Of each block of outputs."""
        return (self.layer.shift if isinstance(self.operator, Sum) else 0,) * self.target.blocks

    @cached_property
    def rounds_late(self) -> bool:
        """Whether the half that makes the shift round is added by the ALU, as the sum isn't begun with it: one where
        all bits but the last are shifted out is the same."""
        return self.shifts[0] > 0 and (len(self.levels) > 1 or self.shifts[0] > MAX_SHIFT)

    @cached_property
    def start(self) -> tuple[int, int]:
        """What accumulators begin with, and how much everything after the shift is moved by that."""
        shift = self.shifts[0]
        return (0, 0) if shift == 0 or self.rounds_late else moved_start(1 << shift - 1, shift)

    @cached_property
    def saturates(self) -> tuple[bool, bool]:
        """Whether what is shifted can come to lie under the minimum or over the maximum, for any input at all."""
        if isinstance(self.operator, Sum):
            assert self.layer.factors is not None
            ends = [
                sorted((int(factor) * low, int(factor) * high))
                for factor, (low, high) in zip(self.layer.factors, self.ranges, strict=True)
            ]
            half = (1 << self.layer.shift) >> 1
            least, most = (sum(end[side] for end in ends) + half >> self.layer.shift for side in (0, 1))
        else:
            outside = isinstance(self.operator, Gather) and bool((self.operator.places == OUTSIDE).any())
            ranges = [*self.ranges, *([(0, 0)] if outside else [])]
            least, most = min(low for low, _ in ranges), max(high for _, high in ranges)
        return least < self.layer.minimum, most > self.layer.maximum

    @cached_property
    def passes(self) -> int:
        """ALU instructions that a tile is finished by, at least."""
        shift = self.shifts[0]
        shifts = -(-(shift - 1) // MAX_SHIFT) + 2 if self.rounds_late else -(-shift // MAX_SHIFT)
        return max(1, shifts + sum(self.saturates))

    # ------------------------------------------------------------------------------------------------------- pooling

    def taps(self, outputs: range) -> list[tuple[Run, Run]]:
        """Of a pool: for each tap that meets the map where these rows of the output are, its rows and its columns."""
        assert isinstance(self.operator, MaxPool)
        window, found = self.operator.window, []
        for row, column in np.ndindex(*window.kernel):
            rows, columns = (_spanned(*window.span(axis, tap)) for axis, tap in ((0, row), (1, column)))
            part = rows.within(outputs) if rows.count else None
            if part is not None and columns.count:
                found.append((part, columns))
        return found

    @cached_property
    def separable(self) -> bool:
        """Whether the largest of each row, and then of these in each column, takes fewer cycles than all taps do."""
        return self._separate_cycles < self._together_cycles

    @cached_property
    def _along(self) -> tuple[int, int, int]:
        """Of a block of a pool: rows that are read, and of all its rows, and columns, how often a tap meets the map."""
        assert isinstance(self.operator, MaxPool)
        window = self.operator.window
        rows, columns = (sum(count * len(taps) for _, count, taps in window.cuts(axis)) for axis in (0, 1))
        return self.copied // self.target.blocks // self.sources[0].shape[2], rows, columns

    @property
    def _together_cycles(self) -> int:
        """Of a block's comparisons: a first tap that covers the map is multiplied, a cycle a tile; others take two."""
        _, rows, columns = self._along
        return self.target.pixels + 2 * (rows * columns - self.target.pixels)

    @property
    def _separate_cycles(self) -> int:
        """The same of one axis after the other: the first tap of a row is multiplied into a tile that is begun."""
        read, rows, columns = self._along
        width = self.target.shape[2]
        return 2 * read * width + 2 * read * (columns - width) + 2 * rows * width

    # -------------------------------------------------------------------------------------------------------- figures

    def rows_read(self, source: int, outputs: range) -> range:
        """The rows of an input from the first to the last that these rows of the output read."""
        if isinstance(self.operator, MaxPool):
            read = [rows.reads for rows, _ in self.taps(outputs)]
        else:
            parts = [part for level in self.levels for part in level if part.source == source]
            runs = (run.within(outputs) for part in parts for run in part.rows)
            read = [run.reads for run in runs if run is not None]
        return range(min((rows.start for rows in read), default=0), max((rows.stop for rows in read), default=0))

    @cached_property
    def copied(self) -> int:
        """Of a pool: tiles of the input that pass from INP to ACC at least, where windows have more than one tap."""
        rows: set[int] = set()
        for row in range(self.target.shape[1]):
            taps = self.taps(range(row, row + 1))
            rows |= {vertical.start for vertical, _ in taps} if len(taps) > 1 else set()
        return self.target.blocks * len(rows) * self.sources[0].shape[2]

    @cached_property
    def read_tiles(self) -> int:
        """Tiles of the inputs that have to be read, each once."""
        return max(0, self._tiles_read - self.kept)

    @property
    def _tiles_read(self) -> int:
        if isinstance(self.operator, MaxPool):
            rows = {
                vertical.start for row in range(self.target.shape[1]) for vertical, _ in self.taps(range(row, row + 1))
            }
            return self.target.blocks * len(rows) * self.sources[0].shape[2]
        needed: dict[tuple[str, int, int], int] = {}
        for part in itertools.chain.from_iterable(self.levels):
            source = self.sources[part.source]
            read = {run.start + number * run.stride for run in part.rows for number in range(run.count)}
            needed |= {(source.name, pair.source, row): source.shape[2] for pair in part.pairs for row in read}
        return sum(needed.values())

    @property
    def weight_count(self) -> int:
        """Tiles of weights that have to be read: none, as another layer's may be the same."""
        return 0

    @cached_property
    def steps(self) -> int:
        """Micro-ops of GEMM, without those that only begin an accumulator."""
        if isinstance(self.operator, MaxPool):
            first = self._along[0] * self.target.shape[2] * self.target.blocks if self.separable else self.tiles
            return self.copied + first
        return sum(len(part.pairs) * part.pixels for level in self.levels for part in level)

    @cached_property
    def compute_cycles(self) -> int:
        """Cycles of the compute queue without any overhead."""
        begun = self.tiles * (1 + self.passes)
        if isinstance(self.operator, MaxPool):
            compared = self._separate_cycles if self.separable else self._together_cycles
            return begun + 2 * self.copied + self.target.blocks * compared
        return begun + self.steps + self.tiles * max(0, len(self.levels) - 1)


def supported(node: IntegerNode) -> bool:
    """Whether the accelerator can compute it."""
    return node.dtype == "int8" and computes(node.operator, node.input_shape)


def computes(operator: Operator, shape: Shape) -> bool:
    """The same of an operator whose first input has this shape."""
    if isinstance(operator, Gather):
        return separated(operator, shape) is not None
    return type(operator) in KERNELS


Axis = tuple[np.ndarray, np.ndarray]
"""Outputs along an axis, and the input that each reads."""


def separated(operator: Gather, shape: Shape) -> tuple[tuple[Axis, Axis, Axis], ...] | None:
    """A Gather in parts, in each of which channel, row and column read by the output's own channel, row and column.

    The parts are channels, rows and columns whose numbers are the same modulo something; None if there are none such.
    """
    places, (channels, rows, columns) = operator.places, RESIDUES
    # maps that become channels
    residues_of = (sorted({*channels, shape[3], shape[2] * shape[3]}), rows, columns)
    for residues in sorted(itertools.product(*residues_of), key=np.prod):
        if any(residue > length for residue, length in zip(residues, places.shape[1:], strict=True)):
            continue
        found = []
        for first in np.ndindex(*residues):
            some = tuple(slice(low, None, step) for low, step in zip(first, residues, strict=True))
            part = np.ascontiguousarray(places[(slice(None), *some)])
            if (part == OUTSIDE).all():
                continue
            tables = Gather(places=part).axes(shape)
            if tables is None:
                break
            axes = []
            for table, low, step in zip(tables, first, residues, strict=True):
                outputs = np.flatnonzero(table != OUTSIDE)
                axes.append((outputs * step + low, table[outputs]))
            found.append((axes[0], axes[1], axes[2]))
        else:
            return tuple(found)
    return None


def emit(stream: Stream, memory: Weights, work: NodeWork, tiling: Tiling) -> None:
    """The instructions of a layer without weights. Raises Infeasible if the tiling's parts don't fit."""
    for buffer in (stream.inp, stream.wgt, stream.acc):
        buffer.single = tiling.buffers == 1
    made: type[_NodeTile] = _Moved
    if isinstance(work.operator, MaxPool):
        made = _PooledByAxis if work.separable else _Pooled
    tiles = [made(stream, memory, work, tiling, blocks, rows) for blocks, rows in _tiles(work, tiling)]
    for tile in tiles:
        tile.emit(tiling.pieces if tile is tiles[-1] else 1)


def default_tiling(work: NodeWork, config: Config) -> Tiling:
    """Four parts or so, of which half of each buffer holds one while the other half is being filled."""
    blocks, width = max(map(len, work.blocks), default=1), work.target.shape[2]
    wanted = max(LEAST_TILES, min(MOST_TILES, work.tiles // 4))
    if isinstance(work.operator, MaxPool) and work.separable:
        wanted = MOST_TILES  # rows that two parts read are compared twice
    for halves in (2, 1):
        acc, inp = config.acc_depth // halves, config.inp_depth // halves
        for rows in reversed(parts(work.target.shape[1])):
            planes = _planes(work, rows)
            if planes.inp > inp or planes.acc > acc or (rows > 1 and rows * width > wanted):
                continue
            weights = config.wgt_depth // halves // max(1, work.tiles_of_a_block)
            out_blocks = max(1, min(blocks, acc // planes.acc, weights, wanted // (rows * width)))
            if isinstance(work.operator, MaxPool):
                out_blocks = max(1, min(out_blocks, inp // max(1, planes.inp)))
            pieces = max(1, out_blocks * rows * width // PIECE)
            return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=max(1, inp // max(1, planes.inp)), pieces=pieces)
    return Tiling(out_blocks=1, rows=1, in_blocks=1)


@dataclass(frozen=True, kw_only=True)
class _Planes:
    """Tiles that a block of the output takes of ACC, and a block of an input of INP."""

    acc: int
    inp: int


def _planes(work: NodeWork, rows: int) -> _Planes:
    height, width = work.target.shape[1:]
    cuts = [range(first, min(first + rows, height)) for first in range(0, height, rows)]
    read = [max(len(work.rows_read(number, cut)) for cut in cuts) for number in range(len(work.sources))]
    inp = max((count * source.shape[2] for count, source in zip(read, work.sources, strict=True)), default=0)
    acc = rows * width
    if isinstance(work.operator, MaxPool):
        acc += inp + (read[0] * width if work.separable else 0)
    return _Planes(acc=acc, inp=inp)


def _tiles(work: NodeWork, tiling: Tiling) -> Iterator[tuple[range, range]]:
    height = work.target.shape[1]
    for blocks in work.blocks:
        for first in range(blocks.start, blocks.stop, tiling.out_blocks):
            for row in range(0, height, tiling.rows):
                yield (
                    range(first, min(first + tiling.out_blocks, blocks.stop)),
                    range(row, min(row + tiling.rows, height)),
                )


class _NodeTile(OutputTile):
    """Some blocks and rows of the output of a layer without weights."""

    def __init__(
        self, stream: Stream, memory: Weights, work: NodeWork, tiling: Tiling, blocks: range, rows: range
    ) -> None:
        super().__init__(stream, memory, work, blocks, rows)
        self.work, self.tiling = work, tiling

    def emit(self, pieces: int) -> None:
        """The tile's instructions."""
        raise NotImplementedError

    def load_tiles(self, numbers: Sequence[int]) -> int:
        """Where these weight tiles are on chip, one behind the other. Equal tiles are the same for all layers."""
        tiles = self.work.weights[list(numbers)]
        key = ("tiles", tiles.tobytes())
        found = self.stream.wgt.find(key)
        if found is not None:
            return found
        dram, count = self.memory.chunk(key, (tiles,))
        wgt = self.stream.wgt.take(count, key)
        self.stream.load(Memory.WGT, wgt, dram, 1, count, count)
        return wgt

    def loops(self, rows: Run, columns: Run, source_width: int, source_row: int) -> tuple[Loop, Loop, int, int]:
        """The loops over rows and columns of this tile, and where they begin in a block of ACC and of the source, of
        which the rows from `source_row` on are there."""
        outer = Loop(rows.count, rows.step * self.width, rows.stride * source_width) if rows.count > 1 else ONCE
        inner = Loop(columns.count, columns.step, columns.stride) if columns.count > 1 else ONCE
        dst = (rows.first - self.rows.start) * self.width + columns.first
        return outer, inner, dst, (rows.start - source_row) * source_width + columns.start


class _Moved(_NodeTile):
    """Of a sum, a concatenation or moved elements."""

    def emit(self, pieces: int) -> None:
        count = len(self.blocks) * self.pixels
        self.acc = self.stream.acc.take(count)
        self.stream.constant(self.acc, count, self.work.start[0])
        for number, level in enumerate(self.work.levels):
            if number:
                self.stream.alu(Operation.SHR, self.acc, count, -DIGIT)
            pairs = [pair for part in level for pair in part.pairs if pair.target in self.blocks]
            used = sorted({pair.tile for pair in pairs})
            if used:
                wgt = self.load_tiles(used)
                where = {tile: wgt + place for place, tile in enumerate(used)}
                for part in level:
                    self._add(part, where)
        self.finish(pieces)

    def _add(self, part: Part, where: Mapping[int, int]) -> None:
        source = self.work.sources[part.source]
        rows = [run for run in (run.within(self.rows) for run in part.rows) if run is not None]
        pairs = [pair for pair in part.pairs if pair.target in self.blocks]
        if not rows or not pairs:
            return
        read = range(min(run.reads.start for run in rows), max(run.reads.stop for run in rows))
        plane = len(read) * source.shape[2]
        for channels in _ranges(sorted({pair.source for pair in pairs}), self.tiling.in_blocks):
            inp = self.load_planes(source, channels, read)
            for together in _apart([pair for pair in pairs if pair.source in channels]):
                for vertical, horizontal in itertools.product(rows, part.columns):
                    outer, inner, dst, src = self.loops(vertical, horizontal, source.shape[2], read.start)
                    uops = [
                        Uop(
                            self.acc + (pair.target - self.blocks.start) * self.pixels + dst,
                            inp + (pair.source - channels.start) * plane + src,
                            where[pair.tile],
                        )
                        for pair in together
                    ]
                    self.stream.gemm(outer, inner, uops)

    def shift(self, start: int, blocks: range, pixels: int) -> None:
        if not self.work.rounds_late:
            super().shift(start, blocks, pixels)
            return
        left, count = self.work.shifts[0] - 1, len(blocks) * pixels
        while left:
            amount = min(left, MAX_SHIFT)
            self.stream.alu(Operation.SHR, start, count, amount)
            left -= amount
        self.stream.alu(Operation.ADD, start, count, 1)
        self.stream.alu(Operation.SHR, start, count, 1)


class _Pooled(_NodeTile):
    """Of the largest values of windows."""

    def emit(self, pieces: int) -> None:
        (source,), blocks = self.work.sources, len(self.blocks)
        read = self.work.rows_read(0, self.rows)
        plane, count = len(read) * source.shape[2], blocks * self.pixels
        taps = self.work.taps(self.rows)
        first = next((tap for tap in taps if tap[0].count * tap[1].count == self.pixels), None)
        others = [tap for tap in taps if tap is not first]
        # both at once: what is taken after another may take its place
        self.acc = self.stream.acc.take(count + (blocks * plane if others else 0))
        copies = self.acc + count
        unit = self.load_tiles([0])
        inp = self.load_planes(source, self.blocks, read)
        if others:
            self.stream.constant(copies, blocks * plane, 0)
            self.stream.gemm(ONCE, Loop(blocks * plane, 1, 1), [Uop(copies, inp, unit)])
            self.stream.known(copies, blocks * plane, -128, 127)
        if first is None:
            self.stream.constant(self.acc, count, -128)
        else:
            self.stream.constant(self.acc, count, 0)
            outer, inner, uops = self._tap(first, inp, plane, read.start, unit)
            self.stream.gemm(outer, inner, uops)
            self.stream.known(self.acc, count, -128, 127)
        for tap in others:
            outer, inner, uops = self._tap(tap, copies, plane, read.start, 0)
            self.stream.combine(Operation.MAX, outer, inner, uops)
        self.finish(pieces)

    def _tap(self, tap: tuple[Run, Run], begin: int, plane: int, row: int, wgt: int) -> tuple[Loop, Loop, list[Uop]]:
        outer, inner, dst, src = self.loops(*tap, self.work.sources[0].shape[2], row)
        uops = [
            Uop(self.acc + block * self.pixels + dst, begin + block * plane + src, wgt)
            for block in range(len(self.blocks))
        ]
        return outer, inner, uops


class _PooledByAxis(_NodeTile):
    """The same in two steps: in ACC behind each other lie outputs, the largest of each row's windows, and the input."""

    def emit(self, pieces: int) -> None:
        (source,), blocks, width = self.work.sources, len(self.blocks), self.width
        operator, in_width = self.work.operator, self.work.sources[0].shape[2]
        assert isinstance(operator, MaxPool)
        read = self.work.rows_read(0, self.rows)
        plane, between, count = len(read) * in_width, len(read) * width, blocks * self.pixels
        self.acc = self.stream.acc.take(count + blocks * (between + plane))
        largest = self.acc + count
        copies = largest + blocks * between
        unit = self.load_tiles([0])
        inp = self.load_planes(source, self.blocks, read)
        self.stream.constant(copies, blocks * plane, 0)
        self.stream.gemm(ONCE, Loop(blocks * plane, 1, 1), [Uop(copies, inp, unit)])
        self.stream.known(copies, blocks * plane, -128, 127)

        columns = [_spanned(*operator.window.span(1, tap)) for tap in range(operator.window.kernel[1])]
        columns = [run for run in columns if run.count]
        first = next((run for run in columns if run.count == width), None)
        every = Loop(len(read) * blocks, width, in_width)  # rows of all blocks lie behind each other
        self.stream.constant(largest, blocks * between, -128 if first is None else 0)
        if first is not None:
            begin = Uop(largest + first.first, inp + first.start, unit)
            self.stream.gemm(every, Loop(first.count, 1, first.stride), [begin])
            self.stream.known(largest, blocks * between, -128, 127)
        for run in columns:
            if run is not first:
                begin = Uop(largest + run.first, copies + run.start)
                self.stream.combine(Operation.MAX, every, Loop(run.count, 1, run.stride), [begin])

        self.stream.constant(self.acc, count, -128)
        for tap in range(operator.window.kernel[0]):
            span = _spanned(*operator.window.span(0, tap))
            rows = span.within(self.rows) if span.count else None
            if rows is None:
                continue
            outer = Loop(rows.count, width, rows.stride * width)
            dst, src = (rows.first - self.rows.start) * width, (rows.start - read.start) * width
            uops = [
                Uop(self.acc + block * self.pixels + dst, largest + block * between + src) for block in range(blocks)
            ]
            self.stream.combine(Operation.MAX, outer, Loop(width, 1, 1), uops)
        self.finish(pieces)


class _Tiles:
    """Weight tiles, each of them once."""

    def __init__(self, block: int) -> None:
        self.block = block
        self._numbers: dict[bytes, int] = {}
        self._tiles: list[np.ndarray] = []

    def add(self, tile: np.ndarray) -> int:
        number = self._numbers.setdefault(tile.tobytes(), len(self._tiles))
        if number == len(self._tiles):
            self._tiles.append(tile)
        return number

    @property
    def array(self) -> np.ndarray:
        return np.array(self._tiles, np.int8).reshape(-1, self.block, self.block)


def _pairs(outputs: np.ndarray, inputs: np.ndarray, factor: int, tiles: _Tiles, block: int) -> tuple[Pair, ...]:
    """Blocks that meet where output channels read input channels, times `factor`."""
    found: dict[tuple[int, int], np.ndarray] = {}
    for output, read in zip(outputs.tolist(), inputs.tolist(), strict=True):
        blocks = output // block, read // block
        tile = found.setdefault(blocks, np.zeros((block, block), np.int8))
        tile[output % block, read % block] = factor
    return tuple(Pair(target=target, source=source, tile=tiles.add(tile)) for (target, source), tile in found.items())


def _digits(factors: Sequence[int]) -> list[list[int]]:
    """The factors in digits that a weight can be, the highest first: Σ digit · 2^(DIGIT · place)."""
    places: list[list[int]] = []
    left = list(factors)
    while any(abs(factor) > LARGEST_FACTOR for factor in left):
        half = 1 << DIGIT - 1
        low = [(factor + half) % (1 << DIGIT) - half for factor in left]
        places.append(low)
        left = [(factor - digit) >> DIGIT for factor, digit in zip(left, low, strict=True)]
    return [left, *reversed(places)]


def _apart(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in groups in which no two have the same target: in one instruction, these would be too near."""
    groups: list[list[Pair]] = []
    for pair in pairs:
        group = next((group for group in groups if all(other.target != pair.target for other in group)), None)
        if group is None:
            groups.append([pair])
        else:
            group.append(pair)
    return groups


def _runs(outputs: np.ndarray, inputs: np.ndarray) -> Iterator[Run]:
    """Outputs along an axis and what each reads, as few runs as a greedy search finds."""
    left = dict(zip(outputs.tolist(), inputs.tolist(), strict=True))
    while left:
        first = min(left)
        best = Run(first=first, step=1, start=left[first], stride=0, count=1)
        for step in range(1, LARGEST_STEP + 1):
            stride = left.get(first + step, -1) - left[first]
            if stride < 0:
                continue
            count = 2
            while left.get(first + count * step) == left[first] + count * stride:
                count += 1
            if count > best.count:
                best = Run(first=first, step=step, start=left[first], stride=stride, count=count)
        for number in range(best.count):
            del left[best.first + number * best.step]
        yield best


def _spanned(outputs: slice, inputs: slice) -> Run:
    return Run(
        first=outputs.start, step=1, start=inputs.start, stride=inputs.step or 1, count=outputs.stop - outputs.start
    )


def _ranges(numbers: Sequence[int], longest: int | None = None) -> list[range]:
    """Ascending numbers as ranges without gaps, none of them longer than that."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number and (longest is None or len(found[-1]) < longest):
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
