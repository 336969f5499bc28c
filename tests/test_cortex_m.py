"""Microcontrollers: every kernel is exact on every core, the arena is tight, and the bundle's example runs."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from conftest import ROOT, needs_commands
from integer_networks import JOINT_MODULES, POOL, VARIETY, Shape, conv, dense, depthwise, random_input, random_network

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.integer.file import save
from tvmflow.integer.frontend import integer_program
from tvmflow.measure import cycles
from tvmflow.network.c_interface import c_name
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.passes import arena
from tvmflow.passes.lifetimes import Tensor
from tvmflow.passes.multiply_adds import multiply_adds
from tvmflow.pipeline import run_stages
from tvmflow.report import collect
from tvmflow.report.render import render_html, report_text
from tvmflow.report.survey import survey
from tvmflow.schedules.cortex_m import CORES
from tvmflow.spec import MissingDependencyError, UserError, VerificationError
from tvmflow.system.text import to_json
from tvmflow.system.toolchain import select_linker, tvm_target_dict
from tvmflow.targets import TARGETS, kind
from tvmflow.targets.cortex_m import compile as compiling
from tvmflow.targets.cortex_m import machine
from tvmflow.targets.cortex_m.backend import network_name
from tvmflow.targets.cortex_m.boards import EMULATOR
from tvmflow.targets.cortex_m.compile import compile_object

pytestmark = pytest.mark.packages

BOARDS = [name for name, board in TARGETS.items() if board.kind == "cortex_m"]
EMULATED = ["mps2-an386", "mps2-an500", "mps3-an547"]
M7 = TARGETS["mps2-an500"]

SHAPES: dict[str, tuple[tuple[Shape, ...], tuple[int, ...]]] = {
    # thirteen columns fill neither a vector nor four pixels; 20 and 37 channels neither a lane nor a pair
    "joint-modules": (JOINT_MODULES, (1, 3, 13, 11)),
    "variety": (VARIETY, (1, 3, 13, 11)),
    # narrower than a vector; a chain of three depthwise layers; a pointwise one of a single output channel
    "narrow": (
        (depthwise(), depthwise(relu=True), depthwise(stride=2, dilation=2), conv(1), conv(3, relu=False)),
        (1, 5, 6, 3),
    ),
    # strides across vectors, and more input channels than one step of either core takes
    "wide": ((conv(40), depthwise(stride=2), conv(33), POOL, dense(3)), (1, 67, 9, 17)),
    "alone": ((conv(5, relu=False),), (1, 17, 2, 2)),
    "depthwise-alone": ((depthwise(size=5, dilation=2),), (1, 2, 9, 9)),
}


@pytest.fixture(scope="session")
def qemu():
    needs_commands(machine.QEMU)


def network(shapes: str, scheme: str = "per-channel"):
    return random_network(np.random.default_rng(7), scheme, shapes=SHAPES[shapes][0], input_shape=SHAPES[shapes][1])


def compiled(program, board):
    import tvm

    with tvm.target.Target(tvm_target_dict(board)):
        return run_stages(program, board)


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("board", EMULATED)
@pytest.mark.parametrize(
    ("shapes", "scheme"), [*((name, "per-channel") for name in SHAPES), ("variety", "power-of-two")]
)
def test_kernels_are_exact(tmp_path, board, shapes, scheme):
    given = network(shapes, scheme)
    program = compiled(integer_program(given), TARGETS[board])
    library = compile_object(program, TARGETS[board], tmp_path, select_linker(TARGETS[board]))
    inputs = random_input(np.random.default_rng(1), given.input_shape, 3)
    inputs[0], inputs[1] = -128, 127
    expected = given.run(inputs)
    vectors, wanted = ([(row[None],) for row in arrays] for arrays in (inputs, expected))
    done = machine.run(library, TARGETS[board], c_name(given.name), vectors, program.outputs, expected=wanted)
    assert np.array_equal(np.concatenate([output for (output,) in done.outputs]), expected)
    assert done.wrong == 0, "the comparison on the device"


@pytest.mark.usefixtures("qemu")
def test_differences_are_found_on_the_device(bundle):
    with open_bundle(bundle) as opened:
        vectors = opened.vectors()
        inputs = [vector.inputs for vector in vectors]
        wrong = [(vector.outputs[0] ^ (number in (1, 4)),) for number, vector in enumerate(vectors)]
        done = machine.run(opened.library, M7, "random", inputs, opened.outputs, expected=wrong)
    assert done.wrong == 2


@pytest.fixture(scope="module")
def papers_network():
    from tvmflow.models import quantized

    return integer_program(quantized("dilated-net"))


@pytest.mark.parametrize("board", EMULATED)
def test_memory_of_the_papers_network(papers_network, board):
    """The arena is at most 1.25 times the two largest tensors that live together; depthwise pairs are in place."""
    program = compiled(papers_network, TARGETS[board])
    layers = papers_network.integer.layers
    pair = max(int(np.prod(layer.input_shape) + np.prod(layer.output_shape)) for layer in layers)
    assert program.memory["activations_bytes"] <= 1.25 * pair
    assert max(layer.live_bytes for layer in program.layers) <= program.memory["activations_bytes"]
    assert program.memory["weights_bytes"] + (64 << 10) <= 3_400_000
    assert [layer.schedule for layer in program.layers] == [*["depthwise", "pointwise"] * 9, "direct", "pointwise"]
    assert sum(layer.macs for layer in program.layers) == 84_058_112


def test_arena_packs_by_lifetime():
    tensors = [
        Tensor(name=name, bytes=size, first=first, last=last)
        for name, size, first, last in [("a", 100, 0, 1), ("b", 40, 1, 2), ("c", 90, 2, 3), ("d", 16, 0, 3)]
    ]
    offsets, size = arena.pack(tensors)
    for one in tensors:
        for other in tensors:
            if one is not other and one.meets(other):
                apart = offsets[one.name] + one.bytes <= offsets[other.name]
                assert apart or offsets[other.name] + other.bytes <= offsets[one.name]
    assert arena.least(tensors) <= size <= arena.least(tensors) + len(tensors) * arena.ALIGNMENT
    assert arena.pack([]) == ({}, 0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Joint modules for the Cortex-M7, with the source."""
    out = tmp_path_factory.mktemp("cortex-m") / "bundle"
    build(integer_program(network("joint-modules")), M7, out, source=True)
    return out


