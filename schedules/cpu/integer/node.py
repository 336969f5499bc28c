"""Any layer without weights: pixel by pixel, its channels innermost, so that LLVM makes vectors of the plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import worth_threads
from tvmflow.schedules.cpu.integer import Kernel, Task
from tvmflow.schedules.integers import element, kernel_of_many, plain_place
from tvmflow.schedules.nodes import SUMS, Expr, constants_of, parts_of, value_of, work_of

if TYPE_CHECKING:
    from tvmflow.spec import Target


def node(task: Task, target: Target | None) -> Kernel | None:
    """Without a target, for one thread."""
    layer = task.node
    if layer is None:
        return None
    constants, result = constants_of(layer), task.result
    parallel = target is not None and worth_threads(work_of(layer), target)
    with kernel_of_many(task, constants) as (builder, given, tables, out):

        def read(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
            return element(task.sources[number], given[number], c, y, x)

        for part in parts_of(layer):
            channels, height, width = part.lengths
            with (T.parallel if parallel else T.serial)(0, height) as y:
                sums = T.sblock_alloc_buffer((SUMS,), "int32")
                with T.serial(0, width) as x, T.serial(0, channels) as c:
                    value = value_of(layer, read, tables, sums, (c, y, x), part.source)
                    first, top, left = part.start
                    pixel = (y + top) * result.size[1] + x + left
                    channel = c + first
                    place = plain_place(result, channel, pixel) if result.is_plain else [pixel, channel]
                    T.buffer_store(out, T.cast(value + result.offset, result.dtype), place)
    return Kernel(func=builder.get(), constants=constants)
