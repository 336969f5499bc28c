"""`tvmflow tune` from its options to its tables."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tvmflow.spec import Target, UserError
from tvmflow.system import interrupt
from tvmflow.system.text import text_table
from tvmflow.targets import search as searches
from tvmflow.targets.search import Identity, Options, Plan, Search, SearchKind, Where
from tvmflow.tune import kernels, progress
from tvmflow.tune.apply import default_work_dir
from tvmflow.tune.session import Session, State, described, failure_text
from tvmflow.tune.store import Store

log = logging.getLogger("tvmflow.tune")

EMULATED_NOTE = "the board is emulated, so that its times say nothing: none are shown, and no build uses these records."
BUSY = 0.5
"""Load for each core from which something else is running."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str, option: str = "--time-budget") -> float:
    """Seconds from "90s", "30m" or "2h". Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or not float(match[1]):
        raise UserError(f"{option} is a duration such as 90s, 30m or 2h, not {text!r}.")
    return float(match[1]) * UNITS[match[2]]


def kind_of(target: Target) -> SearchKind:
    """The search of a board's kind: its own, or that of TVM's kernels."""
    return searches.of(target) or kernels


def check(target: Target, runner: str, *, elsewhere: bool) -> None:
    """Raise UserError for what no search can do; `elsewhere` says whether boards or builders were named."""
    kind_of(target).check(target, runner, elsewhere=elsewhere)


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
    boards: Sequence[Where] = (),
    listed: Callable[[], Sequence[Where]] | None = None,
    calibration: Path | None = None,
) -> Plan:
    """Check what can be checked before anything takes time. `listed` says which boards a tracker has at the moment.

    Raises UserError, MissingDependencyError.
    """
    started = time.perf_counter()
    kind, budget_s = kind_of(target), parse_duration(time_budget)
    options = Options(trials=trials, budget_s=budget_s, seed=seed, min_gain=min_gain, finalists=kind.FINALISTS)
    chosen, reason = kind.choose_runner(runner, target, [where.name for where in boards])
    log.info(f"Tuning {model} for {target.name} with the {chosen} runner: {reason}")
    if chosen == "modelled" and builders:
        raise UserError("--builders compiles kernels for CPUs; the modelled runner compiles for the GPU here.")
    if chosen in ("local", "rpc") and calibration:
        raise UserError(f"--calibration is for the model of a GPU; the {chosen} runner measures.")
    load = os.getloadavg()[0]
    if chosen == "local" and target.facts.DEVICE == "cpu" and load > BUSY * target.cpu.cores:
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
    """What would be tuned, as text and as data."""
    tasks = kind_of(target).tasks(target, model, shapes)
    rows = [[task.name, task.calls, ", ".join(task.modules)] for task in tasks]
    content = [
        {"name": task.name, "key": task.key, "calls": task.calls, "modules": list(task.modules)} for task in tasks
    ]
    return text_table(["task", "calls", "modules"], rows), content


def tune(plan: Plan, names: str | None) -> tuple[str, Any]:
    """Search, and say what came of it. KeyboardInterrupt passes after a word on how to go on."""
    with (
        interrupt.deferred(),
        kind_of(plan.target).opened(plan, names) as opened,
        Store(plan.work_dir / opened.identity.folder, opened.identity, writable=True) as store,
    ):
        try:
            if store.quarantined:
                log.info(f"{store.quarantined} unusable lines were set aside in {store.folder / 'quarantine.jsonl'}")
            with opened.search(store.folder) as search:
                spent = store.spent(task.key for task in search.tasks)
                if spent:
                    log.info(f"Going on after {spent} trials of earlier runs in {store.folder}")
                with _watching(opened.identity) as watch:
                    session = Session(search, store, plan.options, watch, started=plan.started, check=interrupt.check)
                    state = session.run()
                return _report(state, store, plan, search)
        except KeyboardInterrupt:
            kept = sum(entry["kind"] == "trial" for entry in store.entries)
            log.info(f"Stopped; {kept} trials are kept. To go on: {shlex.join(['tvmflow', *sys.argv[1:]])}")
            raise


def _watching(whose: Identity) -> AbstractContextManager[progress.Watch]:
    """What a session reports to: times are shown only if they say something of the board."""
    if whose.modelled:
        return nullcontext(_count_ranked)
    return nullcontext(_count_trials) if whose.emulated else progress.watching()


def _report(state: State, store: Store, plan: Plan, search: Search) -> tuple[str, Any]:
    if store.identity.modelled:
        from tvmflow.tune import modelled

        return modelled.report(state, store, plan)
    if store.identity.emulated:
        return f"{_trials(state)}\n{store.folder}: {EMULATED_NOTE}", summary(state, store)
    remarks = search.remarks()
    use = f"{store.folder}: `tvmflow build` uses these records{_hint(plan)}."
    text = "\n".join([progress.final_text(state, remarks.how), *remarks.lines, use])
    return text, {**summary(state, store), **remarks.facts}


def _count_ranked(state: State) -> None:
    log.info(f"{state.spent}/{state.options.trials} candidates compiled and ranked")


def _count_trials(state: State) -> None:
    log.info(_trials(state))


def _trials(state: State) -> str:
    failed = failure_text(state.failures)
    return f"{state.spent}/{state.options.trials} trials ({state.tried} in this run), failed: {failed}"


def _hint(plan: Plan) -> str:
    return "" if plan.work_dir == default_work_dir() else f" with --db {plan.work_dir}"


def summary(state: State, store: Store) -> dict[str, Any]:
    """A search as data."""
    hidden = store.identity.emulated
    before, after = (None, None) if hidden else state.compared_ms
    known = described(state, store)
    return {
        **known,
        "untuned_ms": before,
        "tuned_ms": after,
        "tasks": [
            {
                **told,
                "untuned_ms": None if hidden else row.default_ms,
                "best_ms": None if hidden else row.best_ms,
                "best": row.best,
            }
            for told, row in zip(known["tasks"], state.rows, strict=True)
        ],
    }