@pytest.fixture(scope="module")
def float32_bundle(chain, tmp_path_factory):
    out = tmp_path_factory.mktemp("cortex-m") / "float32"
    build(chain, in_float32("mps2-an500"), out, source=True, verify=False)
    return out


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("source", ["OFF", "ON"])
@pytest.mark.parametrize("made", ["bundle", "float32_bundle"])
def test_example_is_built_and_runs(made, request, tmp_path, source):
    """By CMake and the bare-metal compiler, with the library and with the portable source."""
    needs_commands("cmake", "arm-none-eabi-gcc")
    bundle = request.getfixturevalue(made)
    commands = [
        ["cmake", "-S", bundle / "example", "-B", tmp_path, f"-DFROM_SOURCE={source}", "-DCMAKE_C_FLAGS=-Werror"],
        ["cmake", "--build", tmp_path],
        ["ctest", "--test-dir", tmp_path, "--verbose"],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    with open_bundle(bundle) as opened:
        vectors = len(opened.vectors())
    assert f"{vectors} of {vectors} golden vectors agree" in done.stdout


@pytest.mark.usefixtures("qemu")
def test_bundle_reads_as_it_was_written(bundle):
    with open_bundle(bundle) as opened:
        assert opened.target == M7
        assert network_name(opened.library) == "random"
        assert opened.manifest["verify"]["method"] == "emulated"
        assert opened.manifest["verify"]["passed"] is True
        assert not (opened.root / "run.py").exists()
        assert all(layer.details["instructions"] > 0 for layer in opened.layers)
        memory = opened.manifest["memory"]
        assert memory["flash_bytes"] == memory["weights_bytes"] + memory["code_bytes"]
        assert memory["ram_bytes"] == memory["activations_bytes"] + memory["stack_bytes"]
        assert 0 < memory["stack_used_bytes"] < memory["stack_bytes"]


def test_the_same_build_gives_the_same_bytes(bundle, tmp_path):
    again = build(integer_program(network("joint-modules")), M7, tmp_path / "again", source=True)
    with open_bundle(bundle) as opened:
        assert opened.manifest["members"] == again.manifest["members"]


@pytest.mark.usefixtures("qemu")
def test_report_has_instructions_and_no_latency(bundle):
    report = survey(bundle)
    assert report["latency"] is None
    assert "instructions" in report["latency_note"]
    assert {layer["details"]["instructions_basis"] for layer in report["layers"]} == {"emulated"}
    assert "instructions (emulated)" in report_text(report)
    document = collect([report])
    jsonschema.validate(json.loads(to_json(document)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    assert M7.name in render_html(document)


@pytest.mark.usefixtures("qemu")
def test_modelled_cycles_are_of_the_counted_instructions(bundle):
    """Two plugins, one that counts by function and one that keeps every block, agree on each layer."""
    needs_commands(*cycles.tools(EMULATOR))
    with open_bundle(bundle) as opened:
        counted = [layer.details["instructions"] for layer in opened.layers]
        found = cycles.profile(opened, *kind.tracing(opened.target))
    assert [layer["instructions"] for layer in found.layers] == counted
    assert all(0 < layer["modelled_cycles"] <= 10 * layer["instructions"] for layer in found.layers)
    assert found.facts["core"] == "cortex-m7"


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ({"flash_bytes": 20_000}, r"fit the flash of mps2-an500: it needs 6 KiB for weights and about 32 KiB for code"),
        ({"ram_bytes": 4_000}, r"fit the RAM of mps2-an500: it needs \d KiB for the arena of activations and 2 KiB"),
    ],
)
def test_too_big_is_said_before_compiling(tmp_path, monkeypatch, memory, words):
    monkeypatch.setattr(compiling, "compile_object", None)
    board = replace(M7, facts=replace(M7.facts, **memory))
    with pytest.raises(UserError, match=words):
        build(integer_program(network("joint-modules")), board, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("qemu")
def test_wrong_answers_are_never_written(tmp_path):
    program = integer_program(network("alone"))
    vectors = [replace(vector, outputs=(vector.outputs[0] ^ 1,)) for vector in program.vectors]
    with pytest.raises(VerificationError, match="computes something else"):
        build(replace(program, vectors=tuple(vectors)), M7, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_emulator_nothing_is_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "QEMU", "qemu-system-nothing")
    with pytest.raises(MissingDependencyError, match=r"apt-get install .*qemu-system-arm"):
        machine.find_qemu()
    built = build(integer_program(network("alone")), M7, tmp_path / "out")
    assert built.manifest["verify"]["passed"] is None


def in_float32(board):
    return replace(TARGETS[board], arithmetic="float32")


@pytest.fixture(scope="module")
def chain():
    return import_model("networks:chain", [parse_input_shape("1x3x13x11")])


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("board", EMULATED)
def test_float32_networks(chain, tiny, tmp_path, board):
    for program in (tiny, chain):
        built = build(program, in_float32(board), tmp_path / program.name)
        assert built.manifest["verify"]["method"] == "emulated"
        assert built.manifest["verify"]["max_rel_error"] < 3e-6
        assert sum(layer.macs for layer in built.layers) == sum(map(multiply_adds, calls_of(program)))
    assert [layer.schedule for layer in built.layers] == [
        *("convolution_float", "depthwise", "convolution_float", "depthwise", "direct", "convolution_float"),
        *["direct" if board == "mps3-an547" else "convolution_float"] * 2,  # single pixels fill no vector
    ]


def calls_of(program):
    return [binding.value for block in program.module["main"].body.blocks for binding in block.bindings]


@pytest.mark.usefixtures("qemu")
def test_float32_has_branches(tmp_path):
    program = import_model("networks:residual", [parse_input_shape("1x3x8x8")])
    built = build(program, in_float32("mps2-an500"), tmp_path / "out")
    assert built.manifest["verify"]["passed"] is True
    assert sum(layer.macs for layer in built.layers) == sum(map(multiply_adds, calls_of(program)))


@pytest.mark.usefixtures("qemu")
def test_float32_wrong_answers_are_never_written(chain, tmp_path):
    vectors = [replace(vector, outputs=(vector.outputs[0] + np.float32(1e-3),)) for vector in chain.vectors]
    with pytest.raises(VerificationError, match="computes something else"):
        build(replace(chain, vectors=tuple(vectors)), in_float32("mps2-an500"), tmp_path / "out")


def test_arithmetic_of_network_and_board_must_agree(tiny, tmp_path):
    with pytest.raises(UserError, match="isn't int8"):
        build(tiny, M7, tmp_path / "out")


@pytest.mark.parametrize("board", BOARDS)
def test_boards_say_what_they_are(board):
    target = TARGETS[board]
    assert target.facts.machine in machine.MACHINES
    assert target.facts.core in CORES


@pytest.mark.usefixtures("qemu")
def test_command_line(tvmflow, tmp_path):
    save(network("alone"), tmp_path / "alone.safetensors")
    model = ("--model", tmp_path / "alone.safetensors")
    tvmflow("build", "--source", "-o", tmp_path / "out").failed_with(4, "--source")
    done = tvmflow("build", "--target", "cortex_m", "--source", *model, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "passed (emulated, 9 vectors)" in done.out
    assert (tmp_path / "out" / "source").is_dir()
    assert tvmflow("verify", tmp_path / "out").code == 0
