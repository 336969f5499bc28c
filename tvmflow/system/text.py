"""What is written for people and programs: tables, hints, and JSON that others' parsers take."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tvmflow.system.untrusted import printable

NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ms|%)?|\?|")


def to_json(content: Any, *, escaped: bool = False) -> str:
    """JSON text, on request in ASCII. What is infinite or no number, such as an error that is, becomes null."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=escaped, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the known name that is most like a mistyped one, after a space; "" if none is."""
    close = difflib.get_close_matches(name.lower(), known, 1)
    return f" Did you mean {close[0]}?" if close else ""


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text; columns of numbers to the right, the rest to the left."""
    cells = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(NUMBER.fullmatch(row[column]) for row in cells[1:]) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )
