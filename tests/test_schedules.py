"""Every rule against torch, over odd sizes, dilations, strides and borders; and what the rules decline."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional
from tvm import relax, tirx

import tvmflow.schedules.cpu
from tvmflow.passes.relayout import Blocked, Layout, Panels, Transposed, relayout
from tvmflow.schedules import convolutions
from tvmflow.schedules.cpu import RULES, conv_blocked, pointwise_blocked, tiles
from tvmflow.schedules.winograd import define, transform_weights
from tvmflow.spec import Target
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS
from tvmflow.targets.cpu.passes.block_channels import block_length, weight_block

HOST = replace(TARGETS["host"], cpu=replace(TARGETS["host"].cpu, cores=4))
NARROW = replace(HOST, tvm={**HOST.tvm, "mcpu": "x86-64"})
"""This computer, if it had vectors of 128 bits."""
LABELS = ("host", "shared")
"""How kernels are compiled, see `libraries`."""


def pairwise(*factors: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Few of the combinations of one value of each factor, among them every pair of values of any two factors.

    A rule that is wrong for one value, or for two of them together, shows in one of these as it does in all
    combinations. Each is the first of those that have the most pairs not seen before, so the choice never changes.
    """

    def pairs(row: tuple[Any, ...]) -> set[tuple[Any, ...]]:
        return set(itertools.combinations(enumerate(row), 2))

    rows = list(itertools.product(*factors))
    left = set().union(*map(pairs, rows))
    chosen = []
    while left:
        chosen.append(max(rows, key=lambda row: len(left & pairs(row))))
        left -= pairs(chosen[-1])
    return chosen


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Operators to be fused into one kernel, and what they compute: `emit(*variables)` and `oracle(*tensors)`.

    `blocked` are the arguments that have their channels in blocks, the result being the last of all arguments;
    `packed` says that a convolution's weights are so, which they are with any of these; `turned` that the second
    argument is a matrix by columns, or in `panels` of so many; and `winograd` is the m of a convolution in blocks whose
    weights were transformed for F(m×m, 3×3), else 0. It is compiled in the ways of `labels`.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    emit: Callable[..., relax.Expr]
    oracle: Callable[..., torch.Tensor]
    dtype: str = "float32"
    blocked: tuple[int, ...] = ()
    packed: bool = False
    turned: bool = False
    panels: int = 0
    winograd: int = 0
    labels: tuple[str, ...] = LABELS

    def layouts(self, target: Target) -> dict[int, Layout]:
        """Of the arguments that don't lie as they always do."""
        if self.turned:
            return {1: Transposed()}
        if self.panels:
            return {1: Panels(self.panels)}
        if not self.blocked and not self.packed:
            return {}
        lengths: dict[int, Layout] = {place: Blocked(1, block_length(target)) for place in self.blocked}
        conv = _read(self)
        if conv is None:
            return lengths
        to_blocks = len(self.shapes) in self.blocked
        block = weight_block(conv, target) if to_blocks else conv_blocked.weight_block(conv.channels, target)
        return {**lengths, 1: Blocked(0, block)}

    def prim_func(self, target: Target = HOST) -> tirx.PrimFunc:
        return _laid_out(self, tuple(self.layouts(target).items()))

    def laid_out(self, target: Target, *arrays: np.ndarray) -> list[np.ndarray]:
        """All arguments, or all but the result, as the kernel takes them."""
        layouts = dict(self.layouts(target))
        if self.winograd:
            weight = layouts.pop(1)
            transformed = transform_weights(arrays[1], self.winograd, weight.length)
            arrays = (arrays[0], transformed, *arrays[2:])
        return [layouts[place].array(array) if place in layouts else array for place, array in enumerate(arrays)]

    def arrays(self) -> list[np.ndarray]:
        generator = np.random.default_rng(0)
        return [generator.standard_normal(shape).astype(self.dtype) for shape in self.shapes]


@functools.cache
def _fused(kernel: Kernel) -> tirx.PrimFunc:
    """The kernel with all its arguments as they always lie; made once, as tests ask for it many times."""
    builder = relax.BlockBuilder()
    variables = [
        relax.Var(f"input{index}", relax.TensorType(shape, kernel.dtype)) for index, shape in enumerate(kernel.shapes)
    ]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(kernel.emit(builder, *variables))
        builder.emit_func_output(result)
    module = tvm.ir.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
        ]
    )(builder.get())
    (func,) = (func for func in module.functions.values() if isinstance(func, tirx.PrimFunc))
    return func


@functools.cache
def _laid_out(kernel: Kernel, layouts: tuple[tuple[int, Layout], ...]) -> tirx.PrimFunc:
    """The same function for the same question, of which rules remember what they have read."""
    func = relayout(_fused(kernel), dict(layouts))
    return define(func, kernel.winograd) if kernel.winograd else func


@functools.cache
def _read(kernel: Kernel) -> convolutions.Convolution | None:
    """What a rule would read off `_fused`."""
    return convolutions.read_convolution(_fused(kernel))


