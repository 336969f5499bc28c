"""Quantised ONNX files: operators are what ONNX Runtime computes, within a step, and boards compute that to the bit."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import integer_graphs
import numpy as np
import pytest
from compiling import compiled
from conftest import ROOT, needs_emulator
from onnx import numpy_helper
from onnx_quantised import CASES, EVEN, POSITIVE, SIGNED, File, model_of

from tvmflow.integer import qdq
from tvmflow.integer.file import load, save
from tvmflow.integer.frontend import comes_quantised, integer_program
from tvmflow.integer.layers import RANGES
from tvmflow.integer.network import IntegerNetwork, Port
from tvmflow.integer.quantised.factors import single, snapped
from tvmflow.integer.quantised.onnx_operators import CONVERTERS
from tvmflow.integer.quantised.onnx_reader import read
from tvmflow.integer.reference import twice
from tvmflow.models import quantized
from tvmflow.network.shapes import parse_input_shape
from tvmflow.spec import UnsupportedOperatorError, UserError
from tvmflow.targets import TARGETS, compute_in
from tvmflow.targets.kind import verify_library

ort = pytest.importorskip("onnxruntime")

SHARES = {
    "log-softmax": 0.5,  # steps twice as large on the way
    "average-pool": 0.2,  # halves
    "average-pool-border": 0.2,
    "bilinear": 0.1,
    "qlinear-add": 0.1,
}
"""Of numbers that may differ by a step, where that isn't a twentieth: files of scales between which halves are many."""
ON_BOARDS = (
    *("conv-of-wide-weights", "conv-rows", "gemm", "add-even", "sum-of-three", "softmax", "softmax-of-rows"),
    *("log-softmax", "bilinear-corners", "layer-normalisation", "moves", "residual"),
)
"""Cases whose factors, tables or types no other network has that boards are held to."""
BOARDS = ("raspberry-pi-4b", "mps3-an547")


def session(content: bytes) -> ort.InferenceSession:
    """Unoptimised, so that real numbers are computed between the two operators, as the file says."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def drawn(ports: tuple[Port, ...]) -> list[tuple[np.ndarray, ...]]:
    """Noise over the whole range, its ends, and what lies around 0."""
    rng, found = np.random.default_rng(5), []
    for kind in range(6):
        arrays = []
        for port in ports:
            low, high = RANGES[port.dtype]
            if kind < 3:
                q = rng.integers(low, high + 1, port.shape)
            elif kind == 3:
                q = rng.choice([low, high], port.shape)
            else:
                q = np.rint(rng.normal(port.zero_point, 12, port.shape)).clip(low, high)
            arrays.append(q.astype(port.dtype))
        found.append(tuple(arrays))
    return found


def steps_off(network: IntegerNetwork, content: bytes) -> np.ndarray:
    """By how many steps each number of each output differs from ONNX Runtime's."""
    running, off = session(content), []
    for inputs in drawn(network.inputs):
        feeds = {}
        for port, value, q in zip(network.inputs, running.get_inputs(), inputs, strict=True):
            real = ((q.astype(np.float64) - port.zero_point) * port.scale).astype(np.float32)
            feeds[value.name] = q if "int8" in value.type else real
        for port, found, wanted in zip(network.outputs, network.run_all(inputs), running.run(None, feeds), strict=True):
            assert found.shape == wanted.shape
            if wanted.dtype == np.float32:
                wanted = np.rint(wanted.astype(np.float64) / port.scale) + port.zero_point
            off.append((found.astype(np.int64) - wanted).reshape(-1))
    return np.concatenate(off)


def read_bytes(content: bytes, folder) -> IntegerNetwork:
    path = folder / "network.onnx"
    path.write_bytes(content)
    return read(path)


@functools.cache
def content_of(name: str) -> bytes:
    return model_of(name).SerializeToString()


