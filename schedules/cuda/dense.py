"""Fully connected layer of a few rows, weights by inputs or by outputs, with what follows element by element.

1. A block has some outputs of one row, `outputs`, and `groups` threads for each. Neighbouring threads read neighbouring
   weights: of one output where weights lie by outputs, of all outputs where they lie by inputs.
2. A thread adds every groups-th product in a register; the groups' sums are added by halves in shared memory.
3. What follows element by element is applied to the results.

At one row every weight is used once, so there is nothing to keep in shared memory; what counts is that enough loads are
under way. With many rows `matmul` goes on.

Registers: under 32. Shared memory: 4 bytes a thread. Checked without a GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.cpu.dense import Product, read_product
from tvmflow.schedules.cuda._grid import WARP, Expr, launch, local, multiprocessors, shared, when

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_ROWS = 4


def dense(func: tirx.PrimFunc, target: Target, tile: tuple[int, int] | None = None) -> Schedule | None:
    """`tile` is (outputs, groups)."""
    product, possible = _read(func), tiles(func, target)
    if product is None or not possible:
        return None
    return Schedule(_loops(func, product, *(tile or possible[0])))


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, int]]:
    """What `tile` may be for this kernel, the most promising first."""
    product = _read(func)
    if product is None:
        return []
    found = [
        (outputs, groups)
        for outputs in (1, 2, 4, 8, 16, 32)
        for groups in (4, 8, 16, 32, 64, 128, 256)
        if WARP <= outputs * groups <= 512 and (outputs == 1 or outputs // 2 < product.outputs)
    ]
    return sorted(found, key=functools.partial(_cost, product, multiprocessors(target)))


def _cost(product: Product, processors: int, tile: tuple[int, int]) -> float:
    """Loads that a multiprocessor waits for, those counted more of whose sectors only a part is used."""
    outputs, groups = tile
    waves = math.ceil(product.rows * math.ceil(product.outputs / outputs) / processors)
    wasted = outputs if product.by_output else max(1, 8 / outputs)
    return waves * (math.ceil(product.inputs / groups) * wasted * math.ceil(outputs * groups / 128) + groups**0.5)


def _read(func: tirx.PrimFunc) -> Product | None:
    product = read_product(func)
    return product if product is not None and product.rows <= MOST_ROWS else None


def _loops(func: tirx.PrimFunc, product: Product, outputs: int, groups: int) -> tirx.PrimFunc:
    tiles_ = math.ceil(product.outputs / outputs)
    with launch(func, product.rows * tiles_, outputs * groups) as (builder, block, thread):
        m, n0 = tirx.floordiv(block, tiles_), tirx.floormod(block, tiles_) * outputs
        share_depth(product, lambda k: product.data[m, k], (m, n0), thread, outputs, groups)
    return builder.get()


def share_depth(
    product: Product, data: Callable[[Expr], Expr], first: tuple[Expr, Expr], thread: Expr, outputs: int, groups: int
) -> None:
    """Emit what a block does for `outputs` outputs from `first` on, `data(k)` being the row's inputs."""
    partial, total = shared(groups * outputs), local(1)
    m, n0 = first
    if product.by_output:
        n, group = tirx.floordiv(thread, groups), tirx.floormod(thread, groups)
    else:
        n, group = tirx.floormod(thread, outputs), tirx.floordiv(thread, outputs)
    T.buffer_store(total, T.float32(0), [0])
    with T.serial(0, math.ceil(product.inputs / groups)) as step:
        k = step * groups + group
        inside = [] if product.inputs % groups == 0 else [k < product.inputs]
        inside += [] if product.outputs % outputs == 0 else [n0 + n < product.outputs]
        with when(tirx.all(*inside) if inside else None):
            weight = product.weight[n0 + n, k] if product.by_output else product.weight[k, n0 + n]
            T.buffer_store(total, total[0] + data(k) * weight, [0])
    T.buffer_store(partial, total[0], [group * outputs + n])
    half = groups // 2
    while half:
        with when(group < half):
            added = partial[group * outputs + n] + partial[(group + half) * outputs + n]
            T.buffer_store(partial, added, [group * outputs + n])
        half //= 2
    with when(tirx.all(group == 0, n0 + n < product.outputs)):
        where = (m, n0 + n)
        T.buffer_store(product.output, product.finish(partial[n], where), where)
