"""Kernels become functions over plain pointers that C calls: one of each parallel loop and of what lies between two.

The loops are lowered as for TVM's runtime, up to where it would wrap a kernel into its own calling convention, so the
instructions of a kernel are the same. A parallel loop's function takes the range of its iterations: who calls it cuts the
loop among threads. Memory that a kernel allocates for itself is a pointer more, unless it is small enough for the stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.stmt import AllocBuffer, AttrStmt, Bind, DeclBuffer, Evaluate, SeqStmt

from tvmflow.spec import Program, Target, UserError
from tvmflow.targets.cpu.library.calls import Phase, calls_of, kernels_of

MOST_ON_THE_STACK = 1024
"""Bytes of an allocation; what TVM's runtime leaves there."""

PARALLEL, SERIAL = tirx.ForKind.PARALLEL, tirx.ForKind.SERIAL


def split_kernels(program: Program, target: Target) -> Program:
    """The module's functions become those of the kernels' phases, which `Calls.phases` names."""
    lowered = lower_loops(program.module)
    functions: dict[str, tirx.PrimFunc] = {}
    phases: dict[str, tuple[Phase, ...]] = {}
    for name, kernel in kernels_of(replace(program, module=lowered)).items():
        made = _Kernel(name, kernel).split()
        functions |= {phase.function: func for phase, func in made}
        phases[name] = tuple(phase for phase, _ in made)
    module = tirx.transform.LowerIntrin()(tvm.IRModule(functions))
    return replace(program, module=module, made=replace(calls_of(program), phases=phases))


def lower_loops(module: tvm.IRModule) -> tvm.IRModule:
    """What TVM's own pipeline for CPUs makes of kernels before it packs their arguments, for the current target."""
    target = tvm.target.Target.current()
    schedules, loops = s_tir.transform, tirx.transform
    passes = [
        loops.BindTarget(target.with_host(target)),
        schedules.CanonicalizeLoop(),
        schedules.LowerInitBlock(),
        schedules.PlanAndUpdateBufferAllocationLocation(),
        schedules.ConvertBlocksToOpaque(),
        schedules.CompactBufferAllocation(),
        schedules.LowerMatchBuffer(),
        schedules.StmtSimplify(),
        schedules.AnnotateIrregularLoop(),
        schedules.LowerOpaqueBlock(),
        loops.FlattenBuffer(),
        loops.BF16ComputeLegalize(),
        loops.NarrowDataType(32),
        schedules.LoopPartition(),
        loops.VectorizeLoop(True),
        loops.StorageRewrite(),
        schedules.HoistIfThenElse(),
        loops.UnrollLoop(),
        schedules.RenormalizeSplitPattern(),
        loops.StmtSimplify(),
        loops.RemoveNoOp(),
        schedules.RewriteUnsafeSelect(),
        loops.CommonSubexprElim(),
        loops.FP8ComputeLegalize(),
        loops.VerifyMemory(),
    ]
    return tvm.transform.Sequential(passes)(module)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Statements of one phase, and the parallel loop that they are, if they are one."""

    statements: tuple[Any, ...]
    loop: tirx.For | None = None


class _Kernel:
    """One on its way to phases."""

    def __init__(self, name: str, kernel: tirx.PrimFunc) -> None:
        self.name, self.kernel = name, kernel
        self.pointers = [_pointer(param) for param in kernel.params]
        self.setup: list[Any] = [
            DeclBuffer(param, data=pointer) for param, pointer in zip(kernel.params, self.pointers, strict=True)
        ]
        self.allocated: list[AllocBuffer] = []

    def split(self) -> list[tuple[Phase, tirx.PrimFunc]]:
        groups = self._groups()
        used = [_free(SeqStmt([*group.statements, Evaluate(0)])) for group in groups]
        scratch: dict[int, tuple[AllocBuffer, tirx.Var]] = {}
        local: list[list[AllocBuffer]] = [[] for _ in groups]
        for number, allocation in enumerate(self.allocated):
            readers = [place for place, names in enumerate(used) if allocation.buffer in names]
            if len(readers) > 1 or _bytes(allocation) > MOST_ON_THE_STACK:
                scratch[number] = (allocation, _pointer(allocation.buffer))
            elif readers:
                local[readers[0]].append(allocation)
        made = []
        for place, (group, kept) in enumerate(zip(groups, local, strict=True)):
            named = self.name if len(groups) == 1 else f"{self.name}__{place}"
            made.append(self._phase(named, group, kept, scratch))
        return made

    def _groups(self) -> list[_Group]:
        """The phases' statements; what only says where something lies goes to all of them."""
        groups: list[_Group] = []
        between: list[Any] = []

        def close() -> None:
            if between:
                groups.append(_Group(statements=tuple(between)))
                between.clear()

        for statement in _flat(self.kernel.body):
            if isinstance(statement, AllocBuffer):
                self.allocated.append(statement)
            elif isinstance(statement, DeclBuffer | Bind):
                self.setup.append(statement)
            elif isinstance(statement, tirx.For) and statement.kind == PARALLEL and _extent(statement) is not None:
                close()
                groups.append(_Group(statements=(statement,), loop=statement))
            else:
                between.append(statement)
        close()
        return groups

    def _phase(
        self,
        name: str,
        group: _Group,
        kept: Sequence[AllocBuffer],
        scratch: Mapping[int, tuple[AllocBuffer, tirx.Var]],
    ) -> tuple[Phase, tirx.PrimFunc]:
        shares: list[tuple[AllocBuffer, tirx.Var]] = []

        def move(allocation: AllocBuffer) -> Any:
            """Of what a loop allocates, what is too large for the stack."""
            if _bytes(allocation) <= MOST_ON_THE_STACK:
                return allocation
            shares.append((allocation, _pointer(allocation.buffer)))
            return DeclBuffer(allocation.buffer, data=shares[-1][1])

        rules = [(AllocBuffer, move), (tirx.For, _serial)]
        bounds: list[tirx.Var] = []
        if group.loop is not None:
            loop, kind = group.loop, str(group.loop.loop_var.ty.dtype)
            bounds = [tirx.Var("begin", kind), tirx.Var("end", kind)]
            body = tvm_ffi.structural_map(loop.body, rules, order="post")
            statements: list[Any] = [tirx.For(loop.loop_var, bounds[0], bounds[1] - bounds[0], SERIAL, body)]
        else:
            statements = [tvm_ffi.structural_map(statement, rules, order="post") for statement in group.statements]
        setup = [DeclBuffer(allocation.buffer, data=pointer) for allocation, pointer in scratch.values()]
        params = [
            *self.pointers,
            *(pointer for _, pointer in scratch.values()),
            *(pointer for _, pointer in shares),
            *bounds,
        ]
        # what is set up may read what has just been declared
        body = SeqStmt([*setup, *kept, *self.setup, *statements])
        phase = Phase(
            function=name,
            extent=None if group.loop is None else _extent(group.loop),
            scratch={number: _bytes(allocation) for number, (allocation, _) in scratch.items()},
            shares=tuple(_bytes(allocation) for allocation, _ in shares),
        )
        return phase, tirx.PrimFunc(params, body, self.kernel.ret_type, attrs=self.kernel.attrs)


