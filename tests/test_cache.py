"""Nothing that was kept is run if others than this user could have put it there or changed it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvmflow.spec import UserError
from tvmflow.system import cache, toolchain

OTHER_USER = 54321


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Iterator[Path]:
    """A library that was compiled under a umask which lets everybody write everything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "source.c").write_text("int answer(void) { return 42; }\n")
    before = os.umask(0)
    try:
        yield library(tmp_path)
    finally:
        os.umask(before)


def library(folder: Path) -> Path:
    return toolchain.native_library(folder / "source.c", ("-O1", "-shared", "-fPIC"))


def test_nobody_else_may_write_to_what_is_kept(kept, tmp_path):
    places = [path for path in (tmp_path / "cache").rglob("*") if not path.is_relative_to(cache.folder("zig"))]
    assert kept in places
    assert [path for path in places if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_what_is_whole_is_used_again(kept, tmp_path):
    before = kept.stat().st_ino
    assert library(tmp_path) == kept
    assert kept.stat().st_ino == before


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def forge(path: Path) -> None:
    """A file and a record that fit each other, but could be anyone's."""
    path.write_bytes(b"other code")
    path.with_name(cache.RECORD).write_text(cache._sums(path.parent, [path.name]))
    path.chmod(0o666)


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, OTHER_USER, OTHER_USER)


def link_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere.so"))
    path.symlink_to("elsewhere.so")


CHANGES = {
    "changed": change,
    "forged": forge,
    "another user's": give_away,
    "a link": link_away,
    "without a record": lambda path: path.with_name(cache.RECORD).unlink(),
    "in a folder of everybody's": lambda path: path.parent.chmod(0o777),
    "in a folder of another user's": lambda path: give_away(path.parent),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_others_may_have_changed_is_made_anew(kept, tmp_path, change):
    content = kept.read_bytes()
    before = kept.stat().st_ino
    change(kept)
    assert library(tmp_path) == kept
    assert kept.stat().st_ino != before
    assert kept.read_bytes() == content
    assert cache.is_intact(kept.parent, [kept.name])


def test_a_cache_of_another_user_is_refused(kept, tmp_path):
    give_away(tmp_path / "cache" / "tvmflow")
    with pytest.raises(UserError, match=r"belongs to another user.*XDG_CACHE_HOME"):
        library(tmp_path)


def test_a_cache_that_everybody_may_write_to_is_closed(kept, tmp_path):
    (tmp_path / "cache" / "tvmflow").chmod(0o777)
    library(tmp_path)
    assert stat.S_IMODE((tmp_path / "cache" / "tvmflow").stat().st_mode) == 0o755


def test_without_a_cache_it_is_made_for_this_process_alone(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/there/is/none")
    monkeypatch.setattr(cache, "_own", None)
    made = library(tmp_path)
    assert made.read_bytes() == kept.read_bytes()
    assert stat.S_IMODE(cache.private_folder().stat().st_mode) == 0o700
    assert library(tmp_path) == made


def test_no_cache_is_in_the_current_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache.cache_folder() == Path.home() / ".cache" / "tvmflow"
