"""The outermost block of each kernel is called root, which is how schedules find it.

TVM's sorting, scattering and searching are one block that is written as it runs, with a name of its own.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx


@tvm.transform.module_pass(opt_level=0, name="root_blocks")
def root_blocks(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Of all kernels of a legalised module."""
    for var, func in module.functions.items():
        if isinstance(func, tirx.PrimFunc):
            module[var] = _rooted(func)
    return module


def _rooted(func: tirx.PrimFunc) -> tirx.PrimFunc:
    realize = func.body
    if not isinstance(realize, s_tir.SBlockRealize) or realize.block.name_hint == "root":
        return func
    block = realize.block
    root = s_tir.SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        "root",
        block.body,
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
    body = s_tir.SBlockRealize(realize.iter_values, realize.predicate, root)
    return tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs)
