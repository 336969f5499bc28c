"""Ctrl-C in a program that calls TVM, whose C++ code may lose what its callbacks raise or make another error of it.

So every Ctrl-C is noted as well as raised, and code that has come out of TVM asks `check` before it goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

noted = False
"""Whether Ctrl-C was pressed since `watch` or `deferred`."""


def watch() -> None:
    """From now on note every Ctrl-C and raise KeyboardInterrupt."""
    global noted
    noted = False
    signal.signal(signal.SIGINT, _raise)


@contextmanager
def deferred() -> Iterator[None]:
    """While the block lasts, the first Ctrl-C is only noted; a second is raised as well.

    Raised inside MetaSchedule's callbacks, KeyboardInterrupt ends the whole process.
    """
    global noted
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted, before = False, signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        noted = False  # it has been raised, or what it was to end has ended
        signal.signal(signal.SIGINT, before)


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed."""
    if noted:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global noted
    noted = True
    signal.signal(signal.SIGINT, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    global noted
    noted = True
    raise KeyboardInterrupt
