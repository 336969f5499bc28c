"""Which registry of schedules a kind of target has. Rules of one kind shape loops that another can't run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from tvmflow.schedules import Knobs, Rule

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target


class Registry(Protocol):
    """What a package of rules has."""

    RULES: dict[str, Rule]
    rules_version: Callable[[], str]

    def choices(self, name: str, func: PrimFunc, target: Target) -> list[Knobs]:
        """The keyword arguments that a search may try with a rule on a kernel."""


PACKAGES: Mapping[str, str] = {"cuda": "tvmflow.schedules.cuda"}
"""Kinds whose rules aren't the CPUs'."""


def of(target: Target) -> Registry:
    """The rules that serve boards of a kind."""
    return cast(Registry, import_module(PACKAGES.get(target.kind, "tvmflow.schedules.cpu")))


def parse(text: str, target: Target) -> tuple[str, Knobs]:
    """What `tvmflow.schedules.spell` wrote. Raises ValueError if it didn't, or if the board has no such rule."""
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no rule with knobs") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"{text!r} is no rule with knobs")
    if call.func.id not in of(target).RULES:
        raise ValueError(f"there is no rule {call.func.id!r}")
    return call.func.id, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
