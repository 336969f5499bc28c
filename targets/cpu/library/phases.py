"""Kernels become functions over plain pointers that C calls: one of each parallel loop and of what lies between two.

The loops are lowered as for TVM's runtime, up to where it would wrap a kernel into its own calling convention, so that
a kernel computes the same. A parallel loop's function takes the range of its iterations, and who calls it cuts the loop
among threads. Memory that a kernel allocates for itself is one more pointer, unless it is small enough for the stack.
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
    serial: dict[str, int] = {}
    for name, kernel in kernels_of(replace(program, module=lowered)).items():
        made = _Kernel(name, kernel).split()
        functions |= {phase.function: func for phase, func in made}
        phases[name] = tuple(phase for phase, _ in made)
        if left := len(parallel_loops(kernel.body)) - sum(phase.extent is not None for phase in phases[name]):
            serial[name] = left
    module = tirx.transform.LowerIntrin()(tvm.IRModule(functions))
    return replace(program, module=module, made=replace(calls_of(program), phases=phases, serial=serial))


def parallel_loops(statement: Any) -> list[tirx.For]:
    """Those that a module has threads for: parallel loops that aren't within others."""
    found: list[tirx.For] = []
    inner: list[tirx.For] = []

    def note(loop: tirx.For) -> None:
        if loop.kind == PARALLEL:
            found.append(loop)
            tvm_ffi.structural_walk(loop.body, (tirx.For, inner.append))

    tvm_ffi.structural_walk(statement, (tirx.For, note))
    return [loop for loop in found if not any(loop.same_as(other) for other in inner)]


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
    """Statements of one phase, how many come before their end, and the parallel loop that they are, if they are one."""

    statements: tuple[Any, ...]
    end: int
    loop: tirx.For | None = None


