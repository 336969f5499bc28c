"""PyTorch's operators: a tiny network of each, imported, compiled for this computer and held against PyTorch.

Networks are compiled by the dozen, as outputs of one network, and run on noise, on a large mean, on small numbers, far
out, and on numbers that aren't finite. A result may be as far from the float64 answer as a few of PyTorch's own errors.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from tvm import relax

from tvmflow.network.foreign import quiet
from tvmflow.network.names import name_outputs
from tvmflow.network.pytorch_operators import decompose, torch_importer
from tvmflow.pipeline import run_stages
from tvmflow.spec import Program
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS

HOST = TARGETS["host"]
NOT_FINITE = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -1.0, 0.5, 100.0, -100.0], np.float32)
KINDS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "noise": lambda rng, shape: rng.standard_normal(shape),
    "large mean": lambda rng, shape: 3000 + rng.standard_normal(shape),
    "small": lambda rng, shape: rng.standard_normal(shape) * 1e-4,
    "far out": lambda rng, shape: rng.standard_normal(shape) * 50,
    "not finite": lambda rng, shape: rng.permuted(np.resize(NOT_FINITE, shape).reshape(-1)).reshape(shape),
    "minus infinity": lambda rng, shape: np.full(shape, -np.inf),
}


@dataclass(frozen=True, kw_only=True)
class Integers:
    """An input of whole numbers from low to high − 1."""

    shape: tuple[int, ...]
    low: int = 0
    high: int
    dtype: str = "int64"


Input = tuple[int, ...] | Integers


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its inputs, and kinds of them on which its answer isn't defined, or is a matter of rounding."""

    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...]
    without: frozenset[str] = field(default_factory=frozenset)


class Function(nn.Module):
    """`function` as a network, with modules that it may use."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


class Together(nn.Module):
    """Several networks as one, whose outputs are all of theirs."""

    def __init__(self, networks: Mapping[str, nn.Module], counts: list[int]) -> None:
        super().__init__()
        self.networks, self.counts = nn.ModuleList(networks.values()), counts

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: list[torch.Tensor] = []
        left = list(inputs)
        for network, count in zip(self.networks, self.counts, strict=True):
            result = network(*left[:count])
            found += result if isinstance(result, tuple | list) else [result]
            left = left[count:]
        return tuple(found)


def layer(
    module: Callable[..., nn.Module], *arguments: Any, x: Any = (2, 4, 6, 6), without: str = "", **options: Any
) -> Case:
    inputs = x if isinstance(x, list) else [x]
    return Case(make=lambda: module(*arguments, **options), inputs=tuple(inputs), without=_split(without))


def function(body: Callable[..., Any], x: Any = (2, 4, 6, 6), without: str = "") -> Case:
    inputs = x if isinstance(x, list) else [x]
    return Case(make=lambda: Function(body), inputs=tuple(inputs), without=_split(without))


def _split(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())


FAR = "large mean, far out"
ROUNDED = "not finite, minus infinity"
"""Infinities in sums of many terms: which of the terms are multiplied by 0 isn't defined."""

MAP, ROW, VOLUME = (2, 4, 6, 6), (2, 4, 9), (1, 2, 4, 5, 6)
WHOLE = Integers(shape=(3, 5), low=-7, high=8)
POSITIVE = Integers(shape=(3, 5), low=1, high=6)


def resized(**options: Any) -> Case:
    shape = options.pop("x", (1, 2, 5, 7))
    options.setdefault("mode", "nearest")
    return function(lambda x: F.interpolate(x, **options), x=shape)


