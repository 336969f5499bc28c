"""Schedules for the kernels that matter: a rule takes a kernel it knows and shapes its loops, or says "not mine".

A rule is `rule(func, target) -> Schedule | None`. A board lists the names of its rules (`Target.schedules`), and each
kernel gets the first that fits. A new schedule is one file here and one line in RULES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target

Rule = Callable[["PrimFunc", "Target"], "Schedule | None"]

RULES: dict[str, Rule] = {}
