"""Give each kernel its schedule: one that a search found, else the first of its target's rules that fits."""

from __future__ import annotations

from dataclasses import replace

from tvmflow.passes import type_checks  # noqa: F401 (rules call methods of schedules by the thousand)
from tvmflow.passes.fuse_operators import kernels
from tvmflow.passes.records import tuned_kernel
from tvmflow.schedules import registry as rules
from tvmflow.spec import Program, Target


def schedule_kernels(program: Program, target: Target) -> Program:
    """Rules are tried in the order of `target.schedules`; `Layer.schedule` says by whom each kernel's schedule is.

    What fits no rule and has no record stays as TVM made it.
    """
    module, served, tasks = program.module, {}, {}
    for name, func in kernels(module).items():
        tuned = tuned_kernel(func, target, program.records) if program.records else None
        if tuned is not None:
            kernel, tasks[name], served[name] = tuned
            module[name] = kernel.with_attrs(func.attrs)
            continue
        for rule in target.schedules:
            schedule = rules.of(target).RULES[rule](func, target)
            if schedule is not None:
                module[name] = schedule.mod["main"].with_attrs(func.attrs)
                served[name] = rule
                break
    layers = tuple(replace(layer, schedule=served.get(layer.kernel, "default")) for layer in program.layers)
    used = {key: program.records[key] for key in tasks.values()}
    return replace(program, module=module, layers=layers, records=used)
