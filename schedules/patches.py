"""The part of an image that a convolution's taps read, with its border, as rules copy it to where it is read often."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import Convolution, Expr, fitting, starts

Store = Callable[[Expr, Expr], None]
"""Emits the store of a value at a place in the window."""


class Patch:
    """Rows and columns of one bordered channel from the first to the last that a live tap meets.

    A tap is live if it meets the input itself, not only its border, for at least one output. Columns are parted by
    their phase of the stride, so that neighbouring outputs read neighbouring elements: a row is `phases` parts of
    `part` elements. `rows` of outputs read `height(rows)` rows.
    """

    def __init__(self, conv: Convolution) -> None:
        vertical, horizontal = conv.window.live(0), conv.window.live(1)
        self.conv = conv
        self.taps = [(r, s) for r in vertical for s in horizontal]
        if not self.taps:
            return
        self.top, self.left = vertical[0] * conv.dilation[0], horizontal[0] * conv.dilation[1]
        self.above, self.before = self.top - conv.pad[0], self.left - conv.pad[1]  # window + these = input
        self.reach = vertical[-1] * conv.dilation[0] - self.top + 1
        self.columns = (conv.out_size[1] - 1) * conv.stride[1] + horizontal[-1] * conv.dilation[1] - self.left + 1
        self.phases = min(conv.stride[1], self.columns)
        self.part = math.ceil(self.columns / conv.stride[1])
        self.pitch = self.phases * self.part
        self.filled = [self._filled(phase) for phase in range(self.phases)]

    def height(self, rows: int) -> int:
        return (rows - 1) * self.conv.stride[0] + self.reach

    @property
    def bordered(self) -> bool:
        """Whether any element of it isn't the input's."""
        height, width = self.conv.size
        below = self.height(self.conv.out_size[0]) + self.above > height
        return self.above < 0 or self.before < 0 or below or self.columns + self.before > width

    def place(self, tap: tuple[int, int], row: Expr, x: Expr) -> Expr:
        """Where the element lies that `tap` meets for output column `x` of the window's output row `row`."""
        down, right = (tap[axis] * self.conv.dilation[axis] - (self.top, self.left)[axis] for axis in (0, 1))
        stride = self.conv.stride
        return (row * stride[0] + down) * self.pitch + right % stride[1] * self.part + right // stride[1] + x

    def clear(self, store: Store, size: int, lanes: int) -> None:
        """Emit the loop that makes its first `size` elements, a multiple of `lanes`, zero."""
        with T.serial(0, size // lanes) as vector, T.vectorized(0, lanes) as lane:
            store(vector * lanes + lane, T.float32(0))

    def copy_row(self, store: Store, row: Expr, image: Sequence[Expr], lanes: int) -> None:
        """Emit the loops that copy what row `image` (n, c, y) of the input has into row `row` of the window."""

        def copy(phase: int, index: Expr) -> None:
            column = index * self.conv.stride[1] + phase + self.before
            store(row * self.pitch + phase * self.part + index, self.conv.data[(*image, column)])

        low, high = max(low for low, _ in self.filled), min(high for _, high in self.filled)
        if self.conv.stride[1] == 1:
            length = fitting(lanes, high - low)
            vectors, start = starts(high - low, length)
            with T.serial(0, vectors) as vector, T.vectorized(0, length) as lane:
                copy(0, low + start(vector) + lane)
            return
        high = max(low, high)
        length = fitting(lanes, high - low) if high > low and self.phases == self.conv.stride[1] else 1
        if length > 1:
            self._part(store, row, image, length, low, high)
        else:
            with T.serial(low, high) as index:
                for phase in range(self.phases):
                    copy(phase, index)
        for phase, (first, last) in enumerate(self.filled):
            for index in (*range(first, min(low, last)), *range(max(high, first), last)):
                copy(phase, index)

    def _part(self, store: Store, row: Expr, image: Sequence[Expr], length: int, low: int, high: int) -> None:
        """Emit the loop that copies places `low` to `high` of all phases, of which each vector read is shuffled."""
        stride = self.conv.stride[1]
        vectors, start = starts(high - low, length)
        with T.serial(0, vectors) as vector:
            index = low + start(vector)
            read = self.conv.data[(*image, T.ramp(index * stride + self.before, 1, stride * length))]
            for phase in range(stride):
                lanes = [phase + stride * lane for lane in range(length)]
                store(T.ramp(row * self.pitch + phase * self.part + index, 1, length), T.Shuffle([read], lanes))

    def _filled(self, phase: int) -> tuple[int, int]:
        """First and last + 1 place within a phase that hold input and not border."""
        low, high = max(0, -self.before), min(self.columns, self.conv.size[1] - self.before)
        first, last = (max(0, math.ceil((edge - phase) / self.conv.stride[1])) for edge in (low, high))
        return first, last
