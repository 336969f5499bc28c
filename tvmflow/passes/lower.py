"""Plan memory and lower `main` to what Relax's virtual machine executes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import tvm
from tvm import relax

from tvmflow.spec import Program, Target


def plan_memory(program: Program, target: Target) -> Program:
    """Kernels write into storage that a static plan gives them; the plan's bytes go into `Program.memory`."""
    module = tvm.ir.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )(program.module)
    memory = {"weights_bytes": _weights_bytes(module), "activations_bytes": _activations_bytes(module)}
    return replace(program, module=module, memory={**program.memory, **memory})


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
            elements = math.prod(int(dim) for dim in call.args[0].values)
            total += elements * tvm.DataType(str(call.args[1].value)).bits // 8
    return total
