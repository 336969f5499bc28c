"""Any layer: a thread has four outputs, one after the other. It serves convolutions in groups, and sums near 2³¹."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import unfuse
from tvmflow.schedules.cpu.integer.plain import constants_of, one_output
from tvmflow.schedules.cuda._grid import local, when
from tvmflow.schedules.cuda.integer import BYTES
from tvmflow.schedules.cuda.integer._words import launch, store, words_out
from tvmflow.schedules.integer_tasks import Kernel, Task

if TYPE_CHECKING:
    from tvmflow.spec import Target

THREADS = 64


def plain(task: Task, target: Target) -> Kernel | None:
    constants = constants_of(task)
    _, outputs, height, width = task.layers[0].output_shape
    words = words_out(task)
    work = height * width * words
    threads = min(THREADS, work)
    with launch(task, constants, math.ceil(work / threads), threads) as (builder, given, factors, out, block, thread):
        total, values = local(1, dtype="int32"), local(BYTES, dtype="int32")
        index = block * threads + thread
        with when(index < work if work % threads else None):
            y, x, place = unfuse(index, height, width, words)
            for lane in range(BYTES):
                o = tirx.min(place * BYTES + lane, outputs - 1)
                T.buffer_store(values, one_output(task, given, factors, total, o, y, x), [lane])
            store(task.result, out, [values[lane] for lane in range(BYTES)], y * width + x, place)
    return Kernel(func=builder.get(), constants=constants)
