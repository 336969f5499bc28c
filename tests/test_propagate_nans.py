"""Not a number stays that on every float target, infinity stays infinite, and neither costs a vector loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from torch import nn
from tvm import relax, tirx

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.network.frontend import from_module
from tvmflow.passes.fuse_operators import kernels
from tvmflow.passes.infinite_extremes import infinite_extremes
from tvmflow.passes.propagate_nans import with_nans
from tvmflow.spec import MissingDependencyError
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import of

SHAPE = (1, 3, 8, 8)


class Extremes(nn.Module):
    """Every way to a maximum or a minimum, behind a convolution and by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = nn.functional.max_pool2d
        return (
            torch.relu(self.convolution(x)),
            nn.functional.relu6(x),
            x.clamp(-1, 2),
            nn.functional.hardswish(x),
            pooled(x, 3, 1, 1),
            pooled(torch.relu(self.convolution(x)), 2),
            torch.maximum(x, x.flip(3)),
            torch.minimum(x.flip(2), x),
            x.amax((2, 3)),
            x.amin(1),
        )


def chain() -> nn.Module:
    """What a microcontroller takes."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 3))


def inputs() -> list[np.ndarray]:
    """NaN in one pixel; infinities; −∞ alone."""
    rng = np.random.default_rng(3)
    found = [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2)]
    found[0][0, 1, 4, 5] = np.nan
    found[1][0, 0, 1, 1], found[1][0, 2, 6, 3] = np.inf, -np.inf
    return [*found, np.full(SHAPE, -np.inf, np.float32)]


BOARDS = {
    "host": Extremes,
    "raspberry-pi-4b": Extremes,
    "raspberry-pi-3b-32bit": Extremes,
    "mps2-an386": chain,
    "mps3-an547": chain,
}


@pytest.mark.emulated
@pytest.mark.parametrize("name", BOARDS)
def test_as_in_pytorch(tmp_path, name):
    board = replace(TARGETS[name], arithmetic="float32")
    torch.manual_seed(0)
    network = BOARDS[name]().eval()
    program = from_module(network, "extremes", "extremes", [SHAPE])
    backend = of(board)
    build(program, board, tmp_path / "net")
    with open_bundle(tmp_path / "net") as bundle:
        try:
            _, run = backend.find_runner(bundle.library, board, bundle.outputs)
            results = run([(array,) for array in inputs()])
        except MissingDependencyError as error:
            pytest.skip(str(error))
    for array, ours in zip(inputs(), results, strict=True):
        with torch.no_grad():
            theirs = network(torch.from_numpy(array))
        for given, wanted in zip(ours, theirs if isinstance(theirs, tuple) else (theirs,), strict=True):
            np.testing.assert_allclose(given, wanted.numpy(), rtol=1e-4, atol=1e-5)


def te_kernel(make, *shapes: tuple[int, ...]) -> tirx.PrimFunc:
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", parameters):
        builder.emit_func_output(builder.emit_te(make, *parameters))
    (func,) = kernels(builder.get()).values()
    return func


def run_on(func: tirx.PrimFunc, result: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
    compiled = tvm.compile(func.with_attr("global_symbol", "main"), "llvm")
    out = tvm.runtime.tensor(result)
    compiled["main"](*map(tvm.runtime.tensor, arrays), out)
    return out.numpy()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("largest", [True, False])
def test_a_constant_on_either_side(largest, first):
    extreme = tirx.max if largest else tirx.min

    def make(x):
        def value(i):
            number = tirx.const(0, "float32")
            return extreme(number, x(i)) if first else extreme(x(i), number)

        return tvm.te.compute(x.shape, value)

    x = np.array([np.nan, np.inf, -np.inf, 2, -2], np.float32)
    wanted = (np.maximum if largest else np.minimum)(x, np.float32(0))
    assert np.array_equal(run_on(with_nans(te_kernel(make, (5,))), np.zeros_like(x), x), wanted, equal_nan=True)


def test_a_constant_comes_first_and_stays_one_instruction():
    func = with_nans(
        te_kernel(lambda x: tvm.te.compute(x.shape, lambda i: tirx.max(x(i), tirx.const(0, "float32"))), (5,))
    )
    assert "T.max(T.float32(0.0), x0" in func.script()
    assert "Select" not in func.script()


def test_integers_are_left_alone():
    func = te_kernel(lambda x: tvm.te.compute(x.shape, lambda i: tirx.max(x(i).astype("int32"), 0)), (5,))
    assert tvm_ffi.structural_equal(with_nans(func), func)


@pytest.mark.parametrize("largest", [True, False])
def test_two_numbers(largest):
    extreme = tirx.max if largest else tirx.min
    func = te_kernel(lambda x, y: tvm.te.compute(x.shape, lambda i: extreme(x(i), y(i))), (25,), (25,))
    values = np.array([np.nan, np.inf, -np.inf, 2, -2], np.float32)
    x, y = np.repeat(values, 5), np.tile(values, 5)
    wanted = (np.maximum if largest else np.minimum)(x, y)
    assert np.array_equal(run_on(with_nans(func), np.zeros_like(x), x, y), wanted, equal_nan=True)


def test_maxima_start_from_infinity_and_other_numbers_stay():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 5, 5), "float32"))
    with builder.function("main", [x]):
        pooled = builder.emit(relax.op.nn.max_pool2d(x, (3, 3), padding=(1, 1, 1, 1)))
        filled = builder.emit(relax.op.full((2,), relax.const(float(np.finfo(np.float32).min)), "float32"))
        builder.emit_func_output(builder.emit(relax.Tuple([pooled, filled])))
    module = infinite_extremes(relax.transform.LegalizeOps()(builder.get()))
    pool = next(func.script() for name, func in kernels(module).items() if "pool" in name)
    assert "3402823466" not in pool
    assert "inf" in pool
