"""What of sums, concatenations and moved elements is multiplied: which blocks and pixels go where, and by which tiles.

There is no way on chip from INP to ACC but GEMM, so whatever is moved is multiplied: by tiles of zeros and ones that
say which lane goes where, or, in a sum, by tiles with the factors on their diagonal. Which pixels go where is in GEMM's
loops. Factors beyond int8 are summed in digits, the highest first, and the ALU shifts left between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tvmflow.integer.operators import OUTSIDE, Concat, Gather, Shape
from tvmflow.targets.vta.layout import Tensor

DIGIT = 7
"""Bits of a digit of a factor that int8 can't hold; digits lie between −64 and 63."""

LARGEST_FACTOR = 127
LARGEST_STEP = 16
"""How far apart the outputs of a run may lie."""

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


class TileSet:
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


def sum_levels(factors: Sequence[int], sources: Sequence[Tensor], target: Tensor, tiles: TileSet) -> list[list[Part]]:
    """Of a sum: what is added up, and shifted left by DIGIT before the next is added."""
    channels = target.shape[0]
    levels = []
    for level in digits(factors):
        parts = []
        for number, (digit, source) in enumerate(zip(level, sources, strict=True)):
            if digit == 0:
                continue
            reads = np.arange(channels) if source.shape[0] == channels else np.zeros(channels, np.int64)
            pairs = _pairs(np.arange(channels), reads, digit, tiles)
            rows, columns = (
                Run(first=0, step=1, start=0, stride=int(source.shape[axis] > 1), count=target.shape[axis])
                for axis in (1, 2)
            )
            parts.append(Part(source=number, pairs=pairs, rows=(rows,), columns=(columns,)))
        levels.append(parts)
    return levels


def concat_parts(operator: Concat, sources: Sequence[Tensor], placed: Collection[int], tiles: TileSet) -> list[Part]:
    """Of a concatenation: its inputs, but for those that are `placed` already."""
    parts, offset = [], 0
    for number, source in enumerate(sources):
        first = [0, 0, 0]
        first[operator.axis - 1] = offset
        offset += source.shape[operator.axis - 1]
        if number in placed:
            continue
        channels = np.arange(source.shape[0])
        pairs = _pairs(channels + first[0], channels, 1, tiles)
        rows, columns = (Run(first=first[axis], step=1, start=0, stride=1, count=source.shape[axis]) for axis in (1, 2))
        parts.append(Part(source=number, pairs=pairs, rows=(rows,), columns=(columns,)))
    return parts


def gather_parts(operator: Gather, shape: Shape, tiles: TileSet) -> list[Part]:
    """Of moved elements of a tensor of that shape, which have to be `separated`."""
    found = separated(operator, shape)
    assert found is not None
    return [
        Part(
            source=0,
            pairs=_pairs(*channels, 1, tiles),
            rows=tuple(_runs(*rows)),
            columns=tuple(_runs(*columns)),
        )
        for channels, rows, columns in found
    ]


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


def _pairs(outputs: np.ndarray, inputs: np.ndarray, factor: int, tiles: TileSet) -> tuple[Pair, ...]:
    """Blocks that meet where output channels read input channels, times `factor`."""
    found: dict[tuple[int, int], np.ndarray] = {}
    block = tiles.block
    for output, read in zip(outputs.tolist(), inputs.tolist(), strict=True):
        blocks = output // block, read // block
        tile = found.setdefault(blocks, np.zeros((block, block), np.int8))
        tile[output % block, read % block] = factor
    return tuple(Pair(target=target, source=source, tile=tiles.add(tile)) for (target, source), tile in found.items())


def digits(factors: Sequence[int]) -> list[list[int]]:
    """The factors in digits that a weight can be, the highest first: Σ digit · 2^(DIGIT · place)."""
    places: list[list[int]] = []
    left = list(factors)
    while any(abs(factor) > LARGEST_FACTOR for factor in left):
        half = 1 << DIGIT - 1
        low = [(factor + half) % (1 << DIGIT) - half for factor in left]
        places.append(low)
        left = [(factor - digit) >> DIGIT for factor, digit in zip(left, low, strict=True)]
    return [left, *reversed(places)]


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


def spanned(outputs: slice, inputs: slice) -> Run:
    return Run(
        first=outputs.start, step=1, start=inputs.start, stride=inputs.step or 1, count=outputs.stop - outputs.start
    )


def ranges(numbers: Sequence[int], longest: int | None = None) -> list[range]:
    """Ascending numbers as ranges without gaps, none of them longer than that."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number and (longest is None or len(found[-1]) < longest):
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
