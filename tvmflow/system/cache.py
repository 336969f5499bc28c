"""What was compiled or downloaded once and is kept for the next time, where nobody else can have put or changed it.

An entry is a folder with files and, in RECORD, their SHA-256. It is used if all of it belongs to this user or to root,
nobody else may write to it, and the files are those that were recorded; otherwise it is made anew.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tvmflow.spec import UserError
from tvmflow.system import scratch

RECORD = "sha256"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_own: tempfile.TemporaryDirectory[str] | None = None


def cache_folder() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/tvmflow. A relative path isn't followed, as XDG says."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "tvmflow"


def private_folder() -> Path:
    """What stands in for the cache, as long as this process lives, where that can't be written to."""
    global _own
    if _own is None or not Path(_own.name).is_dir():
        _own = tempfile.TemporaryDirectory(prefix="tvmflow-cache-")
    return Path(_own.name)


def folder(name: str = "") -> Path:
    """A folder of the cache, made unless it is there, that nobody else may write to.

    Raises UserError if it is another user's, and OSError.
    """
    path = cache_folder()
    for place in (path, path / name):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
        if not _is_trusted(status):
            raise UserError(
                f"The cache {place} belongs to another user, whose code would be run here; "
                "set XDG_CACHE_HOME to a folder of your own."
            )
        if status.st_mode & OTHERS_WRITE:  # made under another umask; what is in it is looked at one by one
            place.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS_WRITE)
    return path / name


def entry(group: str, name: str, files: Sequence[str], make: Callable[[Path], None], *, recorded: bool = True) -> Path:
    """The folder `name` in the cache's folder `group`, which has `files`; `make` puts them into a new one if it must.

    Without `recorded`, an entry that has no record is taken as well, if only this user could have made it. Raises
    UserError if the cache is another user's, OSError, and what `make` raises.
    """
    kept = private_folder() / group / name
    if is_intact(kept, files):
        return kept
    try:
        kept = folder(group) / name
        if not is_intact(kept, files, recorded=recorded):
            _make(kept, files, make, recorded)
    except OSError:
        kept = private_folder() / group / name
        kept.parent.mkdir(exist_ok=True)
        _make(kept, files, make, recorded)
    return kept


def is_intact(path: Path, files: Sequence[str], *, recorded: bool = True) -> bool:
    """Whether an entry is as it was made, by this user."""
    try:
        if not all(_is_safe(place) for place in (path, *(path / name for name in files))):
            return False
        record = path / RECORD
        if not record.exists():
            return not recorded
        return _is_safe(record) and record.read_text(encoding="utf-8") == _sums(path, files)
    except (OSError, UnicodeDecodeError):
        return False


def _make(kept: Path, files: Sequence[str], make: Callable[[Path], None], recorded: bool) -> None:
    with scratch.beside(kept) as made:
        made.mkdir(mode=0o700)
        make(made)
        for name in files:
            (made / name).chmod(stat.S_IMODE((made / name).stat().st_mode) & 0o700)
        (made / RECORD).write_text(_sums(made, files), encoding="utf-8")
        (made / RECORD).chmod(0o600)
        with scratch.beside(kept) as replaced:
            if kept.exists() and not is_intact(kept, files, recorded=recorded):
                os.replace(kept, replaced)
            try:
                os.replace(made, kept)
            except OSError:  # another process may have been first with the same
                if not is_intact(kept, files, recorded=recorded):
                    raise


def _sums(path: Path, files: Sequence[str]) -> str:
    """As `sha256sum` writes and checks them."""
    return "".join(f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(files))


def _is_safe(path: Path) -> bool:
    """Whether a file or folder, and no link to one, can have been written by this user alone."""
    status = path.lstat()
    kinds = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return kinds and _is_trusted(status) and not status.st_mode & OTHERS_WRITE


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())
