"""What a node without weights can compute: the operators of quantised networks and of the float ones before them.

Tensors are 1×C×H×W. A tensor of the network of fewer dimensions is one with lengths of 1: 1×C is 1×C×1×1, and 1×C×L is
1×C×1×L. Its elements lie in the same order, so a reshape that moves nothing is no operator at all.

Each class has the shape of what it makes of inputs of given shapes; what it means for real numbers is in `graph`, for
integers in `reference`, and as loops in `tvmflow.schedules.nodes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from tvmflow.integer.window import Window

Shape = tuple[int, ...]
Box = tuple[int, int, int]
"""Lengths in channels, rows and columns."""
OUTSIDE = -1
"""In place of an index: nothing is read, and the element is 0."""


@dataclass(frozen=True, kw_only=True)
class Sum:
    """± a ± b, broadcast where a length is 1. `signs` are 1 or −1."""

    kind: ClassVar = "add"
    signs: tuple[int, ...]

    def out_shape(self, *shapes: Shape) -> Shape:
        return tuple(np.broadcast_shapes(*shapes)) if len(shapes) == len(self.signs) else ()


@dataclass(frozen=True, kw_only=True)
class Product:
    """a · b, broadcast where a length is 1."""

    kind: ClassVar = "multiply"

    def out_shape(self, *shapes: Shape) -> Shape:
        return tuple(np.broadcast_shapes(*shapes)) if len(shapes) == 2 else ()


@dataclass(frozen=True, kw_only=True)
class MaxPool:
    """The largest of what lies in the window and on the map."""

    kind: ClassVar = "max_pool"
    window: Window

    def out_shape(self, *shapes: Shape) -> Shape:
        ((_, channels, *size),) = shapes
        every = all(taps for axis in (0, 1) for _, _, taps in self.window.cuts(axis))
        return (1, channels, *self.window.out_size()) if tuple(size) == self.window.size and every else ()


@dataclass(frozen=True, kw_only=True)
class AveragePool:
    """The mean of what lies in the window and on the map."""

    kind: ClassVar = "average_pool"
    window: Window

    def out_shape(self, *shapes: Shape) -> Shape:
        return MaxPool(window=self.window).out_shape(*shapes)


@dataclass(frozen=True, kw_only=True)
class Concat:
    """Tensors one after the other along an axis: 1 channels, 2 rows, 3 columns."""

    kind: ClassVar = "concat"
    axis: int

    def out_shape(self, *shapes: Shape) -> Shape:
        rest = {shape[: self.axis] + shape[self.axis + 1 :] for shape in shapes}
        if len(rest) != 1:
            return ()
        first = shapes[0]
        return (*first[: self.axis], sum(shape[self.axis] for shape in shapes), *first[self.axis + 1 :])


@dataclass(frozen=True, kw_only=True, eq=False)
class Gather:
    """Elements at other places: slices, borders of zeros or of copies, shuffled channels, repeated pixels, transposes.

    `places` has for each element of the result, int32 of its shape 1×C×H×W, which of the input's it is, counted in
    their order in memory, or OUTSIDE, where the element is `outside`.
    """

    kind: ClassVar = "gather"
    places: np.ndarray
    outside: float = 0
    """A whole number where the elements are."""

    def out_shape(self, *shapes: Shape) -> Shape:
        ((count,),) = ((math.prod(shape),) for shape in shapes)
        inside = self.places.min() >= OUTSIDE and self.places.max() < count
        return tuple(self.places.shape) if inside else ()

    def axes(self, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """If channel, row and column of an element depend on its own channel, row and column alone: their tables.

        `shape` is the input's. OUTSIDE in one table is enough for an element to be 0.
        """
        valid = self.places != OUTSIDE
        if not valid.any():
            return None
        where = np.unravel_index(np.where(valid, self.places, 0), shape)[1:]
        tables = []
        for axis in (1, 2, 3):
            others = tuple(other for other in range(4) if other != axis)
            own = where[axis - 1]
            low = np.where(valid, own, np.iinfo(np.int64).max).min(others)
            high = np.where(valid, own, OUTSIDE).max(others)
            if (low[high != OUTSIDE] != high[high != OUTSIDE]).any():
                return None
            tables.append(high.astype(np.int32))
        seen = (tables[0] != OUTSIDE)[:, None, None] & (tables[1] != OUTSIDE)[:, None] & (tables[2] != OUTSIDE)
        return (tables[0], tables[1], tables[2]) if np.array_equal(seen, valid[0]) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Resample:
    """Rows and columns as weighted sums of few rows and columns: interpolation, and averages of unequal windows.

    `rows` and `columns` are each a pair of arrays, outputs × taps: which of the input they read, int32, and how much
    of it, float64. Integers are rounded halves up, or, with `away`, halves away from 0.
    """

    kind: ClassVar = "resample"
    rows: tuple[np.ndarray, np.ndarray]
    columns: tuple[np.ndarray, np.ndarray]
    away: bool = False

    BITS: ClassVar = 11
    """Of the fraction of an integer weight along each axis, at most."""

    def out_shape(self, *shapes: Shape) -> Shape:
        ((_, channels, height, width),) = shapes
        fits = self.rows[0].max(initial=0) < height and self.columns[0].max(initial=0) < width
        return (1, channels, len(self.rows[0]), len(self.columns[0])) if fits else ()

    @cached_property
    def bits(self) -> int:
        """Of the fraction of an integer weight: as many as keep every sum in int32."""
        for bits in range(self.BITS, 0, -1):
            most = math.prod(int(np.abs(self._scaled(table, bits)).sum(1).max()) for _, table in self.axes)
            if most * 256 + (1 << (2 * bits - 1)) < 2**31:
                return bits
        return 0

    @property
    def axes(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return self.rows, self.columns

    @cached_property
    def integers(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 weights of rows and columns, in units of 2^−bits; those of an output add up to what they should."""
        first, second = (self._scaled(weights, self.bits) for _, weights in self.axes)
        return first, second

    @staticmethod
    def _scaled(weights: np.ndarray, bits: int) -> np.ndarray:
        scaled = np.rint(weights * (1 << bits)).astype(np.int64)
        missing = np.rint(weights.sum(1) * (1 << bits)).astype(np.int64) - scaled.sum(1)
        scaled[np.arange(len(scaled)), np.abs(weights).argmax(1)] += missing
        return scaled.astype(np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A part of a function: an operator of ONNX's on earlier steps by their numbers, 0 being what the function is of,
    and on constants, float32: single numbers, or C×1×1."""

    operator: str
    inputs: tuple[int | np.ndarray, ...]
    attributes: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Function:
    """A function of each element by itself. `real` computes it on float32 arrays of the input's shape, batch first.

    `steps` are what it is made of, the last of which is its value; None where that can't be said. An integer network
    has its table in place of both.
    """

    kind: ClassVar = "table"
    real: Callable[[np.ndarray], np.ndarray] | None = None
    steps: tuple[Step, ...] | None = None

    def out_shape(self, *shapes: Shape) -> Shape:
        return shapes[0] if len(shapes) == 1 else ()


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """exp(x) ÷ Σ exp(x) along an axis."""

    kind: ClassVar = "softmax"
    axis: int

    def out_shape(self, *shapes: Shape) -> Shape:
        return shapes[0] if len(shapes) == 1 else ()

    def box(self, shape: Shape) -> Box:
        """What of a map is looked at together, for any element in it."""
        return _line(shape, self.axis)


@dataclass(frozen=True, kw_only=True)
class LogSoftmax:
    """x − log(Σ exp(x)) along an axis."""

    kind: ClassVar = "log_softmax"
    axis: int

    def out_shape(self, *shapes: Shape) -> Shape:
        return shapes[0] if len(shapes) == 1 else ()

    def box(self, shape: Shape) -> Box:
        return _line(shape, self.axis)


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalise:
    """(x − mean) ÷ √(variance + ε) · gamma + beta, with the mean and the variance of each box of a map.

    `lengths` are those of a box, in channels, rows and columns, of which each divides the map's. One of all rows and
    columns of a channel is instance normalisation, one of the channels of a pixel layer normalisation. `gamma` and
    `beta`, float64, have a number for each channel. An integer network has its table in place of them and of ε.
    """

    kind: ClassVar = "normalise"
    lengths: Box
    epsilon: float = 0.0
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        fits = all(0 < own <= whole and whole % own == 0 for own, whole in zip(self.lengths, shape[1:], strict=True))
        return shape if fits else ()

    def box(self, shape: Shape) -> Box:
        return self.lengths

    @property
    def count(self) -> int:
        """Elements of a box."""
        return math.prod(self.lengths)


@dataclass(frozen=True, kw_only=True)
class MatMul:
    """Each channel's rows × columns times the same channel's rows × columns of another tensor, times `factor`."""

    kind: ClassVar = "matmul"
    factor: float = 1.0

    def out_shape(self, *shapes: Shape) -> Shape:
        (_, channels, rows, inner), (_, others, again, columns) = shapes
        return (1, channels, rows, columns) if (channels, inner) == (others, again) else ()


@dataclass(frozen=True, kw_only=True)
class Probabilities:
    """Softmax as TensorFlow Lite computes it in integers: exponentials times the reciprocal of their sum."""

    kind: ClassVar = "probabilities"
    axis: int

    WHOLE: ClassVar = 12
    """Bits of the sum of the exponentials that are above 1."""
    MOST: ClassVar = 1 << (WHOLE - 1)
    """Numbers along the axis, at most."""

    def out_shape(self, *shapes: Shape) -> Shape:
        return shapes[0] if len(shapes) == 1 else ()

    def box(self, shape: Shape) -> Box:
        return _line(shape, self.axis)


@dataclass(frozen=True, kw_only=True)
class ArgMax:
    """Which is the first of the largest along an axis, whose length becomes 1."""

    kind: ClassVar = "argmax"
    axis: int

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (*shape[: self.axis], 1, *shape[self.axis + 1 :])


def boxed(x: Any, lengths: Box) -> Any:
    """N×C×H×W, an array or a tensor → N×boxes×C×boxes×H×boxes×W, with the lengths of a box."""
    sizes = (size for length, whole in zip(lengths, x.shape[1:], strict=True) for size in (whole // length, length))
    return x.reshape(x.shape[0], *sizes)


def _line(shape: Shape, axis: int) -> Box:
    channels, rows, columns = (length if place == axis else 1 for place, length in enumerate(shape) if place)
    return channels, rows, columns


Operator = (
    Sum
    | Product
    | MaxPool
    | AveragePool
    | Concat
    | Gather
    | Resample
    | Function
    | Softmax
    | LogSoftmax
    | Normalise
    | MatMul
    | Probabilities
    | ArgMax
)
OPERATORS: dict[str, Any] = {
    operator.kind: operator
    for operator in (
        *(Sum, Product, MaxPool, AveragePool, Concat, Gather, Resample),
        *(Function, Softmax, LogSoftmax, Normalise, MatMul, Probabilities, ArgMax),
    )
}
"""What a file calls them → their classes."""

FROM_FILES = (AveragePool, Probabilities, ArgMax)
"""Operators that only networks have that come quantised: no float network is made of them."""

TIED = (MaxPool, Concat, Gather, Resample)
"""Operators whose result is in the steps of their inputs, so that these must have the same."""