def convolution(
    size: Sequence[int],
    weight: Sequence[int],
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    groups: int = 1,
    tail: str = "",
    dtype: str = "float32",
) -> Kernel:
    """`size` is N, C, H, W; `padding` top, left, bottom, right; `tail` some of "bias", "relu", "silu", "residual"."""
    height, width = (
        (size[2 + axis] + padding[axis] + padding[2 + axis] - dilation[axis] * (weight[2 + axis] - 1) - 1)
        // stride[axis]
        + 1
        for axis in (0, 1)
    )
    bias = [(1, weight[0], 1, 1)] if "bias" in tail else []
    residual = [(size[0], weight[0], height, width)] if "residual" in tail else []

    def emit(builder, data, kernel, *more):
        value = relax.op.nn.conv2d(
            data, kernel, strides=list(stride), padding=list(padding), dilation=list(dilation), groups=groups
        )
        for other in more:
            value = relax.op.add(builder.emit(value), other)
        if "relu" in tail:
            value = relax.op.nn.relu(builder.emit(value))
        if "silu" in tail:
            value = relax.op.nn.silu(builder.emit(value))
        return value

    def oracle(data, kernel, *more):
        top, left, bottom, right = padding
        bordered = functional.pad(data, (left, right, top, bottom))
        value = functional.conv2d(bordered, kernel, stride=stride, dilation=dilation, groups=groups)
        for other in more:
            value = value + other
        if "relu" in tail:
            value = value.relu()
        return functional.silu(value) if "silu" in tail else value

    words = ["x".join(map(str, numbers)) for numbers in (size, weight, stride, dilation, padding)]
    name = f"conv_{words[0]}_w{words[1]}_s{words[2]}_d{words[3]}_p{words[4]}_g{groups}_{tail}_{dtype}"
    return Kernel(
        name=name.replace("+", "_"),
        shapes=(tuple(size), tuple(weight), *bias, *residual),
        emit=emit,
        oracle=oracle,
        dtype=dtype,
    )


def labelled(label: str, kernel: Kernel) -> Kernel:
    """`kernel` in that way only, as one of a `pairwise` choice that has LABELS among its factors."""
    return replace(kernel, labels=(label,))


def depthwise(size: Sequence[int], **options) -> Kernel:
    taps = options.pop("taps", (3, 3))
    return convolution(size, (size[1], 1, *taps), groups=size[1], **options)


def plain(name: str, emit: Callable, oracle: Callable, *shapes: tuple[int, ...]) -> Kernel:
    return Kernel(name=name, shapes=shapes, emit=lambda builder, *variables: emit(*variables), oracle=oracle)


POINTWISE = [
    plain(
        "gated",
        lambda a, b: relax.op.multiply(relax.op.nn.conv2d(a, b), a),
        lambda a, b: functional.conv2d(a, b) * a,
        (1, 4, 8, 8),
        (4, 4, 1, 1),
    ),
    *(
        convolution((batch, channels_in, *size), (channels, channels_in, 1, 1), tail=tail)
        for batch, channels_in, channels, size, tail in (
            (1, 3, 32, (32, 32), "bias+relu"),  # the network's own
            (1, 32, 64, (32, 32), "bias+relu"),
            (1, 64, 128, (16, 16), "bias+relu"),
            (1, 256, 512, (8, 8), "bias+relu"),
            (1, 512, 1024, (4, 4), "bias+relu"),
            (1, 16, 24, (7, 7), ""),
            (1, 33, 37, (5, 3), "bias"),
            (2, 8, 5, (7, 7), "bias+relu"),
            (3, 12, 30, (14, 14), "silu"),
            (1, 7, 1, (9, 9), "bias"),
            (1, 5, 3, (2, 2), "relu"),
            (1, 1, 6, (6, 6), "bias"),
            (1, 17, 19, (19, 19), "bias+residual+relu"),
            (2, 40, 13, (1, 37), "bias"),
            (1, 24, 48, (56, 56), "bias+relu"),
        )
    ),
]

DEPTHWISE = [
    *(
        labelled(
            label, depthwise((1, 5, *size), dilation=(d, d), padding=(d, d, d, d), tail="bias+relu" if d % 2 else "")
        )
        for d, size, label in pairwise(range(1, 8), ((32, 32), (8, 8), (4, 4), (7, 7), (5, 3)), LABELS)
    ),
    *(
        labelled(label, depthwise((1, 6, *size), stride=(s, s), padding=(p, p, p, p), tail="bias"))
        for s, p, size, label in pairwise((1, 2, 3), (0, 1, 2), ((32, 32), (9, 7), (4, 4)), LABELS)
    ),
    depthwise((1, 4, 20, 20), dilation=(2, 5), padding=(2, 5, 2, 5)),
    depthwise((1, 4, 20, 20), dilation=(7, 1), padding=(7, 1, 7, 1), tail="bias+residual+relu"),
    depthwise((2, 7, 13, 17), stride=(2, 1), dilation=(1, 3), padding=(1, 3, 1, 3), tail="relu"),
    depthwise((3, 3, 11, 6), stride=(1, 2), dilation=(4, 2), padding=(4, 0, 3, 5)),
    depthwise((1, 8, 16, 16), stride=(2, 2), padding=(0, 0, 1, 1), tail="bias+silu"),
    depthwise((1, 3, 112, 112), padding=(1, 1, 1, 1)),
    depthwise((1, 2, 150, 97), stride=(2, 2), padding=(1, 1, 1, 1)),
    depthwise((1, 5, 14, 14), taps=(5, 5), padding=(2, 2, 2, 2)),
    depthwise((1, 5, 14, 14), taps=(1, 3), padding=(0, 1, 0, 1)),
    depthwise((1, 5, 14, 14), taps=(2, 2)),
    depthwise((1, 5, 6, 1), padding=(1, 1, 1, 1)),
    depthwise((1, 1, 6, 6), padding=(1, 1, 1, 1)),
    depthwise((1, 300, 4, 4), dilation=(5, 5), padding=(5, 5, 5, 5), tail="bias"),
]

