"""Any layer without weights, pixel by pixel, its channels innermost.

1. Where neighbouring channels are computed alike they are the lanes of a vector, those that nobody has included. LLVM
   makes vectors of a plain loop over channels too, but not of one of 16 turns, which it unrolls first.
2. Values that are passed on, of pools and concatenations, stay as they lie in memory: vectors of bytes. The last vector
   of channels starts earlier.
3. Of a concatenation each input is copied by loops of its own.
4. What the elements of a box have in common, such as the sum of a softmax, is computed once for all of them.
5. Rows, or boxes, are shared among threads where there is enough to do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.operators import Gather
from tvmflow.schedules.convolutions import fitting, starts, unfuse, worth_threads
from tvmflow.schedules.instructions import instructions_of
from tvmflow.schedules.integer_tasks import Kernel, Task
from tvmflow.schedules.integers import element, kernel_of_many, plain_place, store_vector, vector
from tvmflow.schedules.nodes import (
    PASSING,
    SUMS,
    Expr,
    Part,
    StoredArithmetic,
    Sums,
    box_of,
    constants_of,
    in_vectors,
    parts_of,
    prepare,
    value_of,
    work_of,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

FEWEST = 4
"""Channels from which on a vector is made of them."""
SPEED = 4
"""Elements that are passed on in the time in which one is computed, when it is weighed whether threads pay."""


def node(task: Task, target: Target | None) -> Kernel | None:
    """Without a target, for one thread and without vectors."""
    layer = task.node
    if layer is None:
        return None
    constants, result = constants_of(layer), task.result
    lanes = 1
    if target is not None and in_vectors(layer) and not any(tensor.is_plain for tensor in (*task.sources, result)):
        lanes = instructions_of(target).lanes
    stored = _as_stored(task) if lanes > 1 else None
    work = work_of(layer) // (SPEED if stored is not None else 1)
    parallel, box = target is not None and worth_threads(work, target), box_of(layer)
    with kernel_of_many(task, constants) as (builder, given, tables, out):

        def read(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
            return element(task.sources[number], given[number], c, y, x)

        def read_vector(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
            if isinstance(c, int):  # one channel for all
                return T.broadcast(read(number, c, y, x), lanes)
            tensor = task.sources[number]
            value = T.cast(vector(given[number], y * tensor.size[1] + x, c, lanes=lanes), f"int32x{lanes}")
            return value - T.broadcast(T.int32(tensor.offset), lanes) if tensor.offset else value

        def compute(part: Part, sums: Sums, c: Expr, y: Expr, x: Expr) -> None:
            given_by = read if sums.lanes == 1 else read_vector
            value = value_of(layer, given_by, tables, sums, (c, y, x), part.source, prepared=box is not None)
            first, top, left = part.start
            pixel, channel = (y + top) * result.size[1] + x + left, c + first
            if sums.lanes > 1:
                value = T.cast(value + T.broadcast(T.int32(result.offset), lanes), f"{result.dtype}x{lanes}")
                store_vector(out, value, pixel, channel, lanes=lanes)
                return
            place = plain_place(result, channel, pixel) if result.is_plain else [pixel, channel]
            T.buffer_store(out, T.cast(value + result.offset, result.dtype), place)

        def pass_on(part: Part, sums: Sums, c: Expr, y: Expr, x: Expr) -> None:
            """The same of values as they lie in memory."""

            def read_stored(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
                return vector(given[number], y * task.sources[number].size[1] + x, c, lanes=sums.lanes)

            value = value_of(layer, read_stored, tables, sums, (c, y, x), part.source)
            if (result.offset - task.source.offset) % 256:
                value = T.reinterpret(f"int8x{sums.lanes}", value) ^ T.broadcast(T.int8(-128), sums.lanes)
            first, top, left = part.start
            pixel = (y + top) * result.size[1] + x + left
            store_vector(out, T.reinterpret(f"{result.dtype}x{sums.lanes}", value), pixel, c + first, lanes=sums.lanes)

        for part in parts_of(layer):
            if box is not None:
                counts = [length // own for length, own in zip(part.lengths, box, strict=True)]
                with (T.parallel if parallel else T.serial)(0, math.prod(counts)) as number:
                    one = Sums(T.sblock_alloc_buffer((SUMS,), "int32"))
                    first, top, left = (at * length for at, length in zip(unfuse(number, *counts), box, strict=True))
                    prepare(layer, read, tables, one, (first, top, left))
                    with T.serial(0, box[1]) as y, T.serial(0, box[2]) as x, T.serial(0, box[0]) as c:
                        compute(part, one, first + c, top + y, left + x)
                continue
            channels, height, width = part.lengths
            if lanes > 1 and channels == result.channels and not isinstance(layer.operator, Gather):
                channels = result.stored
            whole = channels // lanes * lanes if lanes > 1 else 0
            with (T.parallel if parallel else T.serial)(0, height) as y:
                if stored is not None and channels >= FEWEST:
                    several = _sums_of(stored, lanes, channels)
                    count, start = starts(channels, several.lanes)
                    with T.serial(0, width) as x, T.serial(0, count) as number:
                        pass_on(part, several, start(number), y, x)
                    continue
                one = Sums(T.sblock_alloc_buffer((SUMS,), "int32"))
                several = Sums(T.sblock_alloc_buffer((SUMS * lanes,), "int32"), lanes)
                with T.serial(0, width) as x:
                    if whole:
                        with T.serial(0, whole // lanes) as number:
                            compute(part, several, number * lanes, y, x)
                    if whole < channels:
                        with T.serial(0, channels - whole) as c:
                            compute(part, one, c + whole, y, x)
    return Kernel(func=builder.get(), constants=constants)


def _as_stored(task: Task) -> StoredArithmetic | None:
    """Of an operator that passes values on between tensors that lie alike, or whose bytes differ in the highest bit."""
    (layer,), result, first = task.layers, task.result, task.source
    if not isinstance(layer.operator, PASSING) or len({(tensor.dtype, tensor.offset) for tensor in task.sources}) > 1:
        return None
    numbers = StoredArithmetic(first.dtype, first.offset)
    if layer.minimum > numbers.most or layer.maximum < numbers.least:
        return None
    alike = (first.dtype, first.offset) == (result.dtype, result.offset)
    in_bytes = {first.dtype, result.dtype} <= {"int8", "uint8"} and (result.offset - first.offset) % 128 == 0
    return numbers if alike or in_bytes else None


def _sums_of(numbers: StoredArithmetic, lanes: int, channels: int) -> Sums:
    """As many lanes as a vector has room for, where there are that many channels."""
    most = fitting(lanes * 32 // np.iinfo(numbers.dtype).bits, channels)
    return Sums(T.sblock_alloc_buffer((SUMS * most,), numbers.dtype), most, numbers)
