"""A float chain becomes integer layers that stay near it; what can't be quantised is refused; fine-tuning is exact."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import data_sets
import networks
import numpy as np
import onnx
import pytest
import torch
from imported import registered
from PIL import Image
from torch import nn

from tvmflow import models
from tvmflow.bundles.evaluate import evaluate, evaluate_quantised
from tvmflow.cli.quantizing import quantize as quantize_command
from tvmflow.integer import file
from tvmflow.integer import network as integer
from tvmflow.integer.fine_tune import FakeQuantised, TuneConfig, _Run, tune
from tvmflow.integer.graph import FloatGraph
from tvmflow.integer.network import SCHEMES, IntegerNetwork
from tvmflow.integer.post_training import Method, equalise, observe, quantize
from tvmflow.integer.reader import float_graph
from tvmflow.models import int8
from tvmflow.models.data import load_cifar10
from tvmflow.network.frontend import from_module
from tvmflow.spec import UnsupportedOperatorError, UserError, VerificationError

METHOD = Method(count=30)


class _Mixed(nn.Module):
    """What a chain may have: biases, groups, functions, a linear layer on whole maps and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.drop = nn.Dropout2d(0.5)
        self.depthwise = nn.Conv2d(12, 12, (3, 1), padding=(2, 0), dilation=(2, 1), groups=12, bias=False)
        self.grouped = nn.Conv2d(12, 20, 3, stride=3, groups=4)
        self.hidden = nn.Linear(20 * 4, 17)
        self.out = nn.Linear(17, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.bn(self.stem(x))))
        x = self.grouped(self.depthwise(x)).relu()
        return self.out(torch.relu(self.hidden(torch.flatten(x, 1))))


def mixed() -> nn.Module:
    torch.manual_seed(5)
    network = _Mixed().eval()
    nn.init.normal_(network.bn.running_mean)
    nn.init.uniform_(network.bn.running_var, 0.5, 2)
    return network


def uneven() -> nn.Module:
    """Depthwise channels with weights up to 30,000 times those of others, which the next layer evens out."""
    network = networks.tiny()
    with torch.no_grad():
        for layer, factors in (
            (network.joint[0].dilated, [1000, 1, 0.03]),
            (network.joint[0].depthwise, [0.001, 1, 30]),
        ):
            layer.weight *= torch.tensor(factors)[:, None, None, None]
    return network


SHAPE = (1, 3, 13, 13)


def graph_of(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> FloatGraph:
    return float_graph(from_module(network, "net", "net", [shape]))


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, *SHAPE[1:]), np.float32)


def float_logits(graph: FloatGraph, x: np.ndarray) -> np.ndarray:
    return graph.outputs_of((x,))[0].reshape(len(x), -1)


def quantised_sqnr(network: nn.Module, scheme: integer.Scheme, method: Method = METHOD) -> float:
    """Of the logits, in dB."""
    graph = graph_of(network)
    made = network_of(quantize(graph, (images(),), scheme, method), scheme)
    wanted = float_logits(graph, images())
    given = made.run(made.quantize_input(images())).reshape(wanted.shape)
    noise = given * made.output_scale - wanted
    return float(10 * np.log10(np.square(wanted).sum() / np.square(noise).sum()))


def network_of(quantised, scheme: integer.Scheme) -> IntegerNetwork:
    return IntegerNetwork(
        name="net", scheme=scheme, inputs=quantised.inputs, outputs=quantised.outputs, layers=quantised.layers
    )


