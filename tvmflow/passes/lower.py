"""Plan memory and lower `main` to what Relax's virtual machine executes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import tvm
from tvm import relax

from tvmflow.passes.fuse_operators import tensor_bytes
from tvmflow.passes.lifetimes import Tensor, live_bytes
from tvmflow.spec import Program, Target


def plan_memory(program: Program, target: Target) -> Program:
    """Kernels write into storage that a static plan gives them; the plan's bytes go into `Program.memory`.

    Each layer gets what it needs of them: the tensors that are read or written then or later, not the network's inputs.
    """
    module = tvm.ir.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )(program.module)
    memory = {"weights_bytes": _weights_bytes(module), "activations_bytes": _activations_bytes(module)}
    live = live_bytes(_lifetimes(module), len(program.layers))
    layers = tuple(replace(layer, live_bytes=count) for layer, count in zip(program.layers, live, strict=True))
    return replace(program, module=module, layers=layers, memory={**program.memory, **memory})


def lower(program: Program, target: Target) -> Program:
    """The last stage: allocation, shapes and built-ins become calls into the virtual machine."""
    return replace(
        program,
        module=tvm.ir.transform.Sequential(
            [
                relax.transform.LowerAllocTensor(),
                relax.transform.KillAfterLastUse(),
                relax.transform.LowerRuntimeBuiltin(),
                relax.transform.ComputePrimValue(),
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(program.module),
    )


def _calls(module: tvm.IRModule) -> Iterator[relax.Call]:
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call):
                yield binding.value


def _name(call: relax.Call) -> str:
    return getattr(call.op, "name", "")


def _weights_bytes(module: tvm.IRModule) -> int:
    constants = {arg for call in _calls(module) for arg in call.args if isinstance(arg, tvm.ir.expr.GenericConst)}
    values = [constant.value for constant in constants]  # some hold a dtype or an attribute
    return sum(value.numpy().nbytes for value in values if isinstance(value, tvm.runtime.Tensor))


def _activations_bytes(module: tvm.IRModule) -> int:
    """Storages of the plan and the outputs; workspaces inside kernels are not in it."""
    total = 0
    for call in _calls(module):
        if _name(call) == "relax.memory.alloc_storage":
            total += int(call.args[0].values[0])
        elif _name(call) == "relax.builtin.alloc_tensor":
            total += tensor_bytes(call.ty_args[0])
    return total


def _lifetimes(module: tvm.IRModule) -> list[Tensor]:
    """The plan's tensors, in steps of kernel calls; a view lives in the tensor that it is of."""
    step = -1
    used: dict[relax.Var, list[int]] = {}  # the allocation → steps that read or write it
    behind: dict[relax.Var, set[relax.Var]] = {}  # a variable → the allocations that it may stand for
    main = module["main"]

    def allocations(value: relax.Expr) -> set[relax.Var]:
        found: set[relax.Var] = set()
        relax.analysis.post_order_visit(
            value, lambda part: found.update(behind.get(part, ())) if isinstance(part, relax.Var) else None
        )
        return found

    for binding in (binding for block in main.body.blocks for binding in block.bindings):
        value = binding.value
        if isinstance(value, relax.Call) and _name(value) in (
            "relax.memory.alloc_tensor",
            "relax.builtin.alloc_tensor",
        ):
            used[binding.var], behind[binding.var] = [], {binding.var}
        elif isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            step += 1
            for allocation in allocations(value):
                used[allocation].append(step)
        else:
            behind[binding.var] = allocations(value)
    for allocation in allocations(main.body.body):
        used[allocation].append(step)
    return [
        Tensor(name=var.name, bytes=tensor_bytes(var.ty), first=min(steps), last=max(steps))
        for var, steps in used.items()
        if steps
    ]
