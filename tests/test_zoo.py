"""The networks that `benchmarks.peers --models all` takes are there by the names that commands take, and run."""

from __future__ import annotations

import warnings

import pytest
import torch

from benchmarks import zoo
from benchmarks.networks import NETWORKS
from benchmarks.zoo import ZOO
from tvmflow.models import MODELS


def test_all_are_among_the_networks_under_their_names():
    assert list(NETWORKS) == [*MODELS, "mobilenet-v2-224", *ZOO]
    for name, entry in ZOO.items():
        module, _, function = entry.factory.partition(":")
        assert (module, function) == ("benchmarks.zoo", name.replace("-", "_"))
        assert getattr(zoo, function) is entry.make
        assert NETWORKS[name] is entry
        assert entry.name == name
        assert entry.description


@pytest.mark.parametrize("name", ZOO)
def test_a_factory_gives_a_network_of_its_input_shape(name):
    """Without numbers: on PyTorch's device that has shapes alone."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")  # costs PyTorch a copy
        network = ZOO[name]()
        outputs = network(torch.empty(ZOO[name].input_shape))
    assert not network.training
    for output in [outputs] if isinstance(outputs, torch.Tensor) else outputs:
        assert output.shape[0] == ZOO[name].input_shape[0]
        assert output.numel() > 1


def test_weights_are_the_same_each_time_and_answers_depend_on_the_input():
    entry = ZOO["mobilenet-v1-025-96"]
    first, second = entry(), entry()
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    images = torch.randn((4, *entry.input_shape[1:]), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = first(images)
    assert answers.isfinite().all()
    assert (answers.std(0) > 1e-3).all()
    norm = next(layer for layer in first.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    assert (norm.running_mean != 0).all()
