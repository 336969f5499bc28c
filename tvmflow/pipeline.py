"""The stages of each kind of target, in order. This list is the compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tvmflow import interrupt
from tvmflow.cortex_m.stages import choose_kernels, lower_kernels, place_tensors
from tvmflow.passes.block_channels import block_channels
from tvmflow.passes.fold_batchnorm import fold_batchnorm
from tvmflow.passes.fold_scales import fold_scales
from tvmflow.passes.fuse_depthwise import fuse_depthwise
from tvmflow.passes.fuse_operators import fuse_operators
from tvmflow.passes.integer_kernels import integer_kernels
from tvmflow.passes.lower import lower, plan_memory
from tvmflow.passes.narrow_floats import narrow_floats
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

INTEGER_CPU: tuple[Stage, ...] = (
    # kernels: each layer gets the first integer rule that fits it; weights and tensors lie as the rules read them
    integer_kernels,
    # virtual machine: storage is planned, what is left becomes byte code
    plan_memory,
    lower,
)

MCU: tuple[Stage, ...] = (
    # kernels: integer layers become loops over plain pointers, two depthwise ones in a row one kernel in place
    choose_kernels,
    # memory: one static arena, packed by lifetime
    place_tensors,
    # loops become what LLVM takes; there is no virtual machine
    lower_kernels,
)

STAGES: dict[str, tuple[Stage, ...]] = {"llvm": CPU, "arm_cpu": CPU, "cortex_m": MCU}
INTEGER_STAGES: dict[str, tuple[Stage, ...]] = {"llvm": INTEGER_CPU, "arm_cpu": INTEGER_CPU, "cortex_m": MCU}
"""Of quantised networks."""


def run_stages(program: Program, target: Target, dump_dir: Path | None = None) -> Program:
    """Take `program` through the stages of its target; each stage's result goes into `dump_dir` as TVMScript."""
    stages = STAGES if program.integer is None else INTEGER_STAGES
    for number, stage in enumerate(stages[target.kind]):
        program = stage(program, target)
        interrupt.check()
        if dump_dir is not None:
            dump_dir.mkdir(parents=True, exist_ok=True)
            (dump_dir / f"{number}-{stage.__name__}.py").write_text(program.module.script())
    return program
