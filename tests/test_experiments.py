"""The page of experiments is what its command makes of the committed results, and the runs are what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import data_sets
import pytest
import torch

from benchmarks import experiment_page, experiments
from tvmflow.models import train
from tvmflow.models.data import load_cifar10
from tvmflow.models.dilated_net import DilatedNet, DilatedNetConfig

TINY = DilatedNetConfig(widths=(4, 8), strides=(2, 2))


def test_the_committed_page_is_made_of_the_committed_results(tmp_path):
    folder = tmp_path / experiments.RESULTS.name
    folder.mkdir()
    for path in experiments.RESULTS.glob("*.json"):
        shutil.copy(path, folder)
    experiment_page.write(folder, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == experiments.PAGE.read_text()
    for path in folder.glob("*.svg"):
        assert path.read_text() == (experiments.RESULTS / path.name).read_text()


def test_committed_results_are_of_listed_runs():
    for path in experiments.RESULTS.glob("*.json"):
        experiment, facts = experiments.EXPERIMENTS[path.stem], json.loads(path.read_text())
        assert train.config_of(facts["config"]) == replace(experiment.config, bfloat16=facts["config"]["bfloat16"])
        assert facts["accuracy"] == pytest.approx(facts["curve"][-1]["test_accuracy"], abs=2e-4)


def test_runs_leave_results_that_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = data_sets.write_folder(tmp_path / "cifar")
    monkeypatch.setattr(experiments, "load_cifar10", lambda path: load_cifar10(path, counts=data_sets.COUNTS))
    monkeypatch.setattr(experiments, "EPOCHS", 1)
    monkeypatch.setitem(experiments.WIDTHS, "half", TINY.widths)
    monkeypatch.setattr(experiments, "VARIANTS", {"delta2": TINY})
    names = ["half-delta2-seed0", "half-delta2-seed1"]
    command = ["--results", str(tmp_path / "results"), "run", *names, "--data", str(folder)]
    command += ["--work-dir", str(tmp_path / "work")]
    with experiments._alone(tmp_path / "work" / names[1]):
        experiments.main(command)
    assert [path.stem for path in (tmp_path / "results").iterdir()] == names[:1]
    monkeypatch.setattr(train, "train", None)
    experiments.main([*command[:3], names[0], *command[5:]])
    facts = json.loads((tmp_path / "results" / f"{names[0]}.json").read_text())
    assert len(facts["curve"]) == 1
    assert facts["config"]["network"]["widths"] == [4, 8]


def test_unknown_run():
    with pytest.raises(SystemExit, match="no run 'delta9'"):
        experiments.main(["run", "delta9", "--data", "nowhere"])


@pytest.mark.parametrize("variant", ["merged", "delta2", "clipped"])
def test_what_an_output_sees_is_what_has_a_gradient(variant):
    """The computed rows, and live taps, against PyTorch."""
    config = experiments.VARIANTS[variant]
    network = DilatedNet(replace(config, widths=(2,) * 9)).eval()
    for parameter in network.parameters():
        parameter.data.fill_(0.5)
    image = torch.ones(1, 3, 32, 32, requires_grad=True)
    output = network.joint(image)
    middle = output.shape[-1] // 2
    output[0, 0, middle, middle].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().ravel().tolist()
    assert set(rows) == experiment_page.seen(config)


@pytest.mark.parametrize(("side", "stride", "dilation"), [(8, 1, 5), (4, 1, 5), (8, 2, 1), (32, 1, 3)])
def test_live_taps_are_what_a_filter_of_ones_counts(side, stride, dilation):
    ones, image = torch.ones(1, 1, 3, 3), torch.ones(1, 1, side, side)
    counted = torch.nn.functional.conv2d(image, ones, stride=stride, padding=dilation, dilation=dilation).sum()
    assert experiment_page.live_taps(side, stride, dilation) ** 2 == counted


def test_multiply_adds():
    assert round(experiment_page.multiply_adds(DilatedNetConfig(), live=False) / 1e6, 1) == 84.1
    assert round(experiment_page.multiply_adds(DilatedNetConfig(joint="merged"), live=False) / 1e6, 1) == 81.4


def test_clipped_dilations():
    assert DilatedNetConfig().dilations() == (5,) * 9
    assert DilatedNetConfig(clipped_for=32).dilations() == (5, 5, 5, 5, 5, 4, 4, 2, 2)


def test_the_papers_order_is_reported_as_found():
    def variants(**accuracies):
        return {name: [{"accuracy": value}] for name, value in accuracies.items()}

    held = variants(delta0=0.7, delta1=0.8, delta2=0.9, delta3=0.85)
    assert "holds (2 > 3 > 1 > 0)" in experiment_page.order(held)
    assert "is not found: it is 0 > 2 > 3 > 1" in experiment_page.order(held | variants(delta0=0.95))
    assert "is open: δ = 3 not trained yet" in experiment_page.order({name: held[name] for name in list(held)[:3]})


def test_a_variant_is_set_against_delta_2_in_the_groups_that_have_both():
    results = {
        "quarter": {"delta2": [{"accuracy": 0.7}, {"accuracy": 0.8}], "merged": [{"accuracy": 0.5}]},
        "half": {"delta2": [{"accuracy": 0.8}]},
    }
    assert experiment_page.against_delta2(results, "merged") == "−25.00 points in quarter widths"
    assert experiment_page.against_delta2(results, "clipped") == ""
