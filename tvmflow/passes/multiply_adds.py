"""How much arithmetic an operator is, as the original network counts it."""

from __future__ import annotations

import math

from tvm import relax, tirx

from tvmflow.schedules.convolutions import read_convolutions


def multiply_adds(value: relax.Expr) -> int:
    """Multiply-adds of a convolution or matrix product of static shape, padding counted as work; 0 for all else."""
    name = getattr(getattr(value, "op", None), "name", "")
    if name.startswith("relax.nn.conv") and "transpose" not in name:
        output, weight = static_shape(value.ty), static_shape(value.args[1].ty)
        out_channels = weight[str(value.attrs.kernel_layout).index("O")]
        return math.prod(output) * math.prod(weight) // out_channels
    if name.startswith("relax.nn.conv"):
        inputs, weight = static_shape(value.args[0].ty), static_shape(value.args[1].ty)
        in_channels = weight[str(value.attrs.kernel_layout).index("I")]
        return math.prod(inputs) * math.prod(weight) // in_channels
    if name == "relax.matmul":
        return math.prod(static_shape(value.ty)) * static_shape(value.args[0].ty)[-1]
    return 0


def live_macs(func: tirx.PrimFunc, macs: int) -> int:
    """Multiply-adds of a kernel that read the input and not its border; `macs` where it isn't of convolutions."""
    found = read_convolutions(func)
    total = 0
    for conv in found:
        every = math.prod(conv.out_size) * math.prod(conv.kernel)
        total += conv.macs * conv.window.live_taps() // every
    return total if found else macs


def static_shape(tensor: relax.TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in tensor.shape.values)