def _flat(statement: Any) -> list[Any]:
    if isinstance(statement, SeqStmt):
        return [part for inner in statement.seq for part in _flat(inner)]
    if isinstance(statement, AttrStmt) and statement.attr_key.startswith("pragma"):
        return _flat(statement.body)
    return [statement]


def _serial(loop: tirx.For) -> tirx.For:
    """A parallel loop within others is computed by the thread that comes to it."""
    if loop.kind != PARALLEL:
        return loop
    return tirx.For(loop.loop_var, loop.min, loop.extent, SERIAL, loop.body, None, loop.annotations)


def _extent(loop: tirx.For) -> int | None:
    """How many iterations a loop from 0 has, if that is known."""
    begins, count = loop.min, loop.extent
    return (
        int(count) if isinstance(begins, tirx.IntImm) and int(begins) == 0 and isinstance(count, tirx.IntImm) else None
    )


def _pointer(buffer: Any) -> tirx.Var:
    kind = tvm.ir.PrimType(str(buffer.ty.dtype))
    return tirx.Var(f"{buffer.name}_data", tvm.ir.PointerType(kind, "global"))


def _free(statement: Any) -> set[Any]:
    return set(tirx.analysis.undefined_vars(statement, []))


def _bytes(allocation: AllocBuffer) -> int:
    buffer = allocation.buffer
    shape = buffer.shape
    if not all(isinstance(extent, tirx.IntImm) for extent in shape):
        raise UserError(f"A kernel allocates {buffer.name}, whose size isn't known before it runs, so C can't call it.")
    kind = tvm.DataType(str(buffer.dtype))
    return math.prod(map(int, shape)) * kind.lanes * max(8, kind.bits) // 8
