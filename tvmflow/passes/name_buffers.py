"""Give buffers of kernels names that C takes: TVM writes them into CUDA C as they are, the paths of modules included."""

from __future__ import annotations

import re
from dataclasses import replace

import tvm
import tvm_ffi
from tvm import tirx

from tvmflow.passes.fuse_operators import kernels
from tvmflow.spec import Program, Target


def name_buffers(program: Program, target: Target) -> Program:
    """ "joint/0/relu" becomes joint_0_relu; what is computed stays as it is."""
    module = tvm.IRModule(program.module.functions, attrs=program.module.attrs)
    for name, func in kernels(module).items():
        module[name] = _named(func)
    return replace(program, module=module)


def _named(func: tirx.PrimFunc) -> tirx.PrimFunc:
    fresh: dict[tirx.Var, tirx.Var] = {}

    def name(var: tirx.Var) -> tirx.Var:
        if re.fullmatch(r"[A-Za-z_]\w*", var.name, re.ASCII):
            return var
        if var not in fresh:
            fresh[var] = tirx.Var(re.sub(r"\W|^(?=\d)", "_", var.name, flags=re.ASCII), var.ty)
        return fresh[var]

    return tvm_ffi.structural_map(func, (tirx.Var, name), order="post")
