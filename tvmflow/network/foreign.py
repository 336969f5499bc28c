"""Calls into PyTorch's exporter and TVM's importers: without their chatter, and with their errors in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

from tvmflow.spec import UnsupportedOperatorError
from tvmflow.system.untrusted import shortened

MOST_CHARACTERS = 300


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PyTorch's exporter and TVM's importers warn of their own internals, which the user can do nothing about."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


class EndedError(Exception):
    """Code of users raised what ends programs, as exit() does."""


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """A block that calls code of users: but for Ctrl-C, whatever it raises is an Exception. Raises EndedError."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise EndedError(f"{type(error).__name__} of {error}" if str(error) else type(error).__name__) from error


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for a sentence; it may quote a whole damaged file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened((lines[0] if lines else type(error).__name__).rstrip("."), MOST_CHARACTERS)


def report_unsupported(missing: Mapping[str, Sequence[str]]) -> None:
    if missing:
        shown = "; ".join(
            f"{operator} in {', '.join(sorted(set(where)))}" for operator, where in sorted(missing.items())
        )
        raise UnsupportedOperatorError(
            f"The network has operators that are not supported: {shown}.",
            {operator: tuple(where) for operator, where in missing.items()},
        )
