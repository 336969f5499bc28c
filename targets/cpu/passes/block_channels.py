"""Lay tensors between convolutions out with their channels in blocks, and pack weights in the order they are read.

The kernels get their accesses rewritten, nothing is copied at run time: a tensor is blocked only if its producer can
write it and all its consumers can read it so. What the user gives and gets stays NCHW.

Convolutions write blocks, and so do kernels that keep channels apart: pooling, concatenation, element-wise work. A
convolution over all channels reads what it is given, and writes NCHW where that is asked for or its channels don't fill
blocks.
"""

from __future__ import annotations

import math

import tvm
from tvm import relax, s_tir, tirx

from tvmflow.passes.fuse_operators import kernel_calls
from tvmflow.passes.multiply_adds import static_shape
from tvmflow.passes.relayout import Blocked, Layout, Layouts, relayout, relayout_calls
from tvmflow.schedules.convolutions import Convolution, is_plain, is_reduction, loads, read_convolution, vectors_of
from tvmflow.schedules.cpu import RULES, conv_blocked, depthwise_blocked, lanes, pointwise_blocked, tiles
from tvmflow.spec import Program, Target

MOST_LANES, FEWEST_LANES = 16, 8
"""Channels of a block: what a vector holds, but half a cache line at least."""

CONVOLUTIONS = ("pointwise_blocked", "depthwise_blocked", "conv_blocked")


def block_channels(program: Program, target: Target) -> Program:
    """Kernels that the rules for blocks can serve get tensors in blocks; `Program.layers` names the new kernels."""
    if not {*CONVOLUTIONS, "concat_blocked", "lanes"} <= set(target.schedules):
        return program
    calls = [_KernelCall(program.module, binding) for binding in kernel_calls(program.module)]
    writers = {call.result for call in calls if _can_write(call, block_length(target))}
    packers = {call.result for call in calls if _can_pack(call, target)}
    while True:
        values = _blocked_values(program.module, calls, writers, packers, block_length(target))
        rewritten = {call.result: blocks for call in calls if (blocks := _blocks(call, values, packers, target))}
        unserved = {
            call.result
            for call in calls
            if call.result in rewritten and not _is_served(call, rewritten[call.result], target)
        }
        if not unserved:
            break
        writers, packers = writers - unserved, packers - (unserved - values)
    return relayout_calls(program, rewritten, "blocked") if rewritten else program


def _blocks(call: _KernelCall, values: set[relax.Var], packers: set[relax.Var], target: Target) -> Layouts:
    blocks: dict[int, Layout] = {
        place: Blocked(1, block_length(target)) for place, value in enumerate(call.values) if value in values
    }
    if (conv := call.convolution) is not None:
        if call.result in values:
            blocks[call.place_of(conv.weight)] = Blocked(0, weight_block(conv, target))
        elif blocks or (call.result in packers and (conv.groups > 1 or not pointwise_blocked.fits(conv))):
            blocks[call.place_of(conv.weight)] = Blocked(0, packed_block(conv, target))
    return blocks


def _is_served(call: _KernelCall, blocks: Layouts, target: Target) -> bool:
    """What a rule can't read once it is rewritten (a border around a single pixel) has to stay as it is."""
    if call.convolution is None and len(call.values) - 1 not in blocks:
        return True
    func = relayout(call.func, blocks)
    if call.convolution is None:
        return RULES["concat_blocked"](func, target) is not None or lanes.in_vectors(func, target)
    return any(tiles(rule, func, target) for rule in CONVOLUTIONS)


def block_length(target: Target) -> int:
    """Channels of a block of any tensor between kernels."""
    return min(MOST_LANES, max(FEWEST_LANES, vectors_of(target).lanes))


