"""Dilated transposed convolutions as sums over the taps there are.

TVM puts zeros between the taps and multiplies by them as well: in two dimensions up to the square of the dilation times
the work, and NaN wherever a zero meets infinity. Here the sum goes over the taps themselves, at their distances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, te, topi

NAMES = {"relax.nn.conv1d_transpose": "NCW", "relax.nn.conv2d_transpose": "NCHW", "relax.nn.conv3d_transpose": "NCDHW"}
"""Operator → the layout that TVM legalises."""


def _legalised(name: str) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    plain = tvm.ir.Op.get(name).get_attr("FLegalize")

    def legalise(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        dilation = [int(distance) for distance in call.attrs.dilation]
        if all(distance == 1 for distance in dilation) or str(call.attrs.data_layout) != NAMES[name]:
            return plain(builder, call)
        hint = name.rpartition(".")[2]
        return builder.call_te(_sum_over_taps, *call.args, call.attrs, str(call.ty.dtype), primfunc_name_hint=hint)

    return legalise


def _sum_over_taps(data: te.Tensor, kernel: te.Tensor, attrs: Any, dtype: str) -> te.Tensor:
    """∑ over input channels of the group and taps k of spread[y + k · dilation] · kernel[−k], turned by 180 degrees."""
    stride, dilation, extra = (
        [int(n) for n in values] for values in (attrs.strides, attrs.dilation, attrs.output_padding)
    )
    pads, groups, spatial = [int(n) for n in attrs.padding], int(attrs.groups), len(stride)
    batch, channels, *_ = data.shape
    _, made, *taps = (int(dim) for dim in kernel.shape)
    ends = [(size - 1) * distance for size, distance in zip(taps, dilation, strict=True)]
    before = [end - pad for end, pad in zip(ends, pads[:spatial], strict=True)]
    after = [end - pad + more for end, pad, more in zip(ends, pads[spatial:], extra, strict=True)]
    spread = topi.nn.pad(topi.nn.dilate(data, [1, 1, *stride]), [0, 0, *before], [0, 0, *after], name="spread")
    read = int(channels) // groups
    channel = te.reduce_axis((0, read), name="channel")
    steps = [te.reduce_axis((0, size), name=f"tap{axis}") for axis, size in enumerate(taps)]

    def total(image: Any, out: Any, *place: Any) -> Any:
        source = channel if groups == 1 else out // made * read + channel
        at = [y + step * distance for y, step, distance in zip(place, steps, dilation, strict=True)]
        turned = [size - 1 - step for size, step in zip(taps, steps, strict=True)]
        value = spread[(image, source, *at)].astype(dtype)
        weight = kernel[(source, out if groups == 1 else out % made, *turned)].astype(dtype)
        return te.sum(value * weight, [channel, *steps])

    shape = [int(dim) - end for dim, end in zip(spread.shape[2:], ends, strict=True)]
    return te.compute((batch, made * groups, *shape), total, name="transposed")


LEGALISED = {name: _legalised(name) for name in NAMES}
