"""Depthwise convolution, or two of them one after the other, and pooling of a whole map.

1. The lanes are channels. Each axis of the output is cut where the set of taps that meet the input changes, so within a
   cut there is no border to make and no bound to check, and taps that meet nothing but the border aren't computed.
2. All taps of an output are added in registers that start from the bias; they are requantised and stored.
3. Of two convolutions, the first stores some channels of the whole map into a buffer that the second reads at once.
4. Filters of many taps, such as a pool's, have loops and conditions instead. Threads share the vectors of channels, and
   the rows too where it is one convolution, so that each has as much to do.

Registers: a sum, a factor and a product at a time, for up to four vectors of channels.

3×3 of dilation 5 with a plain 3×3 behind it, 128×16×16: 22 µs on one core; pool of 1024×4×4: 2 µs.
AMD EPYC (Zen 4, 2 virtual cores), TVM 0.27.0, 2026-11-25.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.layers import IntegerLayer
from tvmflow.integer.window import Cut
from tvmflow.schedules.convolutions import unfuse, worth_threads
from tvmflow.schedules.instructions import instructions_of
from tvmflow.schedules.integer_tasks import Kernel, Task, Tensor
from tvmflow.schedules.integers import (
    Requantisation,
    element,
    fill,
    kernel,
    round_up,
    scratch_of,
    store_result,
    store_vector,
    vector,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_PRODUCTS = 400
"""Products in the code of one convolution, as each cut has code of its own."""

BUFFER_BYTES = 64 << 10  # in the L2 cache, with the input and the output
MOST_VECTORS = 4
STRIPS = 8
"""Parts that the work is cut into for each core, at least."""


def depthwise(task: Task, target: Target) -> Kernel | None:
    instructions = instructions_of(target)
    if task.tail or not all(is_depthwise(layer) for layer in task.layers) or task.source.offset:
        return None
    stored = round_up(task.source.channels, instructions.lanes)
    requantisations = [Requantisation.of(layer, instructions, stored) for layer in task.layers]
    arrays = [
        (_weights(layer, stored), *requantisation.arrays)
        for layer, requantisation in zip(task.layers, requantisations, strict=True)
    ]
    constants = tuple(itertools.chain.from_iterable(arrays))
    vectors = vectors_at_once(task, stored // instructions.lanes, instructions.lanes)
    block = vectors * instructions.lanes
    parallel = worth_threads(sum(layer.macs for layer in task.layers), target)
    strips, strip = strips_of(task, stored // block, target) if parallel else (1, 0)
    with kernel(task, constants) as (builder, given, buffers, result):
        data = copy_plain(task, given, stored) if task.source.is_plain else given
        with (T.parallel if parallel else T.serial)(0, stored // block * strips) as index:
            group, number_of_strip = unfuse(index, stored // block, strips) if strips > 1 else (index, 0)
            scratch = scratch_of(task.result, instructions.lanes)
            first = places = group * block
            for number, layer in enumerate(task.layers):
                form, out, written = task.result, result, first
                if number < len(task.layers) - 1:
                    form = between(layer, block)
                    out, written = T.sblock_alloc_buffer(form.shape, form.dtype, scope="local"), 0
                begin = sum(map(len, arrays[:number]))
                weight, bias, *factors = buffers[begin : begin + len(arrays[number])]
                loops = _Loops(
                    layer=layer,
                    requantisation=requantisations[number],
                    vectors=vectors,
                    data=data,
                    places=places,
                    weight=weight,
                    bias=bias,
                    factors=factors,
                    first=first,
                    result=form,
                    out=out,
                    written=written,
                    scratch=scratch,
                    strip=(number_of_strip * strip, strip) if strips > 1 else None,
                )
                loops.emit()
                data, places = out, 0
    return Kernel(func=builder.get(), constants=constants)


def strips_of(task: Task, blocks: int, target: Target) -> tuple[int, int]:
    """In how many strips the rows of one convolution are shared among threads, which share the channels' blocks too,
    and how many rows each has at most; two convolutions are computed for the whole map."""
    height = task.layers[-1].output_shape[2]
    if len(task.layers) > 1:
        return 1, height
    strip = -(-height // min(height, -(-STRIPS * target.cpu.cores // blocks)))
    return -(-height // strip), strip


def rows_of(strip: tuple[Any, int] | None, top: int, height: int) -> tuple[Any, Any]:
    """The first and the end of the rows of a cut, from its `top` on, that are in a strip: a row, and how many there
    are."""
    if strip is None:
        return 0, height
    first = tirx.max(strip[0] - top, 0)
    return first, tirx.max(tirx.min(strip[0] + strip[1] - top, height), first)


def is_depthwise(layer: IntegerLayer) -> bool:
    """Whether each channel is filtered by itself."""
    return layer.groups == layer.input_shape[1] == layer.output_shape[1]


def fuses(first: IntegerLayer, second: IntegerLayer, target: Target) -> bool:
    """Whether the first may be computed into a buffer for the second."""
    channels = instructions_of(target).lanes
    return (
        is_depthwise(first)
        and is_depthwise(second)
        and first.kind == second.kind == "conv2d"
        and channels * math.prod(first.output_shape[2:]) <= BUFFER_BYTES
    )


def position(layer: IntegerLayer, y: Any, x: Any, r: Any, s: Any) -> tuple[Any, Any]:
    """The input's row and column that an output reads by a tap."""
    return (
        y * layer.stride[0] + r * layer.dilation[0] - layer.padding[0],
        x * layer.stride[1] + s * layer.dilation[1] - layer.padding[1],
    )


