"""Signals that end a program which calls TVM, whose C++ code may lose what its callbacks raise or change it.

Ctrl-C, SIGTERM and a terminal that closes are noted as well as raised as KeyboardInterrupt, and code that has come out
of TVM asks `check` before it goes on. Z3, which TVM asks about integers some hundred times a second, takes Ctrl-C for
itself while it works and then forgets it, so a thread waits for that signal where no handler of Z3's is called.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

noted = 0
"""The signal that came since `watch` or `deferred`; 0 if none did."""

last: int = signal.SIGINT
"""The signal that came last: what KeyboardInterrupt stands for."""

_awake = True
"""Whether the main thread has come to Python's handlers since a SIGINT was passed on."""

_children: list[Any] = []
"""The processes that this one had started, and those that they had, when the first signal came."""


def watch() -> None:
    """From now on note the signals and raise KeyboardInterrupt.

    Threads that were there before may still lose a Ctrl-C to Z3: call it before there are any.
    """
    global noted
    noted = 0
    _children.clear()
    for number in SIGNALS:
        if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:  # by `nohup`
            signal.signal(number, _raise)
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGURG, _wake)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of all threads, which inherit it from this one
        threading.Thread(target=_pass_on, args=(threading.get_ident(),), daemon=True).start()


def _pass_on(main: int) -> None:
    """Have thread `main` call Python's handler of each SIGINT that this process is sent."""
    global _awake
    while True:
        signal.sigwait({signal.SIGINT})
        _awake = False
        _thread.interrupt_main(signal.SIGINT)
        pause_s = 0.02
        while not _awake:  # it may be waiting for the system, which ends by a signal alone, or be about to
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(main, signal.SIGURG)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)


def _wake(number: int, frame: FrameType | None) -> None:
    """SIGURG's handler; by default it is ignored, and wakes nobody."""
    global _awake
    _awake = True


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While the block lasts, the first signal is only noted; a second is raised as well.

    Raised inside MetaSchedule's callbacks, KeyboardInterrupt ends the whole process.
    """
    global noted
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted, before = 0, {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is _raise or number == signal.SIGINT:
            signal.signal(number, _note)
    try:
        yield
    finally:
        noted = 0  # it has been raised, or what it was to end has ended
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raises KeyboardInterrupt if a signal came."""
    if noted:
        raise KeyboardInterrupt


def ignore() -> None:
    """From now on nothing interrupts: what is left to do is short."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_children(seconds: float = 2.0) -> None:
    """End the processes that were there when the signal came, also those whose parents have ended meanwhile."""
    if not _children:
        return
    import psutil

    ended = contextlib.suppress(psutil.Error)  # by themselves
    left = [child for child in _children if child.is_running()]
    for child in left:
        with ended:
            child.terminate()
    for child in psutil.wait_procs(left, timeout=seconds)[1]:
        with ended:
            child.kill()


def _note(number: int, frame: FrameType | None) -> None:
    global noted, last
    if not noted:
        _remember_children()
    noted = last = number
    for other in SIGNALS:
        if signal.getsignal(other) is _note:
            signal.signal(other, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    _note(number, frame)
    raise KeyboardInterrupt


def _remember_children() -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        _children[:] = psutil.Process().children(recursive=True)
