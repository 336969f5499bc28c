"""Depthwise convolution and the 1×1 convolution that alone reads it, as one kernel: a depthwise separable layer.

1. It is the matrix product of the 1×1 convolution, whose pixels' side is the depthwise convolution: an element's taps
   are loaded and added when its slice is fetched into shared memory. The tensor between the two is never stored.
2. Taps that meet nothing but the border are left out. What follows either convolution element by element is applied in
   registers.
3. The rest is `_product`, whose budget of registers and shared memory it has, and nine loads under way for each element
   of a slice.

It saves a launch and a tensor's way through memory, and computes the depthwise convolution again for each tile of
channels. `pays` weighs the two: a launch costs microseconds, a depthwise multiply-add little. Checked without a GPU; no
figure is given where none was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import Convolution
from tvmflow.schedules.cuda._grid import live_taps, read_convolutions
from tvmflow.schedules.cuda._product import Product, choices, scheduled
from tvmflow.schedules.cuda.pointwise import pixel, storing

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_TAPS = 9
MOST_TIMES = 4
"""Times that the depthwise convolution may be computed for fusing to pay."""
TYPICAL_ROWS = 64


def depthwise_pointwise(func: tirx.PrimFunc, target: Target, tile: tuple[int, ...] | None = None) -> Schedule | None:
    """`tile` is (rows, columns, depth, sums by rows, sums by columns, splits)."""
    return scheduled(_read(func), target, tile)


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, ...]]:
    """What `tile` may be for this kernel."""
    return choices(_read(func), target)


def pays(depthwise: Convolution, pointwise: Convolution) -> bool:
    """Whether a kernel of both should take less time than two: by a rule of thumb, for want of a measurement."""
    return fits(depthwise, pointwise) and math.ceil(pointwise.channels / TYPICAL_ROWS) <= MOST_TIMES


def fits(depthwise: Convolution, pointwise: Convolution) -> bool:
    """Whether this rule serves the two as one kernel."""
    taps = len(live_taps(depthwise, 0)) * len(live_taps(depthwise, 1))
    return (
        depthwise.depthwise
        and not pointwise.depthwise
        and 0 < taps <= MOST_TAPS
        and pointwise.kernel == (1, 1)
        and pointwise.stride == (1, 1)
        and pointwise.pad == (0, 0)
        and pointwise.size == pointwise.out_size == depthwise.out_size
    )


def _read(func: tirx.PrimFunc) -> Product | None:
    convs = read_convolutions(func)
    if len(convs) != 2:
        return None
    first, second = convs
    if not fits(first, second):
        return None
    taps = [(r, s) for r in live_taps(first, 0) for s in live_taps(first, 1)]

    def value(k, p):
        n, y, x = pixel(second, p)
        total = None
        for r, s in taps:
            row = y * first.stride[0] + r * first.dilation[0] - first.pad[0]
            column = x * first.stride[1] + s * first.dilation[1] - first.pad[1]
            inside = tirx.all(row >= 0, row < first.size[0], column >= 0, column < first.size[1])
            product = T.if_then_else(inside, first.data[n, k, row, column], T.float32(0)) * first.weight[k, 0, r, s]
            total = product if total is None else total + product
        return first.finish(total, (n, k, y, x))

    return Product(
        func=func,
        rows=second.channels,
        columns=second.batch * math.prod(second.out_size),
        depth=second.in_channels,
        weight=lambda f, k: second.weight[f, k, 0, 0],
        value=value,
        store=storing(second),
        weight_lanes=4 if second.in_channels % 4 == 0 else 1,
        store_lanes=4 if math.prod(second.out_size) % 4 == 0 else 1,
    )
