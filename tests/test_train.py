"""Training learns, can be killed at any time, and ends with the same weights as if it hadn't been."""

from __future__ import annotations

import json
from dataclasses import replace

import data_sets
import numpy as np
import pytest
import torch

from tvmflow.models import train
from tvmflow.models.data import load_cifar10
from tvmflow.models.dilated_net import DilatedNet, DilatedNetConfig, load_weights
from tvmflow.spec import UserError

NETWORK = DilatedNetConfig(widths=(16, 32), strides=(2, 2))
CONFIG = train.TrainConfig(network=NETWORK, epochs=3, batch=16, averaging=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = data_sets.write_folder(tmp_path_factory.mktemp("data") / "cifar")
        return load_cifar10(folder, counts=data_sets.COUNTS)


def weights(run) -> dict[str, torch.Tensor]:
    return run.network.state_dict()


def test_it_learns_what_can_be_learnt(data, tmp_path):
    run = train.train(replace(CONFIG, epochs=30, cutout=0), data, tmp_path, progress=False)
    assert run.curve[-1].loss < run.curve[0].loss
    assert run.curve[-1].test_accuracy > 0.5
    assert len(run.curve) == 30


def test_a_network_with_a_recipe_of_its_own_learns_by_it(data, tmp_path):
    config = train.TrainConfig(model="resnet-8", epochs=3, batch=16, averaging=0.5, **train.RECIPES["resnet-8"])
    run = train.train(config, data, tmp_path, progress=False)
    assert config.optimizer == "SGD"
    assert run.curve[-1].loss < run.curve[0].loss


def test_same_seed_same_weights_other_seed_others(data, tmp_path):
    first, second = (train.train(CONFIG, data, tmp_path / name, progress=False) for name in "ab")
    other = train.train(replace(CONFIG, seed=1), data, tmp_path / "c", progress=False)
    assert all(torch.equal(weights(first)[key], weights(second)[key]) for key in weights(first))
    assert not torch.equal(weights(first)["classifier.weight"], weights(other)["classifier.weight"])


@pytest.mark.parametrize("killed_after", [1, 3, 4, 8])
def test_killed_and_resumed_is_exactly_the_same(data, tmp_path, monkeypatch, killed_after):
    """Killed after that many steps of nine, with a checkpoint after each."""
    whole = train.train(CONFIG, data, tmp_path / "whole", progress=False)
    update, steps = train._State.update, 0

    def update_until_killed(state, images, labels):
        nonlocal steps
        if steps == killed_after:
            raise KeyboardInterrupt
        steps += 1
        update(state, images, labels)

    monkeypatch.setattr(train._State, "update", update_until_killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(CONFIG, data, tmp_path / "cut", progress=False, checkpoint_seconds=0)
    monkeypatch.setattr(train._State, "update", update)
    resumed = train.train(CONFIG, data, tmp_path / "cut", progress=False)
    assert all(torch.equal(weights(whole)[key], weights(resumed)[key]) for key in weights(whole))
    assert [(row.epoch, row.loss, row.test_accuracy) for row in whole.curve] == [
        (row.epoch, row.loss, row.test_accuracy) for row in resumed.curve
    ]


def test_checkpoints_of_other_recipes_and_damaged_ones(data, tmp_path):
    train.train(replace(CONFIG, epochs=1), data, tmp_path, progress=False)
    with pytest.raises(UserError, match="another recipe"):
        train.train(replace(CONFIG, epochs=1, seed=7), data, tmp_path, progress=False)
    (tmp_path / "state.pt").write_bytes(b"PK not really")
    with pytest.raises(UserError, match="no intact checkpoint"):
        train.train(CONFIG, data, tmp_path, progress=False)


def test_export(data, tmp_path):
    run = train.train(CONFIG, data, tmp_path, progress=False)
    train.export(run, data, tmp_path / "out", "net", "tvmflow train --data x")
    loaded = load_weights(DilatedNet(NETWORK), tmp_path / "out" / "net.safetensors")
    assert train.accuracy_of(loaded, data.test) == run.curve[-1].test_accuracy
    facts = json.loads((tmp_path / "out" / "net.json").read_text())
    assert facts["accuracy"] == run.curve[-1].test_accuracy
    assert facts["data_sha256"] == data.sha256
    card = (tmp_path / "out" / "net.md").read_text()
    assert "tvmflow train --data x" in card
    assert f"{facts['accuracy']:.2%}" in card


def test_one_cycle():
    rates = [train.one_cycle(done, 0.2) for done in np.linspace(0, 1, 101)]
    assert rates[0] == 0
    assert max(rates) == rates[20] == 1
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_augmentation_keeps_pixels_and_blanks_a_square():
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32) + 10
    out = train.augment(images, CONFIG, np.random.default_rng(1))
    assert out.shape == images.shape
    assert all(np.isin(out[index], [*images[index].ravel(), 0]).all() for index in range(8))
    assert ((out == 0).reshape(8, -1).sum(1) >= 3 * 8 * 8).all()
