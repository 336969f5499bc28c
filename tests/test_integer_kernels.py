"""int8 on CPUs: every kernel against the integer reference, bit for bit, by the instructions of each kind of CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from compiling import compiled
from conftest import needs_emulator
from integer_networks import POOL, VARIETY, Shape, conv, dense, depthwise, random_network
from PIL import Image

from tvmflow.bundles.infer import infer
from tvmflow.integer.file import save
from tvmflow.integer.frontend import integer_program
from tvmflow.integer.network import IntegerLayer, IntegerNetwork
from tvmflow.passes.lower import lower, plan_memory
from tvmflow.pipeline import INTEGER_STAGES
from tvmflow.schedules.instructions import MACHINE_X64, X86, instructions_of
from tvmflow.spec import Preprocessing, Target
from tvmflow.system import toolchain
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import verify_library

HOST = TARGETS["host"]

ODD = (
    *(depthwise(dilation=5), depthwise(stride=2), conv(33)),
    Shape(kind="depthwise", kernel=(3, 2), stride=(1, 2), padding=(2, 3), dilation=(2, 3)),
    *(conv(70, relu=False), depthwise(stride=2, relu=True), conv(16), POOL, dense(10)),
)
"""Depthwise layers alone and in pairs, dilations of two lengths, channels that fill no vector, and several of them."""

ALONE = (
    *(conv(20), depthwise(), conv(14, 3), depthwise(relu=True), conv(32, 3, stride=2), depthwise(dilation=2)),
    *(conv(70), depthwise(), conv(7, 3), POOL, dense(9)),
)
"""Depthwise layers that have pixels of less than a vector, and more; convolutions with a border in rows of tiles."""

LARGE_MAP = (conv(6, relu=False), POOL, dense(9))
"""A pool of more taps than are written out."""


UNREAD = (replace(conv(16, 3, stride=2), padding=(0, 0)), POOL, dense(9))
"""The last row and column of the input aren't read, and a copy of it must not be shorter than what is written there."""


def extremes() -> IntegerNetwork:
    """One layer whose sums, multipliers and results go as far as they can."""
    rng = np.random.default_rng(5)
    bias = rng.integers(-(2**31) + 2**20, 2**31 - 2**20, 48)
    bias[::3] = rng.integers(-2000, 2000, 16)
    multiplier = 2 * rng.integers(1, 2**30, 48)
    multiplier[:8] = [2, 2, 2**31 - 2, 2**31 - 2, 2**30, 2**30, 2**24, 2**24]
    layer = IntegerLayer(
        name="only",
        modules=("only",),
        kind="conv2d",
        inputs=("input",),
        weight=rng.integers(-127, 128, (48, 9, 1, 1)).astype(np.int8),
        bias=bias.astype(np.int32),
        multiplier=multiplier.astype(np.int32),
        minimum=-128,
        maximum=127,
        dtype="int8",
        scale=1.0,
        input_shape=(1, 9, 3, 5),
        output_shape=(1, 48, 3, 5),
    )
    return IntegerNetwork.chain(
        name="extremes", scheme="per-channel", input_shape=layer.input_shape, input_scale=1.0, layers=(layer,)
    )


def networks() -> dict[str, IntegerNetwork]:
    rng = np.random.default_rng(3)
    return {
        "odd": random_network(rng, "per-channel", shapes=ODD, input_shape=(1, 3, 13, 11)),
        "odd, shifts": random_network(rng, "power-of-two", shapes=ODD, input_shape=(1, 3, 13, 11)),
        "alone": random_network(rng, "per-channel", shapes=ALONE, input_shape=(1, 3, 23, 37)),
        "variety": random_network(rng, "per-channel", shapes=VARIETY, input_shape=(1, 7, 19, 16)),
        "large map": random_network(rng, "per-channel", shapes=LARGE_MAP, input_shape=(1, 5, 23, 21)),
        "extremes": extremes(),
        "unread": random_network(rng, "per-channel", shapes=UNREAD, input_shape=(1, 3, 12, 12)),
    }


NETWORKS = networks()

CPUS = {"AVX512_VNNI": "cascadelake", "AVX512": "skylake-avx512", "AVX2": "haswell", "SSE": "x86-64"}
"""LLVM's names of CPUs that have certain instructions and no better ones."""


def kinds_of_this_computer() -> dict[str, Target]:
    """This computer, and what it would be with fewer instructions."""
    found = {"host": HOST}
    if HOST.elf == MACHINE_X64:
        described = tvm.target.Target(toolchain.tvm_target_dict(HOST))
        needs = dict(zip(("AVX512_VNNI", "AVX_VNNI", "AVX512", "AVX2", "SSE"), (row[0] for row in X86), strict=True))
        for name, cpu in CPUS.items():
            if all(tvm.target.codegen.target_has_features(feature, described) for feature in needs[name]):
                found[name] = replace(HOST, tvm={**HOST.tvm, "mcpu": cpu})
    return found


KINDS = kinds_of_this_computer()


