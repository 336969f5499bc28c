"""The kernels of a network that can be tuned: those which `schedule_kernels` would see, equal ones merged."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import meta_schedule

from tvmflow.passes.fuse_operators import kernels
from tvmflow.passes.records import normalized, workload_of
from tvmflow.passes.schedule_kernels import schedule_kernels
from tvmflow.pipeline import STAGES
from tvmflow.schedules import registry as rules
from tvmflow.schedules import task_key
from tvmflow.spec import Program, Target
from tvmflow.system import toolchain
from tvmflow.targets.search import Identity


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kernel to be tuned: `module` has it as `main`, before any schedule; `calls` is how often the network does.

    `workload` is MetaSchedule's form of the module, `key` its structural hash, `modules` the layers it serves.
    """

    key: str
    name: str
    module: tvm.IRModule
    workload: tuple[str, str]
    calls: int
    modules: tuple[str, ...]

    @property
    def func(self) -> tirx.PrimFunc:
        return self.module["main"]

    @property
    def arguments(self) -> list[tuple[str, list[int]]]:
        """dtype and shape of each buffer, inputs before outputs."""
        found = meta_schedule.arg_info.ArgInfo.from_prim_func(self.func)
        return [(str(info.dtype), [int(dim) for dim in info.shape]) for info in found]


def identity(target: Target) -> Identity:
    """Whose records those of this board are."""
    return Identity(
        board=target.name,
        cpu=target.cpu.model,
        target=as_plain(tvm_target(target).export()),
        tvm=importlib.metadata.version("apache-tvm"),
        rules=rules.of(target).rules_version(),
    )


def tvm_target(target: Target) -> tvm.target.Target:
    return tvm.target.Target(toolchain.tvm_target_dict(target))


def as_plain(content: Any) -> Any:
    """TVM's containers as Python's, as JSON would give them back."""
    from tvm.s_tir.meta_schedule.utils import _json_de_tvm

    return _json_de_tvm(content)


def task_of(key: str, name: str, workload: Sequence[str]) -> Task | None:
    """The task of a store's line, which knows nothing of layers; None if this TVM can't read it."""
    try:
        module = meta_schedule.database.Workload.from_json(list(workload)).mod
    except (RuntimeError, ValueError, TypeError):
        return None
    return Task(key=key, name=name, module=module, workload=(workload[0], workload[1]), calls=0, modules=())


def extract(program: Program, target: Target) -> tuple[Task, ...]:
    """The tasks of a network, in the order of their first call."""
    with tvm_target(target):
        for stage in STAGES[target.kind]:
            if stage is schedule_kernels:
                break
            program = stage(program, target)
    found = kernels(program.module)
    grouped: defaultdict[str, list[int]] = defaultdict(list)
    workloads = {}
    for index, layer in enumerate(program.layers):
        if layer.kernel not in workloads:
            workloads[layer.kernel] = workload_of(normalized(found[layer.kernel]))
        grouped[task_key(workloads[layer.kernel])].append(index)
    tasks = []
    for key, calls in grouped.items():
        name = program.layers[calls[0]].kernel
        tasks.append(
            Task(
                key=key,
                name=name,
                module=normalized(found[name]),
                workload=workloads[name],
                calls=len(calls),
                modules=tuple(dict.fromkeys(path for index in calls for path in program.layers[index].modules)),
            )
        )
    return tuple(tasks)
