"""A bundle's runner gives the golden outputs without Python, wherever the bundle lies, and says what it can't do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_emulator
from elftools.elf.elffile import ELFFile

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.measure import device
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.spec import MissingDependencyError, UserError, VerificationError
from tvmflow.targets import TARGETS

HOST, PI = TARGETS["host"], TARGETS["raspberry-pi-4b"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A network of two inputs and outputs for this computer, with a runner."""
    program = import_model("networks:two_in_two_out", [parse_input_shape("2x6"), parse_input_shape("2x5")])
    out = tmp_path_factory.mktemp("device") / "built"
    build(program, HOST, out, runner=True)
    return out


@pytest.fixture
def bundle(pristine, tmp_path) -> Path:
    """A copy somewhere else, which may be changed."""
    return Path(shutil.copytree(pristine, tmp_path / "moved here"))


def run(bundle: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [bundle / "runner" / "run", *arguments], capture_output=True, text=True, check=False, cwd="/", env={}
    )


def test_self_test(bundle):
    done = run(bundle, "--self-test")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["passed"] is True
    assert [row["name"] for row in verdict["vectors"]] == sorted(path.name for path in (bundle / "vectors").iterdir())


@pytest.mark.parametrize("wrong", [1e-3, np.nan, np.inf])
def test_self_test_finds_a_wrong_answer(bundle, wrong):
    path = bundle / "vectors" / "004-constant" / "output-1.npy"
    array = np.load(path)
    array[1, 2] += wrong
    np.save(path, array)
    done = run(bundle, "--self-test")
    assert done.returncode == 3
    failed = [row["name"] for row in json.loads(done.stdout)["vectors"] if not row["passed"]]
    assert failed == ["004-constant"]


def test_outputs(bundle):
    vector = bundle / "vectors" / "001-noise-1"
    done = run(bundle, vector / "input-0.npy", vector / "input-1.npy")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for index, values in enumerate(result["outputs"].values()):
        np.testing.assert_allclose(values, np.load(vector / f"output-{index}.npy").ravel(), atol=1e-5)
    assert result["latency"]["first"] > 0


def test_bench(bundle):
    figures = json.loads(run(bundle, "--bench", "0.2").stdout)
    assert (figures["basis"], figures["unit"]) == ("measured", "ms")
    assert 0 < figures["min"] <= figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]
    assert figures["repeats"] > 10
    assert figures["threads"] == os.cpu_count()


def test_bad_input(bundle, tmp_path):
    vector = bundle / "vectors" / "001-noise-1"
    good = vector / "input-0.npy"
    np.save(tmp_path / "double.npy", np.zeros((2, 5)))
    (tmp_path / "noise.npy").write_bytes(b"\x93NUMPY" + bytes(3))
    (tmp_path / "short.npy").write_bytes((vector / "input-1.npy").read_bytes()[:-4])
    for arguments, code, words in (
        ((), 2, "usage"),
        ((good,), 2, "one .npy file for each input"),
        ((good, tmp_path / "missing.npy"), 4, "can't be opened"),
        ((good, tmp_path / "noise.npy"), 4, "no .npy file"),
        ((good, tmp_path / "short.npy"), 4, "ends early"),
        ((good, tmp_path / "double.npy"), 4, "'<f8'"),
        (("--bench", "soon"), 2, "it takes seconds, not: soon"),
    ):
        done = run(bundle, *arguments)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert done.stdout == ""


def test_damaged_bundles(bundle):
    (bundle / "model.so").write_bytes(b"nothing")
    assert "the library can't be loaded" in run(bundle, "--self-test").stderr
    (bundle / "runner" / "network.txt").write_text("colour red\n")
    assert "doesn't know: colour red" in run(bundle, "--self-test").stderr
    (bundle / "runner" / "network.txt").unlink()
    done = run(bundle, "--self-test")
    assert "network.txt can't be opened" in done.stderr
    assert done.returncode == 1


def test_libraries_are_found_by_name(bundle):
    """A path of the computer that built them would not be there on the device."""
    for path in (bundle / "runner").iterdir():
        if path.suffix == ".so" or path.name == "run":
            with path.open("rb") as file:
                dynamic = ELFFile(file).get_section_by_name(".dynamic")
                assert not [tag.needed for tag in dynamic.iter_tags("DT_NEEDED") if "/" in tag.needed]
                assert {tag.runpath for tag in dynamic.iter_tags("DT_RUNPATH")} <= {"$ORIGIN"}


def test_example(bundle, tmp_path):
    """The worked example of docs/device.md, by its own command."""
    command = [
        *("cc", "runner/example.c", "-Irunner", "-Lrunner", "-ltvmflow", "-Wl,--allow-shlib-undefined"),
        *("-Wl,-rpath,$ORIGIN/runner", "-Wall", "-Werror", "-o", "example"),
    ]
    subprocess.run(command, check=True, cwd=bundle)
    done = subprocess.run(["./example", "."], capture_output=True, text=True, check=True, cwd=bundle)
    assert len(done.stdout.split()) == 6


def test_bundle_with_a_runner_is_checked_like_any_other(pristine, bundle):
    with open_bundle(pristine) as opened:
        assert opened.manifest["runner"] == "runner/run"
        assert {"runner/libtvmflow.so", "runner/libtvm_runtime.so", "runner/tvmflow.h"} <= set(
            opened.manifest["members"]
        )
    with (bundle / "runner" / "run").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="has been changed: runner/run"), open_bundle(bundle):
        pass


@pytest.mark.emulated
def test_an_archive_for_the_pi_unpacks_to_a_runner_that_runs_there(tiny, tmp_path):
    needs_emulator(PI)
    build(tiny, PI, tmp_path / "tiny.tar", runner=True)
    with tarfile.open(tmp_path / "tiny.tar") as archive:
        archive.extractall(tmp_path / "pi", filter="tar")
    assert (tmp_path / "pi" / "runner" / "run").stat().st_mode & 0o111
    verdict = device.self_test(tmp_path / "pi", PI)
    assert verdict is not None
    assert verdict["passed"] is True


@pytest.mark.parametrize("name", ["raspberry-pi-3b-32bit", "android-arm64"])
def test_boards_without_a_runtime(tiny, tmp_path, name):
    with pytest.raises(MissingDependencyError, match=f"No runner for {name}: TVM publishes no runtime"):
        build(tiny, TARGETS[name], tmp_path / "out", runner=True)
    assert list(tmp_path.iterdir()) == []


def test_a_runner_that_fails_its_test_stops_the_build(tiny, tmp_path, monkeypatch):
    describe = device.describe_network
    monkeypatch.setattr(
        device, "describe_network", lambda *arguments: describe(*arguments[:-1], [[-1.0]] * len(arguments[3]))
    )
    with pytest.raises(VerificationError, match="failed its self-test with exit code 3"):
        build(tiny, HOST, tmp_path / "out", runner=True)
    assert list(tmp_path.iterdir()) == []


def test_names_that_fit_no_line():
    from tvmflow.spec import TensorSpec

    spec = TensorSpec(name="two words", shape=(1,), dtype="float32")
    with pytest.raises(UserError, match="'two words'"):
        device.describe_network("model.so", [spec], [])
