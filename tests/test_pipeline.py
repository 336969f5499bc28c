"""The stages: every kind has its list, and each stage does what its name says."""

from __future__ import annotations

import pytest
from compiling import compiled
from imported import registered

from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.passes.fold_batchnorm import fold_batchnorm
from tvmflow.passes.fuse_operators import fuse_operators, kernels
from tvmflow.pipeline import INTEGER_STAGES, STAGES, run_stages
from tvmflow.system import interrupt
from tvmflow.targets import DEFAULT_BOARD, TARGETS
from tvmflow.targets.kind import verify_library

HOST = TARGETS["host"]


def operators(program) -> list[str]:
    return [
        getattr(binding.value.op, "name", str(binding.value.op))
        for block in program.module["main"].body.blocks
        for binding in block.bindings
        if hasattr(binding.value, "op")
    ]


def test_every_kind_has_stages_and_a_default_board():
    kinds = {target.kind for target in TARGETS.values()}
    assert kinds == {*STAGES, *INTEGER_STAGES} == set(DEFAULT_BOARD)


def test_batchnorm_is_folded_away(tiny):
    assert "relax.nn.batch_norm" in operators(tiny)
    folded = operators(fold_batchnorm(tiny, HOST))
    assert "relax.nn.batch_norm" not in folded
    assert folded.count("relax.nn.conv2d") == 3


def test_bias_and_relu_are_fused_into_the_pointwise_kernel(tiny):
    program = fuse_operators(fold_batchnorm(tiny, HOST), HOST)
    pointwise = next(layer for layer in program.layers if layer.modules[0] == "joint.0.pointwise")
    assert "joint.0.relu" in pointwise.modules
    assert {layer.kernel for layer in program.layers} == set(kernels(program.module))


@pytest.mark.parametrize(("model", "macs"), [("dilated-net", 84_058_112), ("dilated-net-merged", 81_376_256)])
def test_multiply_adds_of_the_paper_networks(model, macs):
    program = fuse_operators(fold_batchnorm(registered(model), HOST), HOST)
    assert sum(layer.macs for layer in program.layers) == macs


def test_memory_is_planned(tiny):
    program = run_stages(tiny, HOST)
    # the classifier, the pointwise weights and bias, and both depthwise filters; batch normalisation is gone
    assert program.memory["weights_bytes"] == 4 * (5 * 4 + 4 + 3 * 5 + 5 + 3 * 9 * 2)
    assert 0 < program.memory["activations_bytes"] < 8 * 4 * 3 * 9 * 7
    live = [layer.live_bytes for layer in program.layers]
    assert live[:2] == [4 * 3 * 9 * 7, 4 * (3 * 9 * 7 + 3 * 5 * 4)], "what is read, and what is written"
    assert max(live) <= program.memory["activations_bytes"]


def test_stages_do_not_change_what_they_are_given(tiny):
    before = tiny.module.script()
    run_stages(tiny, HOST)
    assert tiny.module.script() == before


def test_ctrl_c_that_tvm_lost_ends_the_stages(tiny, monkeypatch):
    monkeypatch.setattr(interrupt, "noted", True)
    with pytest.raises(KeyboardInterrupt):
        run_stages(tiny, HOST)


def test_dump_dir_has_a_file_for_each_stage(tiny, tmp_path):
    run_stages(tiny, HOST, tmp_path / "dump")
    names = [f"{number:02}-{stage.__name__}.py" for number, stage in enumerate(STAGES["llvm"])]
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == names


@pytest.mark.parametrize(("name", "shape"), [("plain", "32x3x21x26"), ("two_pointwise", "8x6x5x4")])
def test_batches_are_right(name, shape, tmp_path):
    """Kernels with blocks and without, of more images than one."""
    program = import_model(f"networks:{name}", [parse_input_shape(shape)])
    library = compiled(program, HOST, tmp_path).library
    verdict = verify_library(library, HOST, program.vectors, program.outputs)
    assert verdict["passed"] is True, verdict