def _is_unrolled(layer: IntegerLayer) -> bool:
    vertical, horizontal = (sum(len(taps) for _, _, taps in layer.window.cuts(axis)) for axis in (0, 1))
    return vertical * horizontal <= MOST_PRODUCTS


def _weights(layer: IntegerLayer, stored: int) -> np.ndarray:
    """int8 taps × channels; one row of a pool's, which are all 1 and never read."""
    taps = layer.weight.reshape(len(layer.weight), -1).T
    return np.ascontiguousarray(fill(taps[:1] if layer.kind == "pool" else taps, stored, 1))


def between(layer: IntegerLayer, channels: int) -> Tensor:
    """The result of the first of two layers, some channels of the whole map."""
    _, _, height, width = layer.output_shape
    return Tensor(channels=channels, size=(height, width), dtype=layer.dtype, shape=(height * width, channels))


def vectors_at_once(task: Task, vectors: int, lanes: int) -> int:
    """How many of that many vectors are done together: of two layers, what the buffer between them has room for."""
    pixels = math.prod(task.layers[0].output_shape[2:]) if len(task.layers) == 2 else 1
    return next(
        count
        for count in range(MOST_VECTORS, 0, -1)
        if vectors % count == 0 and (count == 1 or count * lanes * pixels <= BUFFER_BYTES)
    )


def copy_plain(task: Task, given: Any, stored: int, offset: int = 0, dtype: str = "") -> Any:
    """The user's NCHW as pixels × channels, filled up, with `offset` added."""
    source, dtype = task.source, dtype or task.source.dtype
    copy = T.sblock_alloc_buffer((math.prod(source.size), stored), dtype)
    with T.serial(0, source.size[0]) as y, T.serial(0, source.size[1]) as x:
        pixel = y * source.size[1] + x
        with T.serial(0, source.channels) as c:
            T.buffer_store(copy, T.cast(element(source, given, c, y, x) + offset, dtype), [pixel, c])
        if stored > source.channels:
            with T.serial(0, stored - source.channels) as c:
                T.buffer_store(copy, tirx.const(0, dtype), [pixel, source.channels + c])
    return copy


@dataclass(frozen=True, kw_only=True)
class _Loops:
    """One layer's loops over `vectors` of channels from `first` on, which lie from `places` on in `data`.

    They store into `out` from channel `written` on, in the form of `result`: the kernel's result, or the buffer for the
    second layer. With `strip`, a row and a number of rows, only these are computed.
    """

    layer: IntegerLayer
    requantisation: Requantisation
    vectors: int
    data: Any
    places: Any
    weight: Any
    bias: Any
    factors: list[Any]
    first: Any
    result: Tensor
    out: Any
    written: Any
    scratch: Any
    strip: tuple[Any, int] | None

    @property
    def lanes(self) -> int:
        return self.requantisation.instructions.lanes

    def emit(self) -> None:
        if not _is_unrolled(self.layer):
            self._looped()
            return
        for rows in self.layer.window.cuts(0):
            for columns in self.layer.window.cuts(1):
                self._cut(rows, columns)

    def _cut(self, rows: Cut, columns: Cut) -> None:
        """The outputs in these rows and columns."""
        (top, height, vertical), (left, width, horizontal) = rows, columns
        taps = [(r, s) for r in vertical for s in horizontal]
        first, last = rows_of(self.strip, top, height)
        with T.serial(first, last) as row, T.serial(0, width) as column, T.unroll(0, self.vectors) as v:
            y, x = top + row, left + column
            total = vector(self.bias, self.first + v * self.lanes, lanes=self.lanes)
            for r, s in taps:
                total = total + self._product(*position(self.layer, y, x, r, s), r * self.layer.weight.shape[3] + s, v)
            self._store(total, y, x, v)

    def _looped(self) -> None:
        """All outputs, with a condition for each tap."""
        layer, lanes = self.layer, self.lanes
        total = T.sblock_alloc_buffer((lanes,), "int32")
        height, width = layer.output_shape[2:]
        first, last = rows_of(self.strip, 0, height)
        with T.serial(first, last) as y, T.serial(0, width) as x, T.serial(0, self.vectors) as v:
            store_vector(total, vector(self.bias, self.first + v * lanes, lanes=lanes), 0, lanes=lanes)
            with T.serial(0, layer.weight.shape[2]) as r, T.serial(0, layer.weight.shape[3]) as s:
                down, right = position(layer, y, x, r, s)
                inside = tirx.all(down >= 0, down < layer.input_shape[2], right >= 0, right < layer.input_shape[3])
                with T.If(inside), T.Then():
                    product = self._product(down, right, r * layer.weight.shape[3] + s, v)
                    store_vector(total, vector(total, 0, lanes=lanes) + product, 0, lanes=lanes)
            self._store(vector(total, 0, lanes=lanes), y, x, v)

    def _product(self, down: Any, right: Any, tap: Any, v: Any) -> Any:
        lanes, pixel = self.lanes, down * self.layer.input_shape[3] + right
        data = T.cast(vector(self.data, pixel, self.places + v * lanes, lanes=lanes), f"int32x{lanes}")
        if self.layer.kind == "pool":
            return data
        return data * T.cast(vector(self.weight, tap, self.first + v * lanes, lanes=lanes), f"int32x{lanes}")

    def _store(self, total: Any, y: Any, x: Any, v: Any) -> None:
        lanes, channel = self.lanes, v * self.lanes
        factors = [vector(factor, self.first + channel, lanes=lanes) for factor in self.factors]
        value = self.requantisation.finish(total, factors, self.result)
        pixel = y * self.layer.output_shape[3] + x
        store_result(self.result, self.out, value, pixel, self.written + channel, lanes, self.scratch)
