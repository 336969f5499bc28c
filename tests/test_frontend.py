"""A network in each of its four forms becomes a Program that knows its interface, names and reference outputs."""

from __future__ import annotations

import networks
import numpy as np
import onnx
import pytest
import torch
from imported import registered
from onnx import TensorProto, helper, numpy_helper

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import Bundle
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.network.names import module_path
from tvmflow.pipeline import run_stages
from tvmflow.spec import UnsupportedOperatorError, UserError
from tvmflow.targets import TARGETS

SHAPE = [parse_input_shape("1x3x9x7")]


def built(program, tmp_path) -> Bundle:
    """Build for this computer; build() raises where the answers differ from the reference's."""
    bundle = build(program, TARGETS["host"], tmp_path / "bundle")
    assert bundle.manifest["verify"]["passed"] is True
    return bundle


@pytest.mark.parametrize("text", ["1x3x32x32", "1,3,32,32", "image=1x3x32x32"])
def test_input_shape_is_read(text):
    given = parse_input_shape(text)
    assert given.shape == (1, 3, 32, 32)
    assert given.name == ("image" if "=" in text else None)


@pytest.mark.parametrize("text", ["", "1x", "0x3", "-1x3", "axb", "1x3x", "x=", "1.5x2"])
def test_input_shape_is_refused(text):
    with pytest.raises(UserError, match="--input-shape takes"):
        parse_input_shape(text)


def test_registry_name():
    program = registered("dilated-net")
    assert program.parameters == 3_141_152
    assert [spec.shape for spec in program.inputs] == [(1, 3, 32, 32)]
    assert len(program.labels) == 10
    assert {"zeros", "lowest", "highest", "constant"} <= {vector.name for vector in program.vectors}


def test_registry_name_with_wrong_shape():
    with pytest.raises(UserError, match="1×3×8×8"):
        import_model("dilated-net", [parse_input_shape("1x3x8x8")])


def test_vectors_are_the_networks_own_outputs(tiny):
    network = networks.tiny()
    for vector in tiny.vectors:
        with torch.no_grad():
            expected = network(torch.from_numpy(vector.inputs[0])).numpy()
        np.testing.assert_array_equal(vector.outputs[0], expected)


def test_layers_carry_module_names(tiny):
    program = run_stages(tiny, TARGETS["host"])
    names = [layer.modules[0] for layer in program.layers]
    assert names[:3] == ["joint.0.dilated", "joint.0.depthwise", "joint.0.pointwise"]
    assert "classifier" in names
    assert module_path("joint/0/bn~2") == "joint.0.bn"


def test_equal_layers_keep_their_own_names(tmp_path):
    program = run_stages(import_model("networks:residual", [parse_input_shape("1x3x8x8")]), TARGETS["host"])
    assert [layer.modules[0] for layer in program.layers if layer.macs] == ["first", "second.0", "third.0"]


def test_several_inputs_and_outputs(tmp_path):
    program = import_model("networks:two_in_two_out", [parse_input_shape("2x6"), parse_input_shape("2x5")])
    assert [spec.shape for spec in built(program, tmp_path).outputs] == [(2, 3), (2, 3)]


def test_a_factory_may_lie_in_a_file_that_names_its_neighbours(tmp_path):
    folder = tmp_path / "my networks: old"
    folder.mkdir()
    (folder / "beside.py").write_text("CHANNELS = 5\n")
    (folder / "of_a_file.py").write_text(
        "import torch\nfrom beside import CHANNELS\ndef make():\n    return torch.nn.Conv2d(3, CHANNELS, 1)\n"
    )
    program = import_model(f"{folder}/of_a_file.py:make", [parse_input_shape("1x3x4x4")])
    assert (program.name, program.outputs[0].shape) == ("make", (1, 5, 4, 4))


def test_network_without_kernels(tmp_path):
    assert built(import_model("networks:constant", SHAPE), tmp_path).layers == ()


@pytest.mark.parametrize(
    ("model", "shapes", "words"),
    [
        ("networks:tiny", [], "--input-shape"),
        ("nowhere_at_all:tiny", SHAPE, "no module named 'nowhere_at_all'"),
        ("networks:missing", SHAPE, "missing"),
        ("networks:broken", SHAPE, "RuntimeError: no weights today"),
        ("networks:number", SHAPE, "gave a int"),
        ("networks:tiny", [parse_input_shape("1x4x9x7")], "1×4×9×7"),
        ("no-such-net", [], "dilated-net"),
        ("nowhere/at_all.py:tiny", SHAPE, "there is no file nowhere/at_all.py"),
        ("some/networks.py", SHAPE, "some/networks.py:function"),
        ("weights.pth", [], "pickle"),
        ("missing.pt2", [], "no file missing.pt2"),
        ("missing.onnx", [], "no file missing.onnx"),
    ],
)
def test_unusable_models_are_refused(model, shapes, words):
    with pytest.raises(UserError, match=words):
        import_model(model, shapes)


