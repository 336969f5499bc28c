"""One launch for many on a GPU: kernels that touch neither the network's input nor its output become a CUDA graph."""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import relax

from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import Program, Target


def capture_graph(program: Program, target: Target) -> Program:
    """Where the board's builds are told to: TVM's pass, which has the virtual machine capture them at the first run.

    Inputs and outputs are other memory at each run, so that the kernels which touch them stay launches of their own.
    """
    if not isinstance(target.facts, Gpu) or not target.facts.cuda_graph:
        return program
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        return replace(program, module=relax.transform.RewriteCUDAGraph()(program.module))
