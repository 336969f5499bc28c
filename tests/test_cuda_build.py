"""Networks for NVIDIA GPUs on a computer without one: real machine code, right answers, and what kernels take."""

from __future__ import annotations

import ctypes
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from boards import running
from conftest import ROOT

from tvmflow import targets
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.measure.local import profile_library, time_library
from tvmflow.network.agreement import compare
from tvmflow.remote import rpc
from tvmflow.report import collect
from tvmflow.report.render import render_html, report_text
from tvmflow.report.survey import survey
from tvmflow.spec import MissingDependencyError, UserError, VerificationError
from tvmflow.system.text import to_json
from tvmflow.targets import TARGETS
from tvmflow.targets.cuda import backend, cubin, standin
from tvmflow.targets.cuda.nvrtc import CompileError, compile_cuda, kernel_names
from tvmflow.targets.cuda.occupancy import occupancy
from tvmflow.targets.kind import verify_library

GPUS = [name for name, board in TARGETS.items() if board.kind == "cuda"]
COPY = 'extern "C" __global__ void __launch_bounds__(64) copy_kernel(float* a, float* b) { b[threadIdx.x] = a[0]; }\n'


@pytest.mark.parametrize("name", GPUS)
def test_machine_code_for_every_board(name):
    architecture = TARGETS[name].facts.architecture
    code = compile_cuda(COPY, [architecture])
    assert [found for found, _ in cubin.cubins(code.image)] == [architecture]
    assert list(code.resources[architecture]) == ["copy_kernel"]


def test_one_image_for_several_architectures():
    image = compile_cuda(
        "#include <cuda_fp16.h>\n" + COPY.replace("float", "__half"), ["sm_53", "sm_90", "compute_90"]
    ).image
    assert image[:4] == b"\x50\xed\x55\xba", "NVIDIA's mark of fat binaries"
    assert [found for found, _ in cubin.cubins(image)] == ["sm_53", "sm_90"]
    assert compile_cuda(COPY, ["compute_90"]).image.lstrip().startswith(b"//")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("b[0] = nonsense;", r'copy_kernel doesn\'t compile for sm_87: identifier "nonsense" is undefined \(line 1\)'),
        (
            "__shared__ float s[20000]; s[threadIdx.x] = a[0]; __syncthreads(); b[0] = s[(int)a[1]];",
            "too much shared data",
        ),
    ],
)
def test_what_does_not_compile(body, words):
    with pytest.raises(CompileError, match=words):
        compile_cuda(COPY.replace("b[threadIdx.x] = a[0];", body), ["sm_87"])


def test_occupancy():
    orin, pascal = (TARGETS[name].facts for name in ("jetson-agx-orin", "gtx-1080ti"))
    full = occupancy(pascal, threads=256, registers=32, shared_bytes=0)
    assert (full.blocks_per_sm, full.fraction) == (8, 1.0)
    held = occupancy(pascal, threads=256, registers=33, shared_bytes=0)  # 40 registers, in pieces: 48 warps
    assert (held.blocks_per_sm, held.fraction, held.limit) == (6, 0.75, "registers")
    shared = occupancy(orin, threads=128, registers=16, shared_bytes=40 << 10)  # and 1 KiB for the block itself
    assert (shared.blocks_per_sm, shared.limit) == (4, "shared memory")


@pytest.fixture(scope="module")
def jetson(tiny, tmp_path_factory) -> Path:
    """`tiny` for a Jetson, with code for an H100 and PTX besides."""
    out = tmp_path_factory.mktemp("jetson") / "tiny"
    board = targets.compile_also(TARGETS["jetson-orin-nano"], ["sm_90", "compute_90"])
    build(tiny, board, out)
    return out


@pytest.fixture(scope="module")
def pascal(tiny, tmp_path_factory) -> tuple[Path, str]:
    """`tiny` for the paper's own card with TVM's own schedules, and what the build had to say."""
    board = replace(TARGETS["gtx-1080ti"], schedules=())
    out = tmp_path_factory.mktemp("pascal") / "tiny"
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("tvmflow.bundles.build").addHandler(handler)
    build(tiny, board, out)
    logging.getLogger("tvmflow.bundles.build").removeHandler(handler)
    return out, "\n".join(said)