CASES: dict[str, dict[str, Case]] = {
    "activations": {
        **{
            name: layer(getattr(nn, name))
            for name in [
                "ReLU",
                "ReLU6",
                "ELU",
                "SELU",
                "CELU",
                "GELU",
                "SiLU",
                "Mish",
                "Softplus",
                "LogSigmoid",
                "Hardswish",
                "Hardsigmoid",
                "Hardtanh",
                "Softshrink",
                "Hardshrink",
                "Tanhshrink",
                "Softsign",
                "RReLU",
                "LeakyReLU",
                "PReLU",
                "Sigmoid",
                "Tanh",
            ]
        },
        "GELU tanh": layer(nn.GELU, "tanh"),
        "Threshold": layer(nn.Threshold, 0.1, 20),
        "Softplus beta": layer(nn.Softplus, 3, 2),
        "ELU alpha": layer(nn.ELU, 0.3),
        "CELU alpha": layer(nn.CELU, 0.3),
        "GLU": layer(nn.GLU, 1),
        "PReLU channels": layer(nn.PReLU, 4),
        "Hardtanh bounds": layer(nn.Hardtanh, -2, 0.5),
        "Softmin": layer(nn.Softmin, 1),
        "Softmax": layer(nn.Softmax, 1),
        "Softmax2d": layer(nn.Softmax2d),
        "LogSoftmax": layer(nn.LogSoftmax, -1),
        "log softplus": function(lambda x: torch.log(F.softplus(x))),
        "clamp": function(
            lambda x: (x.clamp(-1, 2), x.clamp(min=0), x.clamp(max=0.5), x.clamp_min(-3), x.clamp_max(3))
        ),
        "clamp tensors": function(
            lambda x, y: torch.clamp(x, min=y, max=y + 1), x=[MAP, (4, 1, 6)], without="not finite"
        ),
    },
    "functions": {
        **{
            name: function(functools.partial(lambda f, x: f(x), getattr(torch, name)))
            for name in [
                "exp",
                "exp2",
                "expm1",
                "log",
                "log2",
                "log10",
                "log1p",
                "sqrt",
                "rsqrt",
                "sin",
                "cos",
                "tan",
                "sinh",
                "cosh",
                "asin",
                "acos",
                "atan",
                "asinh",
                "acosh",
                "atanh",
                "erf",
                "erfc",
                "abs",
                "neg",
                "sign",
                "floor",
                "ceil",
                "round",
                "trunc",
                "frac",
                "reciprocal",
                "square",
                "sigmoid",
                "tanh",
                "isnan",
                "isinf",
                "isfinite",
                "logical_not",
                "nan_to_num",
                "sinc",
                "deg2rad",
                "positive",
                "relu",
                "signbit",
            ]
        },
        "logit": function(lambda x: torch.logit(x, 1e-3)),
        "entr": function(torch.special.entr),
        "log_ndtr": function(lambda x: torch.special.ndtr(x)),
        "xlogy": function(torch.special.xlogy, x=[MAP, MAP]),
        "round decimals": function(lambda x: (torch.round(x, decimals=2), torch.round(x, decimals=-2))),
    },
    "arithmetic": {
        "add": function(
            lambda x, y: (x + y, torch.add(x, y, alpha=3), x + 2, torch.sub(x, y, alpha=2), 1 - x), x=[MAP, (6,)]
        ),
        "multiply": function(lambda x, y: (x * y, x / y, x * 3, x / 3, 2 / x), x=[MAP, (4, 1, 1)]),
        "power": function(lambda x: (x**2, x**3, x**-1, x**0.5, x**-0.5, x**2.5, x**0, 2.0**x, x**-2)),
        "power tensors": function(lambda x, y: torch.pow(x.abs() + 0.1, y), x=[MAP, MAP], without=FAR),
        "floor divide": function(lambda x, y: (x // 2, x // y, torch.div(x, y, rounding_mode="trunc")), x=[MAP, MAP]),
        "remainder": function(lambda x, y: (x % 2, x % y, torch.fmod(x, y), torch.fmod(x, 3)), x=[MAP, MAP]),
        "maximum": function(lambda x, y: (torch.maximum(x, y), torch.minimum(x, y), torch.max(x, y)), x=[MAP, MAP]),
        "comparisons": function(lambda x, y: (x > y, x >= y, x < 0, x <= y, x == y, x != 0.5), x=[MAP, MAP]),
        "logical": function(
            lambda x, y: (torch.logical_and(x, y), torch.logical_or(x, y), torch.logical_xor(x, y)), x=[MAP, MAP]
        ),
        "where": function(lambda x, y: (torch.where(x > 0, x, y), x.masked_fill(x > 0, 7.0)), x=[MAP, MAP]),
        "lerp": function(
            lambda x, y: (torch.lerp(x, y, 0.3), torch.addcmul(x, x, y, value=2), torch.addcdiv(x, y, x)), x=[MAP, MAP]
        ),
        "atan2": function(lambda x, y: (torch.atan2(x, y), torch.hypot(x, y), torch.copysign(x, y)), x=[MAP, MAP]),
        "logaddexp": function(torch.logaddexp, x=[MAP, MAP]),
        "integers": function(
            lambda x, y: (
                x // y,
                x % y,
                torch.fmod(x, y),
                torch.div(x, y, rounding_mode="trunc"),
                x / y,
                x * y - x,
                x**2,
                -x,
            ),
            x=[WHOLE, POSITIVE],
        ),
        "integer bits": function(
            lambda x, y: (x & y, x | y, x ^ y, ~x, x << y, x >> y, x.abs(), x.sign(), x == y, x > 1.5, x.bool()),
            x=[WHOLE, POSITIVE],
        ),
        "integer functions": function(
            lambda x: (x.sin(), x.sqrt(), x.sigmoid(), x + 0.5, x.float().mean(), x.clamp(-2, 2)), x=[WHOLE]
        ),
        "integer sums": function(
            lambda x: (x.sum(1), x.prod(1), x.cumsum(1), x.amax(0), x.argmin(1), x.max(1)[1]), x=[WHOLE]
        ),
        "casts": function(
            lambda x: (x.bool(), x.half().float(), x.double()), without="not finite, minus infinity, large mean"
        ),
        "limited and divided": function(
            lambda x: (x.clamp(0, 6) / 6, x.clamp(max=1e-38) / 1e-38, x.clamp(max=1e38) / 1e38)
        ),
        "borders of whole numbers": function(
            lambda x: (F.pad(x, (1, 2), value=7), F.pad(x > 0, (1, 0), value=True), F.pad(x.int(), (0, 1, 2, 0))),
            x=[WHOLE],
        ),
        "lowest of all numbers": function(lambda x: torch.maximum(x, torch.tensor(torch.finfo(x.dtype).min))),
        "clamped to finite": function(lambda x: x.clamp(-3.4028234663852886e38, 3.4028234663852886e38)),
        "to integers": function(lambda x: (x.int(), x.long()), without="not finite, minus infinity"),
    },
    "reductions": {
        "sums": function(lambda x: (x.sum(), x.sum(1), x.mean((2, 3)), x.mean(), x.sum((1, 3), keepdim=True))),
        "extremes": function(lambda x: (x.amax(1), x.amin((2, 3)), x.max(), x.min(), x.amax((0, 2), keepdim=True))),
        "extremes and places": function(
            lambda x: (*x.max(1), *x.min(2, keepdim=True), x.argmax(), x.argmin(1), x.argmax(3, True))
        ),
        "products": function(
            lambda x: (x.prod(1), (x * 0.5).prod(3, keepdim=True)), without="large mean, far out, small"
        ),
        "logsumexp": function(lambda x: (torch.logsumexp(x, 1), torch.logsumexp(x, (2, 3), keepdim=True))),
        "deviations": function(
            lambda x: (x.var(1), x.std((2, 3)), x.var(unbiased=False), x.var(1, correction=9), x.std(0, keepdim=True))
        ),
        "deviations and means": function(
            lambda x: (*torch.var_mean(x, 1), *torch.std_mean(x, (0, 1), keepdim=True)), without=ROUNDED
        ),
        "norms": function(
            lambda x: (
                x.norm(dim=1),
                x.norm(),
                x.norm(p=1, dim=2),
                torch.linalg.vector_norm(x, 3, 1),
                x.norm(float("inf"), 1),
            ),
            without="minus infinity",
        ),
        "odd norms": function(
            lambda x: (
                torch.linalg.vector_norm(x, 0, 1),
                torch.linalg.vector_norm(x, -float("inf"), 3),
                torch.linalg.matrix_norm(x),
            )
        ),
        "normalize": function(lambda x: (F.normalize(x), F.normalize(x, p=1, dim=3))),
        "running": function(lambda x: (x.cumsum(1), x.cumprod(2), x.cumsum(-1)), without="far out, large mean"),
        "any and all": function(
            lambda x: ((x > 0).any(1), (x > -9).all(), x.any((1, 2)), x.all(3), torch.count_nonzero(x, 1))
        ),
        "nansum": function(lambda x: (torch.nansum(x, 1), torch.nanmean(x, 1), torch.aminmax(x, dim=1)[0])),
        "similarity": layer(nn.CosineSimilarity, x=[MAP, MAP], without=ROUNDED),
        "distance": layer(nn.PairwiseDistance, x=[(3, 5), (3, 5)]),
        "cdist": function(lambda x, y: (torch.cdist(x, y), torch.cdist(x, y, p=1)), x=[(3, 5), (4, 5)], without=FAR),
        "sorting": function(
            lambda x: (*x.sort(1), x.argsort(2, descending=True), *x.topk(2), *x.topk(3, 1, largest=False)),
            without=ROUNDED,
        ),
        "differences": function(lambda x: (torch.diff(x), torch.trapezoid(x))),
    },
    "norms": {
        "BatchNorm2d": layer(nn.BatchNorm2d, 4),
        "BatchNorm2d without statistics": layer(nn.BatchNorm2d, 4, track_running_stats=False),
        "BatchNorm1d": layer(nn.BatchNorm1d, 4, x=ROW),
        "BatchNorm3d": layer(nn.BatchNorm3d, 2, affine=False, x=VOLUME),
        "BatchNorm eps 0": layer(nn.BatchNorm2d, 4, eps=0.0),
        "InstanceNorm2d": layer(nn.InstanceNorm2d, 4),
        "InstanceNorm1d affine": layer(nn.InstanceNorm1d, 4, affine=True, x=ROW),
        "InstanceNorm3d": layer(nn.InstanceNorm3d, 2, x=VOLUME),
        "InstanceNorm2d with statistics": layer(nn.InstanceNorm2d, 4, track_running_stats=True),
        "GroupNorm": layer(nn.GroupNorm, 2, 4),
        "GroupNorm no affine": layer(nn.GroupNorm, 2, 4, affine=False),
        "GroupNorm 1-D": layer(nn.GroupNorm, 4, 4, x=ROW),
        "LayerNorm": layer(nn.LayerNorm, 6),
        "LayerNorm many axes": layer(nn.LayerNorm, (4, 6, 6)),
        "LayerNorm no affine": layer(nn.LayerNorm, (6, 6), elementwise_affine=False),
        "RMSNorm": layer(nn.RMSNorm, 6, without="minus infinity"),
        "LocalResponseNorm": layer(nn.LocalResponseNorm, 3, without="minus infinity"),
    },
    "pooling": {
        **{
            f"AvgPool2d {options}": layer(nn.AvgPool2d, **options, x=(1, 2, 8, 9))
            for options in (
                {"kernel_size": 2},
                {"kernel_size": 3, "stride": 2, "ceil_mode": True},
                {"kernel_size": 3, "stride": 2, "padding": 1},
                {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
                {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False, "ceil_mode": True},
                {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True},
                {"kernel_size": 3, "divisor_override": 1},
                {"kernel_size": 3, "padding": 1, "divisor_override": 5, "ceil_mode": True},
                {"kernel_size": 2, "stride": 3, "ceil_mode": True},
            )
        },
        "AvgPool2d skips": layer(nn.AvgPool2d, 3, 3, 1, ceil_mode=True, x=(1, 3, 2, 2)),
        "AvgPool1d": layer(nn.AvgPool1d, 3, 2, 1, x=ROW),
        "AvgPool1d ceil": layer(nn.AvgPool1d, 1, 2, ceil_mode=True, x=(1, 6, 4)),
        "AvgPool1d no pad": layer(nn.AvgPool1d, 3, 2, 1, count_include_pad=False, x=ROW),
        "AvgPool3d": layer(nn.AvgPool3d, 2, x=VOLUME),
        "AvgPool3d ceil": layer(nn.AvgPool3d, 3, 2, 1, ceil_mode=True, count_include_pad=False, x=VOLUME),
        "AvgPool3d divisor": layer(nn.AvgPool3d, 2, divisor_override=3, x=VOLUME),
        "AvgPool2d no batch": layer(nn.AvgPool2d, 2, x=(4, 6, 6)),
        "LPPool2d": layer(nn.LPPool2d, 2, 2),
        "MaxPool2d": layer(nn.MaxPool2d, 2),
        "MaxPool2d padded": layer(nn.MaxPool2d, 3, 1, 1),
        "MaxPool2d dilated": layer(nn.MaxPool2d, 3, 2, 1, 2, x=(1, 3, 11, 11)),
        "MaxPool2d ceil": layer(nn.MaxPool2d, 2, 2, ceil_mode=True, x=(1, 3, 7, 7)),
        "MaxPool2d ceil skips": layer(nn.MaxPool2d, 3, 3, 1, ceil_mode=True, x=(1, 3, 2, 2)),
        "MaxPool2d places": layer(nn.MaxPool2d, 3, 2, 1, return_indices=True, x=(1, 3, 7, 7)),
        "MaxPool1d": layer(nn.MaxPool1d, 3, 2, 1, x=ROW),
        "MaxPool3d": layer(nn.MaxPool3d, 2, x=VOLUME),
        "MaxPool2d no batch": layer(nn.MaxPool2d, 2, x=(4, 6, 6)),
        "AdaptiveAvgPool2d": layer(nn.AdaptiveAvgPool2d, (4, 5)),
        "AdaptiveAvgPool2d 1": layer(nn.AdaptiveAvgPool2d, 1),
        "AdaptiveAvgPool2d divides": layer(nn.AdaptiveAvgPool2d, (3, 2)),
        "AdaptiveAvgPool2d up": layer(nn.AdaptiveAvgPool2d, 7, x=(1, 3, 3, 5)),
        "AdaptiveAvgPool1d": layer(nn.AdaptiveAvgPool1d, 4, x=ROW),
        "AdaptiveAvgPool3d": layer(nn.AdaptiveAvgPool3d, (3, 2, 4), x=VOLUME),
        "AdaptiveMaxPool2d": layer(nn.AdaptiveMaxPool2d, (4, 5)),
        "AdaptiveMaxPool2d places": layer(nn.AdaptiveMaxPool2d, 4, return_indices=True),
        "AdaptiveMaxPool1d": layer(nn.AdaptiveMaxPool1d, 4, x=ROW),
        "AdaptiveMaxPool3d": layer(nn.AdaptiveMaxPool3d, (3, 2, 4), x=VOLUME),
        "Unfold": layer(nn.Unfold, 3, padding=1, stride=2),
        "Unfold dilated": layer(nn.Unfold, (2, 3), dilation=2, x=(1, 2, 7, 8)),
        "Fold": layer(nn.Fold, (6, 6), 2, stride=2, x=(1, 12, 9)),
        "Fold overlaps": layer(nn.Fold, (5, 6), 3, padding=1, stride=2, x=(1, 18, 9)),
    },
    "resizing": {
        **{
            f"{mode} {text}": resized(mode=mode, **given)
            for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
            for text, given in {
                "size": {"size": (9, 4)},
                "factor": {"scale_factor": 1.7},
                "factors": {"scale_factor": (0.6, 2.3)},
                "computed": {"scale_factor": 1.7, "recompute_scale_factor": True},
                "twice": {"scale_factor": 2},
            }.items()
        },
        **{f"{mode} aligned": resized(mode=mode, size=(9, 4), align_corners=True) for mode in ("bilinear", "bicubic")},
        **{
            f"{mode} antialias {size}": resized(mode=mode, size=size, antialias=True)
            for mode in ("bilinear", "bicubic")
            for size in ((3, 3), (8, 5))
        },
        "nearest 1-D": resized(scale_factor=1.5, x=(1, 2, 7)),
        "linear": resized(scale_factor=1.5, mode="linear", x=(1, 2, 7)),
        "linear aligned": resized(size=5, mode="linear", align_corners=True, x=(1, 2, 7)),
        "nearest 3-D": resized(scale_factor=1.5, x=VOLUME),
        "trilinear": resized(scale_factor=1.5, mode="trilinear", x=VOLUME),
        "small output": function(lambda x: F.interpolate(x * 1e-6, scale_factor=1.7, mode="bilinear"), without=ROUNDED),
        **{
            f"grid_sample {mode} {padding} {aligned}": function(
                functools.partial(F.grid_sample, mode=mode, padding_mode=padding, align_corners=aligned),
                x=[(2, 2, 5, 6), (2, 3, 4, 2)],
                without="not finite, minus infinity, large mean, far out",
            )
            for mode in ("bilinear", "nearest", "bicubic")
            for padding in ("zeros", "border", "reflection")
            for aligned in (False, True)
        },
        "grid_sample 3-D": function(
            functools.partial(F.grid_sample, align_corners=False),
            x=[(1, 2, 3, 4, 5), (1, 2, 3, 2, 3)],
            without=ROUNDED + "," + FAR,
        ),
        "affine_grid": function(
            lambda theta: (F.affine_grid(theta, [1, 1, 4, 5], False), F.affine_grid(theta, [1, 1, 4, 5], True)),
            x=[(1, 2, 3)],
        ),
        "PixelShuffle": layer(nn.PixelShuffle, 2),
        "PixelUnshuffle": layer(nn.PixelUnshuffle, 2),
        "ChannelShuffle": layer(nn.ChannelShuffle, 2),
        "Upsample": layer(nn.UpsamplingBilinear2d, scale_factor=2, without=ROUNDED),
    },
    "indexing": {
        "slices": function(
            lambda x: (x[:, -3:], x[:, ::2], x[:, 1:100], x[..., -2:-1], x[:, 3:1], x[0, -1], x[:, :, 4 :: -1 % 3])
        ),
        "slice last": function(lambda x: (x[..., -1], x[:, -1:], x[-1])),
        "splits": function(
            lambda x: (*x.chunk(3, 1), *x.split(4, 2), *x.unbind(1), *x.split([1, 5], -1), *torch.tensor_split(x, 4, 3))
        ),
        "index": function(
            lambda x: (x[:, [0, 2]], x[:, [3, 0]][..., [1, -1]], x[[0, 1], :, [2, 3]], x[:, [[0], [1]], [2, 3]])
        ),
        "index tensor": function(lambda x, i: (x[i], x[:, i]), x=[MAP, Integers(shape=(3,), low=-2, high=2)]),
        "index_select": function(
            lambda x: (x.index_select(1, torch.tensor([0, 2, 2])), torch.take(x, torch.tensor([5, 0])))
        ),
        "gather": function(
            lambda x, i: (torch.gather(x, 1, i), torch.take_along_dim(x, i, 1)),
            x=[(3, 5), Integers(shape=(3, 2), high=5)],
        ),
        "scatter": function(
            lambda x, i, y: (x.scatter(1, i, y), x.scatter(1, i, 2.0), x.scatter_reduce(1, i, y, "amax")),
            x=[(3, 5), Integers(shape=(3, 1), high=5), (3, 1)],
        ),
        "scatter add": function(
            lambda x, i, y: (x.scatter_add(1, i, y), x.index_add(1, i[0], y)),
            x=[(3, 5), Integers(shape=(3, 2), high=5), (3, 2)],
        ),
        "embedding": layer(nn.Embedding, 7, 3, x=Integers(shape=(2, 3), high=7)),
        "one_hot": function(lambda i: F.one_hot(i, 5), x=[Integers(shape=(2, 3), high=5)]),
        "roll": function(lambda x: (x.roll(1, 2), x.roll(3), x.roll((-1, 2), (1, 3)), x.roll(13, 1))),
        "flip": function(lambda x: (x.flip(1, 2), torch.rot90(x, 1, (2, 3)), x.movedim(1, 3))),
        "repeat": function(
            lambda x: (x.repeat(1, 2, 1, 1), x.repeat_interleave(2, 1), x.expand(3, 2, 4, 6, 6), x.tile(2))
        ),
        "diagonal": function(
            lambda x: (x.diagonal(0, 2, 3), x.diagonal(1), x.tril(), x.triu(1), torch.diag_embed(x[0, 0]))
        ),
        "unfold": function(lambda x: (x.unfold(2, 3, 2), x.unfold(3, 2, 1))),
        **{
            f"pad {mode}": function(functools.partial(F.pad, pad=(1, 2, 1, 0), mode=mode))
            for mode in ("reflect", "replicate", "circular")
        },
        "pad": function(
            lambda x: (
                F.pad(x, (1, 2)),
                F.pad(x, (-1, 2, 1, -2), value=0.5),
                F.pad(x, (0, 0, 2, 1), value=float("-inf")),
            )
        ),
        "pad modes 1-D": function(
            lambda x: (F.pad(x, (2, 3), "reflect"), F.pad(x, (2, 3), "replicate"), F.pad(x, (2, 1), "circular")), x=ROW
        ),
        "creation": function(
            lambda x: (
                x + torch.arange(6),
                torch.zeros_like(x),
                torch.full_like(x, 2),
                x.new_ones(2),
                torch.eye(3) + x[0, 0, :3, :3],
                torch.linspace(0, 1, 6) * x,
                torch.ones(3, dtype=torch.int64),
            )
        ),
        "assignment": function(lambda x: _assigned(x)),
        "stacking": function(
            lambda x, y: (torch.cat([x, y], 1), torch.stack([x, y], -1), torch.hstack([x, y])), x=[MAP, MAP]
        ),
        "masks": function(lambda x: (x.masked_fill(x > 0, -1e9), torch.where(x.isnan(), 0.0, x), x * (x > 0))),
        "meshgrid": function(lambda x: tuple(torch.meshgrid(x[0, 0, 0], x[0, 0, 1], indexing="ij"))),
        "bucketize": function(lambda x: torch.bucketize(x, torch.arange(-2.0, 2.0)), without="not finite"),
        "shapes": function(
            lambda x: (x.flatten(1), x.view(2, -1), x.unflatten(1, (2, 2)), x.transpose(1, -1), x.squeeze(), x[None])
        ),
    },
    "products": {
        "Linear": layer(nn.Linear, 6, 3),
        "matmul": function(lambda x, y: (x @ y, x[0, 0] @ y[0, 0], x[0, 0, 0] @ y[0, 0, :, 0]), x=[MAP, (2, 4, 6, 3)]),
        "einsum": function(lambda x: (torch.einsum("nchw,ncxw->nhx", x, x), torch.einsum("nchw->nwhc", x))),
        "addmm": function(
            lambda x, y: (torch.addmm(x, x, y, beta=0.5, alpha=2), torch.baddbmm(x[None], x[None], y[None])),
            x=[(5, 5), (5, 5)],
        ),
        "integer product": function(lambda x: x @ x.T, x=[WHOLE]),
        "outer": function(
            lambda x: (torch.outer(x[0], x[1]), torch.kron(x, x), torch.linalg.cross(x[:, :3], x[:, 1:4])), x=[(3, 4)]
        ),
        "Bilinear": layer(nn.Bilinear, 3, 4, 5, x=[(2, 3), (2, 4)]),
        "Conv1d depthwise": layer(nn.Conv1d, 8, 8, 5, padding=4, dilation=2, groups=8, x=(1, 8, 15)),
        "Conv1d": layer(nn.Conv1d, 4, 6, 3, stride=2, x=ROW),
        "Conv2d same": layer(nn.Conv2d, 3, 4, (2, 4), padding="same", dilation=(3, 1), x=(1, 3, 7, 9)),
        "Conv2d reflect": layer(nn.Conv2d, 3, 4, 3, padding=1, padding_mode="reflect", x=(1, 3, 7, 9)),
        "Conv2d circular": layer(nn.Conv2d, 3, 4, 3, padding=1, padding_mode="circular", x=(1, 3, 7, 9)),
        "Conv2d no batch": layer(nn.Conv2d, 3, 4, 3, x=(3, 7, 9)),
        "Conv3d": layer(nn.Conv3d, 2, 4, 3, padding=1, x=VOLUME),
        **{
            f"ConvTranspose{n}d {text}": layer(
                getattr(nn, f"ConvTranspose{n}d"), 4, 6, 3, x=(1, 4, *range(3, 3 + n)), **options
            )
            for n in (1, 2, 3)
            for text, options in {
                "plain": {},
                "output padding": {"stride": 2, "padding": 1, "output_padding": 1},
                "dilation": {"stride": 2, "dilation": 2, "padding": 2},
                "groups": {"stride": 2, "groups": 2},
            }.items()
        },
        "weight norm": Case(make=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), inputs=(MAP,)),
        "old weight norm": Case(make=lambda: _weight_norm(), inputs=((2, 6, 5),)),
        "spectral norm": Case(make=lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)), inputs=(MAP,)),
        "conv of NaN": Case(
            make=lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)), inputs=(MAP,)
        ),
    },
    # Each step is compiled anew: three show what the state becomes, and two suffice where more than that is told apart.
    "sequences": {
        "LSTM": layer(nn.LSTM, 6, 4, x=(3, 2, 6), without=ROUNDED),
        "LSTM layers": layer(
            nn.LSTM, 6, 4, num_layers=2, bidirectional=True, batch_first=True, x=(3, 2, 6), without=ROUNDED
        ),
        "LSTM no bias": layer(nn.LSTM, 6, 4, bias=False, x=(2, 6), without=ROUNDED),
        "LSTM projected": layer(nn.LSTM, 6, 4, proj_size=3, x=(2, 3, 6), without=ROUNDED),
        "LSTM state": Case(
            make=lambda: Function(lambda x, h, c: _flat(lstm(x, (h, c))), lstm=(lstm := nn.LSTM(6, 4))),
            inputs=((3, 2, 6), (1, 2, 4), (1, 2, 4)),
            without=_split(ROUNDED),
        ),
        "GRU": layer(nn.GRU, 6, 4, x=(3, 2, 6), without=ROUNDED),
        "GRU layers": layer(
            nn.GRU, 6, 4, num_layers=2, bidirectional=True, batch_first=True, x=(3, 2, 6), without=ROUNDED
        ),
        "RNN": layer(nn.RNN, 6, 4, x=(2, 3, 6), without=ROUNDED),
        "RNN relu": layer(nn.RNN, 6, 4, nonlinearity="relu", bidirectional=True, x=(2, 3, 6), without=ROUNDED),
        "cells": layer(nn.LSTMCell, 6, 4, x=(2, 6), without=ROUNDED),
        "GRUCell": layer(nn.GRUCell, 6, 4, x=(2, 6), without=ROUNDED),
        "attention": Case(
            make=lambda: Function(lambda x: mha(x, x, x), mha=(mha := nn.MultiheadAttention(8, 2, batch_first=True))),
            inputs=((1, 5, 8),),
            without=_split(FAR),
        ),
        "scaled dot product": function(
            lambda q, k, v: (
                F.scaled_dot_product_attention(q, k, v),
                F.scaled_dot_product_attention(q, k, v, is_causal=True),
                F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(5, 5).tril().bool()),
            ),
            x=[(1, 2, 5, 4)] * 3,
            without=FAR + "," + ROUNDED,
        ),
        "TransformerEncoderLayer": layer(
            nn.TransformerEncoderLayer, 8, 2, 16, batch_first=True, x=(1, 5, 8), without=FAR
        ),
        "TransformerDecoderLayer": layer(nn.TransformerDecoderLayer, 8, 2, 16, x=[(5, 1, 8), (4, 1, 8)], without=FAR),
    },
}


