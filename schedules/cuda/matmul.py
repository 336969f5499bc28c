"""Matrix product of two dense matrices with what follows element by element: fully connected layers of many rows.

The strategy and the budget of registers and shared memory are those of `_product`. Checked without a GPU; no figure is
given where none was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.cpu.dense import read_product
from tvmflow.schedules.cuda._product import Product, choices, scheduled

if TYPE_CHECKING:
    from tvmflow.spec import Target


def matmul(func: tirx.PrimFunc, target: Target, tile: tuple[int, ...] | None = None) -> Schedule | None:
    """`tile` is (rows, columns, depth, sums by rows, sums by columns, splits)."""
    return scheduled(_read(func), target, tile)


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, ...]]:
    """What `tile` may be for this kernel."""
    return choices(_read(func), target)


def _read(func: tirx.PrimFunc) -> Product | None:
    found = read_product(func)
    if found is None:
        return None

    def store(f, p, total) -> None:
        T.buffer_store(found.output, found.finish(total, (f, p)), (f, p))

    # its rows are the weights' side, which lies along the depth
    return Product(
        func=func,
        rows=found.rows,
        columns=found.outputs,
        depth=found.inputs,
        weight=lambda f, k: found.data[f, k],
        value=lambda k, p: found.weight[p, k] if found.by_output else found.weight[k, p],
        store=store,
        weight_lanes=4 if found.inputs % 4 == 0 else 1,
        value_lanes=4 if not found.by_output and found.outputs % 4 == 0 else 1,
        store_lanes=4 if found.outputs % 4 == 0 else 1,
    )
