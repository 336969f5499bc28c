"""The command line as a person meets it: results, one-sentence errors, exit codes, nothing half-written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

COMMANDS = [
    "boards",
    "build",
    "run",
    "verify",
    "compare",
    "bench",
    "profile",
    "deploy",
    "serve",
    "report",
    "report diff",
    "estimate",
    "train",
    "quantize",
    "export",
    "evaluate",
    "doctor",
    "tune",
    "db",
]
HERE = str(Path(__file__).parent)
TINY = ("--model", "networks:tiny", "--input-shape", "1x3x9x7")
HEAVY = ("--model", "networks:heavy", "--input-shape", "1x1200")


def test_help_names_every_command(tvmflow):
    done = tvmflow("--help")
    assert done.code == 0
    assert all(command in done.out for command in COMMANDS)
    assert "Exit codes" in done.out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["boards"], *([*name.split(), "--help"] for name in COMMANDS)]
)
def test_help_needs_neither_tvm_nor_torch(arguments):
    """Both are replaced by modules that can't be imported; onnx too, which takes its time."""
    program = (
        "import sys\nfor name in ('tvm', 'torch', 'tvm_ffi', 'onnx'): sys.modules[name] = None\n"
        f"sys.argv = ['tvmflow', *{arguments!r}]\nfrom tvmflow.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_boards(tvmflow):
    done = tvmflow("boards", "--json", "-")
    assert done.code == 0
    assert {
        "host",
        "raspberry-pi-3b",
        "raspberry-pi-3b-32bit",
        "raspberry-pi-4b",
        "raspberry-pi-5",
        "android-arm64",
    } <= set(done.json)


def test_doctor(tvmflow):
    done = tvmflow("doctor", "--json", "-")
    assert done.code == 0, done.out
    assert all(finding["remedy"] for finding in done.json if finding["status"] != "ok")


@pytest.fixture(scope="module")
def built(tvmflow, tmp_path_factory) -> Path:
    """The paper's network for this computer, built by the command line."""
    out = tmp_path_factory.mktemp("cli") / "net.tar"
    done = tvmflow("build", "--target", "llvm", "-o", out)
    assert done.code == 0, done.err
    assert "passed (native, 8 vectors)" in done.out
    return out


def test_verify(tvmflow, built):
    done = tvmflow("verify", built, "--json", "-")
    assert done.code == 0
    assert done.json["passed"] is True
    assert done.json["argmax_agreement"] == 1
    assert len(done.json["vectors"]) == 8


def test_bench(tvmflow, built, tmp_path):
    done = tvmflow("bench", built, "--threads", "1", "--repeats", "20", "--json", tmp_path / "report.json")
    assert done.code == 0, done.err
    assert "(measured, 1 thread, 20 runs)" in done.out
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    latency = report["latency"]
    assert (latency["basis"], latency["unit"], latency["threads"], latency["repeats"]) == ("measured", "ms", 1, 20)
    assert latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]


def test_profile(tvmflow, built):
    done = tvmflow("profile", built, "--repeats", "3", "--json", "-")
    assert done.code == 0, done.err
    assert done.json["latency"] is None
    names = [layer["modules"][0] for layer in done.json["layers"]]
    assert [name for name in names if name.endswith("pointwise")] == [f"joint.{index}.pointwise" for index in range(9)]
    assert all(layer["latency"]["p50"] > 0 for layer in done.json["layers"])