@pytest.fixture(scope="module")
def network_of(tmp_path_factory) -> Callable[[str], IntegerNetwork]:
    folder = tmp_path_factory.mktemp("files")
    return functools.cache(lambda name: read_bytes(content_of(name), folder))


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_off_by_a_step_at_most(name, network_of):
    off = np.abs(steps_off(network_of(name), content_of(name)))
    assert off.max() <= 1
    assert (off > 0).mean() <= SHARES.get(name, 0.05)


def test_every_operator_has_a_case_or_is_the_like_of_one():
    made = {node.op_type for name in CASES for node in model_of(name).graph.node}
    of_tables = {"Elu", "Celu", "Selu", "ThresholdedRelu", "Softplus", "Softsign", "Mish", "Gelu", "QuickGelu", "Erf"}
    of_tables |= {
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Abs",
        "Neg",
        "Sin",
        "Cos",
        "Atan",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
    }
    alike = {"Pow", "Max", "Min", "HardSigmoid", "ReduceSum", "ReduceMax", "Upsample", "Expand", "Tile", "SpaceToDepth"}
    alike |= {
        "Identity",
        "Dropout",
        "Cast",
        "InstanceNormalization",
        "GroupNormalization",
        "QLinearReduceMean",
        "ArgMax",
    }
    assert set(CONVERTERS) - made - of_tables == alike


def test_the_documentation_names_every_operator():
    page = (ROOT / "docs" / "networks-quantised.md").read_text()
    table = page.partition("## Operators of ONNX")[2].partition("## ")[0]
    assert set(re.findall(r"\b[A-Z][A-Za-z]+[a-z]\b", table)) >= set(CONVERTERS)


@pytest.fixture(scope="module")
def all_in_one(network_of) -> IntegerNetwork:
    """The layers of these cases side by side, so that they are built at once."""
    inputs, outputs, layers = [], [], []
    for case in ON_BOARDS:
        network = network_of(case)
        named = {name: f"{case}.{name}" for name in network.shapes}
        inputs += [replace(port, name=named[port.name]) for port in network.inputs]
        outputs += [replace(port, name=f"{case}.{port.name}", source=named[port.source]) for port in network.outputs]
        layers += [
            replace(layer, name=named[layer.name], inputs=tuple(named[name] for name in layer.inputs))
            for layer in network.layers
        ]
    ports = {"inputs": tuple(inputs), "outputs": tuple(outputs)}
    return IntegerNetwork(name="all", scheme="tflite", layers=tuple(layers), **ports)


@pytest.mark.parametrize("board", ["host", *BOARDS])
def test_boards_compute_the_same(board, all_in_one, tmp_path):
    target = compute_in(TARGETS[board], "int8")
    if board != "host":
        needs_emulator(target)
    program = integer_program(all_in_one)
    library = compiled(program, target, tmp_path).library
    verdict = verify_library(library, target, program.vectors, program.outputs)
    assert verdict["passed"], verdict
    assert verdict["max_abs_error"] == 0


def test_gpus_compute_the_same(network_of, tmp_path):
    target = compute_in(TARGETS["t4"], "int8")
    program = integer_program(network_of("softmax"))
    library = compiled(program, target, tmp_path).library
    assert verify_library(library, target, program.vectors, program.outputs)["max_abs_error"] == 0


def test_files_of_ours_hold_such_networks(all_in_one, tmp_path):
    save(all_in_one, tmp_path / "all.safetensors")
    loaded = load(tmp_path / "all.safetensors")
    inputs = drawn(all_in_one.inputs)[0]
    for given, wanted in zip(loaded.run_all(inputs), all_in_one.run_all(inputs), strict=True):
        assert np.array_equal(given, wanted)


# ------------------------------------------------------------------------------------------------- what becomes of what


