"""Maximum and minimum of numbers of which one is NaN give NaN, as in PyTorch.

LLVM gets `max(a, b)` as `a > b ? a : b`, which is b if either is NaN; so do CPUs' own instructions. A constant comes
first, then NaN stays: `max(0, x)`, the ReLU, still is one instruction on x86. Two numbers that aren't known are
compared either way, as in pooling, and if neither comparison holds, one is NaN and so is their sum. `x ≠ x` would not
do: TVM takes it for false.

It comes after the schedules, so that it sees what they write as well, and rules read kernels as operators make them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tvmflow.passes.fuse_operators import kernels
from tvmflow.spec import Program, Target


def propagate_nans(program: Program, target: Target) -> Program:
    """In all kernels of `Program.module`."""
    module = tvm.IRModule(program.module.functions, attrs=program.module.attrs)
    for name, func in kernels(module).items():
        module[name] = with_nans(func)
    return replace(program, module=module)


def with_nans(func: tirx.PrimFunc) -> tirx.PrimFunc:
    body = tvm_ffi.structural_map(func.body, [(tirx.Max, _ordered), (tirx.Min, _ordered)], order="post")
    return tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs)


def _ordered(extreme: tirx.Max | tirx.Min) -> Any:
    if "float" not in str(extreme.ty.dtype):
        return extreme
    kind, first, second = type(extreme), extreme.a, extreme.b
    if _is_number(first):
        return extreme
    if _is_number(second):
        return kind(second, first)
    wins, loses = (tirx.GT, tirx.LE) if kind is tirx.Max else (tirx.LT, tirx.GE)
    return tirx.Select(wins(first, second), first, tirx.Select(loses(first, second), second, first + second))


def _is_number(value: Any) -> bool:
    return isinstance(value.value if isinstance(value, tirx.Broadcast) else value, tirx.FloatImm)
