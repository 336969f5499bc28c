"""Turn operators into kernels: legalise to TensorIR, fuse element-wise tails, and note whose work each one does."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import tvm
from tvm import relax, tirx

from tvmflow.network.names import module_path
from tvmflow.passes.multiply_adds import live_macs, multiply_adds, static_shape
from tvmflow.spec import Layer, Program, Target

OWN_NAMES = re.compile(r"[lg]v\d*")
"""Names that TVM gives to bindings which have none from the importer."""


def fuse_operators(program: Program, target: Target) -> Program:
    """Afterwards `main` is a sequence of `call_tir`, one for each of `Program.layers`, in the same order."""
    macs = {binding.var.name: multiply_adds(binding.value) for binding in _bindings(program.module)}
    macs |= {name: count for works in program.folded.values() for name, count in works.items()}
    legal = tvm.ir.transform.Sequential(
        [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), relax.transform.FoldConstant()]
    )(program.module)
    grouped = relax.transform.FuseOps()(legal)
    members = _members(legal, grouped)
    fused = relax.transform.FuseTIR()(grouped)
    views = relax.transform.RewriteDataflowReshape()(fused)
    module = relax.transform.DeadCodeElimination()(views)
    computed = {binding.var.name for binding in kernel_calls(module)}
    layers = []
    for binding, names in zip(kernel_calls(fused), members, strict=True):
        if binding.var.name not in computed:
            continue  # a reshape: a view from here on, no kernel
        names = [work for name in names for work in (*program.folded.get(name, ()), name)]
        named = [name for name in names if name in macs and not OWN_NAMES.fullmatch(name)]
        layers.append(
            Layer(
                kernel=binding.value.args[0].name_hint,
                modules=tuple(dict.fromkeys(module_path(name) for name in named)),
                macs=sum(macs.get(name, 0) for name in names),
                bytes=call_bytes(binding),
                live_macs=live_macs(fused[binding.value.args[0]], sum(macs.get(name, 0) for name in names)),
                weight_bytes=constant_bytes(binding),
            )
        )
    return replace(program, module=module, layers=tuple(layers))


def _bindings(module: tvm.IRModule) -> Iterator[relax.VarBinding]:
    for block in module["main"].body.blocks:
        yield from block.bindings


def kernel_calls(module: tvm.IRModule) -> list[relax.VarBinding]:
    """Bindings of `main` that call a kernel: `call_tir`, or a group of them that FuseOps made a function of."""
    calls = [binding for binding in _bindings(module) if isinstance(binding.value, relax.Call)]
    return [
        binding
        for binding in calls
        if isinstance(binding.value.op, tvm.ir.GlobalVar) or getattr(binding.value.op, "name", "") == "relax.call_tir"
    ]


def _members(legal: tvm.IRModule, grouped: tvm.IRModule) -> list[list[str]]:
    """For each kernel call of `grouped`, the names of the bindings of `legal` that it does the work of.

    FuseOps renames the results of groups and makes one function of equal groups, so each call is found again by the
    kernel that it calls and the values that flow into it.
    """
    candidates: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for binding in kernel_calls(legal):
        candidates[_signature(binding.value, {})].append(binding.var.name)
    found = []
    original: dict[relax.Var, str] = {}  # variable of `grouped` → name of the same value in `legal`
    for binding in kernel_calls(grouped):
        if not isinstance(binding.value.op, tvm.ir.GlobalVar):
            found.append([candidates[_signature(binding.value, original)].pop(0)])
        else:
            group = grouped[binding.value.op]
            inner = {
                parameter: _identity(argument, original)
                for parameter, argument in zip(group.params, binding.value.args, strict=True)
            }
            names = []
            for step in (step for block in group.body.blocks for step in block.bindings):
                if isinstance(step.value, relax.Call):
                    names.append(candidates[_signature(step.value, inner)].pop(0))
                    inner[step.var] = names[-1]
            found.append(names)
        original[binding.var] = found[-1][-1]
    return found


def _signature(call: relax.Call, original: Mapping[relax.Var, str]) -> tuple[str, ...]:
    """The kernel that a `call_tir` calls and what it reads, as it was called in the module before grouping."""
    return call.args[0].name_hint, *(_identity(field, original) for field in call.args[1].fields)


def _identity(value: relax.Expr, original: Mapping[relax.Var, str]) -> str:
    """A variable's name; of a constant, its array's: two equal kernels may differ in their weights only."""
    if isinstance(value, relax.Var):
        return original.get(value, value.name)
    held = getattr(value, "value", value)
    return f"constant {held.__chandle__() if isinstance(held, tvm.runtime.Tensor) else held}"


def tensor_bytes(tensor: relax.Type) -> int:
    if isinstance(tensor, relax.TupleType):
        return sum(tensor_bytes(field) for field in tensor.fields)
    return math.prod(static_shape(tensor)) * tvm.DataType(str(tensor.dtype)).bits // 8


def call_bytes(binding: relax.VarBinding) -> int:
    """Of all tensors that a `call_tir` reads or writes."""
    return sum(tensor_bytes(tensor.ty) for tensor in (*binding.value.args[1].fields, binding.var))


def constant_bytes(binding: relax.VarBinding) -> int:
    """Of the constants that a `call_tir` reads."""
    fields = binding.value.args[1].fields
    return sum(tensor_bytes(field.ty) for field in fields if isinstance(field, tvm.ir.expr.GenericConst))


def kernels(module: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """The kernels of a fused module by name."""
    return {var.name_hint: func for var, func in module.functions.items() if isinstance(func, tirx.PrimFunc)}