DEPTHWISE_ROWS = [
    *(
        labelled(
            label, depthwise((1, 5, *size), dilation=(d, d), padding=(d, d, d, d), tail="bias+relu" if d % 2 else "")
        )
        for d, size, label in pairwise((1, 2, 5, 7), ((32, 32), (8, 8), (4, 4), (21, 43)), LABELS)
    ),
    *(
        labelled(label, depthwise((1, 6, *size), stride=(s, s), padding=(p, p, p, p), tail="bias"))
        for (s, p), size, label in pairwise(((1, 0), (1, 5), (2, 0), (2, 1), (2, 5)), ((32, 32), (9, 11)), LABELS)
    ),
    depthwise((1, 4, 20, 20), dilation=(2, 5), padding=(2, 5, 2, 5)),
    depthwise((1, 4, 20, 20), dilation=(7, 1), padding=(7, 1, 7, 1), tail="bias+residual+relu"),
    depthwise((2, 7, 13, 17), stride=(2, 1), dilation=(1, 3), padding=(1, 3, 1, 3), tail="relu"),
    depthwise((3, 3, 11, 12), stride=(1, 2), dilation=(4, 2), padding=(4, 0, 3, 5)),
    depthwise((2, 3, 16, 40), stride=(3, 2), dilation=(2, 3), padding=(1, 3, 1, 4)),
    depthwise((1, 8, 16, 16), stride=(2, 2), padding=(0, 0, 1, 1), tail="bias+silu"),
    depthwise((1, 2, 50, 97), stride=(2, 2), padding=(1, 1, 1, 1)),
    depthwise((1, 5, 14, 14), taps=(5, 5), padding=(2, 2, 2, 2)),
    depthwise((1, 5, 14, 15), taps=(5, 5), stride=(2, 2), padding=(2, 2, 2, 2), tail="bias"),
    depthwise((1, 8, 16, 16), taps=(7, 7), padding=(3, 3, 3, 3)),
    depthwise((1, 5, 14, 14), taps=(1, 3), padding=(0, 1, 0, 1)),
    depthwise((1, 5, 14, 14), taps=(2, 2)),
    depthwise((1, 3, 8, 8), dilation=(2, 2), padding=(9, 9, 9, 9), tail="bias"),
    depthwise((2, 7, 4, 4), stride=(2, 2), padding=(1, 1, 1, 1), tail="bias+residual+relu"),
    depthwise((1, 7, 4, 4), stride=(2, 2), dilation=(3, 5), padding=(3, 5, 3, 5)),
    depthwise((1, 7, 10, 3), stride=(3, 1), padding=(1, 1, 1, 1), tail="bias"),
    depthwise((1, 2, 5, 8), padding=(1, 20, 1, 20)),  # vectors that meet the border only
    depthwise((1, 300, 4, 4), dilation=(5, 5), padding=(5, 5, 5, 5), tail="bias"),
]

DIRECT = [
    *(
        labelled(
            label,
            convolution(
                (1, 5, *size), (7, 5, 3, 3), stride=(s, s), dilation=(d, d), padding=(d, d, d, d), tail="bias+relu"
            ),
        )
        for (s, d), size, label in pairwise(
            ((1, 1), (2, 1), (1, 2), (1, 5), (2, 3)), ((32, 32), (9, 7), (8, 15)), LABELS
        )
    ),
    convolution((2, 3, 33, 31), (16, 3, 7, 7), stride=(2, 2), padding=(3, 3, 3, 3), tail="bias+relu"),
    convolution((1, 16, 9, 9), (24, 16, 1, 1), stride=(2, 2)),
    convolution((1, 16, 9, 9), (24, 16, 1, 1), padding=(1, 1, 1, 1), tail="bias"),
    convolution((3, 4, 12, 17), (9, 4, 1, 5), padding=(0, 2, 0, 2), tail="bias+residual+relu"),
    convolution((1, 8, 20, 20), (8, 8, 3, 3), tail="silu"),
    convolution((1, 8, 14, 14), (32, 8, 3, 3), padding=(0, 0, 1, 1), stride=(2, 2)),
    convolution((1, 3, 11, 23), (2, 3, 4, 2), stride=(1, 3), dilation=(2, 7), padding=(3, 8, 0, 1)),
    convolution((1, 64, 28, 28), (64, 64, 3, 3), padding=(1, 1, 1, 1), tail="bias+relu"),
]

