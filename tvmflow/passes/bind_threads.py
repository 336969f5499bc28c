"""Give the threads of a GPU their work where no rule of ours did: the kernels that are left get TVM's own schedules."""

from __future__ import annotations

from dataclasses import replace

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import dlight

from tvmflow.passes.fuse_operators import kernels
from tvmflow.spec import Program, Target


def bind_threads(program: Program, target: Target) -> Program:
    """dlight's rules for GPUs, for kernels that have no threads yet; `Layer.schedule` stays "default" for them."""
    left = {name: func for name, func in kernels(program.module).items() if not any(launches(func))}
    module = tvm.IRModule(left)
    rules = (
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )
    with tvm.target.Target(dict(target.tvm)):
        module = dlight.ApplyDefaultSchedule(*rules)(module)
    bound = program.module
    for name, func in kernels(module).items():
        bound[name] = func
    return replace(program, module=bound)


def launches(func: tirx.PrimFunc) -> list[dict[str, int]]:
    """The kernels that a scheduled function becomes, in order: the extent of each of their "blockIdx.x" … axes."""
    body = func.body
    while hasattr(body, "block"):  # the root block
        body = body.block.body
    steps = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    found = []
    for step in steps:
        axes: dict[str, int] = {}

        def note(node: tirx.For, axes: dict[str, int] = axes) -> None:
            if node.kind == tirx.ForKind.THREAD_BINDING:
                axes[node.thread_binding.thread_tag] = int(node.extent)

        tvm_ffi.structural_walk(step, (tirx.For, note))
        found.append(axes)
    return found