def test_a_function_that_only_clips_is_part_of_the_layer_before(network_of):
    """As of Conv, Relu and Add with a QuantizeLinear behind each, where that has the same steps."""
    file = File()
    made = file.quantised(file.node("Conv", file.input((1, 4, 5, 5), EVEN), file.constant((4, 4, 1, 1))), EVEN)
    file.output(file.quantised(file.node("Relu", made), EVEN))
    (layer,) = reading(file).layers
    assert (layer.minimum, layer.maximum) == (0, 127)
    assert layer.modules == ("Conv_3", "Relu_6")


def test_functions_in_a_row_are_one_table():
    file = File()
    made = file.input((1, 4, 5, 5))
    for kind in ("Sigmoid", "Tanh", "HardSwish"):
        made = file.quantised(file.node(kind, made), ("uint8", 0.01, 3))
    file.output(made)
    assert [layer.kind for layer in reading(file).layers] == ["table"]


def test_a_tensor_of_either_type_has_a_zero_point_of_0_inside_if_it_can():
    """Borders are 0 then, and cost nothing."""
    file = File()
    made = file.quantised(file.node("Relu", file.input((1, 4, 5, 5))), POSITIVE)
    made = file.node("Conv", made, file.constant((4, 4, 3, 3)), pads=[1, 1, 1, 1])
    file.output(file.quantised(made, SIGNED))
    table, layer = (layer for layer in reading(file).layers if layer.kind != "gather")
    assert (table.dtype, table.zero_point) == ("uint8", 0)
    assert layer.padding == (1, 1, 1, 1)


def test_outputs_have_the_types_of_the_file(network_of):
    network = network_of("moves")
    assert [port.dtype for port in network.outputs] == ["uint8", "uint8"]
    assert [port.zero_point for port in network.outputs] == [120, 120]


def test_a_flattened_map_is_not_moved(network_of):
    (layer,) = network_of("gemm").layers
    assert layer.weight.shape[1:] == layer.input_shape[1:]


@pytest.mark.parametrize("real", [3e-8, 3e-6, 2.0**-15, 0.0123, 0.5, 0.9999, 1.0, 17.3])
def test_factors_are_rounded_once_wherever_that_is_finer(real):
    multiplier, shift = single(real)
    sums = np.arange(-(10**4), 10**4, 7, dtype=np.int64) * max(1, int(0.01 / real))
    given = twice(sums, multiplier, shift)
    wide = sums * snapped(real)
    assert np.abs(given - wide).max() < 0.51
    assert shift == 0 or real >= 1 or real < 2.0**-15


def test_scales_that_are_powers_of_two_but_for_their_roundings_are_such():
    scale = float(np.float32(0.1)) * float(np.float32(0.05)) / float(np.float32(0.04))
    assert snapped(scale) == 0.125
    assert snapped(0.1251) == 0.1251


# -------------------------------------------------------------------------------------------------- our own, read back


def read_back(network: IntegerNetwork, folder, integers: bool = False) -> np.ndarray:
    """By how many steps each number differs that an exported network gives."""
    again = read_bytes(qdq.model_of(network, integers=integers).SerializeToString(), folder)
    inputs = integer_graphs.random_inputs(np.random.default_rng(1), network)
    signed = [array.dtype == np.int8 for array in inputs]
    given = [a.view(np.uint8) ^ 128 if integers and of else a for a, of in zip(inputs, signed, strict=True)]
    off = []
    for found, wanted in zip(again.run_all(tuple(given)), network.run_all(inputs), strict=True):
        moved = 128 if integers and wanted.dtype == np.int8 else 0
        off.append((found.astype(int) - wanted - moved).reshape(-1))
    return np.abs(np.concatenate(off))


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("kind", sorted(set(integer_graphs.KINDS) - {"log_softmax", "normalise"}))
def test_what_was_exported_is_the_same_again(kind, integers, tmp_path):
    """To the bit where factors are powers of two; others lose what float32 doesn't hold of them."""
    for scheme, most in (("power-of-two", 0), ("per-channel", 1)):
        network = integer_graphs.random_graph(np.random.default_rng(len(kind)), scheme, layers=1, kinds=(kind,))
        off = read_back(network, tmp_path, integers)
        assert off.max() <= most
        assert (off > 0).mean() <= 0.01 * most