LANES = [
    plain(
        "mean",
        lambda x: relax.op.mean(x, [2, 3], keepdims=True),
        lambda x: x.mean((2, 3), keepdim=True),
        (2, 700, 16, 16),
    ),
    plain("matmul", relax.op.matmul, torch.matmul, (33, 64), (64, 48)),
    plain(
        "max_pool",
        lambda x: relax.op.nn.max_pool2d(x, [3, 3], [1, 1], [1, 1]),
        lambda x: functional.max_pool2d(x, 3, 1, 1),
        (1, 40, 32, 32),
    ),
    plain("gelu", relax.op.nn.gelu, functional.gelu, (4, 99, 33, 31)),
    plain("add", relax.op.add, torch.add, (3, 64, 64, 64), (64, 1, 1)),
    plain("softmax", relax.op.nn.softmax, lambda x: x.softmax(-1), (8000, 64)),
    plain("sum_of_rows", lambda x: relax.op.sum(x, [-1]), lambda x: x.sum(-1), (5, 40, 96)),
    plain("max_of_rows", lambda x: relax.op.max(x, [-1]), lambda x: x.amax(-1), (300, 200)),
    convolution((1, 24, 33, 33), (20, 12, 3, 3), groups=2, padding=(1, 1, 1, 1), tail="bias+relu"),
]
"""Kernels large enough that the fallback has something to do."""

OTHERS = [
    convolution((1, 16, 8, 8), (16, 16, 1, 1), dtype="float64"),
    convolution((1, 16, 8, 8), (16, 16, 1, 1), dtype="float16"),
    convolution((1, 16, 8, 8), (24, 8, 1, 1), groups=2),
    convolution((1, 16, 8, 8), (32, 1, 3, 3), groups=16, padding=(1, 1, 1, 1), tail="bias"),  # two filters a channel
    convolution((1, 512, 1, 1), (10, 512, 1, 1), tail="bias"),
    depthwise((1, 8, 16, 16), taps=(15, 15), padding=(7, 7, 7, 7)),
    depthwise((1, 8, 16, 16), padding=(1, 1, 1, 1), dtype="float64"),
    plain("dense", relax.op.matmul, torch.matmul, (1, 1024), (1024, 10)),
    plain("transposed", relax.op.nn.conv2d_transpose, functional.conv_transpose2d, (1, 6, 8, 8), (6, 4, 3, 3)),
    plain("permute", lambda x: relax.op.permute_dims(x, [0, 2, 3, 1]), lambda x: x.permute(0, 2, 3, 1), (1, 8, 5, 7)),
    plain(
        "nhwc",
        lambda a, b: relax.op.nn.conv2d(a, b, data_layout="NHWC", kernel_layout="OHWI"),
        lambda a, b: functional.conv2d(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)).permute(0, 2, 3, 1),
        (1, 8, 8, 16),
        (24, 1, 1, 16),
    ),
    plain(
        "iohw",
        lambda a, b: relax.op.nn.conv2d(a, b, kernel_layout="IOHW"),
        lambda a, b: functional.conv2d(a, b.permute(1, 0, 2, 3)),
        (1, 16, 8, 8),
        (16, 16, 1, 1),
    ),
    plain("conv1d", relax.op.nn.conv1d, functional.conv1d, (1, 6, 40), (8, 6, 3)),
    plain("conv3d", relax.op.nn.conv3d, functional.conv3d, (1, 3, 5, 6, 7), (4, 3, 1, 1, 1)),
    plain(
        "broadcast",
        lambda a, b, c: relax.op.add(relax.op.nn.conv2d(a, b), c),
        lambda a, b, c: functional.conv2d(a, b) + c,
        (1, 4, 1, 8),
        (5, 4, 1, 1),
        (1, 5, 6, 8),
    ),
]
"""Kernels that look like a rule's own and aren't, or aren't anyone's."""


def in_blocks(kernel: Kernel, *, plain: tuple[int, ...] = ()) -> Kernel:
    """`kernel` with its channels in blocks; biases and the `plain` arguments (-1 is the result) stay as they are."""
    whole = [place for place, shape in enumerate(kernel.shapes) if place not in (1, *plain) and shape[2:] != (1, 1)]
    result = [] if -1 in plain else [len(kernel.shapes)]
    return replace(kernel, name=f"{kernel.name}_plain{plain}", blocked=(*whole, *result), packed=True)


BLOCKED_POINTWISE = [
    in_blocks(convolution((batch, channels_in, *size), (channels, channels_in, 1, 1), tail=tail), plain=plain)
    for batch, channels_in, channels, size, tail, plain in (
        (1, 3, 32, (32, 32), "bias+relu", (0,)),  # the network's own
        (1, 32, 64, (32, 32), "bias+relu", ()),
        (1, 64, 128, (16, 16), "bias+relu", ()),
        (1, 256, 512, (8, 8), "bias+relu", ()),
        (1, 1024, 256, (4, 4), "bias+relu", ()),
        (1, 16, 48, (7, 7), "", ()),
        (1, 17, 16, (5, 3), "bias", (0,)),
        (2, 48, 80, (7, 7), "bias+relu", ()),
        (3, 32, 16, (14, 14), "silu", ()),
        (1, 33, 96, (2, 2), "relu", (0,)),
        (1, 16, 16, (19, 19), "bias+residual+relu", ()),
        (2, 16, 112, (1, 37), "bias", ()),
        (4, 80, 160, (3, 2), "bias+residual", ()),
        (32, 32, 48, (5, 4), "bias+relu", ()),
        (1, 7, 64, (1, 5), "bias", (0,)),
    )
]

