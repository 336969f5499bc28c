"""What `tvmflow doctor` finds: every finding that isn't ok says how to mend it, and looking costs next to nothing."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tvmflow.cli import doctor

SCRIPT = Path(__file__).parents[1] / "tools" / "install-system-packages.sh"

pytestmark = pytest.mark.packages


def finding(name: str) -> doctor.Finding:
    return next(found for found in doctor.examine() if found.name == name)


def test_every_finding_is_complete():
    findings = doctor.examine()
    assert len({found.name for found in findings}) == len(findings)
    for found in findings:
        assert found.detail
        assert found.needed_for
        assert (found.remedy is None) == (found.status == "ok")


def test_this_environment_has_no_problem():
    assert [found for found in doctor.examine() if found.status == "problem"] == []


def test_it_imports_neither_tvm_nor_torch():
    script = (
        "import sys; from tvmflow.cli import doctor; doctor.examine(); "
        "print(*{'tvm', 'tvm_ffi', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_another_ffi_than_the_pinned_one_is_a_problem(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(
        doctor.importlib.metadata,
        "version",
        lambda package: "0.1.15.post2" if package == "apache-tvm-ffi" else version(package),
    )
    found = finding("apache-tvm-ffi")
    assert found.status == "problem"
    assert found.remedy is not None
    assert found.remedy.startswith("pip install 'apache-tvm-ffi==0.1.14")


def test_a_package_that_is_missing_has_a_line_of_its_own(monkeypatch):
    version = importlib.metadata.version

    def without_jinja(package):
        if package == "jinja2":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", without_jinja)
    found = finding("jinja2")
    assert (found.status, found.detail) == ("problem", "not installed, wanted >=3.1")
    assert "jinja2" not in finding("other packages").detail


def test_without_any_linker_ziglang_is_a_problem(monkeypatch):
    version = importlib.metadata.version

    def without_zig(package):
        if package == "ziglang":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", without_zig)
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None)
    assert finding("ziglang").status == "problem"
    assert finding("aarch64-linux-gnu-gcc").remedy == "apt-get install gcc-aarch64-linux-gnu"
    assert finding("qemu-aarch64").status == "missing"


def test_offline_an_uncached_runtime_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not-there-yet"))
    assert finding("64-bit ARM TVM runtime").status == "ok"
    monkeypatch.setenv("TVMFLOW_OFFLINE", "1")
    assert finding("64-bit ARM TVM runtime").status == "missing"
    assert not any(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    assert finding("cache folder").status == "problem"


@pytest.mark.parametrize(
    ("version", "specifier", "fits"),
    [
        ("2.13.0+cpu", ">=2.6", True),
        ("2.6.0+cpu", "==2.6.0", True),
        ("2.5.1", ">=2.6", False),
        ("0.1.14.post0", "==0.1.14.post0", True),
        ("0.1.14", "==0.1.14.post0", False),
        ("1.9", "", True),
        ("10", ">=9.5,==10", True),
    ],
)
def test_versions_are_compared_as_numbers(version, specifier, fits):
    assert doctor._satisfies(version, specifier) is fits


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs a Debian system: dpkg-query isn't there")
def test_the_install_script_changes_nothing_where_all_is_there(tmp_path):
    fakes = {
        "dpkg-query": "echo installed",
        "apt-get": "touch ran; exit 1",
        "sudo": "touch ran; exit 1",
    }
    for name, body in fakes.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", SCRIPT],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("All there: qemu-user-static")
    assert not Path(tmp_path, "ran").exists()


def test_the_install_script_brings_what_the_emulators_need():
    from tvmflow.measure.emulate import EMULATORS

    listed = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert {package for emulator in EMULATORS.values() for package in emulator.packages} <= set(listed)


def test_the_install_script_says_so_where_there_is_no_apt(tmp_path):
    done = subprocess.run(
        ["/bin/sh", SCRIPT],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("This is no Debian or Ubuntu system")
    assert len(done.stderr.splitlines()) == 1
