"""Depthwise convolution by VPDPBUSD, which adds four products a lane: taps of one channel, interleaved on the way.

1. Vectors of bytes, as many channels as they hold, are loaded for up to four taps of a row of the filter. Two rounds of
   unpacking put the four bytes of each channel together, and four VPDPBUSD take them.
2. Unpacking leaves the channels out of order within each 128 bits. Biases, multipliers and weights lie in that order,
   and packing the requantised sums, which saturates as it has to, restores the first.
3. Inputs are unsigned: signed ones have 128 added, by whoever writes them where that is free. Axes are cut where the
   set of taps that meet the input changes, as in `depthwise`; a tap that meets the border meets 128, or nothing.
4. Two convolutions, one after the other, share a buffer as in `depthwise`. Threads share the vectors of channels, and
   the rows too where it is one convolution, so that each has as much to do.
5. The last vector of channels starts earlier and computes some again. Where a pixel has fewer channels than a vector
   and the stride is 1, a vector takes neighbouring pixels, of outputs as of inputs.

`depthwise` widens each byte to 32 bits and needs a load, a product and a sum for sixteen channels and one tap.
Registers: 12 for the weights of a 3×3 filter, 4 for sums, 8 for biases and multipliers, and what is being unpacked.

3×3 of dilation 5 with a plain 3×3 behind it, 128×16×16: 13 µs, `depthwise`: 22. 512×8×8: 12 and 19 µs, on one core.
AMD EPYC (Zen 4, 2 virtual cores), TVM 0.27.0, 2026-11-25.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.layers import IntegerLayer
from tvmflow.integer.window import Cut
from tvmflow.schedules.convolutions import starts, unfuse, worth_threads
from tvmflow.schedules.cpu.integer.depthwise import (
    BUFFER_BYTES,
    MOST_PRODUCTS,
    between,
    copy_plain,
    fuses,
    is_depthwise,
    position,
    rows_of,
    strips_of,
)
from tvmflow.schedules.instructions import dot_products, instructions_of, pack_bytes, packing_order, wide_high
from tvmflow.schedules.integer_tasks import Kernel, Task, Tensor
from tvmflow.schedules.integers import Requantisation, fill, kernel, round_up, store_vector, vector

if TYPE_CHECKING:
    from tvmflow.spec import Target

TAPS = 4
WIDTHS = (64, 32, 16)
"""Bytes of a vector."""


def depthwise_dots(task: Task, target: Target) -> Kernel | None:
    instructions = instructions_of(target)
    if instructions.data != "uint8" or task.result.is_plain or task.source.offset or task.tail:
        return None
    if not all(is_depthwise(layer) and layer.kind == "conv2d" and not layer.twice for layer in task.layers):
        return None
    if any(
        len(_groups(layer)) * TAPS * len(layer.window.cuts(0)) * len(layer.window.cuts(1)) > MOST_PRODUCTS
        for layer in task.layers
    ):
        return None
    if len(task.layers) == 2 and not fuses(task.layers[0], task.layers[1], target):
        return None
    stored, most = round_up(task.source.channels, instructions.lanes), TAPS * instructions.lanes
    width, side = _width(task, stored, most), 1
    if not width:
        return None
    if len(task.layers) == 1 and not task.source.is_plain and task.layers[0].stride[1] == 1 and most % stored == 0:
        side = most // stored
    count, start = starts(stored, width)

    offset = 128 if task.source.dtype == "int8" else 0
    forms, offsets = [], [offset]
    for layer in task.layers[:-1]:
        form, offset = between(layer, width), 0 if layer.minimum >= 0 else 128
        forms.append(replace(form, dtype="uint8", offset=offset))
        offsets.append(offset)
    forms.append(task.result)
    constants: list[np.ndarray] = []
    for layer, added in zip(task.layers, offsets, strict=True):
        arrays = Requantisation.of(layer, instructions, stored, added).arrays
        constants += _packed(layer, arrays, stored, width)
    if side > 1:
        constants += _packed(task.layers[0], arrays, stored, width, side)

    parallel = worth_threads(sum(layer.macs for layer in task.layers), target)
    strips, strip = strips_of(task, count, target) if parallel else (1, 0)
    with kernel(task, constants) as (builder, given, buffers, result):
        data = copy_plain(task, given, stored, offsets[0], "uint8") if task.source.is_plain else given
        with (T.parallel if parallel else T.serial)(0, count * strips) as index:
            block, number_of_strip = unfuse(index, count, strips) if strips > 1 else (index, 0)
            places = start(block)
            for number, (layer, form) in enumerate(zip(task.layers, forms, strict=True)):
                is_last = number == len(task.layers) - 1
                out = result if is_last else T.sblock_alloc_buffer(form.shape, form.dtype, scope="local")
                loops = _Loops(
                    layer=layer,
                    width=width,
                    data=data,
                    places=places,
                    flipped=str(data.dtype) == "int8",
                    border=offsets[number],
                    arrays=tuple(buffers[3 * number : 3 * number + 3]),
                    block=block,
                    result=form,
                    out=out,
                    written=start(block) if is_last else 0,
                    strip=(number_of_strip * strip, strip) if strips > 1 else None,
                    wide=(side, tuple(buffers[3:])) if side > 1 else None,
                )
                loops.emit()
                data, places = out, 0
    return Kernel(func=builder.get(), constants=tuple(constants))


def _width(task: Task, stored: int, most: int) -> int:
    """Bytes of a vector, 0 if there is none: of two convolutions, what the buffer between them has room for."""
    if len(task.layers) == 1:
        return next((width for width in WIDTHS if width <= min(most, stored)), 0)
    pixels = math.prod(task.layers[0].output_shape[2:])
    possible = [width for width in WIDTHS if width <= most and stored % width == 0]
    return next((width for width in possible if width * pixels <= BUFFER_BYTES), possible[-1] if possible else 0)


def _groups(layer: IntegerLayer) -> list[list[tuple[int, int]]]:
    """The filter's taps, some of one row at a time."""
    height, width = layer.weight.shape[2:]
    return [
        [(r, s) for s in range(first, min(first + TAPS, width))]
        for r in range(height)
        for first in range(0, width, TAPS)
    ]


