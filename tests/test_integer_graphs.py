"""Quantised graphs: read exactly, quantised near the original, and the same to the bit on every kind of CPU and GPU."""

from __future__ import annotations

import functools
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from compiling import compiled
from conftest import needs_emulator
from imported import quantised, quantised_stranger
from integer_graphs import KINDS as DRAWN
from integer_graphs import RESIDUAL, random_graph, random_inputs, together
from onnx import helper, numpy_helper
from strangers import STRANGERS
from test_integer_kernels import KINDS as CPUS
from torch import nn
from torch.nn import functional

from tvmflow.bundles.build import build
from tvmflow.integer import graph as float_graphs
from tvmflow.integer.file import load, save
from tvmflow.integer.fine_tune import FakeQuantised
from tvmflow.integer.frontend import integer_program
from tvmflow.integer.graph import FloatGraph
from tvmflow.integer.layers import SCHEMES, IntegerNode
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.operators import (
    FROM_FILES,
    OPERATORS,
    OUTSIDE,
    Concat,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Product,
    Resample,
    Softmax,
    Sum,
)
from tvmflow.integer.post_training import Method, logarithms, normalised, quantize
from tvmflow.integer.reader import float_graph
from tvmflow.integer.reference import REFERENCES, run_layer
from tvmflow.network.frontend import from_module, import_model
from tvmflow.passes.integer_kernels import slices_of
from tvmflow.schedules.nodes import VALUES
from tvmflow.spec import Program, UnsupportedOperatorError, UserError
from tvmflow.targets import TARGETS, compute_in
from tvmflow.targets.kind import of, verify_library

HOST = TARGETS["host"]
METHOD = Method(count=24)
EVERY_KIND = set(OPERATORS) - {operator.kind for operator in FROM_FILES}
"""Of operators that networks of real numbers have; test_tflite has the others."""
GRAPHS = int(os.environ.get("TVMFLOW_GRAPHS", "40"))
"""Random graphs of each scheme that this computer's code is compared on; boards get a quarter."""
TOGETHER = 50
"""Graphs that are compiled at once."""


# ------------------------------------------------------------------------------------------------- operators


def test_every_operator_has_every_meaning():
    """Real and exact numbers, loops, a name in files, and a way to be drawn at random."""
    operators = set(OPERATORS.values())
    assert operators == set(REFERENCES) == set(VALUES)
    assert operators - set(FROM_FILES) == set(float_graphs.REAL)
    assert set(DRAWN) > EVERY_KIND


def node(operator, *shapes: tuple[int, ...], **fields) -> IntegerNode:
    given = {"minimum": -128, "maximum": 127, "dtype": "int8"} | fields
    return IntegerNode(
        name="node",
        modules=(),
        operator=operator,
        inputs=tuple(f"x{number}" for number in range(len(shapes))),
        scale=1.0,
        input_shapes=shapes,
        output_shape=operator.out_shape(*shapes),
        **given,
    )


def array(shape: tuple[int, ...], seed: int = 0, low: int = -128, high: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int8 if low < 0 else np.uint8)


def test_sums_and_products_round_halves_up_and_saturate():
    a, b = array((1, 5, 3, 4)), array((1, 5, 1, 1), 1)
    added = run_layer(node(Sum(signs=(1, -1)), a.shape, b.shape, factors=np.array([3, -5], np.int32), shift=3), a, b)
    multiplied = run_layer(node(Product(), a.shape, b.shape, factors=np.array([9], np.int32), shift=10), a, b)
    for place in np.ndindex(a.shape):
        x, y = int(a[place]), int(b[place[0], place[1], 0, 0])
        assert added[place] == min(127, max(-128, math.floor((3 * x - 5 * y) / 8 + 0.5)))
        assert multiplied[place] == min(127, max(-128, math.floor(9 * x * y / 1024 + 0.5)))


