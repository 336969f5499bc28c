"""Depthwise convolutions, a whole plane at a time; two in a row are one kernel that works in place.

1. Of two layers, the first writes a plane into a scratch buffer that the second reads at once. Then nothing reads the
   plane of the input any more, and the result takes its place: planes of the output begin no later than the input's.
   Of one layer alone the plane is copied first, which vectors need anyway, and otherwise if the memory is worth it.
2. The rows of the output are cut where the set of taps that meet the map changes, so that nothing is computed of rows
   beyond the border: of a dilation of 5 on 8×8, most of it.
3. Scalars: columns are cut in the same way. Weights lie in registers, two in each with DSP (SMLABB and SMLABT take
   either half), and a load and a multiply-add is all that a tap costs.
4. MVE: four pixels of a row or a column at a time, whichever takes fewer vectors, each tap one widening load and one
   VMLA by a scalar. The planes get the border at both ends of it; only taps that meet nothing of it at all are left
   out. The last four overlap the ones before.
5. Where the cuts would be too much code, as with 7×7 taps, planes get the border on all sides instead, and no cuts.
6. A border of another number than 0 adds as much times the weights of the taps that aren't computed: once for a channel
   and a set of taps, to what its sums begin with.

3×3 of dilation 5 and a plain 3×3 behind it on 64×32×32, stride 2: 2.8 instructions for each multiply-add, those of the
border counted as work, on a Cortex-M7 and 1.1 on a Cortex-M55, counted under qemu-system-arm 7.2; on 1024×4×4, of which
a third is computed, 1.3 and 0.5. TVM 0.27.0, 2026-11-25.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.layers import IntegerLayer
from tvmflow.schedules.cortex_m._kernel import (
    AnyLayer,
    By,
    Expr,
    Kernel,
    WeightedLayer,
    accumulator,
    border_of,
    constant_pointers,
    exchanged,
    finish,
    finish_vector,
    function,
    gather,
    intrinsic,
    lanes_at,
    multiply_add,
    parameters,
    parameters_at,
    scatter,
    sizes,
    weights_of,
)

MOST_PRODUCTS = 400
"""Products in the code of one layer, as each cut has code of its own: 5×5 taps have 361."""
LANES = 4
COPY_LANES = (16, 8, 4)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A map of one channel inside a buffer: pixel (y, x) is element `first + y · pitch + x · step`."""

    buffer: tirx.Buffer
    first: Expr
    pitch: int
    step: int = 1

    def at(self, y: Expr, x: Expr) -> Expr:
        return self.first + y * self.pitch + x * self.step

    def exchanged(self) -> Plane:
        """The same map, its columns taken for rows."""
        return replace(self, pitch=self.step, step=self.pitch)


