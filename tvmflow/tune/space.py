"""What may be tried on a kernel: the knobs of the rule that serves it, then MetaSchedule's own space.

A rule writes TensorIR itself, which no trace of schedule primitives expresses. Its candidates are therefore traces that
annotate the kernel with the rule and its knobs, "pointwise_nchw(tile=(6, 4))", and `expand` calls the rule. So records
are MetaSchedule's own; a tool that knows no rules replays them to the unscheduled kernel, which is slow and right. A
rule's family is small enough to be listed, so it isn't sampled as a ScheduleFn: every choice can be ranked by the cost
model, none is tried twice, and it is known when all were.

The cost model sees expanded kernels, so what it learns on one family serves the other.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.s_tir import Schedule, meta_schedule
from tvm.s_tir.meta_schedule import _ffi_api

from tvmflow.passes.records import ANNOTATION, expand, replay
from tvmflow.schedules import UNSCHEDULED, ReplayError, spell
from tvmflow.schedules import registry as rules
from tvmflow.spec import Target
from tvmflow.targets.search import typical
from tvmflow.tune.tasks import Task, tvm_target
from tvmflow.tune.transfer import Lesson

EXPLORED = 0.25
"""Share of a batch that is drawn by lot rather than by the cost model."""
POPULATION_BEHIND_A_RULE = 16
"""Of MetaSchedule's evolution, after a rule's choices: what it finds there is never near, and a large one takes seconds
for each batch."""
SILENT = logging.getLogger("tvmflow.tune.metaschedule")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule of a task to be tried: the kernel as `module`, and `record`, a MetaSchedule record without times.

    `text` tells it from the task's other candidates: a rule with its knobs, "default", or a digest.
    """

    task: str
    text: str
    module: tvm.IRModule
    record: list[Any]


class _Context(meta_schedule.TuneContext):
    """A TuneContext without the import of tensor intrinsics, half a minute that nothing here has a use for."""

    def __init__(self, task: Task, target: tvm.target.Target, strategy: Any, seed: int) -> None:
        kind = str(target.kind)
        space = meta_schedule.space_generator.PostOrderApply(sch_rules=kind, postprocs=kind, mutator_probs=kind)
        SILENT.setLevel(logging.CRITICAL)
        # more than one thread would make the search depend on their pace
        self.__init_handle_by_constructor__(
            _ffi_api.TuneContext,
            task.module,
            target,
            space,
            strategy,
            task.name,
            1,
            seed,
            meta_schedule.logging.get_logging_func(SILENT),
        )
        _ffi_api.TuneContextInitialize(self)


class CostModel:
    """MetaSchedule's XGBoost model over the features of expanded kernels, shared by all tasks of a session."""

    def __init__(self) -> None:
        config = meta_schedule.cost_model.xgb_model.XGBConfig(nthread=1)
        self.model = meta_schedule.cost_model.XGBModel(config=config, num_warmup_samples=1, verbose_eval=0)

    @property
    def trained(self) -> bool:
        return self.model.booster is not None

    def learn(self, context: _Context, measured: Sequence[tuple[Candidate, float]]) -> None:
        """From latencies in ms; infinity stands for a failure."""
        if measured:
            results = [
                meta_schedule.runner.RunnerResult([min(ms, 1e7) / 1e3], None)  # a failure counts as hours
                for _, ms in measured
            ]
            self.model.update(context, [_as_measure(candidate.module) for candidate, _ in measured], results)

    def teach(self, lesson: Lesson, target: Target) -> None:
        """From latencies of another search, which compare with each other only."""
        strategy = meta_schedule.search_strategy.EvolutionarySearch()
        self.model.adaptive_training = True  # many lessons are worth few trainings
        self.learn(_Context(lesson.task, tvm_target(target), strategy, 1), lesson.measured)
        self.model.adaptive_training = False  # or the search's own trials would wait for a fifth more than all lessons
        kernel = meta_schedule.utils.shash2hex(lesson.task.module)
        if kernel in self.model.data:  # under another name, or they would be compared with this search's latencies
            self.model.data[f"{lesson.source} {kernel}"] = self.model.data.pop(kernel)

    def rank(self, context: _Context, candidates: Sequence[Candidate]) -> np.ndarray:
        """A score for each, higher is faster."""
        return self.model.predict(context, [_as_measure(candidate.module) for candidate in candidates])


