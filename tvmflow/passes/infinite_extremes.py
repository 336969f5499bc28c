"""Maxima start from −∞ and minima from ∞, where TVM starts from the lowest or the highest finite number.

Max pooling of −∞ would give −3.4e38. It comes when each operator has become a kernel of its own and none is fused yet:
then such a number in a kernel that reduces to extremes is where these start, or the border around what is pooled. In a
kernel that reduces nothing it is the network's own.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock


@tvm.transform.module_pass(opt_level=0, name="infinite_extremes")
def infinite_extremes(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Of all kernels of a legalised module."""
    for var, func in module.functions.items():
        if isinstance(func, tirx.PrimFunc):
            module[var] = _from_infinity(func)
    return module


def _from_infinity(func: tirx.PrimFunc) -> tirx.PrimFunc:
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, ((tirx.Max, tirx.Min), found.append))
    kinds = {type(extreme) for extreme in found if "float" in str(extreme.ty.dtype)}

    def start(number: tirx.FloatImm) -> tirx.FloatImm:
        dtype = str(number.ty.dtype)
        if tirx.Max in kinds and number.value == tirx.min_value(dtype).value:
            return tirx.FloatImm(dtype, -math.inf)
        if tirx.Min in kinds and number.value == tirx.max_value(dtype).value:
            return tirx.FloatImm(dtype, math.inf)
        return number

    blocks: list[Any] = []
    tvm_ffi.structural_walk(func.body, (SBlock, blocks.append))
    if not kinds or all(block.init is None for block in blocks):
        return func
    body = tvm_ffi.structural_map(func.body, [(tirx.FloatImm, start)], order="post")
    return tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs)
