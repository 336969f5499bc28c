"""What of a file isn't taken, all at once: what depends on a refused node is passed over in silence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.integer.tflite.values import Refused
from tvmflow.spec import UnsupportedOperatorError, UserError
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError

MOST = 8
"""Refused nodes that a sentence names."""
CHARACTERS = 1500
"""Of what is wrong with a file, at most."""
WRONG = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What NumPy and PyTorch raise of attributes and shapes that don't fit."""


@contextlib.contextmanager
def sentence(path: Path, remedy: str = "") -> Iterator[None]:
    """What isn't taken of a file, with what to do then, or is wrong with it, as one sentence. Raises UserError."""
    try:
        # numbers of a file may be NaN or infinite; where that matters it is looked at
        with np.errstate(all="ignore"):
            yield
    except Refused as refused:
        words = untrusted.shortened(refused, CHARACTERS)
        end = f"; {remedy}" if remedy else ""
        raise UserError(f"{untrusted.printable(str(path))} isn't taken: it has {words}{end}.") from refused
    except UnsupportedOperatorError as error:
        end = f"; {remedy}" if remedy else ""
        raise UnsupportedOperatorError(f"{str(error).removesuffix('.')}{end}.", error.operators) from error
    except MalformedError as error:
        words = untrusted.shortened(error, CHARACTERS)
        raise UnusableFileError(path, f"is no network that can be read: {words}") from error


class Refusals:
    def __init__(self) -> None:
        self.clauses: list[str] = []
        self.spoiled: set[Any] = set()

    def add(self, clause: str) -> None:
        self.clauses.append(clause)

    def spoils(self, reads: Iterable[Any], gives: Iterable[Any] = ()) -> bool:
        """Whether something that is read isn't known; then what is given isn't either."""
        if not self.spoiled.intersection(reads):
            return False
        self.spoiled.update(gives)
        return True

    @contextlib.contextmanager
    def of(self, node: str, gives: Iterable[Any]) -> Iterator[None]:
        """A node's conversion. Raises MalformedError for what can't be."""
        try:
            yield
        except Refused as reason:
            self.add(f"{node}: {reason}")
            self.spoiled.update(gives)
        except MalformedError as error:
            if str(error).startswith(node):
                raise
            raise MalformedError(f"{node}: {error}") from error
        except WRONG as error:
            raise MalformedError(f"{node}: inputs or attributes that don't fit ({untrusted.reason(error)})") from error

    def report(self) -> None:
        """Raises Refused if there is something."""
        if self.clauses:
            more = f", and {len(self.clauses) - MOST} more" if len(self.clauses) > MOST else ""
            raise Refused(f"{'; '.join(self.clauses[:MOST])}{more}")
