"""A sum, a maximum or the like for each output, a thread for each: convolutions in groups, transposed or not of images.

1. What comes before the sum element by element, a border above all, is computed where it is read.
2. Outputs are one index, which threads and blocks share; neighbouring threads have neighbouring outputs, so that what a
   warp loads and stores lies together where the innermost axis is the output's.
3. A thread goes through its whole sum with one number in a register, applies what follows, and stores once.

No shared memory and no barrier: weights that a warp reads together and inputs that neighbours read again come out of
the first-level cache. Where outputs are few and sums are long, `dlight` shares each sum among threads. Checked without a
GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvm import s_tir, tirx
from tvm.s_tir import Schedule

from tvmflow.schedules._convolution import is_reduction
from tvmflow.schedules.cuda._grid import multiprocessors

if TYPE_CHECKING:
    from tvmflow.spec import Target

THREADS = (128, 64, 256)
WANTED = 256
"""Threads for each multiprocessor, for their loads to hide each other's waits."""
SHORT = 32
"""Steps of a sum that a thread may well go through alone, even if most of the GPU has no work."""


def direct(func: tirx.PrimFunc, target: Target, tile: int | None = None) -> Schedule | None:
    """`tile` is the threads of a block."""
    sch = _joined(func)
    if sch is None:
        return None
    core, last = sch.get_child_blocks(sch.get_sblock("root"))
    summed = [axis for axis in sch.get(core).iter_vars if axis.iter_type != tirx.IterVar.DataPar]
    outputs = _count(axis for axis in sch.get(core).iter_vars if axis.iter_type == tirx.IterVar.DataPar)
    if outputs != _count(sch.get(last).iter_vars):
        return None  # an output would be summed up again and again
    if _count(summed) > SHORT and outputs < WANTED * multiprocessors(target):
        return None
    try:
        threads = min(tile or THREADS[0], math.ceil(outputs / 32) * 32)
        block, thread = sch.split(sch.fuse(*sch.get_loops(last)), [None, threads])
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        sch.compute_at(core, thread, preserve_unit_loops=True)
        inner = sch.get_loops(core)[2:]
        if any(int(sch.get(loop).extent) != 1 for loop in inner[: -len(summed)]):
            return None  # what follows reads the sums in another order
        sch.set_scope(core, 0, "local")
        sch.decompose_reduction(core, inner[-len(summed)])
    except s_tir.ScheduleError:
        return None
    return sch


def tiles(func: tirx.PrimFunc, target: Target) -> list[Any]:
    """What `tile` may be for this kernel, the most promising first."""
    return list(THREADS) if direct(func, target) is not None else []


def _joined(func: tirx.PrimFunc) -> Schedule | None:
    """The kernel as two blocks, a sum and what stores it; None if it is something else."""
    if not all(isinstance(dim, tirx.IntImm) for param in func.params for dim in param.shape):
        return None
    sch = Schedule(func)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    if not blocks or not all(isinstance(sch.get(block).body, tirx.BufferStore) for block in blocks):
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
    """Whether its axes are those of its outputs and then those that it sums over, and it begins with a start value."""
    kinds = [axis.iter_type for axis in block.iter_vars]
    outputs = kinds.count(tirx.IterVar.DataPar)
    ordered = kinds == [tirx.IterVar.DataPar] * outputs + [tirx.IterVar.CommReduce] * (len(kinds) - outputs)
    return ordered and block.init is not None and len(block.writes) == 1


def _count(axes: Any) -> int:
    return math.prod(int(axis.dom.extent) for axis in axes)
