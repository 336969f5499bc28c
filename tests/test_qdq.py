"""Quantised networks as ONNX, held against ONNX Runtime: each operator by itself, and whole networks' answers."""

from __future__ import annotations

import json
from pathlib import Path

import integer_graphs
import integer_networks
import numpy as np
import onnx
import pytest
from tflite_cases import CASES, graphs_of, inputs_of
from tflite_files import file_of

from tvmflow.integer import onnx_writer, qdq
from tvmflow.integer.file import save
from tvmflow.integer.layers import IntegerNode, Scheme
from tvmflow.integer.network import SCHEMES, IntegerNetwork, Port
from tvmflow.integer.operators import OPERATORS, ArgMax
from tvmflow.integer.post_training import logarithms
from tvmflow.integer.tflite.reader import read
from tvmflow.models import quantized
from tvmflow.network.frontend import import_model
from tvmflow.spec import UserError

ort = pytest.importorskip("onnxruntime")

RANDOM = sorted(set(integer_graphs.KINDS) - {"log_softmax"})
"""A random log-softmax has a factor of its own, and is no logarithm then."""


def session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # on processors with AVX2 and without VNNI it would add products in 16 bits, where they saturate
    options.add_session_config_entry("session.x64quantprecision", "1")
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def steps_off(network: IntegerNetwork, inputs: tuple[np.ndarray, ...], integers: bool = False) -> np.ndarray:
    """By how many steps each number that ONNX Runtime gives is off, of all outputs."""
    running = session(qdq.model_of(network, integers=integers))
    if integers:
        given = [array.view(np.uint8) ^ 128 if array.dtype == np.int8 else array for array in inputs]
    else:
        pairs = zip(network.inputs, inputs, strict=True)
        given = [((q.astype(np.float64) - port.zero_point) * port.scale).astype(np.float32) for port, q in pairs]
    found = running.run(None, dict(zip((value.name for value in running.get_inputs()), given, strict=True)))
    off = []
    for array, wanted, port in zip(found, network.run_all(inputs), network.outputs, strict=True):
        if integers:
            steps = array.astype(np.int64) - (128 if wanted.dtype == np.int8 else 0)
        else:
            steps = array.astype(np.float64) / port.scale + port.zero_point
        assert steps.shape == wanted.shape
        off.append(np.abs(steps - wanted).reshape(-1))
    return np.concatenate(off)


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", RANDOM)
def test_an_operator_is_off_by_a_rounding_at_most(kind, scheme: Scheme, integers):
    rng = np.random.default_rng(len(kind))
    network = integer_graphs.random_graph(rng, scheme, layers=1, kinds=(kind,))
    assert steps_off(network, integer_graphs.random_inputs(rng, network), integers).max() < 1.01


def test_a_logarithm_is_off_by_a_rounding_at_most():
    rng = np.random.default_rng(2)
    node = node_of(integer_graphs.random_graph(rng, "per-channel", layers=1, kinds=("log_softmax",)))
    count = node.output_shape[node.operator.axis]
    network = alone(node, "int8", 0.125, **logarithms(2**-6, 0.125, count))
    assert steps_off(network, integer_graphs.random_inputs(rng, network)).max() < 1.01


@pytest.mark.parametrize("name", CASES)
def test_what_tflite_files_do_is_off_by_a_rounding_at_most(name, tmp_path):
    network = network_of(name, tmp_path)
    arrays = dict(zip((port.name for port in network.inputs), inputs_of(name)[-1], strict=False))
    for state in network.state:
        port = next(port for port in network.inputs if port.name == state.input)
        arrays[state.input] = np.full(port.shape, state.initial, port.dtype)
    assert steps_off(network, tuple(arrays[port.name] for port in network.inputs)).max() < 1.01


@pytest.mark.parametrize("name", ["dilated-net", "resnet-8"])
def test_answers_are_those_of_the_integers_but_for_ties(name):
    network = quantized(name)
    running = session(qdq.model_of(network))
    rng = np.random.default_rng(3)
    images = rng.normal(0, rng.uniform(0.2, 2, (12, 1, 1, 1)), (12, *network.input_shape[1:])).astype(np.float32)
    found = np.concatenate([running.run(None, {network.inputs[0].name: image[None]})[0] for image in images])
    wanted = network.run(network.quantize_input(images))
    chosen = np.take_along_axis(wanted, found.argmax(1)[:, None], 1)[:, 0]
    assert (chosen.astype(int) >= wanted.max(1).astype(int) - 1).all()
    assert np.abs(found / network.output_scale - wanted).mean() < 0.5


def test_halves_are_rounded_up_where_they_are_frequent():
    rng = np.random.default_rng(1)
    network = integer_networks.random_network(rng, "power-of-two", shapes=integer_networks.VARIETY)
    assert steps_off(network, (integer_networks.random_input(rng, network.input_shape, 1),)).max() < 0.01


def test_files_say_what_they_are(tmp_path):
    network = network_of("streaming", tmp_path)
    qdq.write(network, tmp_path / "network.onnx")
    model = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(model, full_check=True)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", onnx_writer.OPSET)]
    assert {layer.name for layer in network.layers} <= {node.name for node in model.graph.node}
    assert [value.name for value in model.graph.input] == [port.name for port in network.inputs]
    assert [value.name for value in model.graph.output] == [port.name for port in network.outputs]
    assert said["tvmflow.scheme"] == "tflite"
    assert {(entry["input"], entry["output"]) for entry in json.loads(said["tvmflow.state"])} == {
        (state.input, state.output) for state in network.state
    }