BLOCKED_DEPTHWISE = [
    in_blocks(kernel)
    for kernel in (
        *(
            depthwise((1, 32, *size), dilation=(d, d), padding=(d, d, d, d), tail="bias+relu" if d % 2 else "")
            for d, size in (
                (1, (32, 32)),
                (2, (7, 7)),
                (3, (8, 8)),
                (4, (5, 3)),
                (5, (32, 32)),
                (5, (8, 8)),
                (7, (4, 4)),
            )
        ),
        *(
            depthwise((1, 48, *size), stride=(s, s), padding=(p, p, p, p), tail="bias")
            for s, p, size in (
                (1, 0, (9, 7)),
                (2, 1, (9, 7)),
                (2, 1, (32, 32)),
                (3, 2, (9, 7)),
                (3, 4, (4, 4)),
                (1, 2, (4, 4)),
            )
        ),
        depthwise((1, 16, 17, 21), taps=(9, 9), padding=(4, 4, 4, 4), tail="bias+residual+relu"),
        depthwise((2, 32, 9, 30), taps=(7, 7), padding=(3, 3, 3, 3), stride=(2, 2), tail="bias"),
        depthwise((1, 16, 40, 5), taps=(13, 11), padding=(5, 6, 7, 5), dilation=(2, 1)),
        depthwise((1, 16, 20, 20), dilation=(2, 5), padding=(2, 5, 2, 5)),
        depthwise((1, 16, 20, 20), dilation=(7, 1), padding=(7, 1, 7, 1), tail="bias+residual+relu"),
        depthwise((2, 80, 13, 17), stride=(2, 1), dilation=(1, 3), padding=(1, 3, 1, 3), tail="relu"),
        depthwise((3, 16, 11, 6), stride=(1, 2), dilation=(4, 2), padding=(4, 0, 3, 5)),
        depthwise((1, 16, 16, 16), stride=(2, 2), padding=(0, 0, 1, 1), tail="bias+silu"),
        depthwise((1, 16, 112, 112), padding=(1, 1, 1, 1)),
        depthwise((1, 16, 150, 97), stride=(2, 2), padding=(1, 1, 1, 1)),
        depthwise((1, 32, 14, 14), taps=(5, 5), padding=(2, 2, 2, 2)),
        depthwise((1, 32, 14, 14), taps=(1, 3), padding=(0, 1, 0, 1)),
        depthwise((1, 32, 14, 14), taps=(2, 2)),
        depthwise((1, 32, 1, 6), taps=(1, 3), padding=(0, 1, 0, 1)),
        depthwise((1, 320, 4, 4), dilation=(5, 5), padding=(5, 5, 5, 5), tail="bias"),
        depthwise((1, 16, 3, 3), dilation=(2, 2), padding=(9, 9, 9, 9), tail="bias"),  # rows that meet the border only
    )
]

# As narrow as they can be while an axis has all kinds of tiles: TVM's time goes with the square of the taps × pixels in
# the code, and tiles at the border have code of their own.
BLOCKED_CONV = [
    *(
        labelled(
            label,
            in_blocks(
                convolution(
                    (1, 32, *size),
                    (channels, 32, 3, 3),
                    stride=(s, s),
                    dilation=(d, d),
                    padding=(d, d, d, d),
                    tail="bias+relu",
                )
            ),
        )
        # blocks of one vector and of two, which are twice the code
        for (s, d), size, channels, label in pairwise(
            ((1, 1), (2, 1), (1, 2), (2, 3)), ((16, 16), (9, 7), (4, 4)), (16, 32), LABELS
        )
    ),
    *(
        in_blocks(kernel, plain=plain)
        for plain, kernel in (
            ((0,), convolution((1, 3, 11, 19), (64, 3, 3, 3), padding=(1, 1, 1, 1), tail="bias+relu")),
            ((0,), convolution((2, 3, 19, 17), (16, 3, 7, 7), stride=(2, 2), padding=(3, 3, 3, 3), tail="bias+relu")),
            ((0,), convolution((2, 5, 13, 7), (48, 5, 5, 5), dilation=(1, 2), padding=(2, 4, 2, 4), tail="bias")),
            ((0, -1), convolution((1, 5, 9, 7), (24, 5, 3, 3), padding=(1, 1, 1, 1), tail="bias+relu")),
            ((0, 3, -1), convolution((1, 3, 8, 15), (7, 3, 3, 3), stride=(2, 2), tail="bias+residual+relu")),
            ((-1,), convolution((1, 64, 8, 8), (10, 64, 1, 1), tail="bias+relu")),
            ((3, -1), convolution((3, 16, 6, 5), (20, 16, 3, 3), padding=(1, 1, 1, 1), tail="bias+residual")),
            ((-1,), convolution((1, 16, 7, 1), (28, 16, 3, 1), padding=(1, 0, 1, 0), tail="bias")),
            ((), convolution((1, 16, 9, 9), (96, 16, 1, 1), stride=(2, 2))),
            ((), convolution((2, 16, 9, 9), (16, 16, 1, 1), padding=(1, 1, 1, 1), tail="bias")),
            ((), convolution((3, 16, 12, 17), (80, 16, 1, 5), padding=(0, 2, 0, 2), tail="bias+residual+relu")),
            ((), convolution((1, 16, 14, 14), (32, 16, 3, 3), stride=(2, 2), padding=(0, 0, 1, 1), tail="silu")),
            ((), convolution((1, 16, 11, 23), (16, 16, 4, 2), stride=(1, 3), dilation=(2, 7), padding=(3, 8, 0, 1))),
            ((), convolution((1, 16, 3, 3), (16, 16, 3, 3), dilation=(2, 2), padding=(9, 9, 9, 9), tail="bias")),
            ((0, -1), convolution((1, 8, 9, 23), (8, 8, 3, 19), padding=(1, 9, 1, 9), tail="bias+relu")),
            ((0, -1), convolution((1, 1, 1, 999), (32, 1, 1, 256), stride=(1, 16), tail="bias")),
            ((), convolution((2, 16, 15, 33), (16, 16, 7, 13), stride=(2, 1), dilation=(2, 1), padding=(5, 6, 4, 6))),
            ((), convolution((1, 32, 1, 1), (32, 32, 3, 3), padding=(1, 1, 1, 1), tail="bias")),
            ((), convolution((1, 128, 2, 2), (64, 128, 3, 3), padding=(1, 1, 1, 1), tail="bias+relu")),
        )
    ),
]

