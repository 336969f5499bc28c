"""Give tensors in kernels names that C takes: they are called after modules of the network, such as "joint/0/relu".

TVM ends the names of pointers in "_ptr", so no word of C or CUDA needs care, and makes names unique itself.
"""

from __future__ import annotations

import re
from dataclasses import replace

import tvm
import tvm_ffi
from tvm import tirx

from tvmflow.passes.fuse_operators import kernels
from tvmflow.spec import Program, Target

NO_LETTER = re.compile(r"\W", re.ASCII)


def plain_names(program: Program, target: Target) -> Program:
    """Only where kernels become source text; everything else in them stays."""
    return replace(program, module=with_plain_names(program.module))


def with_plain_names(module: tvm.IRModule) -> tvm.IRModule:
    """`module` itself, its kernels changed."""
    for name, func in kernels(module).items():
        module[name] = _renamed(func)
    return module


def _renamed(func: tirx.PrimFunc) -> tirx.PrimFunc:
    made: dict[tirx.Var, tirx.Var] = {}

    def rename(var: tirx.Var) -> tirx.Var:
        name = plain(var.name)
        if name == var.name:
            return var
        if var not in made:
            if isinstance(var.ty, tirx.buffer.BufferType):
                made[var] = tirx.decl_buffer(var.shape, var.dtype, name, scope=var.scope(), layout=var.ty.layout)
            else:
                made[var] = tirx.Var(name, var.ty)
        return made[var]

    body = tvm_ffi.structural_map(func.body, (tirx.Var, rename), order="post")
    return tirx.PrimFunc([rename(param) for param in func.params], body, func.ret_type, attrs=func.attrs)


def plain(name: str) -> str:
    """A name of letters, digits and underscores that begins with no digit."""
    name = NO_LETTER.sub("_", name)
    return f"_{name}" if name[:1].isdigit() else name
