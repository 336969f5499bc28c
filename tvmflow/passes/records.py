"""From a record of a search to the kernel that it makes, as a build needs it and a search that goes on.

A rule writes TensorIR itself, which no trace of schedule primitives expresses, so that its records only name the rule
with its knobs: `replay` follows a trace, and `expand` calls the rule that it names, if it names one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, meta_schedule

from tvmflow.schedules import ReplayError, is_default, task_key
from tvmflow.schedules import registry as rules
from tvmflow.spec import Best, Target

log = logging.getLogger(__name__)

ANNOTATION = "tvmflow.schedule"
"""The annotation of a kernel's root block that names a rule with its knobs."""

KEPT_ATTRIBUTES = ("tirx.noalias", "s_tir")
"""What a kernel's schedule may depend on, beside attributes that stages of tvmflow gave it."""


def normalized(func: tirx.PrimFunc) -> tvm.IRModule:
    """A kernel as a module that is the same whatever the kernel is called."""
    for name in func.attrs.keys() if func.attrs else ():  # iterating over it goes by index
        if name not in KEPT_ATTRIBUTES and not name.startswith("tvmflow."):
            func = func.without_attr(name)
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})


def workload_of(module: tvm.IRModule) -> tuple[str, str]:
    """MetaSchedule's form of a normalised module: its structural hash in digits, and itself in base 64."""
    shash, content = meta_schedule.database.Workload(module).as_json()
    return str(shash), str(content)


def replay(module: tvm.IRModule, record: Sequence[Any]) -> Schedule:
    """A record's trace on a normalised kernel; `expand` what comes of it. Raises ReplayError."""
    schedule = Schedule(module)
    try:
        workload = meta_schedule.database.Workload(module)
        trace = meta_schedule.database.TuningRecord.from_json(list(record), workload).trace
        trace.apply_to_schedule(schedule, remove_postproc=False)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ReplayError(str(error).strip().splitlines()[-1]) from error
    return schedule


def expand(scheduled: tvm.IRModule, unscheduled: tvm.IRModule, target: Target) -> tvm.IRModule:
    """The kernel that a replayed trace stands for: if it names a rule, the rule's. Raises ReplayError."""
    text = rule_of(scheduled)
    if text is None:
        return scheduled
    try:
        name, knobs = rules.parse(text, target)
        schedule = rules.of(target).RULES[name](unscheduled["main"], target, **knobs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ReplayError(f"{text} can't be applied: {error}") from error
    if schedule is None:
        raise ReplayError(f"{text} doesn't serve this kernel")
    return normalized(schedule.mod["main"])


def rule_of(module: tvm.IRModule) -> str | None:
    """The rule and knobs that a replayed trace names, None if it is a schedule of MetaSchedule's own."""
    annotations = module["main"].body.block.annotations
    return str(annotations[ANNOTATION]) if ANNOTATION in annotations else None


def tuned_kernel(
    func: tirx.PrimFunc, target: Target, records: Mapping[str, Best]
) -> tuple[tirx.PrimFunc, str, str] | None:
    """The kernel by its best record, its task's key and by whom it is; None without a record that helps.

    By whom: "pointwise_nchw(tile=(6, 4)), searched" is a rule with knobs that a search found, "searched" is
    MetaSchedule's own, and "modelled choice" in place of "searched" says that nothing was measured.
    """
    module = normalized(func)
    key = task_key(workload_of(module))
    best = records.get(key)
    if best is None or is_default(best.candidate):
        return None
    try:
        scheduled = replay(module, best.record).mod
        kernel = expand(scheduled, module, target)["main"]
    except ReplayError as error:
        log.info(f"The record of {best.name} can't be used, so it keeps its default: {error}")
        return None
    rule = rule_of(scheduled)
    how = "modelled choice" if best.modelled else "searched"
    return kernel.without_attr("global_symbol"), key, f"{rule}, {how}" if rule else how
