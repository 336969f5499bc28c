"""What stays in float32 of a quantised network: where it is cut, its file, and its library behind integer kernels."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from tvmflow.bundles import compare
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.bundles.evaluate import evaluate_on
from tvmflow.integer import file, qdq
from tvmflow.integer.frontend import integer_program
from tvmflow.integer.functions import FUNCTIONS
from tvmflow.integer.keep_float import cut
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.post_training import Method
from tvmflow.integer.reader import float_graph
from tvmflow.integer.reference import quantize
from tvmflow.integer.tail import OPERATORS, Tail
from tvmflow.models import int8
from tvmflow.network.frontend import from_module
from tvmflow.spec import Program, UserError
from tvmflow.system.untrusted import MalformedError, read_tensors
from tvmflow.targets import TARGETS, compute_in

SIZE = 16


class Detector(nn.Module):
    """As SSDs are: heads on two maps, whose boxes are decoded by prior ones, and a softmax over the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.extra = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.boxes = nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(12, 8, 3, 1, 1)])
        self.classes = nn.ModuleList([nn.Conv2d(8, 6, 3, 1, 1), nn.Conv2d(12, 6, 3, 1, 1)])
        self.decode = Decode(2 * (64 + 16))
        self.softmax = nn.Softmax(-1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first = self.stem(x)
        maps = first, self.extra(first)
        boxes, classes = (
            torch.cat(
                [head(x).permute(0, 2, 3, 1).reshape(1, -1, count) for head, x in zip(heads, maps, strict=True)], 1
            )
            for heads, count in ((self.boxes, 4), (self.classes, 3))
        )
        return self.decode(boxes), self.softmax(classes), maps[1].mean((2, 3))


class Decode(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("priors", torch.rand(1, count, 4) + 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centre = self.priors[..., :2] + x[..., :2] * 0.1 * self.priors[..., 2:]
        size = self.priors[..., 2:] * torch.exp(x[..., 2:] * 0.2)
        return torch.cat([centre - size / 2, centre + size / 2], -1)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 20, 3, 2, 1), nn.ReLU())
        self.last = nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(x).mean((2, 3)))