def test_bundle_of_a_jetson(jetson):
    with open_bundle(jetson) as bundle:
        assert bundle.target.facts.also == ("sm_90", "compute_90")
        assert bundle.manifest["verify"]["passed"] is True
        assert bundle.manifest["verify"]["method"] == "stand-in"
        assert cubin.architectures(bundle.library) == ("sm_87", "sm_90")
        named = {row["name"] for layer in bundle.layers for row in layer.details["kernels"]}
        for architecture in ("sm_87", "sm_90"):
            assert set(cubin.kernels(bundle.library, architecture)) == named
        assert set(kernel_names((bundle.root / backend.SOURCE).read_text())) == named
        assert b"__global__" not in bundle.library.read_bytes(), "source would be compiled on the board, or nowhere"
    assert "tvm.cuda()" in (jetson / "run.py").read_text()
    assert "JetPack" in (jetson / "README.md").read_text()


def test_bundle_of_a_card(pascal):
    out, said = pascal
    assert "no longer knows Pascal" in said
    with open_bundle(out) as bundle:
        assert cubin.architectures(bundle.library) == ("sm_61",)
        assert not (bundle.root / backend.CHECK).exists()
        with pytest.raises(UserError, match=r"model\.so has GPU code for sm_61; t4 needs sm_75"):
            verify_library(bundle.library, TARGETS["t4"], bundle.vectors(), bundle.outputs)


def test_float16(tiny, tmp_path):
    """Kernels, weights and what lies between are narrow, and right within float16's own tolerance."""
    built = build(tiny, targets.compute_in(TARGETS["jetson-xavier-nx"], "float16"), tmp_path / "tiny")
    verdict = built.manifest["verify"]
    assert (verdict["passed"], verdict["method"]) == (True, "stand-in")
    assert verdict["max_rel_error"] > 1e-5
    assert built.manifest["memory"]["weights_bytes"] < 0.6 * 4 * tiny.parameters
    assert "half4" in (built.root / "kernels.cu").read_text()


def test_report_has_what_kernels_take(jetson):
    report = survey(jetson, must_run=False)
    assert report["latency"] is None
    assert "not speed" in report["latency_note"]
    assert all(row["registers"] > 0 for layer in report["layers"] for row in layer["details"]["kernels"])
    assert "registers" in report_text(report)
    document = collect([report])
    jsonschema.validate(json.loads(to_json(document)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    assert "Occupancy" in render_html(document)


@pytest.mark.parametrize(
    ("original", "mutant"),
    [("__syncthreads();", ";"), ("threadIdx.x) < 60", "threadIdx.x) < 59")],
    ids=["no barrier", "bound off by one"],
)
def test_mutations_are_caught(pascal, tmp_path, original, mutant):
    shutil.copytree(pascal[0], tmp_path / "copy")
    source = tmp_path / "copy" / backend.SOURCE
    assert original in source.read_text()
    source.write_text(source.read_text().replace(original, mutant))
    with open_bundle(pascal[0]) as bundle:
        try:
            verdict = verify_library(tmp_path / "copy" / "model.so", bundle.target, bundle.vectors(), bundle.outputs)
        except VerificationError:
            return
    assert verdict["passed"] is False


def test_no_stray_access_in_a_network(pascal):
    """AddressSanitizer watches all of its kernels."""
    try:
        kernels = standin.compile_kernels((pascal[0] / backend.SOURCE).read_text(), sanitized=True)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with open_bundle(pascal[0]) as bundle:
        vector = bundle.vectors()[0]
        how = {"architecture": "sm_61", "kernels": kernels, "sanitized": True}
        (result,) = standin.call(backend.run_vectors, bundle.library, [vector.inputs], **how)
        assert compare([vector], [result])["passed"]


def _counted(out: Path) -> tuple[list[np.ndarray], list[list[int]]]:
    """By `standin.call`: outputs of three runs, and how often each had something launched and a kernel run."""
    import tvm
    from tvm import relax

    state = (ctypes.c_ulong * 2).in_dll(ctypes.CDLL("libcuda.so.1"), "tvmflow_standin_state")
    with open_bundle(out) as bundle:
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(bundle.library)), tvm.cuda(0))
        outputs, counts = [], []
        for vector in bundle.vectors()[:3]:
            before = list(state)
            outputs.append(
                machine["main"](*[tvm.runtime.tensor(array, tvm.cuda(0)) for array in vector.inputs]).numpy()
            )
            counts.append([now - then for now, then in zip(state, before, strict=True)])
    return outputs, counts