def test_a_network_of_the_registry_is_the_same_again(tmp_path):
    network = quantized("dilated-net", "power-of-two")
    again = read_bytes(qdq.model_of(network).SerializeToString(), tmp_path)
    inputs = np.random.default_rng(0).integers(-128, 128, (2, 3, 32, 32)).astype(np.int8)
    assert np.array_equal(again.run(inputs), network.run(inputs))


# ------------------------------------------------------------------------------------------------------------ refusals


def reading(file: File) -> IntegerNetwork:
    with tempfile.TemporaryDirectory() as folder:
        return read_bytes(file.model().SerializeToString(), Path(folder))


def test_operators_that_are_not_taken_are_named_at_once():
    file = File()
    made = file.node("Einsum", file.input((1, 4, 5, 5)), equation="ijkl->ilkj")
    file.output(file.quantised(file.node("Hardmax", made)))
    with pytest.raises(UnsupportedOperatorError, match=r"Einsum in /Einsum_2; Hardmax in /Hardmax_3; --dtype float32"):
        reading(file)


def test_a_file_of_scales_that_are_found_at_run_time_is_no_such_file(tmp_path):
    """Such a one is compiled as it stands."""
    file = File()
    q, scale, _ = file.node("DynamicQuantizeLinear", file.given((1, 4)), count=3)
    file.output(file.node("Mul", file.node("Cast", q, to=1), scale))
    (tmp_path / "dynamic.onnx").write_bytes(file.model().SerializeToString())
    (tmp_path / "static.onnx").write_bytes(content_of("qgemm"))
    (tmp_path / "torn.onnx").write_bytes(content_of("qgemm")[:99])
    assert not comes_quantised(str(tmp_path / "dynamic.onnx"))
    assert comes_quantised(str(tmp_path / "static.onnx"))
    assert not comes_quantised(str(tmp_path / "torn.onnx"))
    with pytest.raises(UnsupportedOperatorError, match="DynamicQuantizeLinear in /DynamicQuantizeLinear_0"):
        reading(file)


def between(file: File) -> None:
    """Two functions of sums that nothing quantised, and one of what comes of the first, which isn't mentioned."""
    for _ in range(2):
        made = file.node("Sigmoid", file.node("Conv", file.input((1, 4, 5, 5)), file.constant((4, 4, 1, 1))))
        file.output(file.quantised(file.node("Tanh", made)))


def last(file: File) -> None:
    file.output(file.node("Softmax", file.input((1, 8))))


def wide(file: File) -> None:
    parameters = [file.array(0.01, "float32"), file.array(0, "int16")]
    q = file.node("QuantizeLinear", file.given((1, 4)), *parameters)
    file.output(file.node("DequantizeLinear", q, *parameters))


def of_float_weights(file: File) -> None:
    weights = file.array(np.ones((4, 4, 1, 1)), "float32")
    file.output(file.quantised(file.node("Conv", file.input((1, 4, 5, 5)), weights)))


def twice_quantised(file: File) -> None:
    x = file.given((1, 4))
    file.output(file.quantised(x))
    file.output(file.quantised(x, EVEN))


def of_a_batch(file: File) -> None:
    file.output(file.input((2, 4)))


def plain_float(file: File) -> None:
    file.output(file.quantised(file.node("Relu", file.given((1, 4)))))


def of_unlike_ranks(file: File) -> None:
    """What is left of either without its axis 2 is the same."""
    file.output(file.quantised(file.node("Concat", file.input((1, 6, 4)), file.input((1, 6)), axis=2)))


