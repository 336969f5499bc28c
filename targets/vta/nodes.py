"""Layers without weights as the accelerator sees them: sums, concatenations, moved elements, largest values of windows.

What [moves](moves.py) where is multiplied; the largest value of a window is what the ALU's MAX of two tiles leaves, one
instruction for each tap. [node_tiles](node_tiles.py) has their instructions.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tvmflow.integer.layers import IntegerNode
from tvmflow.integer.operators import OUTSIDE, Concat, Gather, MaxPool, Operator, Shape, Sum
from tvmflow.targets.vta.layout import Tensor
from tvmflow.targets.vta.moves import (
    Part,
    Run,
    TileSet,
    concat_parts,
    gather_parts,
    ranges,
    separated,
    spanned,
    sum_levels,
)
from tvmflow.targets.vta.tiles import MAX_SHIFT, moved_start

KERNELS: dict[type, str] = {Sum: "vta_add", MaxPool: "vta_max_pool", Concat: "vta_concat", Gather: "vta_gather"}
"""The operators that the accelerator computes, and what a report calls them."""


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
        return tuple(ranges([block for block, wanted in enumerate(todo) if wanted]))

    @property
    def tiles(self) -> int:
        """Tiles of the output that are computed."""
        return sum(map(len, self.blocks)) * self.target.pixels

    # ------------------------------------------------------------------------------------------- what is multiplied

    @cached_property
    def _made(self) -> tuple[tuple[tuple[Part, ...], ...], np.ndarray]:
        tiles = TileSet(self.block)
        if isinstance(self.operator, Sum):
            assert self.layer.factors is not None
            levels = sum_levels(list(map(int, self.layer.factors)), self.sources, self.target, tiles)
        elif isinstance(self.operator, Concat):
            levels = [concat_parts(self.operator, self.sources, self.placed, tiles)]
        elif isinstance(self.operator, Gather):
            levels = [[] if self.placed else gather_parts(self.operator, self.layer.input_shape, tiles)]
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
            found = [*self.ranges, *([(0, 0)] if outside else [])]
            least, most = min(low for low, _ in found), max(high for _, high in found)
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
            rows, columns = (spanned(*window.span(axis, tap)) for axis, tap in ((0, row), (1, column)))
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
