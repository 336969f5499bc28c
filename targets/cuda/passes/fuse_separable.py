"""Few launches on a GPU: a depthwise convolution, or an average of maps, and what alone reads it become one kernel.

At batch 1 a kernel of a small map takes about as long as its launch, so that a kernel less is worth some work twice.
"""

from __future__ import annotations

from tvm import tirx

from tvmflow.passes.fuse_kernels import fuse_kernels
from tvmflow.schedules.convolutions import Convolution, read_convolution
from tvmflow.schedules.cuda import depthwise_pair, depthwise_pointwise, pool_dense
from tvmflow.spec import Program, Target


def fuse_separable(program: Program, target: Target) -> Program:
    """Two depthwise convolutions, one and the 1×1 convolution after it, or an average and the fully connected layer.

    Where the board has the rule for both.

    Two entries of `Program.layers` become one, which names the modules of both.
    """

    def pays(first: tirx.PrimFunc, second: tirx.PrimFunc, place: int) -> bool:
        if "pool_dense" in target.schedules and pool_dense.pays(first, second, place, target):
            return True
        before, after = read_convolution(first), read_convolution(second)
        if before is None or after is None or not second.params[place].same_as(after.data):
            return False
        return _pays(before, after, target)

    return fuse_kernels(program, pays)


def _pays(before: Convolution, after: Convolution, target: Target) -> bool:
    if "depthwise_pair" in target.schedules and depthwise_pair.pays(before, after, target):
        return True
    return "depthwise_pointwise" in target.schedules and depthwise_pointwise.pays(before, after)
