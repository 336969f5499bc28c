"""How what the pixels of a whole convolution meet is found: pixels in blocks, and runs of values that are neighbours.

Tensors are C×H×W, and the values that a pixel meets are scattered there. `Planes` picks them one by one, which a 1×1
convolution is served well enough by. `Rows` keeps as many rows of the input as the taps reach over, in a scratch buffer
as rows × columns × channels, with the border around: each value is moved there once, and then a row of taps meets a run
of neighbours. `Whole` is for the one pixel whose taps meet the whole input, which is a run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.layers import IntegerLayer
from tvmflow.schedules.cortex_m._kernel import (
    Expr,
    block_start,
    border_of,
    exchanged,
    is_interleaved,
    is_pointwise,
    met_by,
    pixels_of,
    place_of,
    tap_of,
)

PIXELS = 4


@dataclass(frozen=True, kw_only=True)
class Runs:
    """`count` runs of `length` neighbouring values in `buffer`; `at` is where a run begins for a pixel of the block.

    What lies behind a run may be read, too, if it is `readable`.
    """

    buffer: tirx.Buffer
    count: int
    length: int
    at: Callable[[Expr, int], Expr]
    readable: bool


@dataclass(frozen=True, kw_only=True)
class Values:
    """`at` is the value of that number among those that the pixel of that number in a block meets.

    `neighbours` are those of that number that the four pixels of a block meet, where they are neighbours in memory.
    """

    at: Callable[[Expr, int], Expr]
    neighbours: Callable[[Expr], Expr] | None


Emit = Callable[[Expr, int, Runs | Values], None]
"""Emits the work on a block: its first pixel, how many there are, and what they meet."""


class Met(Protocol):
    """What the pixels of a layer meet."""

    @property
    def runs(self) -> tuple[tuple[int, ...], ...]:
        """The numbers, among the weights of an output, of the values of each run; or nothing."""
        ...

    @property
    def bytes(self) -> int:
        """Of a scratch buffer."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether a pixel of the result may overwrite the input as soon as it is made."""
        ...

    def blocks(self, source: tirx.Buffer, rows: tirx.Buffer | None, emit: Emit) -> None: ...


def met_of(layer: IntegerLayer, offset: int) -> Met:
    """`offset` is taken off all values, where something is moved, and otherwise by whoever reads them."""
    if pixels_of(layer) == 1 and not any(layer.padding) and layer.weight[0].size == _elements(layer):
        return Whole(layer=layer)
    if layer.weight.shape[2:] == (1, 1):
        return Planes(layer=layer)
    return Rows.of(layer, offset)


def _elements(layer: IntegerLayer) -> int:
    _, channels, height, width = layer.input_shape
    return channels * height * width


def turned(layer: IntegerLayer) -> IntegerLayer:
    """A layer over columns of one pixel as the same over rows, which lie in memory alike."""
    columns = {layer.input_shape[3], layer.output_shape[3], layer.weight.shape[3]}
    return exchanged(layer) if columns == {1} and not any(layer.padding[1::2]) else layer


