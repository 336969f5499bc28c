"""One-dimensional convolutions as two-dimensional ones: right answers, the rules of maps, and the layers' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import tvm
from strangers import Of
from torch import Tensor, nn
from torch.nn import functional as F
from tvm import relax

from tvmflow.bundles.build import build
from tvmflow.network.frontend import from_module
from tvmflow.passes.constants import operator
from tvmflow.passes.fold_batchnorm import fold_batchnorm
from tvmflow.passes.fold_padding import fold_padding
from tvmflow.passes.multiply_adds import multiply_adds, static_shape
from tvmflow.passes.rows_as_maps import rows_as_maps
from tvmflow.pipeline import run_stages
from tvmflow.spec import Layer, Program
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS

HOST = replace(TARGETS["host"], cpu=replace(TARGETS["host"].cpu, cores=4))
ROWS = ("relax.nn.conv1d", "relax.nn.conv1d_transpose")
MAPS = ("relax.nn.conv2d", "relax.nn.conv2d_transpose")
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network of rows and the shapes of its inputs."""

    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]


CASES: dict[str, Case] = {}


def case(*shapes: Shape) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def enter(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES[make.__name__] = Case(make=make, shapes=shapes)
        return make

    return enter


@case((1, 3, 61))
def strides_and_dilations() -> nn.Module:
    first = [nn.Conv1d(3, 16, 7, 2, padding=3), nn.BatchNorm1d(16), nn.SiLU()]
    second = [nn.Conv1d(16, 20, 3, padding=4, dilation=4), nn.LeakyReLU(0.2), nn.Conv1d(20, 5, 1)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(155, 4))


@case((2, 4, 40))
def causal_residual() -> nn.Module:
    def layer(before: int, rate: int) -> nn.Module:
        return nn.Sequential(nn.ConstantPad1d((2 * rate, 0), 0.0), nn.Conv1d(before, 16, 3, dilation=rate), nn.Tanh())

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.first(x)
        x = F.relu(x + s.second(x)) * 0.5
        return s.out((x - s.third(x))[:, :, -1])

    return Of(forward, first=layer(4, 1), second=layer(16, 2), third=layer(16, 4), out=nn.Linear(16, 3))


@case((2, 6, 33))
def separable() -> nn.Module:
    def layer(before: int, after: int, size: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv1d(before, before, size, stride, size // 2, groups=before, bias=False)
        return [depthwise, nn.BatchNorm1d(before), nn.ReLU6(), nn.Conv1d(before, after, 1), nn.BatchNorm1d(after)]

    layers = [*layer(6, 16, 5, 1), nn.Hardswish(), *layer(16, 32, 9, 2), nn.PReLU(32), *layer(32, 16, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())


@case((1, 8, 30))
def groups() -> nn.Module:
    return nn.Sequential(nn.Conv1d(8, 16, 3, padding=1, groups=4), nn.ReLU(), nn.Conv1d(16, 16, 3, 3, groups=2))


@case((1, 3, 40), (1, 2, 20))
def two_inputs() -> nn.Module:
    def forward(s: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([F.max_pool1d(F.relu(s.left(x)), 2), s.right(y)], 1)
        longer = torch.cat([both, F.avg_pool1d(both, 4)], 2)
        first, second = s.onward(longer).chunk(2, 1)
        return (torch.sigmoid(first) * torch.exp(-second.abs())).mean(2)

    left, right = nn.Conv1d(3, 16, 3, padding=1), nn.Conv1d(2, 16, 5, padding=2)
    return Of(forward, left=left, right=right, onward=nn.Conv1d(32, 32, 3, padding=1))


@case((1, 4, 24))
def several_outputs() -> nn.Module:
    """Results that are rows: of a convolution, of what is between two, and of what is turned around."""

    def forward(s: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        first = s.first(x)
        between = torch.clamp(first, -0.5, 0.5)
        second = s.second(between)
        return between, second, second.transpose(1, 2), torch.maximum(first, second)

    return Of(forward, first=nn.Conv1d(4, 16, 3, padding=1), second=nn.Conv1d(16, 16, 5, padding=2))


@case((1, 6, 32))
def what_reads_rows() -> nn.Module:
    """Normalisation over the channels, a matrix product along the row, borders of other kinds, a transposed layer."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = F.gelu(s.first(F.pad(x, (2, 2), mode="reflect")))
        y = s.norm(y.transpose(1, 2)).transpose(1, 2) + y
        y = F.pad(s.second(y), (1, 3), value=0.25)
        return s.along(s.back(y)) + s.along(x.mean(1, keepdim=True).repeat(1, 1, 2)[:, :, :62])

    first, second = nn.Conv1d(6, 16, 5), nn.Conv1d(16, 8, 3, 2)
    return Of(forward, first=first, norm=nn.LayerNorm(16), second=second, back=back(), along=nn.Linear(62, 5))


def back() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose1d(8, 8, 4, 2, padding=1), nn.ConstantPad1d((0, 24), 0.0))


@case((2, 3, 50))
def views() -> nn.Module:
    """Rows that become maps in the network itself, and maps of one row that become rows."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = s.first(x).unsqueeze(2)
        y = s.flat(F.relu(y)).squeeze(2)
        y = s.second(y).reshape(2, 4, 4, -1)
        return y.amax(1) + y.sum(1)

    second = nn.Conv1d(16, 16, 2, 2)
    return Of(forward, first=nn.Conv1d(3, 16, 3), flat=nn.Conv2d(16, 16, (1, 3), padding=(0, 1)), second=second)


@case((1, 5, 20), (16, 20))
def other_operands() -> nn.Module:
    """Tensors of fewer axes beside rows, a row of one channel, and a number."""

    def forward(s: nn.Module, x: Tensor, places: Tensor) -> Tensor:
        y = s.first(x) + places
        y = torch.where(y > 0, y, y * s.slopes) / (1 + x[:, :1].abs())
        return s.second(y - y.mean(1, keepdim=True)).max(2).values + y.mean((1, 2))

    slopes = nn.Parameter(torch.rand(20))
    return Of(forward, first=nn.Conv1d(5, 16, 3, padding=1), slopes=slopes, second=nn.Conv1d(16, 16, 1))


def imported(name: str) -> tuple[nn.Module, Program]:
    torch.manual_seed(7)
    network = CASES[name].make().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return network, from_module(network, name, name, CASES[name].shapes)


def rows_in(program: Program) -> list[str]:
    return [binding.var.name for binding in bindings(program) if operator(binding.value) in ROWS]


def bindings(program: Program) -> list[relax.VarBinding]:
    return [binding for block in program.module["main"].body.blocks for binding in block.bindings]


def run(program: Program, arrays: list[np.ndarray]) -> list[np.ndarray]:
    library = tvm.relax.build(program.module, tvm.target.Target(tvm_target_dict(HOST)), relax_pipeline=None)
    given = relax.VirtualMachine(library, tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays))
    return [output.numpy() for output in ([given] if isinstance(given, tvm.runtime.Tensor) else given)]


@pytest.mark.parametrize("name", CASES)
def test_answers_and_rules(name):
    network, program = imported(name)
    compiled = run_stages(program, HOST)
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape, np.float32) for shape in CASES[name].shapes]
    with torch.no_grad():
        exact = network.double()(*(torch.from_numpy(array).double() for array in arrays))
    expected = exact if isinstance(exact, tuple) else (exact,)
    for output, right in zip(run(compiled, arrays), expected, strict=True):
        assert output.shape == tuple(right.shape)
        np.testing.assert_allclose(output, right.numpy(), rtol=0, atol=3e-5 * max(1, float(right.abs().max())))

    before = {binding.var.name: multiply_adds(binding.value) for binding in bindings(program)}
    assert sum(layer.macs for layer in compiled.layers) == sum(before.values()) > 0
    assert all(layer.modules for layer in compiled.layers if layer.macs)
    assert not [layer.kernel for layer in compiled.layers if "conv" in layer.kernel and not is_ruled(layer)]


def is_ruled(layer: Layer) -> bool:
    return layer.schedule not in ("lanes", "default")


@pytest.mark.parametrize("name", CASES)
def test_every_convolution_is_one_of_maps(name):
    program = fold_batchnorm(fold_padding(imported(name)[1], HOST), HOST)
    lifted = rows_as_maps(program, HOST)
    names = [binding.var.name for binding in bindings(lifted) if operator(binding.value) in MAPS]
    assert set(rows_in(program)) <= set(names)
    assert not rows_in(lifted)
    signatures = [
        [static_shape(tensor.ty) for tensor in function.params]
        for function in (program.module["main"], lifted.module["main"])
    ]
    assert signatures[0] == signatures[1]
    tvm.ir.assert_structural_equal(lifted.module["main"].ret_ty, program.module["main"].ret_ty)


def test_gpus_take_the_rules_of_maps(tmp_path):
    """On the stand-in, where there is no such GPU."""
    built = build(imported("two_inputs")[1], TARGETS["jetson-orin-nano"], tmp_path / "out")
    assert built.manifest["verify"]["passed"]
    assert [layer.schedule for layer in built.layers if layer.macs] == ["convolution"] * 3


def test_nothing_is_between_a_convolution_and_its_tail():
    """The one view of rows is that of the input; what is flattened at the end is a view of the map itself."""
    _, program = imported("strides_and_dilations")
    lifted = rows_as_maps(fold_batchnorm(program, HOST), HOST)
    reshapes = [static_shape(b.value.ty) for b in bindings(lifted) if operator(b.value) == "relax.reshape"]
    assert reshapes == [(1, 3, 1, 61), (1, 155)]
    layers = run_stages(program, HOST).layers
    assert [layer.modules for layer in layers] == [("0", "1", "2"), ("3", "4"), ("5",), ("7",)]
    assert [layer.schedule for layer in layers[:3]] == ["conv_blocked", "conv_blocked", "pointwise_nchw"]


def test_networks_without_rows_stay():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(2), nn.Softmax(1)).eval()
    program = from_module(network, "maps", "maps", ((1, 3, 6, 6),))
    assert rows_as_maps(program, HOST) is program


def test_computed_weights_stay_rows():
    class Correlation(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return F.relu(F.conv1d(x, weight))

    program = from_module(Correlation().eval(), "computed", "computed", ((1, 3, 20), (4, 3, 5)))
    assert rows_as_maps(program, HOST) is program
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape, np.float32) for shape in ((1, 3, 20), (4, 3, 5))]
    (output,) = run(run_stages(program, HOST), arrays)
    right = F.relu(F.conv1d(*(torch.from_numpy(array).double() for array in arrays))).numpy()
    np.testing.assert_allclose(output, right, rtol=0, atol=1e-5)
