"""Graphs on microcontrollers: every operator is exact under emulation and in portable C, whoever reads its result."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import needs_commands
from imported import quantised_stranger
from integer_graphs import random_graph, random_inputs, together
from torch import nn
from torch.nn import functional

from tvmflow.bundles.build import build
from tvmflow.integer.frontend import integer_program
from tvmflow.integer.layers import SOFTMAX_SCALE, IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork, Port
from tvmflow.integer.operators import OUTSIDE, Concat, Function, Gather, MaxPool, Product, Resample, Softmax, Sum
from tvmflow.integer.window import Window
from tvmflow.network.agreement import compare
from tvmflow.network.c_interface import c_name, ports
from tvmflow.network.frontend import from_module
from tvmflow.pipeline import run_stages
from tvmflow.spec import UnsupportedOperatorError
from tvmflow.system.toolchain import link, select_linker, tvm_target_dict
from tvmflow.targets import TARGETS, compute_in
from tvmflow.targets.cortex_m import machine
from tvmflow.targets.cortex_m.attributes import IN_PLACE
from tvmflow.targets.cortex_m.backend import check_network
from tvmflow.targets.cortex_m.compile import compile_object, header, lay_out, write_source

pytestmark = pytest.mark.packages

EMULATED = ["mps2-an500", "mps3-an547"]
M7 = TARGETS["mps2-an500"]
PLAIN = replace(M7, facts=replace(M7.facts, core="plain"))
GRAPHS = int(os.environ.get("TVMFLOW_GRAPHS", "60"))
"""Random graphs of each scheme that are compared as C on this computer; under emulation half of them."""
TOGETHER = 30
"""Graphs that are one network, so that they are compiled once."""


@pytest.fixture(scope="session")
def qemu():
    needs_commands(machine.QEMU)


def compiled(program, board):
    import tvm

    with tvm.target.Target("c" if board.facts.core == "plain" else tvm_target_dict(board)):
        return run_stages(program, board)


def emulated(program, board, folder, vectors, expected=None):
    """What a network gives on a board's core."""
    library = compile_object(compiled(program, board), board, folder, select_linker(board))
    return machine.run(library, board, c_name(program.name), vectors, program.outputs, expected=expected)


def natively(program, folder, vectors):
    """What the portable C of a network gives on this computer."""
    import tvm

    with tvm.target.Target("c"):
        write_source(compiled(program, PLAIN), PLAIN, folder)
    name, library = c_name(program.name), folder / "network.so"
    sources = [folder / f"{name}.c", folder / f"{name}_weights.c"]
    options = (
        "-shared",
        "-fPIC",
        "-O1",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused",
        "-fsanitize=undefined",
    )
    link(select_linker(TARGETS["host"]), library, sources, (*options, "-fsanitize-undefined-trap-on-error"))
    run = getattr(ctypes.CDLL(str(library)), f"{name}_run")
    found = []
    for inputs in vectors:
        outputs = tuple(np.empty(spec.shape, spec.dtype) for spec in program.outputs)
        run(*(array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, *outputs)))
        found.append(outputs)
    return found


def assert_same(found: Sequence[tuple[np.ndarray, ...]], expected: Sequence[tuple[np.ndarray, ...]]) -> None:
    wrong = [
        (vector, number)
        for vector, (given, wanted) in enumerate(zip(found, expected, strict=True))
        for number, (one, other) in enumerate(zip(given, wanted, strict=True))
        if not np.array_equal(one, other)
    ]
    assert wrong == [], "vectors, and outputs of them"


# ------------------------------------------------------------------------------------------------- small graphs


def node(name, operator, inputs: Mapping[str, tuple[int, ...]], **fields) -> IntegerNode:
    shapes = tuple(inputs.values())
    given = {"minimum": -128, "maximum": 127, "dtype": "int8", "scale": 1.0, **fields}
    return IntegerNode(
        name=name,
        modules=(name,),
        operator=operator,
        inputs=tuple(inputs),
        input_shapes=shapes,
        output_shape=operator.out_shape(*shapes),
        **given,
    )


def sum_of(name, inputs, factors=(300_000, 500_000), **fields):
    return node(name, Sum(signs=(1,) * len(factors)), inputs, factors=np.array(factors, np.int32), shift=20, **fields)