def test_run_on_an_image_and_on_a_tensor(tvmflow, built, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    scaled = (pixels / np.float32(255) - np.float32([0.4914, 0.4822, 0.4465])) / np.float32([0.2470, 0.2435, 0.2616])
    np.save(tmp_path / "tensor.npy", scaled.transpose(2, 0, 1)[None].astype("float32"))
    image = tvmflow("run", built, "--input", tmp_path / "image.png", "--json", "-")
    tensor = tvmflow("run", built, "--input", tmp_path / "tensor.npy", "--json", "-")
    assert image.code == tensor.code == 0, image.err + tensor.err
    np.testing.assert_allclose(image.json["outputs"]["output"], tensor.json["outputs"]["output"], atol=1e-5)
    top = image.json["classes"][0]
    assert sum(row["probability"] for row in top) <= 1 + 1e-9
    assert top == sorted(top, key=lambda row: -row["probability"])


def test_report(tvmflow, built, tmp_path):
    done = tvmflow("report", built, "-o", tmp_path, "--seconds", "0.2")
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "report.json").read_text())
    assert [report["target"]["name"] for report in document["reports"]] == ["host"]
    assert "dilated-net" in (tmp_path / "report.html").read_text()


def leaves(prefix: str, group) -> list[tuple[str, object]]:
    found = []
    for name, command in group.commands.items():
        found += leaves(f"{prefix}{name} ", command) if hasattr(command, "commands") else [(f"{prefix}{name}", command)]
    return found


def every_command() -> dict[str, object]:
    import typer

    from tvmflow import cli

    return dict(leaves("", typer.main.get_command(cli._app())))


@pytest.mark.parametrize("name", list(every_command()))
def test_every_help_has_examples_that_can_be_given(name):
    commands = every_command()
    lines = [line.strip() for line in commands[name].epilog.splitlines() if line.startswith("  ")]
    assert lines
    for line in lines:
        words = shlex.split(line)[1:]
        count = len(name.split())
        assert words[:count] == name.split()
        commands[name].make_context(name, words[count:])


def test_every_command_that_ends_writes_json():
    lacking = [
        name
        for name, command in every_command().items()
        if "--json" not in [option for parameter in command.params for option in parameter.opts]
    ]
    assert lacking == ["serve"]


def test_quiet_is_taken_anywhere_and_leaves_results(tvmflow, built):
    loud, quiet = tvmflow("bench", built, "--repeats", "3"), tvmflow("bench", "-q", built, "--repeats", "3")
    assert "Timing" in loud.err
    assert quiet.err == ""
    assert "(measured" in quiet.out
    assert tvmflow("bench", built, "--repeats", "3", "--quiet").err == ""


def test_a_report_makes_its_folder_if_that_is_said(tvmflow, host_bundle, tmp_path):
    options = ("--seconds", "0.1", "--json", tmp_path / "all.json")
    done = tvmflow("report", host_bundle, "-o", f"{tmp_path}/new/one/", *options)
    assert done.code == 0, done.err
    assert (tmp_path / "new" / "one" / "report.html").is_file()
    written = json.loads((tmp_path / "new" / "one" / "report.json").read_text())
    assert json.loads((tmp_path / "all.json").read_text()) == written
    (tmp_path / "file").write_text("")
    tvmflow("report", host_bundle, "-o", f"{tmp_path}/file/").failed_with(4, "is no folder")


def test_doctor_fits_a_terminal(tvmflow):
    done = tvmflow("doctor")
    findings, _, _ = done.out.partition("\n\n")
    assert max(map(len, findings.splitlines())) <= 80


def test_completion(tmp_path):
    from tvmflow.cli.options import boards_like, models_like, targets_like

    assert boards_like("raspberry-pi-4") == ["raspberry-pi-4b"]
    assert targets_like("arm") == ["arm_cpu"]
    assert models_like("resnet") == ["resnet-8"]
    for name in ("net.onnx", "net.txt"):
        (tmp_path / name).write_text("")
    assert models_like(f"{tmp_path}/ne") == [f"{tmp_path}/net.onnx"]


def test_a_network_of_the_user_runs_on_a_photo(tvmflow, tmp_path):
    Image.fromarray(np.full((20, 30, 3), 255, np.uint8)).save(tmp_path / "white.png")
    options = ("--input-range", "-1,1", "--labels", "a,b,c,d", "-o", tmp_path / "mine")
    done = tvmflow("build", *TINY, *options, cwd=Path(HERE))
    assert done.code == 0, done.err
    np.save(tmp_path / "ones.npy", np.ones((1, 3, 9, 7), np.float32))
    image, tensor = (
        tvmflow("run", tmp_path / "mine", "--input", tmp_path / name) for name in ("white.png", "ones.npy")
    )
    assert image.out == tensor.out
    assert {line.split()[-1] for line in image.out.splitlines()} == {"a", "b", "c", "d"}


