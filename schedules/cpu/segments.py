"""Kernels that choose by place, as concatenations, borders and shifts do: loops for each part, which ask for nothing.

1. All steps become one, and its axes are cut where a condition on one of them changes. Each combination of parts has
   loops of its own, inside those of the axes before it, and in them the conditions are known.
2. The last axes are one loop if they are read as they are written, so that parts are copied as wholes. LLVM makes
   vectors of these loops.
3. Threads share the axes before the first that is cut, or else the parts' own loops, if there is enough to do.

A loop over the whole asks for each element whose it is: LLVM makes scalar code of that, and of 128 rows put together
each element asks up to 127 times. Tensors in blocks are left to `concat_blocked` and `lanes`, whose vectors hold
channels of one part.

128 rows of 64: 3 µs on one core; with the conditions inside 180.
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-30, on a busy machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import sym, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import SBlock, Schedule, ScheduleError
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import (
    Expr,
    is_plain,
    is_reduction,
    kernel,
    loads,
    param_of,
    static_shape,
    substitute,
    worth_threads,
)

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_PARTS, MOST_CONDITIONS = 160, 20_000
"""Combinations of parts, each of which has code of its own, and conditions to be decided in all of them together."""
NCHW = 4
"""Tensors of more axes are in blocks."""


def segments(func: tirx.PrimFunc, target: Target, tile: None = None) -> Schedule | None:
    """There is no tile to choose."""
    block = _only_step(func)
    if block is None:
        return None
    value = _simplified(block.body.value, [(axis.var, 0, int(axis.dom.extent)) for axis in block.iter_vars])
    cuts = [_cuts(value, axis) for axis in block.iter_vars]
    parts = math.prod(len(found) - 1 for found in cuts)
    if not 1 < parts <= MOST_PARTS or parts * len(_comparisons(value)) > MOST_CONDITIONS:
        return None
    return Schedule(_loops(func, block, value, cuts, target))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Any]:
    """There is nothing to search."""
    return []


def _only_step(func: tirx.PrimFunc) -> SBlock | None:
    """What a kernel computes, as one step that stores each element of its only result once."""
    if not all(tirx.is_buffer_var(param) and static_shape(param) for param in func.params):
        return None
    sch = Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))
    if not names or any(not is_plain(sch, name) or is_reduction(sch.get(name)) for name in names):
        return None
    try:
        for name in names[:-1]:
            if len(sch.get_consumers(name)) != 1:  # it would be computed as often as it is read
                return None
            sch.compute_inline(name)
    except ScheduleError:  # another of the kernel's results
        return None
    block = sch.get(names[-1])
    output, axes = block.body.buffer, [axis.var for axis in block.iter_vars]
    read = [load.source for load in loads(block.body.value)]
    if len(output.shape) > NCHW or any(param_of(func, buffer) is None for buffer in (*read, output)):
        return None
    if any(buffer.same_as(output) for buffer in read):
        return None
    stored = block.body.indices
    in_order = len(stored) == len(axes) and all(a.same_as(b) for a, b in zip(stored, axes, strict=True))
    return block if in_order else None


def _simplified(value: Expr, ranges: Iterable[tuple[tirx.Var, int, int]]) -> Expr:
    analyzer = sym.Analyzer()
    for var, begin, end in ranges:
        analyzer.bind(var, tvm.ir.Range(begin, end))
    return analyzer.simplify(value)


def _cuts(value: Expr, axis: tirx.IterVar) -> list[int]:
    """Where the parts of an axis begin, and its length."""
    length = int(axis.dom.extent)
    found = {0, length}
    for comparison in _comparisons(value):
        at = sym.detect_linear_equation(comparison.a - comparison.b, [axis.var])
        if len(at) != 2 or not all(isinstance(number, tirx.IntImm) for number in at):
            continue
        factor, offset = map(int, at)
        if abs(factor) != 1:
            continue
        place = -offset * factor
        if not isinstance(comparison, _BEHIND[factor]):
            found.add(place)
        if isinstance(comparison, (*_BEHIND[factor], *_EQUALS)):
            found.add(place + 1)
    return sorted(place for place in found if 0 <= place <= length)


_BEHIND = {1: (tirx.LE, tirx.GT), -1: (tirx.LT, tirx.GE)}
"""Comparisons of v or −v with a number that change just behind the place where both are equal."""
_EQUALS = (tirx.EQ, tirx.NE)
"""They change at that place, and behind it again."""


def _comparisons(value: Expr) -> list[Any]:
    """Those that conditions of a value are made of."""
    found: list[Any] = []

    def note(call: tvm.ir.Call) -> None:
        if call.op.same_as(tvm.ir.Op.get("prim.if_then_else")):
            kinds = {*_EQUALS, *itertools.chain.from_iterable(_BEHIND.values())}
            tvm_ffi.structural_walk(call.args[0], [(kind, found.append) for kind in kinds])

    tvm_ffi.structural_walk(value, (tvm.ir.Call, note))
    return found


def _loops(
    func: tirx.PrimFunc, block: SBlock, value: Expr, cuts: Sequence[Sequence[int]], target: Target
) -> tirx.PrimFunc:
    axes, output = list(block.iter_vars), block.body.buffer
    lengths = [int(axis.dom.extent) for axis in axes]
    first = next(place for place, found in enumerate(cuts) if len(found) > 2)
    whole = _whole_from(block, value, cuts)
    shared = worth_threads(math.prod(lengths), target)
    outside = shared and math.prod(lengths[:first]) >= target.cpu.cores

    def part(place: int, values: dict[tirx.Var, Expr], ranges: dict[tirx.Var, tuple[int, int]], *, busy: bool) -> None:
        """Emit the loops of an axis and of those behind it; `busy` says that threads share a loop around them."""
        if place == whole and whole < len(axes) - 1:
            inner = lengths[whole:]
            with T.serial(0, tirx.IntImm(str(axes[whole].var.ty.dtype), math.prod(inner))) as index:
                named = {axis.var: value for axis, value in zip(axes[whole:], _unfused(index, inner), strict=True)}
                store({**values, **named}, ranges)
        elif place == len(axes):
            store(values, ranges)
        else:
            axis = axes[place].var
            for begin, end in itertools.pairwise(cuts[place]):
                wide = shared and not busy and (outside or place == first) and end - begin >= target.cpu.cores
                bounds = (tirx.IntImm(str(axis.ty.dtype), bound) for bound in (begin, end))
                with (T.parallel if wide else T.serial)(*bounds) as index:
                    part(place + 1, {**values, axis: index}, {**ranges, axis: (begin, end)}, busy=busy or wide)

    def store(values: dict[tirx.Var, Expr], ranges: dict[tirx.Var, tuple[int, int]]) -> None:
        known = _simplified(value, [(axis.var, *ranges.get(axis.var, (0, int(axis.dom.extent)))) for axis in axes])
        T.buffer_store(output, substitute(known, values), [values[axis.var] for axis in axes])

    with kernel(func) as builder:
        part(0, {}, {}, busy=False)
    return builder.get()


def _unfused(index: Expr, lengths: Sequence[int]) -> Iterator[Expr]:
    for place in range(len(lengths)):
        inside = math.prod(lengths[place + 1 :])
        yield index // inside % lengths[place] if place else index // inside


def _whole_from(block: SBlock, value: Expr, cuts: Sequence[Sequence[int]]) -> int:
    """From which axis on none is cut, and everything is read as it is written; behind the last if there is none."""
    axes, shape = [axis.var for axis in block.iter_vars], static_shape(block.body.buffer) or ()
    place = len(axes)
    while (
        place
        and len(cuts[place - 1]) == 2
        and all(_ends_as(load, axes[place - 1 :], shape[place - 1 :]) for load in loads(value))
    ):
        place -= 1
    return place


def _ends_as(load: TensorLoad, axes: Sequence[tirx.Var], lengths: Sequence[int]) -> bool:
    """Whether the last indices of an access are these axes, each over the whole tensor, and none before depends."""
    shape, count = static_shape(load.source) or (), len(axes)
    last = list(load.indices)[-count:]
    found: list[tirx.Var] = []
    for index in list(load.indices)[:-count]:
        tvm_ffi.structural_walk(index, (tirx.Var, found.append))
    return (
        tuple(shape[-count:]) == tuple(lengths)
        and all(index.same_as(axis) for index, axis in zip(last, axes, strict=False))
        and not any(var.same_as(axis) for var in found for axis in axes)
    )
