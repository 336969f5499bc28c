"""Any layer with weights, by the loops of its definition.

1. Output after output, the sum in a register.
2. Where the border can be met, each tap asks whether it is on the map; without padding nobody asks.

It serves what has no kernel of its own: pools, convolutions in groups, dense layers of integers, maps of a pixel or
two; and, but for depthwise ones, all layers in portable C.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.cortex_m._kernel import (
    AnyLayer,
    Kernel,
    WeightedLayer,
    accumulator,
    border_of,
    constant_pointers,
    finish,
    function,
    multiply_add,
    parameters,
    parameters_at,
    place_of,
    sizes,
    weights_of,
)


def direct(
    layers: Sequence[AnyLayer], dtypes: Sequence[str], core: str, writable: Sequence[bool], frugal: bool
) -> Kernel | None:
    if len(layers) != 1 or not isinstance(layers[0], WeightedLayer):
        return None
    layer, (dtype,) = layers[0], dtypes
    before, after = sizes(layer)
    constants = {"parameters": parameters(layer)}
    if layer.kind != "pool":
        constants["weight"] = weights_of(layer)
    _, _, height, width = layer.input_shape
    _, outputs, out_height, out_width = layer.output_shape
    _, inputs, *kernel = layer.weight.shape
    padded, border = any(layer.padding), border_of(layer)
    pointers = {
        "source": (dtype, before),
        "destination": (layer.dtype, after),
        **constant_pointers(constants),
    }
    with function(pointers) as (builder, given):
        # TVM's code generator for C knows no scope but the global one
        total = T.alloc_buffer((1,), accumulator(layer), scope="global" if core == "plain" else "local")
        with T.serial(0, outputs) as o, T.serial(0, out_height) as y, T.serial(0, out_width) as x:
            begin, by = parameters_at(layer, given["parameters"], o)
            T.buffer_store(total, begin, [0])
            group = tirx.floordiv(o, outputs // layer.groups) * inputs if layer.groups > 1 else 0
            with T.serial(0, inputs) as i, T.serial(0, kernel[0]) as r, T.serial(0, kernel[1]) as s:
                row = y * layer.stride[0] + r * layer.dilation[0] - layer.padding[0]
                column = x * layer.stride[1] + s * layer.dilation[1] - layer.padding[1]

                def add() -> None:
                    value = T.Cast(total.dtype, given["source"][place_of(layer, group + i, row, column)])
                    if "weight" in given:
                        at = ((o * inputs + i) * kernel[0] + r) * kernel[1] + s
                        sum_ = multiply_add(core, total[0], value, T.Cast(total.dtype, given["weight"][at]))
                    else:
                        sum_ = total[0] + value
                    T.buffer_store(total, sum_, [0])

                inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
                if not padded:
                    add()
                elif border:
                    at = ((o * inputs + i) * kernel[0] + r) * kernel[1] + s
                    with T.If(inside):
                        with T.Then():
                            add()
                        with T.Else():
                            weight = T.Cast(total.dtype, given["weight"][at])
                            T.buffer_store(total, total[0] + T.int32(border) * weight, [0])
                else:
                    with T.If(inside), T.Then():
                        add()
            value = finish(layer, total[0], by)
            T.buffer_store(given["destination"], T.Cast(layer.dtype, value), [(o * out_height + y) * out_width + x])
    return Kernel(schedule="direct", layers=(layer,), func=builder.get(), constants=constants)
