"""What is being done at the moment, for whoever shows it: the log says what began, and this what part of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

stage = ""
"""The part that is being done, in a few words; "" where nothing has said."""

_lines = 0


def at(what: str) -> None:
    """From now on this is being done."""
    global stage
    stage = what


@contextlib.contextmanager
def own_line() -> Iterator[None]:
    """While the block lasts, something else shows how far it is."""
    global _lines
    _lines += 1
    try:
        yield
    finally:
        _lines -= 1


def shown_elsewhere() -> bool:
    """Whether something else shows how far it is."""
    return _lines > 0


def wanted() -> bool:
    """Whether anybody wants to see it: not where tvmflow's log is silent, as it is by default in Python."""
    return logging.getLogger("tvmflow").isEnabledFor(logging.INFO)
