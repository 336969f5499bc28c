"""What is made on the way to a result, and is gone when the program ends, however it ends.

`watch` gives the process and all that it starts a folder of their own for temporary files; `beside` a name next to a
result, for what a rename puts into its place. `clear` removes what is left of both.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".tvmflow-"
"""How names in the user's folders begin until what they hold is whole."""

root: Path | None = None
"""The folder for temporary files, since `watch`."""

_left: set[Path] = set()


def watch() -> None:
    """Have temporary files of this process and its children in one folder; where there can be none, nothing changes."""
    global root
    with contextlib.suppress(OSError):
        found = Path(tempfile.mkdtemp(prefix="tvmflow-"))
        _left.add(found)
        root = found
        tempfile.tempdir = os.environ["TMPDIR"] = str(found)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new name in the folder of `path`; whatever is made there and hasn't been renamed is removed after the block."""
    made = path.parent / f"{PREFIX}{secrets.token_hex(6)}"
    _left.add(made)  # before there is anything, so that no signal comes in between
    try:
        yield made
    finally:
        _remove(made)


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
