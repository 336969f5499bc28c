"""Whatever no other rule takes: TVM's own default schedules for GPUs, and where they decline, one thread for each step.

1. TVM's dlight rules for matrix products with a vector, reductions and everything else, in that order. They fuse and
   bind the loops of each step; element-wise steps are computed where they are read.
2. If none fits, each step becomes a launch of a single thread: slow, right, and never a kernel without threads, which
   TVM refuses to build.

Nothing to choose, so no tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvmflow.schedules.cuda._grid import tvm_target_of

if TYPE_CHECKING:
    from tvmflow.spec import Target


def dlight(func: tirx.PrimFunc, target: Target, tile: Any = None) -> Schedule | None:
    """Serves every kernel of TensorIR."""
    from tvm.s_tir import dlight as rules

    described = tvm_target_of(target)
    with described:
        for rule in (rules.gpu.GEMV(), rules.gpu.Reduction(), rules.gpu.GeneralReduction(), rules.gpu.Fallback()):
            found = rule.apply(func, described, False)
            found = found[0] if isinstance(found, list) else found
            if found is not None and _bound(found):
                return found
    return one_thread(func)


def tiles(func: tirx.PrimFunc, target: Target) -> list[Any]:
    """None: TVM's defaults have no knobs."""
    return []


def _bound(sch: Schedule) -> bool:
    """Whether every step of a kernel runs under a thread."""
    return all(
        any(sch.get(loop).kind == tirx.ForKind.THREAD_BINDING for loop in sch.get_loops(block))
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
    """A launch of a single thread for each step of a kernel."""
    sch = Schedule(tvm.IRModule({"main": func}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        loops = sch.get_loops(block)
        sch.bind(sch.add_unit_loop(loops[0] if loops else block), "threadIdx.x")
    return sch
