"""Matrix product of any shape, plain or batched, with what follows element by element.

1. A tile is some rows × some vectors of outputs. Its sums stay in registers through all inputs: each vector of weights
   is loaded once for all rows, and each element of the data once, spread over the lanes.
2. The tiles of the rows are the inner loop, so that the columns of weights which a tile reads are read again from a
   near cache. Constant weights come in panels of as many columns (`pack_products`): one row of a wide matrix after the
   other would be another page of memory at each step.
3. Weights by outputs (N×K), as of Q·Kᵀ, have no vector of neighbouring outputs: the columns of a tile are copied to a
   panel first, which all tiles of rows read.
4. Bias, residual and the like are applied to the registers. What takes many operations, like GELU, is applied in a loop
   over the rows of the tile instead, for it would be as much code as all products.
5. A last tile that doesn't fit starts earlier and computes some outputs again. Threads share the tiles.

`lanes` keeps no more rows than divide their number, of 65 one, and no vector where their number is odd.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, TensorLoad
from tvm.s_tir import SBlock, Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    LOOP_COST,
    Expr,
    Vectors,
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

LEAST_ROWS = 2
MOST_VECTORS = 4
SMALL_TAIL = 8
"""Operations of a tail that is written out for each vector of a tile."""

Tile = tuple[int, int]
"""Rows and vectors of outputs."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """output[…, m, …, n] = finish(Σ data[…, m, …, k] · weight[…, k, …, n], (…, m, …, n)).

    `axes` are those of the output, with their lengths; `row` is the place of m among them, and n is the last. The data
    doesn't depend on n, and the weight not on m; how they depend on the other axes is in the indices of the loads.
    `by_output` says that neighbours in the weight differ in k and not in n; `panel` is how many outputs lie together
    where the weight is in panels, else 0.
    """

    axes: tuple[tirx.Var, ...]
    lengths: tuple[int, ...]
    row: int
    inner: tirx.Var
    inputs: int
    data: TensorLoad
    weight: TensorLoad
    output: tirx.Buffer
    finish: Callable[[Expr, Sequence[Expr]], Expr]
    tail_size: int
    by_output: bool
    panel: int

    @property
    def rows(self) -> int:
        return self.lengths[self.row]

    @property
    def outputs(self) -> int:
        return self.lengths[-1]

    @property
    def macs(self) -> int:
        return math.prod(self.lengths) * self.inputs


def products(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """`tile` is (rows, vectors of outputs), by default the one that should need the fewest instructions."""
    possible = tiles(func, target)
    if not possible:
        return None
    product = read_product(func)
    assert product is not None
    tile = tile or min(possible, key=lambda tile: _cost(product, tile, _lanes(product, target)))
    return Schedule(_loops(func, product, tile, target))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel."""
    product = read_product(func)
    if product is None or product.rows < LEAST_ROWS or _lanes(product, target) < 4:
        return []
    registers, lanes, length = _registers(target), _lanes(product, target), product.panel or product.outputs
    return [
        (rows, vectors)
        for vectors in range(1, MOST_VECTORS + 1)
        if vectors * lanes <= length and (not product.panel or product.panel % (vectors * lanes) == 0)
        for rows in range(1, min(product.rows, most_rows(registers, vectors)) + 1)
    ]


def _registers(target: Target) -> Vectors:
    """Those of float32, in which sums of any length are kept, whatever the network's arithmetic is."""
    return vectors_of(replace(target, arithmetic="float32"))


def most_rows(registers: Vectors, vectors: int) -> int:
    """Rows of a tile of so many vectors: their sums, the weights and one element of the data fill the registers."""
    return max(rows * columns for rows, columns in registers.tiles) // vectors


def panel_length(func: tirx.PrimFunc, target: Target) -> int:
    """Outputs of a panel into which the weight of this product should be packed; 0 if it stays as it is."""
    product = read_product(func)
    if product is None or product.by_output or product.panel or product.rows < LEAST_ROWS:
        return 0
    lanes = _lanes(product, target)
    fit = [vectors for vectors in range(1, MOST_VECTORS + 1) if product.outputs % (vectors * lanes) == 0]
    if lanes < 4 or not fit or len(static_shape(product.weight.source) or ()) != 2:
        return 0
    registers = _registers(target)
    return lanes * min(
        fit,
        key=lambda vectors: min(
            _cost(product, (rows, vectors), lanes)
            for rows in range(1, min(product.rows, most_rows(registers, vectors)) + 1)
        ),
    )


