"""`tvmflow tune` from its options to its tables."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmflow.spec import Target, UserError
from tvmflow.system import interrupt
from tvmflow.system.text import text_table
from tvmflow.tune import measure, progress, remote
from tvmflow.tune.apply import default_work_dir, shipped_folders
from tvmflow.tune.builders import Builders, ClusterPool, LocalPool, Pool
from tvmflow.tune.session import Options, Session, State, failure_text
from tvmflow.tune.store import Identity, Store
from tvmflow.tune.transfer import Lesson, find_lessons

log = logging.getLogger("tvmflow.tune")

EMULATED_NOTE = "the board is emulated, so that its times say nothing: none are shown, and no build uses these records."
BUSY = 0.5
"""Load for each core from which something else is running."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be tuned, with what, and where the records go."""

    target: Target
    model: str
    shapes: Sequence[Any]
    options: Options
    runner: str
    boards: Sequence[remote.Where]
    listed: Callable[[], Sequence[remote.Where]] | None
    builders: str | None
    transfer: bool
    calibration: Path | None
    work_dir: Path
    started: float


def parse_duration(text: str, option: str = "--time-budget") -> float:
    """Seconds from "90s", "30m" or "2h". Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or not float(match[1]):
        raise UserError(f"{option} is a duration such as 90s, 30m or 2h, not {text!r}.")
    return float(match[1]) * UNITS[match[2]]


def prepare(
    target: Target,
    model: str,
    shapes: Sequence[Any],
    *,
    trials: int,
    time_budget: str,
    runner: str,
    seed: int,
    work_dir: Path | None,
    min_gain: float,
    builders: str | None,
    transfer: bool,
    boards: Sequence[remote.Where] = (),
    listed: Callable[[], Sequence[remote.Where]] | None = None,
    calibration: Path | None = None,
) -> Plan:
    """Check what can be checked before anything takes time. `listed` says which boards a tracker has at the moment.

    Raises UserError, MissingDependencyError.
    """
    started = time.perf_counter()
    options = Options(trials=trials, budget_s=parse_duration(time_budget), seed=seed, min_gain=min_gain)
    chosen, reason = measure.choose_runner(runner, target, [where.name for where in boards])
    log.info(f"Tuning {model} for {target.name} with the {chosen} runner: {reason}")
    if chosen == "modelled" and builders:
        raise UserError("--builders compiles kernels for CPUs; the modelled runner compiles for the GPU here.")
    if chosen != "modelled" and calibration:
        raise UserError(f"--calibration is for the model of a GPU; the {chosen} runner measures.")
    load = os.getloadavg()[0]
    if chosen == "local" and target.gpu is None and load > BUSY * target.cpu.cores:
        log.info(f"This computer is busy (load {load:.1f} on {target.cpu.cores} cores), which spoils what is measured")
    return Plan(
        target=target,
        model=model,
        shapes=shapes,
        options=options,
        runner=chosen,
        boards=boards,
        listed=listed,
        builders=builders,
        transfer=transfer,
        calibration=calibration,
        work_dir=work_dir or default_work_dir(),
        started=started,
    )


def list_tasks(target: Target, model: str, shapes: Sequence[Any]) -> tuple[str, Any]:
    """The kernels that would be tuned, as text and as data."""
    from tvmflow.network.frontend import import_model
    from tvmflow.tune.tasks import extract

    tasks = extract(import_model(model, shapes), target)
    rows = [[task.name, task.calls, ", ".join(task.modules)] for task in tasks]
    content = [
        {"name": task.name, "key": task.key, "calls": task.calls, "modules": list(task.modules)} for task in tasks
    ]
    return text_table(["task", "calls", "modules"], rows), content


def tune(plan: Plan, names: str | None) -> tuple[str, Any]:
    """Search, and say what came of it. KeyboardInterrupt passes after a word on how to go on."""
    if plan.runner == "modelled":
        from tvmflow.tune import modelled

        return modelled.tune(plan, names)
    from tvmflow.network.frontend import import_model
    from tvmflow.tune.tasks import extract, select

    with (
        interrupt.deferred(),
        remote.boards(plan.boards, plan.target, check=interrupt.check) as boards,
        Store(*_whose(plan, boards), writable=True) as store,
        # their processes import what they need while this one imports the network
        closing(Builders(_pool(plan, store.identity), check=interrupt.check)) as builders,
        closing(_measurer(plan, boards, builders)) as measurer,
    ):
        whose = store.identity
        try:
            if store.quarantined:
                log.info(f"{store.quarantined} unusable lines were set aside in {store.folder / 'quarantine.jsonl'}")
            tasks = select(extract(import_model(plan.model, plan.shapes), plan.target), names)
            spent = store.spent(task.key for task in tasks)
            if spent:
                log.info(f"Going on after {spent} trials of earlier runs in {store.folder}")
            with progress.watching() if not whose.emulated else nullcontext(_count_trials) as watch:
                session = Session(
                    tasks,
                    plan.target,
                    store,
                    measurer,
                    plan.options,
                    watch,
                    started=plan.started,
                    check=interrupt.check,
                    lessons=_lessons(plan, whose, {task.key for task in tasks}),
                )
                state = session.run()
        except KeyboardInterrupt:
            kept = sum(entry["kind"] == "trial" for entry in store.entries)
            log.info(f"Stopped; {kept} trials are kept. To go on: {shlex.join(['tvmflow', *sys.argv[1:]])}")
            raise
        if whose.emulated:
            return f"{_trials(state)}\n{store.folder}: {EMULATED_NOTE}", summary(state, store)
        text = f"{progress.final_text(state)}\n{store.folder}: `tvmflow build` uses these records{_hint(plan)}."
        return text, summary(state, store)


def _whose(plan: Plan, boards: Sequence[remote.Board]) -> tuple[Path, Identity]:
    """Where the records go, and whose they are."""
    from tvmflow.tune.tasks import identity

    whose = remote.marked(identity(plan.target), boards)
    return plan.work_dir / whose.folder, whose


def _measurer(plan: Plan, boards: list[remote.Board], builders: Builders) -> measure.Measurer:
    if plan.runner == "rpc":
        return remote.RemoteMeasurer(boards, builders, check=interrupt.check, listed=plan.listed)
    return measure.LocalMeasurer(plan.target, builders, check=interrupt.check)


def _count_trials(state: State) -> None:
    log.info(_trials(state))


def _trials(state: State) -> str:
    failed = failure_text(state.failures)
    return f"{state.spent}/{state.options.trials} trials ({state.tried} in this run), failed: {failed}"


def _pool(plan: Plan, whose: Identity) -> Pool:
    if plan.builders:
        return ClusterPool(plan.builders, plan.target, whose.target)
    return LocalPool(plan.target, whose.target)


def _lessons(plan: Plan, whose: Identity, known: Collection[str]) -> list[Lesson]:
    if not plan.transfer:
        return []
    lessons = list(find_lessons([plan.work_dir, *shipped_folders()], whose, plan.target, known))
    if lessons:
        trials, sources = sum(len(lesson.measured) for lesson in lessons), {lesson.source for lesson in lessons}
        log.info(
            f"The cost model starts from {trials} trials of {len(lessons)} kernels in {', '.join(sorted(sources))}"
        )
    return lessons


def _hint(plan: Plan) -> str:
    return "" if plan.work_dir == default_work_dir() else f" with --db {plan.work_dir}"


def summary(state: State, store: Store) -> dict[str, Any]:
    """A search as data."""
    hidden = store.identity.emulated
    before, after = (None, None) if hidden else state.compared_ms
    return {
        "folder": str(store.folder),
        "reason": state.reason,
        "trials": state.spent,
        "trials_of_this_run": state.tried,
        "failures": dict(state.failures),
        "quarantined_lines": store.quarantined,
        "seconds": dict(state.seconds),
        "basis": store.identity.basis,
        "untuned_ms": before,
        "tuned_ms": after,
        "tasks": [
            {
                "name": row.task.name,
                "key": row.task.key,
                "calls": row.task.calls,
                "trials": row.trials,
                "failed": row.failed,
                "untuned_ms": None if hidden else row.default_ms,
                "best_ms": None if hidden else row.best_ms,
                "best": row.best,
                "winner": best.candidate if (best := store.best(row.task.key)) else None,
            }
            for row in state.rows
        ],
    }
