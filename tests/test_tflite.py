"""`.tflite` files: every operator is what TensorFlow Lite Micro makes of it, bit for bit, here and on boards."""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from compiling import compiled
from conftest import ROOT, needs_emulator
from test_cortex_m_graphs import PLAIN, assert_same, natively
from tflite_cases import CASES, GOLDENS, Draw, convolution, graphs_of, inputs_of, unary
from tflite_files import Graph, file_of

from tvmflow.bundles.build import build
from tvmflow.integer.file import load, save
from tvmflow.integer.frontend import import_quantized, integer_program
from tvmflow.integer.layers import IntegerLayer
from tvmflow.integer.network import IntegerNetwork, Port, canonical
from tvmflow.integer.operators import Gather
from tvmflow.integer.tflite.reader import CONVERTERS, read
from tvmflow.integer.tflite.schema import OPERATORS
from tvmflow.integer.tflite.state import KINDS
from tvmflow.network.frontend import import_model
from tvmflow.pipeline import run_stages
from tvmflow.spec import Target, UserError
from tvmflow.system.toolchain import link, select_linker
from tvmflow.targets import TARGETS, compute_in
from tvmflow.targets.cortex_m.compile import write_source
from tvmflow.targets.kind import verify_library

AGAIN = re.compile(
    r"(dense|logistic|tanh|hard-swish|leaky-relu)-[1-9]|split|reshape|transpose|softmax-2|nearest|relu6?"
    r"|quantize|dense-pixels|concat-2"
)
"""Cases whose kernels are those of others: what differs is in tables and limits."""
BOARDS = ("raspberry-pi-4b", "mps2-an386", "mps3-an547")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, IntegerNetwork]:
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name in CASES:
        path = folder / f"{name}.tflite"
        path.write_bytes(file_of(*graphs_of(name)))
        found[name] = read(path)
    return found


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as archive:
        return dict(archive)


def written(folder, *graphs: Graph):
    path = folder / "network.tflite"
    path.write_bytes(file_of(*graphs))
    return path


@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_is_what_tensorflow_lite_micro_computes(name, networks, goldens):
    network, state = networks[name], {}
    for call, arrays in enumerate(inputs_of(name)):
        given = dict(zip((port.name for port in network.inputs), arrays, strict=False))
        for kept in network.state:
            port = next(port for port in network.inputs if port.name == kept.input)
            given[kept.input] = state.get(kept.input, np.full(port.shape, kept.initial, port.dtype))
        outputs = network.run_all(tuple(given[port.name] for port in network.inputs))
        named = {port.name: output for port, output in zip(network.outputs, outputs, strict=True)}
        state = {kept.input: named[kept.output] for kept in network.state}
        for place, output in enumerate(outputs[: len(outputs) - len(state)]):
            assert np.array_equal(output.reshape(-1), goldens[f"{name} {place}"][call].reshape(-1)), call


def test_every_operator_has_a_case():
    made = {kind for name in CASES for graph in graphs_of(name) for kind, *_ in graph.operators}
    alike = {"RELU_N1_TO_1", "SQUEEZE", "EXPAND_DIMS", "PADV2", "SLICE", "ARG_MAX"}
    assert set(CONVERTERS) - made == alike
    assert set(CONVERTERS) <= set(OPERATORS)


def test_the_documentation_names_every_operator():
    page = (ROOT / "docs" / "networks-tflite.md").read_text()
    table = page.partition("## Operators")[2].partition("## ")[0]
    known = {*CONVERTERS, *KINDS, "DEQUANTIZE"}
    assert set(re.findall(r"[A-Z][A-Z0-9_]+", table)) - {"NONE", "VTA"} == known


@pytest.fixture(scope="module")
def all_in_one(networks) -> IntegerNetwork:
    found = {name: network for name, network in networks.items() if not AGAIN.fullmatch(name)}
    return together(found | {"shifts": every_shift()})


