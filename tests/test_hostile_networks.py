"""Files of networks that strangers made: reading one runs nothing of theirs, and takes no more than its size allows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tvmflow.network import pt2_archive, pt2_expressions
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.spec import TvmflowError, UnsupportedOperatorError, UserError
from tvmflow.system import limits

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Marker:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


class Words(nn.Module):
    """A network with an argument that is a text, and one by keyword."""

    def forward(self, x, mode="twice", *, options):
        return {"y": x * (2 if mode == "twice" else 1) + options["m"]}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clean") / "clean.pt2"
    torch.export.save(torch.export.export(networks.tiny(), (torch.zeros(1, 3, 9, 7),)), path)
    return path


@pytest.fixture(scope="module")
def wordy(tmp_path_factory) -> Path:
    """A batch that is open, and constants among the arguments."""
    path = tmp_path_factory.mktemp("wordy") / "wordy.pt2"
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=9)}, "mode": None, "options": {"m": None}}
    arguments = {"options": {"m": torch.ones(3)}}
    torch.export.save(
        torch.export.export(Words(), (torch.zeros(4, 3), "twice"), arguments, dynamic_shapes=shapes), path
    )
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def altered(path: Path, out: Path, **members_of: Any) -> str:
    """A copy with members in place of those of the file: `add` by their names, of which None ones are left out."""
    content = members(path) | members_of.get("add", {})
    if change := members_of.get("graph"):
        document = json.loads(content[GRAPH])
        change(document)
        content[GRAPH] = json.dumps(document).encode()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(f"{members_of.get('root', 'net/')}{name}", data)
    return str(out)


def refused(path: str, words: str, *shapes: str) -> str:
    with pytest.raises(TvmflowError, match=words) as caught:
        import_model(path, [parse_input_shape(text) for text in shapes])
    assert isinstance(caught.value, (UserError, UnsupportedOperatorError))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------- pickles and code


@pytest.mark.parametrize("form", [saved, pickle.dumps])
def test_sample_inputs_are_never_read(form, clean, marker, tmp_path):
    path = altered(clean, tmp_path / "a.pt2", add={"data/sample_inputs/model.pt": form(Marker(marker))})
    assert import_model(path).inputs[0].shape == (1, 3, 9, 7)
    assert not marker.exists()


@pytest.mark.parametrize("form", [saved, pickle.dumps])
@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_pickled_weights_of_older_files(kind, form, clean, marker, tmp_path):
    add = {f"data/{kind}/model.pt": form(Marker(marker)), f"data/{kind}/model_{kind}_config.json": None}
    refused(altered(clean, tmp_path / "a.pt2", add=add), "holds a pickle, data/.*no plain dict of tensors")
    assert not marker.exists()


def test_old_and_new_weights_at_once(clean, marker, tmp_path):
    add = {"data/weights/model.pt": saved({"w": Marker(marker)})}
    refused(altered(clean, tmp_path / "a.pt2", add=add), "both data/weights/model.pt and")
    assert not marker.exists()


@pytest.mark.parametrize("use_pickle", [False, True])
@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0", "tensor_0"])
def test_pickled_constants(name, use_pickle, clean, marker, tmp_path):
    meta = json.loads(members(clean)[WEIGHTS])["config"]["classifier.bias"]["tensor_meta"]
    entry = {"path_name": name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": meta}
    add = {
        CONSTANTS: json.dumps({"config": {"k": entry}}).encode(),
        f"data/constants/{name}": pickle.dumps(Marker(marker)).ljust(256, b"\0"),
    }
    path = altered(clean, tmp_path / "a.pt2", add=add)
    if name == "tensor_0" and not use_pickle:  # bytes like any others
        pt2_archive.load(Path(path))
    else:
        refused(path, "pickled or compiled objects")
    assert not marker.exists()


def test_weights_that_say_that_they_are_pickles(clean, marker, tmp_path):
    configuration = json.loads(members(clean)[WEIGHTS])
    entry = configuration["config"]["classifier.bias"]
    entry["use_pickle"] = True
    add = {
        WEIGHTS: json.dumps(configuration).encode(),
        f"data/weights/{entry['path_name']}": saved(Marker(marker)),
    }
    refused(altered(clean, tmp_path / "a.pt2", add=add), r"pickled or compiled objects \('classifier.bias'\)")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    ["data/aotinductor/model/a.wrapper.cpp", "data/aotinductor/model/a.wrapper_compile_flags.json", "model.so"],
)
def test_compiled_code(name, clean, marker, tmp_path):
    flags = json.dumps({"cflags": [f"-x; touch {marker}"], "macros": [f"$(touch {marker})"]}).encode()
    refused(altered(clean, tmp_path / "a.pt2", add={name: flags}), "pickled or compiled objects")
    assert not marker.exists()


def code(marker: Path) -> str:
    return f"__import__('os').mkdir('{marker}')"


def _set_size(text: str) -> Callable:
    def change(document):
        for tensor in document["graph_module"]["graph"]["tensor_values"].values():
            tensor["sizes"][:1] = [{"as_expr": {"expr_str": text, "hint": {"as_int": 1}}}]

    return change


def _in_signature(which: str, old: str, new: str) -> Callable:
    def change(document):
        call = document["graph_module"]["module_call_graph"][0]["signature"]
        assert old in call[which]
        call[which] = call[which].replace(old, new)

    return change


def _replaced(old: str, new: str) -> Callable:
    def change(document):
        text = json.dumps(document)
        assert old in text
        changed = json.loads(text.replace(old, json.dumps(new)[1:-1]))
        document.clear()
        document.update(changed)

    return change


def test_expressions_of_sizes(clean, marker, tmp_path):
    for text in (code(marker), f"Symbol('s1') + {code(marker)}", f"Symbol({code(marker)})", "Integer(1).__class__"):
        refused(altered(clean, tmp_path / "a.pt2", graph=_set_size(text)), "no arithmetic of sizes")
    assert not marker.exists()


def test_guards(wordy, marker, tmp_path):
    def change(document):
        document["guards_code"] = [f"L['x'].size()[0] == {code(marker)}"]

    refused(altered(wordy, tmp_path / "a.pt2", graph=change), "no arithmetic of sizes", "x=3x3")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"name": "mul"', '"name": "mul = CODE; y"'),  # names of nodes are variables of generated code
        ('"name": "x"', '"name": "x=CODE"'),
        ('"value": {"as_string": "twice"}', '"value": {"as_string": "\' + str(CODE) + \'"}'),
        ('"forward_arg_names": ["x"', '"forward_arg_names": ["x=CODE"'),
        ("torch.ops.aten.mul.Tensor", "torch.serialization.os.mkdir"),  # operators are found by any dotted name
        ("torch.ops.aten.mul.Tensor", "torch.load"),
        ("torch.ops.aten.mul.Tensor", "torch.ops.aten.from_file.default"),
        ("torch.ops.aten.mul.Tensor", "torch.ops.aten.save.default"),
        ("torch.ops.aten.mul.Tensor", "_operator.methodcaller"),
        ("torch.ops.aten.mul.Tensor", "#extension:operator"),
        ("torch.ops.aten.mul.Tensor", "torch.ops.higher_order.triton_kernel_wrapper_mutation"),
        ('"verifiers": ["TRAINING"]', '"verifiers": ["CODE"]'),
    ],
)
def test_names_in_graphs(old, new, wordy, marker, tmp_path):
    text = json.dumps(json.loads(members(wordy)[GRAPH]))
    assert old in text
    content = text.replace(old, new.replace("CODE", code(marker)))
    refused(altered(wordy, tmp_path / "a.pt2", add={GRAPH: content.encode()}), "a.pt2|not supported", "x=3x3")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("which", "old", "new"),
    [
        ("in_spec", '"options\\\\"', '"options\\\\": CODE, \\\\"'),
        ("in_spec", '"builtins.dict", "context": "[\\\\"m', '"collections.defaultdict", "context": "[\\\\"m'),
        ("out_spec", '"[\\\\"y\\\\"]"', '"{\\\\"__enum__\\\\": true, \\\\"fqn\\\\": \\\\"hostile:A\\\\"}"'),
    ],
)
def test_nesting_of_arguments(which, old, new, wordy, marker, tmp_path):
    old, new = old.replace("\\\\", "\\"), new.replace("\\\\", "\\").replace("CODE", code(marker))
    refused(altered(wordy, tmp_path / "a.pt2", graph=_in_signature(which, old, new)), r"a\.pt2", "x=3x3")
    assert not marker.exists()


def test_modules_that_are_named_are_not_imported(wordy, tmp_path, monkeypatch):
    """Enumerations and default dicts among the arguments name a module, which PyTorch would import."""
    (tmp_path / "hostile_module.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').mkdir()\n")
    monkeypatch.syspath_prepend(tmp_path)
    context = {"default_factory_module": "hostile_module", "default_factory_name": "A", "dict_context": ["y"]}

    def change(document):
        call = document["graph_module"]["module_call_graph"][0]["signature"]
        version, tree = json.loads(call["out_spec"])
        tree |= {"type": "collections.defaultdict", "context": context}
        call["out_spec"] = json.dumps([version, tree])

    refused(altered(wordy, tmp_path / "a.pt2", graph=change), "collections.defaultdict", "x=3x3")
    assert not (tmp_path / "ran").exists()


def test_paths_of_modules_that_are_none(clean, tmp_path):
    """Kernels are named after them, in sources too: a path that could end a comment is left out."""

    def change(document):
        for node in document["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {"nn_module_stack": "L__self__,,Net;key,a*/ int main() /*,Net"}

    path = altered(clean, tmp_path / "a.pt2", graph=change)
    stacks = [node.meta.get("nn_module_stack", {}) for node in pt2_archive.load(Path(path)).graph.nodes]
    assert "main" not in str(stacks)


@pytest.mark.parametrize("name", ['a"]; CODE #', "a'+CODE+'", "a\nCODE"])
def test_names_of_weights(name, clean, marker, tmp_path):
    configuration = json.loads(members(clean)[WEIGHTS])["config"]
    hostile = name.replace("CODE", code(marker))
    configuration[hostile] = configuration.pop("classifier.bias")

    def change(document):
        for entry in document["graph_module"]["signature"]["input_specs"]:
            if entry.get("parameter", {}).get("parameter_name") == "classifier.bias":
                entry["parameter"]["parameter_name"] = hostile

    add = {WEIGHTS: json.dumps({"config": configuration}).encode()}
    refused(altered(clean, tmp_path / "a.pt2", add=add, graph=change), "of a module or weight")
    assert not marker.exists()


@pytest.mark.parametrize("command", ["build", "estimate", "tune", "quantize"])
def test_every_command_ends_with_a_sentence(command, tvmflow, clean, marker, tmp_path):
    add = {
        "data/sample_inputs/model.pt": saved(Marker(marker)),
        "data/weights/model.pt": saved(Marker(marker)),
        WEIGHTS: None,
    }
    path = altered(clean, tmp_path / "a.pt2", add=add)
    np.save(tmp_path / "data.npy", np.zeros((4, 3, 9, 7), np.float32))
    more = {
        "build": ["-o", tmp_path / "out"],
        "estimate": ["--board", "pynq-z1"],
        "tune": ["--trials", "1"],
        "quantize": ["--data", tmp_path / "data.npy", "-o", tmp_path / "out"],
    }
    tvmflow(command, "--model", path, *more[command]).failed_with(4, "holds a pickle, data/weights/model.pt")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    "text",
    [
        *("Symbol('s77', positive=True, integer=True)", "Mul(Integer(2), Symbol('s0', integer=True))", "2*s0 + 1"),
        *("Max(1, s0)", "s0//2 % 3", "Pow(Symbol('s0', integer=True), Integer(2))", "Eq(Mod(s0, 2), 0)"),
        *("FloorDiv(Add(s0, Integer(-1)), Integer(2))", "Float('0.5', precision=53)", "-s0", "u3"),
    ],
)
def test_dimensions(text):
    assert pt2_expressions.dimension(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    [
        *("x", "os", "s0.func", "exit()", "Symbol(s0)", "Symbol('os')", "Lambda(s0, 1)", "(lambda: 1)()", "[1]", "''"),
        *("Integer('1')", "Symbol('s0', integer=exit())", "Integer(*s0)", "Pow(10, 1000000000)", "9**9**9", "10**99"),
        *("1 if s0 else 2", "Pow(Pow(s0, 8), 8)", "\x00"),
        *("s0(1)", "f'{s0}'", "s0 := 1", "yield", "", "(" * 300, "1+" * 2000 + "1", 7),
        *("Float('1e1000000')", "Mul(" * 40 + "1" + ")" * 40, "LShift(1, 100000000)", "Symbol('s0')\nexit()"),
    ],
)
def test_what_is_no_dimension(text):
    with pytest.raises(ValueError, match="expression"):
        pt2_expressions.dimension(text)


@pytest.mark.parametrize("text", ["L['x'].size()[0] > 4", "L['d']['a'][0].size()[0] * L['x'].stride()[1] % 2 == 0"])
def test_guards_are_read(text):
    assert pt2_expressions.guard(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("L", "L.size", "L['x'].tolist()", "L['x'].size(exit())", "L[exit()]", "x", "open('a')", "L['x'].size()[s]"),
        *("L['x']['__class__'].mro()", "torch.load(1)", "2 ** 99", "[1 for _ in L]", "L['a\\'b'] == 1", "str(L['x'])"),
    ],
)
def test_what_is_no_guard(text):
    with pytest.raises(ValueError, match="expression"):
        pt2_expressions.guard(text)


# ------------------------------------------------------------------------------------------------------ size and form


def test_compressed_members(clean, tmp_path):
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(clean).items():
            archive.writestr(f"net/{name}", data)
        archive.writestr("net/data/weights/weight_99", bytes(1 << 26))
    refused(str(path), "compressed or encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(clean, tmp_path):
    path = altered(clean, tmp_path / "a.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"net/{GRAPH}", b"{}")
    refused(path, "two members of one name")


def test_members_outside_of_the_archives_folder(clean, tmp_path):
    path = altered(clean, tmp_path / "a.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"other/{GRAPH}", b"{}")
    refused(path, "what else no network has ..other/models")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{}", "models/model.json, which is no JSON"),
        (b"[" * 100_000, "models/model.json, which is no JSON"),
        (b"[" * 400 + b"]" * 400, "deeper than 100"),
        (b"{}", "without its 'graph_module'|a.pt2"),
        (b"[]", "where a dict belongs"),
        (b'{"graph_module": 3}', "where a dict belongs"),
        (b"1" * 5000, "no JSON|where a dict"),
    ],
)
def test_graphs_that_are_none(content, words, clean, tmp_path):
    refused(altered(clean, tmp_path / "a.pt2", add={GRAPH: content}), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": [{"as_int": 1 << 40}], "strides": [{"as_int": 0}]}, "at most 268,435,456"),
        ({"sizes": [{"as_int": 1 << 20}]}, "which reaches over"),
        ({"storage_offset": {"as_int": 1}}, "which reaches over"),
        ({"sizes": [{"as_int": -4}]}, "whose dtype, shape or strides are none"),
        ({"strides": [{"as_int": -1}]}, "whose dtype, shape or strides are none"),
        ({"dtype": 99}, "whose dtype, shape or strides are none"),
        ({"dtype": 6}, "of another shape or dtype than its graph takes"),
        ({"sizes": [{"as_int": 3}]}, "of another shape or dtype than its graph takes"),
        ({"sizes": [{"as_expr": {"expr_str": "s0"}}]}, "where one of as_int belongs"),
        ({"device": {"type": "cuda", "index": 0}}, r"export the network after .to\('cpu'\)"),
    ],
)
def test_weights_that_do_not_fit_their_bytes(change, words, clean, tmp_path):
    configuration = json.loads(members(clean)[WEIGHTS])
    configuration["config"]["classifier.bias"]["tensor_meta"] |= change
    refused(altered(clean, tmp_path / "a.pt2", add={WEIGHTS: json.dumps(configuration).encode()}), words)


def test_weights_without_bytes(clean, tmp_path):
    """PyTorch would make zeros of the shape that an empty member is said to have."""
    member = json.loads(members(clean)[WEIGHTS])["config"]["classifier.bias"]["path_name"]
    refused(altered(clean, tmp_path / "a.pt2", add={f"data/weights/{member}": b""}), "0 bytes for the tensor")


def test_big_endian_weights(clean, tmp_path):
    refused(altered(clean, tmp_path / "a.pt2", add={"byteorder": b"big"}), "big-endian")


class Large(nn.Module):
    def forward(self, x):
        return (torch.zeros(1 << 20, 1 << 10) + x).sum() + x


def test_results_that_are_too_large(tmp_path):
    path = tmp_path / "large.pt2"
    torch.export.save(torch.export.export(Large(), (torch.zeros(1),)), path)
    refused(str(path), r"of 1048576×1024 has 1,073,741,824 elements; a tensor has at most 268,435,456")


def test_inputs_that_are_too_large(wordy, tmp_path):
    words = "all inputs together have at most 33,554,432 elements"
    refused(str(wordy), words, "x=99999999x3")
    refused("networks:tiny", words, "8x3x10000000")


def test_files_that_are_too_large(clean, monkeypatch):
    monkeypatch.setattr(limits.NETWORK, "bytes", 1000)
    refused(str(clean), "at most 1,000")


def test_mutated_files(clean, tmp_path):
    """Any byte of the archive's directory or of a graph may be another one; what comes is a network or a sentence."""
    generator = np.random.default_rng(0)
    content = clean.read_bytes()
    for _ in range(40):
        mutated = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            mutated[place] = generator.integers(0, 256)
        (tmp_path / "a.pt2").write_bytes(mutated[: generator.integers(len(content) // 2, len(content) + 1)])
        with pytest.raises(UserError, match=r"a\.pt2"):
            pt2_archive.load(tmp_path / "a.pt2")


def test_mutated_graphs(wordy, tmp_path):
    """Values of a graph in one another's places, where checksums are right."""
    generator = np.random.default_rng(0)
    odd = [None, -1, 1 << 62, "x", "", [], {}, True, 1.5, {"as_int": 3}, ["x"], {"name": "x"}]

    def places(value: Any) -> list[tuple[Any, Any]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]

    for _ in range(60):

        def change(document):
            found = places(document)
            holder, key = found[generator.integers(len(found))]
            holder[key] = odd[generator.integers(len(odd))]

        path = altered(wordy, tmp_path / "a.pt2", graph=change)
        with contextlib.suppress(UserError, UnsupportedOperatorError):
            import_model(path, [parse_input_shape("x=3x3")])


# ------------------------------------------------------------------------------------------------- what is still read


class Weighty(nn.Module):
    """Tied, non-persistent, lifted, expanded and other weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.randn(4))
        self.register_buffer("kept_back", torch.randn(4), persistent=False)
        self.spread = nn.Parameter(torch.randn(1, 4).expand(3, 4))
        self.plain, self.lifted = torch.randn(4), True
        self.to(dtype)
        self.plain = self.plain.to(dtype)

    def forward(self, x):
        with torch.no_grad():
            y = self.second(torch.relu(self.first(x))) + self.shift + self.kept_back + self.plain
        if self.lifted:
            y += torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
        return OrderedDict(a=nn.functional.linear(y, self.spread), b=[y.reshape(-1, 2, 2)])


def agrees(path: Path, network: nn.Module, arguments: tuple, *shapes: str) -> None:
    program = import_model(str(path), [parse_input_shape(text) for text in shapes])
    for vector in program.vectors[:4]:
        given = [torch.from_numpy(array.copy()) for array in vector.inputs] if arguments else []
        with torch.no_grad():
            results = torch.utils._pytree.tree_leaves(network(*given))
        for ours, theirs in zip(vector.outputs, results, strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())


def test_weights_of_many_kinds(tmp_path):
    network = Weighty(torch.float32).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    for shapes in (None, {"x": {0: batch}}):
        network.lifted = shapes is None  # PyTorch can't export a network anew that detaches a tensor in place
        exported = torch.export.export(network, (torch.zeros(6, 4),), dynamic_shapes=shapes)
        torch.export.save(exported, tmp_path / "net.pt2", extra_files={"note": "for strangers"})
        agrees(tmp_path / "net.pt2", network, (1,), "6x4")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes(dtype, tmp_path):
    network = Weighty(dtype).eval()
    exported = torch.export.export(network, (torch.ones(6, 4, dtype=dtype),))
    torch.export.save(exported, tmp_path / "net.pt2")
    program = import_model(str(tmp_path / "net.pt2"))
    assert program.inputs[0].dtype == str(dtype).removeprefix("torch.")
    assert pt2_archive.load(tmp_path / "net.pt2").state_dict["shift"].equal(network.shift)


def test_weights_that_are_tied_stay_tied(tmp_path):
    exported = torch.export.export(Weighty(torch.float32).eval(), (torch.ones(6, 4),))
    torch.export.save(exported, tmp_path / "net.pt2")
    state = pt2_archive.load(tmp_path / "net.pt2").state_dict
    assert state["first.weight"].data_ptr() == state["second.weight"].data_ptr()


class Longer(nn.Module):
    def forward(self, x, y):
        return x.sum() * 2 if x.shape[0] > y.shape[0] else x.sum() * 3


def test_guards_still_hold(tmp_path):
    """Which branch was exported depends on two sizes: others than those it holds for are refused."""
    free = {"x": {0: torch.export.Dim.AUTO}, "y": {0: torch.export.Dim.AUTO}}
    exported = torch.export.export(Longer(), (torch.ones(8, 4), torch.ones(5)), dynamic_shapes=free)
    torch.export.save(exported, tmp_path / "net.pt2")
    agrees(tmp_path / "net.pt2", Longer(), (1, 1), "x=9x4", "y=3")
    refused(str(tmp_path / "net.pt2"), "can't be had for", "x=3x4", "y=9")


def older(path: Path, out: Path, state: bytes | None = None) -> str:
    """The layout of PyTorch up to 2.7: no folder, weights and constants as dicts of torch.save."""
    exported = torch.export.load(path)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("version", "8.20")
        archive.writestr("serialized_exported_program.json", members(path)[GRAPH])
        archive.writestr("serialized_state_dict.pt", saved(dict(exported.state_dict)) if state is None else state)
        archive.writestr("serialized_constants.pt", saved(dict(exported.constants)))
        archive.writestr("serialized_example_inputs.pt", saved(exported.example_inputs))
        archive.writestr("extra_files/note", "for strangers")
    return str(out)


def test_older_layout(tmp_path, marker):
    network = Weighty(torch.float32).eval()
    torch.export.save(torch.export.export(network, (torch.ones(6, 4),)), tmp_path / "new.pt2")
    agrees(Path(older(tmp_path / "new.pt2", tmp_path / "old.pt2")), network, (1,))
    for form in (saved, pickle.dumps):
        path = older(tmp_path / "new.pt2", tmp_path / "bad.pt2", form({"first.weight": Marker(marker)}))
        refused(path, "holds a pickle, data/weights/model.pt")
    assert not marker.exists()


def test_older_layout_for_an_older_pytorch(tmp_path, monkeypatch):
    """PyTorch 2.6 and 2.7 are given the only layout that they read; this one reads it too."""
    torch.export.save(torch.export.export(Weighty(torch.float32), (torch.ones(6, 4),)), tmp_path / "new.pt2")
    path = older(tmp_path / "new.pt2", tmp_path / "old.pt2")
    monkeypatch.setattr(pt2_archive, "reads_todays_layout", lambda: False)
    assert sorted(pt2_archive.load(Path(path)).state_dict) == sorted(Weighty(torch.float32).state_dict())
    refused(str(tmp_path / "new.pt2"), "the layout of PyTorch 2.8 and newer")


def test_weights_of_older_files(tmp_path):
    """Between the layouts, weights were a dict of torch.save in today's archive."""
    network = Weighty(torch.float32).eval()
    torch.export.save(torch.export.export(network, (torch.ones(6, 4),)), tmp_path / "new.pt2")
    exported = torch.export.load(tmp_path / "new.pt2")
    add = {
        "data/weights/model.pt": saved(dict(exported.state_dict)),
        "data/constants/model.pt": saved(dict(exported.constants)),
        WEIGHTS: None,
        CONSTANTS: None,
    }
    agrees(Path(altered(tmp_path / "new.pt2", tmp_path / "old.pt2", add=add)), network, (1,))


Pair = namedtuple("Pair", "left right")


class Named(nn.Module):
    def forward(self, pair, *more):
        return Pair(pair.left + more[0], pair.right)


def test_named_tuples_that_are_registered(tmp_path):
    torch.utils._pytree._register_namedtuple(Pair, serialized_type_name="test_hostile_networks.Pair")
    arguments = (Pair(torch.ones(3), torch.ones(2)), torch.ones(3))
    torch.export.save(torch.export.export(Named(), arguments), tmp_path / "n.pt2")
    program = import_model(str(tmp_path / "n.pt2"))
    assert [spec.name for spec in program.inputs] == ["pair.left", "pair.right", "more_0"]


# ---------------------------------------------------------------------------------------------------------- factories


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("builtins:exit", "is built into Python"),
        ("sys:exit", "sys:exit is built into Python"),
        ("os:abort", "os:abort is built into Python"),
        ("builtins:dict", "is built into Python"),
        ("networks:exits", "failed with EndedError: SystemExit"),
        ("networks:exits_later", "SystemExit of 0"),
        ("networks:recursive", "failed with RecursionError"),
        ("networks:half_made", "networks:half_made"),
    ],
)
def test_factories_that_end_python(model, words):
    refused(model, words, "1x3")


@pytest.mark.parametrize(("model", "code"), [("builtins:exit", 4), ("os:abort", 4), ("networks:interrupts", 130)])
def test_factories_that_end_the_command(model, code, tvmflow, tmp_path):
    options = ["--input-shape", "1x3", "-o", tmp_path / "out"]
    tvmflow("build", "--model", model, *options, cwd=Path(__file__).parent).failed_with(code)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------------- ONNX


def graph(
    *nodes: onnx.NodeProto, shape: tuple = (1, 4), dtype: int = TensorProto.FLOAT, **more: Any
) -> onnx.ModelProto:
    """A model with an input `x` and an output `y`, of Relu if no nodes are given."""
    made = helper.make_graph(
        nodes or [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        more.get("weights", []),
    )
    options = {"opset_imports": [helper.make_opsetid("", 17), *more.get("opsets", [])], "ir_version": 8}
    return helper.make_model(made, functions=more.get("functions", []), **options)


def onnx_file(model: onnx.ModelProto, tmp_path: Path) -> str:
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def outside(location: str, **more: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


ADD = helper.make_node("Add", ["x", "w"], ["y"])


@pytest.mark.parametrize("number", [0, 8, 14, 15, 17, 22, 99, 2_000_000_000])
def test_odd_element_types_of_inputs(number, tmp_path):
    model = graph()
    model.graph.input[0].type.tensor_type.elem_type = number
    refused(onnx_file(model, tmp_path), "of the element type|no valid ONNX model")


def test_inputs_that_are_no_tensors(tmp_path):
    model = graph(
        helper.make_node("SequenceAt", ["x", "i"], ["y"]), weights=[numpy_helper.from_array(np.array(0), "i")]
    )
    model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [4])))
    refused(onnx_file(model, tmp_path), "takes 'x', which is no tensor")


