"""`tvmflow tune` for VTA: tilings are searched layer by layer, and the timed simulator is what runs them.

A candidate is compiled after the layer before it, checked, and simulated; its time is what it adds. Simulation has no
noise, so one run is enough. At the end the fastest of each layer are tried in the whole network, one layer after the
other with all that was decided so far, and the winner is what makes the network fastest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmflow.spec import Target, UserError, VerificationError
from tvmflow.system import interrupt
from tvmflow.targets.search import (
    Identity,
    Opened,
    Options,
    Plan,
    Remarks,
    Result,
    Standing,
    Winner,
    latency_ms,
    select,
)
from tvmflow.targets.vta import timing
from tvmflow.targets.vta.backend import hardware, import_network
from tvmflow.targets.vta.bounds import AnyWork
from tvmflow.targets.vta.check import check as check_program
from tvmflow.targets.vta.compile import Compiled, compile_works, default_tiling, prepare
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.cpu import CpuWork
from tvmflow.targets.vta.emit import Infeasible
from tvmflow.targets.vta.facts import Vta
from tvmflow.targets.vta.records import FORMAT, recorded, task_key_of
from tvmflow.targets.vta.space import Candidate, CostModel, Space, Task, tasks_of
from tvmflow.targets.vta.stages import configuration
from tvmflow.targets.vta.tiles import Tiling, Work

FINALISTS, SWEEPS = 5, 2
"""How many of a layer's fastest tilings are tried in the whole network, and how often its layers are gone through."""


def identity(target: Target) -> Identity:
    """Whose records those of this board are."""
    facts = Vta.of(target)
    return Identity(
        board=target.name,
        cpu=f"VTA {configuration(target).bitstream}",
        target={
            "kind": "vta",
            "configuration": dict(facts.configuration),
            "clock_mhz": facts.clock_mhz,
            "bus_bytes": facts.bus_bytes,
            "latency_cycles": facts.latency_cycles,
            "burst_beats": facts.burst_beats,
        },
        tvm="none",
        rules=f"tilings-{FORMAT}",
    )