def every_shift() -> IntegerNetwork:
    """Sums that are scaled by all that a multiplier and a shift can be, among them none and the largest."""
    rng, shifts = np.random.default_rng(3), np.array([-31, -30, -12, -7, -3, -1, 0, 1, 2, 4], np.int32)
    count = len(shifts)
    multipliers = rng.integers(1 << 30, 1 << 31, count).astype(np.int32)
    multipliers[4] = 0
    layers, source = [], "x"
    for number, groups in enumerate((1, count)):
        layers.append(
            IntegerLayer(
                name=f"layer{number}",
                modules=(),
                kind="conv2d",
                inputs=(source,),
                weight=rng.integers(-127, 128, (count, count // groups, 1, 1)).astype(np.int8),
                bias=rng.integers(-1000, 1000, count).astype(np.int32),
                groups=groups,
                multiplier=multipliers,
                shift=shifts,
                minimum=-100,
                maximum=127,
                dtype="int8",
                scale=1.0,
                zero_point=-3,
                input_shape=(1, count, 4, 3),
                output_shape=(1, count, 4, 3),
            )
        )
        source = layers[-1].name
    ports = [Port(name=name, shape=(1, count, 4, 3), scale=1.0, source=name) for name in ("x", "layer0", "layer1")]
    return IntegerNetwork(
        name="shifts",
        scheme="tflite",
        inputs=(replace(ports[0], source=""),),
        outputs=tuple(ports[1:]),
        layers=tuple(layers),
    )


def together(networks: dict[str, IntegerNetwork]) -> IntegerNetwork:
    """The layers of all cases side by side, so that they are built at once."""
    inputs, outputs, layers = [], [], []
    for case, network in networks.items():
        named = {name: f"{case}.{name}" for name in network.shapes}
        inputs += [replace(port, name=named[port.name]) for port in network.inputs]
        outputs += [replace(port, name=f"{case}.{port.name}", source=named[port.source]) for port in network.outputs]
        layers += [
            replace(layer, name=named[layer.name], inputs=tuple(named[name] for name in layer.inputs))
            for layer in network.layers
        ]
    return IntegerNetwork(
        name="all", scheme="tflite", inputs=tuple(inputs), outputs=tuple(outputs), layers=tuple(layers)
    )


@pytest.mark.parametrize("board", ["host", *BOARDS])
def test_boards_compute_the_same(board, all_in_one, tmp_path):
    target = compute_in(TARGETS[board], "int8")
    if board != "host":
        needs_emulator(target)
    check(all_in_one, target, tmp_path)


def test_portable_c_computes_the_same(all_in_one, tmp_path):
    """And nothing in it is left open by C."""
    program = integer_program(all_in_one)
    found = natively(program, tmp_path, [vector.inputs for vector in program.vectors])
    assert_same(found, [vector.outputs for vector in program.vectors])


def test_gpus_compute_the_same(networks, tmp_path):
    names = ("conv-strided", "depthwise-multiplied", "dense-flat", "add", "average-pool", "softmax-10", "bilinear")
    chosen = {name: networks[name] for name in names} | {"shifts": every_shift()}
    check(together(chosen), compute_in(TARGETS["t4"], "int8"), tmp_path)


def check(network: IntegerNetwork, target: Target, tmp_path: Path) -> None:
    """Whatever the board's kind makes of it gives the golden vectors to the bit."""
    program = integer_program(network)
    library = compiled(program, target, tmp_path).library
    verdict = verify_library(library, target, program.vectors, program.outputs)
    assert verdict["passed"], verdict
    assert verdict["max_abs_error"] == 0


def test_files_of_ours_hold_such_networks(all_in_one, tmp_path):
    save(all_in_one, tmp_path / "all.safetensors")
    loaded = load(tmp_path / "all.safetensors")
    vectors = integer_program(all_in_one).vectors[:2]
    for vector in vectors:
        for given, wanted in zip(loaded.run_all(vector.inputs), vector.outputs, strict=True):
            assert np.array_equal(given, wanted)


def test_state_is_kept_in_files_of_ours(networks, tmp_path):
    save(networks["streaming"], tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").state == networks["streaming"].state


def test_a_border_of_zero_needs_no_layer_of_its_own(networks):
    kinds = [layer.kind for layer in networks["conv-padded-with-0"].layers]
    assert kinds == ["gather", "conv2d", "gather"]


def test_a_flattened_map_is_not_moved(networks):
    """The weights of a dense layer take its order: they are a convolution's over the whole map."""
    (layer,) = networks["dense-flat"].layers
    assert layer.weight.shape[1:] == layer.input_shape[1:]


def test_inputs_lie_as_in_the_file(networks):
    network = networks["conv"]
    assert network.inputs[0].shape == (1, 7, 6, 3)
    first = network.by_name[network.layers[0].name]
    assert isinstance(first.operator, Gather)
    assert first.input_shape == canonical((1, 7, 6, 3))


def test_weights_beyond_int8_are_exact(tmp_path):
    """Their zero point makes of bytes numbers from −60 to 195."""
    draw, graph = Draw("wide"), Graph()
    x = graph.input((1, 4, 3, 2), 0.03, 77, dtype="uint8")
    raw = draw.rng.integers(0, 256, (5, 3, 3, 2)).astype(np.uint8)
    options = {"padding": 1, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1}
    y = graph.tensor((1, 2, 1, 5), 4.0, 131, dtype="uint8")
    graph.add("CONV_2D", [x, graph.constant(raw, 0.01, 60)], y, **options)
    graph.outputs = [y]
    network = read(written(tmp_path, graph))
    q = draw.rng.integers(0, 256, (3, 4, 3, 2)).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(q.astype(np.int64) - 77, (3, 3), (1, 2))
    sums = np.einsum("nyxcrs,orsc->nyxo", windows, raw.astype(np.int64) - 60)
    near = sums * np.float32(0.03) * np.float32(0.01) / 4 + 131
    assert np.abs(network.run(q) - near.clip(0, 255)).max() <= 0.51


def test_all_operators_that_are_not_taken_are_named_at_once(tmp_path):
    graph = unary(Draw("x"), "QUANTIZE")
    for kind in ("EXP", "CUMSUM", "GATHER"):
        graph.outputs = [graph.result(kind, graph.outputs, (1, 256), 1.0)]
    with pytest.raises(UserError, match=r"the operators EXP, CUMSUM, GATHER, which aren't taken\.$"):
        read(written(tmp_path, graph))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: graph.tensors[0].update(dtype="int16"), "of int16, where int8 or uint8 are taken"),
        (lambda graph: graph.tensors[0].update(dtype="float32"), "of float32, where int8 or uint8 are taken"),
        (lambda graph: graph.tensors[0].update(shape=[2, 7, 6, 3]), "whose first dimension isn't a batch of 1"),
        (lambda graph: graph.tensors[0].update(scales=[]), "has no scale"),
        (lambda graph: graph.tensors[0].update(scales=[np.float32("nan")]), "has no scale"),
        (lambda graph: graph.tensors[0].update(zeros=[500]), "zero point"),
        (lambda graph: graph.tensors[0].update(shape=[1, 1 << 20, 1 << 20, 3]), "elements"),
        (lambda graph: graph.tensors[1].update(scales=[np.float32(1e30)] * 5), "scaled by"),
        (lambda graph: graph.tensors[3].update(shape=[1, 7, 6, 4]), "and the file says"),
        (lambda graph: graph.operators[0][3].update(stride_h=0), "the stride_h of CONV_2D is 0"),
        (lambda graph: graph.operators[0][3].update(fused=4), "the fused activation TANH"),
        (lambda graph: graph.operators[0][1].append(9), "beyond the 4 that there are"),
        (lambda graph: graph.operators[0][1].__setitem__(0, 3), "which nothing gives before"),
        (lambda graph: graph.outputs.append(1), "an output that is a constant"),
    ],
)
def test_what_is_wrong_is_one_sentence(change, words, tmp_path):
    graph = convolution(Draw("conv"), "CONV_2D")
    change(graph)
    with pytest.raises(UserError, match=words) as caught:
        read(written(tmp_path, graph))
    assert "\n" not in str(caught.value)