def check(network: IntegerNetwork, target: Target, folder: Path) -> None:
    program = integer_program(network)
    library = compiled(program, target, folder).library
    verdict = verify_library(library, target, program.vectors, program.outputs)
    assert verdict["passed"], (network.name, target.name, verdict)
    assert verdict["max_abs_error"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_this_computer_is_exact(name, tmp_path):
    check(NETWORKS[name], HOST, tmp_path)


@pytest.mark.parametrize("kind", list(KINDS)[1:] or ["host"])
def test_other_instructions_of_this_computer_are_exact(kind, tmp_path):
    for name in ("odd", "alone", "extremes"):
        check(NETWORKS[name], KINDS[kind], tmp_path)


def test_threads_share_loops_without_harm(tmp_path, monkeypatch):
    """Networks this small are given one thread by default, and so is every network where there are two cores."""
    from tvmflow.schedules.cpu.integer import convolution, depthwise, depthwise_dots

    for rule in (convolution, depthwise, depthwise_dots):
        monkeypatch.setattr(rule, "worth_threads", lambda macs, target: True)
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    for name in ("odd", "alone"):
        check(NETWORKS[name], HOST, tmp_path)


@pytest.mark.emulated
@pytest.mark.parametrize("board", ["raspberry-pi-3b", "raspberry-pi-3b-32bit", "raspberry-pi-5"])
def test_boards_are_exact(board, tmp_path):
    needs_emulator(TARGETS[board])
    for name in ("odd", "extremes"):
        check(NETWORKS[name], TARGETS[board], tmp_path)


def test_kernels_as_they_come_from_the_frontend_are_exact(tmp_path, monkeypatch):
    monkeypatch.setitem(INTEGER_STAGES, "llvm", (plan_memory, lower))
    check(NETWORKS["variety"], HOST, tmp_path)


def test_boards_differ_in_their_instructions():
    named = {name: instructions_of(TARGETS[name]) for name in ("raspberry-pi-4b", "raspberry-pi-5")}
    assert named["raspberry-pi-4b"].pairs
    assert not named["raspberry-pi-5"].pairs
    assert {instructions_of(target).lanes for target in KINDS.values()} <= {4, 8, 16}


def test_layers_name_modules_and_rules(tmp_path):
    network = NETWORKS["odd"]
    layers = compiled(integer_program(network), HOST, tmp_path, dump_dir=tmp_path).program.layers
    modules = [module for layer in layers for module in layer.modules]
    assert modules == [module for layer in network.layers for module in layer.modules]
    assert sum(layer.macs for layer in layers) == sum(layer.macs for layer in network.layers if layer.kind != "pool")
    assert layers[0].modules == ("layers.0", "layers.1")
    assert (tmp_path / "0-integer_kernels.py").is_file()


def test_command_line_from_file_to_classes(tvmflow, tmp_path):
    """A quantised network in a file: built, verified, run on an image and on a tensor."""
    from tvmflow.bundles.bundle import open_bundle

    drawn = random_network(np.random.default_rng(9), "power-of-two", shapes=(depthwise(), conv(20), POOL, dense(10)))
    network = replace(
        drawn,
        labels=tuple("abcdefghij"),
        preprocessing=Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
    )
    save(network, tmp_path / "net.safetensors")
    common = ("build", "-o", tmp_path / "bundle", "--model", tmp_path / "net.safetensors")
    built = tvmflow(*common, "--json", "-")
    assert built.code == 0, built.err
    assert built.json["verify"]["max_abs_error"] == 0
    assert built.json["target"]["arithmetic"] == "int8"
    tvmflow(*common, "--scheme", "per-channel").failed_with(4, "power-of-two")

    pixels = np.random.default_rng(2).integers(0, 256, (13, 11, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert network.preprocessing is not None
    quantized = network.quantize_input(network.preprocessing.apply(pixels[None]))
    np.save(tmp_path / "tensor.npy", quantized)
    expected = network.run(quantized)
    with open_bundle(tmp_path / "bundle") as bundle:
        assert bundle.quantization == {
            "scheme": "power-of-two",
            "input_scale": network.input_scale,
            "output_scale": network.output_scale,
            "input_scales": [network.input_scale],
            "output_scales": [network.output_scale],
        }
        for name in ("image.png", "tensor.npy"):
            result = infer(bundle, [tmp_path / name])
            assert np.array_equal(result["outputs"]["output"], expected)
            best = result["classes"][0][0]
            assert best["label"] == network.labels[expected[0].argmax()]
            logits = expected[0] * network.output_scale
            assert best["probability"] == pytest.approx(1 / np.exp(logits - logits.max()).sum())


def test_command_line_refuses(tvmflow, tmp_path):
    out = ("build", "-o", tmp_path / "bundle")
    tvmflow(*out, "--dtype", "int8", "--input-shape", "1x3x8x8").failed_with(4, "--input-shape")
    tvmflow(*out, "--scheme", "per-channel").failed_with(4, "--scheme")
    tvmflow(*out, "--dtype", "int8", "--model", "small-vgg").failed_with(4, "small-vgg")
