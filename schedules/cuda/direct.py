"""A sum, a maximum or the like for each output, a thread for each: convolutions in groups, transposed or not of images.

1. What comes before the sum element by element, a border above all, is computed where it is read.
2. Outputs are one index, which threads and blocks share; neighbouring threads have neighbouring outputs, so that what a
   warp loads and stores lies together where the innermost axis is the output's.
3. A thread goes through its whole sum with one number in a register, applies what follows, and stores once.

No shared memory and no barrier: weights that a warp reads together and inputs that neighbours read again come out of
the first-level cache. Where outputs are few and sums are long, `dlight` shares each sum among threads. Checked without
a GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import all_equal, is_plain, is_reduction, loads, substitute, unfuse
from tvmflow.schedules.cuda._grid import WARP, Expr, launch, local, multiprocessors, when

if TYPE_CHECKING:
    from tvmflow.spec import Target

THREADS = (128, 64, 256)
WANTED = 256
"""Threads for each multiprocessor, for their loads to hide each other's waits."""
SHORT = 32
"""Steps of a sum that a thread may well go through alone, even if most of the GPU has no work."""


@dataclass(frozen=True, kw_only=True)
class Sum:
    """output[i] = finish(value of core's axes, combined from start over `steps`) for i in `outputs`.

    `combine(total, i, steps)` is the next value of a sum, `finish(total, i)` what is stored of it.
    """

    output: tirx.Buffer
    outputs: tuple[int, ...]
    steps: tuple[int, ...]
    start: Expr
    combine: Callable[[Expr, Sequence[Expr], Sequence[Expr]], Expr]
    finish: Callable[[Expr, Sequence[Expr]], Expr]


def direct(func: tirx.PrimFunc, target: Target, tile: int | None = None) -> Schedule | None:
    """`tile` is the threads of a block."""
    found = _read(func)
    if found is None:
        return None
    work = math.prod(found.outputs)
    if math.prod(found.steps) > SHORT and work < WANTED * multiprocessors(target):
        return None
    return Schedule(_loops(func, found, min(tile or THREADS[0], math.ceil(work / WARP) * WARP)))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Any]:
    """What `tile` may be for this kernel, the most promising first."""
    return list(THREADS) if direct(func, target) is not None else []


def _loops(func: tirx.PrimFunc, found: Sum, threads: int) -> tirx.PrimFunc:
    work = math.prod(found.outputs)
    with launch(func, math.ceil(work / threads), threads) as (builder, block, thread):
        total = local(1, dtype=str(found.start.ty.dtype))
        index = block * threads + thread
        with when(index < work if work % threads else None):
            place = unfuse(index, *found.outputs)
            T.buffer_store(total, found.start, [0])
            with ExitStack() as around:
                steps = [around.enter_context(T.serial(0, length)) for length in found.steps]
                T.buffer_store(total, found.combine(total[0], place, steps), [0])
            T.buffer_store(found.output, found.finish(total[0], place), place)
    return builder.get()


def _read(func: tirx.PrimFunc) -> Sum | None:
    sch = _joined(func)
    if sch is None:
        return None
    core, last = (sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root")))
    total, axes = core.writes[0].source, [axis.var for axis in last.iter_vars]
    inner = [axis for axis in core.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    summed = [axis for axis in core.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
    read = [load for load in loads(last.body.value) if load.source.same_as(total)]
    if not read or not all(all_equal(load.indices, read[0].indices, last) for load in read):
        return None
    if not all_equal(last.body.indices, axes, last) or _count(inner) != _count(last.iter_vars):
        return None  # stored in another order, or summed up again and again

    def replaced(node: Expr, value: Expr, places: Mapping[tirx.Var, Expr]) -> Expr:
        node = tvm_ffi.structural_map(
            node, (TensorLoad, lambda load: value if load.source.same_as(total) else load), order="post"
        )
        return substitute(node, _cast(list(places), list(places.values())))

    def combine(value: Expr, place: Sequence[Expr], steps: Sequence[Expr]) -> Expr:
        where = [substitute(node, _cast(axes, place)) for node in read[0].indices]
        places = [*zip(inner, where, strict=True), *zip(summed, steps, strict=True)]
        return replaced(core.body.value, value, {axis.var: index for axis, index in places})

    return Sum(
        output=last.writes[0].source,
        outputs=tuple(int(axis.dom.extent) for axis in last.iter_vars),
        steps=tuple(int(axis.dom.extent) for axis in summed),
        start=core.init.value,
        combine=combine,
        finish=lambda value, place: replaced(last.body.value, value, dict(zip(axes, place, strict=True))),
    )


def _cast(axes: Sequence[tirx.Var], place: Sequence[Expr]) -> dict[tirx.Var, Expr]:
    return {var: tirx.Cast(str(var.ty.dtype), index) for var, index in zip(axes, place, strict=True)}


def _joined(func: tirx.PrimFunc) -> Schedule | None:
    """The kernel as two blocks, a sum and what stores it; None if it is something else."""
    if not all(isinstance(dim, tirx.IntImm) for param in func.params for dim in param.shape):
        return None
    sch = Schedule(func)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    if not blocks or not all(is_plain(sch, block) for block in blocks):
        return None
    sums = [place for place, block in enumerate(blocks) if is_reduction(sch.get(block))]
    if len(sums) != 1 or not _is_sum(sch.get(blocks[sums[0]])):
        return None
    before, core, after = blocks[: sums[0]], blocks[sums[0]], blocks[sums[0] + 1 :]
    try:
        for block in (*before, *after[:-1]):
            sch.compute_inline(block)
        if not after:
            sch.cache_write(core, 0, "local")
    except s_tir.ScheduleError:
        return None
    return sch


def _is_sum(block: s_tir.SBlock) -> bool:
    """Whether it stores at its outputs' axes what it combines with a start value that depends on nothing."""
    outputs = [axis.var for axis in block.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    if not isinstance(getattr(block.init, "value", None), (tirx.FloatImm, tirx.IntImm)):
        return False
    return len(outputs) > 0 and all_equal(block.body.indices, outputs, block)


def _count(axes: Iterable[tirx.IterVar]) -> int:
    return math.prod(int(axis.dom.extent) for axis in axes)
