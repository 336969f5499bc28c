"""float16 on boards that have it: right under emulation, with a tolerance of its own, and refused elsewhere."""

from __future__ import annotations

import pytest
from compiling import compiled
from conftest import needs_emulator
from imported import registered

from tvmflow import targets
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.network.agreement import TOLERANCE, tolerance
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.pipeline import run_stages
from tvmflow.report import assemble
from tvmflow.spec import UserError
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import Timing, verify_library

BOARD = targets.compute_in(TARGETS["raspberry-pi-5"], "float16")


def test_boards_that_have_it():
    narrow = {board.name for board in TARGETS.values() if "float16" in board.arithmetics}
    assert {name for name in narrow if TARGETS[name].kind != "cuda"} == {"raspberry-pi-5", "android-arm64"}
    gpus = {board.name for board in TARGETS.values() if board.kind == "cuda"}
    assert gpus - narrow == {"gtx-1080ti"}


def test_other_boards_refuse(tvmflow, tmp_path):
    done = tvmflow("build", "--board", "raspberry-pi-4b", "--dtype", "float16", "-o", tmp_path / "out")
    done.failed_with(4, "Cortex-A72", "float16", "raspberry-pi-5")
    done = tvmflow("build", "--board", "raspberry-pi-5", "--dtype", "float16", "--db", tmp_path, "-o", tmp_path / "out")
    done.failed_with(4, "--db", "float32")
    assert not (tmp_path / "out").exists()


def test_tolerance():
    assert tolerance("float32") == TOLERANCE["float32"]
    assert tolerance("float32", "float16") == TOLERANCE["float16"]
    assert tolerance("int32", "float16") == 0
    assert tolerance("float64", "float16") == TOLERANCE["float64"]


@pytest.mark.emulated
def test_bundle(tiny, tmp_path):
    needs_emulator(BOARD)
    bundle = build(tiny, BOARD, tmp_path / "out")
    wide = build(tiny, TARGETS["raspberry-pi-5"], tmp_path / "wide", verify=False)
    with open_bundle(tmp_path / "out") as opened:
        assert opened.target == bundle.target
        assert (opened.target.arithmetic, opened.target.arithmetics) == ("float16", BOARD.arithmetics)
        verdict = opened.manifest["verify"]
        assert verdict["passed"] is True
        assert verdict["tolerance"] == {"float32": TOLERANCE["float16"]}
        assert verdict["max_rel_error"] > TOLERANCE["float32"]  # it is another arithmetic, not another name for it
        assert assemble(opened, verdict, Timing())["target"]["arithmetic"] == "float16"
        assert {spec.dtype for spec in (*opened.inputs, *opened.outputs)} == {"float32"}
        assert opened.manifest["memory"]["weights_bytes"] < wide.manifest["memory"]["weights_bytes"]
        assert sum(layer.macs for layer in opened.layers) == sum(layer.macs for layer in wide.layers)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("name", "shapes"),
    [("residual", ["1x3x8x6"]), ("two_in_two_out", ["1x6", "1x5"]), ("constant", ["2"])],
)
def test_networks(name, shapes, tmp_path):
    needs_emulator(BOARD)
    program = import_model(f"networks:{name}", [parse_input_shape(shape) for shape in shapes])
    library = compiled(program, BOARD, tmp_path).library
    verdict = verify_library(library, BOARD, program.vectors, program.outputs)
    assert verdict["passed"] is True, verdict


def test_the_papers_network_is_narrow():
    """All but its logits and the three channels of its first depthwise layers, whose kernel writes vectors out."""
    program = run_stages(registered("dilated-net"), BOARD)
    script = program.module.script(show_meta=False)
    wide = [line for line in script.splitlines() if 'dtype="float32"' in line and "alloc_tensor" in line]
    assert all("(1, 10)" in line or "(1, 3, 32, 32)" in line for line in wide)
    assert program.memory["weights_bytes"] < 6.3e6  # 12.5 MB in float32


def test_weights_that_overflow_are_refused():
    with pytest.raises(UserError, match=r"weights up to 1e\+06; float16"):
        run_stages(import_model("networks:enormous", [parse_input_shape("1x4")]), BOARD)