@dataclass(frozen=True, kw_only=True)
class Room:
    """A scratch buffer for one plane, with columns of the border at both sides, or rows of it above and below."""

    dtype: str
    rows: int
    columns: int
    left: int = 0
    right: int = 0
    above: int = 0
    below: int = 0

    @property
    def pitch(self) -> int:
        return self.left + self.columns + self.right

    @property
    def bytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """Elements, a whole number of vectors."""
        return -(-(self.above + self.rows + self.below) * self.pitch // COPY_LANES[0]) * COPY_LANES[0]

    @property
    def bordered(self) -> bool:
        return any((self.left, self.right, self.above, self.below))


def depthwise(
    layers: Sequence[AnyLayer], dtypes: Sequence[str], core: str, writable: Sequence[bool], frugal: bool
) -> Kernel | None:
    alone = [layer for layer in layers if isinstance(layer, WeightedLayer) and _is_depthwise(layer)]
    if len(layers) > 2 or len(alone) < len(layers):
        return None
    if not all(map(_fits, alone)):
        return _bordered(alone[0], dtypes[0], core, writable[0]) if len(alone) == 1 else None
    layers = alone
    lanes = [_lanes_along(layer) if core == "mve" else None for layer in layers]
    vectors = [axis is not None for axis in lanes]
    views = [exchanged(layer) if axis == 0 else layer for layer, axis in zip(layers, lanes, strict=True)]
    dtype = dtypes[0]
    dtypes = [dtype, *(layer.dtype for layer in layers)]
    before, after = sizes(layers[0])[0], sizes(layers[-1])[1]
    # of one layer alone the plane has to be copied, as vectors do anyway
    copied = vectors[0] or (len(layers) == 1 and frugal and writable[0] and after <= before)
    in_place = writable[0] and (len(layers) == 2 or copied) and after <= before
    rooms = {
        f"plane{number}": _room(layer, dtypes[number], lanes[number])
        for number, layer in enumerate(layers)
        if number or copied
    }
    constants: dict[str, np.ndarray] = {}
    for number, layer in enumerate(layers):
        constants |= {f"parameters{number}": parameters(layer), f"weight{number}": weights_of(views[number])}
    pointers = {
        **({"data": (dtype, before)} if in_place else {"source": (dtype, before), "destination": (dtypes[-1], after)}),
        **{name: (room.dtype, room.size) for name, room in rooms.items()},
        **constant_pointers(constants),
    }
    with function(pointers) as (builder, given):
        source, destination = (given["data"], given["data"]) if in_place else (given["source"], given["destination"])
        for number, layer in enumerate(layers):
            room = rooms.get(f"plane{number}")
            if room is not None and room.bordered:
                _clear(given[f"plane{number}"], room, border_of(layer), core)
        with T.serial(0, layers[0].input_shape[1]) as c:
            here = _whole(source, layers[0].input_shape, c)
            for number, layer in enumerate(layers):
                if number == 0 and copied:
                    copy = _inside(given["plane0"], rooms["plane0"])
                    (_copy if lanes[0] == 1 else _copy_whole)(here, copy, layer.input_shape)
                    here = copy
                last = layer is layers[-1]
                there = (
                    _whole(destination, layer.output_shape, c)
                    if last
                    else _inside(given[f"plane{number + 1}"], rooms[f"plane{number + 1}"])
                )
                read, made = (here.exchanged(), there.exchanged()) if lanes[number] == 0 else (here, there)
                table = given[f"parameters{number}"], given[f"weight{number}"]
                (_vectors if vectors[number] else _scalars)(views[number], core, table, read, made, c)
                here = there
    return Kernel(
        schedule="depthwise",
        layers=tuple(layers),
        func=builder.get(),
        constants=constants,
        scratch={name: room.bytes for name, room in rooms.items()},
        in_place=0 if in_place else None,
    )


def _bordered(layer: WeightedLayer, dtype: str, core: str, writable: bool) -> Kernel | None:
    """A layer with so many cuts that their code would be too long: each plane is copied into one with its border."""
    if math.prod(layer.weight.shape[2:]) > MOST_PRODUCTS:
        return None
    _, channels, height, width = layer.input_shape
    top, left, bottom, right = layer.padding
    whole = (1, channels, top + height + bottom, left + width + right)
    inside = replace(layer, padding=(0, 0, 0, 0), input_shape=whole)
    room = Room(dtype=dtype, rows=whole[2], columns=whole[3])
    before, after = sizes(layer)
    in_place = writable and after <= before
    constants = {"parameters": parameters(layer), "weight": weights_of(layer)}
    pointers = {
        **({"data": (dtype, before)} if in_place else {"source": (dtype, before), "destination": (layer.dtype, after)}),
        "plane": (dtype, room.size),
        **constant_pointers(constants),
    }
    with function(pointers) as (builder, given):
        source, destination = (given["data"], given["data"]) if in_place else (given["source"], given["destination"])
        _clear(given["plane"], room, border_of(layer), core)
        with T.serial(0, channels) as c:
            here = _whole(source, layer.input_shape, c)
            middle = Plane(buffer=given["plane"], first=top * room.pitch + left, pitch=room.pitch)
            vectors = core == "mve" and layer.output_shape[3] >= LANES <= width
            (_copy if vectors else _copy_rows)(here, middle, layer.input_shape)
            read, there = _inside(given["plane"], room), _whole(destination, layer.output_shape, c)
            table = given["parameters"], given["weight"]
            (_vectors if vectors else _scalars)(inside, core, table, read, there, c)
    return Kernel(
        schedule="depthwise",
        layers=(layer,),
        func=builder.get(),
        constants=constants,
        scratch={"plane": room.bytes},
        in_place=0 if in_place else None,
    )


def _is_depthwise(layer: WeightedLayer) -> bool:
    return layer.kind == "conv2d" and layer.groups == layer.input_shape[1] == layer.output_shape[1]


def _fits(layer: WeightedLayer) -> bool:
    vertical, horizontal = (sum(len(taps) for _, _, taps in layer.window.cuts(axis)) for axis in (0, 1))
    return vertical * horizontal <= MOST_PRODUCTS


def met(layer: WeightedLayer, axis: int) -> list[int]:
    """The taps along an axis that meet the input for any output."""
    return sorted({tap for _, _, taps in layer.window.cuts(axis) for tap in taps})


def _lanes_along(layer: WeightedLayer) -> int | None:
    """Along which axis, rows 0 or columns 1, four pixels of the result are computed at once; None if along none."""
    (_, _, *given), (_, _, *made) = layer.input_shape, layer.output_shape
    axes = [axis for axis in (1, 0) if made[axis] >= LANES <= given[axis]]
    if not isinstance(layer, IntegerLayer):
        axes = [axis for axis in axes if axis == 1]  # numbers of four bytes that are no neighbours are read one by one
    return min(axes, key=lambda axis: -(-made[axis] // LANES) * made[1 - axis], default=None)


def _room(layer: WeightedLayer, dtype: str, axis: int | None) -> Room:
    """What the input of a layer lies in: along the `axis` of vectors, with as much of the border as its taps reach."""
    _, _, rows, columns = layer.input_shape
    if axis is None:
        return Room(dtype=dtype, rows=rows, columns=columns)
    length = layer.input_shape[2 + axis]
    reached = [0, length - 1]
    for tap in met(layer, axis):
        offset = tap * layer.dilation[axis] - layer.padding[axis]
        reached += [offset, (layer.output_shape[2 + axis] - 1) * layer.stride[axis] + offset]
    before, after = -min(reached), max(reached) - (length - 1)
    if axis == 1:
        return Room(dtype=dtype, rows=rows, columns=columns, left=before, right=after)
    return Room(dtype=dtype, rows=rows, columns=columns, above=before, below=after)


def _whole(buffer: tirx.Buffer, shape: tuple[int, ...], c: Expr) -> Plane:
    return Plane(buffer=buffer, first=c * (shape[2] * shape[3]), pitch=shape[3])


def _inside(buffer: tirx.Buffer, room: Room) -> Plane:
    return Plane(buffer=buffer, first=room.above * room.pitch + room.left, pitch=room.pitch)


def _clear(buffer: tirx.Buffer, room: Room, border: int, core: str) -> None:
    """Fills all of a buffer; in vectors where the core has them, of which C knows none."""
    lanes, value = COPY_LANES[0] if core == "mve" else 1, T.Cast(room.dtype, T.int32(border))
    with T.serial(0, room.size // lanes) as index:
        values = T.Broadcast(value, lanes) if lanes > 1 else value
        T.buffer_store(buffer, values, [lanes_at(index * lanes, lanes)])


def _copy(source: Plane, destination: Plane, shape: tuple[int, ...]) -> None:
    """Row by row, in vectors, of which the last overlaps the one before."""
    lanes = next(count for count in COPY_LANES if count <= shape[3])
    with T.serial(0, shape[2]) as y:
        for x in (*range(0, shape[3] - lanes, lanes), shape[3] - lanes):
            value = source.buffer[T.ramp(source.at(y, x), 1, lanes)]
            T.buffer_store(destination.buffer, value, [T.ramp(destination.at(y, x), 1, lanes)])


def _copy_whole(source: Plane, destination: Plane, shape: tuple[int, ...]) -> None:
    """All of a plane, of whose rows each follows the one before: what LLVM makes a call of memcpy."""
    with T.serial(0, shape[2] * shape[3]) as place:
        T.buffer_store(destination.buffer, source.buffer[source.first + place], [destination.first + place])


def _copy_rows(source: Plane, destination: Plane, shape: tuple[int, ...]) -> None:
    with T.serial(0, shape[2]) as y, T.serial(0, shape[3]) as x:
        T.buffer_store(destination.buffer, source.buffer[source.at(y, x)], [destination.at(y, x)])


def _begin(layer: WeightedLayer, table: tirx.Buffer, c: Expr) -> tuple[Expr, By]:
    begin, by = parameters_at(layer, table, c)
    return T.bind(begin), tuple(map(T.bind, by))


def _weights(layer: WeightedLayer, weight: tirx.Buffer, c: Expr) -> dict[tuple[int, int], Expr]:
    """The channel's weights of the taps that meet the input, or a border other than 0, in the dtype of the sums."""
    height, width = layer.weight.shape[2:]
    rows, columns = (range(height), range(width)) if border_of(layer) else (met(layer, 0), met(layer, 1))
    return {
        (r, s): T.bind(T.Cast(accumulator(layer), weight[(c * height + r) * width + s])) for r in rows for s in columns
    }


def _with_border(
    layer: WeightedLayer, begin: Expr, weights: Mapping[tuple[int, int], Expr], meeting: set[tuple[int, int]]
) -> Expr:
    """What a sum begins with, and what the taps add to it that meet the border; those in `meeting` don't."""
    border = [weight for tap, weight in weights.items() if tap not in meeting]
    if not border_of(layer) or not border:
        return begin
    return T.bind(begin + T.int32(border_of(layer)) * functools.reduce(operator.add, border))


def _scalars(
    layer: WeightedLayer,
    core: str,
    constants: tuple[tirx.Buffer, tirx.Buffer],
    here: Plane,
    there: Plane,
    c: Expr,
) -> None:
    begin, by = _begin(layer, constants[0], c)
    weights = _weights(layer, constants[1], c)
    halves: dict[tuple[int, int], tuple[str, Expr]] = {}
    if core != "plain" and isinstance(layer, IntegerLayer):
        taps = list(weights)
        for low, high in zip(taps[0::2], [*taps[1::2], None], strict=False):
            word = weights[low]
            if high is not None:
                upper = tirx.shift_left(weights[high], T.int32(16))
                word = T.bind(tirx.bitwise_or(tirx.bitwise_and(word, 0xFFFF), upper))
                halves[high] = ("smlabt", word)
            halves[low] = ("smlabb", word)
    for top, rows, vertical in layer.window.cuts(0):
        for first, columns, horizontal in layer.window.cuts(1):
            start = _with_border(layer, begin, weights, {(r, s) for r in vertical for s in horizontal})
            with T.serial(0, rows) as row, T.serial(0, columns) as column:
                y, x = top + row, first + column
                total = start
                for r in vertical:
                    for s in horizontal:
                        value = T.Cast(accumulator(layer), here.buffer[here.at(*_met_by(layer, y, x, r, s))])
                        if halves:
                            name, word = halves[r, s]
                            total = intrinsic(name, value, word, total)
                        else:
                            total = multiply_add(core, total, value, weights[r, s])
                value = finish(layer, T.bind(total), by)  # unbound, its terms would be widened one by one
                T.buffer_store(there.buffer, T.Cast(str(there.buffer.dtype), value), [there.at(y, x)])


def _vectors(
    layer: WeightedLayer,
    core: str,
    constants: tuple[tirx.Buffer, tirx.Buffer],
    here: Plane,
    there: Plane,
    c: Expr,
) -> None:
    begin, by = _begin(layer, constants[0], c)
    weights = _weights(layer, constants[1], c)
    width = layer.output_shape[3]

    def four(y: Expr, x: Expr, vertical: Sequence[int], start: Expr) -> None:
        total = T.Broadcast(start, LANES)
        for r in vertical:
            for s in met(layer, 1):
                first, stride = here.at(*_met_by(layer, y, x, r, s)), layer.stride[1] * here.step
                value = _four(here.buffer, first, stride, accumulator(layer))
                total = multiply_add(core, total, value, T.Broadcast(weights[r, s], LANES), LANES)
        value = finish_vector(layer, total, by)
        if there.step > 1:
            scatter(there.buffer, there.at(y, x), T.ramp(T.int32(0), there.step, LANES), value)
            return
        value = T.Cast(f"{there.buffer.dtype}x{LANES}", value)
        T.buffer_store(there.buffer, value, [T.ramp(there.at(y, x), 1, LANES)])

    for top, rows, vertical in layer.window.cuts(0):
        start = _with_border(layer, begin, weights, {(r, s) for r in vertical for s in met(layer, 1)})
        with T.serial(0, rows) as row:
            with T.serial(0, width // LANES) as vector:
                four(top + row, vector * LANES, vertical, start)
            if width % LANES:
                four(top + row, width - LANES, vertical, start)


def _four(buffer: tirx.Buffer, first: Expr, stride: int, dtype: str) -> Expr:
    """Four elements as numbers of `dtype`; of bytes that are no neighbours by one VLDRB."""
    if stride == 1 or dtype != "int32":
        return T.Cast(f"{dtype}x{LANES}", buffer[T.ramp(first, stride, LANES)])
    return gather(buffer, first, T.ramp(T.int32(0), stride, LANES))


def _met_by(layer: WeightedLayer, y: Expr, x: Expr, r: int, s: int) -> tuple[Expr, Expr]:
    """The pixel of the input that a tap meets."""
    return (
        y * layer.stride[0] + r * layer.dilation[0] - layer.padding[0],
        x * layer.stride[1] + s * layer.dilation[1] - layer.padding[1],
    )