def test_pools_shuffles_tables_and_probabilities():
    x = array((1, 6, 5, 4))
    shuffled = np.arange(x.size).reshape(2, 3, 5, 4).transpose(1, 0, 2, 3).reshape(x.shape).astype(np.int32)
    given = torch.nn.functional.channel_shuffle(torch.from_numpy(x.astype(np.int32)), 2).numpy()
    assert np.array_equal(run_layer(node(Gather(places=shuffled), x.shape), x), given)
    bordered = np.pad(shuffled, ((0, 0), (1, 0), (0, 2), (1, 1)), constant_values=OUTSIDE)
    wanted = np.pad(given, ((0, 0), (1, 0), (0, 2), (1, 1)))
    assert np.array_equal(run_layer(node(Gather(places=bordered), x.shape), x), wanted)
    window = float_graphs.Window(kernel=(2, 3), stride=(2, 1), padding=(1, 0, 0, 2), size=(5, 4))
    largest = functional.max_pool2d(
        functional.pad(torch.from_numpy(x).float(), (0, 2, 1, 0), value=-math.inf), (2, 3), (2, 1)
    )
    assert np.array_equal(run_layer(node(MaxPool(window=window), x.shape), x), largest.numpy())
    table = np.random.default_rng(1).integers(-128, 128, 256).astype(np.int32)
    found = run_layer(node(OPERATORS["table"](), x.shape, table=table), x)
    assert all(found[place] == table[int(x[place]) % 256] for place in np.ndindex(x.shape))
    units = np.rint(np.exp(-np.arange(256) / 20) * 2**15).astype(np.int32)
    softmax = node(Softmax(axis=1), x.shape, table=units, minimum=0, maximum=255, dtype="uint8")
    real = np.exp(x / 20) / np.exp(x / 20).sum(1, keepdims=True)
    assert np.abs(run_layer(softmax, x) - (real * 256).clip(0, 255)).max() <= 1


def test_normalisations_logarithms_and_products_are_within_a_step():
    """A box that is constant is 0 of its deviation, however small ε is."""
    x = array((1, 6, 5, 4))
    x[0, :2] = 7
    gamma, beta = np.linspace(-2, 3, 6), np.linspace(-1, 1, 6)
    for lengths in ((2, 5, 4), (1, 5, 4), (6, 1, 1), (3, 1, 2)):
        operator = Normalise(lengths=lengths, epsilon=1e-5, gamma=gamma, beta=beta)
        made = node(Normalise(lengths=lengths), x.shape, **normalised(operator, 0.02, 0.05, 6))
        real = float_graphs.REAL[Normalise](operator, torch.from_numpy(x * np.float32(0.02))).numpy()
        assert np.abs(run_layer(made, x) - (real / 0.05).clip(-128, 127)).max() < 0.52, lengths
    for axis in (1, 2, 3):
        made = node(LogSoftmax(axis=axis), x.shape, **logarithms(0.03, 0.1, x.shape[axis]))
        real = torch.log_softmax(torch.from_numpy(x * np.float32(0.03)), axis).numpy()
        assert np.abs(run_layer(made, x) - (real / 0.1).clip(-128, 127)).max() < 0.6, axis
    other = array((1, 6, 4, 7), 3)
    made = node(MatMul(), x.shape, other.shape, factors=np.array([5], np.int32), shift=12)
    wanted = np.floor(5 * (x.astype(int) @ other) / 4096 + 0.5).clip(-128, 127)
    assert np.array_equal(run_layer(made, x, other), wanted)


