"""Winograd's minimal filtering: its matrices, its error, what is computed so, and what a network knows of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from test_passes import RANDOM, Graph
from test_schedules import HOST, Kernel, compiled, convolution, in_blocks
from torch import nn
from tvm import relax
from tvm.s_tir import Schedule

from tvmflow.passes.records import ANNOTATION, expand
from tvmflow.pipeline import run_stages
from tvmflow.schedules import spell
from tvmflow.schedules.convolutions import Convolution, read_convolutions
from tvmflow.schedules.cpu import RULES, tiles
from tvmflow.schedules.winograd import POINTS, define, matrices, products_of, read_winograd, serves, transform_weights
from tvmflow.spec import Target
from tvmflow.targets import TARGETS
from tvmflow.targets.cpu.passes import choose_winograd
from tvmflow.tune.tasks import extract, task_of

BOARD = TARGETS["raspberry-pi-4b"]
"""One whose choices don't depend on the computer that runs the tests."""
DIRECT = choose_winograd.DIRECT


def blocked(inputs: int, outputs: int, size: int, padding: int = 1, **options) -> Kernel:
    shape = (1, inputs, size, size)
    return in_blocks(convolution(shape, (outputs, inputs, 3, 3), padding=(padding,) * 4, **options))


def conv_of(kernel: Kernel, target: Target = BOARD) -> Convolution:
    (conv,) = read_convolutions(kernel.prim_func(target))
    return conv


@pytest.mark.parametrize("outputs", POINTS)
def test_matrices_filter_a_row(outputs):
    by = matrices(outputs)
    row, taps = RANDOM.standard_normal(outputs + 2), RANDOM.standard_normal(3)
    found = by.restore @ ((by.weights @ taps) * (by.data @ row))
    np.testing.assert_allclose(found, [row[place : place + 3] @ taps for place in range(outputs)], atol=1e-13)