class SimulatedMeasurer:
    """Compiles, checks and simulates candidates, in this process."""

    name = "simulated"

    def __init__(self, works: Sequence[AnyWork], config: Config, board: timing.Hardware) -> None:
        self.works, self.config, self.board = tuple(works), config, board
        self.defaults = {
            work.layer.name: default_tiling(work, config) for work in works if not isinstance(work, CpuWork)
        }
        self.chosen: dict[str, Tiling] = {}
        """Tilings by task that were decided, for the whole network."""
        self.seconds = {"build": 0.0, "run": 0.0}
        self._alone: dict[str, int] = {}
        self._whole: dict[tuple[tuple[str, Tiling], ...], int] = {}
        self._layers: dict[str, list[str]] = {}
        for before, work in zip((None, *works), works, strict=False):
            if isinstance(work, Work):
                self._layers.setdefault(task_key_of(before, work, config), []).append(work.layer.name)

    def measure(self, task: Task, candidates: Sequence[Candidate], best_ms: float | None) -> Iterator[Result]:
        """What each adds to the program that ends with the layer before, in ms."""
        for candidate in candidates:
            yield self._measure(task, candidate)

    def _measure(self, task: Task, candidate: Candidate) -> Result:
        try:
            compiled = self._compile([*self._before(task), task.work], {task.work.layer.name: candidate.tiling})
        except Infeasible as error:
            return Result(outcome="build failed", message=str(error))
        try:
            check_program(compiled.executable)
        except VerificationError as error:  # more tokens than a queue holds, say
            return Result(outcome="build failed", message=str(error))
        added = self._simulate(compiled) - self._cycles_before(task)
        return Result(outcome="ok", ms=(added / self.board.clock_mhz / 1e3,))

    def compare(self, task: Task, candidates: Sequence[Candidate], rounds: int) -> list[tuple[float, ...]]:
        """Nothing: simulated times needn't be taken in turns."""
        return []

    def choose(self, task: Task, candidates: Sequence[Candidate]) -> Candidate:
        """The candidate that makes the whole network fastest, with all that was chosen before."""
        ways = {candidate.text: {**self.chosen, task.key: candidate.tiling} for candidate in candidates}
        ranked = sorted(candidates, key=lambda candidate: self.network(ways[candidate.text]))
        best = next((candidate for candidate in ranked if self._passes(ways[candidate.text])), candidates[0])
        self.chosen[task.key] = best.tiling
        return best

    def _passes(self, chosen: Mapping[str, Tiling]) -> bool:
        """Whether a build would take it."""
        try:
            check_program(self._compile(self.works, self._schedule(chosen)).executable)
        except (Infeasible, VerificationError):
            return False
        return True

    def _schedule(self, chosen: Mapping[str, Tiling]) -> dict[str, Tiling]:
        schedule = dict(self.defaults)
        for key, tiling in chosen.items():
            schedule |= dict.fromkeys(self._layers.get(key, ()), tiling)
        return schedule

    def network(self, chosen: Mapping[str, Tiling]) -> int:
        """Cycles of the whole network with these tilings by task, and defaults for the others."""
        schedule = self._schedule(chosen)
        asked = tuple(schedule.items())
        if asked not in self._whole:
            try:
                self._whole[asked] = self._simulate(self._compile(self.works, schedule))
            except Infeasible:  # alone it fitted; in the network there may be more to hold
                self._whole[asked] = sys.maxsize
        return self._whole[asked]

    def _compile(self, works: Sequence[AnyWork], schedule: Mapping[str, Tiling]) -> Compiled:
        interrupt.check()
        started = time.perf_counter()
        try:
            return compile_works(works, self.config, {**self.defaults, **schedule}, with_source=False)
        finally:
            self.seconds["build"] += time.perf_counter() - started

    def _simulate(self, compiled: Compiled) -> int:
        started = time.perf_counter()
        try:
            return timing.simulate(compiled.executable, self.board).cycles
        finally:
            self.seconds["run"] += time.perf_counter() - started

    def _before(self, task: Task) -> list[AnyWork]:
        return [] if task.before is None or isinstance(task.before, CpuWork) else [task.before]

    def _cycles_before(self, task: Task) -> int:
        if task.key not in self._alone:
            before = self._before(task)
            self._alone[task.key] = self._simulate(self._compile(before, {})) if before else 0
        return self._alone[task.key]

    def close(self) -> None:
        """Nothing is left running."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tilings:
    """A search whose candidates are tilings, and whose winners make the whole network fastest."""

    tasks: Sequence[Task]
    target: Target
    measurer: SimulatedMeasurer

    def spaces(self, options: Options, check: Callable[[], None]) -> tuple[Mapping[str, Space], Mapping[str, int]]:
        """The space of each task, with one cost model for all, which has learnt nothing before."""
        model, whose, made = CostModel(), identity(self.target).target, dict[str, Space]()
        for task in self.tasks:
            check()
            made[task.key] = Space(task, self.measurer.config, whose, model, seed=options.seed)
        return made, {}

    def begin(self, standing: Standing) -> None:
        """Start from what earlier runs have decided."""
        for task in self.tasks:
            tiling = recorded(best) if (best := standing.best(task.key)) and best.compared else None
            if tiling is not None:
                self.measurer.chosen[task.key] = tiling

    def decide(self, standing: Standing) -> None:
        """The fastest of each task in the whole network, where a layer also decides when its neighbours can begin."""
        decided = [entry["kind"] for entry in standing.entries if entry["kind"] in ("trial", "winner")]
        tasks = {task.key: task for task in self.tasks}
        if decided[-len(tasks) :] == ["winner"] * len(tasks):
            return
        finalists = {key: _finalists(standing, key) for key in tasks if standing.best(key) is not None}
        for _ in range(SWEEPS):
            for key, candidates in finalists.items():
                standing.check()
                self.measurer.choose(tasks[key], candidates)
        standing.spend("run")
        winners = []
        for key, candidates in finalists.items():
            best = next(it for it in candidates if it.tiling == self.measurer.chosen[key])
            trials = standing.trials(key)
            ms, default_ms = trials[best.text]["ms"], trials[candidates[0].text]["ms"]
            winners.append(Winner(task=key, candidate=best.text, ms=ms, default_ms=default_ms))
        standing.win(winners)
        standing.show()

    def remarks(self) -> Remarks:
        """What was simulated, and what the network takes as a whole."""
        board = self.measurer.board
        tuned, untuned = (
            self.measurer.network(chosen) / board.clock_mhz / 1e3 for chosen in (self.measurer.chosen, {})
        )
        assumed = f"simulated at {board.clock_mhz:g} MHz, {board.read_latency} cycles of memory latency"
        return Remarks(
            how=f"each after the layer before it, {assumed}",
            lines=[f"The network takes {tuned:.4g} ms as a whole, {untuned:.4g} untuned."],
            facts={"network_ms": tuned, "network_untuned_ms": untuned},
        )


def _finalists(standing: Standing, key: str) -> list[Candidate]:
    """The default, and the fastest of the others."""
    good = {text: trial for text, trial in standing.trials(key).items() if trial["outcome"] == "ok"}
    default = standing.spaces[key].default.text
    names = sorted((name for name in good if name != default), key=lambda name: latency_ms(good[name]))
    replayed = (standing.replay(key, name) for name in (default, *names[: standing.options.finalists]) if name in good)
    return [candidate for candidate in replayed if candidate is not None]


def check(target: Target, runner: str, *, elsewhere: bool) -> None:
    """Raise UserError for boards, builders and runners: none of them is needed."""
    if elsewhere or runner not in ("auto", "simulated"):
        raise UserError(f"Candidates for {target.name} are simulated on this computer; leave out boards and builders.")


def choose_runner(choice: str, target: Target, boards: Sequence[str] = ()) -> tuple[str, str]:
    """The simulator, whatever is asked for, since `check` has refused all else."""
    return "simulated", "no board is needed"


def tasks(target: Target, model: str, shapes: Sequence[Any]) -> tuple[Task, ...]:
    """The layers that would be tuned; a quantised network has its shapes."""
    config = configuration(target)
    return tasks_of(_works(model, config), config)


@contextmanager
def opened(plan: Plan, names: str | None) -> Iterator[Opened]:
    """A search over the layers of a quantised network."""
    config, board = configuration(plan.target), hardware(plan.target)
    works = _works(plan.model, config)
    chosen = select(tasks_of(works, config), names)

    @contextmanager
    def search(folder: Path) -> Iterator[Tilings]:
        yield Tilings(tasks=chosen, target=plan.target, measurer=SimulatedMeasurer(works, config, board))

    yield Opened(identity=identity(plan.target), search=search)


def _works(model: str, config: Config) -> tuple[AnyWork, ...]:
    program = import_network(model)
    assert program.integer is not None
    return prepare(program.integer, config)
