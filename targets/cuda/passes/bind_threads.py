"""Give the threads of a GPU their work where no rule of ours did: the kernels that are left get TVM's own schedules."""

from __future__ import annotations

from dataclasses import replace

import tvm_ffi
from tvm import tirx
from tvm.s_tir import dlight

from tvmflow.passes.fuse_operators import kernels
from tvmflow.schedules.cuda.dlight import first_fitting
from tvmflow.spec import Program, Target, UnsupportedOperatorError


def bind_threads(program: Program, target: Target) -> Program:
    """dlight's rules for GPUs, for kernels that have no threads yet; `Layer.schedule` stays "default" for them.

    Raises UnsupportedOperatorError for a kernel that can't run on a GPU.
    """
    gpu = dlight.gpu
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    bound = program.module
    for name, func in kernels(bound).items():
        if any(launches(func)):
            continue
        schedule = first_fitting(func, target, rules)
        if schedule is None:
            modules = next(layer.modules for layer in program.layers if layer.kernel == name)
            raise UnsupportedOperatorError(
                f"{name} in {', '.join(modules)} can't be made a kernel for GPUs such as that of {target.name}; build "
                "the network for a CPU.",
                {name: modules},
            )
        bound[name] = schedule.mod["main"].with_attrs(func.attrs)
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

        def note_own(node: tirx.AttrStmt, axes: dict[str, int] = axes) -> None:
            if node.attr_key == "thread_extent":
                axes[node.node.thread_tag] = int(node.value)

        tvm_ffi.structural_walk(step, [(tirx.For, note), (tirx.AttrStmt, note_own)])
        found.append(axes)
    return found
