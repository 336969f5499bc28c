"""Schedules for the kernels that matter: a rule takes a kernel it knows and shapes its loops, or says "not mine".

A rule is `rule(func, target, tile=None) -> Schedule | None`. A board lists the names of its rules (`Target.schedules`),
and each kernel gets the first that fits. A new schedule is one file here and one line in RULES; the rule, its file and
its name there are called the same.

One function is both the hand-written schedule and the search space: without a `tile` it is the rule's own choice, and
`tiles(func, target)` in the same file lists what `tvmflow tune` may try instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target

Rule = Callable[..., "Schedule | None"]

Knobs = Mapping[str, Any]
"""Keyword arguments of a rule."""


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
    "conv_blocked": _rule("conv_blocked"),
    "concat_blocked": _rule("concat_blocked"),
    "pointwise_nchw": _rule("pointwise_nchw"),
    "depthwise_rows": _rule("depthwise_rows"),
    "depthwise_nchw": _rule("depthwise_nchw"),
    "direct_nchw": _rule("direct_nchw"),
    "dense": _rule("dense"),
    "lanes": _rule("lanes"),
}


def choices(name: str, func: PrimFunc, target: Target) -> list[Knobs]:
    """The keyword arguments that a search may try with that rule on a kernel; none if it doesn't serve it."""
    return [{"tile": tile} for tile in tiles(name, func, target)]


def spell(name: str, knobs: Knobs) -> str:
    """A rule and its knobs as one expression, "pointwise_nchw(tile=(6, 4))"; `tvmflow.rules.parse` reads it."""
    return f"{name}({', '.join(f'{knob}={value!r}' for knob, value in knobs.items())})"


def rules_version() -> str:
    """Eight digits that change with the source of any rule: records of other rules are of other kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
