"""Accuracy is counted right, and a compiled network that chooses other classes is found."""

from __future__ import annotations

import os
from pathlib import Path

import data_sets
import numpy as np
import pytest

from tvmflow.bundles.build import build
from tvmflow.bundles.evaluate import evaluate
from tvmflow.models import MODELS
from tvmflow.network.frontend import import_model
from tvmflow.spec import UserError, VerificationError
from tvmflow.targets import TARGETS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "net"
    build(import_model("dilated-net"), TARGETS["host"], out, verify=False)  # which the tests do
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
    """The committed weights on all 10,000 test images: what their model card says, compiled as in PyTorch."""
    import json

    path = os.environ.get("TVMFLOW_CIFAR10")
    if not path:
        pytest.skip("CIFAR-10 isn't part of this project: set TVMFLOW_CIFAR10 to an archive or folder of it")
    result = evaluate(Path(path), "dilated-net", bundle)
    card = json.loads((Path(__file__).parents[1] / "models" / "weights" / "dilated-net.json").read_text())
    assert result["images"] == 10_000
    assert result["compiled"]["agreement"] >= 0.999
    assert result["accuracy"] >= 0.75
    if result["data_sha256"] == card["data_sha256"]:
        assert result["accuracy"] == pytest.approx(card["accuracy"], abs=1e-3)