REFUSED = [
    (of_unlike_ranks, "tensors that don't fit together"),
    (
        between,
        r"Sigmoid \(/Sigmoid_4\): what Conv_3 gives, which isn't quantised before; Sigmoid \(/Sigmoid_12\): what",
    ),
    (last, r"Softmax \(/Softmax_2\): its result, the output 'softmax2.0', isn't quantised; --dtype float32"),
    (wide, r"QuantizeLinear \(/QuantizeLinear_0\): a tensor of int16, where int8 or uint8 are taken; --dtype"),
    (of_float_weights, r"Conv \(/Conv_2\): weights that aren't quantised; --dtype"),
    (twice_quantised, r"the input 'x', which is quantised in several ways; --dtype"),
    (of_a_batch, "whose first dimension isn't a batch of 1"),
    (plain_float, r"the input 'x', which is clipped before it is quantised; --dtype"),
]


@pytest.mark.parametrize(("build", "words"), REFUSED, ids=[build.__name__ for build, _ in REFUSED])
def test_what_is_refused_is_one_sentence_with_the_nodes_names(build, words):
    file = File()
    build(file)
    with pytest.raises(UserError, match=words) as caught:
        reading(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("array0", np.float32(-1), "has a scale of -1"),
        ("array0", np.float32("nan"), "has a scale of nan"),
        ("array2", np.zeros((4, 5, 1, 1), np.int8), "weights for 5 channels of 1 groups, and a map of 4"),
        ("array3", np.ones(3, np.float32), "3 scales or zero points for an axis of 4"),
        ("array3", np.float32(1e30), "scaled by"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(place, value, words):
    file = File()
    file.output(file.quantised(file.node("Conv", file.input((1, 4, 5, 5)), file.constant((4, 4, 1, 1)))))
    file.arrays = [
        numpy_helper.from_array(np.asarray(value), array.name) if array.name == place else array
        for array in file.arrays
    ]
    with pytest.raises(UserError, match=words) as caught:
        reading(file)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ commands


def test_a_file_is_built_and_run_by_its_name_alone(tvmflow, network_of, tmp_path):
    path, bundle = tmp_path / "residual.onnx", tmp_path / "bundle"
    path.write_bytes(content_of("residual"))
    built = tvmflow("build", "--model", path, "-o", bundle)
    assert built.code == 0, built.err
    said = json.loads((bundle / "manifest.json").read_text())["quantization"]
    assert (said["scheme"], said["input_zero_points"], said["output_zero_points"]) == ("tflite", [120], [-3])
    inputs = drawn(network_of("residual").inputs)[0]
    np.save(tmp_path / "x.npy", inputs[0])
    done = tvmflow("run", bundle, "--input", tmp_path / "x.npy", "--json", "-")
    assert next(iter(done.json["outputs"].values())) == network_of("residual").run(inputs[0]).tolist()


def test_it_is_estimated_in_integers(tvmflow, tmp_path):
    path = tmp_path / "residual.onnx"
    path.write_bytes(content_of("residual"))
    boards = ("--board", "raspberry-pi-4b", "--board", "mps3-an547", "--board", "pynq-z1")
    done = tvmflow("estimate", "--model", path, *boards, "--json", "-")
    assert done.code == 0, done.err
    rows = {row["target"]: row for row in done.json["estimates"]}
    assert {row["arithmetic"] for row in rows.values()} == {"int8"}
    assert [rows[name]["build"]["possible"] for name in rows] == [True, True, False]
    assert sum(row["macs"] for row in rows["mps3-an547"]["layers"]) == 4 * 4 * 9 * 64 + 4 * 10
    # the input, the same with its border, and what the convolution makes of that
    assert rows["mps3-an547"]["memory"]["activations_bytes"] == 4 * (64 + 100 + 64)


def test_an_open_batch_is_one(tmp_path):
    file = File()
    file.output(file.input((1, 4)))
    model = file.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    assert read(tmp_path / "x.onnx").inputs[0].shape == (1, 4)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="--input-shape x="):
        read(tmp_path / "x.onnx")
    assert read(tmp_path / "x.onnx", [parse_input_shape("1x6")]).inputs[0].shape == (1, 6)