@pytest.mark.parametrize("number", [0, 8, 17, 99])
def test_odd_element_types_of_weights(number, tmp_path):
    weight = TensorProto(name="w", dims=[4], data_type=number, raw_data=bytes(16))
    refused(onnx_file(graph(ADD, weights=[weight]), tmp_path), r"net\.onnx|initializer")


@pytest.mark.parametrize("shape", [(3, 8, 10**7), (1 << 62, 4), (1 << 40,)])
def test_large_inputs_of_onnx(shape, tmp_path):
    refused(onnx_file(graph(shape=shape), tmp_path), "all inputs together have at most 33,554,432 elements")


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 33, 1 << 33], [-4], [1 << 20]])
def test_weights_that_say_to_be_large(dims, tmp_path):
    weight = TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, raw_data=bytes(16))
    refused(onnx_file(graph(ADD, weights=[weight]), tmp_path), r"net\.onnx")


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("ConstantOfShape", ["s"], ["w"]), ADD],
        [helper.make_node("Expand", ["x", "s"], ["w"]), helper.make_node("ReduceSum", ["w"], ["y"])],
        [helper.make_node("Tile", ["x", "t"], ["w"]), helper.make_node("ReduceSum", ["w"], ["y"])],
        [helper.make_node("Range", ["zero", "many", "one"], ["r"]), helper.make_node("ReduceSum", ["r"], ["w"]), ADD],
    ],
)
def test_results_of_onnx_that_are_large(nodes, tmp_path):
    numbers = {"s": [1 << 20, 1 << 10, 4], "t": [1 << 20, 1 << 10], "zero": 0.0, "many": 1e10, "one": 1.0}
    weights = [
        numpy_helper.from_array(np.array(value, "int64" if isinstance(value, list) else "float32"), name)
        for name, value in numbers.items()
    ]
    refused(onnx_file(graph(*nodes, weights=weights), tmp_path), "a tensor has at most 268,435,456")


