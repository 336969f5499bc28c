"""TVM's runtime for a board is fetched whole or not at all, and needs nothing but itself and the C library."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from conftest import needs_emulator
from elftools.elf.elffile import ELFFile

from tvmflow.spec import MissingDependencyError
from tvmflow.system import runtime
from tvmflow.targets import TARGETS

BOARD = TARGETS["raspberry-pi-4b"]


def test_it_is_made_whole_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TVMFLOW_OFFLINE", "0")
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda package: "9.9")

    def no_wheel(package, elf, destination):
        raise MissingDependencyError("no such wheel")

    monkeypatch.setattr(runtime, "_download", no_wheel)
    with pytest.raises(MissingDependencyError, match="no such wheel"):
        runtime.fetch(BOARD.elf)
    assert not any(Path(tmp_path, "tvmflow", "runtime").iterdir())

    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tvm/lib/libtvm_runtime.so", b"runtime")
        archive.writestr("tvm_ffi/lib/libtvm_ffi.so", b"ffi")

    def slower_than_another(package, elf, destination):
        other = runtime.folder(elf)
        other.mkdir(exist_ok=True)
        for name in ("libtvm_ffi.so", "libtvm_runtime.so"):
            Path(other, name).write_bytes(b"the other's")
        return wheel

    monkeypatch.setattr(runtime, "_download", slower_than_another)
    first, _ = runtime.fetch(BOARD.elf)
    assert first.read_bytes() == b"the other's"
    assert [path.name for path in first.parents[1].iterdir()] == [first.parent.name]


@pytest.mark.emulated
@pytest.mark.parametrize("board", [BOARD, TARGETS["host"]], ids=lambda board: board.name)
def test_it_needs_nothing_but_itself_and_the_c_library(board):
    if board is BOARD:
        needs_emulator(board)
    system = {"libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "libstdc++.so.6"}
    loaders = {"ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2"}
    for path in runtime.fetch(board.elf):
        with path.open("rb") as file:
            needed = {tag.needed for tag in ELFFile(file).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
        assert needed <= system | loaders | {"libtvm_ffi.so"}


def test_boards_without_a_runtime_say_why():
    assert runtime.why_none(BOARD) is None
    assert runtime.why_none(TARGETS["host"]) is None
    assert "32-bit ARM" in (runtime.why_none(TARGETS["raspberry-pi-3b-32bit"]) or "")
    assert "Android" in (runtime.why_none(TARGETS["android-arm64"]) or "")