@pytest.mark.parametrize("factory", [mixed, networks.tiny])
def test_a_chain_is_the_network(factory):
    network = factory()
    graph = graph_of(network)
    with torch.no_grad():
        wanted = network(torch.from_numpy(images())).numpy()
    np.testing.assert_allclose(float_logits(graph, images()), wanted, rtol=1e-4, atol=1e-5)
    named = {path for layer in graph.layers for path in layer.modules}
    assert {path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)} <= named
    equalised, *_ = equalise(graph, observe(graph, (images(),), 0), METHOD)
    np.testing.assert_allclose(float_logits(equalised, images()), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("factory", [mixed, networks.tiny, uneven])
def test_quantised_stays_near(factory, scheme):
    assert quantised_sqnr(factory(), scheme) > 25


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equalising_is_what_saves_uneven_channels(scheme):
    alone = quantised_sqnr(uneven(), scheme, replace(METHOD, equalise=False))
    assert quantised_sqnr(uneven(), scheme) > alone + 6


def test_shifts_are_per_block_and_channels_of_zeros_do_no_harm():
    network = nn.Sequential(nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 3, 1)).eval()
    with torch.no_grad():
        network[0].weight[7] = 0
        network[0].weight[16:32] *= 8
    for scheme in SCHEMES:
        assert quantised_sqnr(network, scheme) > 25
    made = quantize(graph_of(network), (images(),), "power-of-two", METHOD)
    for start in range(0, 40, METHOD.block):
        assert len(set(made.layers[0].shift[start : start + METHOD.block])) == 1


def test_a_relu_and_a_normalisation_may_come_first():
    for first in (nn.ReLU(), nn.BatchNorm2d(3)):
        network = nn.Sequential(first, nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
        for scheme in SCHEMES:
            assert quantised_sqnr(network, scheme) > 25


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.LocalResponseNorm(3)), (1, 3, 8, 8), "nn.avg_pool3d (1)"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveMaxPool3d(2)), (1, 3, 8, 8), "max_pool (2)"),
    ],
)
def test_what_has_no_integer_form_is_refused(network, shape, words):
    with pytest.raises(UnsupportedOperatorError, match="can't be quantised") as caught:
        graph_of(network.eval(), shape)
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------ fine-tuning


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = data_sets.write_folder(tmp_path_factory.mktemp("data") / "cifar")
        return load_cifar10(folder, counts=data_sets.COUNTS)


@pytest.fixture(scope="module")
def start(cifar):
    """A graph for 32×32 images and its quantised form."""
    graph = graph_of(networks.tiny(), (1, 3, 32, 32))
    pixels = models.CIFAR10_PREPROCESSING.apply(cifar.train.images)
    return graph, quantize(graph, (pixels,), "power-of-two", METHOD)


@pytest.mark.parametrize("factory", [mixed, networks.tiny])
def test_what_is_trained_is_the_reference(factory):
    quantised = quantize(graph_of(factory()), (images(),), "power-of-two", METHOD)
    trained = FakeQuantised(quantised)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += torch.randn_like(parameter)
    reference = replace(network_of(quantised, "power-of-two"), layers=trained.integer())
    q = reference.quantize_input(images())
    with torch.no_grad():
        assert np.array_equal(trained(torch.from_numpy(q).float()).numpy(), reference.run(q))


def test_fine_tuning_repairs_what_was_spoilt(cifar, start, tmp_path):
    graph, quantised = start
    rng = np.random.default_rng(0)
    spoilt = replace(quantised, weights={name: w + rng.normal(0, 8, w.shape) for name, w in quantised.weights.items()})
    tuned = tune(graph, spoilt, cifar.train, TuneConfig(epochs=8, batch=20, peak_rate=1.0), tmp_path, progress=False)
    assert tuned.steps == 16
    assert tuned.losses[-1] < tuned.losses[0] / 2


@pytest.mark.parametrize("killed_after", [1, 3])
def test_killed_and_resumed_is_exactly_the_same(cifar, start, tmp_path, monkeypatch, killed_after):
    """Of four steps in two epochs, with a checkpoint after each."""
    config = TuneConfig(epochs=2, batch=20)

    def run(folder: str):
        return tune(*start, cifar.train, config, tmp_path / folder, progress=False, checkpoint_seconds=0)

    whole, update, steps = run("whole"), _Run.update, 0

    def update_until_killed(state, batch):
        nonlocal steps
        if steps == killed_after:
            raise KeyboardInterrupt
        steps += 1
        update(state, batch)

    monkeypatch.setattr(_Run, "update", update_until_killed)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.setattr(_Run, "update", update)
    resumed = run("cut")
    assert resumed.losses == whole.losses
    for one, other in zip(whole.layers, resumed.layers, strict=True):
        assert np.array_equal(one.weight, other.weight)
        assert np.array_equal(one.bias, other.bias)
    config = replace(config, seed=1)
    with pytest.raises(UserError, match="another recipe"):
        run("cut")