def test_interpolation_is_within_a_step():
    x = array((1, 3, 7, 5))
    for mode, corners in (("bilinear", False), ("bilinear", True), ("bicubic", False)):
        graph = read(nn.Upsample((12, 9), mode=mode, align_corners=corners), x.shape)
        (layer,) = graph.layers
        assert isinstance(layer.operator, Resample)
        shift = 2 * layer.operator.bits
        made = node(layer.operator, x.shape, shift=shift)
        real = functional.interpolate(torch.from_numpy(x).float(), (12, 9), mode=mode, align_corners=corners).numpy()
        assert np.abs(run_layer(made, x) - real.clip(-128, 127)).max() < 0.6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factors": np.array([1], np.int32)}, "needs 2 factors"),
        ({"factors": np.array([2**24, 1], np.int32)}, "could overflow int32"),
        ({"shift": 31}, "has a shift of 31"),
        ({"output_shape": (1, 3, 2, 3)}, "makes"),
        ({"inputs": ("input", "nothing")}, "doesn't read earlier layers"),
        ({"maximum": 300}, "saturates at"),
        ({"operator": Concat(axis=1)}, "makes"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    added = node(Sum(signs=(1, 1)), (1, 3, 2, 2), (1, 3, 2, 2), factors=np.array([1, 1], np.int32))
    added = replace(added, **({"inputs": ("input", "input")} | changes))
    with pytest.raises(UserError, match=words):
        IntegerNetwork.chain(
            name="net", scheme="per-channel", input_shape=(1, 3, 2, 2), input_scale=1.0, layers=(added,)
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_keeps_graphs(scheme, tmp_path):
    rng = np.random.default_rng(7)
    network = together([random_graph(rng, scheme, prefix=f"g{number}.") for number in range(20)])
    assert {layer.kind for layer in network.layers} >= EVERY_KIND
    save(network, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors")
    inputs = random_inputs(rng, network)
    for given, kept in zip(network.run_all(inputs), loaded.run_all(inputs), strict=True):
        assert np.array_equal(given, kept)
    save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "net.safetensors").read_bytes()


# --------------------------------------------------------------------------------------------------- kernels


def check(graphs: list[IntegerNetwork], board: str, folder: Path) -> None:
    target = compute_in(TARGETS[board], "int8")
    for first in range(0, len(graphs), TOGETHER):
        program = integer_program(together(graphs[first : first + TOGETHER]))
        (folder / str(first)).mkdir()
        library = compiled(program, target, folder / str(first)).library
        verdict = verify_library(library, target, program.vectors, program.outputs)
        assert verdict["passed"], verdict
        assert verdict["max_abs_error"] == 0


def drawn(seed: int, scheme: str, count: int) -> list[IntegerNetwork]:
    rng = np.random.default_rng(seed)
    return [random_graph(rng, scheme, prefix=f"g{number}.") for number in range(count)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_graphs_on_this_computer(scheme, tmp_path):
    check(drawn(11, scheme, GRAPHS), "host", tmp_path)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("board", "scheme"), [("raspberry-pi-4b", "per-channel"), ("raspberry-pi-3b-32bit", "power-of-two")]
)
def test_random_graphs_on_boards(board, scheme, tmp_path):
    needs_emulator(TARGETS[board])
    check(drawn(12, scheme, -(-GRAPHS // 4)), board, tmp_path)


SHARING = [("raspberry-pi-4b", "per-channel"), *((cpu, "per-channel") for cpu in ("host", "AVX2") if cpu in CPUS)]


@pytest.mark.emulated
@pytest.mark.parametrize(("board", "scheme"), [*SHARING, ("host", "power-of-two")])
def test_sums_share_the_kernels_of_layers_before_them(board, scheme, tmp_path):
    """And tables and pools are computed in vectors of bytes where tensors lie so."""
    target = compute_in(CPUS.get(board) or TARGETS[board], "int8")
    if target.elf != HOST.elf:
        needs_emulator(target)
    rng, kinds = np.random.default_rng(17), (RESIDUAL, RESIDUAL, "table", "max_pool", "concat")
    graphs = [random_graph(rng, scheme, prefix=f"g{number}.", layers=6, kinds=kinds) for number in range(12)]
    program = integer_program(together(graphs))
    artifacts = compiled(program, target, tmp_path)
    verdict = verify_library(artifacts.library, target, program.vectors, program.outputs)
    assert verdict["passed"], verdict
    assert verdict["max_abs_error"] == 0
    shared = [layer for layer in artifacts.program.layers if layer.kernel.startswith("integer_convolution_add")]
    assert len(shared) > 5
    assert all(len(layer.modules) > 1 for layer in shared)


def test_random_graphs_on_the_stand_in(tmp_path):
    program = integer_program(together(drawn(13, "per-channel", -(-GRAPHS // 4))))
    bundle = build(program, compute_in(TARGETS["jetson-orin-nano"], "int8"), tmp_path / "bundle")
    assert bundle.manifest["verify"]["max_abs_error"] == 0


# ----------------------------------------------------------------------------------------------- quantising


def read(network: nn.Module, *shapes: tuple[int, ...]) -> FloatGraph:
    return float_graph(imported(network, *shapes))


class _Function(nn.Module):
    """A network of one function and of layers of its own."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: torch.Tensor):
        return self.function(self, *inputs)


def excited(s, x):
    return x * s.gate(x.mean((2, 3), keepdim=True))


def detect(s, x):
    x = s.stem(x)
    boxes = s.boxes(x).permute(0, 2, 3, 1).reshape(1, -1, 4)
    return boxes, s.classes(x).permute(0, 2, 3, 1).reshape(1, -1, 2).softmax(-1)


def shuffle(s, x):
    first, second = s.stem(x).chunk(2, 1)
    return functional.channel_shuffle(torch.cat((first, s.branch(second)), 1), 2)


CASES = {
    "residual": (lambda s, x: torch.relu(s.body(x) + x), {"body": nn.Conv2d(4, 4, 3, padding=1)}),
    "difference": (lambda s, x: x - s.body(x), {"body": nn.Conv2d(4, 4, 3, padding=1)}),
    "relu6": (lambda s, x: functional.relu6(3 * s.body(x)), {"body": nn.Conv2d(4, 6, 1)}),
    "same borders": (lambda s, x: s.body(functional.pad(x, (0, 1, 0, 1))), {"body": nn.Conv2d(4, 6, 2)}),
    "ceil": (lambda s, x: functional.max_pool2d(s.body(x), 3, 2, ceil_mode=True), {"body": nn.Conv2d(4, 6, 2)}),
    "averages": (
        lambda s, x: functional.avg_pool2d(s.body(x), 3, 2, 1, ceil_mode=True, count_include_pad=False),
        {"body": nn.Conv2d(4, 6, 1)},
    ),
    "transposed": (
        lambda s, x: torch.relu(s.up(x)),
        {"up": nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1, groups=2)},
    ),
    "dilated transposed": (lambda s, x: s.up(x), {"up": nn.ConvTranspose2d(4, 3, 3, (1, 2), dilation=2)}),
    "squeeze-excite": (excited, {"gate": nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardsigmoid())}),
    "hard-swish": (lambda s, x: functional.hardswish(s.body(x)), {"body": nn.Conv2d(4, 6, 1)}),
    "silu and gelu": (
        lambda s, x: functional.gelu(s.last(functional.silu(s.body(x)))),
        {"body": nn.Conv2d(4, 6, 1), "last": nn.Conv2d(6, 6, 1)},
    ),
    "prelu": (lambda s, x: s.act(s.body(x)), {"body": nn.Conv2d(4, 6, 1), "act": nn.PReLU(6, 0.3)}),
    "shuffle": (shuffle, {"stem": nn.Conv2d(4, 8, 1), "branch": nn.Conv2d(4, 4, 3, padding=1, groups=4)}),
    "normalised sum": (
        lambda s, x: torch.relu(s.bn(x + s.body(x))),
        {"body": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4)},
    ),
    "pixel shuffle": (lambda s, x: functional.pixel_shuffle(s.body(x), 2), {"body": nn.Conv2d(4, 12, 1)}),
    "two outputs": (
        detect,
        {"stem": nn.Conv2d(4, 6, 3), "boxes": nn.Conv2d(6, 8, 1), "classes": nn.Conv2d(6, 4, 1)},
    ),
    "reflected": (lambda s, x: s.body(functional.pad(x, (1, 2, 2, 1), "reflect")), {"body": nn.Conv2d(4, 3, 3)}),
    "by pixels": (lambda s, x: s.last(x.flatten(2).transpose(1, 2)), {"last": nn.Linear(4, 5)}),
    "by rows": (
        lambda s, x: s.last(x.flatten(2).transpose(1, 2)).transpose(1, 2) + s.weight @ x.flatten(2),
        {"last": nn.Linear(4, 5), "weight": nn.Parameter(torch.randn(5, 4))},
    ),
    "layer norm": (
        lambda s, x: s.last(s.norm(s.first(x).flatten(2).transpose(1, 2))),
        {"first": nn.Conv2d(4, 12, 1), "norm": nn.LayerNorm(12), "last": nn.Linear(12, 5)},
    ),
    "normalised pixels": (
        lambda s, x: s.norm(s.body(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        {"body": nn.Conv2d(4, 8, 1), "norm": nn.LayerNorm(8)},
    ),
    "normalised map": (lambda s, x: s.norm(s.body(x)), {"body": nn.Conv2d(4, 3, 1), "norm": nn.LayerNorm((3, 9, 8))}),
    "groups": (lambda s, x: torch.relu(s.norm(s.body(x))), {"body": nn.Conv2d(4, 6, 1), "norm": nn.GroupNorm(2, 6)}),
    "instances": (
        lambda s, x: torch.relu(s.norm(s.body(x))),
        {"body": nn.Conv2d(4, 6, 1), "norm": nn.InstanceNorm2d(6, affine=True)},
    ),
    "attention": (
        lambda s, x: s.mix(tokens := s.body(x).flatten(2).transpose(1, 2), tokens, tokens, need_weights=False)[0],
        {"body": nn.Conv2d(4, 8, 3, 2), "mix": nn.MultiheadAttention(8, 2, batch_first=True)},
    ),
    "quotient": (lambda s, x: x / (1 + s.body(x).exp()), {"body": nn.Conv2d(4, 4, 1)}),
    "expected places": (
        lambda s, x: s.places(x.flatten(2).softmax(1).unsqueeze(3)),
        {"places": nn.Conv2d(4, 2, 1, bias=False)},
    ),
    "log-softmax": (lambda s, x: s.last(x.flatten(1)).log_softmax(1), {"last": nn.Linear(288, 10)}),
    "a token and places": (
        lambda s, x: torch.cat((s.token, s.body(x)), 1) * s.place + s.place,
        {
            "body": nn.Conv2d(4, 3, 1),
            "token": nn.Parameter(torch.randn(1, 1, 9, 8)),
            "place": nn.Parameter(torch.randn(1, 4, 9, 8)),
        },
    ),
    "largest of rows": (
        lambda s, x: ((y := s.body(x).reshape(4, 3, 18)) * y.amax(2, keepdim=True)).reshape(1, -1),
        {"body": nn.Conv2d(4, 3, 1)},
    ),
    "mean of places": (
        lambda s, x: s.last(s.body(x).permute(0, 2, 3, 1).mean((1, 2))),
        {"body": nn.Conv2d(4, 3, 1), "last": nn.Linear(3, 5)},
    ),
    "mean of all but rows": (lambda s, x: s.body(x).mean((1, 3)), {"body": nn.Conv2d(4, 3, 1)}),
    "length one": (
        lambda s, x: functional.normalize(s.last(x.flatten(1)) + s.middle),
        {"last": nn.Linear(288, 10), "middle": nn.Parameter(torch.linspace(-4, 4, 10))},
    ),
    "response": (
        lambda s, x: ((y := s.body(x).abs().sum((2, 3), keepdim=True)) / y.mean(1, keepdim=True)) * x,
        {"body": nn.Conv2d(4, 4, 1)},
    ),
    "spread": (lambda s, x: s.body(x).std((2, 3)), {"body": nn.Conv2d(4, 6, 1)}),
    "patches": (
        lambda s, x: functional.fold(
            functional.unfold(s.body(x), (3, 2), stride=(3, 2)), (9, 8), (3, 2), stride=(3, 2)
        ),
        {"body": nn.Conv2d(4, 3, 1)},
    ),
    "grid": (
        lambda s, x: (s.body(x).flatten(2) + torch.arange(8).repeat(9) + 0.5).sigmoid(),
        {"body": nn.Conv2d(4, 3, 1)},
    ),
    "border of ones": (
        lambda s, x: torch.cat(
            (functional.pad(s.body(x), (1, 0, 2, 1), value=1.0), functional.pad(x, (0, 1, 0, 3), value=-2.0)), 1
        ),
        {"body": nn.Conv2d(4, 3, 1)},
    ),
    "stack": (lambda s, x: torch.stack((y := s.body(x), y * x), 0).amax(0), {"body": nn.Conv2d(4, 4, 1)}),
    "attention to channels and pixels": (
        lambda s, x: (
            (y := x * torch.sigmoid(s.gate(s.largest(x)) + s.gate(x.mean((2, 3), keepdim=True))))
            * torch.sigmoid(s.map(torch.cat((y.mean(1, keepdim=True), torch.max(y, 1, keepdim=True)[0]), 1)))
        ),
        {"gate": nn.Conv2d(4, 4, 1), "largest": nn.AdaptiveMaxPool2d(1), "map": nn.Conv2d(2, 1, 3, padding=1)},
    ),
    "largest of uneven windows": (
        lambda s, x: torch.cat((s.uneven(y := s.body(x)).flatten(2), s.line(y.flatten(2)), y.max(3).values), 2),
        {"body": nn.Conv2d(4, 3, 1), "uneven": nn.AdaptiveMaxPool2d((4, 5)), "line": nn.AdaptiveMaxPool1d(7)},
    ),
    "channel mean": (
        lambda s, x: s.body(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)),
        {"body": nn.Conv2d(2, 3, 3)},
    ),
}
"""What networks are made of: as PyTorch has it, on 1×4×9×8."""

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    for _, _layers in CASES.values():
        for _layer in _layers.values():
            if isinstance(_layer, nn.Parameter):
                nn.init.normal_(_layer)
            for _module in _layer.modules() if isinstance(_layer, nn.Module) else ():
                for _reset in ("reset_parameters", "_reset_parameters"):  # the latter is attention's
                    if hasattr(_module, _reset):
                        getattr(_module, _reset)()  # the same in every process


def imported(network: nn.Module, *shapes: tuple[int, ...]) -> Program:
    return from_module(network.eval(), "net", "net", list(shapes))


@functools.cache
def imported_case(name: str) -> Program:
    function, layers = CASES[name]
    return imported(_Function(function, **layers), (1, 4, 9, 8))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", CASES)
def test_networks_are_read_and_quantised(name, scheme):
    network = quantised(imported_case(name), scheme)
    assert network.facts["output_sqnr_db"] > 22
    named = {path.partition(".")[0] for layer in network.layers for path in layer.modules}
    assert {name for name, layer in CASES[name][1].items() if isinstance(layer, nn.Module)} <= named


def test_peaks_are_where_a_map_equals_its_largest_neighbour():
    """How many there are of int8 depends on how far apart neighbours are; in real numbers there are PyTorch's."""
    torch.manual_seed(0)
    peaks = lambda s, x: (y := s.body(x).sigmoid()) * (functional.max_pool2d(y, 3, 1, 1) == y).float()  # noqa: E731
    network = _Function(peaks, body=nn.Conv2d(4, 3, 1))
    x = torch.randn(1, 4, 9, 8)
    (found,) = read(network, (1, 4, 9, 8)).outputs_of((x.numpy(),))
    np.testing.assert_allclose(found, network(x).detach().numpy(), rtol=1e-5, atol=1e-6)


class _Branches(nn.Module):
    """Concatenations of branches: of whole vectors of channels but for the last one, and of others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.near, self.far = nn.Conv2d(4, 16, 3), nn.Conv2d(16, 32, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.pooled, self.next, self.odd = nn.Conv2d(16, 21, 1), nn.Conv2d(69, 16, 1), nn.Conv2d(16, 7, 1)
        self.last = nn.Conv2d(39, 32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        pooled = self.pooled(functional.max_pool2d(x, 3, 1, 1))
        y = torch.cat((torch.relu(self.near(x)), torch.relu(x + self.far(x)), torch.relu(pooled)), 1)
        z = torch.relu(self.next(functional.max_pool2d(y, 2)))
        odd = self.odd(z)
        return torch.cat((self.last(torch.cat((odd, functional.max_pool2d(z, 3, 1, 1), z), 1)), odd), 1)


@functools.cache
def branches() -> IntegerNetwork:
    torch.manual_seed(3)
    return quantised(imported(_Branches(), (1, 4, 9, 8)), "per-channel")


@pytest.mark.emulated
@pytest.mark.parametrize("board", [board for board, _ in SHARING])
def test_what_is_concatenated_is_stored_there_at_once(board, tmp_path):
    """Of whole vectors of channels that nothing else reads; a kernel less, and each layer's tensor as it should be."""
    target = compute_in(CPUS.get(board) or TARGETS[board], "int8")
    if target.elf != HOST.elf:
        needs_emulator(target)
    program = integer_program(branches())
    made = compiled(program, target, tmp_path)
    verdict = verify_library(made.library, target, program.vectors, program.outputs)
    assert (verdict["passed"], verdict["max_abs_error"]) == (True, 0)
    assert set(slices_of(branches(), target)) == {"near", "add", "pooled"}
    assert len(made.program.layers) == len(branches().layers) - 2
    runs = [vector.inputs for vector in program.vectors[:2]]
    _, left = of(target).capture(made.library, target, branches(), runs, [row.kernel for row in made.program.layers])
    _, exact = branches().run_kept((np.concatenate([arrays[0] for arrays in runs]),))
    assert {"near", "pooled", "cat"} <= {names[-1] for names, _ in left}
    for names, tensor in left:
        np.testing.assert_array_equal(tensor, exact[names[-1]], str(names))


def test_places_of_maxima_have_no_integer_form_where_they_are_read():
    network = imported(_Function(lambda s, x: (x.max(1).values, x.max(2).indices.float())), (1, 4, 9, 8))
    with pytest.raises(UnsupportedOperatorError) as error:
        float_graph(network)
    assert error.value.operators == {"argmax": ("max_2",)}


@pytest.mark.parametrize("name", ["shufflenet_v2", "erfnet", "deeplab"])
def test_onnx_files_are_read_alike(name, tmp_path):
    """Their converters say slices, borders, PReLU and transposed convolutions in other operators of Relax."""
    stranger = STRANGERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = tuple(torch.zeros(shape) for shape in stranger.shapes)
        torch.onnx.export(stranger.make(), inputs, tmp_path / "net.onnx", dynamo=False, opset_version=13)
    program = import_model(str(tmp_path / "net.onnx"))
    vector = program.vectors[0]
    for given, wanted in zip(float_graph(program).outputs_of(vector.inputs), vector.outputs, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
def test_resizing_of_onnx_files_is_one_interpolation(mode, coordinates, tmp_path):
    """Whatever the coordinates, and where PyTorch has the same ones, its very interpolation."""
    size = np.array([1, 2, 9, 4], np.int64)
    resize = helper.make_node(
        "Resize", ["x", "", "", "size"], ["y"], mode=mode, coordinate_transformation_mode=coordinates
    )
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 2, 5, 7)), ("y", size.tolist()))
    )
    graph = helper.make_graph([resize], "net", [x], [y], [numpy_helper.from_array(size, "size")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    program = import_model(str(tmp_path / "net.onnx"))
    found = float_graph(program)
    (layer,) = found.layers
    assert isinstance(layer.operator, Resample)
    for vector in program.vectors:
        if np.isfinite(vector.inputs[0]).all():
            (given,), (wanted,) = found.outputs_of(vector.inputs), vector.outputs
            np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    if coordinates in ("half_pixel", "align_corners"):
        torch_mode = {"linear": "bilinear", "cubic": "bicubic"}[mode]
        upsample = nn.Upsample((9, 4), mode=torch_mode, align_corners=coordinates == "align_corners")
        (other,) = read(upsample, (1, 2, 5, 7)).layers
        for own, known in zip(layer.operator.axes, other.operator.axes, strict=True):
            np.testing.assert_allclose(dense(own, 7), dense(known, 7), atol=1e-6)


def dense(axis: tuple[np.ndarray, np.ndarray], length: int) -> np.ndarray:
    """Outputs × inputs: places and weights of an axis as a matrix."""
    places, weights = axis
    matrix = np.zeros((len(places), length))
    np.add.at(matrix, (np.arange(len(places))[:, None], places), weights)
    return matrix


def test_a_border_belongs_to_the_layer_behind_it():
    function, layers = CASES["same borders"]
    (layer,) = read(_Function(function, **layers), (1, 4, 9, 8)).layers
    assert layer.padding == (0, 0, 1, 1)


def test_a_causal_convolution_is_one_layer():
    network = _Function(lambda s, x: s.body(functional.pad(x, (4, 0))), body=nn.Conv1d(3, 5, 3, dilation=2))
    (layer,) = read(network, (1, 3, 20)).layers
    assert (layer.padding, layer.weight.shape) == ((0, 4, 0, 0), (5, 3, 1, 3))


def test_what_is_only_moved_costs_nothing():
    """A flattened map in another order is read by a dense layer in its own."""
    torch.manual_seed(0)
    network = _Function(
        lambda s, x: s.last(s.body(x).permute(0, 2, 3, 1).flatten(1)), body=nn.Conv2d(3, 4, 1), last=nn.Linear(80, 5)
    )
    graph = read(network, (1, 3, 5, 4))
    x = torch.randn(1, 3, 5, 4)
    assert [layer.kind for layer in graph.layers] == ["conv2d", "conv2d"]
    np.testing.assert_allclose(graph.outputs_of((x.numpy(),))[0], network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_relu_behind_what_others_read_is_its_own():
    function = lambda s, x: torch.cat((torch.relu(y := s.body(x)), y), 1)  # noqa: E731 (a network in a line)
    graph = read(_Function(function, body=nn.Conv2d(3, 4, 1)), (1, 3, 5, 4))
    assert [layer.kind for layer in graph.layers] == ["conv2d", "conv2d", "concat"]
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 4), np.float32)
    whole = graph.outputs_of((x,))[0]
    assert np.array_equal(whole[:, :4], np.maximum(whole[:, 4:], 0))


def test_all_that_stands_in_the_way_is_named():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LocalResponseNorm(3), nn.Conv2d(4, 4, 1), nn.AdaptiveMaxPool3d(2))
    with pytest.raises(UnsupportedOperatorError, match="no integer form of") as caught:
        read(network, (1, 3, 6, 6))
    assert {path for paths in caught.value.operators.values() for path in paths} == {"1", "3"}


def test_what_holds_for_finite_numbers_is_taken_for_integers_alone():
    """PyTorch's attention asks for rows of −∞, which a network in float32 may meet."""
    function, layers = CASES["attention"]
    program = from_module(_Function(function, **layers).eval(), "net", "net", [(1, 4, 9, 8)])
    assert {"matmul", "softmax"} <= {layer.kind for layer in float_graph(program).layers}
    with pytest.raises(UnsupportedOperatorError, match="can't be compiled: there is no integer form of any"):
        float_graph(program, "compiled")


def test_tied_tensors_have_one_scale():
    torch.manual_seed(2)
    function = lambda s, x: torch.cat((s.loud(x), s.quiet(x)), 1)  # noqa: E731
    for scheme in SCHEMES:
        layers = {"loud": nn.Conv2d(3, 4, 1), "quiet": nn.Conv2d(3, 4, 1)}
        with torch.no_grad():
            layers["quiet"].weight *= 0.01
        network = quantised(imported(_Function(function, **layers), (1, 3, 6, 6)), scheme)
        joined = network.by_name[network.outputs[0].source]
        assert {network.by_name[name].scale for name in joined.inputs} == {joined.scale}


def test_powers_of_two_add_up_by_shifts():
    torch.manual_seed(2)
    function, layers = CASES["residual"]
    network = quantised(imported(_Function(function, **layers), (1, 4, 6, 6)), "power-of-two")
    (added,) = (layer for layer in network.layers if layer.kind == "add")
    assert all(factor & (factor - 1) == 0 for factor in added.factors.tolist())


@pytest.mark.parametrize(
    "name",
    ["residual", "squeeze-excite", "silu and gelu", "shuffle", "averages", "layer norm", "log-softmax", "attention"],
)
def test_what_is_trained_is_the_reference(name):
    torch.manual_seed(3)
    function, layers = CASES[name]
    network = _Function(lambda s, x: function(s, x).flatten(1), **layers)
    images = np.random.default_rng(0).standard_normal((24, 4, 9, 8), np.float32)
    made = quantize(read(network, (1, 4, 9, 8)), (images,), "per-channel", METHOD)
    trained = FakeQuantised(made)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += torch.randn_like(parameter)
    layers = trained.integer()
    reference = IntegerNetwork(
        name="net", scheme="per-channel", inputs=made.inputs, outputs=made.outputs, layers=layers
    )
    q = reference.quantize_input(images)
    given = trained(torch.from_numpy(q).float())
    assert np.array_equal(given.detach().numpy(), reference.run(q).reshape(len(q), -1))
    given.square().sum().backward()
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in trained.weights if parameter.grad is not None)


BARS = (
    *("resnet8", "autoencoder", "mobilenet_v2", "mobilenet_v3", "efficientnet_lite0", "efficientnet", "resnet18"),
    *(
        "resnet_bottleneck",
        "shufflenet_v2",
        "squeezenet",
        "inception",
        "vgg_bn",
        "unet",
        "deeplab",
        "ssd",
        "yolo",
        "tcn",
        "fusion",
    ),
)
"""Networks of each kind that users bring, narrow."""


def check_stranger(name: str, board: str, folder: Path) -> None:
    program = integer_program(quantised_stranger(name, "per-channel"))
    bundle = build(program, compute_in(TARGETS[board], "int8"), folder / "bundle")
    assert bundle.manifest["verify"]["passed"], bundle.manifest["verify"]
    assert bundle.manifest["verify"]["max_abs_error"] == 0


@pytest.mark.parametrize("name", BARS)
def test_strangers_are_exact(name, tmp_path):
    network = quantised_stranger(name, "per-channel")
    assert network.facts["output_sqnr_db"] > 25
    program = integer_program(network)
    library = compiled(program, HOST, tmp_path).library
    verdict = verify_library(library, HOST, program.vectors, program.outputs)
    assert verdict["passed"], verdict
    assert verdict["max_abs_error"] == 0


@pytest.mark.emulated
@pytest.mark.parametrize("name", ["ssd", "tcn", "deeplab"])
def test_strangers_are_exact_on_a_board(name, tmp_path):
    """Two outputs, one dimension, and interpolation; the others are run by hand."""
    needs_emulator(TARGETS["raspberry-pi-4b"])
    check_stranger(name, "raspberry-pi-4b", tmp_path)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "yolo", "unet"])
def test_strangers_are_exact_on_the_stand_in(name, tmp_path):
    check_stranger(name, "jetson-orin-nano", tmp_path)
