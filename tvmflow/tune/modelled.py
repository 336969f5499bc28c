"""A search for a GPU that isn't there: candidates are compiled for real, ranked by a model, and the winners checked.

What comes of it is a shortlist. The model is the kind's own, which nobody has calibrated; its times steer the search
and are kept in a store of their own, but are never shown, and no build takes these records unless it is told so.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import Target, UserError, VerificationError
from tvmflow.system import children, interrupt
from tvmflow.system.text import text_table
from tvmflow.targets import KINDS
from tvmflow.targets.search import Candidates, Opened, Plan, Result, Standing, Winner, candidates_of, select
from tvmflow.tune.builders import json_of, outcome_of, side_by_side, start_process
from tvmflow.tune.kernels import Kernels, fastest, tasks
from tvmflow.tune.processes import Worker
from tvmflow.tune.session import REASONS, State, described, failure_text
from tvmflow.tune.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tvmflow.tune.space import Candidate

log = logging.getLogger("tvmflow.tune")

LIMIT_S = 40.0
"""A good kernel compiles in a second; unrolled beyond measure, one can take NVIDIA's compiler minutes."""
MOST_CHECKED = 4
"""Candidates of a task that are checked before its default stays."""
NOTE = (
    "Nothing was measured: kernels were compiled for {architecture} and ranked by a model that nobody has calibrated, "
    "and the winners give the right numbers on the stand-in for a GPU. With a {board}, --runner local there, or "
    "--ssh, would measure them and could find another order."
)


