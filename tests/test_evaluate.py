"""Accuracy is counted right, and a compiled network that chooses other classes is found."""

from __future__ import annotations

import os
from pathlib import Path

import data_sets
import numpy as np
import pytest
from imported import registered

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.bundles.evaluate import evaluate
from tvmflow.models import MODELS
from tvmflow.models.data import load_cifar10
from tvmflow.models.train import predict
from tvmflow.spec import UserError, VerificationError
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import find_runner


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "net"
    build(registered("dilated-net"), TARGETS["host"], out, verify=False)  # which the tests do
    return out


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Twenty test images of one colour each, in place of CIFAR-10's ten thousand."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tvmflow.models.data.COUNTS", data_sets.COUNTS)
    return data_sets.write_folder(tmp_path / "data")


def test_compiled_agrees_with_pytorch(data, bundle):
    import torch

    result = evaluate(data, "dilated-net", bundle)
    pixels = torch.from_numpy(MODELS["dilated-net"].preprocessing.apply(data_sets.images("test")))
    with torch.no_grad():
        expected = MODELS["dilated-net"]()(pixels).argmax(1).numpy()
    assert result["accuracy"] == np.mean(expected == data_sets.labels("test"))
    assert result["images"] == 20
    assert result["compiled"]["agreement"] == 1
    assert result["compiled"]["accuracy"] == result["accuracy"]


def test_another_networks_answers_are_found(data, bundle, tmp_path, monkeypatch):
    """The registry's network with other weights than the bundle was built from."""
    from tvmflow.models import dilated_net

    monkeypatch.setattr(dilated_net, "dilated_net", dilated_net.dilated_net_merged)
    with pytest.raises(VerificationError, match="agrees with PyTorch on"):
        evaluate(data, "dilated-net", bundle)


def test_like_is_compared_with_like(data, bundle, host_bundle):
    with pytest.raises(UserError, match="compare like with like"):
        evaluate(data, "dilated-net-merged", bundle)
    with pytest.raises(UserError, match="nor one of"):
        evaluate(data, "resnet", bundle)


@pytest.mark.slow
def test_accuracy_on_cifar10(bundle):
    """The compiled network on all 10,000 test images: what its model card says, and on 2,000 the classes of PyTorch."""
    import json

    path = os.environ.get("TVMFLOW_CIFAR10")
    if not path:
        pytest.skip("CIFAR-10 isn't part of this project: set TVMFLOW_CIFAR10 to an archive or folder of it")
    data = load_cifar10(Path(path))
    with open_bundle(bundle) as opened:
        _, run = find_runner(opened.library, opened.target, opened.outputs)
        found = run([(image[None],) for image in opened.preprocessing.apply(data.test.images)])
    classes = np.concatenate([outputs[0] for outputs in found]).argmax(1)
    assert len(classes) == 10_000
    some = slice(None, None, 5)  # of each class as many
    expected = predict(MODELS["dilated-net"](), data.test.images[some]).argmax(1)
    assert np.mean(classes[some] == expected) >= 0.999
    accuracy = np.mean(classes == data.test.labels)
    assert accuracy >= 0.75
    card = json.loads((Path(__file__).parents[1] / "models" / "weights" / "dilated-net.json").read_text())
    if data.sha256 == card["data_sha256"]:
        assert accuracy == pytest.approx(card["accuracy"], abs=1e-3)