def _assigned(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 0] = 0
    y[..., 1::2] += 1
    y[:, -1, 2] = x[:, 1, 3]
    return y


def _flat(result: Any) -> tuple[torch.Tensor, ...]:
    y, state = result
    return (y, *state)


def _weight_norm() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Conv1d(6, 3, 1))


def inputs_of(case: Case, kind: str) -> list[np.ndarray]:
    rng = np.random.default_rng(len(kind))
    return [
        rng.integers(given.low, given.high, given.shape).astype(given.dtype)
        if isinstance(given, Integers)
        else KINDS[kind](rng, given).astype(np.float32)
        for given in case.inputs
    ]


def imported(network: nn.Module, inputs: list[np.ndarray]) -> tvm.IRModule:
    with quiet():
        exported = torch.export.export(network, tuple(torch.from_numpy(array) for array in inputs))
        return name_outputs(torch_importer()().from_exported_program(decompose(exported), False, False, False, None))


def compiled(network: nn.Module, inputs: list[np.ndarray]) -> Callable[..., list[np.ndarray]]:
    """What the pipeline of this computer makes of a network."""
    program = Program(
        name="network", source="", module=imported(network, inputs), inputs=(), outputs=(), vectors=(), parameters=0
    )
    target = tvm.target.Target(tvm_target_dict(HOST))
    with target:
        executable = relax.build(run_stages(program, HOST).module, target, relax_pipeline=None)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return lambda *arrays: [result.numpy() for result in machine["main"](*map(tvm.runtime.tensor, arrays))]