def _lanes(product: Product, target: Target) -> int:
    most = _registers(target).lanes
    return math.gcd(most, product.panel) if product.panel else fitting(most, product.outputs)


def _cost(product: Product, tile: Tile, lanes: int) -> int:
    """Instructions for each input, loads counted as products."""
    rows, vectors = tile
    count = math.ceil(product.rows / rows) * math.ceil(product.outputs / (vectors * lanes))
    return count * (rows * vectors + rows + vectors + LOOP_COST)


@functools.lru_cache(maxsize=512)
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
    if factors is None or len(spatial) < 2 or len(reduced) != 1 or len(core.iter_vars) != len(spatial) + 1:
        return None
    extent = {axis.var: int(axis.dom.extent) for axis in core.iter_vars}
    lengths, total = tuple(extent[axis] for axis in spatial), core.writes[0].source
    if not all_equal(core.body.indices, spatial, core) or static_shape(total) != lengths:
        return None
    n, k = spatial[-1], reduced[0]
    is_data = [_is_direct(load, extent) and not _uses(load.indices, n) for load in factors]
    if sum(is_data) != 1:
        return None
    data, weight = factors if is_data[0] else factors[::-1]
    panel = 0 if _is_direct(weight, extent) else _panel(weight, n, k, core)
    of_weight = (k, n) if panel else weight.indices
    if not panel and not _is_direct(weight, extent):
        return None
    if not _uses(data.indices, k) or not any(of_weight[-1].same_as(var) for var in (n, k)):
        return None
    if [sum(index.same_as(var) for index in of_weight) for var in (n, k)] != [1, 1]:
        return None
    rows = [axis for axis in spatial[:-1] if _uses(data.indices, axis) and not _uses(of_weight, axis)]
    if not rows:
        return None

    output, finish = total, None
    if tail is not None:
        output, finish = tail.writes[0].source, finish_of(tail, total)
        others = [load.source for load in loads(tail.body.value) if not load.source.same_as(total)]
        if finish is None or static_shape(output) != lengths or param_of(func, total) is not None:
            return None
        if any(param_of(func, other) is None or other.same_as(output) for other in others):
            return None
        if any(str(other.dtype) != "float32" for other in others):
            return None
    buffers = data.source, weight.source, output
    if any(param_of(func, buffer) is None or str(buffer.dtype) != "float32" for buffer in buffers):
        return None
    if str(total.dtype) != "float32" or any(output.same_as(buffer) for buffer in buffers[:2]):
        return None
    return Product(
        axes=tuple(spatial),
        lengths=lengths,
        row=spatial.index(max(rows, key=lambda axis: extent[axis])),
        inner=k,
        inputs=extent[k],
        data=data,
        weight=weight,
        output=output,
        finish=finish or (lambda value, place: value),
        tail_size=_operations(tail.body.value) if tail is not None else 0,
        by_output=not panel and weight.indices[-1].same_as(k),
        panel=panel,
    )


def _uses(indices: Sequence[Expr], var: tirx.Var) -> bool:
    return any(index.same_as(var) for index in indices)


def _is_direct(load: TensorLoad, axes: Container[tirx.Var]) -> bool:
    """Whether each index is an axis or a number."""
    return all(isinstance(index, tirx.IntImm) or index in axes for index in load.indices)


