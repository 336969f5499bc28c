"""A user's own data: folders of classes, arrays by name, functions that yield batches; each mistake in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from tvmflow.integer import file
from tvmflow.models.examples import check_described, classes_of, load_inputs, parse_labels
from tvmflow.spec import Preprocessing, TensorSpec, UserError

IMAGE = (TensorSpec(name="x", shape=(1, 3, 8, 8), dtype="float32"),)
TWO = (TensorSpec(name="a", shape=(1, 5), dtype="float32"), TensorSpec(name="b", shape=(1, 5), dtype="float32"))
SEEN = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)
TESTS = ROOT / "tests"


def rows(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, *shape), np.float32)


# what `--data test_examples:NAME` finds


def pairs():
    for _ in range(8):
        yield torch.from_numpy(rows(5, 3, 8, 8)), torch.arange(5) % 3


def alone():
    return [rows(4, 3, 8, 8) for _ in range(3)]


def endless():
    while True:
        yield rows(4, 3, 8, 8)


def two_at_once():
    yield rows(4, 5), rows(4, 5)
    yield (rows(2, 5), rows(2, 5)), [0, 1]


def two_by_name():
    for _ in range(5):
        yield {"b": rows(4, 5) + 7, "a": rows(4, 5)}, np.zeros(4, np.int64)


def broken():
    yield rows(4, 3, 8, 8)
    raise RuntimeError("the disk of the cluster is gone")


def ends():
    raise SystemExit(3)


def sum_of_two():
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right, self.out = (torch.nn.Linear(5, 6), torch.nn.Linear(5, 6), torch.nn.Linear(6, 3))

        def forward(self, a, b):
            return self.out(torch.relu(self.left(a) + self.right(b)))

    return Two().eval()


def write_classes(folder: Path, *names: str, count: int = 6) -> Path:
    for place, name in enumerate(names):
        (folder / name / "deeper").mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (9, 7), (40 * place, 10 * number, 90))
            image.save(folder / name / ("deeper" if number % 2 else ".") / f"{number}.png")
    return folder


# ----------------------------------------------------------------------------------------------------------- folders


def test_a_folder_has_a_folder_for_each_class(tmp_path):
    found = load_inputs(write_classes(tmp_path / "photos", "dog", "ant", "cat"), IMAGE, SEEN)
    assert found.names == ("ant", "cat", "dog")
    assert found.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    (taken,) = found.take(np.array([17, 0]))
    assert taken.shape == (2, 3, 8, 8)
    assert taken[0, 2, 0, 0] == pytest.approx((90 / 255 - 0.5) / 0.25)


def test_labels_say_which_folder_is_which_output(tmp_path):
    folder = write_classes(tmp_path / "photos", "ant", "dog")
    by_name = load_inputs(folder, IMAGE, SEEN, ("dog", "fish", "ant"))
    assert (by_name.labels.tolist(), by_name.names) == ([2] * 6 + [0] * 6, ("dog", "fish", "ant"))
    by_place = load_inputs(folder, IMAGE, SEEN, ("an ant", "a dog"))
    assert (by_place.labels.tolist(), by_place.names) == ([0] * 6 + [1] * 6, ("an ant", "a dog"))
    with pytest.raises(UserError, match="has a folder 'ant', which is none of the 3 classes"):
        load_inputs(folder, IMAGE, SEEN, ("a", "b", "c"))


def test_a_folder_without_classes(tmp_path):
    one = load_inputs(write_classes(tmp_path / "one", "all"), IMAGE, SEEN)
    assert one.labels is None
    mixed = write_classes(tmp_path / "mixed", "ant", "dog")
    Image.new("RGB", (4, 4)).save(mixed / "other.png")
    assert load_inputs(mixed, IMAGE, SEEN).labels is None


# ------------------------------------------------------------------------------------------------------------ arrays


def test_arrays_by_name_with_labels(tmp_path):
    np.savez(tmp_path / "x.npz", b=rows(6, 5) + 1, a=rows(6, 5), labels=np.arange(6, dtype=np.uint8))
    found = load_inputs(tmp_path / "x.npz", TWO, None)
    a, b = found.take(np.array([3, 1]))
    assert np.array_equal(b, a + 1)
    assert found.labels.tolist() == list(range(6))


def test_one_input_goes_by_any_name(tmp_path):
    np.savez(tmp_path / "x.npz", whatever=rows(6, 3, 8, 8), labels=np.arange(6))
    found = load_inputs(tmp_path / "x.npz", IMAGE, None)
    assert (found.count, len(found.labels)) == (6, 6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": rows(6, 5)}, "1 arrays (a), and the network's inputs are a, b"),
        ({"a": rows(6, 5), "b": rows(6, 5), "c": rows(6, 5)}, "3 arrays (a, b, c)"),
        ({"a": rows(6, 5), "b": rows(5, 5)}, "have 5, 6 rows"),
        ({"a": rows(6, 5), "b": rows(6, 4)}, "holds float32 6×4; the network takes finite float32 N×5"),
        ({"a": rows(6, 5), "b": np.ones((6, 5), np.int64)}, "holds int64 6×5"),
        ({"a": rows(6, 5), "b": np.full((6, 5), np.inf)}, "infinite or no numbers"),
        ({"a": rows(6, 5), "b": rows(6, 5), "labels": rows(6)}, "labels of float32 6; the number of a class"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError) as caught:
        load_inputs(tmp_path / "x.npz", TWO, None)
    assert words in str(caught.value)


# --------------------------------------------------------------------------------------------------------- functions


def test_a_function_yields_pairs_or_inputs():
    found = load_inputs("test_examples:pairs", IMAGE, None)
    assert (found.count, found.labels.tolist()) == (40, [0, 1, 2, 0, 1] * 8)
    assert load_inputs("test_examples:alone", IMAGE, None).labels is None
    assert load_inputs("test_examples:endless", IMAGE, None, most=10).count == 10


def test_several_inputs_from_a_function():
    found = load_inputs("test_examples:two_by_name", TWO, None)
    a, b = found.take(np.arange(20))
    assert np.array_equal(b, a + 7)
    with pytest.raises(UserError, match="labels with some batches and none with others"):
        load_inputs("test_examples:two_at_once", TWO, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_examples:broken", "failed with RuntimeError: the disk of the cluster is gone"),
        ("test_examples:ends", "failed with"),
        ("test_examples:nothing_here", "nothing_here"),
        ("no_module_of_that_name:f", "no module named 'no_module_of_that_name'"),
        ("builtins:exit", "is built into Python"),
        ("os:abort", "is built into Python"),
        ("test_examples:two_by_name", "yields b, a; the network's inputs are x"),
    ],
)
def test_functions_that_do_not_serve(name, words):
    with pytest.raises(UserError) as caught:
        load_inputs(name, IMAGE, None)
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------- labels, mean, std


def test_labels_are_a_list_or_a_file(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\n\n dog \nbird\n")
    assert parse_labels(str(tmp_path / "labels.txt")) == ("cat", "dog", "bird")
    assert parse_labels("cat, dog") == ("cat", "dog")
    for text, words in (("cat", "neither a text file"), ("cat,cat", "twice"), ("cat,,dog", "neither")):
        with pytest.raises(UserError, match=words):
            parse_labels(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text"):
        parse_labels(str(tmp_path / "binary"))


def test_what_is_said_of_a_network_fits_it():
    outputs = (TensorSpec(name="y", shape=(1, 3), dtype="float32"),)
    check_described(IMAGE, outputs, SEEN, ("a", "b", "c"))
    assert classes_of((1, 19, 4, 4)) == 19
    with pytest.raises(UserError, match="names 2 classes, and the network's first output, 1×3, has 3"):
        check_described(IMAGE, outputs, None, ("a", "b"))
    with pytest.raises(UserError, match="3 channels of an image, and the network takes 1×5, 1×5"):
        check_described(TWO, outputs, SEEN, ())


# ------------------------------------------------------------------------------------------------------- the command


def test_operators_are_checked_before_data_are_read(tvmflow, tmp_path):
    done = tvmflow(
        *("quantize", "--data", tmp_path / "missing.npz", "--model", "test_examples:with_norms"),
        *("--input-shape", "1x3x8x8", "-o", tmp_path / "out"),
        cwd=TESTS,
    )
    done.failed_with(8, "there is no integer form of", "nn.avg_pool3d (1, 3)", "max_pool (5)")
    assert not (tmp_path / "out").exists()


def with_norms():
    norms = [torch.nn.LocalResponseNorm(3) for _ in range(2)]
    convolutions = [torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1)]
    parts = [convolutions[0], norms[0], convolutions[1], norms[1], torch.nn.ReLU(), torch.nn.AdaptiveMaxPool3d(3)]
    return torch.nn.Sequential(*parts).eval()


def embedding():
    class Words(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(9, 4)

        def forward(self, ids):
            return self.words(ids).sum(1)

    return Words().eval()


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        ("test_examples:with_norms", "2x3x8x8", "float32 with a batch of 1, and input is float32 2×3×8×8"),
        ("test_examples:embedding", "ids=1x4:int64", "inputs have to be float32, and ids is int64 1×4"),
    ],
)
def test_inputs_that_cannot_be_quantised(tvmflow, tmp_path, model, shape, words):
    options = ("--data", tmp_path / "missing.npz", "--model", model, "--input-shape", shape, "-o", tmp_path / "out")
    done = tvmflow("quantize", *options, cwd=TESTS)
    assert (done.code, words in done.err) == (4, True), done.err


def test_a_network_of_two_inputs_is_quantised_on_a_function(tvmflow, tmp_path):
    options = ("--model", "test_examples:sum_of_two", "--input-shape", "a=1x5", "--input-shape", "b=1x5")
    data = ("--data", "test_examples:two_by_name", "--count", "12", "--labels", "cat,dog,bird")
    done = tvmflow("quantize", *data, *options, "-o", tmp_path, cwd=TESTS)
    assert done.code == 0, done.err
    network = file.load(tmp_path / "sum_of_two-int8.safetensors")
    assert [port.name for port in network.inputs] == ["a", "b"]
    assert network.labels == ("cat", "dog", "bird")
    assert network.facts["images"] == 8


def test_what_the_build_is_told_is_in_the_bundle(tvmflow, tmp_path):
    """And images can be run then, whose class has a name."""
    told = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--labels", "a,b,c,d")
    options = ("--model", "networks:tiny", "--input-shape", "1x3x9x7", "-o", tmp_path / "net", "--no-verify")
    tvmflow("build", *options, *told[:4], "--labels", "a,b", cwd=TESTS).failed_with(4, "--labels names 2 classes")
    done = tvmflow("build", *options, *told, cwd=TESTS)
    assert done.code == 0, done.err
    Image.new("RGB", (20, 20), (9, 99, 200)).save(tmp_path / "photo.png")
    ran = tvmflow("run", tmp_path / "net", "--input", tmp_path / "photo.png", "--json", "-")
    assert ran.json["classes"][0][0]["label"] in "abcd"


def test_a_network_that_is_not_quantised_yet(tvmflow, tmp_path):
    done = tvmflow("build", "--dtype", "int8", "--model", "squeezenet", "-o", tmp_path / "net")
    done.failed_with(4, "squeezenet isn't quantised yet", "tvmflow quantize --data … --model squeezenet")
