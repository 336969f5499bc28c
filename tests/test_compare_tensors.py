"""`tvmflow compare`, and `evaluate` on a user's own data: a residual network in int8, against its float self."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_commands, needs_emulator
from torch import nn

from tvmflow.bundles import compare
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.bundles.evaluate import evaluate_on
from tvmflow.integer import file
from tvmflow.integer.frontend import integer_program
from tvmflow.integer.post_training import Method
from tvmflow.models import int8
from tvmflow.models.examples import load_inputs
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.report.render import rules_text
from tvmflow.spec import UserError, VerificationError
from tvmflow.targets import TARGETS, compute_in
from tvmflow.targets.cortex_m import machine

FACTORY, SHAPE = "test_compare_tensors:residual", (1, 3, 10, 12)
SHAPES = [parse_input_shape("1x3x10x12")]
TESTS = ROOT / "tests"


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.wide, self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow = nn.Conv2d(12, 12, 1)
        self.pool = nn.MaxPool2d(2)
        self.out = nn.Linear(12, 6)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.pool(x + torch.relu(self.narrow(self.deep(self.wide(x)))))
        return self.out(x.mean((2, 3)))


def residual() -> nn.Module:
    torch.manual_seed(7)
    return _Residual().eval()


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, *SHAPE[1:]), np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with inputs, the float network's classes as labels, the quantised network, and bundles of both."""
    root = tmp_path_factory.mktemp("residual")
    with torch.no_grad():
        labels = residual()(torch.from_numpy(rows(40))).argmax(1).numpy()
    np.savez(root / "inputs.npz", x=rows(40), labels=labels)
    np.savez(root / "plain.npz", x=rows(40))
    program = import_model(FACTORY, SHAPES)
    data = load_inputs(root / "inputs.npz", program.inputs, None)
    method = Method(count=24)
    network = int8.make(program, int8.of_inputs(data, method), "per-channel", method)
    file.save(network, root / "residual.safetensors")
    quantised = integer_program(network, str(root / "residual.safetensors"))
    build(quantised, compute_in(TARGETS["host"], "int8"), root / "int8")
    shifts = int8.make(program, int8.of_inputs(data, method), "power-of-two", method)
    file.save(shifts, root / "shifts.safetensors")
    build(program, TARGETS["host"], root / "float")
    return root


def compared(path: Path, quantised: str | None, original: str | None, inputs: str | None = None):
    with open_bundle(path) as bundle:
        return compare.compare_tensors(bundle, compare.find_sources(bundle, quantised, original, SHAPES), inputs)


# ----------------------------------------------------------------------------------------------------------- compare


def test_every_tensor_of_the_deployed_library_is_exact(made):
    found = compared(made / "int8", None, None)
    assert found["identical"]
    assert found["method"] == "native"
    differences = {row["tensor"]: row["max_difference"] for row in found["tensors"]}
    assert {name for name, difference in differences.items() if difference is None} <= {"wide", "narrow"}
    assert not any(differences.values())
    assert "Every tensor is that of the exact integers" in compare.text(found)
    assert "give it as --model" in compare.text(found)


def test_signal_to_noise_of_each_tensor(made):
    """As quantising found it on other inputs, about; and the layer in which it falls most is named."""
    found = compared(made / "int8", None, FACTORY, str(made / "inputs.npz"))
    told = file.load(made / "residual.safetensors").facts
    ratios = {row["tensor"]: row["snr_db"] for row in found["tensors"]}
    assert found["channel_factors"] == "recorded"
    for name, ratio in told["sqnr_db"].items():
        assert ratios[name] == pytest.approx(ratio, abs=9), name
    falls = {row["tensor"]: row["fall_db"] for row in found["tensors"]}
    assert found["largest_fall"] == max(falls, key=falls.get)
    assert f"falls most in {found['largest_fall']}" in compare.text(found)