# ------------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_command_writes_weights_facts_and_card(tmp_path, monkeypatch, capsys, scheme):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tvmflow.models.data.COUNTS", data_sets.COUNTS)
    data = data_sets.write_folder(tmp_path / "data")
    options = {"scheme": scheme, "out": tmp_path, "count": 24, "qat": scheme == "power-of-two", "epochs": 1.0}
    options["onnx"] = tmp_path / "tiny.onnx"
    quantize_command(data, "networks:tiny", **options)
    printed = capsys.readouterr().out
    name = models.quantized_name("tiny", scheme)
    network = models.quantized(str(tmp_path / f"{name}.safetensors"), scheme)
    facts = network.facts
    assert set(facts["sqnr_db"]) == {layer.name for layer in network.layers}
    assert min(facts["sqnr_db"].values()) > 20
    assert facts["images"] == 16
    assert facts["test_images"] == 20
    assert facts["method"]["count"] == 24
    assert ("fine_tuning" in facts) == (scheme == "power-of-two")
    assert "joint.0.dilated" in printed
    card = (tmp_path / f"{name}.md").read_text()
    assert f"**{facts['accuracy']:.2%}**" in card
    assert f"{facts['accuracy']:.2%}" in printed
    assert {layer.name for layer in network.layers} <= {node.name for node in onnx.load(options["onnx"]).graph.node}
    result = evaluate_quantised(data, str(tmp_path / f"{name}.safetensors"), scheme)
    assert result["accuracy"] == facts["accuracy"]
    other = next(other for other in SCHEMES if other != scheme)
    with pytest.raises(UserError, match=f"say --scheme {scheme}"):
        models.quantized(str(tmp_path / f"{name}.safetensors"), other)


def test_compiled_is_held_to_the_reference(start, tmp_path, monkeypatch):
    """Accuracy of a bundle, which has to give every bit of the weights' logits; its layers say what quantising cost."""
    from tvmflow import targets
    from tvmflow.bundles import bundle as bundles
    from tvmflow.bundles.build import build
    from tvmflow.integer.frontend import integer_program

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tvmflow.models.data.COUNTS", data_sets.COUNTS)
    data = data_sets.write_folder(tmp_path / "data")
    _, quantised = start
    network = IntegerNetwork(
        name="tiny",
        scheme="power-of-two",
        inputs=quantised.inputs,
        outputs=quantised.outputs,
        layers=quantised.layers,
        preprocessing=models.CIFAR10_PREPROCESSING,
        facts={"sqnr_db": {layer.name: 30.0 + index for index, layer in enumerate(quantised.layers)}},
    )
    weights, out = tmp_path / "tiny.safetensors", tmp_path / "bundle"
    file.save(network, weights)
    build(integer_program(network), targets.compute_in(targets.TARGETS["host"], "int8"), out)
    result = evaluate_quantised(data, str(weights), "power-of-two", out)
    assert result["compiled"]["identical"] == 20
    assert result["compiled"]["accuracy"] == result["accuracy"]
    with bundles.open_bundle(out) as bundle:
        assert bundle.layers[-1].details["sqnr_db"] == 30.0 + len(network.layers) - 1
    last = network.layers[-1]
    other = replace(last, bias=last.bias + (1 << last.shift))  # every logit one step up
    file.save(replace(network, layers=(*network.layers[:-1], other)), weights)
    with pytest.raises(VerificationError, match="differs from the exact arithmetic"):
        evaluate_quantised(data, str(weights), "power-of-two", out)
    monkeypatch.setitem(models.MODELS, "tiny", models.MODELS["dilated-net"])
    with pytest.raises(UserError, match="say --dtype int8"):
        evaluate(data, "tiny", out)


