"""`import tvmflow`: networks as objects, results with types, errors as sentences, and nothing imported too early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from tflite_cases import graphs_of, inputs_of
from tflite_files import file_of
from torch import nn

import tvmflow
from tvmflow.spec import TvmflowError
from tvmflow.targets import TARGETS

IMAGE = (1, 3, 9, 7)


class Tagger(nn.Module):
    """Integers in, by name; a state in a tuple; several outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.cell, self.head = nn.Embedding(11, 6), nn.GRUCell(6, 5), nn.Linear(5, 3)

    def forward(self, ids: torch.Tensor, *, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.cell(self.embed(ids), state)
        return self.head(state), state


class Sum(nn.Module):
    """Two maps of unlike shapes, one of which is broadcast."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.relu(left + right)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return networks.tiny()


@pytest.fixture(scope="module")
def compiled(network):
    return tvmflow.compile(network, torch.zeros(IMAGE), name="tiny", labels=["a", "b", "c", "d"], input_range=(-1, 1))


@pytest.fixture(scope="module")
def quantised(network):
    generator = torch.Generator().manual_seed(0)
    return tvmflow.quantize(network, torch.randn(48, *IMAGE[1:], generator=generator), name="tiny")


def images(count: int) -> torch.Tensor:
    return torch.randn(count, *IMAGE[1:], generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------------------------------- import


def test_importing_it_imports_nothing_that_it_may_not_need():
    program = (
        "import sys; before = set(sys.modules); import tvmflow\n"
        "assert 'compile' in dir(tvmflow) and 'quantize' in tvmflow.__all__\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new), sorted(name for name in sys.modules if name.startswith('tvmflow')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tvmflow'] ['tvmflow', 'tvmflow.system', 'tvmflow.system.moved']"


def test_what_is_offered_is_there_without_torch_and_tvm():
    program = (
        "import sys, tvmflow; found = [getattr(tvmflow, name) for name in tvmflow.__all__]\n"
        "print([name for name in ('tvm', 'torch', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_is_also_a_module_s_former_one_stays_a_function():
    program = (
        "from tvmflow.quantize import Method; from tvmflow.estimate import Network; import tvmflow.deploy, tvmflow\n"
        "for call in (tvmflow.quantize, tvmflow.estimate):\n"
        "    try: call('nothing', board=None) if call is tvmflow.estimate else call('nothing', 'x')\n"
        "    except tvmflow.UserError as error: print('neither a known network' in str(error))\n"
        "try: tvmflow.deploy('nowhere')\n"
        "except tvmflow.UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[:2] == ["True", "True"], done.stderr
    assert "Say where the board is" in done.stdout


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="nothing"):
        _ = tvmflow.nothing


# ------------------------------------------------------------------------------------------------------------- compile


def test_a_module_gives_what_pytorch_gives(network, compiled):
    given = images(3)
    np.testing.assert_allclose(compiled(given), network(given).detach().numpy(), atol=1e-5)
    assert compiled(given[:1]).shape == (1, 4)
    assert (compiled.name, compiled.board, compiled.labels) == ("tiny", "host", ("a", "b", "c", "d"))
    assert compiled.verdict.passed is True
    assert bool(compiled.verify())


def test_what_black_and_white_become_is_in_the_manifest(compiled):
    seen = compiled.bundle.preprocessing
    assert seen.apply(np.array([[[[0, 255, 51]]]], np.uint8)).ravel().tolist() == pytest.approx([-1, 1, -0.6])


def test_inputs_by_name_integers_and_several_outputs():
    tagger = Tagger().eval()
    given = {"ids": torch.tensor([4]), "state": torch.randn(1, 5)}
    compiled = tvmflow.compile(tagger, given)
    assert [spec.name for spec in compiled.inputs] == ["ids", "state"]
    scores, state = compiled(**given)
    wanted = tagger(given["ids"], state=given["state"])
    np.testing.assert_allclose(scores, wanted[0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(state, wanted[1].detach().numpy(), atol=1e-5)


def test_two_inputs_in_order(tmp_path):
    left, right = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 1, 1)
    compiled = tvmflow.compile(Sum().eval(), (left, right), out=tmp_path / "sum.tar")
    np.testing.assert_array_equal(compiled(left.numpy(), right), Sum()(left, right).numpy())
    assert compiled.path == tmp_path / "sum.tar"
    with pytest.raises(TvmflowError, match="2 inputs"):
        compiled(left)
    with pytest.raises(TvmflowError, match="no input 'middle'"):
        compiled(left, middle=right)


@pytest.mark.parametrize("examples", [torch.zeros(IMAGE), [1, 3, 9, 7], "1x3x9x7", {"x": np.zeros(IMAGE, np.float32)}])
def test_a_factory_takes_examples_in_every_form(examples):
    compiled = tvmflow.compile(f"{networks.__file__}:tiny", examples)
    assert compiled.inputs[0].shape == IMAGE


def test_paths_may_be_paths_or_text(network, tmp_path):
    file = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(IMAGE),)), file)
    by_path, by_text = tvmflow.compile(file, out=tmp_path / "a"), tvmflow.compile(str(file), out=str(tmp_path / "b"))
    assert by_path.bundle.digest == by_text.bundle.digest
    assert tvmflow.load(str(tmp_path / "a")).bundle.digest == by_path.bundle.digest


def test_what_is_built_without_a_place_goes_with_the_object(network):
    compiled = tvmflow.compile(network, torch.zeros(IMAGE))
    folder = compiled.path
    assert folder.is_dir()
    compiled.close()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
def test_it_can_be_kept(compiled, tmp_path, name):
    assert compiled.save(tmp_path / name) == tmp_path / name
    assert tvmflow.load(tmp_path / name).bundle.digest == compiled.bundle.digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    with pytest.raises(TvmflowError, match=r"work\.txt"):
        compiled.save(tmp_path / "mine")


@pytest.mark.parametrize(
    ("model", "examples", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(IMAGE), r"training mode .*\.eval\(\)"),
        (nn.Sequential(nn.ReLU()).eval(), None, "example_inputs"),
        (nn.ReLU, torch.zeros(IMAGE), "call it"),
        (7, None, "a int was given"),
        ("resnet8", None, "Did you mean resnet-8?"),
        (Path("nowhere.onnx"), None, "no file nowhere.onnx"),
        ("weights.pth", None, "is a pickle"),
    ],
)
def test_what_is_no_network_is_said(model, examples, words):
    with pytest.raises(tvmflow.UserError, match=words):
        tvmflow.compile(model, examples)


def test_one_part_in_training_mode_is_enough():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(tvmflow.UserError, match=r"training mode \(1\)"):
        tvmflow.compile(model, torch.zeros(IMAGE))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros(IMAGE), "x is float32 1×3×9×7, and float64"),
        (np.zeros((1, 3, 9, 8), np.float32), "float32 1×3×9×8 was given"),
        (np.zeros((0, 3, 9, 7), np.float32), "float32 0×3×9×7 was given"),
    ],
)
def test_an_input_that_does_not_fit_is_said(compiled, given, words):
    with pytest.raises(tvmflow.UserError, match=words):
        compiled(given)


# ------------------------------------------------------------------------------------------------------------- figures


def test_a_latency_has_its_basis_and_shows_itself(compiled):
    costs = compiled.bench(threads=1, repeats=20)
    assert (costs.latency.basis, costs.latency.runs, costs.latency.threads) == ("measured", 20, 1)
    assert costs.latency.min_ms <= costs.latency.p50_ms <= costs.latency.max_ms
    assert "measured, 1 thread, 20 runs" in repr(costs)
    assert costs._repr_html_().count("<tr>") == len(costs.layers) + 1
    assert costs.verdict.passed is True


def test_layers_have_their_modules_and_times(compiled, tmp_path):
    costs = compiled.profile(repeats=3)
    assert costs.latency is None
    assert all(layer.us > 0 and layer.basis == "measured" for layer in costs.layers)
    assert "joint.0.pointwise" in costs._repr_html_()
    costs.save(tmp_path / "report.html")
    costs.save(tmp_path / "report.json")
    assert "tiny on host" in (tmp_path / "report.html").read_text()
    with pytest.raises(tvmflow.UserError, match=r"\.html"):
        costs.save(tmp_path / "report.pdf")


def test_where_it_can_not_be_timed_that_is_said_with_advice(quantised):
    micro = tvmflow.compile(quantised, board="mps2-an386", verify=False)
    pi = tvmflow.compile(quantised, board="raspberry-pi-4b", verify=False)
    for bundle, advice in ((micro, "link it with a program of yours"), (pi, "tvmflow deploy")):
        with pytest.raises(tvmflow.MissingDependencyError, match="can't be timed here") as caught:
            bundle.bench()
        assert advice in str(caught.value) or "apt-get install" in str(caught.value)


def test_estimates_are_one_for_each_board(network, quantised):
    boards = ["raspberry-pi-4b", "pynq-z1"]
    found = tvmflow.estimate(network, torch.zeros(IMAGE), board=boards)
    assert [row.board for row in found] == boards
    assert all(row.fits and row.can_be_built and row.least_ms > 0 for row in found)
    assert found._repr_html_().count("<tr>") == 3
    assert tvmflow.estimate(quantised, board="mps2-an386")[0].arithmetic == "int8"
    assert len(tvmflow.estimate("resnet-8")) == len(TARGETS)


# ------------------------------------------------------------------------------------------------------------ quantise


def test_a_quantised_network_takes_real_numbers_and_its_own(network, quantised):
    compiled = tvmflow.compile(quantised)
    given = images(4)
    real = compiled(given)
    scale, out = compiled.bundle.scales[0][0], compiled.bundle.scales[1][0]
    own = compiled(np.rint(given.numpy() / scale).clip(-128, 127).astype(np.int8))
    assert (real.dtype, own.dtype) == (np.float32, np.int8)
    np.testing.assert_allclose(real, own * out, rtol=1e-6)
    assert abs(real - network(given).detach().numpy()).max() < 16 * out
    with pytest.raises(tvmflow.UserError, match="NaN"):
        compiled(np.full(IMAGE, np.nan, np.float32))


def test_data_may_be_batches_with_labels(network):
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images(40), torch.arange(40) % 4), batch_size=8, shuffle=False
    )
    by_loader = tvmflow.quantize(network, loader, name="tiny")
    by_array = tvmflow.quantize(network, images(40).numpy(), name="tiny")
    assert by_loader.layer_snr_db == by_array.layer_snr_db
    assert 0 <= by_loader.agreement <= 1
    assert "signal to noise" in by_loader._repr_html_()


def test_a_quantised_network_can_be_kept(quantised, tmp_path):
    file = quantised.save(tmp_path)
    quantised.save_onnx(tmp_path / "net.onnx")
    given = images(2)
    wanted = tvmflow.compile(quantised)(given)
    np.testing.assert_array_equal(tvmflow.compile(file)(given), wanted)
    assert (tmp_path / "net.onnx").stat().st_size > 0


def test_a_quantised_network_is_taken_where_one_belongs(network, quantised):
    with pytest.raises(tvmflow.UserError, match=r"tvmflow\.quantize"):
        tvmflow.compile(network, torch.zeros(IMAGE), dtype="int8")
    with pytest.raises(tvmflow.UserError, match="quantised already"):
        tvmflow.compile(quantised, dtype="float32")
    with pytest.raises(tvmflow.UserError, match="quantised already"):
        tvmflow.quantize(quantised, images(4))
    with pytest.raises(tvmflow.UserError, match="power-of-two"):
        tvmflow.compile(quantised, scheme="power-of-two")


def test_many_inputs_of_a_network_with_a_state_are_a_stream(tmp_path):
    """Given at once they are what they are one after the other, with each state handed on."""
    (tmp_path / "streaming.tflite").write_bytes(file_of(*graphs_of("streaming")))
    compiled = tvmflow.compile(tmp_path / "streaming.tflite")
    calls = np.concatenate([arrays[0] for arrays in inputs_of("streaming")])
    at_once = compiled(calls)[0]
    state: dict[str, np.ndarray] = {}
    answers = []
    for call in calls:
        outputs = dict(zip((spec.name for spec in compiled.outputs), compiled(call[None], **state), strict=True))
        answers.append(outputs[compiled.outputs[0].name])
        state = {name: outputs[output] for name, (output, _) in compiled.bundle.state.items()}
    assert len(calls) > 1
    np.testing.assert_array_equal(at_once, np.concatenate(answers))
