"""The stages of each kind of target, in order. This list is the compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tvmflow.integer.frontend import tail_program
from tvmflow.passes.elementary_functions import elementary_functions
from tvmflow.passes.fold_batchnorm import fold_batchnorm
from tvmflow.passes.fold_padding import fold_padding
from tvmflow.passes.fold_scales import fold_scales
from tvmflow.passes.fuse_operators import fuse_operators
from tvmflow.passes.integer_kernels import integer_kernels
from tvmflow.passes.join_programs import join_programs
from tvmflow.passes.lower import lower, plan_memory
from tvmflow.passes.narrow_floats import narrow_floats
from tvmflow.passes.part_transposed import part_transposed
from tvmflow.passes.propagate_nans import propagate_nans
from tvmflow.passes.rows_as_maps import rows_as_maps
from tvmflow.passes.schedule_kernels import schedule_kernels
from tvmflow.spec import Program, Target
from tvmflow.system import interrupt, progress, scratch
from tvmflow.targets.cortex_m.stages import choose_float_kernels, choose_kernels, lower_kernels, place_tensors
from tvmflow.targets.cpu.library.calls import write_calls
from tvmflow.targets.cpu.library.phases import split_kernels
from tvmflow.targets.cpu.library.places import place_in_arena
from tvmflow.targets.cpu.passes.block_channels import block_channels
from tvmflow.targets.cpu.passes.choose_winograd import choose_winograd
from tvmflow.targets.cpu.passes.fuse_depthwise import fuse_depthwise
from tvmflow.targets.cpu.passes.pack_products import pack_products
from tvmflow.targets.cpu.passes.roll_steps import roll_steps
from tvmflow.targets.cpu.passes.transpose_dense import transpose_dense
from tvmflow.targets.cuda.passes.bind_threads import bind_threads
from tvmflow.targets.cuda.passes.capture_graph import capture_graph
from tvmflow.targets.cuda.passes.count_order import count_order
from tvmflow.targets.cuda.passes.flatten_averages import flatten_averages
from tvmflow.targets.cuda.passes.fuse_separable import fuse_separable
from tvmflow.targets.cuda.passes.plain_names import plain_names
from tvmflow.targets.vta.stages import check_program, cut_layers, describe_layers, emit_program

Stage = Callable[[Program, Target], Program]

CPU_KERNELS: tuple[Stage, ...] = (
    # graph: what needn't be computed at run time, isn't; rows are maps of height 1
    fold_padding,
    fold_batchnorm,
    fold_scales,
    rows_as_maps,
    part_transposed,
    # steps of a recurrent layer become one kernel
    roll_steps,
    # kernels: operators become loops, neighbours become one kernel
    fuse_operators,
    # layouts: tensors and weights lie as the schedules read them
    block_channels,
    fuse_depthwise,
    choose_winograd,
    transpose_dense,
    pack_products,
    # loops: each kernel gets the first schedule that fits it
    schedule_kernels,
    # numbers: float16 where the board is told so
    narrow_floats,
    # vectors: exponentials and their kin without the C library
    elementary_functions,
    # not a number stays that through maxima and minima
    propagate_nans,
)

CPU: tuple[Stage, ...] = (
    *CPU_KERNELS,
    # virtual machine: storage is planned, what is left becomes byte code
    plan_memory,
    lower,
)

CALLED_BY_C: tuple[Stage, ...] = (
    # calls: the kernels in their order, and what they read and write
    write_calls,
    # phases: a function over plain pointers of each parallel loop of a kernel, and of what lies between two
    split_kernels,
    # memory: one arena for each context, packed by lifetime
    place_in_arena,
)

CPU_LIBRARY: tuple[Stage, ...] = (*CPU_KERNELS, *CALLED_BY_C)

CUDA_KERNELS: tuple[Stage, ...] = (
    # graph: what needn't be computed at run time, isn't; rows are maps of height 1
    fold_padding,
    fold_batchnorm,
    fold_scales,
    rows_as_maps,
    flatten_averages,
    # kernels: operators become loops, neighbours become one kernel
    count_order,
    fuse_operators,
    fuse_separable,
    # loops: each kernel gets the first schedule that fits it, and the rest TVM's own for GPUs
    schedule_kernels,
    bind_threads,
    # numbers: float16 where the board is told so
    narrow_floats,
    # source: kernels become CUDA C, whose names are those of C
    plain_names,
)

CUDA: tuple[Stage, ...] = (
    *CUDA_KERNELS,
    # virtual machine: storage is planned, launches become a graph if told so, what is left becomes byte code
    plan_memory,
    capture_graph,
    lower,
)

KERNELS: dict[str, tuple[Stage, ...]] = {"llvm": CPU_KERNELS, "arm_cpu": CPU_KERNELS, "cuda": CUDA_KERNELS}
"""Of float networks, as far as they may come behind integer kernels."""


def append_tail(program: Program, target: Target) -> Program:
    """What of a quantised network stays in float32 goes through a float network's stages, and behind its kernels."""
    if program.integer.tail is None:
        return program
    tail, board = tail_program(program.integer), replace(target, arithmetic="float32")
    for stage in KERNELS[target.kind]:
        tail = stage(tail, board)
    return join_programs(program, tail)