def test_cuda_graph(tiny, pascal, tmp_path):
    """The same numbers of three inputs; from the second run on, what lies between the first and last is one launch."""
    board = targets.capture_graph(replace(TARGETS["gtx-1080ti"], schedules=()))
    built = build(tiny, board, tmp_path / "tiny", verify=False)
    kernels = standin.compile_kernels((built.root / backend.SOURCE).read_text())
    how = {"architecture": "sm_61", "kernels": kernels}
    wanted, alone = standin.call(_counted, pascal[0], **how)
    found, captured = standin.call(_counted, built.root, **how)
    assert np.array_equal(wanted, found)
    assert alone == [[5, 5]] * 3
    assert captured[1:] == [[3, 5]] * 2
    timing = backend.time(built, threads=None, repeats=None, seconds=1, whole=False, layers=True)
    assert timing.measurement is None
    with pytest.raises(UserError, match="host has none"):
        targets.capture_graph(TARGETS["host"])


def _time(out: Path) -> tuple[int, int]:
    """What a real GPU goes through; the times themselves mean nothing here."""
    with open_bundle(out) as bundle:
        assert "stand-in" in str(backend.missing_device(bundle.target))
        inputs = bundle.vectors()[0].inputs
        measured = time_library(bundle.library, inputs, repeats=3, seconds=0.1, device="cuda")
        return len(measured.samples_ms), len(
            profile_library(bundle.library, inputs, bundle.layers, repeats=1, device="cuda")
        )


def test_timing_path(pascal):
    kernels = standin.compile_kernels((pascal[0] / backend.SOURCE).read_text())
    assert standin.call(_time, pascal[0], architecture="sm_61", kernels=kernels) == (3, 5)


def test_over_rpc(pascal, token_file, tmp_path, monkeypatch):
    """The way to a Jetson, rehearsed: the board loads machine code only; no time of the stand-in is told."""
    kernels = standin.compile_kernels((pascal[0] / backend.SOURCE).read_text())
    for name, value in standin.environment("sm_61", kernels).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "serve").mkdir()
    with running(tmp_path / "serve") as server:
        address = f"127.0.0.1:{server.port}"
        report = rpc.deploy(pascal[0], address=address, token_file=token_file, threads=1, seconds=0.1)
    assert report["verify"]["passed"] is True
    assert report["latency"] is None
    assert "is emulated (the stand-in for CUDA)" in report["latency_note"]


def test_without_a_driver(pascal, monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_library)
    with open_bundle(pascal[0]) as bundle:
        timing = backend.time(bundle, threads=None, repeats=None, seconds=1, whole=True, layers=True)
    assert timing.measurement is None
    assert timing.note.startswith("there is no libcuda.so.1, so NVIDIA's driver is not installed")


def test_refusals(tiny, tmp_path):
    board = TARGETS["jetson-nano"]
    with pytest.raises(UserError, match="programs for CPUs only"):
        backend.check(board, runner=True)
    with pytest.raises(UserError, match="doesn't know sm_31; it compiles for 50, 52"):
        backend.check(targets.compile_also(board, ["sm_31"]))
    with pytest.raises(UserError, match="no architecture of a GPU"):
        targets.compile_also(board, ["pascal"])
    with pytest.raises(UserError, match="of gtx-1080ti has no float16 arithmetic"):
        targets.compute_in(TARGETS["gtx-1080ti"], "float16")
    with pytest.raises(UserError, match="host has none"):
        targets.compile_also(TARGETS["host"], ["sm_90"])