def test_unsupported_operators_are_reported_together():
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model("networks:exotic", [parse_input_shape("4x4")])
    assert len(caught.value.operators) >= 2
    assert all("1.0" in where for paths in caught.value.operators.values() for where in paths)
    assert all(operator in str(caught.value) for operator in caught.value.operators)


# -------------------------------------------------------------------------------------------------------------- .pt2


@pytest.fixture
def pt2(tmp_path):
    path = tmp_path / "tiny.pt2"
    torch.export.save(torch.export.export(networks.tiny(), (torch.zeros(1, 3, 9, 7),)), path)
    return path


def test_pt2(pt2, tiny, tmp_path):
    program = import_model(str(pt2))
    assert program.parameters == tiny.parameters
    np.testing.assert_array_equal(program.vectors[0].outputs[0], tiny.vectors[0].outputs[0])
    built(program, tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_pt2(pt2, kept):
    content = pt2.read_bytes()
    pt2.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(UserError, match=r"tiny\.pt2"):
        import_model(str(pt2))


def test_damaged_pt2(pt2):
    content = bytearray(pt2.read_bytes())
    content[len(content) // 3] ^= 0xFF
    pt2.write_bytes(content)
    with pytest.raises(UserError, match=r"tiny\.pt2"):
        import_model(str(pt2))


def test_pt2_of_another_shape(pt2):
    with pytest.raises(UserError, match="1×3×9×7"):
        import_model(str(pt2), [parse_input_shape("1x3x8x8")])


def test_pt2_with_a_pickle_inside_is_not_loaded(tmp_path):
    """A pickle that would write a file when it is loaded: refused, and the file isn't there."""
    import zipfile

    trace = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (trace.write_text, ("ran",))

    import pickle

    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/archive_format", "pt2")
        archive.writestr("bad/data/weights/model_weights_config.json", '{"config": {"w": {"use_pickle": true}}}')
        archive.writestr("bad/data/weights/weight_0", pickle.dumps(Payload()))
    with pytest.raises(UserError, match="pickled"):
        import_model(str(path))
    assert not trace.exists()


# -------------------------------------------------------------------------------------------------------------- ONNX


def onnx_model(batch: int | str = 1, operator: str = "Relu") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3, 3, 3)).astype("float32")
    dense = rng.standard_normal((6, 4)).astype("float32")
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["a"], name="/stem/conv", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["a"], ["b"], name="/stem/act"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="/pool"),
        helper.make_node("Flatten", ["c"], ["d"], name="/flatten"),
        helper.make_node("Gemm", ["d", "dense"], ["logits"], name="/head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(dense, "dense")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(model: onnx.ModelProto, tmp_path) -> str:
    path = tmp_path / "small.onnx"
    onnx.save(model, path)
    return str(path)


def test_onnx(tmp_path):
    program = import_model(saved(onnx_model(), tmp_path))
    assert program.parameters == 6 * 3 * 9 + 6 * 4
    assert [spec.name for spec in program.inputs] == ["image"]
    bundle = built(program, tmp_path)
    assert [layer.modules[0] for layer in bundle.layers if layer.macs] == ["stem.conv", "head"]


def test_onnx_with_an_open_batch_is_for_one(tmp_path):
    path = saved(onnx_model(batch="N"), tmp_path)
    assert import_model(path).inputs[0].shape == (1, 3, 8, 8)
    assert import_model(path, [parse_input_shape("image=2x3x8x8")]).outputs[0].shape == (2, 4)


@pytest.mark.parametrize("dims", [["N", 3, "H", 8], [1, 3, "H", 8], ["N"]])
def test_onnx_with_other_open_dimensions_needs_a_shape(tmp_path, dims):
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "x.onnx")
    with pytest.raises(UserError, match="--input-shape x="):
        import_model(str(tmp_path / "x.onnx"))


@pytest.mark.parametrize(("shape", "words"), [("1x3x9x9", "doesn't fit"), ("x=1x3x8x8", "no input 'x'")])
def test_onnx_with_a_wrong_shape(tmp_path, shape, words):
    with pytest.raises(UserError, match=words):
        import_model(saved(onnx_model(), tmp_path), [parse_input_shape(shape)])


def test_random_bytes_as_onnx(tmp_path):
    path = tmp_path / "noise.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(UserError, match="no valid ONNX model"):
        import_model(str(path))


def test_onnx_operator_that_is_unknown(tmp_path):
    model = onnx_model()
    model.graph.node.append(helper.make_node("Det", ["b"], ["e"], name="/odd"))
    model.graph.output.append(helper.make_tensor_value_info("e", TensorProto.FLOAT, [1, 6]))
    with pytest.raises(UnsupportedOperatorError, match=r"Det in .*/odd") as caught:
        import_model(saved(model, tmp_path))
    assert list(caught.value.operators) == ["Det"]
