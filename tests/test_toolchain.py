"""Linkers are found or missed with one sentence, and what they make is checked."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tvmflow.bundles.build import build
from tvmflow.spec import MissingDependencyError, UserError
from tvmflow.system import limits, toolchain
from tvmflow.targets import TARGETS

PI = TARGETS["raspberry-pi-4b"]


CPUS = {name: board for name, board in TARGETS.items() if board.kind in ("llvm", "arm_cpu")}


@pytest.mark.parametrize("target", CPUS.values(), ids=CPUS)
def test_every_board_links_and_has_its_elf_header(tiny, tmp_path, target):
    bundle = build(tiny, target, tmp_path / "out", verify=False)
    assert toolchain.read_elf(bundle.library) == target.elf
    assert bundle.manifest["verify"]["passed"] is None


def test_no_linker(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install ziglang"):
        toolchain.select_linker(PI)
    with pytest.raises(MissingDependencyError, match="pip install ziglang"):
        toolchain.select_linker(PI, "zig")
    with pytest.raises(MissingDependencyError, match="no such command"):
        toolchain.select_linker(PI, "my-gcc")


def test_the_cross_compiler_serves_where_zig_is_missing(monkeypatch, tmp_path):
    compiler = tmp_path / "aarch64-linux-gnu-gcc"
    compiler.write_text("#!/bin/sh\necho gcc 99\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert toolchain.select_linker(PI).version == "gcc 99"


def test_this_computers_compiler_links_for_it_alone():
    with pytest.raises(UserError, match="not for raspberry-pi-4b"):
        toolchain.select_linker(PI, "cc")


def test_linker_that_fails(tiny, tmp_path):
    compiler = tmp_path / "bad-gcc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no space for you" >&2\nexit 7\n')
    compiler.chmod(0o755)
    with pytest.raises(UserError, match=r"exit code 7.*no space for you"):
        build(tiny, PI, tmp_path / "out", linker=str(compiler))
    assert not (tmp_path / "out").exists()


def test_a_linker_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(limits.TOOL, "seconds", 1)
    linker = toolchain.Linker(name="slow", command=("sh", "-c", "exec sleep 30"), version="1")
    with pytest.raises(UserError, match=r"^The linker slow was stopped: it wasn't done in 1 s \(--limit tool.seconds"):
        toolchain.link(linker, tmp_path / "library.so", [])


def test_linker_for_another_machine(tiny, tmp_path):
    """A host compiler passed off as a cross compiler: it fails, or its output's header gives it away."""
    with pytest.raises(UserError, match=r"could not link|needs 64-bit AArch64"):
        build(tiny, PI, tmp_path / "out", linker=shutil.which("gcc") or shutil.which("cc"))
    assert not (tmp_path / "out").exists()


def test_no_elf(tmp_path):
    (tmp_path / "x.so").write_bytes(b"MZ" * 100)
    with pytest.raises(UserError, match="no ELF file"):
        toolchain.read_elf(tmp_path / "x.so")
