"""What lies in the folder that one stands in is never run: no module, no compiler, by no command."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Finished

from tvmflow.system import children

MODULES = ("numpy.py", "psutil.py", "tvm.py", "tvm_ffi.py", "json.py", "subprocess.py", "tvmflow/__init__.py")
MORE_MODULES = ("ziglang.py", "ziglang/__init__.py", "sitecustomize.py", "usercustomize.py", "pip.py", "sympy.py")
COMMANDS = ("cc", "gcc", "clang", "as", "ld", "zig", "qemu-aarch64-static", "ssh", "nvcc", "dpkg-query")
NETWORK = """
import helper
from torch import nn
def tiny():
    import psutil, sympy
    return nn.Sequential(nn.Conv2d(3, helper.CHANNELS, 3), nn.ReLU()).eval()
"""
FACTORY = ("--model", "my_network:tiny", "--input-shape", "1x3x9x7")
PACKAGES = ("tvmflow", "targets", "models", "schedules")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder whose modules and commands leave a line in the file `ran` beside it, and one with a network."""
    folder = tmp_path_factory.mktemp("hostile") / "here"
    ran = folder.parent / "ran"
    for name in (*MODULES, *MORE_MODULES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            f"with open({str(folder.parent / 'ran')!r}, 'a') as file:\n    print({name!r}, file=file)\n"
        )
    for name in COMMANDS:
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {ran}\nexit 1\n")
        (folder / name).chmod(0o755)
    (folder / "my_network.py").write_text(NETWORK)
    (folder / "helper.py").write_text("CHANNELS = 4\n")
    return folder


@pytest.fixture(scope="module")
def command(here) -> Callable[..., Finished]:
    """The command `tvmflow`, as pip installs it, run in that folder, which PATH calls by its short names."""
    script = here.parent / "tvmflow-command"
    script.write_text("from tvmflow.cli import main\nmain()\n")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(["", ".", os.environ["PATH"]]),
        "XDG_CACHE_HOME": str(here.parent / "cache"),
        "TVMFLOW_OFFLINE": "1",
    }

    def call(*arguments: str | Path) -> Finished:
        process = [sys.executable, script, *map(str, arguments)]
        done = subprocess.run(process, cwd=here, env=environment, capture_output=True, text=True, check=False)
        return Finished(code=done.returncode, out=done.stdout, err=done.stderr)

    return call


@pytest.fixture(scope="module")
def bundle(here, command) -> Path:
    """A factory's network, built there."""
    done = command("build", *FACTORY, "-o", here.parent / "bundle")
    assert done.code == 0, done.err
    return here.parent / "bundle"


