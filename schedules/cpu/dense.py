"""Fully connected layer of a few rows, its weights by outputs (N×K), with what follows element by element.

1. A tile is some outputs of one row. Each has a vector of sums over every lanes-th input, so that weights are read as
   they lie, some streams side by side, and each vector of inputs is read once for the whole tile.
2. A vector's sums are added by halves. Inputs that don't fill a vector join on the way, in halves that they fill.
3. Bias, ReLU and the like are applied to the results, and they are stored.
4. A last tile that doesn't fit starts earlier and computes some outputs again. Threads share the tiles.

Lanes over the outputs leave ten classes without a vector, and walk through large weights by columns. With many rows
the weights would be read again for each: that is a matrix product, which `products` serves.

1×1024×10: 2.8 µs with the call, TVM's default: 11; 1×1024×256: 37 µs or 28 GB/s, all that one core reads here.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import s_tir, tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    Expr,
    all_equal,
    finish_of,
    fitting,
    is_plain,
    is_reduction,
    kernel,
    loads,
    param_of,
    product_of,
    starts,
    static_shape,
    unfuse,
    vectors_of,
    worth_threads,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_ROWS = 3
FEWEST_INPUTS = 4
OUTPUTS = (8, 7, 6, 5, 4)


@dataclass(frozen=True, kw_only=True)
class Product:
    """output[m, n] = finish(Σ data[m, k] · weight[k, n], (m, n)), or weight[n, k] if `by_output`."""

    data: tirx.Buffer
    weight: tirx.Buffer
    output: tirx.Buffer
    rows: int
    outputs: int
    inputs: int
    by_output: bool
    finish: Callable[[Expr, Sequence[Expr]], Expr]


def dense(func: tirx.PrimFunc, target: Target, tile: int | None = None) -> Schedule | None:
    """`tile` is how many outputs are computed at once, by default as many as waste the least."""
    product, possible = read_product(func), tiles(func, target)
    if product is None or not possible:
        return None
    lanes = fitting(vectors_of(target).lanes, product.inputs)
    outputs = tile or min(possible, key=lambda count: math.ceil(product.outputs / count) * (count + 1))
    parallel = worth_threads(product.rows * product.outputs * product.inputs, target)
    return Schedule(_loops(func, product, outputs, lanes, parallel))


def tiles(func: tirx.PrimFunc, target: Target) -> list[int]:
    """What `tile` may be for this kernel."""
    product = read_product(func)
    if product is None or not product.by_output or product.rows > MOST_ROWS:
        return []
    if product.inputs < FEWEST_INPUTS:
        return []
    return [count for count in OUTPUTS if count <= product.outputs] or [product.outputs]


def read_product(func: tirx.PrimFunc) -> Product | None:
    """The matrix product that `func` computes, or None."""
    if not all(tirx.is_buffer_var(param) and static_shape(param) for param in func.params):
        return None
    sch = s_tir.Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))
    if not names or not all(is_plain(sch, name) for name in names) or not is_reduction(sch.get(names[0])):
        return None
    if any(is_reduction(sch.get(name)) for name in names[1:]):
        return None
    try:
        for name in names[1:-1]:
            sch.compute_inline(name)
    except s_tir.ScheduleError:  # it isn't element-wise, or more than the next block reads it
        return None
    core, tail = sch.get(names[0]), sch.get(names[-1]) if len(names) > 1 else None

    spatial = [axis.var for axis in core.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    reduced = [axis.var for axis in core.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
    factors = product_of(core)
    if factors is None or len(spatial) != 2 or len(reduced) != 1 or len(core.iter_vars) != 3:
        return None
    (m, n), (k,) = spatial, reduced
    extent = {axis.var: int(axis.dom.extent) for axis in core.iter_vars}
    data, weight = factors
    if not all_equal(core.body.indices, (m, n), core) or not all_equal(data.indices, (m, k), core):
        return None
    by_output = static_shape(weight.source) == (extent[n], extent[k]) and all_equal(weight.indices, (n, k), core)
    if not by_output and not all_equal(weight.indices, (k, n), core):
        return None
    total = core.writes[0].source
    shapes = [static_shape(buffer) for buffer in (data.source, weight.source, total)]
    sides = (extent[n], extent[k]) if by_output else (extent[k], extent[n])
    if shapes != [(extent[m], extent[k]), sides, (extent[m], extent[n])]:
        return None
    output, finish = total, None
    if tail is not None:
        output, finish = tail.writes[0].source, finish_of(tail, total)
        others = [load.source for load in loads(tail.body.value) if not load.source.same_as(total)]
        if finish is None or static_shape(output) != shapes[2] or param_of(func, total) is not None:
            return None
        if any(param_of(func, other) is None or other.same_as(output) for other in others):
            return None
    buffers = data.source, weight.source, output
    if any(param_of(func, buffer) is None or str(buffer.dtype) != "float32" for buffer in buffers):
        return None
    if str(total.dtype) != "float32" or any(output.same_as(buffer) for buffer in buffers[:2]):
        return None
    return Product(
        data=data.source,
        weight=weight.source,
        output=output,
        rows=extent[m],
        outputs=extent[n],
        inputs=extent[k],
        by_output=by_output,
        finish=finish or (lambda value, place: value),
    )


def _loops(func: tirx.PrimFunc, product: Product, outputs: int, lanes: int, parallel: bool) -> tirx.PrimFunc:
    count, start = starts(product.outputs, outputs)
    with kernel(func) as builder:
        sums = [T.sblock_alloc_buffer((lanes,), "float32") for _ in range(outputs)]
        with (T.parallel if parallel else T.serial)(0, product.rows * count) as index:
            m, tile = unfuse(index, product.rows, count)
            n0 = start(tile)
            for total in sums:
                with T.vectorized(0, lanes) as lane:
                    T.buffer_store(total, T.float32(0), [lane])

            def add(k0: Expr, width: int) -> None:
                for place, total in enumerate(sums):
                    with T.vectorized(0, width) as lane:
                        k = k0 + lane
                        value = total[lane] + product.data[m, k] * product.weight[n0 + place, k]
                        T.buffer_store(total, value, [lane])

            done, width = product.inputs // lanes * lanes, lanes
            with T.serial(0, product.inputs // lanes) as step:
                add(step * lanes, lanes)
            while width > 2:
                width //= 2
                for total in sums:
                    with T.vectorized(0, width) as lane:
                        T.buffer_store(total, total[lane] + total[lane + width], [lane])
                if product.inputs - done >= width:
                    add(done, width)
                    done += width
            for place, total in enumerate(sums):
                where, value = (m, n0 + place), total[0] + total[1]
                if done < product.inputs:
                    value = value + product.data[m, done] * product.weight[n0 + place, done]
                T.buffer_store(product.output, product.finish(value, where), where)
    return builder.get()
