"""The paper's network has the paper's numbers: parameters, layers, filter extents, cost equations."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT
from torch import nn

from tvmflow.models import CIFAR10_LABELS, MODELS, accuracy, baselines
from tvmflow.models.cost import cost_ratio, dilation_of, filter_extent, separable_cost, standard_cost
from tvmflow.models.dilated_net import DilatedNet, DilatedNetConfig, load_weights
from tvmflow.spec import UserError


@pytest.mark.parametrize(("joint", "parameters"), [("separate", 3_141_152), ("merged", 3_109_157)])
def test_parameters(joint, parameters):
    network = DilatedNet(DilatedNetConfig(joint=joint))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_papers_thirty_layers():
    """9 dilated + 9 depthwise separable (two convolutions each) + 9 BN + pooling + fully connected, and the softmax."""
    layers = list(DilatedNet().modules())
    depthwise = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert sum(layer.dilation == (5, 5) for layer in depthwise) == 9
    assert sum(layer.dilation == (1, 1) for layer in depthwise) == 9
    assert sum(isinstance(layer, nn.Conv2d) and layer.groups == 1 for layer in layers) == 9
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 9


@pytest.mark.parametrize(("delta", "extent"), [(0, 3), (1, 7), (2, 11), (3, 15)])
def test_filter_extent_is_what_the_network_sees(delta, extent):
    """Eq. (1) against the footprint of one output of the dilated layer."""
    assert filter_extent(3, delta) == extent
    assert dilation_of(delta) == 2 * delta + 1
    layer = DilatedNet(DilatedNetConfig(delta=delta)).joint[0].dilated
    image = torch.zeros(1, 3, 31, 31, requires_grad=True)
    layer(image)[0, 0, 15, 15].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == extent


def test_cost_equations():
    """Eq. (2) to (4) against counting the multiply-adds of real layers."""

    def counted(layer: nn.Conv2d) -> int:
        return layer.weight.numel() * 14 * 14

    standard = nn.Conv2d(32, 64, 3, padding=1)
    depthwise, pointwise = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1)
    assert standard_cost(3, 32, 64, 14) == counted(standard)
    assert separable_cost(3, 32, 64, 14) == counted(depthwise) + counted(pointwise)
    assert cost_ratio(3, 64) == pytest.approx(separable_cost(3, 32, 64, 14) / standard_cost(3, 32, 64, 14))


@pytest.mark.parametrize("name", MODELS)
def test_registry_gives_networks_in_eval_mode(name):
    network = MODELS[name]()
    assert not network.training
    assert network(torch.zeros(MODELS[name].input_shape)).shape == (1, len(CIFAR10_LABELS))
    torch.testing.assert_close(MODELS[name]()(torch.ones(1, 3, 32, 32)), network(torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("network", "parameters", "macs"),
    [
        (baselines.MobileNetV1, 4_231_976, 568_740_352),
        (baselines.SqueezeNet, 1_235_496, 349_151_936),
        (baselines.GoogLeNet, 6_998_552, 1_582_671_872),
        (baselines.VGG16, 138_357_544, 15_470_264_320),
    ],
)
def test_baselines_are_the_published_networks(network, parameters, macs):
    """Their parameters, and their multiply-adds on an image, of which nothing is computed.

    GoogLeNet was published with a bias in each place where there is batch normalisation, which has two parameters.
    """
    with torch.device("meta"):
        made, image = network(1000, small=False).eval(), torch.zeros(1, 3, 224, 224)
    done = []

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        done.append(layer.weight.numel() * output[0, 0].numel() if output.dim() == 4 else layer.weight.numel())

    for layer in made.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    assert made(image).shape == (1, 1000)
    assert sum(done) == macs
    counted = sum(parameter.numel() for parameter in made.parameters())
    if network is baselines.GoogLeNet:
        counted -= sum(layer.num_features for layer in made.modules() if isinstance(layer, nn.BatchNorm2d))
    assert counted == parameters


def test_answers_depend_on_the_image():
    """By far more than the tolerance of verification, also where training didn't see to it."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    for name in MODELS:
        with torch.inference_mode():
            first, second = MODELS[name]()(images)
        assert (first - second).abs().max() > 1e-2 * first.abs().max().clamp(min=1), name


def test_accuracy_is_the_cards():
    card = json.loads((ROOT / "models" / "weights" / "dilated-net.json").read_text())
    found = accuracy("dilated-net")
    assert (found["value"], found["images"], found["arithmetic"]) == (card["accuracy"], 10_000, "float32")
    assert accuracy("dilated-net", "power-of-two")["arithmetic"] == "int8"
    assert accuracy("vgg16") is None


def test_committed_weights_were_really_trained():
    """The record beside them: all test images, at the end of its own curve, at least 75 %."""
    card = json.loads((ROOT / "models" / "weights" / "dilated-net.json").read_text())
    assert card["images"] == 10_000
    assert card["accuracy"] >= 0.75
    assert card["accuracy"] == card["curve"][-1]["test_accuracy"]
    assert len(card["curve"]) == card["config"]["epochs"]
    network = MODELS["dilated-net"]()
    assert network.config == DilatedNetConfig(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in card["config"]["network"].items()}
    )


def test_weights_that_do_not_fit(tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(b"\x10" * 100)
    for name, words in {
        "missing.safetensors": "There is no file",
        "noise.safetensors": "no intact safetensors",
    }.items():
        with pytest.raises(UserError, match=words):
            load_weights(DilatedNet(), tmp_path / name)
    weights = ROOT / "models" / "weights" / "dilated-net.safetensors"
    with pytest.raises(UserError, match="another network"):
        load_weights(DilatedNet(DilatedNetConfig(joint="merged")), weights)


def test_widths_and_strides_have_to_match():
    with pytest.raises(UserError, match="joint modules"):
        DilatedNet(DilatedNetConfig(widths=(4, 8), strides=(1,)))


@pytest.mark.parametrize(
    ("stride", "dilation", "size"), [(1, 1, (9, 7)), (1, 5, (9, 7)), (2, 1, (9, 7)), (1, 5, (3, 4)), (2, 3, (8, 8))]
)
def test_fast_depthwise_is_the_same_function(stride, dilation, size, monkeypatch):
    """Training's own depthwise layer against PyTorch's, forwards and backwards, by two threads."""
    from tvmflow.models.depthwise import use_fast_depthwise

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    options = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": 6, "bias": False}
    slow = nn.Sequential(nn.Conv2d(6, 6, 3, **options))
    fast = nn.Sequential(nn.Conv2d(6, 6, 3, **options))
    fast.load_state_dict(slow.state_dict())
    use_fast_depthwise(fast)
    results = []
    for network in (slow, fast):
        x = torch.arange(2 * 6 * size[0] * size[1], dtype=torch.float32).sin().reshape(2, 6, *size).requires_grad_()
        network(x).cos().sum().backward()
        results.append((network(x), x.grad, network[0].weight.grad))
    for expected, given in zip(*results, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