BLOCKED_CONCAT = [
    replace(
        plain(
            f"concat{len(shapes)}",
            lambda *parts: relax.op.concat(parts, 1),
            lambda *parts: torch.cat(parts, 1),
            *shapes,
        ),
        blocked=tuple(range(len(shapes) + 1)),
    )
    for shapes in (
        ((1, 64, 16, 16), (1, 64, 16, 16)),
        ((2, 16, 5, 7), (2, 48, 5, 7)),
        ((3, 32, 1, 4), (3, 16, 1, 4), (3, 80, 1, 4)),
    )
]

DENSE = [
    Kernel(
        name=f"dense_{rows}x{inputs}x{outputs}_{tail}",
        shapes=((rows, inputs), (inputs, outputs), *([(outputs,)] if tail else [])),
        emit=lambda builder, x, weight, *bias: (
            relax.op.nn.relu(builder.emit(relax.op.add(builder.emit(relax.op.matmul(x, weight)), bias[0])))
            if bias
            else relax.op.matmul(x, weight)
        ),
        oracle=lambda x, weight, *bias: (x @ weight + bias[0]).relu() if bias else x @ weight,
        turned=True,
    )
    for rows, inputs, outputs, tail in (
        (1, 1024, 10, "bias"),
        (1, 48, 37, ""),
        (3, 36, 3, "bias"),
        (2, 100, 17, ""),
        (1, 8, 1, "bias"),
        (1, 512, 512, "bias"),
        (1, 12, 12, "bias"),
        (2, 2048, 1000, ""),
        (1, 154, 462, "bias"),
        (1, 7, 5, "bias"),
        (2, 15, 9, ""),
        (1, 31, 4, "bias"),
    )
]


def product(data: tuple[int, ...], weight: tuple[int, ...], *, tail: str = "", **options) -> Kernel:
    """`tail` is some of "bias", "residual", "gelu", "relu"; `weight` is (…, inputs, outputs)."""
    result = (*np.broadcast_shapes(data[:-2], weight[:-2]), data[-2], weight[-1])
    more = [shape for word, shape in (("bias", weight[-1:]), ("residual", result)) if word in tail]

    def emit(builder, x, matrix, *others):
        value = relax.op.matmul(x, matrix)
        for other in others:
            value = relax.op.add(builder.emit(value), other)
        for word, function in (("gelu", relax.op.nn.gelu), ("relu", relax.op.nn.relu)):
            value = function(builder.emit(value)) if word in tail else value
        return value

    def oracle(x, matrix, *others):
        value = sum(others, x @ matrix)
        for word, function in (("gelu", functional.gelu), ("relu", functional.relu)):
            value = function(value) if word in tail else value
        return value

    words = ["x".join(map(str, shape)) for shape in (data, weight)]
    name = f"product_{words[0]}_w{words[1]}_{tail.replace('+', '_')}_{'_'.join(options)}"
    return Kernel(name=name, shapes=(data, weight, *more), emit=emit, oracle=oracle, **options)


PRODUCTS = [
    *(
        labelled(label, product((rows, inputs), (inputs, outputs), tail=tail))
        for rows, inputs, outputs, tail, label in pairwise(
            (2, 7, 16, 65), (1, 3, 64, 200), (4, 17, 48, 130), ("", "bias+gelu", "bias+residual"), LABELS
        )
    ),
    product((3, 65, 64), (3, 64, 65)),
    product((2, 3, 5, 9), (9, 21), tail="bias+relu"),
    product((2, 1, 6, 20), (1, 3, 20, 33), tail="residual"),
    product((7, 1, 12), (12, 19), tail="bias"),
    product((1, 10, 8), (4, 8, 16)),
    product((1, 1, 9, 31), (2, 2, 31, 8), tail="gelu"),
    product((17, 33), (33, 40), tail="bias+gelu", turned=True),
    product((70, 5), (5, 37), turned=True),
    product((13, 30), (30, 64), tail="bias+residual+gelu", panels=32),
    product((9, 64), (64, 48), tail="bias", panels=16),
    product((33, 64), (64, 96), panels=48),
]

