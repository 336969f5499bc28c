"""Lay tensors between convolutions out with their channels in blocks, and pack weights in the order they are read.

The kernels get their accesses rewritten, nothing is copied at run time: a tensor is blocked only if its producer can
write it and all its consumers can read it so. What the user gives and gets stays NCHW.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax, s_tir, tirx

from tvmflow.passes.fuse_operators import kernel_calls
from tvmflow.passes.relayout import Blocked, Layout, Layouts, relayout, relayout_calls
from tvmflow.schedules import RULES, depthwise_blocked, pointwise_blocked
from tvmflow.schedules._convolution import Convolution, loads, read_convolution, vectors_of
from tvmflow.spec import Program, Target

MOST_LANES, FEWEST_LANES = 16, 8
"""Channels of a block: what a vector holds, but half a cache line at least."""


def block_channels(program: Program, target: Target) -> Program:
    """Kernels that the rules for blocks can serve get tensors in blocks; `Program.layers` names the new kernels."""
    if not {"pointwise_blocked", "depthwise_blocked"} <= set(target.schedules):
        return program
    calls = [_KernelCall(program.module, binding) for binding in kernel_calls(program.module)]
    candidates = {call.result for call in calls if _can_write(call, block_length(target))}
    while True:
        values = _blocked_values(program.module, calls, candidates)
        rewritten = {call.result: blocks for call in calls if (blocks := _blocks(call, values, target))}
        unserved = {call.result for call in calls if call.result in values and not _is_served(call, rewritten, target)}
        if not unserved:
            break
        candidates -= unserved
    return relayout_calls(program, rewritten, "blocked") if rewritten else program


def _blocks(call: _KernelCall, values: set[relax.Var], target: Target) -> Layouts:
    blocks: dict[int, Layout] = {
        place: Blocked(1, block_length(target)) for place, value in enumerate(call.values) if value in values
    }
    if call.result in values and call.convolution is not None:
        blocks[call.place_of(call.convolution.weight)] = Blocked(0, weight_block(call.convolution, target))
    return blocks


def _is_served(call: _KernelCall, rewritten: Mapping[relax.Var, Layouts], target: Target) -> bool:
    """What a rule can't read once it is rewritten (a border around a single pixel) has to stay as it is."""
    func = relayout(call.func, rewritten[call.result])
    return any(RULES[rule](func, target) is not None for rule in ("pointwise_blocked", "depthwise_blocked"))


def block_length(target: Target) -> int:
    """Channels of a block of any tensor between kernels."""
    return min(MOST_LANES, max(FEWEST_LANES, vectors_of(target).lanes))


def weight_block(conv: Convolution, target: Target) -> int:
    """Output channels of a block of the weights."""
    block = block_length(target)
    return block if conv.depthwise else pointwise_blocked.weight_block(conv.channels, block, target)


class _KernelCall:
    """A binding that calls a kernel. `values` are what its parameters stand for, the result last."""

    def __init__(self, module: tvm.IRModule, binding: relax.VarBinding) -> None:
        self.result = binding.var
        self.func = module[binding.value.args[0]]
        self.values = (*binding.value.args[1].fields, binding.var)
        self.convolution = read_convolution(self.func) if len(self.func.params) == len(self.values) else None

    def place_of(self, buffer: tirx.Buffer) -> int:
        return next(place for place, param in enumerate(self.func.params) if param.same_as(buffer))

    def value_of(self, buffer: tirx.Buffer) -> relax.Expr:
        return self.values[self.place_of(buffer)]

    def same_shape(self) -> list[relax.Expr]:
        """What it reads at the place that it stores to: its result has the layout of these."""
        assert self.convolution is not None
        conv = self.convolution
        beside = [param for param in self.func.params if not any(param.same_as(b) for b in (conv.data, conv.weight))]
        return [
            self.value_of(param)
            for param in beside
            if [int(dim) for dim in param.shape] == [int(dim) for dim in conv.output.shape]
        ]


def _blocked_values(module: tvm.IRModule, calls: list[_KernelCall], candidates: set[relax.Var]) -> set[relax.Var]:
    """The results that will be in blocks: all that could be but for those that something speaks against."""
    values = set(candidates)
    readers: dict[relax.Var, list[_KernelCall]] = {}
    for call in calls:
        for value in call.values[:-1]:
            readers.setdefault(value, []).append(call)
    for binding in (binding for part in module["main"].body.blocks for binding in part.bindings):
        if not any(binding.var.same_as(call.result) for call in calls):
            values -= set(_variables(binding.value))
    values -= set(_variables(module["main"].body.body))

    while True:
        kept = set()
        for call in calls:
            if (
                call.result in values
                and _agrees(call, values)
                and all(_can_read(reader, call.result, values) for reader in readers.get(call.result, []))
            ):
                kept.add(call.result)
        if kept == values:
            return values
        values = kept


def _can_write(call: _KernelCall, block: int) -> bool:
    conv = call.convolution
    if conv is None or conv.channels % block or not isinstance(call.value_of(conv.weight), tvm.ir.expr.GenericConst):
        return False
    return depthwise_blocked.fits(conv) if conv.depthwise else pointwise_blocked.fits(conv)


def _agrees(call: _KernelCall, values: set[relax.Var]) -> bool:
    """Whether a kernel whose result is in blocks finds what it reads as it needs it."""
    conv = call.convolution
    assert conv is not None
    if conv.depthwise and call.value_of(conv.data) not in values:
        return False
    return all(value in values for value in call.same_shape())


def _can_read(call: _KernelCall, value: relax.Var, values: set[relax.Var]) -> bool:
    conv = call.convolution
    if conv is not None:
        if call.value_of(conv.weight) is value:
            return False
        return call.result in values
    params = [param for param, given in zip(call.func.params, call.values, strict=True) if given.same_as(value)]
    return len(params) == 1 and _pools(call.func, params[0])


def _pools(func: tirx.PrimFunc, buffer: tirx.Buffer) -> bool:
    """Whether a kernel reads this tensor once, to sum over rows and columns: channels can be lanes there."""
    sch = s_tir.Schedule(func)
    found = []
    for name in sch.get_child_blocks(sch.get_sblock("root")):
        axes = {axis.var: axis.iter_type for axis in sch.get(name).iter_vars}
        found += [(load, axes) for load in loads(sch.get(name).body) if load.source.same_as(buffer)]
    if len(found) != 1 or len(found[0][0].indices) != 4:
        return False
    load, axes = found[0]
    kinds = [axes.get(index) if isinstance(index, tirx.Var) else None for index in load.indices]
    spatial, summed = tirx.IterVar.DataPar, tirx.IterVar.CommReduce
    return kinds == [spatial, spatial, summed, summed]


def _variables(value: relax.Expr) -> list[relax.Var]:
    found: list[relax.Var] = []
    relax.analysis.post_order_visit(value, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
    return found