class ModelledMeasurer:
    """Processes that compile candidates with NVIDIA's compiler and ask the model, side by side."""

    name = "modelled"

    def __init__(
        self,
        target: Target,
        tvm_target: dict[str, Any],
        constants: Any,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.check = check  # asked several times a second while it waits; what it raises passes
        self._seconds = {"build": 0.0, "run": 0.0}
        self._results: dict[tuple[str, str], Result] = {}
        settings = {
            "target": tvm_target,
            "candidates": KINDS[target.kind].candidates,
            "gpu": asdict(Gpu.of(target)),
            "constants": asdict(constants),
        }
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = children.environment()
        self.processes: list[Worker] = [start_process("model", settings, environment, LIMIT_S) for _ in range(cores)]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent so far: all of them are "build"."""
        return self._seconds

    def prepare(self, candidates: Sequence[Any]) -> None:
        """Compile candidates of several tasks side by side, for `measure` to have them when their turns come."""
        new = [row for row in candidates if (row.task, row.text) not in self._results]
        started = time.perf_counter()
        try:
            messages = [{"module": json_of(row.module)} for row in new]
            results = side_by_side(self.processes, messages, outcome_of, self.check)
        finally:
            self._seconds["build"] += time.perf_counter() - started
        self._results |= {(row.task, row.text): result for row, result in zip(new, results, strict=True)}

    def measure(self, task: Any, candidates: Sequence[Any], best_ms: float | None) -> Iterator[Result]:
        """One result after the other; what counts as its time is the model's."""
        self.prepare(candidates)
        for row in candidates:
            yield self._results[row.task, row.text]

    def compare(self, task: Any, candidates: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
        """Nothing to take in turns: a model says the same each time."""
        return []

    def close(self) -> None:
        for process in self.processes:
            process.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelledKernels(Kernels):
    """A search whose winners are the model's first choices that compute the right thing."""

    def begin(self, standing: Standing) -> None:
        """Compile the defaults of all tasks side by side."""
        defaults = [space.default for key, space in standing.spaces.items() if not standing.trials(key)]
        if isinstance(self.measurer, ModelledMeasurer):
            before = dict(self.measurer.seconds)
            self.measurer.prepare(defaults[: standing.options.trials])
            standing.spend("waiting", {kind: self.measurer.seconds[kind] - before[kind] for kind in before})

    def decide(self, standing: Standing) -> None:
        """Take the model's first choices, and where one computes something else, the next."""
        by_key = {task.key: task for task in self.tasks}
        ranked = {key: _ranked(standing, key) for key in by_key}
        left = {key: names for key, names in ranked.items() if names}
        for _ in range(MOST_CHECKED):
            first = {key: standing.replay(key, names[0]) for key, names in left.items()}
            verdicts = check([(by_key[key], found) for key, found in first.items() if found], self.target)
            again: dict[str, list[str]] = {}
            answers = iter(verdicts)
            for key, found in first.items():
                wrong = next(answers) if found else "its record can't be replayed"
                if wrong:
                    log.info(f"{by_key[key].name}: {left[key][0]} is left out, for {wrong}")
                    again[key] = left[key][1:]
                else:
                    standing.win([_winner(standing, key, left[key][0])])
            left = {key: names for key, names in again.items() if names}
            if not left:
                break
        standing.show()


def _ranked(standing: Standing, key: str) -> list[str]:
    """A task's candidates from the model's first choice to its default; none if that is decided already."""
    if standing.decided(key):
        return []
    names, default = fastest(standing.trials(key)), standing.spaces[key].default.text
    return names[: names.index(default) + 1] if default in names else names


def _winner(standing: Standing, key: str, name: str) -> Winner:
    trials = standing.trials(key)
    default = trials.get(standing.spaces[key].default.text, {})
    return Winner(task=key, candidate=name, ms=trials[name]["ms"], default_ms=default.get("ms", []))


def check(found: Sequence[tuple[Any, Candidate]], target: Target) -> list[str]:
    """Run candidates on the stand-in, half of them in each of two processes: "" for each that is right, or why not."""
    own = _own(target)

    def run(part: Sequence[tuple[Any, Candidate]]) -> list[str]:
        pairs = [(json_of(task.module), json_of(candidate.module)) for task, candidate in part]
        try:
            return own.check(pairs, target) if pairs else []
        except VerificationError as error:  # its process died: of which one, only each alone can tell
            return [str(error)] if len(part) == 1 else [line for one in part for line in run([one])]

    with ThreadPoolExecutor(2) as pool:
        odd, even = pool.map(run, (found[1::2], found[::2]))
    answers = [""] * len(found)
    answers[1::2], answers[::2] = odd, even
    return answers


def opened(plan: Plan, names: str | None) -> Opened:
    """A search whose records are marked as a model's."""
    from tvmflow.tune.apply import modelled
    from tvmflow.tune.tasks import as_plain, identity, tvm_target

    own = _own(plan.target)
    constants = own.constants(plan.calibration)

    @contextmanager
    def search(folder: Path) -> Iterator[ModelledKernels]:
        described = as_plain(tvm_target(plan.target).export())
        with closing(ModelledMeasurer(plan.target, described, constants, check=interrupt.check)) as measurer:
            keep_constants(folder / "constants.json", constants, own)
            chosen = select(tasks(plan.target, plan.model, plan.shapes), names)
            yield ModelledKernels(tasks=chosen, target=plan.target, measurer=measurer)

    return Opened(identity=modelled(identity(plan.target)), search=search)


def report(state: State, store: Store, plan: Plan) -> tuple[str, Any]:
    """A search as text and as data, neither of them with times."""
    return _text(state, store, plan), described(state, store)


def _own(target: Target) -> Candidates:
    """A kind that has a model says how it goes about candidates."""
    own = candidates_of(target)
    assert own is not None
    return own


def keep_constants(path: Path, constants: Any, own: Candidates) -> None:
    """Note with which constants the candidates in a folder were ranked. Raises UserError if it was with others."""
    if path.exists() and (before := own.constants(path)) != constants:
        raise UserError(
            f"The candidates in {path.parent} were ranked with other constants ({before.source}, not "
            f"{constants.source}), and the two orders can't be mixed: give another --work-dir."
        )
    own.save_constants(constants, path)


def _text(state: State, store: Store, plan: Plan) -> str:
    rows = []
    for row in sorted(state.rows, key=lambda row: -row.network_ms):
        best = store.best(row.task.key)
        rows.append(
            [row.task.name, str(row.task.calls), str(row.trials), str(row.failed), best.candidate if best else ""]
        )
    return "\n".join(
        [
            text_table(["task", "calls", "compiled", "failed", "modelled choice"], rows),
            "",
            f"{state.spent} candidates ({state.tried} in this run) in {sum(state.seconds.values()):.0f} s, failed: "
            f"{failure_text(state.failures)}. It ended because {REASONS[state.reason]}.",
            NOTE.format(architecture=Gpu.of(plan.target).architecture, board=plan.target.name),
            f"{store.folder}: `tvmflow build --db {plan.work_dir}` uses these choices; without --db no build does.",
        ]
    )
