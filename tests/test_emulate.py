"""Running code for ARM boards under qemu-user: right results pass, wrong ones and crashes don't, gaps are named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiling import compiled
from conftest import needs_emulator

from tvmflow.measure import emulate
from tvmflow.spec import MissingDependencyError, TensorSpec, VerificationError
from tvmflow.system import toolchain
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import verify_library

BOARD, BOARD_32BIT = TARGETS["raspberry-pi-4b"], TARGETS["raspberry-pi-3b-32bit"]


def compile_for(program, board, folder: Path) -> Path:
    needs_emulator(board)
    return compiled(program, board, folder).library


@pytest.fixture(scope="module", params=[BOARD, BOARD_32BIT], ids=lambda board: board.name)
def board(request):
    """A board of each way to emulate: the whole runtime, and the kernels alone."""
    return request.param


@pytest.fixture(scope="module")
def library(board, tiny, tmp_path_factory) -> Path:
    """`tiny` compiled for `board`."""
    return compile_for(tiny, board, tmp_path_factory.mktemp("library"))


@pytest.mark.emulated
def test_several_inputs_and_outputs_keep_their_order(board, tmp_path):
    from tvmflow.network.frontend import import_model, parse_input_shape

    program = import_model("networks:two_in_two_out", [parse_input_shape("2x6"), parse_input_shape("2x5")])
    verdict = verify_library(compile_for(program, board, tmp_path), board, program.vectors, program.outputs)
    assert verdict["passed"] is True


@pytest.mark.emulated
def test_kernels_in_blocks_are_right(board, tmp_path):
    from tvmflow.network.frontend import import_model, parse_input_shape
    from tvmflow.pipeline import run_stages

    program = import_model("networks:plain", [parse_input_shape("1x3x21x26")])
    verdict = verify_library(compile_for(program, board, tmp_path), board, program.vectors, program.outputs)
    assert verdict["passed"] is True
    served = {layer.schedule for layer in run_stages(program, board).layers}
    assert served >= {"conv_blocked", "pointwise_blocked", "depthwise_blocked", "concat_blocked", "lanes"}


@pytest.mark.emulated
def test_loops_split_among_threads_and_workspaces_are_served(board, tmp_path):
    import tvm
    from tvm import relax, s_tir, te

    def fold(a):
        inner = te.compute(a.shape, lambda i, j: a[i, j] * 2 + i, name="inner")
        return te.compute(a.shape, lambda i, j: inner[i, j] - inner[i, 999 - j], name="outer")

    x = relax.Var("x", relax.TensorType((7, 1000), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit_te(fold, x))
        builder.emit_func_output(result)
    module = builder.get()
    schedule = s_tir.Schedule(module["fold"])
    for name in ("inner", "outer"):
        schedule.parallel(schedule.get_loops(schedule.get_sblock(name))[0])
    module["fold"] = schedule.mod["main"].with_attr("global_symbol", "fold")

    needs_emulator(board)
    target = tvm.target.Target(toolchain.tvm_target_dict(board))
    with target:
        executable = relax.build(module, target, relax_pipeline=relax.get_pipeline("default"))
    library = tmp_path / "model.so"
    fcompile = toolchain.fcompile(toolchain.select_linker(board), board.tvm["mtriple"])
    executable.export_library(str(library), fcompile=fcompile)

    given = np.random.default_rng(0).integers(0, 100, (7, 1000)).astype(np.float32)
    inner = given * 2 + np.arange(7, dtype=np.float32)[:, None]
    spec = TensorSpec(name="output", shape=(7, 1000), dtype="float32")
    ((output,),) = emulate.run_vectors(library, board, [(given,)], [spec])
    np.testing.assert_array_equal(output, inner - inner[:, ::-1])


@pytest.mark.emulated
def test_a_wrong_vector_fails(library, board, tiny):
    first, *others = tiny.vectors
    wrong = replace(first, outputs=(first.outputs[0] + np.float32(1e-3),))
    verdict = verify_library(library, board, [wrong, *others], tiny.outputs)
    assert verdict["passed"] is False
    assert [row["passed"] for row in verdict["vectors"]] == [False] + [True] * len(others)


@pytest.mark.emulated
@pytest.mark.parametrize("kept", [0, 64, 0.1])
def test_a_truncated_library_is_refused(kept, library, board, tiny, tmp_path):
    content = library.read_bytes()
    broken = tmp_path / "model.so"
    broken.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(VerificationError, match=rf"model\.so for {board.name} (can't be run|crashed)"):
        verify_library(broken, board, tiny.vectors, tiny.outputs)


@pytest.mark.emulated
def test_a_crash_is_named(library, board, tiny, tmp_path):
    from elftools.elf.elffile import ELFFile

    broken = tmp_path / "model.so"
    content = bytearray(library.read_bytes())
    with library.open("rb") as file:
        code = ELFFile(file).get_section_by_name(".text")
        content[code["sh_offset"] : code["sh_offset"] + code["sh_size"]] = b"\xff" * code["sh_size"]  # undefined
    broken.write_bytes(content)
    with pytest.raises(VerificationError, match="crashed with SIGILL"):
        emulate.run_vectors(broken, board, [vector.inputs for vector in tiny.vectors], tiny.outputs)


@pytest.mark.emulated
def test_inputs_of_another_shape_are_refused_in_one_sentence(library, board, tiny):
    with pytest.raises(VerificationError, match=r"can't be run under emulation: .*(shape|[Mm]ismatch)") as caught:
        emulate.run_vectors(library, board, [(np.zeros((1, 3, 4, 4), np.float32),)], tiny.outputs)
    assert "\n" not in str(caught.value)


@pytest.mark.emulated
def test_a_run_that_computes_nothing_is_stopped(library, board, tiny):
    with pytest.raises(VerificationError, match=r"computed nothing in 0\.001 s"):
        emulate.run_vectors(library, board, [tiny.vectors[0].inputs], tiny.outputs, stall_seconds=0.001)


def test_without_qemu_a_build_says_why_it_is_not_verified(tiny, monkeypatch, tmp_path):
    from tvmflow.bundles.build import build

    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if "qemu" in name else which(name, *rest))
    verdict = build(tiny, BOARD, tmp_path / "bundle").manifest["verify"]
    assert verdict["passed"] is None
    assert "qemu-aarch64-static" in verdict["reason"]
    assert verdict["packages"] == ["qemu-user-static", "libc6-arm64-cross", "libstdc++6-arm64-cross"]
    assert f"`apt-get install --no-install-recommends {' '.join(verdict['packages'])}`" in verdict["reason"]
    assert emulate.available(BOARD) == verdict["reason"]


def test_without_the_boards_c_library_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name, *rest: f"/usr/bin/{name}")
    monkeypatch.setattr(emulate, "cpu_model", lambda qemu, target: "max")  # would run it
    monkeypatch.setitem(emulate.EMULATORS, BOARD.elf, replace(emulate.AARCH64, root=tmp_path))
    with pytest.raises(MissingDependencyError, match=r"has no ld-linux-aarch64\.so\.1: `apt-get install .*libc6-arm64"):
        emulate.run_vectors(Path("model.so"), BOARD, [], ())


@pytest.mark.emulated
def test_offline_with_an_empty_cache_nothing_is_downloaded(monkeypatch, tmp_path, tiny):
    needs_emulator(BOARD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TVMFLOW_OFFLINE", "1")
    verdict = verify_library(Path("model.so"), BOARD, tiny.vectors, tiny.outputs)
    assert verdict["passed"] is None
    assert "TVMFLOW_OFFLINE forbids the download" in verdict["reason"]
    assert not any(tmp_path.iterdir())


def test_code_that_nothing_here_can_run_is_named():
    reason = emulate.available(replace(BOARD, name="my-board", elf=(64, "RISC-V")))
    assert reason is not None
    assert "no emulator for 64-bit RISC-V" in reason