INTEGER_KERNELS: tuple[Stage, ...] = (
    # kernels: each layer gets the first integer rule that fits it; weights and tensors lie as the rules read them
    integer_kernels,
    # tail: what stays in float32 comes behind them
    append_tail,
)

INTEGER_LIBRARY: tuple[Stage, ...] = (*INTEGER_KERNELS, *CALLED_BY_C)

INTEGER: tuple[Stage, ...] = (
    *INTEGER_KERNELS,
    # virtual machine: storage is planned, launches on a GPU become a graph if told so, what is left becomes byte code
    plan_memory,
    capture_graph,
    lower,
)

MCU: tuple[Stage, ...] = (
    # graph: what needn't be computed at run time, isn't
    fold_padding,
    fold_batchnorm,
    fold_scales,
    # kernels: layers become loops over plain pointers, two depthwise ones in a row one kernel in place
    choose_float_kernels,
    # memory: one static arena, packed by lifetime
    place_tensors,
    # loops become what LLVM takes; there is no virtual machine
    lower_kernels,
)

INTEGER_MCU: tuple[Stage, ...] = (
    # kernels: integer layers become loops over plain pointers, two depthwise ones in a row one kernel in place
    choose_kernels,
    # memory: one static arena, packed by lifetime
    place_tensors,
    # loops become what LLVM takes; there is no virtual machine
    lower_kernels,
)

VTA: tuple[Stage, ...] = (
    # tiles: what is on chip at a time, as a search or the default has it; taps that read padding only are gone
    cut_layers,
    # instructions: transfers, products and ALU passes, ordered by tokens; weights and micro-ops in a memory image
    emit_program,
    # hazards: no deadlock, no overflow, nothing read before it is written
    check_program,
    # facts: each layer's bounds
    describe_layers,
)

STAGES: dict[str, tuple[Stage, ...]] = {"llvm": CPU, "arm_cpu": CPU, "cuda": CUDA, "cortex_m": MCU}
INTEGER_STAGES: dict[str, tuple[Stage, ...]] = {
    "llvm": INTEGER,
    "arm_cpu": INTEGER,
    "cuda": INTEGER,
    "vta": VTA,
    "cortex_m": INTEGER_MCU,
}
"""Of quantised networks."""

LIBRARY_STAGES: dict[str, tuple[Stage, ...]] = {"llvm": CPU_LIBRARY, "arm_cpu": CPU_LIBRARY}
INTEGER_LIBRARY_STAGES: dict[str, tuple[Stage, ...]] = {"llvm": INTEGER_LIBRARY, "arm_cpu": INTEGER_LIBRARY}
"""Where C calls the kernels."""

DELIVERED: dict[tuple[str, bool], dict[str, tuple[Stage, ...]]] = {
    ("module", False): STAGES,
    ("module", True): INTEGER_STAGES,
    ("library", False): LIBRARY_STAGES,
    ("library", True): INTEGER_LIBRARY_STAGES,
}
"""By how a network is delivered (`Target.delivery`), and whether it is a quantised one."""


def run_stages(program: Program, target: Target, dump_dir: Path | None = None) -> Program:
    """Take `program` through the stages of its target; each stage's result goes into `dump_dir` as text."""
    stages = DELIVERED[target.delivery, program.integer is not None][target.kind]
    digits = len(str(len(stages) - 1))  # the files' names sort as the stages come
    for number, stage in enumerate(stages):
        progress.at(f"{stage.__name__}, {number + 1} of {len(stages)} stages")
        program = stage(program, target)
        interrupt.check()
        if dump_dir is not None:
            dump_dir.mkdir(parents=True, exist_ok=True)
            text, suffix = (program.module.script(), "py") if program.made is None else (program.made.text(), "txt")
            with scratch.replacing(dump_dir / f"{number:0{digits}}-{stage.__name__}.{suffix}") as made:
                made.write_text(text)
    return program
