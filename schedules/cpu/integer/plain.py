"""Any layer: an output at a time. It serves convolutions in groups, which no network of ours spends its time in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.integer_tasks import Kernel, Task
from tvmflow.schedules.integers import element, first_sums, kernel, plain_place, requantised

if TYPE_CHECKING:
    from tvmflow.spec import Target


def plain(task: Task, target: Target) -> Kernel | None:
    if len(task.layers) != 1 or task.tail:
        return None
    (layer,), result = task.layers, task.result
    constants = constants_of(task)
    with kernel(task, constants) as (builder, given, factors, out):
        total = T.sblock_alloc_buffer((1,), "int32")
        _, outputs, height, width = layer.output_shape
        with T.serial(0, height) as y, T.serial(0, width) as x, T.serial(0, outputs) as o:
            value = one_output(task, given, factors, total, o, y, x)
            pixel = y * width + x
            place = plain_place(result, o, pixel) if result.is_plain else [pixel, o]
            T.buffer_store(out, T.cast(value + result.offset, result.dtype), place)
    return Kernel(func=builder.get(), constants=constants)


def constants_of(task: Task) -> tuple[np.ndarray, ...]:
    """What `one_output` needs: weights, what sums start from, and multipliers or shifts."""
    (layer,) = task.layers
    return layer.weight, first_sums(layer).astype(np.int32), *layer.factors


def one_output(task: Task, given: Any, factors: Any, total: Any, o: Any, y: Any, x: Any) -> Any:
    """Emit the sum of one output into `total[0]`; returns the output itself, as int32."""
    (layer,), (weight, first, *by) = task.layers, factors
    outputs, inputs, *taps = layer.weight.shape
    T.buffer_store(total, first[o], [0])
    with T.serial(0, inputs) as c, T.serial(0, taps[0]) as r, T.serial(0, taps[1]) as s:
        down = y * layer.stride[0] + r * layer.dilation[0] - layer.padding[0]
        right = x * layer.stride[1] + s * layer.dilation[1] - layer.padding[1]
        inside = tirx.all(down >= 0, down < layer.input_shape[2], right >= 0, right < layer.input_shape[3])
        with T.If(inside), T.Then():
            channel = tirx.floordiv(o, outputs // layer.groups) * inputs + c
            value = element(task.source, given, channel, down, right)
            T.buffer_store(total, total[0] + value * T.cast(weight[o, c, r, s], "int32"), [0])
    return requantised(layer, total[0], *(array[o] for array in by))
