"""What a search learns from earlier ones: from which, how much, and that its choices get better by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.schedules import registry as rules
from tvmflow.schedules import spell
from tvmflow.schedules.cpu import choices
from tvmflow.spec import Target
from tvmflow.targets import TARGETS
from tvmflow.targets.search import Identity, Options, Result
from tvmflow.tune import transfer
from tvmflow.tune.kernels import Kernels
from tvmflow.tune.session import Session
from tvmflow.tune.store import Store
from tvmflow.tune.tasks import Task, extract, identity

BOARD = TARGETS["raspberry-pi-4b"]  # no kernel runs here, and this board's are the same on every computer
MINE = identity(BOARD)


@pytest.fixture(scope="module")
def tasks() -> tuple[Task, ...]:
    """Two pointwise convolutions without blocks, which have the largest family of choices."""
    return extract(import_model("networks:two_pointwise", [parse_input_shape("1x6x12x12")]), BOARD)


def made_up_ms(text: str) -> float:
    """Loads for each product, which a cost model can see in the kernel; without a tile it is slow."""
    rows, vectors = rules.parse(text, BOARD)[1].get("tile", (1, 1))
    return 1 + 1 / rows + 1 / vectors


class MadeUp:
    """A measurer that knows all times beforehand."""

    name = "made up"

    def __init__(self) -> None:
        self.seconds = {"build": 0.0, "run": 0.0}

    def measure(self, task, candidates, best_ms) -> Iterator[Result]:
        for candidate in candidates:
            yield Result(outcome="ok", ms=(made_up_ms(candidate.text),))

    def compare(self, task, candidates, rounds) -> list[tuple[float, ...]]:
        return [(made_up_ms(candidate.text),) * rounds for candidate in candidates]


def search(task: Task, folder: Path, whose: Identity, lessons=(), trials: int = 12, board: Target = BOARD) -> Store:
    options = Options(trials=trials, budget_s=600.0, batch=4, min_gain=0.0, population=6)
    with Store(folder / whose.folder, whose, writable=True) as store:
        kernels = Kernels(tasks=(task,), target=board, measurer=MadeUp(), lessons=lessons)
        Session(kernels, store, options, lambda state: None).run()
    return store


SIBLINGS = [MINE, replace(MINE, rules="other"), replace(MINE, board="sibling", cpu="other")]


@pytest.fixture(scope="module")
def earlier(tasks, tmp_path_factory) -> Path:
    """A work dir where the first kernel was tuned for this board and for its siblings."""
    folder = tmp_path_factory.mktemp("earlier")
    every = len(choices("pointwise_nchw", tasks[0].func, BOARD))
    for whose, trials in zip(SIBLINGS, (every, 12, 12), strict=True):
        search(tasks[0], folder, whose, trials=trials)
    return folder


@pytest.mark.parametrize(
    ("board", "distance"),
    [
        ("raspberry-pi-4b", 0),
        ("raspberry-pi-5", 2),
        ("android-arm64", 2),
        ("raspberry-pi-3b-32bit", None),
        ("host", None),
    ],
)
def test_boards_of_the_same_architecture_are_siblings(board, distance):
    assert transfer.distance(identity(TARGETS[board]), identity(TARGETS["raspberry-pi-4b"])) == distance


def test_the_nearest_teach_first(tasks, earlier):
    lessons = list(transfer.find_lessons([earlier], MINE, BOARD, {tasks[1].key}))
    assert [lesson.source for lesson in lessons] == [whose.folder for whose in SIBLINGS]
    assert {lesson.task.key for lesson in lessons} == {tasks[0].key}


def test_own_trials_of_the_same_kernel_are_no_lesson(tasks, earlier):
    """They are recalled."""
    lessons = transfer.find_lessons([earlier], MINE, BOARD, {tasks[0].key})
    assert [lesson.source for lesson in lessons] == [whose.folder for whose in SIBLINGS[1:]]


def test_no_more_is_learnt_than_is_good(earlier, monkeypatch):
    monkeypatch.setattr(transfer, "MOST_OF_TASK", 5)
    monkeypatch.setattr(transfer, "MOST", 8)
    lessons = list(transfer.find_lessons([earlier], MINE, BOARD, ()))
    assert sum(len(lesson.measured) for lesson in lessons) <= 8
    assert all(2 <= len(lesson.measured) <= 5 for lesson in lessons)
    times = [ms for _, ms in lessons[0].measured]
    assert times == sorted(times)


def test_records_that_cannot_be_replayed_teach_nothing(earlier, tmp_path):
    folder = tmp_path / MINE.folder
    folder.mkdir()
    for name in ("identity.json", "ledger.jsonl"):
        text = (earlier / MINE.folder / name).read_text()
        (folder / name).write_text(text.replace("pointwise_nchw(tile", "pointwise_nchw(tall"))
    assert list(transfer.find_lessons([tmp_path], MINE, BOARD, ())) == []


def test_a_search_chooses_better_with_lessons(tasks, earlier, tmp_path):
    """Of the first batch only: the model has seen nothing of this kernel but its default."""
    lesson = next(transfer.find_lessons([earlier], MINE, BOARD, {tasks[1].key}))
    store = search(tasks[1], tmp_path, MINE, [lesson], trials=5)
    started = next(entry for entry in store.entries if entry["kind"] == "run")
    assert started["learnt_from"] == {MINE.folder: len(lesson.measured)}
    possible = sorted(
        made_up_ms(spell("pointwise_nchw", knobs)) for knobs in choices("pointwise_nchw", tasks[1].func, BOARD)
    )
    chosen = sorted(made_up_ms(text) for text in store.trials(tasks[1].key))
    assert chosen[0] <= possible[len(possible) // 10]
    assert chosen[2] < possible[len(possible) // 2]  # one of a batch is drawn by lot


def test_tune_learns_from_its_work_dir(tvmflow, tmp_path):
    host = TARGETS["host"]
    task = extract(import_model("networks:two_pointwise", [parse_input_shape("1x6x12x12")]), host)[0]
    search(task, tmp_path / "work", identity(host), board=host)
    model = ["--model", "networks:two_pointwise", "--input-shape", "1x6x11x11", "--trials", "3"]
    done = tvmflow("tune", *model, "--work-dir", tmp_path / "work", cwd=ROOT / "tests", XDG_CACHE_HOME=str(tmp_path))
    assert done.code == 0, done.err
    assert "The cost model starts from" in done.err
