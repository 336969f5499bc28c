"""Any layer without weights: a thread has four channels of a pixel, one after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import unfuse
from tvmflow.schedules.cuda._grid import local, when
from tvmflow.schedules.cuda.integer import BYTES
from tvmflow.schedules.cuda.integer._words import launch_of_many, store, words_out
from tvmflow.schedules.integer_tasks import Kernel, Task
from tvmflow.schedules.integers import element
from tvmflow.schedules.nodes import SUMS, Expr, Sums, constants_of, value_of

if TYPE_CHECKING:
    from tvmflow.spec import Target

THREADS = 64


def node(task: Task, target: Target) -> Kernel | None:
    layer = task.node
    if layer is None:
        return None
    constants = constants_of(layer)
    _, outputs, height, width = layer.output_shape
    words = words_out(task)
    work = height * width * words
    threads = min(THREADS, work)
    grid = math.ceil(work / threads)
    with launch_of_many(task, constants, grid, threads) as (builder, given, tables, out, block, thread):

        def read(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
            return element(task.sources[number], given[number], c, y, x)

        sums, values = local(SUMS, dtype="int32"), local(BYTES, dtype="int32")
        index = block * threads + thread
        with when(index < work if work % threads else None):
            y, x, place = unfuse(index, height, width, words)
            for lane in range(BYTES):
                channel = tirx.min(place * BYTES + lane, outputs - 1)
                T.buffer_store(values, value_of(layer, read, tables, Sums(sums), (channel, y, x)), [lane])
            store(task.result, out, [values[lane] for lane in range(BYTES)], y * width + x, place)
    return Kernel(func=builder.get(), constants=constants)
