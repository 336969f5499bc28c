"""Any kernel of plain loops that no other rule takes: pooling, reductions, matrix products, element-wise chains.

1. Element-wise steps that one other step reads are computed there, in place of a pass through memory.
2. A reduction whose neighbouring outputs read neighbouring (or the same) elements gets a few vectors of them innermost
   and its own loops outside, so the results stay in registers. All else is left to LLVM, which vectorises simple loops.
3. The outer loops are shared among threads if there is enough to do.

It claims little, so it can serve everything: steps that TVM's checks refuse are skipped, and a kernel in which nothing
could be improved is left to TVM's default. A vector length that doesn't divide the axis is never used, because
the guard that TVM adds makes scalar code of the whole vector.

Matrix product 128×512×512: 137 GFLOP/s on one core; TVM's default: 1.9.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-23.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvm import sym, tirx
from tvm.s_tir import SBlock, Schedule, ScheduleError

from tvmflow.schedules._convolution import (
    is_plain,
    is_reduction,
    loads,
    static_shape,
    substitute,
    vectors_of,
    worth_threads,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

CHUNKS_PER_CORE = 4
ROWS, VECTORS = 4, 2
"""Results kept at once, as far as they divide the axes: what a tile reads is read once for all of it."""


def lanes(func: tirx.PrimFunc, target: Target) -> Schedule | None:
    """Serve what can be served of any kernel of static shape."""
    if not all(tirx.is_buffer_var(param) and static_shape(param) for param in func.params):
        return None
    sch = Schedule(func)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    if not blocks or not all(is_plain(sch, block) for block in blocks):
        return None
    changed = False
    for block in list(blocks[:-1]):
        consumers = sch.get_consumers(block)
        if is_reduction(sch.get(block)) or len(consumers) != 1 or is_reduction(sch.get(consumers[0])):
            continue
        try:
            sch.compute_inline(block)
        except ScheduleError:  # another of the kernel's outputs
            continue
        blocks.remove(block)
        changed = True
    for block in blocks:
        changed |= _shape(sch, block, target)
    return sch if changed else None


def choices(func: tirx.PrimFunc, target: Target) -> list[dict[str, int]]:
    """None: what it doesn't claim to know is MetaSchedule's to search."""
    return []


def _shape(sch: Schedule, block: Any, target: Target) -> bool:
    """Vectorise and share one block. True if anything came of it."""
    loops, axes = sch.get_loops(block), sch.get(block).iter_vars
    work = math.prod(int(sch.get(loop).extent) for loop in loops)
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == tirx.IterVar.DataPar]
    reduced = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == tirx.IterVar.CommReduce]
    if not spatial or len(spatial) + len(reduced) != len(loops):
        return False
    lane = _vector_length(sch.get(block), target) if reduced else 1
    inner = []
    if lane > 1:
        long = [index for index, loop in enumerate(spatial) if int(sch.get(loop).extent) > 1]
        spatial[long[-1]], vector = sch.split(spatial[long[-1]], [None, lane])
        inner = [vector]
        for index, most in zip(reversed(long), (VECTORS, ROWS), strict=False):
            extent = int(sch.get(spatial[index]).extent)
            count = next(count for count in range(most, 0, -1) if extent % count == 0)
            spatial[index], several = sch.split(spatial[index], [None, count])
            sch.unroll(several)
            inner.insert(0, several)
    sch.reorder(*spatial, *reduced, *inner)
    parallel = worth_threads(work, target) and _share(sch, spatial if reduced else spatial[:-1], target)
    if inner:
        sch.vectorize(inner[-1])
    if inner and sch.get(block).init is not None:
        sch.decompose_reduction(block, reduced[0])
    return bool(inner) or parallel


def _share(sch: Schedule, loops: list[Any], target: Target) -> bool:
    """Fuse the outermost loops until there are chunks enough for every core, and share them."""
    taken, chunks = [], 1
    for loop in loops:
        taken.append(loop)
        chunks *= int(sch.get(loop).extent)
        if chunks >= CHUNKS_PER_CORE * target.cpu.cores:
            break
    if chunks < 2:
        return False
    sch.parallel(sch.fuse(*taken) if len(taken) > 1 else taken[0])
    return True


def _vector_length(block: SBlock, target: Target) -> int:
    """Lanes by which the last axis of a float32 sum can be vectorised, 1 if it can't."""
    store = block.body
    spatial = [axis for axis in block.iter_vars if axis.iter_type == tirx.IterVar.DataPar and int(axis.dom.extent) > 1]
    if not spatial:
        return 1
    last, extent = spatial[-1].var, int(spatial[-1].dom.extent)
    reads = loads(store.value)
    if any(str(access.source.dtype) != "float32" for access in reads) or str(store.buffer.dtype) != "float32":
        return 1
    if _step(store.buffer, store.indices, last) != 1 or any(
        _step(access.source, access.indices, last) not in (0, 1) for access in reads
    ):
        return 1
    length = math.gcd(extent, vectors_of(target).lanes)
    return length if length >= 4 else 1


def _step(buffer: tirx.Buffer, indices: Any, axis: tirx.Var) -> int | None:
    """By how many elements an access moves from one value of the axis to the next, None if that varies."""
    shape = static_shape(buffer)
    if shape is None:
        return None
    offset = 0
    for index, length in zip(indices, shape, strict=True):
        offset = offset * length + index
    step = sym.Analyzer().simplify(substitute(offset, {axis: axis + 1}) - offset)
    return int(step) if isinstance(step, tirx.IntImm) else None