def _panel(weight: TensorLoad, n: tirx.Var, k: tirx.Var, core: SBlock) -> int:
    """How many outputs lie in a panel of the weight; 0 if it isn't in panels."""
    length = int(weight.source.shape[-1])
    return length if all_equal(weight.indices, (n // length, k, n % length), core) else 0


def _operations(value: Expr) -> int:
    """Of an expression; a function counts as more than a small tail has."""
    found: list[int] = []
    kinds = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min, tirx.Select)
    tvm_ffi.structural_walk(value, [(kinds, lambda _: found.append(1)), (Call, lambda _: found.append(1 + SMALL_TAIL))])
    return sum(found)


def _loops(func: tirx.PrimFunc, product: Product, tile: Tile, target: Target) -> tirx.PrimFunc:
    (rows, vectors), lanes = tile, _lanes(product, target)
    width = vectors * lanes
    row_tiles, row_start = starts(product.rows, rows)
    tiles_of_outputs, output_start = starts(product.outputs, width)
    batches = [length for place, length in enumerate(product.lengths[:-1]) if place != product.row]
    small = product.tail_size <= SMALL_TAIL
    with kernel(func) as builder:
        # one buffer for each: TVM puts a kilobyte on the heap, and then the sums are no registers to LLVM
        sums = [T.sblock_alloc_buffer((vectors, lanes), "float32") for _ in range(rows)]
        panel = T.sblock_alloc_buffer((product.inputs, width), "float32") if product.by_output else None
        results = None if small else T.sblock_alloc_buffer((rows, width), "float32")

        def place(batch: Sequence[Expr], m: Expr, n: Expr) -> tuple[Expr, ...]:
            return (*batch[: product.row], m, *batch[product.row :], n)

        def element(load: TensorLoad, where: Sequence[Expr], k: Expr) -> Expr:
            values = dict(zip(product.axes, where, strict=True)) | {product.inner: k}
            return load.source[tuple(values.get(index, index) for index in load.indices)]

        def weight(batch: Sequence[Expr], n0: Expr, v: int, lane: Expr, k: Expr) -> Expr:
            if panel is not None:
                return panel[k, v * lanes + lane]
            if product.panel:  # a tile lies in one panel, so that the vector is none of quotients
                within = tirx.floormod(n0, product.panel) + v * lanes + lane
                return product.weight.source[tirx.floordiv(n0, product.panel), k, within]
            return element(product.weight, place(batch, 0, n0 + v * lanes + lane), k)

        def tile_of_rows(batch: Sequence[Expr], n0: Expr, m0: Expr) -> None:
            every = list(itertools.product(range(rows), range(vectors)))
            # one vectorised loop around many statements: what TVM takes to flatten an index grows with the loops
            with T.vectorized(0, lanes) as lane:
                for row, v in every:
                    T.buffer_store(sums[row], T.float32(0), [v, lane])
            with T.serial(0, product.inputs) as k, T.vectorized(0, lanes) as lane:
                for row, v in every:
                    value = element(product.data, place(batch, m0 + row, 0), k) * weight(batch, n0, v, lane, k)
                    T.buffer_store(sums[row], sums[row][v, lane] + value, [v, lane])
            if results is None:
                with T.vectorized(0, lanes) as lane:
                    for row, v in every:
                        where = place(batch, m0 + row, n0 + v * lanes + lane)
                        T.buffer_store(product.output, product.finish(sums[row][v, lane], where), where)
                return
            with T.vectorized(0, lanes) as lane:
                for row, v in every:
                    T.buffer_store(results, sums[row][v, lane], [row, v * lanes + lane])
            with T.serial(0, rows) as row, T.serial(0, vectors) as v, T.vectorized(0, lanes) as lane:
                where = place(batch, m0 + row, n0 + v * lanes + lane)
                T.buffer_store(product.output, product.finish(results[row, v * lanes + lane], where), where)

        outer = math.prod(batches) * tiles_of_outputs
        parallel = T.parallel if worth_threads(product.macs, target) else T.serial
        if panel is not None:
            with parallel(0, outer) as index:
                *batch, output_tile = unfuse(index, *batches, tiles_of_outputs)
                n0 = output_start(output_tile)
                with T.serial(0, width) as column, T.serial(0, product.inputs) as k:
                    T.buffer_store(panel, element(product.weight, place(batch, 0, n0 + column), k), [k, column])
                with T.serial(0, row_tiles) as row_tile:
                    tile_of_rows(batch, n0, row_start(row_tile))
        else:
            with parallel(0, outer * row_tiles) as index:
                *batch, output_tile, row_tile = unfuse(index, *batches, tiles_of_outputs, row_tiles)
                tile_of_rows(batch, output_start(output_tile), row_start(row_tile))
    return builder.get()
