"""The records that tvmflow brings: readable, of today's rules, and found by a build for the CPU that they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tvmflow.schedules import rules_version
from tvmflow.spec import Target
from tvmflow.targets import TARGETS
from tvmflow.tune import apply
from tvmflow.tune.space import replayed
from tvmflow.tune.store import Store
from tvmflow.tune.tasks import identity, task_of

STORES = [folder for folder in apply.shipped_folders() if Store(folder).identity.basis == "measured"]
SIMULATED = [folder for folder in apply.shipped_folders() if Store(folder).identity.basis == "simulated"]


def board_of(store: Store) -> Target:
    """The board that was tuned, also where this computer is another."""
    target = TARGETS[store.identity.board]
    return replace(target, cpu=replace(target.cpu, model=store.identity.cpu), tvm=store.identity.target)


def test_some_are_brought():
    assert STORES


@pytest.mark.parametrize("folder", STORES, ids=lambda folder: folder.name)
def test_they_are_whole_and_of_todays_rules(folder: Path):
    store = Store(folder)
    assert store.quarantined == 0
    assert store.identity.rules == rules_version(), "rules have changed: `make tuned` on that CPU, or remove the folder"
    assert store.identity == replace(identity(board_of(store)), target=store.identity.target)


@pytest.mark.parametrize("folder", STORES, ids=lambda folder: folder.name)
def test_a_build_for_that_cpu_finds_and_replays_them(folder: Path, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(folder)
    target = board_of(store)
    found = apply.find_records(target)
    assert set(found) == set(store.tasks)
    for key, best in found.items():
        task = task_of(key, best.name, store.tasks[key]["workload"])
        assert task is not None
        assert replayed(task, target, best.candidate, best.record).module


@pytest.mark.parametrize("folder", SIMULATED, ids=lambda folder: folder.name)
def test_a_build_for_that_vta_finds_its_tilings(folder: Path, monkeypatch, tmp_path):
    from tvmflow.vta import search
    from tvmflow.vta.records import recorded

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(folder)
    assert store.quarantined == 0
    target = TARGETS[store.identity.board]
    assert store.identity == search.identity(target), (
        "tilings mean something else now: tune again, or remove the folder"
    )
    found = apply.find_records(target)
    assert set(found) == set(store.tasks)
    assert all(recorded(best) for best in found.values())