def test_names_that_are_taken_are_given_once():
    """A layer may be called as an input's number or as another layer's result."""
    network = integer_networks.random_network(np.random.default_rng(4), "per-channel", shapes=integer_networks.VARIETY)
    first, second, *rest = network.layers
    renamed = {first.name: "input.quantized", second.name: "input.quantized.sums"}
    layers = tuple(
        type(layer)(
            **{
                **vars(layer),
                "name": renamed.get(layer.name, layer.name),
                "inputs": tuple(renamed.get(name, name) for name in layer.inputs),
            }
        )
        for layer in (first, second, *rest)
    )
    again = IntegerNetwork(**{**vars(network), "layers": layers})
    assert (
        steps_off(again, (integer_networks.random_input(np.random.default_rng(5), network.input_shape, 1),)).max() < 2
    )


def test_what_is_exported_is_imported(tmp_path):
    """As a float network that computes the same as the integers, but for roundings."""
    network = integer_networks.random_network(
        np.random.default_rng(6), "per-channel", shapes=integer_networks.ONE_JOINT_MODULE
    )
    qdq.write(network, tmp_path / "network.onnx")
    program = import_model(str(tmp_path / "network.onnx"))
    image = integer_networks.random_input(np.random.default_rng(7), network.input_shape, 1)
    assert program.original is not None
    (found,) = program.original((image * network.input_scale).astype(np.float32))
    assert np.abs(found / network.output_scale - network.run(image)).max() < 1.01


def test_every_operator_is_said_or_refused():
    assert set(OPERATORS.values()) - set(qdq.EXPORTERS) == {ArgMax}


def test_all_layers_that_cannot_be_said_are_named_and_nothing_is_written(tvmflow, tmp_path):
    graph = integer_graphs.random_graph(np.random.default_rng(2), "per-channel", layers=1, kinds=("softmax",))
    shape = graph.layers[-1].output_shape
    node = {"modules": (), "operator": ArgMax(axis=1), "minimum": 0, "maximum": 255, "dtype": "uint8", "scale": 1.0}
    out = (1, 1, *shape[2:])
    layers = tuple(
        IntegerNode(name=name, inputs=(graph.layers[-1].name,), input_shapes=(shape,), output_shape=out, **node)
        for name in ("first", "second")
    )
    ports = tuple(Port(name=f"{layer.name}.out", shape=out, scale=1.0, source=layer.name) for layer in layers)
    network = IntegerNetwork(
        name="graph", scheme="per-channel", inputs=graph.inputs, outputs=ports, layers=(*graph.layers, *layers)
    )
    with pytest.raises(UserError, match=r"because of first \(argmax.*\), second \(argmax"):
        qdq.model_of(network)
    save(network, tmp_path / "graph.safetensors")
    done = tvmflow("export", "--model", tmp_path / "graph.safetensors", "-o", tmp_path / "graph.onnx")
    done.failed_with(4, "first (argmax", "second (argmax")
    assert [path.name for path in tmp_path.iterdir()] == ["graph.safetensors"]


def test_a_logarithm_of_another_scale_is_refused():
    network = integer_graphs.random_graph(np.random.default_rng(2), "per-channel", layers=1, kinds=("log_softmax",))
    with pytest.raises(UserError, match="log_softmax of other functions"):
        qdq.model_of(network)


def test_the_command_takes_what_is_quantised_already(tvmflow, tmp_path):
    (tmp_path / "net.tflite").write_bytes(file_of(*graphs_of("conv")))
    done = tvmflow("export", "--model", tmp_path / "net.tflite", "-o", tmp_path / "net.onnx", "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["scheme"] == "tflite"
    assert session(tmp_path / "net.onnx").get_inputs()[0].type == "tensor(float)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "resnet-8", "-o", "."), ". is a folder"),
        (("--model", "resnet-8", "-o", "nowhere/net.onnx"), "no folder nowhere"),
        (("--model", "squeezenet", "-o", "net.onnx"), "tvmflow quantize --model squeezenet"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(options, words, tvmflow, tmp_path):
    tvmflow("export", *options, cwd=tmp_path).failed_with(4, words)
    assert not list(tmp_path.iterdir())


def network_of(case: str, folder: Path) -> IntegerNetwork:
    (folder / "network.tflite").write_bytes(file_of(*graphs_of(case)))
    return read(folder / "network.tflite")


def node_of(network: IntegerNetwork) -> IntegerNode:
    node = network.layers[-1]
    assert isinstance(node, IntegerNode)
    return node


def alone(node: IntegerNode, dtype: str, scale: float, **more) -> IntegerNetwork:
    """A node that reads the network's input, with its own numbers."""
    limits = {"minimum": -128, "maximum": 127, "dtype": dtype, "scale": scale, "inputs": ("input",)}
    made = IntegerNode(**{**vars(node), **limits, **more})
    return IntegerNetwork.chain(
        name="alone", scheme="per-channel", input_shape=node.input_shape, input_scale=2**-6, layers=(made,)
    )