def test_a_factory_of_the_current_folder_is_found_with_what_it_imports_and_nothing_else_is_run(bundle, here):
    assert (bundle / "manifest.json").exists()
    assert not (here.parent / "ran").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "BUNDLE"),
        ("run", "BUNDLE", "--input", "BUNDLE/vectors/VECTOR/input-0.npy"),
        ("bench", "BUNDLE", "--seconds", "0.1"),
        ("profile", "BUNDLE", "--repeats", "1"),
        ("report", "BUNDLE", "--seconds", "0.1", "-o", "OUT"),
        ("tune", *FACTORY, "--trials", "2"),
        ("build", *FACTORY, "--target", "arm_cpu", "--board", "raspberry-pi-4b", "-o", "OUT/arm"),
        ("doctor",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_runs_what_lies_in_the_current_folder(bundle, here, command, tmp_path, arguments):
    vector = sorted((bundle / "vectors").iterdir())[0].name
    words = {"BUNDLE": str(bundle), "VECTOR": vector, "OUT": str(tmp_path)}
    given = []
    for argument in arguments:
        for word, meant in words.items():
            argument = argument.replace(word, meant)
        given.append(argument)
    done = command(*given)
    ran = here.parent / "ran"
    assert not ran.exists(), ran.read_text()
    assert done.code == 0 or arguments[0] == "doctor", done.err


def test_a_module_beside_the_bundles_runner_is_not_imported(bundle, here, command):
    """Whatever `verify` says of a file that no manifest names, it doesn't run it."""
    (bundle / "numpy.py").write_text((here / "numpy.py").read_text())
    try:
        command("verify", bundle)
    finally:
        (bundle / "numpy.py").unlink()
    assert not (here.parent / "ran").exists()


@pytest.mark.parametrize("module", ["tvmflow", "tvmflow.tune"])
def test_the_package_run_by_its_name_is_all_that_the_current_folder_is_asked_for(tmp_path, module):
    """`python -m` looks there first; typer and what it imports come from where they are installed."""
    for name in ("typer.py", "click.py", "logging.py"):
        (tmp_path / name).write_text("raise SystemExit(77)\n")
    process = [sys.executable, "-m", module, "--help"]
    assert subprocess.run(process, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_children_import_what_this_process_would(tmp_path, monkeypatch):
    """Also from folders that PYTHONPATH or the program itself has added, in their order; the current folder is none."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("here", "named", "added"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"from_{folder}.py").write_text(f"print({folder!r})\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "named")]))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "here"), str(tmp_path / "named"), *sys.path])
    sys.path.append(str(tmp_path / "added"))

    def printed(module: str) -> str:
        return subprocess.run(children.python(module), capture_output=True, text=True, check=False).stdout.strip()

    assert printed("from_named") == "named"
    assert printed("from_added") == "added"
    assert printed("from_here") == ""
    monkeypatch.setenv("PYTHONPATH", os.curdir)
    assert printed("from_here") == "here"


def test_children_run_this_tvmflow(tmp_path, monkeypatch):
    (tmp_path / "tvmflow").mkdir()
    (tmp_path / "tvmflow" / "__init__.py").write_text("raise SystemExit(77)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    process = children.python("tvmflow.spec")
    assert subprocess.run(process, cwd=tmp_path, check=False).returncode == 0


def test_commands_are_those_of_absolute_folders(tmp_path, monkeypatch):
    for folder in ("here", "bin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "compiler").write_text("#!/bin/sh\n")
        (tmp_path / folder / "compiler").chmod(0o755)
    monkeypatch.chdir(tmp_path / "here")
    for first in ("", ".", "../here"):
        monkeypatch.setenv("PATH", os.pathsep.join([first, str(tmp_path / "bin")]))
        assert children.which("compiler") == str(tmp_path / "bin" / "compiler")
        assert children.environment()["PATH"] == str(tmp_path / "bin")
        monkeypatch.setenv("PATH", first)
        assert children.which("compiler") is None
    assert children.which("./compiler") == "./compiler"


GRANDPARENT = """
import subprocess, sys, time
from tvmflow.system import children
print(subprocess.Popen(children.ending_with_us(["sleep", "600"])).pid, flush=True)
time.sleep(600)
"""


def test_a_program_ends_with_the_process_that_started_it_however_that_ends():
    if children.which("setpriv") is None:
        pytest.skip("setpriv of util-linux isn't here")
    with subprocess.Popen([sys.executable, "-c", GRANDPARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        program = psutil.Process(int(process.stdout.readline()))
        process.kill()
    program.wait(timeout=30)


def test_nothing_else_starts_a_python_or_looks_for_a_command():
    """`system.children` does; what starts a compiler's or a Python's name by itself would take it from anywhere."""
    found = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            written = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if written in ("sys.executable", "shutil.which") or (
                isinstance(node, ast.ImportFrom)
                and (node.module, node.names[0].name) in (("sys", "executable"), ("shutil", "which"))
            ):
                found.append(f"{path.relative_to(ROOT)}: {written}")
            if isinstance(node, ast.Import | ast.ImportFrom) and "multiprocessing" in ast.unparse(node):
                found.append(f"{path.relative_to(ROOT)}: multiprocessing")
    allowed = {
        "tvmflow/system/children.py: sys.executable",
        "tvmflow/system/children.py: shutil.which",
        "tvmflow/cli/doctor.py: sys.executable",  # says which it is
    }
    assert set(found) == allowed