@dataclass(frozen=True, kw_only=True)
class Planes:
    """Values one by one; blocks of pixels in a row, whatever their rows."""

    layer: IntegerLayer

    runs: tuple[tuple[int, ...], ...] = ()
    bytes: int = 0

    @property
    def keeps(self) -> bool:
        return is_pointwise(self.layer)

    def blocks(self, source: tirx.Buffer, rows: tirx.Buffer | None, emit: Emit) -> None:
        """Where four don't divide the pixels, the last block is smaller: the one before may have overwritten them."""
        pixels, layer = pixels_of(self.layer), self.layer

        def values(first: Expr) -> Values:
            alone = is_pointwise(layer) and not is_interleaved(layer)
            return Values(
                at=lambda number, j: met_by(layer, source, tap_of(layer, number), first + j),
                neighbours=(lambda number: source[T.ramp(number * pixels + first, 1, PIXELS)]) if alone else None,
            )

        if pixels >= PIXELS:
            with T.serial(0, pixels // PIXELS) as block:
                emit(block * PIXELS, PIXELS, values(block * PIXELS))
        if pixels % PIXELS:
            first = T.int32(pixels - pixels % PIXELS)
            emit(first, pixels % PIXELS, values(first))


@dataclass(frozen=True, kw_only=True)
class Whole:
    """One pixel that meets each value of the input once."""

    layer: IntegerLayer

    bytes: int = 0
    keeps: bool = False

    @property
    def runs(self) -> tuple[tuple[int, ...], ...]:
        _, channels, *size = self.layer.input_shape
        pixels = size[0] * size[1]
        if is_interleaved(self.layer):
            return (tuple(c * pixels + pixel for pixel in range(pixels) for c in range(channels)),)
        return (tuple(range(channels * pixels)),)

    def blocks(self, source: tirx.Buffer, rows: tirx.Buffer | None, emit: Emit) -> None:
        length = self.layer.weight[0].size
        emit(T.int32(0), 1, Runs(buffer=source, count=1, length=length, at=lambda run, j: T.int32(0), readable=False))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of the input with their border, rows × `pitch` columns × channels.

    Row y, counted from the first of the border, is at y modulo `rows`. All are there before a row of the result is
    made, which may thus lie where the input was.
    """

    layer: IntegerLayer
    offset: int
    rows: int
    pitch: int

    @classmethod
    def of(cls, layer: IntegerLayer, offset: int) -> Rows:
        tall, wide = ((taps - 1) * by + 1 for taps, by in zip(layer.weight.shape[2:], layer.dilation, strict=True))
        reached = (layer.output_shape[3] - 1) * layer.stride[1] + wide
        pitch = max(reached, layer.padding[1] + layer.input_shape[3])
        return cls(layer=layer, offset=offset, rows=tall, pitch=pitch)

    @property
    def keeps(self) -> bool:
        """The rows of a map that is as large as the input's are made after those above them were moved."""
        return self.layer.output_shape[2:] == self.layer.input_shape[2:] and self.layer.stride == (1, 1)

    @property
    def runs(self) -> tuple[tuple[int, ...], ...]:
        _, channels, tall, wide = self.layer.weight.shape

        def number(c: int, r: int, s: int) -> int:
            return (c * tall + r) * wide + s

        if self._joined:
            return tuple(tuple(number(c, r, s) for s in range(wide) for c in range(channels)) for r in range(tall))
        return tuple(tuple(number(c, r, s) for c in range(channels)) for r in range(tall) for s in range(wide))

    @property
    def _joined(self) -> bool:
        """Whether the taps of a row are neighbours."""
        return self.layer.dilation[1] == 1 or self.layer.weight.shape[3] == 1

    @property
    def bytes(self) -> int:
        """Whole words, and a vector that is read beyond the last run."""
        used = self.rows * self.pitch * self.layer.input_shape[1]
        return -(-used // READ_BEYOND) * READ_BEYOND + READ_BEYOND

    def blocks(self, source: tirx.Buffer, rows: tirx.Buffer | None, emit: Emit) -> None:
        assert rows is not None
        layer, (height, width) = self.layer, self.layer.output_shape[2:]
        down, across = layer.stride
        with T.serial(0, self.bytes) as place:
            T.buffer_store(rows, self._number(rows, border_of(layer)), [place])
        fresh = min(down, self.rows)
        for row in range(self.rows - fresh):
            self._move(source, rows, T.int32(row - layer.padding[0]))
        with T.serial(0, height) as y:
            top = y * down
            for row in range(self.rows - fresh, self.rows):
                self._move(source, rows, top + (row - layer.padding[0]))

            def found(x: Expr, top: Expr = top) -> Runs:
                return self._runs(rows, top, lambda j: (x + j) * across)

            whole, rest = divmod(width, PIXELS)
            overlapping = whole and rest > OVERLAP_FROM
            if whole:
                with T.serial(0, whole + bool(overlapping)) as block:
                    x = block_start(block, PIXELS, width) if overlapping else block * PIXELS
                    emit(y * width + x, PIXELS, found(x))
            if rest and not overlapping:
                x = T.int32(width - rest)
                emit(y * width + x, rest, found(x))

    def _runs(self, rows: tirx.Buffer, top: Expr, column: Callable[[int], Expr]) -> Runs:
        channels, (tall, wide) = self.layer.input_shape[1], self.layer.weight.shape[2:]
        down, across = self.layer.dilation
        many = 1 if self._joined else wide

        def at(run: Expr, j: int) -> Expr:
            r, s = (run, 0) if many == 1 else (tirx.truncdiv(run, many), tirx.truncmod(run, many))
            slot = tirx.truncmod(top + r * down, self.rows)
            return (slot * self.pitch + column(j) + s * across) * channels

        return Runs(buffer=rows, count=tall * many, length=channels * (wide if many == 1 else 1), at=at, readable=True)

    def _move(self, source: tirx.Buffer, rows: tirx.Buffer, y: Expr) -> None:
        """Row `y` of the input, or the border where there is none."""
        layer, (_, channels, height, width) = self.layer, self.layer.input_shape
        first = tirx.truncmod(y + layer.padding[0], self.rows) * self.pitch + layer.padding[1]

        def store(c: Expr, x: Expr, value: Expr) -> None:
            T.buffer_store(rows, value, [(first + x) * channels + c])

        def taken(c: Expr, x: Expr) -> Expr:
            return self._number(rows, source[place_of(layer, c, y, x)])

        with T.If(tirx.all(y >= 0, y < height)):
            with T.Then():
                if is_interleaved(layer):
                    with T.serial(0, width) as x, T.serial(0, channels) as c:
                        store(c, x, taken(c, x))
                else:
                    with T.serial(0, channels) as c, T.serial(0, width) as x:
                        store(c, x, taken(c, x))
            with T.Else(), T.serial(0, width) as x, T.serial(0, channels) as c:
                store(c, x, self._number(rows, border_of(layer)))

    def _number(self, rows: tirx.Buffer, value: Expr) -> Expr:
        """As it is kept: less the offset."""
        dtype = str(rows.dtype)
        if isinstance(value, int):
            return tirx.const(value - self.offset, dtype)
        return T.Cast(dtype, T.Cast("int32", value) - self.offset) if self.offset else value


READ_BEYOND = 16
"""Bytes behind the last run that a vector may read."""
OVERLAP_FROM = 2
"""With more pixels left of a row than these, a whole block costs no more than a smaller one of its own."""


def pairs_of(met: Met, inputs: int) -> list[tuple[int, int | None]]:
    """Of the values that a pixel meets, those that are two halves of a word, in the order in which they are gathered.

    Of four neighbours SXTB16 takes the first and the third, and rotated the second and the fourth.
    """
    if not met.runs:
        return [(number, number + 1 if number + 1 < inputs else None) for number in range(0, inputs, 2)]
    found: list[tuple[int, int | None]] = []
    for run in met.runs:
        whole = len(run) - len(run) % 4
        for first in range(0, whole, 4):
            found += [(run[first], run[first + 2]), (run[first + 1], run[first + 3])]
        found += _rest(run[whole:])
    return found


def _rest(numbers: Sequence[int]) -> list[tuple[int, int | None]]:
    return [
        (numbers[place], numbers[place + 1] if place + 1 < len(numbers) else None)
        for place in range(0, len(numbers), 2)
    ]
