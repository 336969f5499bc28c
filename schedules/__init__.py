"""Schedules for the kernels that matter: a rule takes a kernel it knows and shapes its loops, or says "not mine".

A rule is `rule(func, target, tile=None) -> Schedule | None`. A board lists the names of its rules (`Target.schedules`),
and each kernel gets the first that fits. A new schedule is one file here and one line in RULES; the rule, its file and
its name there are called the same. `tile` is what a rule lets a tuner choose, by default what the rule thinks best, and
`tiles(func, target)` of its file lists the choices.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target

Rule = Callable[..., "Schedule | None"]


def _rule(name: str) -> Rule:
    """The rule of that file, which imports tvm when it is first used; listing the rules mustn't."""

    def rule(func: PrimFunc, target: Target, tile: Any = None) -> Schedule | None:
        return getattr(import_module(f"{__name__}.{name}"), name)(func, target, tile)

    return rule


def tiles(name: str, func: PrimFunc, target: Target) -> list[Any]:
    """The tiles that the rule of that name can be told for a kernel; none if it doesn't serve it."""
    return import_module(f"{__name__}.{name}").tiles(func, target)


RULES: dict[str, Rule] = {
    "pointwise_blocked": _rule("pointwise_blocked"),
    "depthwise_blocked": _rule("depthwise_blocked"),
    "pointwise_nchw": _rule("pointwise_nchw"),
    "depthwise_nchw": _rule("depthwise_nchw"),
    "direct_nchw": _rule("direct_nchw"),
    "dense": _rule("dense"),
    "lanes": _rule("lanes"),
}
