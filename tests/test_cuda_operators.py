"""Whatever the CPU takes, as kernels for GPUs: names of modules, operators of all kinds, NaN; on the stand-in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tvmflow.bundles.build import build
from tvmflow.network.frontend import from_module
from tvmflow.spec import UnsupportedOperatorError
from tvmflow.targets import TARGETS
from tvmflow.targets.cuda import backend, nvrtc
from tvmflow.targets.cuda.codegen import complete
from tvmflow.targets.cuda.passes import count_order

BOARD = TARGETS["jetson-orin-nano"]

NAMES = (
    *(
        "0",
        "1x1",
        "max",
        "half2",
        "float4",
        "threadIdx",
        "template",
        "int",
        "__shared__",
        "size",
        "é",
        "漢",
        "a-b",
        "a_b",
        "a b",
    ),
    *("_", "_0", "matmul", "fused_matmul_add", "conv2d_kernel", "printf", "n" * 300),
)


class Branches(nn.Module):
    """Each part has an input and an output of its own."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(given) for part, given in zip(self.parts, inputs, strict=True))


class Apply(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def outputs(network: nn.Module, inputs: tuple[np.ndarray, ...], out) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the stand-in computes of `inputs`, and what PyTorch does."""
    program = from_module(network.eval(), "network", "network", [array.shape for array in inputs])
    built = build(program, BOARD, out)
    assert built.manifest["verify"]["passed"] is True
    assert "left_out" not in built.manifest["verify"]
    method, run = backend.find_runner(built.library, BOARD, built.outputs)
    assert method in ("stand-in", "native")
    (found,) = run([inputs])
    with torch.no_grad():
        wanted = network(*[torch.from_numpy(array.copy()) for array in inputs])
    return list(found), [tensor.numpy() for tensor in (wanted if isinstance(wanted, tuple) else (wanted,))]


def test_names(tmp_path):
    """Modules may be called as they like: like words of C and CUDA, like nothing that C takes, or alike."""
    network = nn.Sequential()
    for name in NAMES:
        network.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) if name == "0" else nn.Linear(4, 4))
    found, wanted = outputs(network, (np.random.default_rng(0).standard_normal((2, 4), np.float32),), tmp_path / "out")
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-6)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


SPECIAL = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-40, 3.4e38, -3.4e38, 6.0, 0.5, -0.5, 7.0, -9.0]], np.float32)
HOLE = np.where(np.arange(64) == 17, np.nan, 1).astype(np.float32).reshape(1, 4, 4, 4)

OPERATORS: dict[str, tuple[nn.Module, np.ndarray]] = {
    # functions
    **{name: (Apply(getattr(torch, name)), noise(2, 9)) for name in ("erf", "sin", "atan", "sinh", "round", "floor")},
    **{
        function.__name__: (Apply(lambda x, function=function: function(x.abs() + 1.5)), noise(2, 9))
        for function in (torch.log1p, torch.rsqrt, torch.acosh, torch.log10)
    },
    "asin": (Apply(lambda x: torch.asin(x.clamp(-0.9, 0.9))), noise(2, 9)),
    "remainder": (Apply(lambda x: torch.remainder(x, 1.7) + torch.fmod(x, 0.7) + x.abs() ** 2.5), noise(2, 9)),
    "infinite": (Apply(lambda x: torch.isnan(x / (x - x)).float() + torch.isinf(x / (x - x)).float()), noise(2, 9)),
    # activations, of numbers and of what is none
    **{
        type(part).__name__: (part, SPECIAL)
        for part in (nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.Tanh(), nn.SiLU())
    },
    **{type(part).__name__: (part, noise(2, 9)) for part in (nn.GELU(), nn.Mish(), nn.Softplus(), nn.PReLU())},
    "clamp": (Apply(lambda x: x.clamp(min=-0.25)), SPECIAL),
    "maximum": (Apply(lambda x: torch.maximum(x, x.flip(1)) + torch.minimum(x, x.flip(1))), SPECIAL),
    "pool of NaN": (nn.MaxPool2d(2), HOLE),
    "pointwise of NaN": (nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU()), HOLE),
    "depthwise of NaN": (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU6()), HOLE),
    "groups of NaN": (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Hardswish()), HOLE),
    "layer of NaN": (nn.Sequential(nn.Linear(12, 3), nn.ReLU()), SPECIAL),
    # element types
    "int64": (Apply(lambda x: ((x * 10).long() * 3 % 7).float()), noise(2, 9)),
    "int8": (Apply(lambda x: ((y := x.clamp(-3, 3)) * 10).to(torch.int8).add((y * 9).to(torch.int8)).float()),
             noise(2, 9).clip(-3, 3)),
    "bool": (Apply(lambda x: ((x > 0) & (x < 1) | ~(x <= 2)).float() + (x > 0).sum(1, keepdim=True).float()),
             noise(2, 9)),
    "float16": (Apply(lambda x: torch.relu(x.half() * 1.5).float()), noise(2, 8)),
    "float64": (Apply(lambda x: torch.clamp(x.double() * 1.1, min=0.1).float()), noise(2, 9)),
    "bfloat16": (Apply(lambda x: torch.relu(x.bfloat16()).float()), np.float32([[0.5, -2, 3, 0]])),
    # reductions and normalisations
    "sum": (Apply(lambda x: x.sum()), noise(7, 13)),
    "long sum": (Apply(lambda x: x.sum(1)), noise(3, 1031)),
    "middle": (Apply(lambda x: x.mean(1)), noise(2, 37, 5)),
    "cube": (Apply(lambda x: x - x.mean(1, keepdim=True)), noise(8, 8, 8)),
    "softmax": (nn.Softmax(-1), noise(3, 1030)),
    "softmax of channels": (nn.Softmax(1), noise(2, 7, 5, 3)),
    "softmax of one": (nn.Softmax(-1), noise(1, 1)),
    "layer norm": (nn.LayerNorm(33), noise(2, 3, 33)),
    "group norm": (nn.GroupNorm(3, 12), noise(2, 12, 5, 5)),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), noise(2, 8, 7, 5)),
    # windows
    "in groups": (nn.Sequential(nn.Conv2d(8, 12, 1, groups=4), nn.SiLU()), noise(1, 8, 9, 9)),
    "1-D": (nn.Sequential(nn.Conv1d(6, 9, 3, groups=3, stride=2), nn.GELU()), noise(2, 6, 17)),
    "3-D": (nn.Conv3d(4, 4, (1, 3, 2), groups=2, stride=(1, 2, 1)), noise(1, 4, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(4, 8, 3, stride=2, groups=2, dilation=2), noise(1, 4, 5, 6)),
    "wide": (nn.Sequential(nn.Conv2d(1100, 7, 1), nn.ReLU(), nn.Conv2d(7, 1031, 1)), noise(1, 1100, 2, 3)),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 5)), noise(1, 3, 7, 11)),
    "resized": (nn.Upsample(scale_factor=2, mode="bilinear"), noise(1, 3, 5, 7)),
    # places and orders
    "shuffled": (nn.Sequential(nn.ChannelShuffle(3), nn.PixelShuffle(2)), noise(1, 12, 3, 4)),
    "joined": (Apply(lambda x: torch.cat([x, x * 2, x[:, :1]], 1).split([3, 4], 1)[1]), noise(2, 3, 4)),
    "looked up": (Apply(lambda x: functional.embedding((x.abs() * 2).long().clamp(0, 9), torch.eye(10))), noise(2, 7)),
    "argmax": (Apply(lambda x: x.argmax(1).float()), noise(4, 50)),
    "top five": (Apply(lambda x: x.topk(5, 1).values), noise(4, 50)),
    "sorted": (Apply(lambda x: x.sort(0, descending=True).values), noise(13, 5)),
    "running": (Apply(lambda x: x.cumsum(1) + x.clamp(-1, 1).cumprod(1)), noise(4, 50)),
}  # fmt: skip


def test_operators(tmp_path):
    """In one network, which takes no longer to compile than ten of its kernels would apart."""
    torch.manual_seed(3)
    network = Branches([part for part, _ in OPERATORS.values()])
    found, wanted = outputs(network, tuple(given for _, given in OPERATORS.values()), tmp_path / "out")
    for name, got, want in zip(OPERATORS, found, wanted, strict=True):
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * np.abs(want[np.isfinite(want)]).max(initial=0),
                                   err_msg=name, equal_nan=True)  # fmt: skip


def test_what_is_no_number_is_the_largest(tmp_path):
    """Where it counted as no element, places of the order stayed empty."""
    chosen = [OPERATORS[name] for name in ("top five", "sorted")]
    network = Branches([part for part, _ in chosen])
    program = from_module(network.eval(), "network", "network", [given.shape for _, given in chosen])
    built = build(program, BOARD, tmp_path / "out")
    assert "left_out" not in built.manifest["verify"]
    assert "nan" in {vector.name for vector in program.vectors}


def test_maxima_of_integers_cost_nothing():
    """NVIDIA's compiler makes one instruction of them, with and without what keeps NaN."""
    kernel = (
        '\nextern "C" __global__ void k(int* a, float* b) { a[threadIdx.x] = min(max(a[threadIdx.x], 0), a[0]);%s }\n'
    )
    floats = " b[threadIdx.x] = max(b[threadIdx.x], 0.0f);"
    assert _ptx(complete(kernel % "")) == _ptx(kernel % "")
    assert b"max.f32" in _ptx(kernel % floats)
    assert b"max.f32" not in _ptx(complete(kernel % floats))


def _ptx(source: str) -> bytes:
    return nvrtc.compile_cuda(source, ["compute_87"]).image


def test_rows_too_long_to_be_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(count_order, "LONGEST", 40)
    network = nn.Sequential(nn.Linear(4, 50), Apply(lambda x: x.sort(1).values)).eval()
    program = from_module(network, "network", "network", [(1, 4)])
    with pytest.raises(UnsupportedOperatorError, match=r"argsort in 1 goes over 50 elements; on GPUs .* 40 at most"):
        build(program, BOARD, tmp_path / "out")