def weight_block(conv: Convolution, target: Target) -> int:
    """Output channels of a block of the weights of a convolution whose result is in blocks."""
    block = block_length(target)
    return block if conv.depthwise else pointwise_blocked.weight_block(conv.channels // conv.groups, block, target)


def packed_block(conv: Convolution, target: Target) -> int:
    """Output channels of a block of the weights of a convolution whose result is NCHW; 0 if there is no good one."""
    return conv_blocked.weight_block(conv.channels // conv.groups, target)


class _KernelCall:
    """A binding that calls a kernel. `values` are what its parameters stand for, the result last."""

    def __init__(self, module: tvm.IRModule, binding: relax.VarBinding) -> None:
        self.result = binding.var
        self.func = module[binding.value.args[0]]
        self.values = (*binding.value.args[1].fields, binding.var)
        self.is_known = len(self.func.params) == len(self.values)
        self.convolution = read_convolution(self.func, grouped=True) if self.is_known else None

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


def _blocked_values(
    module: tvm.IRModule, calls: list[_KernelCall], writers: set[relax.Var], packers: set[relax.Var], block: int
) -> set[relax.Var]:
    """The results that will be in blocks: all that could be but for those that something speaks against."""
    values = set(writers)
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
                and all(
                    _can_read(reader, call.result, values, packers, block) for reader in readers.get(call.result, [])
                )
            ):
                kept.add(call.result)
        if kept == values:
            return values
        values = kept


def _can_write(call: _KernelCall, block: int) -> bool:
    """Whether a kernel could write blocks, if it reads what it needs to be so."""
    if call.convolution is None:
        return call.is_known and _is_map(call.result, block) and _is_plain(call.func)
    conv = call.convolution
    if conv.channels // conv.groups % block or not _is_constant(call.value_of(conv.weight)):
        return False
    return not conv.depthwise or depthwise_blocked.fits(conv)


def _can_pack(call: _KernelCall, target: Target) -> bool:
    """Whether a convolution could read its data in either layout and write NCHW."""
    conv = call.convolution
    if conv is None or conv.depthwise or not _is_constant(call.value_of(conv.weight)):
        return False
    return packed_block(conv, target) > 0


def _agrees(call: _KernelCall, values: set[relax.Var]) -> bool:
    """Whether a kernel whose result is in blocks finds what it reads as it needs it."""
    conv = call.convolution
    if conv is None:
        given = [value for value in call.values[:-1] if not _is_constant(value)]
        whole = [value for value in given if not _is_spread(value, call.result)]
        return bool(whole) and all(value in values for value in whole)
    if conv.depthwise and call.value_of(conv.data) not in values:
        return False
    return all(value in values for value in call.same_shape())


def _can_read(call: _KernelCall, value: relax.Var, values: set[relax.Var], packers: set[relax.Var], block: int) -> bool:
    conv = call.convolution
    if conv is not None:
        if call.value_of(conv.weight) is value:
            return False
        if conv.groups > 1 and conv.in_channels % block and call.value_of(conv.data).same_as(value):
            return False  # a group would begin within a block
        return call.result in values or (call.result in packers and value not in call.same_shape())
    if call.result in values:
        return True
    params = [param for param, given in zip(call.func.params, call.values, strict=False) if given.same_as(value)]
    return call.is_known and len(params) == 1 and _pools(call.func, params[0])


def _pools(func: tirx.PrimFunc, buffer: tirx.Buffer) -> bool:
    """Whether a kernel reads this tensor once, to reduce it over rows and columns or windows."""
    sch = s_tir.Schedule(func)
    found = []
    for name in sch.get_child_blocks(sch.get_sblock("root")):
        block = sch.get(name)
        found += [(load, block) for load in loads(block.body) if load.source.same_as(buffer)]
    if len(found) != 1 or len(found[0][0].indices) != 4 or not is_reduction(found[0][1]):
        return False
    load, block = found[0]
    spatial = [axis.var for axis in block.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    return all(any(index.same_as(axis) for axis in spatial) for index in load.indices[:2])


def _is_map(value: relax.Var, block: int) -> bool:
    """Whether it has channels that fill blocks."""
    tensor = value.ty
    if not isinstance(tensor, relax.TensorType) or tensor.ndim != 4 or str(tensor.dtype) != "float32":
        return False
    shape = static_shape(tensor)
    return shape[1] % block == 0 and math.prod(shape[2:]) > 1


def _is_spread(value: relax.Expr, over: relax.Var) -> bool:
    """Whether an element of `value` goes with several of `over`: factors of squeeze-and-excite, or of an attention map.

    Such tensors are small, and stay NCHW.
    """
    tensors = value.ty, over.ty
    if not all(isinstance(tensor, relax.TensorType) and tensor.ndim == 4 for tensor in tensors):
        return False
    small, large = map(static_shape, tensors)
    return small != large and all(a in (1, b) for a, b in zip(small, large, strict=True))


def _is_plain(func: tirx.PrimFunc) -> bool:
    sch = s_tir.Schedule(func)
    return all(is_plain(sch, name) for name in sch.get_child_blocks(sch.get_sblock("root")))


def _is_constant(value: relax.Expr) -> bool:
    return isinstance(value, tvm.ir.expr.GenericConst)


def _variables(value: relax.Expr) -> list[relax.Var]:
    found: list[relax.Var] = []
    relax.analysis.post_order_visit(value, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
    return found