def test_the_demo_network_is_said_to_be_one(tvmflow, tmp_path):
    done = tvmflow("build", "-o", tmp_path / "demo", "--no-verify")
    assert done.code == 0
    assert "No --model was given: this builds dilated-net" in done.err
    assert "No --model" not in tvmflow("build", "-o", tmp_path / "x", "--model", "resnet8").err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["build", "-o", "x", "--model", "dilated-nett"], "Did you mean dilated-net?"),
        (["quantize", "--data", "x", "--model", "resnet8"], "Did you mean resnet-8?"),
        (["estimate", "--model", "MobileNet"], "Did you mean mobilenet-v1?"),
        (["tune", "--model", "squeezenett"], "Did you mean squeezenet?"),
        (["build", "-o", "x", "--target", "cortex-m"], "Did you mean cortex_m?"),
        (["build", "-o", "x", "--target", "raspberry-pi-5"], "say --board raspberry-pi-5"),
    ],
)
def test_a_mistyped_name_is_answered_before_torch_is_imported(arguments, hint, tmp_path):
    program = (
        "import sys\nfor name in ('tvm', 'torch', 'tvm_ffi', 'onnx'): sys.modules[name] = None\n"
        f"sys.argv = ['tvmflow', *{arguments!r}]\nfrom tvmflow.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert hint in done.stderr


# --------------------------------------------------------------------------------------------------------- bad input


def test_usage(tvmflow):
    for arguments in (
        ["build"],
        ["nonsense"],
        ["build", "-o", "x", "--colour"],
        ["bench"],
        ["bench", "x", "--threads", "two"],
    ):
        assert tvmflow(*arguments).code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build", "-o", "{}/x", "--board", "raspberry-pi-9"], 4, "no board 'raspberry-pi-9'"),
        (["build", "-o", "{}/x", "--target", "gpu"], 4, "no target 'gpu'"),
        (["build", "-o", "{}/no/where"], 4, "no folder"),
        (["build", "-o", "{}/x", "--model", "nothing"], 4, "dilated-net"),
        (["build", "-o", "{}/x", "--input-shape", "1x3x8x8"], 4, "1×3×8×8"),
        (["build", "-o", "{}/x", "--input-shape", "big"], 4, "'big'"),
        (["build", "-o", "{}/x", "--model", "{}/noise.onnx"], 4, "no valid ONNX"),
        (["build", "-o", "{}/x", "--model", "{}/short.pt2"], 4, "short.pt2"),
        (["build", "-o", "{}/x", "--target", "arm_cpu", "--linker", "no-such-gcc"], 5, "no-such-gcc"),
        (["build", "-o", "{}/x", "--model", "networks:exotic", "--input-shape", "4x4"], 8, "digamma"),
        (["verify", "{}/noise.onnx"], 4, "no intact bundle"),
        (["bench", "{}"], 4, "no manifest.json"),
        (["report", "{}", "-o", "{}/missing"], 4, "no folder"),
        (["evaluate", "--data", "{}/missing"], 4, "nothing at"),
        (["train", "--data", "{}/noise.onnx", "--work-dir", "{}/run"], 4, "can't be read"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(tvmflow, tmp_path, arguments, code, words):
    noise = np.random.default_rng(0)
    (tmp_path / "noise.onnx").write_bytes(noise.bytes(2000))
    (tmp_path / "short.pt2").write_bytes(b"PK\3\4" + noise.bytes(200))
    before = sorted(tmp_path.iterdir())
    done = tvmflow(*(argument.replace("{}", str(tmp_path)) for argument in arguments), cwd=Path(HERE))
    done.failed_with(code, words)
    assert done.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_tampered_bundle(tvmflow, host_bundle, tmp_path):
    copy = shutil.copytree(host_bundle, tmp_path / "copy")
    with (copy / "model.so").open("ab") as file:
        file.write(b"\0")
    for command in ("verify", "bench", "profile"):
        tvmflow(command, copy).failed_with(4, "has been changed: model.so")


def test_run_with_a_wrong_input(tvmflow, host_bundle, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 9, 8), np.float32))
    np.save(tmp_path / "double.npy", np.zeros((1, 3, 9, 7)))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    for name, words in {
        "x.npy": "float32 1×3×9×8, but x is float32 1×3×9×7",
        "double.npy": "float64",
        "text.npy": "can't be read as a .npy file",
        "picture.png": "doesn't say how it sees an image",
        "missing.npy": "no input file",
    }.items():
        tvmflow("run", host_bundle, "--input", tmp_path / name).failed_with(4, words)


