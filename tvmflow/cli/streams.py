"""Stdout and stderr as they are: terminals and pipes that lack some characters, or whose reader has gone."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
from typing import TextIO

PLAIN = str.maketrans(
    {
        "×": "x",
        "÷": "/",
        "·": ".",
        "−": "-",
        "–": "-",
        "—": "-",
        "→": ">",
        "…": ".",
        "µ": "u",
        "δ": "d",
        "Σ": "S",
        "²": "2",
        "³": "3",
        "⁹": "9",
        "¹": "1",
        "⁻": "-",
        "±": "~",
    }
)
"""One character for one, so that tables stay aligned; what isn't here becomes a question mark."""

BROKEN_PIPE = 141
"""Exit code where nobody reads on: what a shell gives for a program that SIGPIPE ended."""


def adapt() -> None:
    """Print what a stream's encoding can't express in ASCII."""
    codecs.register_error("tvmflow.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="tvmflow.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    wanted = error.object[error.start : error.end].translate(PLAIN)
    return "".join(character if character.isascii() else "?" for character in wanted), error.end


def flush() -> bool:
    """Hand over what was printed; False if a reader has gone, to whom nothing more is said then."""
    whole = True
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
        if _deserted(stream):
            whole = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes once more at its end
    return whole


def _deserted(stream: TextIO) -> bool:
    """Whether it is a pipe that nobody can read from any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, AttributeError):  # no file, or a system without poll
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
