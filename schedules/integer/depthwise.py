"""Depthwise convolution, or two of them one after the other, and pooling of a whole map.

1. The lanes are channels. Each axis of the output is cut where the set of taps that meet the input changes, so within a
   cut there is no border to make and no bound to check, and taps that meet nothing but the border aren't computed.
2. All taps of an output are added in registers that start from the bias; they are requantised and stored.
3. Of two convolutions, the first stores some channels of the whole map into a buffer that the second reads at once.
4. Filters of many taps, such as a pool's, have loops and conditions instead. Threads share the vectors of channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules._convolution import unfuse, worth_threads
from tvmflow.schedules.integer import Kernel, Task, Tensor
from tvmflow.schedules.integer._instructions import Instructions, instructions_of
from tvmflow.schedules.integer._loops import (
    Requantisation,
    element,
    fill,
    kernel,
    round_up,
    store_result,
    store_vector,
    vector,
)

if TYPE_CHECKING:
    from tvmflow.integer import IntegerLayer
    from tvmflow.spec import Target

MOST_PRODUCTS = 400
"""Products in the code of one convolution, as each cut has code of its own."""

BUFFER_BYTES = 64 << 10  # in the L2 cache, with the input and the output
MOST_VECTORS = 4

Cut = tuple[int, int, tuple[int, ...]]
"""First output, how many, and the taps that meet the input there."""


def depthwise(task: Task, target: Target) -> Kernel | None:
    instructions = instructions_of(target)
    if not all(is_depthwise(layer) for layer in task.layers) or task.source.offset:
        return None
    if len(task.layers) == 2 and not fuses(*task.layers, target):
        return None
    return _Loops(task, instructions).kernel(worth_threads(sum(layer.macs for layer in task.layers), target))


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


def cuts(layer: IntegerLayer, axis: int) -> list[Cut]:
    """The outputs along an axis, cut where the set of taps that meet the input changes."""
    found: list[Cut] = []
    for out in range(layer.output_shape[2 + axis]):
        first = out * layer.stride[axis] - layer.padding[axis]
        taps = tuple(
            tap
            for tap in range(layer.weight.shape[2 + axis])
            if 0 <= first + tap * layer.dilation[axis] < layer.input_shape[2 + axis]
        )
        if found and found[-1][2] == taps:
            found[-1] = (found[-1][0], found[-1][1] + 1, taps)
        else:
            found.append((out, 1, taps))
    return found


def _is_unrolled(layer: IntegerLayer) -> bool:
    vertical, horizontal = (sum(len(taps) for _, _, taps in cuts(layer, axis)) for axis in (0, 1))
    return vertical * horizontal <= MOST_PRODUCTS


class _Loops:
    """The loops of one task."""

    def __init__(self, task: Task, instructions: Instructions) -> None:
        self.task, self.instructions, self.lanes = task, instructions, instructions.lanes
        layers = task.layers
        self.stored = round_up(layers[0].output_shape[1], self.lanes)
        self.requantisations = [Requantisation.of(layer, instructions, self.stored) for layer in layers]
        # of two layers, as many channels at once as the buffer between them has room for
        pixels = math.prod(layers[0].output_shape[2:]) if len(layers) == 2 else 1
        self.vectors = next(
            vectors
            for vectors in range(MOST_VECTORS, 0, -1)
            if self.stored // self.lanes % vectors == 0
            and (vectors == 1 or vectors * self.lanes * pixels <= BUFFER_BYTES)
        )

    def kernel(self, parallel: bool) -> Kernel:
        task, lanes, block = self.task, self.lanes, self.vectors * self.lanes
        constants: list[np.ndarray] = []
        for layer, requantisation in zip(task.layers, self.requantisations, strict=True):
            taps = layer.weight.reshape(len(layer.weight), -1).T.astype(np.int16)
            constants += [fill(taps, self.stored, 1), *requantisation.arrays]
        forms = [task.source, task.result]
        if len(task.layers) == 2:
            first = task.layers[0]
            size = first.output_shape[2:]
            forms.insert(
                1, Tensor(channels=block, size=size, dtype=first.dtype, shape=(math.prod(size), block))  # type: ignore[arg-type]
            )
        with kernel(task, constants) as (builder, given, buffers, result):
            if task.source.is_plain:
                given = self._copy(given)
            with (T.parallel if parallel else T.serial)(0, self.stored // block) as group:
                between = T.sblock_alloc_buffer(forms[1].shape, forms[1].dtype, scope="local") if len(forms) == 3 else None
                self.scratch = T.sblock_alloc_buffer((lanes,), task.result.dtype) if task.result.is_plain else None
                for place, layer in enumerate(task.layers):
                    last = place == len(task.layers) - 1
                    self.layer, self.requantisation = layer, self.requantisations[place]
                    self.weight, self.bias, self.factor = buffers[3 * place : 3 * place + 3]
                    self.data, self.read_from = (given, group * block) if place == 0 else (between, 0)
                    self.out, self.write_to = (result, group * block) if last else (between, 0)
                    self.form, self.first = forms[place + 1], group * block
                    self.is_last = last
                    self._layer()
        return Kernel(func=builder.get(), constants=tuple(constants))

    def _copy(self, given: Any) -> Any:
        """The user's NCHW as pixels × channels, filled up."""
        source = self.task.source
        copy = T.sblock_alloc_buffer((math.prod(source.size), self.stored), source.dtype)
        with T.serial(0, source.size[0]) as y, T.serial(0, source.size[1]) as x:
            pixel = y * source.size[1] + x
            with T.serial(0, source.channels) as c:
                T.buffer_store(copy, T.cast(element(source, given, c, y, x), source.dtype), [pixel, c])
            if self.stored > source.channels:
                with T.serial(0, self.stored - source.channels) as c:
                    T.buffer_store(copy, tirx.const(0, source.dtype), [pixel, source.channels + c])
        return copy

    def _layer(self) -> None:
        if not _is_unrolled(self.layer):
            self._looped()
            return
        for rows in cuts(self.layer, 0):
            for columns in cuts(self.layer, 1):
                self._cut(rows, columns)

    def _cut(self, rows: Cut, columns: Cut) -> None:
        """The outputs in these rows and columns."""
        (top, height, vertical), (left, width, horizontal) = rows, columns
        taps = [(r, s) for r in vertical for s in horizontal]
        with T.serial(0, height) as row, T.serial(0, width) as column, T.unroll(0, self.vectors) as v:
            y, x = top + row, left + column
            total = vector(self.bias, self.first + v * self.lanes, lanes=self.lanes)
            for r, s in taps:
                total = total + self._product(*self._position(y, x, r, s), r * self.layer.weight.shape[3] + s, v)
            self._store(total, y, x, v)

    def _looped(self) -> None:
        """All outputs, with a condition for each tap."""
        layer, lanes = self.layer, self.lanes
        total = T.sblock_alloc_buffer((lanes,), "int32")
        height, width = layer.output_shape[2:]
        with T.serial(0, height) as y, T.serial(0, width) as x, T.serial(0, self.vectors) as v:
            store_vector(total, vector(self.bias, self.first + v * lanes, lanes=lanes), 0, lanes=lanes)
            with T.serial(0, layer.weight.shape[2]) as r, T.serial(0, layer.weight.shape[3]) as s:
                down, right = self._position(y, x, r, s)
                inside = tirx.all(
                    down >= 0, down < layer.input_shape[2], right >= 0, right < layer.input_shape[3]
                )
                with T.If(inside), T.Then():
                    product = self._product(down, right, r * layer.weight.shape[3] + s, v)
                    store_vector(total, vector(total, 0, lanes=lanes) + product, 0, lanes=lanes)
            self._store(vector(total, 0, lanes=lanes), y, x, v)

    def _position(self, y: Any, x: Any, r: Any, s: Any) -> tuple[Any, Any]:
        layer = self.layer
        return (
            y * layer.stride[0] + r * layer.dilation[0] - layer.padding[0],
            x * layer.stride[1] + s * layer.dilation[1] - layer.padding[1],
        )

    def _product(self, down: Any, right: Any, tap: Any, v: Any) -> Any:
        lanes, pixel = self.lanes, down * self.layer.input_shape[3] + right
        data = vector(self.data, pixel, self.read_from + v * lanes, lanes=lanes)
        weight = vector(self.weight, tap, self.first + v * lanes, lanes=lanes)
        return T.cast(data, f"int32x{lanes}") * T.cast(weight, f"int32x{lanes}")

    def _store(self, total: Any, y: Any, x: Any, v: Any) -> None:
        lanes, channel = self.lanes, v * self.lanes
        factor = vector(self.factor, self.first + channel, lanes=lanes)
        value = self.requantisation.finish(total, factor, self.form)
        pixel = y * self.layer.output_shape[3] + x
        if self.is_last:
            store_result(self.task, self.out, value, pixel, self.write_to + channel, lanes, self.scratch)
        else:
            store_vector(self.out, value, pixel, self.write_to + channel, lanes=lanes)
