"""What is made on the way to a result, and is gone when the program ends, however it ends.

`watch` gives the process and all that it starts a folder of their own for temporary files; `beside` a name next to a
result, for what a rename puts into its place, as `replacing` does. `clear` removes what is left of both. What a process
left that was killed is removed by the next one that makes something there: names say whose they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".tvmflow-"
"""How names in the user's folders begin until what they hold is whole."""

OWNED = re.compile(r"\.?tvmflow-([0-9a-f]{6})-(\d+)-(\d+)-")
"""Names that say whose they are: the system's start, a process, and when that started."""

root: Path | None = None
"""The folder for temporary files, since `watch`."""

_left: set[Path] = set()


def watch() -> None:
    """Have temporary files of this process and its children in one folder; where there can be none, nothing changes."""
    global root
    with contextlib.suppress(OSError):
        found = Path(tempfile.mkdtemp(prefix=f"tvmflow-{_owner()}"))
        _left.add(found)
        _sweep(found.parent)
        root = found
        tempfile.tempdir = os.environ["TMPDIR"] = str(found)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new name in the folder of `path`; whatever is made there and hasn't been renamed is removed after the block."""
    _sweep(path.parent)
    made = path.parent / f"{PREFIX}{_owner()}{secrets.token_hex(6)}"
    _left.add(made)  # before there is anything, so that no signal comes in between
    try:
        yield made
    finally:
        _remove(made)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name for a file that takes the place of `path` once the block has ended well, and is removed otherwise.

    Errors of the operating system name `path`.
    """
    try:
        with beside(path) as made:
            yield made
            os.replace(made, path)
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def clear() -> None:
    """Remove what an interrupted block left, and the folder for temporary files."""
    for path in tuple(_left):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
    _left.discard(path)


def _owner() -> str:
    """What a name says of this process; "" where others couldn't tell whether it is still there."""
    try:
        return f"{_system()}-{os.getpid()}-{_started(os.getpid())}-"
    except OSError:
        return ""


def _system() -> str:
    """What differs between computers, their starts and containers, which each count processes for themselves."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:6]


def _started(process: int) -> int:
    """When a process was started, in the system's ticks. Raises OSError if there is none."""
    _, _, fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    return int(fields.split()[19])


def _sweep(folder: Path) -> None:
    """Remove what this user's processes left in a folder that were killed there, and nobody else's."""
    with contextlib.suppress(OSError):
        system = _system()
        for entry in os.scandir(folder):
            found = OWNED.match(entry.name)
            if not found or found[1] != system or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            try:
                gone = _started(int(found[2])) != int(found[3])
            except FileNotFoundError:
                gone = True
            if gone:
                _remove(Path(entry.path))
