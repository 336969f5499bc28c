"""How a command ends: with text or JSON on stdout, or with one sentence on stderr and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from tvmflow.cli import streams
from tvmflow.spec import TvmflowError
from tvmflow.system import interrupt, scratch
from tvmflow.system.untrusted import printable

verbose = False
"""Whether errors show their traceback: -v, anywhere on the line."""

before_results: Callable[[], None] = lambda: None  # noqa: E731 (main has something to say here)
"""What is called before anything is printed that stays."""

UNUSABLE = (
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENOTDIR,
)
"""What is wrong with a path that was given, and no fault of tvmflow's."""


def run(application: Callable[[], None]) -> None:
    """Run the command line and end the process with its exit code, leaving neither processes nor temporary files."""
    code: Any = 0
    interrupt.watch()
    scratch.watch()
    try:
        application()
    except SystemExit as end:
        code = end.code
    except typer.Exit as end:
        code = end.exit_code
    except KeyboardInterrupt:  # the second or third of them
        code = 128 + interrupt.last
    finally:
        before_results()
        interrupt.ignore()
        interrupt.end_children()
        scratch.clear()
    if not streams.flush():
        code = streams.BROKEN_PIPE if code in (0, 1) else code
    sys.exit(128 + interrupt.noted if interrupt.noted else code)


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors become one sentence and an exit code."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:
            raise
        except (KeyboardInterrupt, Exception) as error:
            if interrupt.noted or isinstance(error, KeyboardInterrupt):
                # Python dies of a SIGINT that hit the exec of a string, unless another exec has gone well since
                exec("")
                name = signal.Signals(interrupt.last).name
                fail("interrupted" if name == "SIGINT" else f"ended by {name}", 128 + interrupt.last)
            if isinstance(error, BrokenPipeError) and not streams.flush():
                raise typer.Exit(streams.BROKEN_PIPE) from None
            if isinstance(error, TvmflowError):
                fail(str(error), error.exit_code)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                fail(f"The disk is full ({error.filename or 'a temporary file'}); make room, or set TMPDIR.", 4)
            if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
                fail("No folder for temporary files can be written to; set TMPDIR to one that can.", 4)
            if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
                fail(f"{os.fsdecode(error.filename)} can't be used: {error.strerror}.", 4)
            fail(f"{type(error).__name__}: {error}", 1, internal=True)

    return command


def fail(message: str, code: int, *, internal: bool = False) -> None:
    """End with a sentence and an exit code."""
    before_results()
    if verbose:
        traceback.print_exc()
    hint = "" if verbose or not internal else " (a fault of tvmflow itself; -v shows where)"
    # what a compiler, TVM or a file said may be of many lines, or be meant for the terminal
    sentence = " ".join(filter(None, map(str.strip, message.split("\n"))))
    print(f"tvmflow: {printable(sentence)}{hint}", file=sys.stderr)
    raise typer.Exit(code)


def show(text: str, content: Any, json: Path | None) -> None:
    """Print `text`, or write `content` as JSON: to a file beside the text, or to stdout instead of it."""
    from tvmflow.report import write_json
    from tvmflow.system.text import to_json

    before_results()
    if json == Path("-"):
        print(to_json(content, escaped=True))
        return
    print(text)
    if json is not None:
        write_json(json, content)


def show_report(report: Mapping[str, Any], json: Path | None, *, layers: bool) -> None:
    """`show` a report, with a table of its layers if asked for."""
    from tvmflow.report.render import report_text

    show(report_text(dict(report), layers=layers), report, json)
