"""The search of kinds whose kernels are TVM's: schedules of rules and of MetaSchedule, timed on a board or modelled.

Importing this imports no tvm: what a command refuses, it refuses at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.spec import Target, UserError
from tvmflow.system import interrupt
from tvmflow.targets.search import (
    Identity,
    Measurer,
    Opened,
    Options,
    Plan,
    Remarks,
    Result,
    Space,
    Standing,
    Winner,
    latency_ms,
    select,
    typical,
)
from tvmflow.tune import measure, remote
from tvmflow.tune.apply import shipped_folders
from tvmflow.tune.builders import Builders, ClusterPool, LocalPool, Pool
from tvmflow.tune.store import classified
from tvmflow.tune.transfer import Lesson, find_lessons

if TYPE_CHECKING:
    from tvmflow.tune.tasks import Task

log = logging.getLogger("tvmflow.tune")

FINALISTS = 3

CERTAIN = 0.99
"""A winner has to take less than this share of the default's time, or the default stays."""

MOST_POPULATION = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernels:
    """A search of schedules that are measured: the fastest of each kernel are taken in turns with its default."""

    tasks: Sequence[Task]
    target: Target
    measurer: Measurer
    lessons: Iterable[Lesson] = ()

    def spaces(self, options: Options, check: Callable[[], None]) -> tuple[Mapping[str, Space], Mapping[str, int]]:
        """The space of each task, with one cost model for all; and what it learnt from, with how many trials."""
        from tvmflow.tune import space

        model = space.CostModel()
        remaining = max(1, options.trials // max(1, len(self.tasks)))
        population = options.population or min(MOST_POPULATION, max(16, 8 * remaining))
        learnt: Counter[str] = Counter()
        for lesson in self.lessons:
            check()
            model.teach(lesson, self.target)
            learnt[lesson.source] += len(lesson.measured)
        made = {
            task.key: space.Space(
                task, self.target, model, seed=options.seed, batch=options.batch, population=population
            )
            for task in self.tasks
        }
        return made, learnt

    def begin(self, standing: Standing) -> None:
        """Nothing goes before the first trial."""

    def decide(self, standing: Standing) -> None:
        """Take the fastest of each task in turns with its default: the best of noisy measurements is biased."""
        for task in self.tasks:
            standing.check()
            if standing.decided(task.key):
                continue
            trials = standing.trials(task.key)
            default = standing.spaces[task.key].default
            names = [name for name in fastest(trials) if name != default.text][: standing.options.finalists]
            if names and default.text in trials:
                self._compare(standing, task, [default.text, *names])
        standing.show()

    def _compare(self, standing: Standing, task: Task, names: Sequence[str]) -> None:
        candidates = [found for name in names if (found := standing.replay(task.key, name)) is not None]
        if not candidates or candidates[0].text != names[0]:
            return
        before = dict(self.measurer.seconds)
        times = self.measurer.compare(task, candidates, standing.options.rounds)
        standing.spend("waiting", {kind: self.measurer.seconds[kind] - before[kind] for kind in before})
        if len(times) != len(candidates) or any(
            classified(Result(outcome="ok", ms=row)).outcome != "ok" for row in times
        ):
            return
        typicals = [typical(row) for row in times]
        index = typicals.index(min(typicals))
        if typicals[index] > CERTAIN * typicals[0]:
            index = 0
        standing.win(
            [Winner(task=task.key, candidate=candidates[index].text, ms=times[index], default_ms=times[0])],
        )

    def remarks(self) -> Remarks:
        """How its times were taken."""
        return Remarks(how="measured one by one, with warm caches")


def fastest(trials: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The successful candidates of a task that have a record, the fastest first."""
    good = [trial for trial in trials.values() if trial["outcome"] == "ok" and "record" in trial]
    return [trial["candidate"] for trial in sorted(good, key=latency_ms)]


def check(target: Target, runner: str, *, elsewhere: bool) -> None:
    """Raise UserError for what no search can do."""
    if target.arithmetic == "int8":
        raise UserError(
            f"There is no search of int8 kernels for {target.name}, only for VTA: `tvmflow build --dtype int8` takes "
            "the tiles that the rules for int8 choose by themselves."
        )


choose_runner = measure.choose_runner


def identity(target: Target) -> Identity:
    """Whose records those of this board are."""
    from tvmflow.tune.tasks import identity as identity_of

    return identity_of(target)


def tasks(target: Target, model: str, shapes: Sequence[Any]) -> tuple[Task, ...]:
    """The kernels that would be tuned."""
    from tvmflow.network.frontend import import_model
    from tvmflow.tune.tasks import extract

    return extract(import_model(model, shapes), target)


@contextmanager
def opened(plan: Plan, names: str | None) -> Iterator[Opened]:
    """A search with the boards that it takes, which say whose its records are."""
    if plan.runner == "modelled":
        from tvmflow.tune import modelled

        yield modelled.opened(plan, names)
        return
    with remote.boards(plan.boards, plan.target, check=interrupt.check) as boards:
        whose = remote.marked(identity(plan.target), boards)

        @contextmanager
        def search(folder: Path) -> Iterator[Kernels]:
            with (
                # their processes import what they need while this one imports the network
                closing(Builders(_pool(plan, whose), check=interrupt.check)) as builders,
                closing(_measurer(plan, boards, builders)) as measurer,
            ):
                chosen = select(tasks(plan.target, plan.model, plan.shapes), names)
                lessons = _lessons(plan, whose, {task.key for task in chosen})
                yield Kernels(tasks=chosen, target=plan.target, measurer=measurer, lessons=lessons)

        yield Opened(identity=whose, search=search)


def _measurer(plan: Plan, boards: list[remote.Board], builders: Builders) -> Measurer:
    if plan.runner == "rpc":
        return remote.RemoteMeasurer(boards, builders, check=interrupt.check, listed=plan.listed)
    return measure.LocalMeasurer(plan.target, builders, check=interrupt.check)


def _pool(plan: Plan, whose: Identity) -> Pool:
    if plan.builders:
        return ClusterPool(plan.builders, plan.target, whose.target)
    return LocalPool(plan.target, whose.target)


def _lessons(plan: Plan, whose: Identity, known: Collection[str]) -> Iterator[Lesson]:
    """What earlier searches teach this one; they are looked up when the first is asked for."""
    if not plan.transfer:
        return
    lessons = list(find_lessons([plan.work_dir, *shipped_folders()], whose, plan.target, known))
    if lessons:
        trials, sources = sum(len(lesson.measured) for lesson in lessons), {lesson.source for lesson in lessons}
        log.info(
            f"The cost model starts from {trials} trials of {len(lessons)} kernels in {', '.join(sorted(sources))}"
        )
    yield from lessons
