"""Quantised `.pt2` files: within a step of what PyTorch itself computes of them, and named where they aren't taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pt2_quantised import QUANTISED, SHAPE, Converted, Weight, between, saved
from torch import nn
from torch.nn import functional

from tvmflow.integer.frontend import comes_quantised
from tvmflow.integer.quantised.pt2_reader import read
from tvmflow.network.frontend import import_model
from tvmflow.spec import UnsupportedOperatorError, UserError


@pytest.fixture(scope="module")
def network() -> Converted:
    return Converted().eval()


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "network.pt2"
    path.write_bytes(saved(network, torch.zeros(SHAPE)))
    return path


def of(build, *shape: int, tmp_path):
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = Weight(4, 4, 1, 1)

        def forward(self, x):
            return build(self, x)

    path = tmp_path / "network.pt2"
    path.write_bytes(saved(Network(), torch.zeros(shape)))
    return path


def test_a_network_is_what_pytorch_computes(network, path):
    made, rng = read(path), np.random.default_rng(0)
    (given,), (result,) = made.inputs, made.outputs
    off = []
    for kind in range(12):
        q = rng.integers(-128, 128, SHAPE) if kind % 2 else np.rint(rng.normal(0, 25, SHAPE)).clip(-128, 127)
        real = torch.from_numpy(((q - given.zero_point) * given.scale).astype(np.float32))
        with torch.no_grad():
            wanted = network(real).numpy() / result.scale + result.zero_point
        off.append(np.abs(made.run(q.astype(np.int8)) - np.rint(wanted)))
    assert np.max(off) <= 1
    assert np.mean(np.array(off) > 0) <= 0.1


def test_layers_have_the_names_of_nodes(path):
    names = [layer.name for layer in read(path).layers]
    assert {"conv2d", "add", "max_pool2d", "hardswish", "softmax", "linear"} <= set(names)


def test_limits_within_a_type_are_kept(tmp_path):
    path = of(lambda self, x: between(x, 0.1, 0, torch.uint8, 0, 127), 1, 4, tmp_path=tmp_path)
    network = read(path)
    assert network.run(np.array([[0, 100, 127, 200]], np.uint8)).tolist() == [[0, 100, 127, 127]]


def test_a_quantised_file_is_known_by_its_graph(path, tmp_path):
    assert comes_quantised(str(path))
    plain = tmp_path / "plain.pt2"
    plain.write_bytes(saved(nn.ReLU(), torch.zeros(1, 4)))
    assert not comes_quantised(str(plain))


def test_it_is_built_and_verified_by_its_name_alone(tvmflow, tmp_path):
    path = of(lambda self, x: between(functional.relu(between(x, 0.1, 0)), 0.1, 0), 1, 4, tmp_path=tmp_path)
    built = tvmflow("build", "--model", path, "-o", tmp_path / "bundle", "--json", "-")
    assert built.code == 0, built.err
    assert built.json["verify"]["max_abs_error"] == 0


def test_what_needs_float32_says_that_it_is_quantised(path):
    with pytest.raises(UserError, match="is quantised already"):
        import_model(str(path))


def test_sums_that_nothing_quantises_are_refused_by_name(tmp_path):
    def build(self, x):
        x = between(x, 0.1, 0)
        return between(functional.silu(functional.conv2d(x, self.weight())), 0.1, 0)

    with pytest.raises(UserError, match=r"silu \(silu\): what conv2d gives, which isn't quantised before\.$"):
        read(of(build, 1, 4, 5, 5, tmp_path=tmp_path))


def test_a_result_that_nothing_quantises_is_refused_by_name(tmp_path):
    def build(self, x):
        return functional.conv2d(between(x, 0.1, 0), self.weight())

    with pytest.raises(UserError, match=r"the output output of conv2d, which isn't quantised\.$"):
        read(of(build, 1, 4, 5, 5, tmp_path=tmp_path))


def test_operators_that_are_not_taken_are_named_at_once(tmp_path):
    def build(self, x):
        return between(torch.cumsum(torch.fft.fft(between(x, 0.1, 0)).real, 1), 0.1, 0)

    with pytest.raises(UnsupportedOperatorError, match=r"cumsum in cumsum.*fft"):
        read(of(build, 1, 4, tmp_path=tmp_path))


def test_other_types_are_refused(tmp_path):
    def build(self, x):
        about = (0.1, 0, -32768, 32767, torch.int16)
        return QUANTISED.dequantize_per_tensor(QUANTISED.quantize_per_tensor(x, *about), *about)

    with pytest.raises(UserError, match="a tensor of int16, where int8 or uint8 are taken"):
        read(of(build, 1, 4, tmp_path=tmp_path))