def test_nodes_that_no_output_needs_are_not_run(tmp_path):
    """A reference would make their results all the same."""
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 10, 64]), "s")
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["unused"]), helper.make_node("Relu", ["x"], ["y"])]
    assert import_model(onnx_file(graph(*nodes, weights=[shape]), tmp_path)).outputs[0].shape == (1, 4)


def function(name: str, *calls: str) -> onnx.FunctionProto:
    steps = [f"v{number}" for number in range(len(calls))]
    nodes = [
        helper.make_node(call, [before], [after], domain="own" if call.startswith("f") else "")
        for call, before, after in zip(calls, ["a", *steps], [*steps[:-1], "b"], strict=False)
    ]
    return helper.make_function(
        "own", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    )


def test_functions_that_call_functions_many_times(tmp_path):
    """Thirty functions of ten calls each would be 10³⁰ nodes."""
    functions = [function("f0", "Relu")] + [function(f"f{n}", *[f"f{n - 1}"] * 10) for n in range(1, 31)]
    model = graph(
        helper.make_node("f30", ["x"], ["y"], domain="own"), functions=functions, opsets=[helper.make_opsetid("own", 1)]
    )
    refused(onnx_file(model, tmp_path), r"nodes, its functions put in; at most 1,000,000|no valid ONNX")


