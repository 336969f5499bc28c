"""Records between stores: merged from elsewhere, exported to be passed on, pruned of what is slow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvmflow.schedules import is_default, task_key
from tvmflow.spec import UserError
from tvmflow.system import limits, untrusted
from tvmflow.targets.search import latency_ms
from tvmflow.tune.store import (
    IDENTITY,
    LOCK,
    RECORDS,
    WORKLOADS,
    Entry,
    Store,
    are_latencies,
    check_record,
    check_workload,
    read_lines,
)


def merge(into: Store, source: Path) -> tuple[int, int]:
    """Add what `source`, a store or a folder with MetaSchedule's two files, has for the same target.

    Returns how many trials were added, and how many lines were left out as unusable here. Merged trials cost no
    budget. Raises UserError if there is nothing to read.
    """
    if (source / IDENTITY).exists():
        other = Store(source)
        if other.identity != into.identity:
            raise UserError(
                f"The records in {source} aren't for this: {', '.join(into.identity.differences(other.identity))}."
            )
        tasks = list(other.tasks.values())
        trials = [trial for task in other.tasks for trial in other.trials(task).values()]
        refused = other.quarantined
    elif (source / RECORDS).exists() and (source / WORKLOADS).exists():
        tasks, trials, refused = _read_database(source, into.identity.target)
    else:
        raise UserError(f"{source} holds neither records of `tvmflow tune` nor a database of MetaSchedule.")
    new = [{**trial, "merged": True} for trial in trials if trial["candidate"] not in into.trials(trial["task"])]
    wanted = {trial["task"] for trial in new} - set(into.tasks)
    into.append([*(task for task in tasks if task["task"] in wanted), *new])
    return len(new), refused


def _read_database(folder: Path, target: Mapping[str, Any]) -> tuple[list[Entry], list[Entry], int]:
    """Tasks and trials from MetaSchedule's files, and how many lines were of no use."""
    tasks: list[Entry | None] = []
    trials, refused = [], 0
    for line in read_lines(folder / WORKLOADS).splitlines():
        try:
            workload = untrusted.parse_json(line, limits.LINE)
            check_workload(workload)
            key = task_key(workload)
            tasks.append({"kind": "task", "task": key, "name": key, "workload": workload})
        except (ValueError, TypeError):
            tasks.append(None)
            refused += 1
    for line in read_lines(folder / RECORDS).splitlines():
        try:
            index, record = untrusted.parse_json(line, limits.LINE)
            task = tasks[index] if type(index) is int and index >= 0 else None
            if task is None:
                raise ValueError("its workload is unusable")
            check_record(record, target)
            ms = [1e3 * seconds for seconds in record[1]]
            if not are_latencies(ms):
                raise ValueError("its times aren't times")
        except (ValueError, TypeError, IndexError):
            refused += 1
            continue
        digest = hashlib.sha256(json.dumps(record[0]).encode()).hexdigest()
        trials.append(
            {
                "kind": "trial",
                "run": 0,
                "task": task["task"],
                "candidate": f"foreign-{digest[:16]}",
                "outcome": "ok",
                "ms": ms,
                "message": "",
                "record": record,
            }
        )
    return [task for task in tasks if task is not None], trials, refused


def prune(store: Store, keep: int) -> int:
    """Forget all but the `keep` fastest records of each task; returns how many were dropped.

    The trials stay known, so they are neither tried nor paid for again.
    """
    kept: set[int] = set()
    for task in store.tasks:
        good = [trial for trial in store.trials(task).values() if trial["outcome"] == "ok" and "record" in trial]
        kept |= {id(trial) for trial in sorted(good, key=latency_ms)[:keep]}
        best = store.best(task)
        kept |= {id(trial) for trial in good if best and trial["candidate"] == best.candidate}
    entries, dropped = [], 0
    for entry in store.entries:
        if "record" in entry and id(entry) not in kept:
            entries.append({key: value for key, value in entry.items() if key != "record"})
            dropped += 1
        else:
            entries.append(entry)
    store.rewrite(entries)
    return dropped


def export(store: Store, out: Path, *, better: bool = False) -> int:
    """Write a store of each task's best record alone to `out`, for schedules/tuned/ or another computer.

    With `better`, only of tasks for which a search found what beats the untuned kernel. Returns how many there are.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} isn't empty; give the records a folder of their own.")
    entries: list[Entry] = []
    for key, task in store.tasks.items():
        best = store.best(key)
        if best is None or (better and is_default(best.candidate)):
            continue
        trials = [
            {**store.trials(key)[name], "merged": True}
            for name in dict.fromkeys((best.candidate, task.get("default", best.candidate)))
            if name in store.trials(key)
        ]
        winners = [entry for entry in store.entries if entry["kind"] == "winner" and entry["task"] == key]
        entries += [task, *trials, *winners[-1:]]
    with Store(out, store.identity, writable=True) as exported:
        exported.append(entries)
    (out / LOCK).unlink()
    return sum(entry["kind"] == "task" for entry in entries)
