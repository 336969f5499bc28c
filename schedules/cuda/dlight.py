"""Whatever no other rule takes: TVM's own default schedules for GPUs, and where they decline, a launch for each step.

1. TVM's dlight rules for matrix products with a vector, reductions and everything else, in that order. They fuse and
   bind the loops of each step; element-wise steps are computed where they are read.
2. What they make is used if all of it runs under threads, no thread reads what is another's, the GPU can hold it, and
   TVM can lower it: of a convolution in groups, say, some make kernels without one of these.
3. If none fits, each step becomes a launch with a thread for each output, and if that doesn't fit either, a launch of a
   single thread: slow, right, and never a kernel without threads, which TVM refuses to build.

Nothing to choose, so no tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import Schedule, ScheduleError

from tvmflow.schedules.cuda._grid import tvm_target_of
from tvmflow.schedules.cuda._owners import has_threads, owned

if TYPE_CHECKING:
    from tvmflow.spec import Target


THREADS = 128
"""Of a block, where dlight has no say."""


def dlight(func: tirx.PrimFunc, target: Target, tile: Any = None) -> Schedule | None:
    """Serves every kernel of TensorIR but those that can't run under threads, such as a loop that starts kernels."""
    from tvm.s_tir import dlight as rules

    gpu = rules.gpu
    return first_fitting(func, target, (gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()))


def first_fitting(func: tirx.PrimFunc, target: Target, rules: Iterable[Any]) -> Schedule | None:
    """What the first of those dlight rules makes of a kernel whose schedule is right; None if there can't be any."""
    described, func = tvm_target_of(target), _softmax_from_finite(func)
    with described:
        for rule in rules:
            try:
                found = rule.apply(func, described, False)
            except Exception:  # of many kinds, where a rule takes a kernel for what it isn't
                continue
            for schedule in found if isinstance(found, list) else [found]:
                if schedule is not None and _right(schedule, described):
                    return schedule
    for make in (thread_each, one_thread):
        try:
            schedule = make(func)
        except ScheduleError:
            continue
        if _right(schedule, described):
            return schedule
    return None


def tiles(func: tirx.PrimFunc, target: Target) -> list[Any]:
    """None: TVM's defaults have no knobs."""
    return []


def _softmax_from_finite(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel that sums exponentials, its maximum starting from the lowest finite number where it starts from −∞.

    TVM shares only such a maximum among threads. Of a softmax the result is the same: NaN where all inputs are −∞.
    """
    called: list[str] = []
    tvm_ffi.structural_walk(func.body, (tvm.ir.Call, lambda call: called.append(getattr(call.op, "name", ""))))
    if not any(name.endswith(".exp") for name in called):
        return func

    def start(block: s_tir.SBlock) -> s_tir.SBlock:
        value = getattr(block.init, "value", None)
        if not isinstance(value, tirx.FloatImm) or value.value != -math.inf:
            return block
        init = tirx.BufferStore(block.init.buffer, tirx.min_value(str(value.ty.dtype)), block.init.indices)
        parts = (block.iter_vars, block.reads, block.writes, block.name_hint, block.body, init, block.alloc_buffers)
        return s_tir.SBlock(*parts, block.match_buffers, block.annotations)

    body = tvm_ffi.structural_map(func.body, (s_tir.SBlock, start), order="post")
    return tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs)


def _right(sch: Schedule, described: tvm.target.Target) -> bool:
    func = sch.mod["main"]
    return _bound(sch) and owned(func) and _lowers(func, described)


def _lowers(func: tirx.PrimFunc, described: tvm.target.Target) -> bool:
    """Whether TVM can make kernels of it that the GPU can hold."""
    from tvm.s_tir.pipeline import default_s_tir_pipeline

    lower, _, _ = default_s_tir_pipeline()
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    try:
        module = lower(tirx.transform.BindTarget(described)(module))
    except Exception:  # what TVM raises has no common class
        return False
    limits = {name: int(described.attrs[name]) for name in ("max_threads_per_block", "max_shared_memory_per_block")}
    return all(
        tvm.s_tir.analysis.verify_gpu_code(function, limits)
        for function in module.functions.values()
        if isinstance(function, tirx.PrimFunc)
    )


def _bound(sch: Schedule, name: Any = None) -> bool:
    """Whether every step of a kernel, or of a block of it, runs under a thread."""
    inside = sch.get_child_blocks(sch.get_sblock("root") if name is None else name)
    return bool(inside) and all(
        any(sch.get(loop).kind == tirx.ForKind.THREAD_BINDING for loop in sch.get_loops(block))
        or has_threads(sch.get(block).body)
        or _bound(sch, block)
        for block in inside
    )


def thread_each(func: tirx.PrimFunc) -> Schedule:
    """A launch for each step of a kernel, a thread for each turn of its outer loops that may go in any order."""
    sch = Schedule(tvm.IRModule({"main": func}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        outer = []
        for loop, axis in zip(sch.get_loops(block), sch.get(block).iter_vars, strict=False):
            if axis.iter_type != tirx.IterVar.DataPar or not isinstance(sch.get(loop).extent, tirx.IntImm):
                break
            outer.append(loop)
        if has_threads(sch.get(block).body):
            continue
        grid, thread = sch.split(sch.fuse(*outer) if outer else sch.add_unit_loop(block), [None, THREADS])
        sch.bind(grid, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
    return sch


def one_thread(func: tirx.PrimFunc) -> Schedule:
    """A launch of a single thread for each step of a kernel that starts no threads by itself."""
    sch = Schedule(tvm.IRModule({"main": func}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if has_threads(sch.get(block).body):
            continue
        loops = sch.get_loops(block)
        sch.bind(sch.add_unit_loop(loops[0] if loops else block), "threadIdx.x")
    return sch