BLOCKED_LANES = [
    replace(LANES[0], name="mean_blocked", shapes=((2, 704, 16, 16),), blocked=(0,)),
    replace(LANES[2], name="max_pool_blocked", shapes=((1, 48, 32, 31),), blocked=(0, 1)),
    replace(
        plain(
            "max_pool_of_stride_2",
            lambda x: relax.op.nn.max_pool2d(x, [2, 2], [2, 2]),
            lambda x: functional.max_pool2d(x, 2),
            (2, 32, 9, 7),
        ),
        blocked=(0, 1),
    ),
    replace(
        plain("add_blocked", relax.op.add, torch.add, (3, 64, 7, 5), (3, 64, 7, 5)),
        blocked=(0, 1, 2),
    ),
]

SEGMENTS = [
    plain("concat", lambda *x: relax.op.concat(x, 1), lambda *x: torch.cat(x, 1), (2, 3, 5, 7), (2, 4, 5, 7)),
    plain("concat_last", lambda *x: relax.op.concat(x, 2), lambda *x: torch.cat(x, 2), (3, 5, 1), (3, 5, 8), (3, 5, 2)),
    plain("stack", lambda *x: relax.op.stack(x, 0), lambda *x: torch.stack(x), *[(1, 24)] * 40),
    plain(
        "border", lambda x: relax.op.nn.pad(x, [0, 0, 2, 1, 0, 3]), lambda x: functional.pad(x, (0, 3, 2, 1)), (4, 6, 5)
    ),
    plain(
        "pad",
        lambda x: relax.op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 2], pad_value=3.5),
        lambda x: functional.pad(x, (1, 2, 1, 1), value=3.5),
        (2, 16, 64, 48),
    ),
    plain("wide", lambda *x: relax.op.concat(x, 0), lambda *x: torch.cat(x, 0), (20, 64, 64), (33, 64, 64)),
]
"""Kernels with conditions on places; threads share the last two, outside of the parts and within them."""

WINOGRAD = [
    *(
        replace(
            in_blocks(convolution((batch, inputs, *size), (outputs, inputs, 3, 3), padding=padding, tail=tail)),
            winograd=form,
            labels=(label,),
        )
        for form, size, inputs, outputs, padding, tail, batch, label in pairwise(
            (2, 4),
            ((3, 3), (13, 6), (7, 19)),
            (16, 48),
            (16, 64),
            ((1, 1, 1, 1), (2, 0, 1, 3)),
            ("", "bias+residual+relu", "bias+silu"),
            (1, 3),
            LABELS,
        )
    ),
    replace(in_blocks(convolution((1, 64, 28, 28), (64, 64, 3, 3), padding=(1, 1, 1, 1), tail="bias")), winograd=4),
]

SERVED = {
    "pointwise_blocked": BLOCKED_POINTWISE,
    "depthwise_blocked": BLOCKED_DEPTHWISE,
    "winograd": WINOGRAD,
    "conv_blocked": BLOCKED_CONV,
    "concat_blocked": BLOCKED_CONCAT,
    "pointwise_nchw": POINTWISE,
    "depthwise_rows": DEPTHWISE_ROWS,
    "depthwise_nchw": DEPTHWISE,
    "direct_nchw": DIRECT,
    "dense": DENSE,
    "products": PRODUCTS,
    "segments": SEGMENTS,
    "lanes": [*LANES[:2], *BLOCKED_LANES, *LANES[2:]],
}


def compiled(funcs: dict[str, tirx.PrimFunc]) -> tvm.runtime.Module:
    module = tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in funcs.items()})
    return tvm.compile(module, target=tvm.target.Target(tvm_target_dict(HOST)))


def check(library, kernel: Kernel, name: str, target: Target = HOST) -> None:
    arrays = kernel.arrays()
    exact = kernel.oracle(*(torch.from_numpy(array.astype("float64")) for array in arrays)).numpy()
    *arrays, exact = kernel.laid_out(target, *arrays, exact)
    result = tvm.runtime.tensor(np.full(exact.shape, np.nan, kernel.dtype))
    library[name](*map(tvm.runtime.tensor, arrays), result)
    tolerance = 2e-2 if kernel.dtype == "float16" else 1e-5
    np.testing.assert_allclose(result.numpy(), exact, rtol=tolerance, atol=tolerance * max(1, abs(exact).max()))


@pytest.fixture(scope="module")
def libraries() -> dict[str, tvm.runtime.Module]:
    """Each rule's kernels, served for this computer and, with narrow vectors, shared among threads however small."""
    found = {}
    for rule, kernels in SERVED.items():
        funcs = {}
        for index, kernel in enumerate(kernels):
            if "host" in kernel.labels:
                funcs[f"host_{index}"] = RULES[rule](kernel.prim_func(), HOST).mod["main"]
            if "shared" in kernel.labels:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(convolutions, "THREAD_MACS_PER_LANE", 0)
                    funcs[f"shared_{index}"] = RULES[rule](kernel.prim_func(NARROW), NARROW).mod["main"]
        found[rule] = compiled(funcs)
    return found