def test_the_first_tensor_that_differs(made, monkeypatch):
    capture = compare.capture

    def spoilt(*arguments):
        method, left = capture(*arguments)
        left[2:4] = [(names, values + more) for (names, values), more in zip(left[2:4], (3, -9), strict=True)]
        return method, left

    monkeypatch.setattr(compare, "capture", spoilt)
    found = compared(made / "int8", None, None)
    order = [row["tensor"] for row in found["tensors"] if row["max_difference"] is not None]
    assert (found["identical"], found["first_difference"]) == (False, order[2])
    assert f"differs from the exact integers is {order[2]}, by up to 3 steps" in compare.text(found)


def test_the_kernels_of_arm_boards(made, tmp_path):
    """Kernel by kernel under qemu, also of a board whose whole network it could run."""
    for name in ("raspberry-pi-5", "raspberry-pi-3b-32bit"):
        needs_emulator(TARGETS[name])
        network = file.load(made / "residual.safetensors")
        board = compute_in(TARGETS[name], "int8")
        build(integer_program(network, str(made / "residual.safetensors")), board, tmp_path / name, verify=False)
        found = compared(tmp_path / name, None, None)
        assert (found["identical"], found["method"]) == (True, "emulated kernels")


def test_networks_that_a_bundle_was_not_built_from(made, tmp_path):
    with pytest.raises(UserError, match="holds a float network"):
        compared(made / "float", None, None)
    network = file.load(made / "residual.safetensors")
    first = network.layers[0]
    other = dataclasses.replace(
        network, layers=(dataclasses.replace(first, bias=first.bias + 900), *network.layers[1:])
    )
    file.save(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="isn't the network that"):
        compared(made / "int8", str(tmp_path / "other.safetensors"), None)
    with pytest.raises(UserError, match="There is nothing at"):
        compared(made / "int8", None, None, str(made / "missing.npz"))


def built(made: Path, root: Path, name: str, network: str) -> Path:
    """A bundle for a board."""
    board = compute_in(TARGETS[name], "int8")
    build(integer_program(file.load(made / network), str(made / network)), board, root / name, verify=False)
    return root / name


def test_the_layers_of_vta(made, tmp_path):
    """On the simulator, each looked at before the next one begins; and what lies in place of a larger tensor."""
    found = compared(built(made, tmp_path, "pynq-z1", "shifts.safetensors"), None, FACTORY, str(made / "inputs.npz"))
    assert (found["identical"], found["method"]) == (True, "simulated")
    assert all(row["max_difference"] == 0 for row in found["tensors"])
    assert "run layer by layer on VTA's simulator" in compare.text(found)


def test_a_vta_layer_with_another_weight(made, tmp_path):
    path = built(made, tmp_path, "pynq-z1", "shifts.safetensors")
    with open_bundle(path) as bundle:
        memory = np.fromfile(path / "memory.bin", np.int8)
        narrow = file.load(made / "shifts.safetensors").by_name["narrow"].weight[:, :, 0, 0]
        tile = np.zeros((16, 16), np.int8)
        tile[:12, :12] = narrow
        tile[range(12), range(12)] -= 1  # its outputs are added to its inputs, which accumulators hold
        at = memory.tobytes().find(tile.tobytes())
        assert at > 0
        memory[at] += 1
        memory.tofile(path / "memory.bin")
        sources = compare.find_sources(bundle, None, None, SHAPES)
        found = compare.compare_tensors(bundle, sources)
    assert (found["identical"], found["first_difference"]) == (False, "narrow")


def test_the_kernels_of_microcontrollers(made, tmp_path):
    """The firmware itself, whose arena keeps no tensor for long."""
    for name in ("mps3-an547", "mps2-an500"):
        needs_commands(machine.QEMU)
        found = compared(built(made, tmp_path, name, "residual.safetensors"), None, None)
        assert (found["identical"], found["method"]) == (True, "emulated"), name
    assert "as firmware under qemu-system and stopped after each kernel" in compare.text(found)


def test_the_kernels_of_gpus(made, tmp_path):
    found = compared(built(made, tmp_path, "jetson-orin-nano", "residual.safetensors"), None, None)
    assert (found["identical"], found["method"]) == (True, "stand-in")
    assert {row["max_difference"] for row in found["tensors"]} == {0}


