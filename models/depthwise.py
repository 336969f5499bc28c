"""A depthwise 3×3 convolution that trains fast on CPUs, where PyTorch's own takes most of a step.

The C source beside this file is compiled once, at first use; without a C compiler the network trains with PyTorch's
own convolution, with the same results and more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from tvmflow.spec import MissingDependencyError
from tvmflow.system.toolchain import native_library

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-shared", "-fPIC")


class _Shape(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_long)
        for name in ("batch", "channels", "height", "width", "out_height", "out_width", "stride", "dilation")
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there is no C compiler."""
    try:
        return ctypes.CDLL(str(native_library(SOURCE, FLAGS)))
    except MissingDependencyError:
        return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


PARTS = 8  # runs of images; each has its own sums of the weight gradient, whatever the number of threads


def _run(function: ctypes._NamedFuncPointer, shape: _Shape, *tensors: torch.Tensor) -> None:
    """Call `function` on each run of images; ctypes lets go of the interpreter meanwhile.

    The last tensor of the backward pass, the weight gradient, has a row for each run.
    """
    parts = min(PARTS, shape.batch)
    bounds = [shape.batch * index // parts for index in range(parts + 1)]
    runs = [(ctypes.c_long(first), ctypes.c_long(last)) for first, last in itertools.pairwise(bounds)]

    def call(part: int) -> int:
        rows = [tensor[part] if tensor.ndim == 3 else tensor for tensor in tensors]
        return function(ctypes.byref(shape), *runs[part], *(ctypes.c_void_p(row.data_ptr()) for row in rows))

    if any(_pool(torch.get_num_threads()).map(call, range(parts))):
        raise MemoryError("no memory for a layer's weights")


class _Depthwise(torch.autograd.Function):
    """Maps are N×C×H×W in channels_last memory, weights 9×C."""

    @staticmethod
    def forward(ctx, x, weight, stride, dilation):
        kernels = library()
        assert kernels is not None
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        ctx.shape = _Shape(batch, channels, height, width, out_height, out_width, stride, dilation)
        ctx.save_for_backward(x, weight)
        size = (batch, channels, out_height, out_width)
        out = torch.empty(size, memory_format=torch.channels_last)
        _run(kernels.depthwise_forward, ctx.shape, x, weight, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        kernels = library()
        assert kernels is not None
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight = torch.empty_like(x), weight.new_empty(min(PARTS, len(x)), *weight.shape)
        _run(kernels.depthwise_backward, ctx.shape, x, weight, grad, grad_x, grad_weight)
        return grad_x, grad_weight.sum(0), None, None


def depthwise(x: torch.Tensor, weight: torch.Tensor, stride: int, dilation: int) -> torch.Tensor:
    """Depthwise 3×3 convolution, padding = dilation: x float32 N×C×H×W, weight C×1×3×3 → N×C×⌈H/stride⌉×⌈W/stride⌉."""
    if library() is None or x.dtype != torch.float32:
        return functional.conv2d(x, weight, None, stride, dilation, dilation, x.shape[1])
    return _Depthwise.apply(x, weight.reshape(-1, 9).t().contiguous(), stride, dilation)


def use_fast_depthwise(network: nn.Module) -> nn.Module:
    """Let every depthwise 3×3 layer of `network` compute with `depthwise`; names and weights stay as they are."""
    for layer in network.modules():
        if (
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (3, 3)
            and layer.groups == layer.in_channels == layer.out_channels
            and layer.padding == layer.dilation
            and layer.bias is None
        ):
            layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]
    return network


def _forward(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return depthwise(x.float(), layer.weight, layer.stride[0], layer.dilation[0])
