"""The records that tvmflow brings: readable, of today's rules, and found by a build for the board that they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tvmflow.spec import Best, Target
from tvmflow.targets import TARGETS
from tvmflow.targets.search import Identity
from tvmflow.targets.vta import search
from tvmflow.targets.vta.records import recorded
from tvmflow.tune import apply, tasks
from tvmflow.tune.space import replayed
from tvmflow.tune.store import Store

FOLDERS = apply.shipped_folders()


def board_of(store: Store) -> Target:
    """The board that was tuned, also where this computer is another."""
    target = TARGETS[store.identity.board]
    return replace(target, cpu=replace(target.cpu, model=store.identity.cpu), tvm=store.identity.target)


def identity_of(store: Store) -> Identity:
    """What such records would be marked with today."""
    if store.identity.basis == "simulated":
        return search.identity(TARGETS[store.identity.board])
    return replace(tasks.identity(board_of(store)), target=store.identity.target)


def use(store: Store, key: str, best: Best) -> object:
    """What a build makes of a record."""
    if store.identity.basis == "simulated":
        return recorded(best)
    task = tasks.task_of(key, best.name, store.tasks[key]["workload"])
    assert task is not None
    return replayed(task, board_of(store), best.candidate, best.record).module


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_they_are_whole_and_of_todays_rules(folder: Path):
    store = Store(folder)
    assert store.quarantined == 0
    assert store.identity == identity_of(store), "rules have changed: search again, or remove the folder"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_build_for_that_board_finds_and_uses_them(folder: Path, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(folder)
    found = apply.find_records(board_of(store) if store.identity.basis == "measured" else TARGETS[store.identity.board])
    assert set(found) == set(store.tasks)
    assert all(use(store, key, best) for key, best in found.items())
