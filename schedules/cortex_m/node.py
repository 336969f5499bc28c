"""Any layer without weights, element by element.

1. Loops over channels, rows and columns, as the tensors lie in memory; of concatenated ones, loops for each part. Where
   elements are computed alike whatever their place, axes are taken together: one long loop for a sum of two tensors.
   What the elements of a box have in common, such as the sum of a softmax, is computed once for all of them.
2. Sums, products and functions overwrite an input that nobody reads any more, so that a residual block needs no third
   tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.operators import Function, Product, Shape, Sum
from tvmflow.schedules.cortex_m._kernel import AnyLayer, Expr, Kernel, MveFloats, MveIntegers, Node, function
from tvmflow.schedules.nodes import (
    INTEGERS,
    SUMMING,
    SUMS,
    FloatArithmetic,
    Sums,
    arithmetic_of,
    box_of,
    constants_of,
    parts_of,
    prepare,
    value_of,
)

LANES = 4
"""Numbers in a vector of MVE."""


def node(
    layers: Sequence[AnyLayer], dtypes: Sequence[str], core: str, writable: Sequence[bool], frugal: bool
) -> Kernel | None:
    if len(layers) != 1 or not isinstance(layers[0], Node):
        return None
    layer = layers[0]
    flat, numbers = _merged(layer), arithmetic_of(layer)
    if core == "mve" and isinstance(numbers, FloatArithmetic):
        numbers = MveFloats()
    read_by = list(dict.fromkeys(layer.inputs))
    shapes = dict(zip(layer.inputs, flat.input_shapes, strict=True))
    sources = {f"source{number}": (dtypes[number], shapes[name][1:]) for number, name in enumerate(read_by)}
    tables = {f"table{number}": array for number, array in enumerate(constants_of(flat))}
    in_place = _overwritten(layer, dtypes, writable)
    pointers = {
        **sources,
        **({"destination": (layer.dtype, flat.output_shape[1:])} if in_place is None else {}),
        **{name: (str(array.dtype), array.shape) for name, array in tables.items()},
    }
    with function(pointers) as (builder, given):
        result = given["destination" if in_place is None else f"source{in_place}"]

        def read(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
            source = given[f"source{read_by.index(layer.inputs[number])}"]
            return T.Cast(numbers.dtype, source[c, y, x])

        # TVM's code generator for C knows no scope but the global one
        scope = "global" if core == "plain" else "local"
        summing = isinstance(layer.operator, SUMMING)
        sums = Sums(T.alloc_buffer((SUMS,), numbers.dtype, scope=scope) if summing else None, numbers=numbers)
        done = _vectors(flat, given, read_by, result) if core == "mve" and numbers is INTEGERS else 0
        arrays, box = [given[name] for name in tables], box_of(flat)
        for part in parts_of(flat):
            channels, height, width = part.lengths
            first, top, left = part.start
            if box is not None:
                counts = [length // own for length, own in zip(part.lengths, box, strict=True)]
                with T.serial(0, counts[0]) as c, T.serial(0, counts[1]) as y, T.serial(0, counts[2]) as x:
                    corner = c * box[0], y * box[1], x * box[2]
                    prepare(flat, read, arrays, sums, corner)
                    with T.serial(0, box[0]) as c, T.serial(0, box[1]) as y, T.serial(0, box[2]) as x:
                        at = corner[0] + c, corner[1] + y, corner[2] + x
                        value = value_of(flat, read, arrays, sums, at, prepared=True)
                        T.buffer_store(result, T.Cast(layer.dtype, value), list(at))
                continue
            with T.serial(0, channels) as c, T.serial(0, height) as y, T.serial(0, width - done) as rest:
                x = rest + done
                value = value_of(flat, read, arrays, sums, (c, y, x), part.source)
                T.buffer_store(result, T.Cast(layer.dtype, value), [c + first, y + top, x + left])
    return Kernel(schedule="node", layers=(layer,), func=builder.get(), constants=tables, in_place=in_place)


def _vectors(flat: Node, given: Mapping[str, tirx.Buffer], read_by: Sequence[str], result: tirx.Buffer) -> int:
    """Emits sums and products of tensors of one shape four elements at a time, and gives how many these are."""
    width = flat.output_shape[3] // LANES * LANES
    if not isinstance(flat.operator, Sum | Product) or any(max(shape[:3]) > 1 for shape in flat.input_shapes):
        return 0
    if {*flat.input_shapes} != {flat.output_shape} or not width:
        return 0
    with T.serial(0, width // LANES) as vector:

        def read(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
            source = given[f"source{read_by.index(flat.inputs[number])}"]
            return T.Cast(f"int32x{LANES}", source[c, y, T.ramp(x, 1, LANES)])

        sums = Sums(None, lanes=LANES, numbers=MveIntegers())
        value = value_of(flat, read, [], sums, (0, 0, vector * LANES), None)
        T.buffer_store(result, T.Cast(f"{flat.dtype}x{LANES}", value), [0, 0, T.ramp(vector * LANES, 1, LANES)])
    return width


def _overwritten(layer: Node, dtypes: Sequence[str], writable: Sequence[bool]) -> int | None:
    """The number of the tensor in whose place the result can come: each of its elements is read just before."""
    if not isinstance(layer.operator, Sum | Product | Function):
        return None
    names = list(dict.fromkeys(layer.inputs))
    for name, shape in zip(layer.inputs, layer.input_shapes, strict=True):
        number = names.index(name)
        if writable[number] and dtypes[number] == layer.dtype and shape == layer.output_shape:
            return number
    return None


def _merged(layer: Node) -> Node:
    """The same layer with axes taken together, where it doesn't matter in which an element lies."""
    shapes = (*layer.input_shapes, layer.output_shape)
    if isinstance(layer.operator, Function):
        table = getattr(layer, "table", None)
        of_channels = table is not None and table.ndim > 1
        kept = 2 if of_channels else 0
    elif isinstance(layer.operator, Sum | Product):
        kept = 0 if len(set(shapes)) == 1 else 2 if len({_pixels(shape) for shape in shapes} - {(1, 1)}) <= 1 else 4
    else:
        kept = 4
    if kept == 4:
        return layer
    merged = [(*shape[:kept], *[1] * (3 - kept), math.prod(shape[kept:])) for shape in shapes]
    return replace(layer, input_shapes=tuple(merged[:-1]), output_shape=merged[-1])


def _pixels(shape: Shape) -> Shape:
    return shape[2:]