class _Kernel:
    """One on its way to phases."""

    def __init__(self, name: str, kernel: tirx.PrimFunc) -> None:
        self.name, self.kernel = name, kernel
        self.pointers = [_pointer(param) for param in kernel.params]
        self.items: list[Any] = [
            *(DeclBuffer(param, data=pointer) for param, pointer in zip(kernel.params, self.pointers, strict=True)),
            *_flat(kernel.body),
        ]
        self.pragmas = _pragmas(kernel.body)
        self.named = {_defined(item): item for item in self.items if _only_names(item)}
        self.names_of = {name: _free(item) for name, item in self.named.items()}

    def split(self) -> list[tuple[Phase, tirx.PrimFunc]]:
        groups = self._groups()
        needed = [self._needed(group) for group in groups]
        scratch: dict[int, tuple[AllocBuffer, tirx.Var]] = {}
        for number, item in enumerate(self.items):
            if isinstance(item, AllocBuffer):
                readers = sum(item.buffer in names for names in needed)
                if readers > 1 or (readers and _bytes(item) > MOST_ON_THE_STACK):
                    scratch[number] = (item, _pointer(item.buffer))
        made = []
        for place, (group, names) in enumerate(zip(groups, needed, strict=True)):
            named = self.name if len(groups) == 1 else f"{self.name}__{place}"
            made.append(self._phase(named, group, names, scratch))
        for pragma in self.pragmas:  # one that brings functions in LLVM's language brings them for all
            phase, func = made[0]
            body = AttrStmt(pragma.node, pragma.attr_key, pragma.value, func.body)
            made[0] = (phase, tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs))
        return made

    def _groups(self) -> list[_Group]:
        """The phases' statements. What only names something goes to all phases that need it."""
        groups: list[_Group] = []
        between: list[Any] = []

        def close(end: int) -> None:
            if between:
                groups.append(_Group(statements=tuple(between), end=end))
                between.clear()

        for number, item in enumerate(self.items):
            if _only_names(item):
                continue
            if isinstance(item, tirx.For) and item.kind == PARALLEL and _extent(item) is not None:
                close(number)
                groups.append(_Group(statements=(item,), end=number, loop=item))
            else:
                between.append(item)
        close(len(self.items))
        values = [_defined(item) for item in self.items if isinstance(item, Bind) and not _only_names(item)]
        if any(value in self._needed(group) for group in groups for value in values):
            # a value that one phase reads from memory is another's: the kernel stays whole
            whole = [item for item in self.items if not _only_names(item)]
            return [_Group(statements=tuple(whole), end=len(self.items))]
        return groups

    def _needed(self, group: _Group) -> set[Any]:
        """The names that its statements need, and those that these need."""
        found: set[Any] = set()
        left = list(_free(*group.statements))
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += self.names_of.get(name, ())
        return found

    def _phase(
        self, name: str, group: _Group, needed: set[Any], scratch: Mapping[int, tuple[AllocBuffer, tirx.Var]]
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
        statements: Sequence[Any] = group.statements
        if group.loop is not None:
            loop, kind = group.loop, str(group.loop.loop_var.ty.dtype)
            bounds = [tirx.Var("begin", kind), tirx.Var("end", kind)]
            body = tvm_ffi.structural_map(loop.body, rules, order="post")
            statements = [tirx.For(loop.loop_var, bounds[0], bounds[1] - bounds[0], SERIAL, body)]
        body = [
            DeclBuffer(item.buffer, data=scratch[number][1]) if number in scratch else item
            for number, item in enumerate(self.items)
            if _only_names(item) and number < group.end and _defined(item) in needed
        ]
        order = {id(item): number for number, item in enumerate(self.items)}
        if group.loop is None:
            places = {order[id(item)] for item in group.statements}
            body = [
                DeclBuffer(item.buffer, data=scratch[number][1])
                if number in scratch
                else tvm_ffi.structural_map(item, rules, order="post")
                if number in places
                else item
                for number, item in enumerate(self.items)
                if number in places or (_only_names(item) and number < group.end and _defined(item) in needed)
            ]
            statements = ()
        used = {number: given for number, given in scratch.items() if given[0].buffer in needed}
        params = [
            *self.pointers,
            *(pointer for _, pointer in used.values()),
            *(pointer for _, pointer in shares),
            *bounds,
        ]
        phase = Phase(
            function=name,
            extent=None if group.loop is None else _extent(group.loop),
            scratch={number: _bytes(allocation) for number, (allocation, _) in used.items()},
            shares=tuple(_bytes(allocation) for allocation, _ in shares),
        )
        attrs = self.kernel.attrs
        return phase, tirx.PrimFunc(params, SeqStmt([*body, *statements]), self.kernel.ret_type, attrs=attrs)


def _only_names(item: Any) -> bool:
    """Whether a statement does nothing but name memory, or a value that is the same wherever it is computed."""
    if not isinstance(item, Bind):
        return isinstance(item, DeclBuffer | AllocBuffer)
    return not any(type(name.ty).__name__ == "BufferType" for name in _free(item))  # what is in memory may change


def _defined(item: Any) -> Any:
    return item.var if isinstance(item, Bind) else item.buffer


def _flat(statement: Any) -> list[Any]:
    if isinstance(statement, SeqStmt):
        return [part for inner in statement.seq for part in _flat(inner)]
    if isinstance(statement, AttrStmt) and statement.attr_key.startswith("pragma"):
        return _flat(statement.body)
    return [statement]


def _pragmas(statement: Any) -> list[AttrStmt]:
    """Those around the whole of a kernel, which `_flat` leaves out."""
    if isinstance(statement, SeqStmt):
        return [pragma for inner in statement.seq for pragma in _pragmas(inner)]
    if isinstance(statement, AttrStmt) and statement.attr_key.startswith("pragma"):
        return [statement, *_pragmas(statement.body)]
    return []


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


def _free(*statements: Any) -> set[Any]:
    return set(tirx.analysis.undefined_vars(SeqStmt([*statements, Evaluate(0)]), []))


def _bytes(allocation: AllocBuffer) -> int:
    buffer = allocation.buffer
    shape = buffer.shape
    if not all(isinstance(extent, tirx.IntImm) for extent in shape):
        raise UserError(f"A kernel allocates {buffer.name}, whose size isn't known before it runs, so C can't call it.")
    kind = tvm.DataType(str(buffer.dtype))
    return math.prod(map(int, shape)) * kind.lanes * max(8, kind.bits) // 8
