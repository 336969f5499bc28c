"""Lay tensors between convolutions out with their channels in blocks, and pack weights in the order they are read.

The kernels get their accesses rewritten, nothing is copied at run time: a tensor is blocked only if its producer can
write it and all its consumers can read it so. What the user gives and gets stays NCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, s_tir, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.fuse_operators import kernel_calls
from tvmflow.schedules import RULES, depthwise_blocked, pointwise_blocked
from tvmflow.schedules._convolution import Convolution, loads, read_convolution, vectors_of
from tvmflow.spec import Program, Target

MOST_LANES, FEWEST_LANES = 16, 8
"""Channels of a block: what a vector holds, but half a cache line at least."""

Blocks = dict[int, tuple[int, int]]
"""Argument of a kernel → its axis that is in blocks, and their length."""


def block_channels(program: Program, target: Target) -> Program:
    """Afterwards kernels that the rules for blocks serve have blocked tensors; `Program.layers` names the new kernels."""
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
    if not rewritten:
        return program
    mutate = _Rewrite(program.module, rewritten)
    updated = mutate.visit_expr(program.module["main"])
    module = mutate.builder_.get()
    module["main"] = updated
    module = relax.transform.DeadCodeElimination()(module)
    layers = tuple(
        replace(layer, kernel=binding.value.args[0].name_hint)
        for layer, binding in zip(program.layers, kernel_calls(module), strict=True)
    )
    return replace(program, module=module, layers=layers)


def _blocks(call: _KernelCall, values: set[relax.Var], target: Target) -> Blocks:
    blocks: Blocks = {place: (1, block_length(target)) for place, value in enumerate(call.values) if value in values}
    if call.result in values and call.convolution is not None:
        blocks[call.place_of(call.convolution.weight)] = (0, weight_block(call.convolution, target))
    return blocks


def _is_served(call: _KernelCall, rewritten: Mapping[relax.Var, Blocks], target: Target) -> bool:
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


def _blocked_values(
    module: tvm.IRModule, calls: list[_KernelCall], candidates: set[relax.Var]
) -> set[relax.Var]:
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
            if call.result in values and _agrees(call, values) and all(
                _can_read(reader, call.result, values) for reader in readers.get(call.result, [])
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


def relayout(func: tirx.PrimFunc, blocks: Mapping[int, tuple[int, int]]) -> tirx.PrimFunc:
    """`func` with parameters in blocks: (place, (axis, block length))."""
    for place, (axis, length) in blocks.items():
        sch = s_tir.Schedule(func)
        access = next(
            (name, (kind, index))
            for name in sch.get_child_blocks(sch.get_sblock("root"))
            for kind, regions in (("read", sch.get(name).reads), ("write", sch.get(name).writes))
            for index, region in enumerate(regions)
            if region.source.same_as(func.params[place])
        )
        sch.transform_layout(*access, _split(axis, length))
        func = sch.mod["main"].with_attrs(func.attrs)
    return func


def _split(axis: int, length: int) -> Callable[..., tuple[Any, ...]]:
    """Indices → indices with one axis in blocks."""

    def split(*indices: Any) -> tuple[Any, ...]:
        return (*indices[:axis], indices[axis] // length, *indices[axis + 1 :], indices[axis] % length)

    return split


def pack(array: np.ndarray, axis: int, length: int) -> np.ndarray:
    """An array with one axis in blocks: n×C×… becomes n×C/length×…×length."""
    split = array.reshape(*array.shape[:axis], array.shape[axis] // length, length, *array.shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(split, axis + 1, -1))


@mutator
class _Rewrite(PyExprMutator):
    """Calls of kernels with arguments in blocks. Equal kernels whose blocks are the same stay one."""

    def __init__(self, module: tvm.IRModule, rewritten: Mapping[relax.Var, Blocks]) -> None:
        super().__init__(module)
        self.module, self.rewritten = module, rewritten
        self.made: dict[Any, tvm.ir.GlobalVar] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        blocks = self.rewritten.get(binding.var)
        if blocks is None:
            super().visit_var_binding_(binding)
            return
        call = binding.value
        values = [self.visit_expr(value) for value in call.args[1].fields]
        for place, (axis, length) in blocks.items():
            if place < len(values) and isinstance(values[place], tvm.ir.expr.GenericConst):
                values[place] = relax.const(pack(values[place].value.numpy(), axis, length))
        key = call.args[0], tuple(sorted(blocks.items()))
        if key not in self.made:
            name = call.args[0].name_hint
            self.made[key] = self.builder_.add_func(relayout(self.module[name], blocks), f"{name}_blocked")
        func = self.builder_.get()[self.made[key]]
        result = relax.TensorType([int(dim) for dim in func.params[-1].shape], str(func.params[-1].dtype))
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        call = relax.call_tir(self.made[key], relax.Tuple(values), result)
        self.set_var_remap(binding.var, emit(call, binding.var.name))