class _Grey(nn.Module):
    """One channel, no square, average pooling over windows, and seven classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Conv2d(12, 9, 3, bias=False)
        self.out = nn.Linear(9, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.last(self.pool(torch.relu(self.bn(self.stem(x))))))
        return self.out(x.mean((2, 3)))


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Path:
    """A folder with a network as .pt2 and as .onnx, and inputs of its own as images and as arrays."""
    root = tmp_path_factory.mktemp("grey")
    torch.manual_seed(6)
    network, example = _Grey().eval(), torch.zeros(1, 1, 17, 20)
    nn.init.uniform_(network.bn.running_var, 0.5, 2)
    torch.export.save(torch.export.export(network, (example,)), root / "grey.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (example,), root / "grey.onnx", dynamo=False)
    pixels = np.random.default_rng(4).integers(0, 256, (30, 25, 31), np.uint8)
    (root / "images" / "some").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(root / "images" / "some" / f"{number}.png")
    np.savez(root / "arrays.npz", np.random.default_rng(5).standard_normal((30, *example.shape[1:]), np.float32))
    return root


@pytest.mark.parametrize(("model", "data"), [("grey.pt2", "images"), ("grey.onnx", "arrays.npz")])
def test_networks_and_inputs_of_ones_own(grey, tmp_path, capsys, model, data):
    seen = {"mean": "0.5", "std": "0.25"} if data == "images" else {}
    quantize_command(grey / data, str(grey / model), out=tmp_path, count=20, **seen)
    network = models.quantized(str(tmp_path / "grey-int8.safetensors"))
    assert (network.input_shape, network.output_shape) == ((1, 1, 17, 20), (1, 7))
    assert [layer.kind for layer in network.layers] == ["conv2d", "conv2d", "conv2d", "pool", "dense"]
    assert network.facts["images"] == 10
    assert min(network.facts["sqnr_db"].values()) > 20
    assert f"of 10 {network.facts['inputs']} that calibrated nothing" in capsys.readouterr().out
    card = (tmp_path / "grey-int8.md").read_text()
    assert "Its accuracy wasn't measured" in card
    assert "CIFAR" not in card
    assert (network.preprocessing is not None) == (data == "images")


def test_what_does_not_fit_a_network(grey, tmp_path):
    def refused(words: str, data: str, **options) -> None:
        with pytest.raises(UserError, match=words):
            quantize_command(grey / data, str(grey / "grey.pt2"), out=tmp_path, **options)

    refused("give --mean and --std", "images")
    refused("go together", "images", mean="0.5")
    refused("give 3 channels of an image", "images", mean="0.5,0.5,0.5", std="1,1,1")
    refused("leave none to check on", "arrays.npz", count=30)
    refused("fine-tunes on CIFAR-10", "arrays.npz", count=20, qat=True)
    refused("takes 1×17×20, no image of CIFAR-10", "grey.onnx")
    np.save(tmp_path / "other.npy", np.zeros((4, 1, 17, 21), np.float32))
    with pytest.raises(UserError, match="holds float32 4×1×17×21; the network takes finite float32 N×1×17×20"):
        quantize_command(tmp_path / "other.npy", str(grey / "grey.pt2"), out=tmp_path, count=2)


def test_names_that_cannot_be_quantised(tvmflow, tmp_path):
    done = tvmflow("quantize", "--data", tmp_path, "--model", "net.h5")
    done.failed_with(4, "net.h5", "dilated-net", "package.module:factory")
    with pytest.raises(UserError, match="tvmflow quantize --model squeezenet"):
        models.quantized("squeezenet", "power-of-two")


def test_mobilenet_is_a_chain():
    """Its 27 convolutions, pool and classifier; nothing else is left of it."""
    layers = float_graph(registered("mobilenet-v1")).layers
    assert [layer.kind for layer in layers] == ["conv2d"] * 27 + ["pool", "dense"]
    assert sum(layer.relu for layer in layers if layer.kind == "conv2d") == 27


@pytest.mark.parametrize("scheme", SCHEMES)
def test_committed_weights(scheme):
    """They fit the bars and the registry's network, and are what their card speaks of."""
    import json

    name = models.quantized_name("dilated-net", scheme)
    network = models.quantized("dilated-net", scheme)
    folder = Path(models.__file__).parent / "weights"
    facts = json.loads((folder / f"{name}.json").read_text())
    assert (folder / f"{name}.safetensors").stat().st_size <= 3_300_000
    assert facts["float_accuracy"] - facts["accuracy"] <= 0.005
    assert facts["test_images"] == 10_000
    assert {key: facts[key] for key in network.facts} == network.facts
    assert sum(layer.macs for layer in network.layers if layer.kind != "pool") == 84_058_112
    assert (folder / f"{name}.md").read_text() == int8.model_card(name, network, facts)