def convolution(name, read, shape, outputs, kernel, **fields) -> IntegerLayer:
    rng = np.random.default_rng(len(name))
    groups = fields.get("groups", 1)
    layer = IntegerLayer(
        name=name,
        modules=(name,),
        kind="conv2d",
        inputs=(read,),
        weight=rng.integers(-127, 128, (outputs, shape[1] // groups, *kernel)).astype(np.int8),
        bias=rng.integers(-1000, 1000, outputs).astype(np.int32),
        multiplier=rng.integers(1 << 21, 1 << 22, outputs).astype(np.int32) * 2,
        minimum=-128,
        maximum=127,
        dtype="int8",
        scale=1.0,
        input_shape=shape,
        output_shape=(),
        **fields,
    )
    return replace(layer, output_shape=(1, outputs, *layer.window.out_size()))


def network(layers, inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str]) -> IntegerNetwork:
    by_name = {layer.name: layer for layer in layers}
    return IntegerNetwork(
        name="graph",
        scheme="per-channel",
        inputs=tuple(Port(name=name, shape=shape, scale=0.5) for name, shape in inputs.items()),
        outputs=tuple(
            Port(name=f"out {number}", shape=by_name[name].output_shape, scale=by_name[name].scale, source=name)
            for number, name in enumerate(outputs)
        ),
        layers=tuple(layers),
    )


MAP = (1, 4, 5, 6)


def residual() -> IntegerNetwork:
    """The second sum may overwrite the first, which nobody else reads."""
    first = convolution("first", "x", MAP, 4, (3, 3), padding=(1, 1, 1, 1))
    second = convolution("second", "first", MAP, 4, (1, 1))
    added = sum_of("added", {"second": MAP, "first": MAP})
    third = convolution("third", "added", MAP, 4, (3, 3), padding=(1, 1, 1, 1))
    again = sum_of("again", {"added": MAP, "third": MAP})
    last = convolution("last", "again", MAP, 3, (1, 1))
    return network([first, second, added, third, again, last], {"x": MAP}, ["last"])


def broadcast() -> IntegerNetwork:
    """Squeeze and excite: a number for each channel."""
    gate = convolution("gate", "x", MAP, 4, MAP[2:])
    factor = {"factors": np.array([5000], np.int32), "shift": 20}
    return network(
        [gate, node("product", Product(), {"x": MAP, "gate": (1, 4, 1, 1)}, **factor)], {"x": MAP}, ["product"]
    )


def unlike_borders() -> IntegerNetwork:
    window = Window(kernel=(3, 2), stride=(2, 1), padding=(0, 1, 2, 0), size=MAP[2:])
    pool = node("pool", MaxPool(window=window), {"x": MAP})
    layer = convolution("layer", "pool", pool.output_shape, 5, (3, 3), padding=(2, 0, 0, 1), stride=(1, 2))
    alone = convolution("alone", "layer", layer.output_shape, 5, (3, 2), padding=(0, 1, 2, 0), groups=5)
    return network([pool, layer, alone], {"x": MAP}, ["alone"])


def moved() -> IntegerNetwork:
    """Concatenated rows, shuffled channels, repeated pixels, a border, and what no rule describes."""
    order = np.arange(240, dtype=np.int32).reshape(1, 4, 10, 6)
    layers = [
        node("rows", Concat(axis=2), {"x": MAP, "x ": MAP}),
        node(
            "shuffled",
            Gather(places=order.reshape(1, 2, 2, 10, 6).swapaxes(1, 2).reshape(1, 4, 10, 6)),
            {"rows": (1, 4, 10, 6)},
        ),
        node("nearest", Gather(places=order.repeat(2, 2).repeat(2, 3)), {"shuffled": (1, 4, 10, 6)}),
        node(
            "bordered",
            Gather(places=np.pad(order, ((0, 0), (0, 1), (1, 0), (2, 1)), constant_values=OUTSIDE)),
            {"rows": (1, 4, 10, 6)},
        ),
        node("turned", Gather(places=order.transpose(0, 3, 1, 2).copy()), {"rows": (1, 4, 10, 6)}),
        node(
            "any",
            Gather(places=np.random.default_rng(2).integers(-1, 240, (1, 3, 7, 2), np.int32)),
            {"rows": (1, 4, 10, 6)},
        ),
    ]
    return network(layers, {"x": MAP, "x ": MAP}, ["nearest", "bordered", "turned", "any"])


def bilinear() -> IntegerNetwork:
    places = np.array([[0, 1], [0, 1], [1, 2], [2, 3], [3, 4], [4, 4]], np.int32)
    weights = np.array([[0.75, 0.25], [0.4, 0.6], [1, 0], [0.5, 0.5], [0.2, 0.8], [1, 0]])
    operator = Resample(rows=(places, weights), columns=(places, weights))
    return network([node("larger", operator, {"x": MAP}, shift=2 * operator.bits)], {"x": MAP}, ["larger"])


def tables() -> IntegerNetwork:
    rng = np.random.default_rng(3)
    one, each = (rng.integers(-128, 128, shape).astype(np.int32) for shape in (256, (4, 256)))
    exponentials = np.rint(np.exp(-np.arange(256) / 16) * (1 << 15)).astype(np.int32)
    unsigned = {"minimum": 0, "maximum": 255, "dtype": "uint8", "scale": SOFTMAX_SCALE}
    layers = [
        node("table", Function(), {"x": MAP}, table=one),
        node("channels", Function(), {"table": MAP}, table=each),
        node("softmax", Softmax(axis=1), {"channels": MAP}, table=exponentials, **unsigned),
        node("columns", Softmax(axis=3), {"channels": MAP}, table=exponentials, **unsigned),
    ]
    return network(layers, {"x": MAP}, ["softmax", "columns"])


def several() -> IntegerNetwork:
    """Two inputs of other ranks; of the outputs one is read by another layer, and one is wanted twice."""
    line, map_ = (1, 6, 1, 9), (1, 3, 2, 9)
    wide = convolution("wide", "audio", line, 6, (1, 3), padding=(0, 1, 0, 1), dilation=(1, 1))
    regular = node("regular", Gather(places=np.arange(54, dtype=np.int32).reshape(map_)), {"wide": line})
    mixed = sum_of("mixed", {"regular": map_, "class": map_})
    doubled = sum_of("doubled", {"mixed": map_, "mixed ": map_})
    doubled = replace(doubled, inputs=("mixed", "mixed"))
    made = network([wide, regular, mixed, doubled], {"audio": line, "class": map_}, ["mixed", "doubled", "mixed"])
    return replace(made, inputs=(replace(made.inputs[0], shape=(1, 6, 9)), made.inputs[1]))


SMALL = {made.__name__: made for made in (residual, broadcast, unlike_borders, moved, bilinear, tables, several)}


def vectors_of(given: IntegerNetwork, count: int = 3):
    rng = np.random.default_rng(11)
    inputs = [random_inputs(rng, given) for _ in range(count)]
    inputs += [tuple(np.full(port.shape, value, np.int8) for port in given.inputs) for value in (-128, 127)]
    return inputs, [given.run_all(arrays) for arrays in inputs]


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("board", EMULATED)
@pytest.mark.parametrize("graph", SMALL)
def test_graphs_are_exact(tmp_path, board, graph):
    given = SMALL[graph]()
    inputs, expected = vectors_of(given)
    done = emulated(integer_program(given), TARGETS[board], tmp_path, inputs, expected)
    assert_same(done.outputs, expected)
    assert done.wrong == 0, "the comparison on the device"


@pytest.mark.parametrize("graph", SMALL)
def test_portable_c_is_exact(tmp_path, graph):
    given = SMALL[graph]()
    inputs, expected = vectors_of(given)
    assert_same(natively(integer_program(given), tmp_path, inputs), expected)


# ------------------------------------------------------------------------------------------------- random graphs


def drawn(scheme: str, first: int, count: int) -> IntegerNetwork:
    """As one network: what a graph computes doesn't depend on its neighbours, and where its tensors lie does."""
    return together(
        [random_graph(np.random.default_rng(first + n), scheme, prefix=f"g{first + n}_") for n in range(count)]
    )


@pytest.mark.parametrize("first", range(0, GRAPHS, TOGETHER))
@pytest.mark.parametrize("scheme", ["per-channel", "power-of-two"])
def test_random_graphs_in_portable_c(tmp_path, scheme, first):
    given = drawn(scheme, first, TOGETHER)
    inputs, expected = vectors_of(given)
    assert_same(natively(integer_program(given), tmp_path, inputs), expected)


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("board", EMULATED)
@pytest.mark.parametrize("scheme", ["per-channel", "power-of-two"])
def test_random_graphs_under_emulation(tmp_path, board, scheme):
    given = drawn(scheme, 1000, GRAPHS // 2)
    inputs, expected = vectors_of(given)
    assert_same(emulated(integer_program(given), TARGETS[board], tmp_path, inputs).outputs, expected)


# ------------------------------------------------------------------------------------------------- the C interface


def test_one_input_and_output_have_plain_names():
    given = ports(integer_program(bilinear()))
    assert [port.parameter for side in given for port in side] == ["input", "output"]
    assert [port.macro for side in given for port in side] == ["INPUT", "OUTPUT"]


def test_several_have_their_own(tmp_path):
    program = integer_program(several())
    inputs, outputs = ports(program)
    assert [port.parameter for port in inputs] == ["audio", "input_class"], "a word of C++ is no name"
    assert [port.parameter for port in outputs] == ["out_0", "out_1", "out_2"]
    done = compiled(program, M7)
    text = header(done, M7, lay_out(done))
    assert (
        "void graph_run(const int8_t *audio, const int8_t *input_class, int8_t *out_0, int8_t *out_1, int8_t *out_2);"
    ) in text
    assert "#define GRAPH_INPUT_AUDIO_SIZE 54 /* int8, 6×9: channel, row, column */" in text
    assert "#define GRAPH_INPUT_CLASS_SCALE 0.5" in text
    assert "#define GRAPH_OUTPUT_OUT_2_SIZE 54" in text


def test_names_that_differ_in_case_differ_in_c():
    rows = dict.fromkeys(("A", "a", "input_a"), (1, 1, 1, 4))
    program = integer_program(network([sum_of("sum", rows, (1000, 2000, 3000))], rows, ["sum"]))
    inputs, _ = ports(program)
    assert len({port.parameter for port in inputs}) == 3
    assert len({port.macro for port in inputs}) == 3


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("source", ["OFF", "ON"])
def test_example_of_several_inputs_and_outputs(tmp_path, source):
    needs_commands("cmake", "arm-none-eabi-gcc")
    bundle = build(integer_program(several()), M7, tmp_path / "bundle", source=True)
    assert bundle.manifest["verify"]["passed"] is True
    for command in (
        ["cmake", "-S", tmp_path / "bundle" / "example", "-B", tmp_path / "made", f"-DFROM_SOURCE={source}"],
        ["cmake", "--build", tmp_path / "made"],
        ["ctest", "--test-dir", tmp_path / "made", "--verbose"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "9 of 9 golden vectors agree" in done.stdout


def test_sums_overwrite_what_nobody_reads_any_more():
    """Three maps live at once at most, and not a fourth for a sum."""
    program = compiled(integer_program(residual()), M7)
    by_name = {layer.kernel.split("_", 1)[1]: program.module[layer.kernel] for layer in program.layers}
    assert {name: int(func.attrs[IN_PLACE]) for name, func in by_name.items()} == {
        **dict.fromkeys(["first", "second", "third", "last"], -1),
        "added": 0,
        "again": 0,
    }


def test_depthwise_pairs_end_at_a_branch():
    """The first of two is read by a sum as well, so that its result has to be kept."""
    shape = (1, 4, 6, 6)
    one = convolution("one", "x", shape, 4, (3, 3), padding=(1, 1, 1, 1), groups=4)
    two = convolution("two", "one", shape, 4, (3, 3), padding=(1, 1, 1, 1), groups=4)
    alone = compiled(integer_program(network([one, two], {"x": shape}, ["two"])), M7)
    assert len(alone.layers) == 1
    added = sum_of("added", {"one": shape, "two": shape})
    assert len(compiled(integer_program(network([one, two, added], {"x": shape}, ["added"])), M7).layers) == 3
    assert len(compiled(integer_program(network([one, two], {"x": shape}, ["one", "two"])), M7).layers) == 2


# ------------------------------------------------------------------------------------------------- float32


class Blocks(nn.Module):
    """A network of what blocks are made of, on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=(1, 0), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.line = nn.Conv1d(2, 4, 3, padding=2, dilation=2)
        self.out = nn.Linear(8, 5)

    def forward(self, image, sound):
        x = functional.relu6(self.norm(self.first(image)))
        x = functional.relu(x + functional.hardtanh(self.depthwise(x), -0.5, 0.0))
        pooled = functional.max_pool2d(functional.pad(x, (1, 0, 0, 1), value=-math.inf), (3, 2), (2, 1))
        joined = torch.cat([functional.channel_shuffle(x[:, :, ::2, :-1], 2), pooled[:, :4, :3, :7]], 1)
        larger = functional.interpolate(joined, scale_factor=2)
        smooth = functional.interpolate(x, size=(9, 5), mode="bilinear")
        gate = x.mean((2, 3), keepdim=True)
        return self.out((gate * x - x).amax((2, 3))), larger, smooth, torch.clamp(self.line(sound), -0.3, 0.8)


@pytest.fixture(scope="module")
def blocks():
    torch.manual_seed(3)
    module = Blocks()
    nn.init.uniform_(module.norm.running_var, 0.5, 2)
    return from_module(module.eval(), "blocks", "blocks", [(1, 3, 6, 10), (1, 2, 9)])


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("board", EMULATED)
def test_float32_graphs(blocks, tmp_path, board):
    bundle = build(blocks, compute_in(TARGETS[board], "float32"), tmp_path / "bundle")
    verdict = bundle.manifest["verify"]
    assert verdict["passed"] is True
    assert verdict["max_rel_error"] < 3e-6
    assert {"nan", "infinite"} <= {vector["name"] for vector in verdict["vectors"]}


def test_float32_graphs_in_portable_c(blocks, tmp_path):
    found = natively(blocks, tmp_path, [vector.inputs for vector in blocks.vectors])
    verdict = compare(blocks.vectors, found)
    assert verdict["passed"] is True, verdict


LIMITS = ((-0.25, 0.5), (0.125, 0.5), (-0.5, -0.125), (-0.1, 0.0), (0.0, math.inf))


@pytest.mark.usefixtures("qemu")
def test_limits_keep_nan(tmp_path):
    """In vectors and in scalars of the core whose comparisons can't be trusted with it."""

    class Limited(nn.Module):
        def __init__(self, limits: tuple[float, float]) -> None:
            super().__init__()
            self.limits = limits
            self.whole, self.alone, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 8)

        def forward(self, x):
            found = self.whole(x), self.alone(x), self.out(x), x + x[:, :1]
            return tuple(value.clamp(*self.limits) for value in found)

    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(map(Limited, LIMITS))

        def forward(self, x):
            return tuple(value for part in self.parts for value in part(x))

    program = from_module(Each().eval(), "limited", "limited", [(1, 3, 8, 8)])
    assert len(program.outputs) == 4 * len(LIMITS)
    bundle = build(program, compute_in(TARGETS["mps3-an547"], "float32"), tmp_path / "bundle")
    assert {"nan", "infinite"} <= {vector["name"] for vector in bundle.manifest["verify"]["vectors"]}


def test_what_takes_a_c_library_is_refused_before_any_work(tmp_path):
    class Curved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.curve, self.share = nn.GELU(), nn.Softmax(1)

        def forward(self, x):
            return self.share(self.curve(x))

    program = from_module(Curved(), "curved", "curved", [(1, 3, 4, 4)])
    with pytest.raises(UnsupportedOperatorError, match=r"without a C library.*table \(curve\), softmax \(share\)"):
        check_network(program, compute_in(M7, "float32"))


# ------------------------------------------------------------------------------------------------- whole networks


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("name", ["fusion", "squeezenet", "shufflenet_v2", "tcn"])
def test_networks_of_strangers(tmp_path, name):
    bundle = build(integer_program(quantised_stranger(name, "per-channel")), TARGETS["mps3-an547"], tmp_path / "bundle")
    assert bundle.manifest["verify"]["passed"] is True