class Functions(nn.Module):
    """All functions that a kept layer may have, each of its own channels, and operators of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, 1, 1)
        self.tail = Rest()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.conv(x))


class Rest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(12, 1, 1) + 0.5)
        self.norm, self.conv = nn.GroupNorm(3, 12), nn.Conv2d(12, 12, 3, 1, 2, dilation=2, groups=4)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = nn.functional
        first = torch.sigmoid(x) + f.silu(x) * f.gelu(x) - f.gelu(x, approximate="tanh") + f.leaky_relu(x, 0.2)
        second = torch.where(x > 0.1, torch.exp(x * self.scale), torch.tanh(x)) + f.hardswish(x) + f.mish(x)
        third = torch.rsqrt(x.square() + 1) + torch.floor(x) + torch.log1p(x.abs()) + torch.expm1(x) + torch.sin(x)
        x = self.conv(self.norm(first * second + third / (1 + x.abs()))).clamp(-2, 3)
        x = f.max_pool2d(self.up(x), 5, 3, 2) - f.avg_pool2d(f.pad(x, (1, 2, 0, 1)), 2).mean((2, 3), keepdim=True)
        rows = x.flatten(2)
        return torch.log_softmax(rows.transpose(1, 2) @ rows[:, :, :20] / 11, -1)


@functools.cache
def imported(make: type[nn.Module]) -> Program:
    torch.manual_seed(7)
    return from_module(make().eval(), make.__name__.lower(), "tests", [(1, 3, SIZE, SIZE)])


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, SIZE, SIZE), np.float32)


@functools.cache
def quantised(make: type[nn.Module], *names: str, scheme: str = "per-channel") -> IntegerNetwork:
    examples = int8.Examples(calibration=(images(16),), others=(images(24)[16:],), facts={"inputs": "noise"})
    return int8.make(imported(make), examples, scheme, Method(count=16), keep_float=names)


DETECTOR = functools.partial(quantised, Detector, "decode", "softmax")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    file.save(DETECTOR(), root / "detector.safetensors")
    program = integer_program(DETECTOR(), str(root / "detector.safetensors"))
    build(program, compute_in(TARGETS["host"], "int8"), root / "bundle")
    np.save(root / "images.npy", images(24))
    return root / "bundle"


# --------------------------------------------------------------------------------------------------------------- where


def test_what_is_named_stays_with_all_that_comes_after_it():
    graph = float_graph(imported(Detector))
    found = cut(graph, ["boxes.1"])
    kept = {layer.name for layer in found.end.layers}
    assert {"boxes.1", "decode"} <= kept
    assert kept.isdisjoint({"stem.0", "boxes.0", "classes.0", "softmax"})
    assert all(kept.isdisjoint(layer.inputs) for layer in found.head.layers)


def test_a_module_is_all_that_is_in_it():
    kept = {layer.name for layer in cut(float_graph(imported(Detector)), ["classes"]).end.layers}
    assert {"classes.0", "classes.1", "softmax"} <= kept


def test_a_name_that_nothing_has_is_refused_with_those_near_it():
    with pytest.raises(UserError, match=r"no layer or module 'box.0' .* are .*boxes\.0"):
        cut(float_graph(imported(Detector)), ["box.0"])


def test_what_reads_the_input_cant_stay():
    with pytest.raises(UserError, match=r"stem can't stay in float32: stem\.0 reads the network's input x"):
        cut(float_graph(imported(Detector)), ["stem"])


def test_a_function_that_has_no_float_form_is_named():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ELU(0.7), nn.Conv2d(4, 4, 1))
    graph = float_graph(from_module(network.eval(), "net", "tests", [(1, 3, 4, 4)]))
    with pytest.raises(UserError, match=r"has no form there: 1; name layers behind them"):
        cut(graph, ["1"])


def test_options_that_exclude_each_other(tvmflow):
    done = tvmflow("quantize", "--data", "nowhere", "--qat", "--keep-float", "last", warm=False)
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert "--keep-float" in done.err


# --------------------------------------------------------------------------------------------------------- the network


def test_a_kept_tail_adds_no_noise_of_its_own():
    """Boxes lose in int8 what steps of theirs are too wide for, and not in float32."""
    whole, kept = quantised(Detector), DETECTOR()
    assert kept.facts["output_sqnr_db"] > whole.facts["output_sqnr_db"] + 10
    assert set(kept.facts["keep_float"]) == set(kept.tail.layers)
    assert set(kept.facts["sqnr_db"]) >= {"decode", "softmax", "stem.0"}


def test_outputs_are_float32_also_those_of_integer_layers():
    network = DETECTOR()
    assert [spec.dtype for spec in network.answers] == ["float32"] * 3
    assert [spec.shape for spec in network.answers] == [spec.shape for spec in imported(Detector).outputs]
    found = network.answer((quantize(images(2), network.input_scale),))
    real = imported(Detector).original(images(2)[1:])
    for given, wanted in zip(found, real, strict=True):
        assert np.abs(given[1:] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_what_is_kept_reads_all_steps_of_what_is_never_negative():
    (port,) = quantised(Classifier, "last").outputs
    assert quantised(Classifier, "last").dtypes[port.source] == "uint8"


def test_powers_of_two_and_every_function_have_a_float_form():
    """The float part is held to what PyTorch makes of the same integers when the network is made."""
    network = quantised(Functions, "tail", scheme="power-of-two")
    assert network.layers[-1].name == "conv"
    assert len(network.layers) == 1


def test_steps_are_of_operators_that_a_file_may_have():
    written = {node.op_type for node in quantised(Functions, "tail").tail.model.graph.node}
    assert written <= OPERATORS
    plain = {name.capitalize() for name in FUNCTIONS if name.isalpha()}
    assert plain & {operator.capitalize() for operator in ("Exp", "Tanh", "Sigmoid")} <= OPERATORS


# ------------------------------------------------------------------------------------------------------------ its file


def test_a_file_keeps_it(tmp_path):
    network = DETECTOR()
    file.save(network, tmp_path / "net.safetensors")
    loaded = file.load(tmp_path / "net.safetensors")
    given = (quantize(images(2), network.input_scale),)
    assert loaded.tail.content == network.tail.content
    for first, second in zip(loaded.answer(given), network.answer(given), strict=True):
        np.testing.assert_array_equal(first, second)


def changed(change) -> Tail:
    model = onnx.ModelProto.FromString(DETECTOR().tail.content)
    change(model)
    return Tail(content=model.SerializeToString())


SPOILT = {
    "no outputs": lambda model: model.graph.ClearField("output"),
    "an operator": lambda model: setattr(model.graph.node[3], "op_type", "Loop"),
    "another domain": lambda model: setattr(model.graph.node[3], "domain", "com.example"),
    "a graph": lambda model: model.graph.node[3].attribute.append(onnx.helper.make_attribute("body", model.graph)),
    "a function": lambda model: model.functions.add(name="f"),
    "data elsewhere": lambda model: model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd"),
    "a size": lambda model: model.graph.initializer[0].dims.append(1 << 40),
    "another opset": lambda model: setattr(model.opset_import[0], "version", 9),
    "a float input": lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 1),
    "integers behind": lambda model: model.graph.output.append(
        onnx.helper.make_tensor_value_info(model.graph.node[0].output[0], 1, [1, 4])
    ),
    "an open shape": lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[1], "dim_param", "n"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_tail_that_wasnt_written_here_is_refused(name):
    with pytest.raises(MalformedError, match="its float part"):
        changed(SPOILT[name]).model  # noqa: B018


def test_a_spoilt_file_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "net.safetensors"
    file.save(DETECTOR(), path)
    metadata, arrays = read_tensors(path)
    save_file({**arrays, "tail": arrays["tail"][:-9]}, path, metadata)
    with pytest.raises(UserError, match=r"net\.safetensors is damaged: its float part .*; quantise the network again"):
        file.load(path)


def test_a_tail_of_another_network_is_refused():
    with pytest.raises(UserError, match="doesn't read what its integer layers give"):
        replace(DETECTOR(), tail=quantised(Classifier, "last").tail)


# -------------------------------------------------------------------------------------------------------------- boards


def test_its_library_is_right_and_its_integers_exact(bundle):
    with open_bundle(bundle) as opened:
        assert opened.manifest["verify"]["passed"]
        assert [spec.dtype for spec in opened.outputs] == ["float32"] * 3
        modules = {module: layer for layer in opened.layers for module in layer.modules}
        assert not modules["decode"].schedule.startswith("integer")
        assert modules["boxes.0"].schedule.startswith("integer")
        found = compare.compare_tensors(opened, compare.find_sources(opened, None, None))
    assert found["identical"]
    assert found["tail"]["passed"]
    assert "right but for rounding" in compare.text(found)


def test_evaluating_holds_it_to_its_reference(bundle):
    found = evaluate_on(
        str(bundle.parent / "images.npy"), str(bundle.parent / "detector.safetensors"), dtype="int8", bundle_path=bundle
    )
    assert found["compiled"]["snr_db"] > 100


@pytest.mark.parametrize("board", ["raspberry-pi-4b", "jetson-orin-nano"])
def test_other_boards_that_compute_in_float32(board, tmp_path):
    program = integer_program(quantised(Classifier, "last"))
    made = build(program, compute_in(TARGETS[board], "int8"), tmp_path / "bundle", verify=False)
    assert [spec.dtype for spec in made.outputs] == ["float32"]


@pytest.mark.parametrize("board", ["pynq-z1", "mps3-an547"])
def test_boards_without_a_place_for_it_refuse_it_at_once(board, tmp_path):
    program = integer_program(quantised(Classifier, "last", scheme="power-of-two"))
    with pytest.raises(UserError, match=r"these of its layers stay in float32: last; quantise it without --keep-float"):
        build(program, compute_in(TARGETS[board], "int8"), tmp_path / "bundle")


def test_onnx_has_it_behind_the_integers(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    network = DETECTOR()
    qdq.write(network, tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images(1)})
    for given, wanted in zip(found, network.answer((quantize(images(1), network.input_scale),)), strict=True):
        assert np.abs(given - wanted).max() < 0.02 * np.abs(wanted).max()
