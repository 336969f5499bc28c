"""Make one kernel of two depthwise convolutions in blocks, of which the second alone reads the first.

A few channels of the whole map stay in the cache between the two, and threads are started once.
"""

from __future__ import annotations

from tvm import tirx

from tvmflow.passes.fuse_kernels import fuse_kernels
from tvmflow.schedules.convolutions import read_convolutions
from tvmflow.schedules.cpu import depthwise_blocked
from tvmflow.spec import Program, Target


def fuse_depthwise(program: Program, target: Target) -> Program:
    """Two entries of `Program.layers` become one, which names the modules of both."""
    return fuse_kernels(program, _pays) if "depthwise_blocked" in target.schedules else program


def _pays(first: tirx.PrimFunc, second: tirx.PrimFunc, place: int) -> bool:
    before, after = read_convolutions(first), read_convolutions(second)
    if len(before) != 1 or len(after) != 1 or not before[0].out_block or not after[0].data_block:
        return False
    if not second.params[place].same_as(after[0].data):
        return False
    both = before[0].depthwise and after[0].depthwise
    return both and depthwise_blocked.fuses(before[0], after[0], before[0].out_block)
