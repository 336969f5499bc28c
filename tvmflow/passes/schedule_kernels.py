"""Give each kernel the first schedule of its target's rules that fits it; what fits none stays as TVM made it."""

from __future__ import annotations

from dataclasses import replace

from tvmflow.passes.fuse_operators import kernels
from tvmflow.schedules import RULES
from tvmflow.spec import Program, Target


def schedule_kernels(program: Program, target: Target) -> Program:
    """Rules are tried in the order of `target.schedules`; `Layer.schedule` says which one served."""
    module, served = program.module, {}
    for name, func in kernels(module).items():
        for rule in target.schedules:
            schedule = RULES[rule](func, target)
            if schedule is not None:
                module[name] = schedule.mod["main"].with_attrs(func.attrs)
                served[name] = rule
                break
    layers = tuple(replace(layer, schedule=served.get(layer.kernel, "default")) for layer in program.layers)
    return replace(program, module=module, layers=layers)
