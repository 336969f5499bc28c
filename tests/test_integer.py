"""The integer reference is exact, says what it rounds to, refuses what could overflow, and survives a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_networks import JOINT_MODULES, POOL, VARIETY, conv, dense, random_input, random_network, slow_layer

from tvmflow.integer import network as integer
from tvmflow.integer.file import load, save
from tvmflow.spec import Preprocessing, UserError


@pytest.mark.parametrize("shapes", [JOINT_MODULES, VARIETY], ids=["joint-modules", "variety"])
@pytest.mark.parametrize("scheme", integer.SCHEMES)
def test_fast_is_slow(scheme, shapes):
    rng = np.random.default_rng(1)
    network = random_network(rng, scheme, shapes=shapes)
    images = random_input(rng, network.input_shape, integer.BATCH + 1)
    logits, kept = network.run(images, keep=True)
    assert np.array_equal(logits, network.run(images))
    assert np.array_equal(logits, kept[network.layers[-1].name][:, :, 0, 0])
    saturated = 0
    for layer in network.layers:
        given, got = kept[layer.inputs[0]], kept[layer.name]
        assert got.dtype == layer.dtype
        assert len(np.unique(got)) > 20
        saturated += int(((got == layer.maximum) | (got == layer.minimum)).sum())
        for image in (0, integer.BATCH):  # the first, and one of the second batch
            assert np.array_equal(got[image], slow_layer(layer, given[image])), layer.name
    assert saturated


def one_layer(scheme, **changes):
    """A network of one multiplication by 1 with what is given."""
    network = random_network(np.random.default_rng(0), scheme, shapes=(conv(1, relu=False),), input_shape=(1, 1, 1, 1))
    layer = replace(network.layers[0], weight=np.ones((1, 1, 1, 1), np.int8), bias=np.zeros(1, np.int32), **changes)
    return replace(network, layers=(layer,))


def one_layer_of(network, *numbers):
    q = np.array(numbers, np.int8).reshape(-1, 1, 1, 1)
    return network.run(q).ravel().tolist()


def test_halves_are_rounded_up():
    quarter = one_layer("per-channel", multiplier=np.array([2**30], np.int32))
    by_shift = one_layer("power-of-two", shift=np.array([2], np.int32))
    for network in (quarter, by_shift):
        assert one_layer_of(network, -7, -6, -5, -2, -1, 0, 1, 2, 3, 6) == [-2, -1, -1, 0, 0, 0, 0, 1, 1, 2]
    unchanged = one_layer("power-of-two", shift=np.array([0], np.int32))
    assert one_layer_of(unchanged, -128, -1, 127) == [-128, -1, 127]


def test_saturation_follows_the_layer():
    for minimum, maximum in ((-128, 127), (0, 127), (-3, 5)):
        network = one_layer("power-of-two", shift=np.array([0], np.int32), minimum=minimum, maximum=maximum)
        assert one_layer_of(network, -128, 127) == [minimum, maximum]


def test_sums_beyond_float32_are_exact():
    """3·10⁷ in an accumulator: float32 would lose its last bits."""
    shapes = (conv(2, relu=False),)
    network = random_network(np.random.default_rng(0), "power-of-two", shapes=shapes, input_shape=(1, 2048, 1, 1))
    weight = np.full((2, 2048, 1, 1), 127, np.int8)
    layer = replace(network.layers[0], weight=weight, bias=np.array([-1, 0], np.int32))
    acc = integer.accumulate(layer, np.full((1, 2048, 1, 1), 127, np.int8))
    assert acc.ravel().tolist() == [127 * 127 * 2048 - 1, 127 * 127 * 2048]


def test_what_could_overflow_is_refused():
    network = one_layer("power-of-two", shift=np.array([24], np.int32))
    layer = network.layers[0]
    room = 2**31 - 1 - 127 - 2**23  # of the product, and of what rounding adds
    replace(network, layers=(replace(layer, bias=np.array([room], np.int32)),))
    with pytest.raises(UserError, match="overflow"):
        replace(network, layers=(replace(layer, bias=np.array([room + 1], np.int32)),))
    with pytest.raises(UserError, match="overflow"):
        replace(network, layers=(replace(layer, bias=np.array([-(2**31)], np.int32)),))


@pytest.mark.parametrize(
    ("scheme", "changes", "words"),
    [
        ("per-channel", {"multiplier": None}, "needs multipliers"),
        ("per-channel", {"multiplier": np.array([3], np.int32)}, "even"),
        ("per-channel", {"multiplier": np.array([0], np.int32)}, "even"),
        ("per-channel", {"maximum": 300}, "can't hold"),
        ("power-of-two", {"shift": np.array([32], np.int32)}, "between 0 and 31"),
        ("power-of-two", {"dtype": "uint8", "minimum": 0}, "int8 as its output"),
        ("power-of-two", {"inputs": ("elsewhere",)}, "doesn't read earlier layers"),
        ("power-of-two", {"output_shape": (1, 1, 2, 2)}, "shapes"),
        ("power-of-two", {"groups": 2}, "groups"),
    ],
)
def test_what_does_not_fit_is_refused(scheme, changes, words):
    with pytest.raises(UserError, match=words):
        one_layer(scheme, **changes)


def test_names_in_sentences_are_printable():
    with pytest.raises(UserError, match=r"Layer \\u202e of"):
        one_layer("power-of-two", name="\u202e", groups=2)


def test_inputs_of_another_network_are_refused():
    network = random_network(np.random.default_rng(0), "per-channel", shapes=(POOL, dense(3)), input_shape=(1, 3, 4, 4))
    for wrong in (np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 3, 4, 5), np.int8), np.zeros((0, 3, 4, 4), np.int8)):
        with pytest.raises(UserError, match="takes int8"):
            network.run(wrong)


def test_inputs_are_rounded_half_to_even_and_saturate():
    network = one_layer("power-of-two", shift=np.array([0], np.int32))
    real = np.array([-9, 0.5 / 64, 1.5 / 64, -0.5 / 64, 9], np.float32).reshape(-1, 1, 1, 1)
    assert network.quantize_input(real).ravel().tolist() == [-128, 0, 2, 0, 127]


@pytest.mark.parametrize("scheme", integer.SCHEMES)
def test_a_file_keeps_everything(scheme, tmp_path):
    rng = np.random.default_rng(3)
    network = replace(
        random_network(rng, scheme),
        preprocessing=Preprocessing(mean=(0.5, 0.25, 0.125), std=(1.0, 2.0, 3.0)),
        labels=("cat", "dog"),
        facts={"calibration": {"count": 8, "seed": 1}},
    )
    for name in ("once", "again"):
        save(network, tmp_path / name)
    assert (tmp_path / "once").read_bytes() == (tmp_path / "again").read_bytes()
    loaded = load(tmp_path / "once")
    for key in set(vars(network)) - {"layers"}:
        assert getattr(loaded, key) == getattr(network, key), key
    for layer, kept in zip(network.layers, loaded.layers, strict=True):
        for key, value in vars(layer).items():
            assert type(getattr(kept, key)) is type(value), key
            assert np.array_equal(getattr(kept, key), value), key
    images = random_input(rng, network.input_shape, 3)
    assert np.array_equal(loaded.run(images), network.run(images))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("layers", {}, "layers is an object"),
        ("layers", [], "layers is a list of 0"),
        ("layers.0", None, r"layers\[0\] is None, where an object belongs"),
        ("layers.0.kind", "pool3d", r"layers\[0\]\.kind is 'pool3d'"),
        ("layers.0.stride", [0, 1], r"layers\[0\]\.stride\[0\] is 0"),
        ("layers.0.stride", [1.0, 1], r"layers\[0\]\.stride\[0\] is 1\.0, where a whole number"),
        ("layers.0.padding", [-1, 0], r"layers\[0\]\.padding\[0\] is -1"),
        ("layers.0.groups", 0, r"layers\[0\]\.groups is 0"),
        ("layers.0.dtype", "int4", r"layers\[0\]\.dtype is 'int4'"),
        ("layers.0.scale", "1", r"layers\[0\]\.scale is '1'"),
        ("layers.0.weight", [1], "which isn't known"),
        ("layers.0.minimum", None, r"layers\[0\]\.minimum is None"),
        ("layers.0.name", "a\x1b[31m", r"layers\[0\]\.name is 'a\\x1b\[31m'"),
        ("layers.0.name", "other", "the weight of 'other' is no array"),
        ("layers.0.inputs", "input", r"layers\[0\]\.inputs is 'input', where a list"),
        ("inputs.0.shape", [1, 3, 0, 8], r"inputs\[0\]\.shape\[2\] is 0"),
        ("inputs.0.scale", 1e400, r"inputs\[0\]\.scale is None, where a number belongs"),
        ("labels", 3, "labels is 3"),
        ("preprocessing", {"mean": 1, "std": []}, r"preprocessing\.mean is 1"),
        ("scheme", ["x"], "scheme is a list of 1"),
        ("added", 1, "'added', which isn't known"),
    ],
)
def test_what_a_file_says_beside_its_arrays_is_checked(tmp_path, path, value, words):
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]

    def change(content: dict[str, Any]) -> None:
        holder: Any = content
        for step in steps:
            holder = holder[step]
        holder[last] = value

    refused(tmp_path, change, words)


@pytest.mark.parametrize("shape", [[1, 65536, 256, 256], [1, 65536, 65536, 65536], [1, 3_000_000, 1, 1]])
def test_a_pool_that_would_fill_the_memory(tmp_path, shape):
    def change(content: dict[str, Any]) -> None:
        content["layers"][0] |= {"kind": "pool", "input_shape": shape}

    refused(tmp_path, change, "the input_shape of 'layers.0' has .* elements|65536 or less belongs")


def refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    """A network whose metadata was changed can't be loaded, in one sentence."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    network = random_network(np.random.default_rng(0), "per-channel", shapes=(conv(3, relu=False),))
    save(network, tmp_path / "whole")
    with safe_open(tmp_path / "whole", "numpy") as file:
        content = json.loads(file.metadata()["tvmflow"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it can't be iterated)
    change(content)
    save_file(arrays, tmp_path / "changed", {"tvmflow": json.dumps(content)})
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path / "changed")
    assert str(caught.value).isprintable()


def test_damaged_files_are_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    network = random_network(np.random.default_rng(0), "per-channel", shapes=(conv(3, relu=False),))
    save(network, tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-1])
    save_file({"a": np.zeros(3)}, tmp_path / "another")
    with safe_open(tmp_path / "whole", "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in ("layers.0.weight", "layers.0.multiplier")}
        save_file(arrays, tmp_path / "without biases", file.metadata())
    refusals = {
        "missing": "no file",
        "cut": "no intact",
        "another": "no quantised network",
        "without biases": "is damaged",
    }
    for name, words in refusals.items():
        with pytest.raises(UserError, match=words):
            load(tmp_path / name)