def test_functions_that_call_themselves(tmp_path):
    functions = [function("f0", "f1"), function("f1", "f0")]
    model = graph(
        helper.make_node("f0", ["x"], ["y"], domain="own"), functions=functions, opsets=[helper.make_opsetid("own", 1)]
    )
    refused(onnx_file(model, tmp_path), "no valid ONNX model")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../data.bin", "from the model's own folder only"),
        ("a/../../data.bin", "from the model's own folder only"),
        ("/dev/zero", "from the model's own folder only"),
        ("C:\\data.bin", "from the model's own folder only"),
        ("", "from the model's own folder only"),
        ("link.bin", "a symbolic link"),
        ("folder-link/data.bin", "a symbolic link"),
        ("pipe", "is no file"),
        ("folder", "is no file"),
        ("missing.bin", "can't be read: No such file"),
        ("data.bin/x", "can't be read: Not a directory"),
    ],
)
def test_external_data_from_elsewhere(location, words, tmp_path):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "folder"):
        (place / "data.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "data.bin")
    (folder / "folder-link").symlink_to(folder / "folder")
    os.mkfifo(folder / "pipe")
    refused(onnx_file(graph(ADD, weights=[outside(location)]), folder), words)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"offset": "8"}, r"net\.onnx"),
        ({"offset": "-4"}, "has its data in bytes"),
        ({"length": "1000"}, "has its data in bytes 0 to 1,000"),
        ({"offset": "1e9"}, "a place that is no number"),
    ],
)
def test_external_data_that_is_not_there(place, words, tmp_path):
    (tmp_path / "data.bin").write_bytes(bytes(16))
    refused(onnx_file(graph(ADD, weights=[outside("data.bin", **place)]), tmp_path), words)