def test_a_bundle_of_other_kernels_is_refused(made):
    with open_bundle(made / "int8") as bundle:
        manifest = {**bundle.manifest, "layers": bundle.manifest["layers"][1:]}
        other = dataclasses.replace(bundle, manifest=manifest)
        with pytest.raises(UserError, match="where this version of tvmflow makes"):
            compare.capture(other, file.load(made / "residual.safetensors"), (np.zeros(SHAPE, np.int8),))


def test_the_command(tvmflow, made):
    options = ("--model", FACTORY, "--inputs", made / "inputs.npz", "--count", "3", "--json", made / "found.json")
    done = tvmflow("compare", made / "int8", *options, cwd=TESTS)
    assert done.code == 0, done.err
    assert "its own library, run on this computer: 3 inputs of inputs.npz" in done.out
    assert (made / "found.json").is_file()


# ---------------------------------------------------------------------------------------------------------- evaluate


def test_classes_of_a_float_bundle(made):
    found = evaluate_on(str(made / "inputs.npz"), FACTORY, shapes=SHAPES, bundle_path=made / "float")
    assert (found["accuracy"], found["top5"], found["images"]) == (1.0, 1.0, 40)
    assert found["compiled"]["agreement"] == 1.0
    assert found["compiled"]["snr_db"] > 100


def test_an_int8_bundle_is_bit_for_bit_its_network(made):
    quantised = str(made / "residual.safetensors")
    options = {"shapes": SHAPES, "dtype": "int8", "bundle_path": made / "int8", "float_model": FACTORY}
    found = evaluate_on(str(made / "inputs.npz"), quantised, **options)
    assert found["compiled"]["identical"] == 40
    assert found["compiled"]["accuracy"] == found["accuracy"] == found["float"]["agreement"]
    assert found["float"]["snr_db"] > 20
    assert found["float"]["cosine"] > 0.99


def test_without_labels_outputs_are_compared(made):
    """An int8 bundle beside the float network; of the network alone there is nothing to say."""
    found = evaluate_on(str(made / "plain.npz"), FACTORY, shapes=SHAPES, bundle_path=made / "int8", count=10)
    assert "accuracy" not in found
    assert (found["images"], found["compiled"]["snr_db"] > 20) == (10, True)
    with pytest.raises(UserError, match="has no labels, so that there is nothing to compare"):
        evaluate_on(str(made / "plain.npz"), FACTORY, shapes=SHAPES)


def test_what_is_not_alike_is_found(made, tmp_path):
    quantised = file.load(made / "residual.safetensors")
    first = quantised.layers[0]
    layers = (dataclasses.replace(first, bias=first.bias + 900), *quantised.layers[1:])
    file.save(dataclasses.replace(quantised, layers=layers), tmp_path / "other.safetensors")
    with pytest.raises(VerificationError, match="differs from the exact arithmetic of residual"):
        evaluate_on(
            str(made / "inputs.npz"), str(tmp_path / "other.safetensors"), dtype="int8", bundle_path=made / "int8"
        )
    np.savez(tmp_path / "many.npz", x=rows(4), labels=np.array([0, 1, 2, 6]))
    with pytest.raises(UserError, match="has a label 6, and the network has 6 classes"):
        evaluate_on(str(tmp_path / "many.npz"), FACTORY, shapes=SHAPES)


# ------------------------------------------------------------------------------------------------------------- rules


def test_a_build_says_which_rules_serve_how_much(made):
    with open_bundle(made / "int8") as bundle:
        words = rules_text(bundle.manifest["layers"])
    assert "convolution" in words
    assert "node" in words
    assert words.endswith("TVM's default schedules none")
    shares = [float(part.partition("%")[0]) for part in words.split("(")[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_layers_of_the_plain_rule_are_named():
    layers = [
        {"schedule": "integer plain", "macs": 30, "modules": ["odd"], "kernel": "a"},
        {"schedule": "default", "macs": 0, "modules": [], "kernel": "b"},
        {"schedule": "integer convolution", "macs": 70, "modules": ["even"], "kernel": "c"},
    ]
    assert rules_text(layers) == (
        "convolution 1 layer (70.0% of multiply-adds); plain 1 layer (30.0% of multiply-adds): odd; "
        "TVM's default 1 layer (0.0% of multiply-adds): b"
    )