@pytest.mark.parametrize(
    ("rule", "index", "label"),
    [
        pytest.param(rule, index, label, id=f"{rule}-{kernel.name}-{label}")
        for rule in SERVED
        for index, kernel in enumerate(SERVED[rule])
        for label in kernel.labels
    ],
)
def test_served_kernel_is_right(libraries, rule: str, index: int, label: str):
    check(libraries[rule], SERVED[rule][index], f"{label}_{index}", {"host": HOST, "shared": NARROW}[label])


def test_tiles_that_a_search_may_try_are_right():
    """The first, one from the middle and the last: lists of tiles go from one extreme to the other."""
    kernels = [kernel for served in SERVED.values() for kernel in (served[1], served[-2])]
    funcs, names = {}, []
    for rule, kernel in ((rule, kernel) for rule in RULES for kernel in kernels):
        func = kernel.prim_func()
        if RULES[rule](func, HOST) is None:
            assert not tiles(rule, func, HOST) or rule == "lanes"
            continue
        found = tiles(rule, func, HOST)
        for tile in dict.fromkeys(found[place] for place in (0, len(found) // 2, -1) if found):
            schedule = RULES[rule](func, HOST, tile)
            if schedule is not None:
                names.append((f"kernel_{len(names)}", kernel))
                funcs[names[-1][0]] = schedule.mod["main"]
    library = compiled(funcs)
    for name, kernel in names:
        check(library, kernel, name)


def test_weights_are_fetched_ahead_by_their_own_bytes():
    """Half as many of them in float16, into which kernels are narrowed after their schedule."""
    board = TARGETS["raspberry-pi-5"]
    kernel, tile = in_blocks(convolution((1, 1024, 4, 4), (256, 1024, 1, 1))), (4, 16, pointwise_blocked.WEIGHTS)
    lines = []
    for arithmetic in ("float32", "float16"):
        target = replace(board, arithmetic=arithmetic)
        schedule = pointwise_blocked.pointwise_blocked(kernel.prim_func(board), target, tile)
        lines.append(schedule.mod.script().count("llvm.prefetch"))
    assert lines[0] == 2 * lines[1] > 0


def test_only_exact_shapes_are_served():
    for kernel in OTHERS:
        func = kernel.prim_func()
        for rule in RULES.keys() - {"segments", "lanes"}:
            assert RULES[rule](func, HOST) is None, f"{rule} took {kernel.name}"
    for kernel in (*BLOCKED_POINTWISE[:5], *BLOCKED_DEPTHWISE[-8:], *BLOCKED_CONV[-8:]):
        for rule in ("pointwise_nchw", "depthwise_rows", "depthwise_nchw", "direct_nchw"):
            assert RULES[rule](kernel.prim_func(), HOST) is None
    for kernel in (*POINTWISE[:8], *DEPTHWISE[:8], *DIRECT[:4]):
        for rule in ("pointwise_blocked", "depthwise_blocked", "conv_blocked"):
            assert RULES[rule](kernel.prim_func(), HOST) is None
    for kernel in POINTWISE[:8]:
        assert RULES["depthwise_rows"](kernel.prim_func(), HOST) is None
        assert RULES["depthwise_nchw"](kernel.prim_func(), HOST) is None
    for kernel in DEPTHWISE[:8]:
        assert RULES["pointwise_nchw"](kernel.prim_func(), HOST) is None
        assert RULES["direct_nchw"](kernel.prim_func(), HOST) is None


def test_other_kernels_stay_right():
    funcs = {}
    for index, kernel in enumerate(OTHERS):
        func = kernel.prim_func()
        schedule = next(filter(None, (RULES[rule](func, HOST) for rule in HOST.schedules)), None)
        funcs[f"kernel_{index}"] = schedule.mod["main"] if schedule else func
    library = compiled(funcs)
    for index, kernel in enumerate(OTHERS):
        check(library, kernel, f"kernel_{index}")


def test_symbolic_shapes_are_declined():
    batch = tirx.Var("batch", "int64")
    kernel = POINTWISE[1]
    data = relax.Var("data", relax.TensorType((batch, *kernel.shapes[0][1:]), "float32"))
    weight = relax.Var("weight", relax.TensorType(kernel.shapes[1], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data, weight]):
        builder.emit_func_output(builder.emit(relax.op.nn.conv2d(data, weight)))
    module = relax.transform.LegalizeOps()(builder.get())
    (func,) = (func for func in module.functions.values() if isinstance(func, tirx.PrimFunc))
    assert all(RULES[rule](func, HOST) is None for rule in RULES)


@pytest.mark.parametrize("board", [name for name, board in TARGETS.items() if board.kind in ("llvm", "arm_cpu")])
def test_every_board_compiles(board: str):
    target = TARGETS[board]
    funcs = {
        f"kernel_{index}": RULES[rule](kernel.prim_func(target), target)
        .mod["main"]
        .with_attr("global_symbol", f"kernel_{index}")
        for index, (rule, kernel) in enumerate((rule, kernels[-2]) for rule, kernels in SERVED.items())
    }
    assert tvm.compile(tvm.IRModule(funcs), target=tvm.target.Target(tvm_target_dict(target)))


def test_every_file_is_registered():
    files = {path.stem for path in Path(tvmflow.schedules.cpu.__file__).parent.glob("*.py") if path.stem[0] != "_"}
    assert set(RULES) == files