class Space:
    """The candidates of one task.

    `default` is what it gets without tuning, `choices` are the rule's others that weren't proposed yet. It is
    `exhausted` when MetaSchedule's own space has no more either.
    """

    def __init__(self, task: Task, target: Target, model: CostModel, *, seed: int, batch: int, population: int) -> None:
        self.task, self.model = task, model
        self.target, self.tvm_target = target, tvm_target(target)
        self.exhausted = False
        self._random = random.Random(f"{seed} {task.key}")
        self._database = meta_schedule.database.MemoryDatabase()
        self._seen: set[int] = set()
        self._batch = batch
        registry = rules.of(target).RULES
        self.rule = next((name for name in target.schedules if registry[name](task.func, target) is not None), None)
        if self.rule is not None:
            population = min(population, POPULATION_BEHIND_A_RULE)
        self._strategy = meta_schedule.search_strategy.EvolutionarySearch(
            population_size=population, init_min_unmeasured=max(4, population // 8), genetic_num_iters=2
        )
        self._context = _Context(task, self.tvm_target, self._strategy, 1 + self._random.randrange(1 << 30))
        self._searching = False
        default = spell(self.rule, {}) if self.rule else UNSCHEDULED
        self.default = self._described(default)
        self._seen.add(_hash(self.default.module))
        self.choices = self._family()

    def _family(self) -> list[Candidate]:
        """The rule's choices that make other kernels than those before them."""
        if self.rule is None:
            return []
        family = []
        for knobs in rules.of(self.target).choices(self.rule, self.task.func, self.target):
            candidate = self._described(spell(self.rule, knobs))
            if _hash(candidate.module) not in self._seen:
                self._seen.add(_hash(candidate.module))
                family.append(candidate)
        return family

    def _described(self, text: str) -> Candidate:
        schedule = Schedule(self.task.module)
        if text != UNSCHEDULED:
            schedule.annotate(schedule.get_sblock("root", func_name="main"), ANNOTATION, text)
        return self._candidate(text, schedule)

    def _candidate(self, text: str, schedule: Schedule) -> Candidate:
        workload = meta_schedule.database.Workload(self.task.module)
        arguments = meta_schedule.arg_info.ArgInfo.from_entry_func(self.task.module, remove_preproc=False)
        record = meta_schedule.database.TuningRecord(schedule.trace, workload, [], self.tvm_target, arguments)
        module = expand(schedule.mod, self.task.module, self.target)
        return Candidate(task=self.task.key, text=text, module=module, record=json.loads(json.dumps(record.as_json())))

    def recall(self, trials: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what was tried before: nothing is proposed twice, and the cost model learns from it."""
        known = []
        for text, trial in trials.items():
            if "record" not in trial:
                continue
            try:
                candidate = self.replay(text, trial["record"])
            except ReplayError:
                continue
            self._seen.add(_hash(candidate.module))
            known.append((candidate, typical(trial["ms"])))
        self.choices = [candidate for candidate in self.choices if candidate.text not in trials]
        self.learn(known)

    def replay(self, text: str, record: Sequence[Any]) -> Candidate:
        """The candidate of a record. Raises ReplayError if it isn't one of this kernel."""
        return replayed(self.task, self.target, text, record)

    def propose(self, count: int, known: Collection[str]) -> list[Candidate]:
        """Up to `count` candidates that aren't `known`; none if the space is exhausted."""
        if not self.choices:
            found = self._search(count, known)
            self.exhausted = not found
            return found
        order = list(range(len(self.choices)))
        self._random.shuffle(order)
        if self.model.trained:
            scores = self.model.rank(self._context, self.choices)
            lots = order[: round(count * EXPLORED)]
            order = [*lots, *sorted(set(order) - set(lots), key=lambda index: (-scores[index], index))]
        chosen = [self.choices[index] for index in order[:count]]
        taken = {candidate.text for candidate in chosen}
        self.choices = [candidate for candidate in self.choices if candidate.text not in taken]
        return chosen

    def _search(self, count: int, known: Collection[str]) -> list[Candidate]:
        """From MetaSchedule's own space, by evolution."""
        if not self._searching:
            spaces = self._context.generate_design_space()
            self._context.pre_tuning(1 << 30, self._batch, spaces, self._database, self.model.model)
            self._searching = True
        for _ in range(3):
            measures = self._context.generate_measure_candidates()
            if measures is None:
                return []
            results = [meta_schedule.runner.RunnerResult([1.0], None) for _ in measures]
            self._context.notify_runner_results(measures, results)
            found = []
            for measure in measures:
                digest = _hash(measure.sch.mod)
                text = f"metaschedule-{digest % (1 << 64):016x}"
                if digest not in self._seen and text not in known:
                    self._seen.add(digest)
                    found.append(self._candidate(text, measure.sch))
            if found:
                return found[:count]
        return []

    def learn(self, measured: Sequence[tuple[Candidate, float]]) -> None:
        """Take in latencies in ms; infinity stands for a failure."""
        self.model.learn(self._context, measured)
        workload = self._database.commit_workload(self.task.module)
        for candidate, ms in measured:
            if candidate.text.startswith("metaschedule-") and ms < float("inf"):
                record = [candidate.record[0], [ms / 1e3], *candidate.record[2:]]
                self._database.commit_tuning_record(meta_schedule.database.TuningRecord.from_json(record, workload))


def replayed(task: Task, target: Target, text: str, record: Sequence[Any]) -> Candidate:
    """The candidate of a record. Raises ReplayError if it isn't one of this task."""
    module = expand(replay(task.module, record).mod, task.module, target)
    return Candidate(task=task.key, text=text, module=module, record=[record[0], [], *record[2:]])


def _as_measure(module: tvm.IRModule) -> meta_schedule.MeasureCandidate:
    arguments = meta_schedule.arg_info.ArgInfo.from_entry_func(module, remove_preproc=False)
    return meta_schedule.MeasureCandidate(Schedule(module), arguments)


def _hash(module: tvm.IRModule) -> int:
    return int(tvm_ffi.structural_hash(module)) % (1 << 64)
