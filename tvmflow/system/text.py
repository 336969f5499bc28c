"""What is written for people and programs: JSON that others' parsers take."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(content: Any, *, escaped: bool = False) -> str:
    """JSON text, on request in ASCII. What is infinite or no number, such as an error that is, becomes null."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=escaped, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