def _packed(
    layer: IntegerLayer, arrays: Sequence[np.ndarray], stored: int, width: int, side: int = 1
) -> list[np.ndarray]:
    """Weights, and biases and factors, for vectors of `width` channels, or of `side` pixels of them."""
    begins = np.minimum(np.arange(-(-stored // width)) * width, stored - width)
    channels = (begins[:, None] + np.tile(np.arange(width), side))[:, packing_order(4, width * side // 4)]
    return [_weights(layer, stored, channels), *(array[channels] for array in arrays)]


def _weights(layer: IntegerLayer, stored: int, channels: np.ndarray) -> np.ndarray:
    """int8 blocks × groups of taps × 4 × width: four taps of each of `channels`, a row of which a block has."""
    packed = [
        np.stack(
            [layer.weight[:, 0, r, s] for r, s in group] + [np.zeros(len(layer.weight), np.int8)] * (TAPS - len(group)),
            -1,
        )
        for group in _groups(layer)
    ]
    blocks = fill(np.stack(packed, 1), stored)[channels]
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).reshape(len(channels), len(packed), 4, -1)


def _unpack(first: Any, second: Any, dtype: str, length: int, *, high: bool) -> Any:
    """The elements of two vectors in turn, of the lower or the upper half of each 128 bits: PUNPCK."""
    half = 128 // int(dtype.removeprefix("int")) // 2
    places = [
        side * length + 2 * half * lane + half * high + element
        for lane in range(length // (2 * half))
        for element in range(half)
        for side in (0, 1)
    ]
    return T.Shuffle([first, second], places)


def _interleave(data: list[Any], width: int) -> list[Any]:
    """Four vectors of bytes → four of their bytes side by side, channels in the order of `packing_order`."""
    pairs = [
        [
            T.reinterpret(f"int16x{width // 2}", _unpack(data[place], data[place + 1], "int8", width, high=high))
            for place in (0, 2)
        ]
        for high in (False, True)
    ]
    return [
        T.reinterpret(f"int8x{width}", _unpack(first, second, "int16", width // 2, high=high))
        for first, second in pairs
        for high in (False, True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Loops:
    """One layer's loops over a block of `width` channels, which lie from `places` on in `data`.

    `flipped` says that these are signed and need 128 added, `border` what a zero is then. `arrays` are weights, bias
    and multipliers or shifts. Results go into `out`, in the form of `result`, from channel `written` on. With `strip`,
    a row and a number of rows, only these are computed. With `wide`, there are other arrays for vectors of several
    neighbouring pixels, each of which has `width` channels and no more.
    """

    layer: IntegerLayer
    width: int
    data: Any
    places: Any
    flipped: bool
    border: int
    arrays: tuple[Any, ...]
    block: Any
    result: Tensor
    out: Any
    written: Any
    strip: tuple[Any, int] | None
    wide: tuple[int, tuple[Any, ...]] | None

    def emit(self) -> None:
        for rows in self.layer.window.cuts(0):
            for columns in self.layer.window.cuts(1):
                if self.wide is None or columns[1] < self.wide[0]:
                    self._cut(rows, columns)
                else:
                    side, arrays = self.wide
                    replace(self, width=side * self.width, arrays=arrays)._cut(rows, columns, side)

    def _cut(self, rows: Cut, columns: Cut, side: int = 1) -> None:
        """The outputs in these rows and columns, `side` neighbouring ones at once."""
        (top, height, vertical), (left, width, horizontal) = rows, columns
        lanes = self.width // 4
        weight, bias, _ = self.arrays
        first, last = rows_of(self.strip, top, height)
        count, start = starts(width, side)
        with T.serial(first, last) as row, T.serial(0, count) as column:
            y, x = top + row, left + start(column)
            totals = [vector(bias, self.block, j * lanes, lanes=lanes) for j in range(4)]
            for number, group in enumerate(_groups(self.layer)):
                alive = [r in vertical and s in horizontal for r, s in group]
                if not any(alive) and not self.border:
                    continue
                data = [
                    self._load(y, x, *tap) if lives else self._zero() for tap, lives in zip(group, alive, strict=True)
                ]
                data += [self._zero()] * (TAPS - len(group))
                for j, four in enumerate(_interleave(data, self.width)):
                    factors = vector(weight, self.block, number, j, 0, lanes=self.width)
                    totals[j] = dot_products(totals[j], four, factors, lanes)
            pixel = y * self.layer.output_shape[3] + x
            store_vector(self.out, self._finish(totals), pixel, self.written, lanes=self.width)

    def _load(self, y: Any, x: Any, r: int, s: int) -> Any:
        down, right = position(self.layer, y, x, r, s)
        data = vector(self.data, down * self.layer.input_shape[3] + right, self.places, lanes=self.width)
        signed = T.reinterpret(f"int8x{self.width}", data)
        return signed ^ T.broadcast(T.int8(-128), self.width) if self.flipped else signed

    def _zero(self) -> Any:
        return T.broadcast(tirx.const(self.border - 256 * (self.border > 127), "int8"), self.width)

    def _finish(self, totals: list[Any]) -> Any:
        """Requantised, and packed into bytes in the channels' order; saturation by packing does for clipping."""
        layer, lanes, added = self.layer, self.width // 4, self.result.offset
        scaled = []
        for j, total in enumerate(totals):
            factor = vector(self.arrays[2], self.block, j * lanes, lanes=lanes)
            if layer.multiplier is not None:
                scaled.append(wide_high(lanes)(total, factor, added))
            else:
                scaled.append((total >> factor) + T.broadcast(T.int32(added), lanes))
        return pack_bytes(scaled, layer.minimum + added, layer.maximum + added, self.result.dtype, lanes)
