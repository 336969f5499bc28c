"""Float `.tflite` files: every operator is what LiteRT makes of it, in PyTorch and compiled for this computer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from conftest import ROOT, needs_emulator
from test_operators import HOST
from tflite_cases import graphs_of
from tflite_files import Graph, file_of
from tflite_float_cases import CASES, GOLDENS, MAP, add, draw, inputs_of, ints
from tvm import relax

from tvmflow.bundles.build import build
from tvmflow.integer.tflite.model import read_model
from tvmflow.integer.tflite.schema import OPERATORS
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.network.names import name_outputs
from tvmflow.network.tflite.file import import_graph
from tvmflow.network.tflite.graph import is_float
from tvmflow.network.tflite.operators import CONVERTERS
from tvmflow.network.tflite.reference import COMPUTED, Reference
from tvmflow.pipeline import run_stages
from tvmflow.spec import Program, TensorSpec, UnsupportedOperatorError, UserError
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS

NEAR = 2e-6
"""Of the largest magnitude of an output."""


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as archive:
        return dict(archive)


def written(folder: Path, graph: Graph) -> Path:
    path = folder / "network.tflite"
    path.write_bytes(file_of(graph))
    return path


def check(name: str, outputs: tuple[np.ndarray, ...], goldens: dict[str, np.ndarray]) -> None:
    for number, output in enumerate(outputs):
        wanted = goldens[f"{name}/{number}"]
        assert (output.shape, output.dtype) == (wanted.shape, wanted.dtype), name
        largest = np.abs(wanted.astype("float64")).max()
        assert np.abs(output.astype("float64") - wanted).max() <= NEAR * max(1, largest), name


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_what_litert_computes(name, goldens, tmp_path):
    graph = CASES[name]()
    reference = Reference(read_model(written(tmp_path, graph))[0])
    check(name, reference(*inputs_of(name, graph)), goldens)


def together() -> tuple[Graph, dict[str, tuple[Graph, int, int]]]:
    """All cases as one graph, and of each where its inputs and its outputs begin."""
    whole, places = Graph(), {}
    for name, make in CASES.items():
        graph, offset = make(), len(whole.tensors)
        places[name] = (graph, len(whole.inputs), len(whole.outputs))
        whole.tensors += [tensor | {"name": f"{name}_{tensor['name']}"} for tensor in graph.tensors]
        for kind, inputs, outputs, options in graph.operators:
            moved = ([number + offset for number in numbers] for numbers in (inputs, outputs))
            whole.operators.append((kind, *moved, options))  # type: ignore[arg-type]
        whole.inputs += [number + offset for number in graph.inputs]
        whole.outputs += [number + offset for number in graph.outputs]
    return whole, places


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[np.ndarray, ...]]:
    """What this computer makes of each case; all are compiled as one network."""
    graph, places = together()
    content = read_model(written(tmp_path_factory.mktemp("together"), graph))[0]
    specs = tuple(
        TensorSpec(name=content.tensors[number].name, shape=content.tensors[number].shape, dtype="float32")
        for number in content.inputs
    )
    module, _ = import_graph(content, specs)
    program = Program(
        name="all", source="", module=name_outputs(module), inputs=specs, outputs=(), vectors=(), parameters=0
    )
    target = tvm.target.Target(tvm_target_dict(HOST))
    with target:
        executable = relax.build(run_stages(program, HOST).module, target, relax_pipeline=None)
    arrays = [array for name, (one, *_) in places.items() for array in inputs_of(name, one)]
    made = relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays))
    found = [part.numpy() for part in made]
    return {name: tuple(found[first : first + len(one.outputs)]) for name, (one, _, first) in places.items()}


def test_every_case_compiled_is_what_litert_computes(answers, goldens):
    for name, outputs in answers.items():
        check(name, outputs, goldens)


def test_every_operator_has_a_case_and_a_reference():
    tried = {kind for make in CASES.values() for kind, *_ in make().operators}
    assert tried == {*COMPUTED}
    assert {*COMPUTED} == {*CONVERTERS, "SHAPE"}
    assert tried <= {*OPERATORS}


def test_the_documentation_names_every_operator():
    page = (ROOT / "docs" / "networks-tflite.md").read_text(encoding="utf-8")
    section = page.partition("## Operators of float files")[2].partition("\n## ")[0]
    assert {*re.findall(r"\b[A-Z][A-Z0-9_]+\b", section)} >= {*COMPUTED}


@pytest.mark.emulated
def test_a_face_detector_in_small_is_built_for_boards(tmp_path):
    needs_emulator(TARGETS["raspberry-pi-4b"])
    program = import_model(str(written(tmp_path, CASES["bottleneck"]())))
    built = build(program, TARGETS["raspberry-pi-4b"], tmp_path / "bundle")
    assert built.manifest["verify"]["passed"]
    assert [spec.shape for spec in program.outputs] == [(1, 12, 2), (1, 8, 2), (1, 20, 2)]


def test_maps_are_turned_round_at_the_input_and_at_the_outputs_alone(tmp_path):
    program = import_model(str(written(tmp_path, CASES["bottleneck"]())))
    assert program.module.script().count("permute_dims") == 3


def test_what_comes_from_channels_first_is_not_turned_round_at_all(tmp_path):
    program = import_model(str(written(tmp_path, CASES["channels-first"]())))
    assert "permute_dims" not in program.module.script()


def test_layers_have_the_names_of_tensors(tmp_path):
    graph = Graph()
    options = {"stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1}
    x = add(graph, "CONV_2D", [MAP, draw(5, 3, 3, 4), draw(5)], (1, 7, 6, 5), **options)
    graph.tensors[x]["name"] = "model/stem/conv2d;model/stem/bias"
    graph.outputs = [x]
    program = import_model(str(written(tmp_path, graph)))
    assert "model/stem/conv2d" in {
        binding.var.name for block in program.module["main"].body.blocks for binding in block.bindings
    }


def test_weights_in_int8_are_real_numbers_of_a_float_network(tmp_path):
    """Dynamic-range files: LiteRT rounds activations to int8 on the way, and here nothing is rounded."""
    graph = Graph()
    raw = (draw(5, 24) * 40).clip(-127, 127).astype(np.int8)
    graph.inputs = [graph.tensor((3, 24), dtype="float32", name="x")]
    weights = graph.constant(raw, 0.02)
    graph.outputs = [graph.add("FULLY_CONNECTED", [graph.inputs[0], weights], graph.tensor((3, 5), dtype="float32"))]
    program = import_model(str(written(tmp_path, graph)))
    x = draw(3, 24)
    assert np.allclose(program.original(x)[0], x @ (raw * np.float32(0.02)).T, atol=1e-5)


def test_files_say_whether_they_are_quantised(tmp_path):
    path = tmp_path / "quantised.tflite"
    path.write_bytes(file_of(*graphs_of("conv")))
    assert not is_float(path)
    assert is_float(written(tmp_path, CASES["half"]()))


def changed(change: Callable[[Graph], object]) -> Graph:
    graph = CASES["conv"]()
    change(graph)
    return graph


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: graph.tensors[0].update(dtype="float64"), "of float64, where float32"),
        (lambda graph: graph.tensors[0].update(dtype="string"), "of string, where float32"),
        (lambda graph: graph.tensors[0].update(shape=[1, 7, 0, 4]), "has no elements"),
        (lambda graph: graph.tensors[3].update(shape=[1, 7, 6, 4]), "and the file says"),
        (lambda graph: graph.tensors[1].update(shape=[5, 2, 2, 6]), "has weights for 6 channels and reads 4"),
        (lambda graph: graph.operators[0][3].update(stride_h=0), "the stride_h of CONV_2D is 0"),
        (lambda graph: graph.operators[0][3].update(fused=4), "the fused activation TANH"),
        (
            lambda graph: graph.operators[0][1].__setitem__(1, 0),
            "CONV_2D that computes its weights, where constants are taken",
        ),
        (lambda graph: graph.operators[0][1].pop(1), "CONV_2D has"),
    ],
)
def test_what_is_wrong_is_one_sentence(change, words, tmp_path):
    with pytest.raises((UserError, UnsupportedOperatorError), match=words) as caught:
        import_model(str(written(tmp_path, changed(change))))
    assert "\n" not in str(caught.value)


def test_all_operators_that_are_not_taken_are_named_at_once(tmp_path):
    graph = Graph()
    x = add(graph, "GATHER", [MAP, ints(0)], MAP)
    x = add(graph, "ABS", [x], MAP)
    graph.outputs = [add(graph, "RFFT2D", [x], MAP)]
    with pytest.raises(UnsupportedOperatorError, match=r"GATHER in t\d+; RFFT2D in"):
        import_model(str(written(tmp_path, graph)))


def test_shapes_of_files_are_fixed(tmp_path):
    path = written(tmp_path, CASES["conv"]())
    import_model(str(path), [parse_input_shape("1x7x6x4")])
    with pytest.raises(UserError, match="takes 1×7×6×4 of float32 for its input 'input_0', and --input-shape 2x7x6x4"):
        import_model(str(path), [parse_input_shape("2x7x6x4")])


def test_a_float_file_is_built_by_its_name_alone_and_refused_where_int8_is_wanted(tvmflow, tmp_path):
    path = written(tmp_path, CASES["half"]())
    built = tvmflow("build", "--model", path, "-o", tmp_path / "bundle")
    assert built.code == 0, built.err
    assert "passed" in built.out
    wanted = tvmflow("build", "--model", path, "--target", "cortex_m", "-o", tmp_path / "other")
    wanted.failed_with(4, "isn't quantised yet", "tvmflow quantize")
