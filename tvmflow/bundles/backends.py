"""What a kind of target offered before building was one function: `of(target)` has `build` and `check` beside the rest.

Kept for those who call it by its old name, `tvmflow.backends`; new code calls `tvmflow.bundles.build.build`.
"""

from __future__ import annotations

from typing import Any

from tvmflow.bundles.build import build, check
from tvmflow.spec import Target
from tvmflow.targets import kind


class OldBackend:
    """The functions of a kind's module, with `build` and `check` as they were called."""

    def __init__(self, target: Target) -> None:
        self._module = kind.of(target)
        self.build, self.check = build, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def of(target: Target) -> OldBackend:
    """The functions for a board of that kind."""
    return OldBackend(target)
