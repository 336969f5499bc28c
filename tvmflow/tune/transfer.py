"""What earlier searches teach a new one: their records, for the cost model to start from.

Lessons come from stores in the same work dir, nearest first: this very identity's (other networks), the same board's
with other versions or rules, then boards of the same architecture. Times of another board say nothing of this one, but
the cost model learns how candidates of one kernel compare, and that carries over.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmflow.schedules import ReplayError
from tvmflow.spec import Target, UserError
from tvmflow.targets.search import Identity, latency_ms
from tvmflow.tune.store import Store, find_stores

if TYPE_CHECKING:
    from tvmflow.tune.space import Candidate
    from tvmflow.tune.tasks import Task

log = logging.getLogger("tvmflow.tune")

MOST_OF_TASK, MOST = 32, 256
"""Trials that are learnt from. More would make each training of the model slower, and new trials lighter in it."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Candidates of one kernel with their latencies in ms, all from one store."""

    source: str
    task: Task
    measured: tuple[tuple[Candidate, float], ...]


def find_lessons(folders: Sequence[Path], wanted: Identity, target: Target, known: Collection[str]) -> Iterator[Lesson]:
    """Lessons for a search of `wanted` in work dirs or stores, nearest first, MOST trials of them at most.

    `known` are the tasks of the search itself: what this identity's store has of them is no lesson, but recalled.
    """
    left = MOST
    for store in _nearest_first(folders, wanted):
        for key, entry in store.tasks.items():
            if store.identity == wanted and key in known:
                continue
            lesson = _lesson(store, key, entry, target, min(left, MOST_OF_TASK))
            if lesson is not None:
                left -= len(lesson.measured)
                yield lesson
            if not left:
                return


def _nearest_first(folders: Sequence[Path], wanted: Identity) -> list[Store]:
    found = []
    for path in dict.fromkeys(path for folder in folders for path in find_stores(folder)):
        try:
            store = Store(path)
        except UserError as error:
            log.debug(f"Not learnt from: {error}")
            continue
        steps = distance(store.identity, wanted)
        if steps is not None:
            found.append((steps, path.name, store))
    return [store for _, _, store in sorted(found, key=lambda row: row[:2])]


def distance(identity: Identity, wanted: Identity) -> int | None:
    """0 for the same identity, then the same board, then the same architecture; None if there is nothing to learn.

    From an emulated board or a model there isn't.
    """
    if identity == wanted:
        return 0
    if identity.unmeasured:
        return None
    if (identity.board, identity.cpu) == (wanted.board, wanted.cpu):
        return 1
    return 2 if _architecture(identity) == _architecture(wanted) else None


def _architecture(identity: Identity) -> tuple[str, str]:
    """Kind of target, and the first word of LLVM's triple; this computer's own has none."""
    triple = str(identity.target.get("mtriple", ""))
    return str(identity.target.get("kind", "")), triple.split("-")[0]


def _lesson(store: Store, key: str, entry: dict, target: Target, most: int) -> Lesson | None:
    """Up to `most` trials of a task, evenly from the fastest to the slowest; None if they don't compare two."""
    from tvmflow.tune.space import replayed
    from tvmflow.tune.tasks import task_of

    good = [row for row in store.trials(key).values() if row["outcome"] == "ok" and "record" in row]
    if len(good) < 2:
        return None
    ordered = sorted(good, key=latency_ms)
    count = min(len(ordered), most)
    task = task_of(key, entry["name"], entry["workload"])
    if task is None:
        return None
    measured = []
    for row in (ordered[place * len(ordered) // count] for place in range(count)):
        try:
            measured.append((replayed(task, target, row["candidate"], row["record"]), latency_ms(row)))
        except ReplayError:
            continue
    return Lesson(source=store.folder.name, task=task, measured=tuple(measured)) if len(measured) > 1 else None
