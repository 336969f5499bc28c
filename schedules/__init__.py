"""Schedules for the kernels that matter: a rule takes a kernel it knows and shapes its loops, or says "not mine".

A rule is `rule(func, target) -> Schedule | None`. A board lists the names of its rules (`Target.schedules`), and each
kernel gets the first that fits. A new schedule is one file here and one line in RULES; the rule, its file and its name
there are called the same.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target

Rule = Callable[["PrimFunc", "Target"], "Schedule | None"]


def _rule(name: str) -> Rule:
    """The rule of that file, which imports tvm when it is first used; listing the rules mustn't."""

    def rule(func: PrimFunc, target: Target) -> Schedule | None:
        return getattr(import_module(f"{__name__}.{name}"), name)(func, target)

    return rule


RULES: dict[str, Rule] = {
    "pointwise_blocked": _rule("pointwise_blocked"),
    "depthwise_blocked": _rule("depthwise_blocked"),
    "pointwise_nchw": _rule("pointwise_nchw"),
    "depthwise_nchw": _rule("depthwise_nchw"),
    "direct_nchw": _rule("direct_nchw"),
    "lanes": _rule("lanes"),
}
