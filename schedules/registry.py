"""Which registry of schedules a kind of target has. Rules of one kind shape loops that another can't run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from tvmflow.schedules import Knobs, Rule, integer_tasks

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target


class Registry(Protocol):
    """What a package of rules has."""

    RULES: dict[str, Rule]
    rules_version: Callable[[], str]

    def choices(self, name: str, func: PrimFunc, target: Target) -> list[Knobs]:
        """The keyword arguments that a search may try with a rule on a kernel."""


class IntegerRegistry(Protocol):
    """What a package of rules for quantised layers has: the rules, and what lies between the kernels that they make."""

    RULES: dict[str, integer_tasks.Rule]

    def form(self, layer: Any, readers: Sequence[Any], target: Target) -> integer_tasks.Tensor:
        """How the result of a layer lies in memory for the kernels of its readers."""

    def joins(self, group: Sequence[Any], layer: Any, target: Target) -> bool:
        """Whether a layer that alone reads what these give, in one kernel, can be computed in it."""

    def slice_of(self, target: Target) -> int | None:
        """How many channels a kernel can write into a part of a larger tensor, or a multiple; None if it can't."""


PACKAGES: Mapping[str, str] = {"cuda": "tvmflow.schedules.cuda"}
"""Kinds whose rules aren't the CPUs'."""


def of(target: Target) -> Registry:
    """The rules that serve boards of a kind."""
    return cast(Registry, import_module(_package(target)))


def integer(target: Target) -> IntegerRegistry:
    """The rules for quantised layers that serve boards of a kind."""
    return cast(IntegerRegistry, import_module(f"{_package(target)}.integer"))


def _package(target: Target) -> str:
    return PACKAGES.get(target.kind, "tvmflow.schedules.cpu")


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
