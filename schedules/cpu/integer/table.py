"""A function of each element by a table of 256 bytes, which lies in vectors: VPERMI2B, or TBL and TBX.

1. Elements are looked up by the bytes that they are in memory. What is added there to the network's values is in the
   order of the table, and what is to be added to the result in its numbers.
2. A row of the map is bytes one after the other, whatever their channels are; the last vector starts earlier.
3. Threads share the rows where there is enough to do.

A table for each channel, and instructions that look fewer bytes up at once, are left to `node`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.operators import Function
from tvmflow.schedules.convolutions import starts, worth_threads
from tvmflow.schedules.instructions import tables_of
from tvmflow.schedules.integer_tasks import Kernel, Task
from tvmflow.schedules.integers import kernel, store_vector, vector
from tvmflow.schedules.nodes import work_of

if TYPE_CHECKING:
    from tvmflow.spec import Target

BYTES = ("int8", "uint8")
SPEED = 8
"""Bytes looked up in the time of one computed element, when it is weighed whether threads pay."""


def table(task: Task, target: Target) -> Kernel | None:
    layer, source, result = task.node, task.source, task.result
    look_up = tables_of(target)
    if look_up is None or layer is None or not isinstance(layer.operator, Function):
        return None
    assert layer.table is not None
    height, length = _rows(task, look_up.lanes)
    if layer.table.ndim > 1 or source.is_plain or result.is_plain or not {source.dtype, result.dtype} <= {*BYTES}:
        return None
    if length < look_up.lanes:
        return None
    stored = np.arange(256)  # as bytes of memory
    values = (layer.table[(stored - source.offset) & 255] + result.offset) & 255
    constants = (values.astype(np.uint8).view(np.int8),)
    count, start = starts(length, look_up.lanes)
    parallel = worth_threads(work_of(layer) // SPEED, target)
    loop = T.parallel if parallel else T.serial
    with kernel(task, constants) as (builder, given, (entries,), out), loop(0, height) as y, T.serial(0, count) as part:
        pixel, at = y * (math.prod(source.size) // height), start(part)

        def some(first: int, lanes: int) -> Any:
            return vector(entries, first, lanes=lanes)

        index = T.reinterpret(f"int8x{look_up.lanes}", vector(given, pixel, at, lanes=look_up.lanes))
        found = T.reinterpret(f"{result.dtype}x{look_up.lanes}", look_up.emit(index, some))
        store_vector(out, found, pixel, at, lanes=look_up.lanes)
    return Kernel(func=builder.get(), constants=constants)


def _rows(task: Task, lanes: int) -> tuple[int, int]:
    """How many, and of how many bytes: the whole map is one where its rows are shorter than a vector."""
    height, width = task.source.size
    row = width * task.source.stored
    return (height, row) if row >= lanes else (1, height * row)