def test_transformed_weights_lie_in_blocks():
    weight = RANDOM.standard_normal((8, 3, 3, 3))
    found = transform_weights(weight, 2, 4)
    assert found.shape == (2, 4, 4, 3, 4)
    assert found.dtype == np.float32
    by = matrices(2).weights
    np.testing.assert_allclose(found[1, :, :, 2, 3], by @ weight[7, 2] @ by.T, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("outputs", POINTS)
def test_definition_is_right_without_a_schedule(outputs):
    kernel = replace(blocked(16, 16, 7, tail="bias+residual+relu"), winograd=outputs)
    assert largest_error(kernel, kernel.prim_func()) < 1e-6


def largest_error(kernel: Kernel, func: tvm.tirx.PrimFunc) -> float:
    """The largest |difference| to float64, as a share of the largest |value|."""
    return difference(kernel, func, kernel.arrays())


def difference(kernel: Kernel, func: tvm.tirx.PrimFunc, arrays: list[np.ndarray]) -> float:
    exact = kernel.oracle(*(torch.from_numpy(array).double() for array in arrays)).numpy()
    *given, exact = kernel.laid_out(HOST, *arrays, exact)
    result = tvm.runtime.tensor(np.zeros(exact.shape, "float32"))
    compiled({"kernel": func})["kernel"](*map(tvm.runtime.tensor, given), result)
    return float(np.abs(result.numpy() - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize(("outputs", "times"), [(2, 1), (4, 5)])
def test_error_is_of_the_direct_sums_size(outputs, times):
    """On inputs as they are behind a ReLU, and weights as of training: the sizes of channels differ by decades."""
    direct = blocked(64, 64, 20)
    data, weight = direct.arrays()
    sizes = (10 ** RANDOM.uniform(-2, 0, 64)).astype("float32")
    arrays = [np.maximum(data, 0) * sizes[:, None, None], weight * sizes[::-1, None, None, None].copy()]
    of_sum = difference(direct, RULES["conv_blocked"](direct.prim_func(), HOST).mod["main"], arrays)
    kernel = replace(direct, winograd=outputs)
    found = difference(kernel, RULES["winograd"](kernel.prim_func(), HOST).mod["main"], arrays)
    assert found < times * max(of_sum, 4e-7)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (blocked(64, 64, 56), 4),
        (blocked(128, 128, 28), 4),
        (blocked(256, 256, 14), 2),  # of which F(4×4) would have more weights than time for them
        (blocked(512, 512, 7), DIRECT),  # its weights take longer to come than to be used
        (blocked(256, 256, 3), DIRECT),
        (blocked(64, 64, 1), DIRECT),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_pays_on_a_board(kernel, expected):
    assert choose_winograd.choose(conv_of(kernel), BOARD) == expected


def test_others_are_left_alone():
    others = (
        convolution((1, 16, 8, 8), (16, 16, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
        convolution((1, 16, 8, 8), (16, 16, 3, 3), dilation=(2, 2), padding=(2, 2, 2, 2)),
        convolution((1, 16, 8, 8), (16, 16, 1, 3)),
        convolution((1, 16, 8, 8), (16, 16, 5, 5)),
    )
    assert not any(serves(conv_of(in_blocks(kernel))) for kernel in others)
    assert read_winograd(blocked(16, 16, 8).prim_func()) is None


@pytest.fixture
def always(monkeypatch):
    """F(4×4) wherever it can be, whatever the computer that runs the tests is good at."""
    monkeypatch.setattr(choose_winograd, "choose", lambda conv, target: 4)


def layers_of(graph: Graph, target: Target, *results: relax.Var):
    return graph.check(graph.program(*results), target).layers


def test_a_network_keeps_its_multiply_adds(always):
    """Those of the network are reported, and those that are done beside them; one array serves two layers."""
    graph = Graph(1, 64, 24, 24)
    weight = relax.const((RANDOM.standard_normal((64, 64, 3, 3)) / 24).astype("float32"))
    value = graph.relu(graph.conv(graph.input, "first", 64))
    for name in ("second", "third"):
        exact = nn.functional.conv2d(graph.exact[value], torch.from_numpy(weight.value.numpy()).double(), padding=1)
        value = graph.emit(name, relax.op.nn.conv2d(value, weight, padding=[1, 1]), exact)
    result = graph.check(graph.program(graph.pool(value)))
    layers = [layer for layer in result.layers if layer.modules in (("second",), ("third",))]
    assert [layer.schedule for layer in layers] == ["winograd"] * 2
    assert [layer.macs for layer in layers] == [24 * 24 * 9 * 64 * 64] * 2
    assert [layer.live_macs for layer in layers] == [6 * 6 * 36 * 64 * 64] * 2
    assert [layer.weight_bytes for layer in layers] == [4 * 36 * 64 * 64] * 2
    assert result.memory["weights_bytes"] == 4 * (64 * 64 + 64 + 36 * 64 * 64)


@pytest.mark.parametrize("factor", [np.inf, 1e38])
def test_weights_that_would_overflow_stay(factor, always):
    weight = RANDOM.uniform(0.5, 1, (64, 64, 3, 3)).astype("float32")
    weight[3, 4, 1, 1] = factor
    graph = Graph(1, 64, 24, 24)
    value = graph.relu(graph.conv(graph.input, "first", 64))
    value = graph.conv(value, "second", 64, (3, 3), padding=(1, 1), weight=weight)
    result = run_stages(graph.program(graph.pool(value)), HOST)
    assert "winograd" not in {layer.schedule for layer in result.layers}


def test_boards_can_do_without(always):
    graph = Graph(1, 64, 24, 24)
    value = graph.relu(graph.conv(graph.input, "first", 64))
    value = graph.pool(graph.conv(value, "second", 64, (3, 3), padding=(1, 1)))
    without = replace(HOST, schedules=tuple(rule for rule in HOST.schedules if rule != "winograd"))
    assert "winograd" not in {layer.schedule for layer in layers_of(graph, without, value)}


def test_searches_know_it(always):
    """A task comes back from a store's line with its rule's tiles, and a record of one makes the kernel."""
    graph = Graph(1, 64, 24, 24)
    value = graph.relu(graph.conv(graph.input, "first", 64))
    program = graph.program(graph.pool(graph.conv(value, "second", 64, (3, 3), padding=(1, 1))))
    (task,) = (task for task in extract(program, HOST) if task.modules == ("second",))
    again = task_of(task.key, task.name, task.workload)
    assert again is not None
    found = tiles("winograd", again.func, HOST)
    assert len(found) > 2
    scheduled = Schedule(again.module)
    scheduled.annotate(scheduled.get_sblock("root"), ANNOTATION, spell("winograd", {"tile": found[-1]}))
    kernel = expand(scheduled.mod, again.module, HOST)["main"]
    assert tvm_ffi.structural_equal(kernel.body, RULES["winograd"](again.func, HOST, found[-1]).mod["main"].body)


def test_not_a_number_reaches_its_tile_and_nothing_else():
    """NaN wherever the direct sum has it, and beside it in the tiles that read it."""
    kernel = replace(blocked(16, 16, 12), winograd=4)
    data, weight = kernel.arrays()
    data[0, 3, 4, 4] = np.nan  # which the tiles from rows and columns 0, 4 read
    exact = kernel.oracle(torch.from_numpy(data), torch.from_numpy(weight)).numpy()
    *given, expected = kernel.laid_out(HOST, data, weight, exact)
    result = tvm.runtime.tensor(np.zeros(expected.shape, "float32"))
    func = RULES["winograd"](kernel.prim_func(), HOST).mod["main"]
    compiled({"kernel": func})["kernel"](*map(tvm.runtime.tensor, given), result)
    lost = np.isnan(result.numpy())
    assert lost[np.isnan(expected)].all()
    assert not lost[:, :, 8:].any()
    assert not lost[:, :, :, 8:].any()


def test_products_are_fewer_than_the_direct_sums():
    conv = conv_of(blocked(64, 64, 16))
    assert conv.macs == 4 * products_of(conv, 4)
    assert 4 * conv.macs == 9 * products_of(conv, 2)


def test_a_scheduled_kernel_is_no_definition():
    kernel = replace(blocked(16, 16, 8), winograd=2)
    func = kernel.prim_func()
    scheduled = RULES["winograd"](func, HOST).mod["main"].with_attrs(func.attrs)
    assert read_winograd(scheduled) is None
    assert read_winograd(define(blocked(16, 16, 8).prim_func(), 2)) is not None