def test_what_is_joined_has_as_many_dimensions(tmp_path):
    """Along the last axis of 1×6×4, what is left of it and of 1×6 is the same."""
    graph = Graph()
    given = [graph.input(shape, 0.5, 0) for shape in ([1, 6, 4], [1, 6])]
    graph.outputs = [graph.result("CONCATENATION", given, [1, 6, 4], 0.5, 0, axis=2)]
    with pytest.raises(UserError, match="tensors that don't fit together"):
        read(written(tmp_path, graph))


def test_half_a_file_is_refused(tmp_path):
    whole = file_of(*graphs_of("conv"))
    for count in (0, 3, 8, 40, len(whole) // 2):
        path = tmp_path / "half.tflite"
        path.write_bytes(whole[:count])
        with pytest.raises(UserError, match="is no TensorFlow Lite file that can be read"):
            read(path)


def test_a_file_is_built_and_run_by_its_name_alone(tvmflow, tmp_path):
    path = written(tmp_path, *graphs_of("streaming"))
    bundle = tmp_path / "bundle"
    built = tvmflow("build", "--model", path, "-o", bundle, "--no-verify")
    assert built.code == 0, built.err
    said = json.loads((bundle / "manifest.json").read_text())["quantization"]
    assert (said["scheme"], said["input_zero_points"], said["output_zero_points"]) == ("tflite", [-7, -7], [5, -7])
    assert said["state"] == [{"input": "frames", "output": "frames.next", "initial": -7}]
    np.save(tmp_path / "x.npy", inputs_of("streaming")[2][0])
    done = tvmflow("run", bundle, "--input", tmp_path / "x.npy", "--json", "-")
    network = import_quantized(str(path)).integer
    frames = next(port for port in network.inputs if port.name == "frames")
    wanted = network.run_all((inputs_of("streaming")[2][0], np.full(frames.shape, -7, np.int8)))[0]
    assert next(iter(done.json["outputs"].values())) == wanted.tolist()


def test_what_needs_float32_says_that_it_is_quantised(tmp_path):
    path = written(tmp_path, *graphs_of("dense-0"))
    with pytest.raises(UserError, match=r"is quantised already.*tvmflow build"):
        import_model(str(path))


@pytest.mark.parametrize("board", ["host", "raspberry-pi-4b", "mps2-an386"])
def test_a_stream_keeps_its_state_between_calls(board, networks, tvmflow, tmp_path):
    """One file of many calls is many calls in a row: on this computer, under qemu-user, and on a microcontroller."""
    target, network = compute_in(TARGETS[board], "int8"), networks["streaming"]
    if board != "host":
        needs_emulator(target)
    built = build(integer_program(network, "network"), target, tmp_path / "bundle", verify=False)
    frames = np.concatenate([arrays[0] for arrays in inputs_of("streaming")])
    assert len(frames) > 2
    np.save(tmp_path / "x.npy", frames)
    done = tvmflow("run", built.path, "--input", tmp_path / "x.npy", "-o", tmp_path / "y.npz", "--json", "-")
    assert done.code == 0, done.err
    assert len(done.json["calls"]) == len(frames)
    state = np.full(next(port.shape for port in network.inputs if port.name == "frames"), -7, np.int8)
    with np.load(tmp_path / "y.npz") as given:
        for call, frame in enumerate(frames):
            output, state = network.run_all((frame[None], state))
            assert np.array_equal(given[network.outputs[0].name][call], output), call
            assert np.array_equal(given["frames.next"][call], state), call


def test_files_of_unlike_many_calls_are_refused(networks, tvmflow, tmp_path):
    network = networks["streaming"]
    target = compute_in(TARGETS["host"], "int8")
    built = build(integer_program(network, "network"), target, tmp_path / "bundle", verify=False)
    for name, calls, port in zip("xs", (3, 2), network.inputs, strict=True):
        np.save(tmp_path / f"{name}.npy", np.zeros((calls, *port.shape), np.int8))
    both = ("--input", tmp_path / "x.npy", "--input", tmp_path / "s.npy")
    tvmflow("run", built.path, *both).failed_with(4, "3 calls", "for 2")


STREAM = """#include "streaming.h"
static streaming_stream stream;
void begin(void) { streaming_reset(&stream); }
void next(const int8_t *frame, int8_t *scores) { streaming_step(&stream, frame, scores); }
"""


def test_a_header_has_what_a_stream_keeps(networks, tmp_path):
    """The portable C on this computer: three streams one after the other, each begun by the header's function."""
    network = networks["streaming"]
    with tvm.target.Target("c"):
        write_source(run_stages(integer_program(network, "network"), PLAIN), PLAIN, tmp_path)
    (tmp_path / "stream.c").write_text(STREAM)
    sources = [tmp_path / name for name in ("streaming.c", "streaming_weights.c", "stream.c")]
    options = ("-shared", "-fPIC", "-O1", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused")
    link(select_linker(TARGETS["host"]), tmp_path / "stream.so", sources, options)
    library = ctypes.CDLL(str(tmp_path / "stream.so"))
    for _ in range(3):
        library.begin()
        state = np.full(next(port.shape for port in network.inputs if port.name == "frames"), -7, np.int8)
        for (frame,) in inputs_of("streaming"):
            wanted, state = network.run_all((frame, state))
            scores = np.empty_like(wanted)
            library.next(frame.ctypes.data_as(ctypes.c_void_p), scores.ctypes.data_as(ctypes.c_void_p))
            assert np.array_equal(scores, wanted)


USERS = """#include "streaming.h"
static streaming_context users[2];
void begin(int user) { streaming_init(&users[user]); }
void next(int user, const int8_t *frame, int8_t *scores) { streaming_infer(&users[user], frame, scores); }
"""


def test_streams_with_contexts_of_their_own_do_not_mix(networks, tmp_path):
    """Two users by turns, the second with the frames in reverse order."""
    network = networks["streaming"]
    with tvm.target.Target("c"):
        write_source(run_stages(integer_program(network, "network"), PLAIN), PLAIN, tmp_path)
    (tmp_path / "users.c").write_text(USERS)
    sources = [tmp_path / name for name in ("streaming.c", "streaming_weights.c", "users.c")]
    options = ("-shared", "-fPIC", "-O1", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused")
    link(select_linker(TARGETS["host"]), tmp_path / "users.so", sources, options)
    library = ctypes.CDLL(str(tmp_path / "users.so"))
    first = np.full(next(port.shape for port in network.inputs if port.name == "frames"), -7, np.int8)
    states = [first, first]
    for user in range(2):
        library.begin(user)
    frames = [arrays[0] for arrays in inputs_of("streaming")]
    for pair in zip(frames, reversed(frames), strict=True):
        for user, frame in enumerate(map(np.ascontiguousarray, pair)):
            wanted, states[user] = network.run_all((frame, states[user]))
            scores = np.empty_like(wanted)
            library.next(user, frame.ctypes.data_as(ctypes.c_void_p), scores.ctypes.data_as(ctypes.c_void_p))
            assert np.array_equal(scores, wanted)


ALMOST = np.array([-460936, -264328, -67720, -2184, 2184, 67720, 264328, 460936], np.int32)
"""Sums that the scales below make all but a half of."""
NEARER = np.array([-105, -60, -15, 0, 0, 15, 60, 105])
"""What they become where scales are multiplied in float64; in float32 all are a step farther from 0."""


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_last_bit_of_a_scale_is_that_of_the_kernels(dtype, kind, tmp_path):
    """As TensorFlow Lite Micro answered for int8, and LiteRT's reference kernels for uint8."""
    count, zero, graph = len(ALMOST), 128 if dtype == "uint8" else 0, Graph()
    width = count if kind == "DEPTHWISE_CONV_2D" else 4
    shapes = {"DEPTHWISE_CONV_2D": (1, 1, 1, count), "FULLY_CONNECTED": (count, width)}
    flat = kind == "FULLY_CONNECTED"
    x = graph.input((1, width) if flat else (1, 1, 1, width), 0.32211121916770935, zero, dtype)
    weights = np.full(shapes.get(kind, (count, 1, 1, width)), zero, dtype)
    given = [x, graph.constant(weights, 0.003062973730266094, zero), graph.constant(ALMOST, 1e-3)]
    shape = (1, count) if flat else (1, 1, 1, count)
    if kind == "TRANSPOSE_CONV":
        given = [graph.constant(np.array(shape, np.int32)), given[1], x, given[2]]
    options = {} if flat else {"padding": 1, "stride_h": 1, "stride_w": 1}
    if "CONV_2D" in kind:
        options |= {"dilation_h": 1, "dilation_w": 1, "depth_multiplier": 1}
    result = graph.tensor(shape, 4.310600757598877, zero, dtype=dtype)
    graph.outputs = [graph.add(kind, given, result, **options)]
    found = read(written(tmp_path, graph)).run(np.full(graph.tensors[x]["shape"], zero, dtype)).reshape(-1)
    farther = dtype == "uint8" and not flat
    assert (found.astype(int) - zero).tolist() == (NEARER + np.sign(ALMOST) * farther).tolist()


def test_the_last_bit_of_a_product_of_pixels_is_that_of_the_kernels(tmp_path):
    """LiteRT's reference kernels gave 232 and 122; with scales of float64, it would be a step less or more."""
    for scales, pairs, answer in (
        ((0.18644778430461884, 0.3516884446144104, 7.446231842041016), ([106, 124], [248, 212]), 232),
        ((0.12926986813545227, 0.2394789457321167, 4.810401439666748), ([87, 93], [217, 203]), 122),
    ):
        graph = Graph()
        given = [graph.input((1, 1, 1, 2), scale, 0, "uint8") for scale in scales[:2]]
        result = graph.tensor((1, 1, 1, 2), scales[2], 0, dtype="uint8")
        graph.outputs = [graph.add("MUL", given, result, fused=0)]
        arrays = tuple(np.array(values, np.uint8).reshape(1, 1, 1, 2) for values in pairs)
        (found,) = read(written(tmp_path, graph)).run_all(arrays)
        assert found.reshape(-1).tolist() == [answer] * 2
