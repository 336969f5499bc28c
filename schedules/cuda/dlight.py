"""Whatever no other rule takes: TVM's own default schedules for GPUs, and where they decline, one thread for each step.

1. TVM's dlight rules for matrix products with a vector, reductions and everything else, in that order. They fuse and
   bind the loops of each step; element-wise steps are computed where they are read.
2. What they make is used if all of it runs under threads, no thread reads what is another's, the GPU can hold it, and
   TVM can lower it: of a convolution in groups, say, some make kernels without one of these.
3. If none fits, each step becomes a launch of a single thread: slow, right, and never a kernel without threads, which
   TVM refuses to build.

Nothing to choose, so no tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError

from tvmflow.schedules.cuda._grid import tvm_target_of
from tvmflow.schedules.cuda._owners import has_threads, owned

if TYPE_CHECKING:
    from tvmflow.spec import Target


def dlight(func: tirx.PrimFunc, target: Target, tile: Any = None) -> Schedule | None:
    """Serves every kernel of TensorIR but those that can't run under threads, such as a loop that starts kernels."""
    from tvm.s_tir import dlight as rules

    gpu = rules.gpu
    return first_fitting(func, target, (gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()))


def first_fitting(func: tirx.PrimFunc, target: Target, rules: Iterable[Any]) -> Schedule | None:
    """What the first of those dlight rules makes of a kernel whose schedule is right; None if there can't be any."""
    described = tvm_target_of(target)
    with described:
        for rule in rules:
            try:
                found = rule.apply(func, described, False)
            except Exception:  # of many kinds, where a rule takes a kernel for what it isn't
                continue
            for schedule in found if isinstance(found, list) else [found]:
                if schedule is not None and _right(schedule, described):
                    return schedule
    try:
        alone = one_thread(func)
    except ScheduleError:
        return None
    return alone if _right(alone, described) else None


def tiles(func: tirx.PrimFunc, target: Target) -> list[Any]:
    """None: TVM's defaults have no knobs."""
    return []


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


def _bound(sch: Schedule) -> bool:
    """Whether every step of a kernel runs under a thread."""
    return all(
        any(sch.get(loop).kind == tirx.ForKind.THREAD_BINDING for loop in sch.get_loops(block))
        or has_threads(sch.get(block).body)
        for block in _leaves(sch)
    )


def _leaves(sch: Schedule) -> list[Any]:
    """Blocks without blocks inside."""
    found, left = [], [sch.get_sblock("root")]
    while left:
        block = left.pop()
        inside = sch.get_child_blocks(block)
        if inside:
            left += inside
        else:
            found.append(block)
    return found


def one_thread(func: tirx.PrimFunc) -> Schedule:
    """A launch of a single thread for each step of a kernel that starts no threads by itself."""
    sch = Schedule(tvm.IRModule({"main": func}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if has_threads(sch.get(block).body):
            continue
        loops = sch.get_loops(block)
        sch.bind(sch.add_unit_loop(loops[0] if loops else block), "threadIdx.x")
    return sch
