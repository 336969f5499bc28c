"""Any kernel of plain loops that no other rule takes: pooling, reductions, element-wise chains.

1. Element-wise steps that one other step reads are computed there, in place of a pass through memory.
2. Of tensors that have their channels in blocks, a vector holds channels, in a reduction or not; a border around such
   a tensor is a condition for each vector.
3. A reduction whose neighbouring outputs read neighbouring (or the same) elements gets a few vectors of them innermost
   and its own loops outside, so the results stay in registers. All else is left to LLVM, which vectorises simple loops.
4. A sum or maximum along rows, as in a softmax, is one for each place of a vector first, and these are put together.
5. The outer loops are shared among threads if there is enough to do.

It claims little, so it can serve everything: steps that TVM's checks refuse are skipped, and a kernel in which nothing
could be improved is left to TVM's default. A vector length that doesn't divide the axis is never used, because
the guard that TVM adds makes scalar code of the whole vector.

Max pooling 3×3 of 64×32×32 in blocks: 3.2 µs on one core.
AMD EPYC (Zen 4, AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-25.
Matrix product 128×512×512: 137 GFLOP/s on one core; TVM's default: 1.9.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-23.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import sym, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import SBlock, Schedule, ScheduleError

from tvmflow.schedules.convolutions import (
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
LOWEST: float = tirx.min_value("float32").value


def lanes(func: tirx.PrimFunc, target: Target, tile: tuple[int, int] | None = None) -> Schedule | None:
    """Serve what can be served of any kernel of static shape.

    `tile` is how many results are kept at once, (rows, vectors), as far as they divide the axes: what it reads is read
    once for all of it.
    """
    if not all(tirx.is_buffer_var(param) and static_shape(param) for param in func.params):
        return None
    # TVM takes a maximum apart only if it starts from the lowest finite number; ours start from −∞
    finite = _with_number(func, -math.inf, LOWEST) if not _has_number(func, LOWEST) else func
    sch = Schedule(finite)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    if not blocks or not all(is_plain(sch, block) for block in blocks):
        return None
    changed = _inline(sch, blocks)
    for block in blocks:
        changed |= _in_parts(sch, block, target) or _shape(sch, block, target, tile or (ROWS, VECTORS))
    if not changed or finite is func:
        return sch if changed else None
    return Schedule(_with_number(sch.mod["main"], LOWEST, -math.inf))


def in_vectors(func: tirx.PrimFunc, target: Target) -> bool:
    """Whether each step of a kernel can be vectorised here."""
    sch = Schedule(func)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    if not all(is_plain(sch, block) for block in blocks):
        return False
    _inline(sch, blocks)
    return all(_vector(sch.get(block), target)[0] > 1 for block in blocks)


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, int]]:
    """What `tile` may be."""
    return [(rows, vectors) for rows in (1, 2, 4, 8) for vectors in (1, 2, 4)]


def _shape(sch: Schedule, block: Any, target: Target, tile: tuple[int, int]) -> bool:
    """Vectorise and share one block. True if anything came of it."""
    loops, axes = sch.get_loops(block), sch.get(block).iter_vars
    work = math.prod(int(sch.get(loop).extent) for loop in loops)
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == tirx.IterVar.DataPar]
    reduced = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == tirx.IterVar.CommReduce]
    if not spatial or len(spatial) + len(reduced) != len(loops):
        return False
    long = [index for index, loop in enumerate(spatial) if int(sch.get(loop).extent) > 1]
    lane, place = _vector(sch.get(block), target)
    if not reduced and long and place == long[-1]:
        lane = 1  # LLVM does these by itself
    inner = []
    if lane > 1:
        spatial[place], vector = sch.split(spatial[place], [None, lane])
        inner = [vector]
        for index, most in zip(reversed(long), tile[::-1], strict=False):
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


def _in_parts(sch: Schedule, block: Any, target: Target) -> bool:
    """Sum each lanes-th element along a row on its own, then what came of that; maxima too. True if that was done.

    A sum of floats one by one waits for each addition, as LLVM may not change their order.
    """
    loops = sch.get_loops(block)
    spatial = [axis for axis in sch.get(block).iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    axes = list(sch.get(block).iter_vars)[len(spatial) :]
    if not spatial or not axes or any(axis.iter_type != tirx.IterVar.CommReduce for axis in axes):
        return False
    store = sch.get(block).body
    is_sum = isinstance(store.value, tirx.Add) and _starts_from(sch.get(block), 0)
    is_maximum = isinstance(store.value, tirx.Max) and _starts_from(sch.get(block), LOWEST)
    if not (is_sum or is_maximum) or str(store.buffer.dtype) not in ("float32", "float64"):
        return False
    before = store.value.a
    if not isinstance(before, TensorLoad) or not before.source.same_as(store.buffer):
        return False
    reads = loads(store.value.b)
    if any(load.source.same_as(store.buffer) for load in reads):
        return False
    count = 1  # of the last axes: those that lie behind one another are one
    while count < len(axes) and all(_follows(load, axes[-count - 1], axes[-count]) for load in reads):
        count += 1
    row = math.prod(int(axis.dom.extent) for axis in axes[-count:])
    length = math.gcd(row, vectors_of(target).lanes)
    if length < 4 or row < 2 * length or _vector(sch.get(block), target)[0] > 1:
        return False
    steps = [_stride(load, axes[-1].var) for load in reads]
    if 1 not in steps or not all(step in (0, 1) for step in steps):
        return False
    if any(_depends(store.value, axis.var) for axis in axes[-count:]):
        return False
    work = math.prod(int(sch.get(loop).extent) for loop in loops)
    _, lane = sch.split(sch.fuse(*loops[-count:]) if count > 1 else loops[-1], [None, length])
    part = sch.rfactor(lane, len(store.buffer.shape))
    *outer, lane = sch.get_loops(part)
    along = outer[len(spatial)]
    if worth_threads(work, target):
        _share(sch, outer[: len(spatial)], target)
    sch.vectorize(lane)
    sch.decompose_reduction(part, along)
    return True


def _stride(load: TensorLoad, axis: tirx.Var) -> int | None:
    """By how many elements an access moves with an axis; None if that isn't known."""
    shape = static_shape(load.source)
    if shape is None:
        return None
    offset = 0
    for index, dim in zip(load.indices, shape, strict=True):
        offset = offset * dim + index
    step = sym.Analyzer().simplify(substitute(offset, {axis: axis + 1}) - offset)
    return int(step) if isinstance(step, tirx.IntImm) else None


