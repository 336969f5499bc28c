"""Schedules for the kernels that matter: a rule takes a kernel it knows and shapes its loops, or says "not mine".

A rule is `rule(func, target, tile=None) -> Schedule | None`. A board lists the names of its rules (`Target.schedules`),
and each kernel gets the first that fits. The rules of a kind of target are one folder here, with a registry RULES; a
new schedule is one file there and one line in it, and the rule, its file and its name there are called the same.
`convolutions`, `patches` and `winograd` are what rules of every kind read kernels with.

One function is both the hand-written schedule and the search space: without a `tile` it is the rule's own choice, and
`tiles(func, target)` in the same file lists what `tvmflow tune` may try instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
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

SHARED = tuple(Path(__file__).with_name(name) for name in ("convolutions.py", "patches.py", "winograd.py"))
"""The files that rules of every kind use."""


UNSCHEDULED = "default"
"""How records call a kernel without a schedule."""


class ReplayError(Exception):
    """A record can't be applied to a kernel."""


def named(package: str, name: str) -> Rule:
    """The rule of that file, which imports tvm when it is first used; listing the rules mustn't."""

    def rule(func: PrimFunc, target: Target, tile: Any = None) -> Schedule | None:
        return getattr(import_module(f"{package}.{name}"), name)(func, target, tile)

    return rule


def spell(name: str, knobs: Knobs) -> str:
    """A rule and its knobs as one expression, "pointwise_nchw(tile=(6, 4))"; `registry.parse` reads it."""
    return f"{name}({', '.join(f'{knob}={value!r}' for knob, value in knobs.items())})"


def is_default(candidate: str) -> bool:
    """Whether a candidate is what a build takes anyway: a rule's own choice, or no schedule."""
    return candidate == UNSCHEDULED or candidate.endswith("()")


def task_key(workload: Sequence[str]) -> str:
    """How records call a kernel: by its structural hash, the first word of its workload, in 16 hexadecimal digits."""
    return f"{int(workload[0]) % (1 << 64):016x}"


def version_of(files: Iterable[Path]) -> str:
    """Eight digits that change with the source of any of the files: records of other rules are of other kernels."""
    digest = hashlib.sha256()
    for path in (*sorted(files), *SHARED):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