def answers(network: nn.Module, inputs: list[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        found = network(*(torch.from_numpy(array.copy()) for array in inputs))
    found = found if isinstance(found, tuple | list) else (found,)
    flat = [part for result in found for part in (result if isinstance(result, tuple | list) else (result,))]
    return [result.numpy() for result in flat if result is not None]


def in_float64(network: nn.Module, inputs: list[np.ndarray]) -> list[np.ndarray] | None:
    """PyTorch's answer in float64; None where the network insists on float32."""
    try:
        return answers(network.double(), [a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs])
    except RuntimeError:
        return None
    finally:
        network.float()


def fault(ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray | None) -> str:
    """What is wrong with an answer, empty if nothing is."""
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return f"{ours.dtype}{ours.shape} for {theirs.dtype}{theirs.shape}"
    if not np.issubdtype(theirs.dtype, np.floating):
        return "" if np.array_equal(ours, theirs) else f"{ours[ours != theirs][:3]} for {theirs[ours != theirs][:3]}"
    finite = np.isfinite(theirs) & np.isfinite(ours)
    odd = ~finite & ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    if exact is not None and exact.shape == odd.shape:  # the library of some processors rounds tiny numbers to zero
        odd &= ~(np.isinf(theirs) & np.isclose(ours, exact, rtol=1e-5, atol=0))
    if odd.any():
        return f"{ours[odd][:4]} for {theirs[odd][:4]}"
    ours, theirs = ours[finite].astype(np.float64), theirs[finite].astype(np.float64)
    scale = np.abs(theirs).max(initial=0)
    allowed = 1e-5 * scale
    if exact is not None and exact.shape == finite.shape:
        allowed += 10 * np.abs(theirs - exact[finite]).max(initial=0)
    error = np.abs(ours - theirs).max(initial=0)
    return f"{error:.3g} off at {scale:.3g}" if error > allowed else ""


def faults(case: Case, network: nn.Module, kind: str, ours: list[np.ndarray]) -> list[str]:
    inputs = inputs_of(case, kind)
    theirs, exact = answers(network, inputs), in_float64(network, inputs)
    assert len(ours) == len(theirs)
    found = [fault(*pair, exact[i] if exact else None) for i, pair in enumerate(zip(ours, theirs, strict=True))]
    return [f"output {number} on {kind}: {text}" for number, text in enumerate(found) if text]


@pytest.mark.parametrize("group", CASES)
def test_operators_answer_as_pytorch(group: str) -> None:
    torch.manual_seed(0)
    cases = CASES[group]
    networks = {name: case.make().eval() for name, case in cases.items()}
    together = Together(networks, [len(case.inputs) for case in cases.values()]).eval()
    inputs = {kind: {name: inputs_of(case, kind) for name, case in cases.items()} for kind in KINDS}
    run = compiled(together, list(itertools.chain(*inputs["noise"].values())))
    found = {}
    for kind, given in inputs.items():
        left = run(*itertools.chain(*given.values()))
        for name, case in cases.items():
            count = len(answers(networks[name], given[name]))
            ours, left = left[:count], left[count:]
            if kind not in case.without and (texts := faults(case, networks[name], kind, ours)):
                found[f"{name}, {kind}"] = texts
    assert not found
