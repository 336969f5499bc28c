"""The stages of each kind of target, in order. This list is the compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tvmflow import interrupt
from tvmflow.passes.bind_threads import bind_threads
from tvmflow.passes.block_channels import block_channels
from tvmflow.passes.fold_batchnorm import fold_batchnorm
from tvmflow.passes.fold_scales import fold_scales
from tvmflow.passes.fuse_depthwise import fuse_depthwise
from tvmflow.passes.fuse_operators import fuse_operators
from tvmflow.passes.fuse_separable import fuse_separable
from tvmflow.passes.lower import lower, plan_memory
from tvmflow.passes.narrow_floats import narrow_floats
from tvmflow.passes.plain_names import plain_names
from tvmflow.passes.schedule_kernels import schedule_kernels
from tvmflow.passes.transpose_dense import transpose_dense
from tvmflow.spec import Program, Target

Stage = Callable[[Program, Target], Program]

CPU: tuple[Stage, ...] = (
    # graph: what needn't be computed at run time, isn't
    fold_batchnorm,
    fold_scales,
    # kernels: operators become loops, neighbours become one kernel
    fuse_operators,
    # layouts: tensors and weights lie as the schedules read them
    block_channels,
    fuse_depthwise,
    transpose_dense,
    # loops: each kernel gets the first schedule that fits it
    schedule_kernels,
    # numbers: float16 where the board is told so
    narrow_floats,
    # virtual machine: storage is planned, what is left becomes byte code
    plan_memory,
    lower,
)

CUDA: tuple[Stage, ...] = (
    # graph: what needn't be computed at run time, isn't
    fold_batchnorm,
    fold_scales,
    # kernels: operators become loops, neighbours become one kernel
    fuse_operators,
    fuse_separable,
    # loops: each kernel gets the first schedule that fits it, and the rest TVM's own for GPUs
    schedule_kernels,
    bind_threads,
    # source: kernels become CUDA C, whose names are those of C
    plain_names,
    # virtual machine: storage is planned, what is left becomes byte code
    plan_memory,
    lower,
)

STAGES: dict[str, tuple[Stage, ...]] = {"llvm": CPU, "arm_cpu": CPU, "cuda": CUDA}


def run_stages(program: Program, target: Target, dump_dir: Path | None = None) -> Program:
    """Take `program` through the stages of its target; each stage's result goes into `dump_dir` as TVMScript."""
    for number, stage in enumerate(STAGES[target.kind]):
        program = stage(program, target)
        interrupt.check()
        if dump_dir is not None:
            dump_dir.mkdir(parents=True, exist_ok=True)
            (dump_dir / f"{number}-{stage.__name__}.py").write_text(program.module.script())
    return program