def _follows(load: TensorLoad, outer: tirx.IterVar, inner: tirx.IterVar) -> bool:
    """Whether an access goes on with the next of an outer axis where the inner one ends."""
    outside, inside = _stride(load, outer.var), _stride(load, inner.var)
    return outside is not None and inside is not None and outside == inside * int(inner.dom.extent)


def _starts_from(block: SBlock, number: float) -> bool:
    start = block.init
    return (
        isinstance(start, tirx.BufferStore) and isinstance(start.value, tirx.FloatImm) and start.value.value == number
    )


def _has_number(func: tirx.PrimFunc, number: float) -> bool:
    found: list[float] = []
    tvm_ffi.structural_walk(func.body, (tirx.FloatImm, lambda other: found.append(other.value)))
    return number in found


def _with_number(func: tirx.PrimFunc, before: float, after: float) -> tirx.PrimFunc:
    """`func` with one number of float32 in the place of another."""
    if not _has_number(func, before):
        return func

    def changed(number: tirx.FloatImm) -> tirx.FloatImm:
        is_it = number.value == before and str(number.ty.dtype) == "float32"
        return tirx.FloatImm("float32", after) if is_it else number

    body = tvm_ffi.structural_map(func.body, [(tirx.FloatImm, changed)], order="post")
    return tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs)


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


