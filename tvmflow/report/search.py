"""A search of `tvmflow tune` as data for a report, and as the points of its convergence plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from tvmflow.spec import UserError
from tvmflow.targets.search import latency_ms
from tvmflow.tune.store import Entry, Store

Search = dict[str, Any]

WIDTH, HEIGHT = 240.0, 80.0
HEADROOM = 1.5
"""Trials slower than this many times the untuned kernel are drawn at the upper edge."""


def search_of(store: Store) -> Search:
    """A store's content in the form of `search` in docs/report.schema.json. Latencies are measured, in ms.

    Raises UserError for those of an emulated board or a model.
    """
    identity = store.identity
    if identity.emulated:
        raise UserError(f"The records in {store.folder} are of an emulated board, whose times say nothing.")
    if identity.modelled:
        raise UserError(f"The records in {store.folder} are a model's choices; a report shows what was measured.")
    return {
        "board": identity.board,
        "cpu": identity.cpu,
        "tvm": identity.tvm,
        "rules": identity.rules,
        "basis": identity.basis,
        "unit": "ms",
        "trials": store.spent(store.tasks),
        "seconds": store.seconds(store.tasks),
        "failures": dict(store.failures(store.tasks)),
        "tasks": [_task(store, key) for key in store.tasks],
    }


def _task(store: Store, key: str) -> dict[str, Any]:
    best, default = store.best(key), store.tasks[key].get("default")
    untuned = store.trials(key).get(default or "")
    winner = None
    if best is not None:
        winner = {name: value for name, value in asdict(best).items() if name in ("candidate", "ms", "default_ms")}
        winner["compared"] = best.compared
    return {
        "name": store.tasks[key]["name"],
        "key": key,
        "untuned_ms": latency_ms(untuned) if untuned and untuned["outcome"] == "ok" else None,
        "winner": winner,
        "trials": [_trial(entry) for entry in store.trials(key).values()],
    }


def _trial(entry: Entry) -> dict[str, Any]:
    good = entry["outcome"] == "ok"
    return {
        "candidate": entry["candidate"],
        "outcome": entry["outcome"],
        "ms": latency_ms(entry) if good else None,
    }


def convergence(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """A task's trials as the points of a plot of WIDTH × HEIGHT, y down; None if nothing succeeded.

    `best` is the line of the fastest so far, `trials` are (x, y) of successful ones, `failures` the x of others,
    `untuned` the y of the untuned kernel or None, `slowest_us` and `fastest_us` what the edges stand for.
    """
    times = [trial["ms"] for trial in task["trials"]]
    good = [ms for ms in times if ms is not None]
    if not good:
        return None
    untuned = task["untuned_ms"]
    highest = min(max(good), HEADROOM * (untuned or min(good)))
    lowest = min(good)
    step, span = WIDTH / max(1, len(times) - 1), (highest - lowest) or 1.0

    def y(ms: float) -> float:
        return round(HEIGHT * (highest - min(ms, highest)) / span, 1) if highest > lowest else HEIGHT

    best = list(accumulate((float("inf") if ms is None else ms for ms in times), min))
    points, before = [], None
    for place, ms in enumerate(best):
        if ms == float("inf"):
            continue
        if before is not None and ms < before:
            points.append((round(step * place, 1), y(before)))
        points.append((round(step * place, 1), y(ms)))
        before = ms
    return {
        "best": points,
        "trials": [(round(step * place, 1), y(ms)) for place, ms in enumerate(times) if ms is not None],
        "failures": [round(step * place, 1) for place, ms in enumerate(times) if ms is None],
        "untuned": y(untuned) if untuned is not None else None,
        "slowest_us": 1e3 * highest,
        "fastest_us": 1e3 * lowest,
        "beyond": sum(ms > highest for ms in good),
    }