def test_external_data_in_subgraphs_and_functions(tmp_path):
    """Whatever part of a file a tensor is in, its data comes from the file's folder."""
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.append(helper.make_attribute("value", outside("../data.bin")))
    refused(onnx_file(graph(constant, ADD), tmp_path), "from the model's own folder only")
    called = helper.make_function("own", "f0", ["x"], ["y"], [constant, ADD], [helper.make_opsetid("", 17)])
    model = graph(
        helper.make_node("f0", ["x"], ["y"], domain="own"), functions=[called], opsets=[helper.make_opsetid("own", 1)]
    )
    refused(onnx_file(model, tmp_path), "from the model's own folder only")


def test_external_data_beside_the_model(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "data.bin").write_bytes(bytes(8) + np.arange(4, dtype="float32").tobytes())
    path = onnx_file(graph(ADD, weights=[outside("inner/data.bin", offset="8", length="16")]), tmp_path)
    vector = import_model(path).vectors[0]
    np.testing.assert_array_equal(vector.outputs[0], vector.inputs[0] + np.arange(4, dtype="float32"))


def test_large_external_data(tmp_path, monkeypatch):
    (tmp_path / "data.bin").write_bytes(bytes(16))
    monkeypatch.setattr(limits.NETWORK, "bytes", 200)
    weights = [outside("data.bin") for _ in range(20)]
    for number, weight in enumerate(weights):
        weight.name = f"w{number}"
    model = graph(*(helper.make_node("Add", ["x", weight.name], ["y"]) for weight in weights[:1]))
    model.graph.initializer.extend(weights[:2])
    monkeypatch.setattr(limits.NETWORK, "bytes", len(model.SerializeToString()) + 20)
    refused(onnx_file(model, tmp_path), "a network's file and its data have at most")


def test_mutated_onnx_files(tmp_path):
    """Any bytes of a file may be others, and its end may be missing; what comes is a network or a sentence."""
    weight = numpy_helper.from_array(np.arange(4, dtype="float32"), "w")
    content = graph(
        helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "w"], ["y"]), weights=[weight]
    )
    whole, generator = content.SerializeToString(), np.random.default_rng(0)
    for _ in range(80):
        mutated = bytearray(whole)
        for place in generator.integers(0, len(whole), generator.integers(1, 4)):
            mutated[place] = generator.integers(0, 256)
        cut = len(whole) if generator.random() < 0.7 else generator.integers(0, len(whole))
        (tmp_path / "net.onnx").write_bytes(mutated[:cut])
        with contextlib.suppress(TvmflowError):
            import_model(str(tmp_path / "net.onnx"))
