"""Depthwise convolution in NCHW, any kernel of up to 25 taps, any stride, dilation and border, with its element-wise tail.

1. Taps that meet nothing but the border at every output are left out: with dilation 5 on a 4×4 map only the centre
   stays, and the kernel becomes a scale that needs no border at all.
2. For each channel, or some rows of one, the input that the remaining taps need is copied into a small buffer with its
   border of zeros. With a stride, each phase of the columns gets its own part, so that neighbouring outputs read
   neighbouring elements.
3. All taps of a vector of outputs along the row are added in registers, then the tail is applied and stored.
4. The last vector of a row that vectors don't divide starts earlier and computes some elements again.
5. Threads share the channels.

Padding the whole input first, as TVM does by itself, writes and reads a larger input from the L2 cache; conditions in
place of a border can't be vectorised. A vector over channels needs another layout.

MEASURED
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules._convolution import Convolution, native_lanes, read_convolution, starts, worth_threads

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_TAPS = 25
BUFFER_BYTES = 16 << 10  # on the stack of a thread, and half of the smallest L1 cache
WIDEST_BUFFER_BYTES = 64 << 10


def depthwise_nchw(func: tirx.PrimFunc, target: Target, rows: int | None = None) -> Schedule | None:
    """`rows` of the output share one buffer; by default as many as BUFFER_BYTES hold."""
    conv = read_convolution(func)
    if conv is None or not conv.depthwise or math.prod(conv.kernel) > MOST_TAPS:
        return None
    vertical, horizontal = (_live_taps(conv, axis) for axis in (0, 1))
    if not vertical or not horizontal:
        return None
    lanes = native_lanes(target)
    parallel = worth_threads(conv.macs, target)
    if len(vertical) == len(horizontal) == 1 and conv.stride == (1, 1) and conv.size == conv.out_size:
        tap = vertical[0], horizontal[0]
        if (tap[0] * conv.dilation[0], tap[1] * conv.dilation[1]) == conv.pad:
            return Schedule(_scale(conv, tap, lanes, parallel))
    window = _Window(conv, vertical, horizontal)
    if window.bytes(1) > WIDEST_BUFFER_BYTES:
        return None
    if rows is None:
        fitting = [count for count in range(1, conv.out_size[0] + 1) if window.bytes(count) <= BUFFER_BYTES]
        rows = math.ceil(conv.out_size[0] / math.ceil(conv.out_size[0] / max(fitting, default=1)))
    return Schedule(_loops(conv, window, rows, lanes, parallel))


def _live_taps(conv: Convolution, axis: int) -> list[int]:
    """Taps of one axis that meet the input itself for at least one output."""
    return [
        tap
        for tap in range(conv.kernel[axis])
        if any(
            0 <= out * conv.stride[axis] + tap * conv.dilation[axis] - conv.pad[axis] < conv.size[axis]
            for out in range(conv.out_size[axis])
        )
    ]


class _Window:
    """The part of a bordered channel that the live taps read, with its columns parted by phase of the stride."""

    def __init__(self, conv: Convolution, vertical: list[int], horizontal: list[int]) -> None:
        self.conv = conv
        self.top, self.left = vertical[0] * conv.dilation[0], horizontal[0] * conv.dilation[1]
        self.high = vertical[-1] * conv.dilation[0] - self.top + 1
        self.columns = (conv.out_size[1] - 1) * conv.stride[1] + horizontal[-1] * conv.dilation[1] - self.left + 1
        self.phases = min(conv.stride[1], self.columns)
        self.phase_length = math.ceil(self.columns / conv.stride[1])
        self.taps = [(r, s) for r in vertical for s in horizontal]

    def rows(self, out_rows: int) -> int:
        return (out_rows - 1) * self.conv.stride[0] + self.high

    @property
    def pitch(self) -> int:
        return self.phases * self.phase_length

    def bytes(self, out_rows: int) -> int:
        return 4 * self.rows(out_rows) * self.pitch

    def column_range(self, phase: int) -> tuple[int, int]:
        """Places within a phase that hold input; the others are border."""
        stride, offset = self.conv.stride[1], self.left - self.conv.pad[1]  # column + offset is the input's column
        low, high = max(0, -offset), min(self.columns, self.conv.size[1] - offset)
        return max(0, math.ceil((low - phase) / stride)), max(0, math.ceil((high - phase) / stride))


def _scale(conv: Convolution, tap: tuple[int, int], lanes: int, parallel: bool) -> tirx.PrimFunc:
    pixels, width = math.prod(conv.size), conv.size[1]
    while lanes > pixels:
        lanes //= 2
    vectors, start = starts(pixels, lanes)
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        _arguments(conv)
        with (T.parallel if parallel else T.serial)(0, conv.batch * conv.channels) as index:
            n, c = tirx.floordiv(index, conv.channels), tirx.floormod(index, conv.channels)
            with T.serial(0, vectors) as vector, T.vectorized(0, lanes) as lane:
                pixel = start(vector) + lane
                place = (n, c, tirx.floordiv(pixel, width), tirx.floormod(pixel, width))
                value = conv.data[place] * conv.weight[c, 0, tap[0], tap[1]]
                T.buffer_store(conv.output, conv.finish(value, place), place)
    return builder.get()


def _loops(conv: Convolution, window: _Window, rows: int, native: int, parallel: bool) -> tirx.PrimFunc:
    height, width = conv.out_size
    lanes = _fitting(native, width)
    row_tiles, row_start = starts(height, rows)
    vectors, column_start = starts(width, lanes)
    high = window.rows(rows)
    size = math.ceil(high * window.pitch / native) * native
    above = window.top - conv.pad[0]  # row of the window + above + first output row · stride is the input's row
    columns = [window.column_range(phase) for phase in range(window.phases)]
    bordered = (
        above < 0
        or (height - 1) * conv.stride[0] + window.high - 1 + above >= conv.size[0]
        or any(low > 0 or high < len(range(phase, window.columns, conv.stride[1])) for phase, (low, high) in enumerate(columns))
    )

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        _arguments(conv)
        buffer = T.sblock_alloc_buffer((size,), "float32", scope="local")
        with (T.parallel if parallel else T.serial)(0, conv.batch * conv.channels * row_tiles) as index:
            n = tirx.floordiv(index, conv.channels * row_tiles)
            c = tirx.floormod(tirx.floordiv(index, row_tiles), conv.channels)
            y0 = row_start(tirx.floormod(index, row_tiles))

            if bordered:
                with T.serial(0, size // native) as vector, T.vectorized(0, native) as lane:
                    T.buffer_store(buffer, T.float32(0), [vector * native + lane])

            first, last = (max(0, -above), min(high, conv.size[0] - above)) if row_tiles == 1 else (0, high)
            with T.serial(first, last) as row:
                y = y0 * conv.stride[0] + row + above
                if row_tiles > 1 and bordered:
                    with T.If(tirx.all(y >= 0, y < conv.size[0])), T.Then():
                        _copy_row(conv, window, columns, buffer, row, (n, c, y), native)
                else:
                    _copy_row(conv, window, columns, buffer, row, (n, c, y), native)

            with T.serial(0, rows) as row, T.serial(0, vectors) as vector, T.vectorized(0, lanes) as lane:
                x = column_start(vector) + lane
                total = None
                for r, s in window.taps:
                    down, right = r * conv.dilation[0] - window.top, s * conv.dilation[1] - window.left
                    part = right % conv.stride[1] * window.phase_length + right // conv.stride[1]
                    read = buffer[(row * conv.stride[0] + down) * window.pitch + part + x]
                    product = read * conv.weight[c, 0, r, s]
                    total = product if total is None else total + product
                place = (n, c, y0 + row, x)
                T.buffer_store(conv.output, conv.finish(total, place), place)
    return builder.get()


def _copy_row(conv, window, columns, buffer, row, place, native) -> None:
    """Copy one row of the input into the window. Phases go side by side, as far as all have columns."""
    stride, offset = conv.stride[1], window.left - conv.pad[1]

    def copy(phase, index):
        column = index * stride + phase + offset
        where = row * window.pitch + phase * window.phase_length + index
        T.buffer_store(buffer, conv.data[(*place, column)], [where])

    low, high = max(low for low, _ in columns), min(high for _, high in columns)
    if window.phases == 1 and stride == 1:
        lanes = _fitting(native, high - low)
        vectors, start = starts(high - low, lanes)
        with T.serial(0, vectors) as vector, T.vectorized(0, lanes) as lane:
            copy(0, low + start(vector) + lane)
        return
    high = max(low, high)
    with T.serial(low, high) as index:
        for phase in range(window.phases):
            copy(phase, index)
    for phase, (begin, end) in enumerate(columns):
        for index in (*range(begin, min(low, end)), *range(max(high, begin), end)):
            copy(phase, index)


def _fitting(native: int, length: int) -> int:
    """Lanes of the widest vector that an axis of this length fills."""
    return min(native, 1 << max(0, length.bit_length() - 1))


def _arguments(conv: Convolution) -> None:
    T.func_attr({"tirx.noalias": True})
    for param in conv.func.params:
        T.arg(param.name, param)