def _inline(sch: Schedule, blocks: list[Any]) -> bool:
    """Compute steps where they are read, and take them from the list. True if there were any."""
    changed = False
    for block in list(blocks[:-1]):
        consumers = sch.get_consumers(block)
        if is_reduction(sch.get(block)) or len(consumers) != 1:
            continue
        if is_reduction(sch.get(consumers[0])) and not _is_border(sch.get(block), sch.get(consumers[0])):
            continue
        try:
            sch.compute_inline(block)
        except ScheduleError:  # another of the kernel's outputs
            continue
        blocks.remove(block)
        changed = True
    return changed


def _is_border(block: SBlock, reader: SBlock) -> bool:
    """Whether it surrounds a tensor whose channels are in blocks: a vector of them needs one condition, no copy."""
    value = block.body.value
    chosen = isinstance(value, tvm.ir.Call) and value.op.same_as(tvm.ir.Op.get("prim.if_then_else"))
    return chosen and isinstance(value.args[1], TensorLoad) and len(reader.body.buffer.shape) == 5


def _vector(block: SBlock, target: Target) -> tuple[int, int]:
    """Lanes by which a float32 block can be vectorised, 1 if it can't, and along which of its spatial axes.

    It is the last axis along which neighbours lie side by side: the channels of a tensor that has them in blocks.
    """
    spatial = [axis for axis in block.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    for place in reversed(range(len(spatial))):
        length = _vector_length(block, spatial[place], target)
        if length > 1:
            return length, place
    return 1, 0


def _vector_length(block: SBlock, axis: tirx.IterVar, target: Target) -> int:
    store = block.body
    length = math.gcd(int(axis.dom.extent), vectors_of(target).lanes)
    reads = [load for load in loads(store.value) if not _is_place(load, axis.var)]
    if any(str(access.source.dtype) != "float32" for access in reads) or str(store.buffer.dtype) != "float32":
        return 1
    if length < 4 or _depends(store.value, axis.var) or _step(store.buffer, store.indices, axis.var, length) != 1:
        return 1
    return length if all(_step(load.source, load.indices, axis.var, length) in (0, 1) for load in reads) else 1


def _is_place(load: TensorLoad, axis: tirx.Var) -> bool:
    """Whether it is an integer that all of a vector read, as the number of a step in a recurrent layer."""
    found: list[tirx.Var] = []
    for index in load.indices:
        tvm_ffi.structural_walk(index, (tirx.Var, found.append))
    return str(load.source.dtype).startswith("int") and not any(var.same_as(axis) for var in found)


def _depends(value: Any, axis: tirx.Var) -> bool:
    """Whether any condition in an expression asks for the axis: a vector can't choose lane by lane."""
    found: list[Any] = []

    def note(call: tvm.ir.Call) -> None:
        if call.op.same_as(tvm.ir.Op.get("prim.if_then_else")):
            tvm_ffi.structural_walk(call.args[0], (tirx.Var, lambda var: found.append(var)))

    tvm_ffi.structural_walk(value, (tvm.ir.Call, note))
    return any(var.same_as(axis) for var in found)


def _step(buffer: tirx.Buffer, indices: Any, axis: tirx.Var, length: int) -> int | None:
    """By how many elements an access moves from one value of the axis to the next within each group of `length`."""
    shape = static_shape(buffer)
    if shape is None:
        return None
    offset = 0
    for index, dim in zip(indices, shape, strict=True):
        offset = offset * dim + index
    analyzer = sym.Analyzer()
    group, lane = (tirx.Var(name, str(axis.ty.dtype)) for name in ("group", "lane"))
    analyzer.bind(lane, tvm.ir.Range(0, length))
    first, other = (substitute(offset, {axis: group * length + place}) for place in (0, lane))
    return next((step for step in (0, 1) if analyzer.can_prove_equal(other, first + lane * step)), None)
