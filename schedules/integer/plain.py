"""Any layer: an output at a time. It serves convolutions in groups, which no network of ours spends its time in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.integer import Kernel, Task
from tvmflow.schedules.integer._loops import element, kernel, plain_place

if TYPE_CHECKING:
    from tvmflow.spec import Target


def plain(task: Task, target: Target) -> Kernel | None:
    if len(task.layers) != 1:
        return None
    (layer,), result = task.layers, task.result
    factors = layer.multiplier if layer.multiplier is not None else layer.shift
    constants = (layer.weight, layer.bias, np.asarray(factors))
    outputs, inputs, *taps = layer.weight.shape
    per_group = outputs // layer.groups
    with kernel(task, constants) as (builder, given, (weight, bias, factor), out):
        total = T.sblock_alloc_buffer((1,), "int32")
        height, width = layer.output_shape[2:]
        with T.serial(0, height) as y, T.serial(0, width) as x, T.serial(0, outputs) as o:
            T.buffer_store(total, bias[o], [0])
            with T.serial(0, inputs) as c, T.serial(0, taps[0]) as r, T.serial(0, taps[1]) as s:
                down = y * layer.stride[0] + r * layer.dilation[0] - layer.padding[0]
                right = x * layer.stride[1] + s * layer.dilation[1] - layer.padding[1]
                inside = tirx.all(down >= 0, down < layer.input_shape[2], right >= 0, right < layer.input_shape[3])
                with T.If(inside), T.Then():
                    value = element(task.source, given, tirx.floordiv(o, per_group) * inputs + c, down, right)
                    T.buffer_store(total, total[0] + value * T.cast(weight[o, c, r, s], "int32"), [0])
            if layer.multiplier is not None:
                wide = T.cast(total[0], "int64") * T.cast(factor[o], "int64") + T.int64(1 << 31)
                scaled = T.cast(wide >> T.int64(32), "int32")
            else:
                half = (T.int64(1) << T.cast(factor[o], "int64")) >> T.int64(1)
                scaled = T.cast((T.cast(total[0], "int64") + half) >> T.cast(factor[o], "int64"), "int32")
            clipped = tirx.max(tirx.min(scaled, T.int32(layer.maximum)), T.int32(layer.minimum))
            pixel = y * width + x
            place = plain_place(result, o, pixel) if result.is_plain else [pixel, o]
            T.buffer_store(out, T.cast(clipped + result.offset, result.dtype), place)
    return Kernel(func=builder.get(), constants=constants)