def test_missing_linker(tvmflow, tmp_path):
    """A PATH without compilers and a Python without ziglang."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'ziglang' else find(name, package)\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])
    done = tvmflow("build", "--target", "arm_cpu", "-o", tmp_path / "out", PATH=str(tmp_path / "bin"), PYTHONPATH=path)
    done.failed_with(5, "pip install ziglang")
    assert not (tmp_path / "out").exists()


def test_traceback_only_when_asked_for(tvmflow, tmp_path):
    arguments = ["build", "-o", tmp_path / "x", "--model", "nothing"]
    assert "Traceback" in tvmflow("-v", *arguments).err
    assert "Traceback" in tvmflow(*arguments, "-v").err


@pytest.mark.parametrize("moment", ["Importing", "Compiling"])
def test_interrupted(tmp_path, moment):
    with subprocess.Popen(
        [sys.executable, "-m", "tvmflow", "build", "-o", tmp_path / "out"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any(moment in line for line in process.stderr)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "tvmflow: interrupted" in errors.splitlines()  # TVM may have a warning after it
    assert list(tmp_path.iterdir()) == []


def test_interrupted_while_python_executes_a_string(tvmflow, tmp_path):
    """As every dataclass does on its definition; Python would die of the signal at its end."""
    arguments = ["--model", "networks:interrupted", "--input-shape", "1x4", "-o", tmp_path / "out"]
    tvmflow("build", *arguments, cwd=HERE).failed_with(130, "interrupted")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, which HEAVY doesn't fit on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("a small tmpfs can be mounted by root only")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_full_disk(tvmflow, small_disk, name):
    tvmflow("build", *HEAVY, "-o", small_disk / name, cwd=HERE).failed_with(4, "disk is full")
    assert list(small_disk.iterdir()) == []


def test_full_temporary_folder(tvmflow, small_disk, tmp_path):
    done = tvmflow("build", *HEAVY, "-o", tmp_path / "out", cwd=HERE, TMPDIR=str(small_disk))
    done.failed_with(4, "disk is full")
    assert not (tmp_path / "out").exists()
    assert list(small_disk.iterdir()) == []


def test_a_limit_is_lifted_anywhere_and_for_children(tvmflow, tmp_path):
    lifted = tvmflow("build", *TINY, "--limit", "tensor.elements=2", "-o", tmp_path / "a", cwd=HERE)
    lifted.failed_with(4, "a tensor has at most 2 (--limit tensor.elements=N takes more)")
    variable = {"TVMFLOW_LIMITS": "line.depth=9,tensor.elements=2"}
    by_variable = tvmflow("build", *TINY, "-o", tmp_path / "a", cwd=HERE, **variable)
    by_variable.failed_with(4, "a tensor has at most 2 ")
    assert tvmflow("boards", "--limit=inputs.elements=1K").code == 0
    for word in ("tensor", "tensor.elements", "tensor.elements=-1", "tensor.elements=1X", "none.bytes=1"):
        tvmflow("--limit", word, "boards").failed_with(2, f"'{word}' is no limit", "the names are network, ")
    tvmflow("boards", TVMFLOW_LIMITS="x=1").failed_with(2, "'x=1' is no limit")
