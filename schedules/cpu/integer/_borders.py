"""The input of a convolution with its border around it, as pixels × channels that its kernel reads.

1. Rows of the border are zeros, as are the pixels beside a row of the input: loops without conditions.
2. Between kernels the channels of a pixel lie together and are copied in vectors. To add 128 to bytes, or to take it
   away, is to turn over their highest bits.
3. Images of the user have a plane a channel. Of up to four, vectors of neighbouring pixels are made into words, a byte
   a channel, by shifts. Any other input is copied element by element.

The copy has one axis. Vectors of several pixels would go over the end of an axis of channels, and TVM, which leaves out
the part of a buffer at its end that nobody reads, would take the pixels behind the first for unwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import fitting, starts
from tvmflow.schedules.instructions import GROUP
from tvmflow.schedules.integer_tasks import Task
from tvmflow.schedules.integers import element, store_vector, vector

if TYPE_CHECKING:
    from tvmflow.integer.layers import IntegerLayer

BYTES = ("int8", "uint8")
COPIED = 64
"""Bytes of a vector at most."""
PIXELS = 16
"""Neighbouring ones whose channels become words at once, at most."""

Row = Callable[[Any, Any], None]
"""Emits the copy of a row of the input, from a pixel of the result on."""


def copy_with_border(task: Task, layer: IntegerLayer, given: Any, data: Any, offset: int, filled: int) -> None:
    """Fill `data`, for each of (H + borders)·(W + borders) pixels `filled` channels, with the input plus `offset`."""
    top, left, bottom, right = layer.padding
    height, width = task.source.size
    wide = left + width + right
    row = _row_of(task, given, data, offset, filled)
    zero, lanes = tirx.const(offset, str(data.dtype)), _lanes(data, filled)

    def border(first: Any, count: int) -> None:
        if count:
            with T.serial(0, count * filled // lanes) as number:
                store_vector(data, T.broadcast(zero, lanes), first * filled + number * lanes, lanes=lanes)

    border(0, top * wide)
    with T.serial(0, height) as y:
        first = (top + y) * wide
        border(first, left)
        row(y, first + left)
        border(first + left + width, right)
    border((top + height) * wide, bottom * wide)


def _row_of(task: Task, given: Any, data: Any, offset: int, filled: int) -> Row:
    source, dtype = task.source, str(data.dtype)
    as_bytes = dtype in BYTES and source.dtype in BYTES
    image = tuple(source.shape) == (1, source.channels, *source.size)
    if not source.is_plain and (as_bytes or dtype == "int16"):
        return _channels(task, given, data, offset, filled)
    if as_bytes and image and filled == GROUP and source.size[1] >= GROUP:
        return _words(task, given, data, offset)
    return _elements(task, given, data, offset, filled)


def _lanes(data: Any, filled: int) -> int:
    """Of vectors that a pixel's channels are made of."""
    return math.gcd(filled, COPIED // (1 if str(data.dtype) in BYTES else 2))


def _channels(task: Task, given: Any, data: Any, offset: int, filled: int) -> Row:
    width, dtype, lanes = task.source.size[1], str(data.dtype), _lanes(data, filled)
    added = offset - task.source.offset

    def row(y: Any, first: Any) -> None:
        with T.serial(0, width) as x, T.serial(0, filled // lanes) as c:
            value = vector(given, y * width + x, c * lanes, lanes=lanes)
            if dtype == "int16":
                value = T.cast(value, f"int16x{lanes}") + T.broadcast(T.int16(added), lanes)
            elif added % 256:
                value = T.reinterpret(f"int8x{lanes}", value) ^ T.broadcast(T.int8(-128), lanes)
            place = (first + x) * filled + c * lanes
            store_vector(data, T.reinterpret(f"{dtype}x{lanes}", value), place, lanes=lanes)

    return row


def _words(task: Task, given: Any, data: Any, offset: int) -> Row:
    source, dtype = task.source, str(data.dtype)
    pixels = fitting(PIXELS, source.size[1])
    count, start = starts(source.size[1], pixels)

    def row(y: Any, first: Any) -> None:
        with T.serial(0, count) as tile:
            word: Any = T.broadcast(T.int32(0), pixels)
            for channel in range(source.channels):
                values = T.reinterpret(f"uint8x{pixels}", vector(given, 0, channel, y, start(tile), lanes=pixels))
                moved = T.cast(values, f"int32x{pixels}") << T.broadcast(T.int32(8 * channel), pixels)
                word = moved if channel == 0 else word | moved
            if (offset - source.offset) % 256:
                word = word ^ T.broadcast(tirx.const(-0x7F7F7F80, "int32"), pixels)
            value = T.reinterpret(f"{dtype}x{GROUP * pixels}", word)
            store_vector(data, value, (first + start(tile)) * GROUP, lanes=GROUP * pixels)

    return row


def _elements(task: Task, given: Any, data: Any, offset: int, filled: int) -> Row:
    source, dtype = task.source, str(data.dtype)

    def row(y: Any, first: Any) -> None:
        with T.serial(0, source.size[1]) as x:
            with T.serial(0, source.channels) as c:
                value = T.cast(element(source, given, c, y, x) + offset, dtype)
                T.buffer_store(data, value, [(first + x) * filled + c])
            if filled > source.channels:
                with T.serial(0, filled - source.channels) as c:
                    T.buffer_store(data, tirx.const(offset, dtype), [(first + x) * filled + source.channels + c])

    return row
