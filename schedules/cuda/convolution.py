"""Convolution over all channels in NCHW that isn't pointwise: 3×3 and the like, any stride, dilation and border.

1. Taps that meet nothing but the border at every output are left out.
2. Channels and taps are one axis, the depth of a matrix product, weights × pixels. The pixels' side is never written
   out: an element is computed into shared memory when its slice is fetched, zero where it lies in the border.
3. The rest is `_product`, whose budget of registers and shared memory it has.

Unrolling the patches in memory first would write and read the input once for each tap. Checked without a GPU; no figure
is given where none was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import unfuse
from tvmflow.schedules.cuda._grid import live_taps, read_convolution
from tvmflow.schedules.cuda._product import Product, choices, scheduled
from tvmflow.schedules.cuda.pointwise import pixel, storing

if TYPE_CHECKING:
    from tvmflow.spec import Target


def convolution(func: tirx.PrimFunc, target: Target, tile: tuple[int, ...] | None = None) -> Schedule | None:
    """`tile` is (rows, columns, depth, sums by rows, sums by columns, splits)."""
    return scheduled(_read(func), target, tile)


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, ...]]:
    """What `tile` may be for this kernel."""
    return choices(_read(func), target)


def _read(func: tirx.PrimFunc) -> Product | None:
    conv = read_convolution(func)
    if conv is None or conv.depthwise:
        return None
    vertical, horizontal = (_without_gaps(live_taps(conv, axis)) for axis in (0, 1))
    if not vertical or not horizontal:
        return None
    per_channel = len(vertical) * len(horizontal)
    every = per_channel == math.prod(conv.kernel)

    def parts(k):
        """Channel and tap of a step of the depth."""
        c, r, s = unfuse(k, conv.in_channels, len(vertical), len(horizontal))
        return c, r + vertical[0], s + horizontal[0]

    def weight(f, k):
        return conv.weight[(f, *parts(k))]

    def value(k, p):
        c, r, s = parts(k)
        n, y, x = pixel(conv, p)
        row = y * conv.stride[0] + r * conv.dilation[0] - conv.pad[0]
        column = x * conv.stride[1] + s * conv.dilation[1] - conv.pad[1]
        inside = tirx.all(row >= 0, row < conv.size[0], column >= 0, column < conv.size[1])
        return T.if_then_else(inside, conv.data[n, c, row, column], T.float32(0))

    return Product(
        func=func,
        rows=conv.channels,
        columns=conv.batch * math.prod(conv.out_size),
        depth=conv.in_channels * per_channel,
        weight=weight,
        value=value,
        store=storing(conv),
        weight_lanes=4 if every and (conv.in_channels * per_channel) % 4 == 0 else 1,
        store_lanes=4 if math.prod(conv.out_size) % 4 == 0 else 1,
    )


def _without_gaps(taps: list[int]) -> range:
    return range(taps[0], taps[-1] + 1) if taps else range(0)
