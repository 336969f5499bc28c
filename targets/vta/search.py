"""`tvmflow tune` for VTA: tilings are searched layer by layer, and the timed simulator is what runs them.

A candidate is compiled after the layer before it, checked, and simulated; its time is what it adds. Simulation has no
noise, so one run is enough. At the end the fastest of each layer are tried in the whole network, one layer after the
other with all that was decided so far, and the winner is what makes the network fastest.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmflow.spec import Target, UserError, VerificationError
from tvmflow.system import interrupt
from tvmflow.system.text import text_table
from tvmflow.targets.vta import timing
from tvmflow.targets.vta.backend import hardware, import_network
from tvmflow.targets.vta.check import check
from tvmflow.targets.vta.compile import Compiled, compile_works, default_tiling, prepare
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.emit import Infeasible
from tvmflow.targets.vta.records import FORMAT, recorded, task_key_of
from tvmflow.targets.vta.space import Candidate, CostModel, Space, Task, tasks_of
from tvmflow.targets.vta.stages import configuration
from tvmflow.targets.vta.tiles import Tiling, Work
from tvmflow.tune import progress
from tvmflow.tune.apply import default_work_dir
from tvmflow.tune.command import parse_duration, summary
from tvmflow.tune.session import Options, Session
from tvmflow.tune.store import Identity, Result, Store, latency_ms

log = logging.getLogger("tvmflow.tune")

FINALISTS, SWEEPS = 5, 2
"""How many of a layer's fastest tilings are tried in the whole network, and how often its layers are gone through."""


def identity(target: Target) -> Identity:
    """Whose records those of this board are."""
    assert target.vta is not None
    facts = target.vta
    return Identity(
        board=target.name,
        cpu=f"VTA {configuration(target).bitstream}",
        target={
            "kind": "vta",
            "configuration": dict(facts.configuration),
            "clock_mhz": facts.clock_mhz,
            "bus_bytes": facts.bus_bytes,
            "latency_cycles": facts.latency_cycles,
        },
        tvm="none",
        rules=f"tilings-{FORMAT}",
    )


class SimulatedMeasurer:
    """Compiles, checks and simulates candidates, in this process."""

    name = "simulated"

    def __init__(self, works: Sequence[Work], config: Config, board: timing.Hardware) -> None:
        self.works, self.config, self.board = tuple(works), config, board
        self.defaults = {work.layer.name: default_tiling(work, config) for work in works}
        self.chosen: dict[str, Tiling] = {}
        """Tilings by task that were decided, for the whole network."""
        self.seconds = {"build": 0.0, "run": 0.0}
        self._alone: dict[str, int] = {}
        self._whole: dict[tuple[tuple[str, Tiling], ...], int] = {}
        self._layers: dict[str, list[str]] = {}
        for before, work in zip((None, *works), works, strict=False):
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
            check(compiled.executable)
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
            check(self._compile(self.works, self._schedule(chosen)).executable)
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

    def _compile(self, works: Sequence[Work], schedule: Mapping[str, Tiling]) -> Compiled:
        interrupt.check()
        started = time.perf_counter()
        try:
            return compile_works(works, self.config, {**self.defaults, **schedule})
        finally:
            self.seconds["build"] += time.perf_counter() - started

    def _simulate(self, compiled: Compiled) -> int:
        started = time.perf_counter()
        try:
            return timing.simulate(compiled.executable, self.board).cycles
        finally:
            self.seconds["run"] += time.perf_counter() - started

    def _before(self, task: Task) -> list[Work]:
        return [] if task.before is None else [task.before]

    def _cycles_before(self, task: Task) -> int:
        if task.key not in self._alone:
            before = self._before(task)
            self._alone[task.key] = self._simulate(self._compile(before, {})) if before else 0
        return self._alone[task.key]

    def close(self) -> None:
        """Nothing is left running."""


class SimulatedSession(Session):
    """A search whose candidates are tilings."""

    measurer: SimulatedMeasurer

    def _make_spaces(self) -> dict[str, int]:
        model, config = CostModel(), configuration(self.target)
        whose = self.store.identity.target
        for task in self.tasks:
            self.check()
            self.spaces[task.key] = Space(task, config, whose, model, seed=self.options.seed)  # type: ignore[arg-type, assignment]
        return {}

    def _replay(self, key: str, name: str) -> Any:
        try:
            return self.spaces[key].replay(name, self.store.trials(key)[name]["record"])
        except KeyError:
            return None

    def _decide(self) -> None:
        """The fastest of each task in the whole network, where a layer also decides when its neighbours can begin."""
        decided = [entry["kind"] for entry in self.store.entries if entry["kind"] in ("trial", "winner")]
        tasks: dict[str, Any] = {task.key: task for task in self.tasks}
        if decided[-len(tasks) :] == ["winner"] * len(tasks):
            return
        finalists = {key: self._finalists(key) for key in tasks if self.store.best(key) is not None}
        for _ in range(SWEEPS):
            for key, candidates in finalists.items():
                self.check()
                self.measurer.choose(tasks[key], candidates)
        self._spend("run")
        winners = []
        for key, candidates in finalists.items():
            best = next(it for it in candidates if it.tiling == self.measurer.chosen[key])
            trials = self.store.trials(key)
            ms, default_ms = trials[best.text]["ms"], trials[candidates[0].text]["ms"]
            winners.append(self._entry("winner", task=key, candidate=best.text, ms=ms, default_ms=default_ms))
        self.store.append(winners)
        self.watch(self.state())

    def _finalists(self, key: str) -> list[Candidate]:
        """The default, and the fastest of the others."""
        good = {text: trial for text, trial in self.store.trials(key).items() if trial["outcome"] == "ok"}
        default = self.spaces[key].default.text
        names = sorted((name for name in good if name != default), key=lambda name: latency_ms(good[name]))
        replayed = (self._replay(key, name) for name in (default, *names[: self.options.finalists]) if name in good)
        return [candidate for candidate in replayed if candidate is not None]


def list_tasks(target: Target, model: str) -> tuple[str, Any]:
    """The layers that would be tuned, as text and as data."""
    config = configuration(target)
    program = import_network(model)
    assert program.integer is not None
    tasks = tasks_of(prepare(program.integer, config), config)
    rows = [[task.name, task.calls, ", ".join(task.modules)] for task in tasks]
    content = [
        {"name": task.name, "key": task.key, "calls": task.calls, "modules": list(task.modules)} for task in tasks
    ]
    return text_table(["task", "calls", "modules"], rows), content


def tune(
    target: Target,
    model: str,
    names: str | None,
    *,
    trials: int,
    time_budget: str,
    seed: int,
    work_dir: Path | None,
    min_gain: float,
) -> tuple[str, Any]:
    """Search, and say what came of it. KeyboardInterrupt passes after a word on how to go on."""
    started = time.perf_counter()
    budget_s = parse_duration(time_budget)
    options = Options(trials=trials, budget_s=budget_s, seed=seed, min_gain=min_gain, finalists=FINALISTS)
    config, board, whose = configuration(target), hardware(target), identity(target)
    folder = (work_dir or default_work_dir()) / whose.folder
    log.info(f"Tuning {model} for {target.name} with the simulated runner: no board is needed")
    program = import_network(model)
    assert program.integer is not None
    works = prepare(program.integer, config)
    measurer = SimulatedMeasurer(works, config, board)
    tasks = select(tasks_of(works, config), names)
    with interrupt.deferred(), Store(folder, whose, writable=True) as store:
        if store.quarantined:
            log.info(f"{store.quarantined} unusable lines were set aside in {folder / 'quarantine.jsonl'}")
        for task in tasks:
            tiling = recorded(best) if (best := store.best(task.key)) and best.compared else None
            if tiling is not None:
                measurer.chosen[task.key] = tiling
        spent = store.spent(task.key for task in tasks)
        if spent:
            log.info(f"Going on after {spent} trials of earlier runs in {folder}")
        try:
            with progress.watching() as watch:
                state = _session(tasks, target, store, measurer, options, watch, started).run()
        except KeyboardInterrupt:
            kept = sum(entry["kind"] == "trial" for entry in store.entries)
            log.info(f"Stopped; {kept} trials are kept. To go on: {shlex.join(['tvmflow', *sys.argv[1:]])}")
            raise
        hint = "" if work_dir is None else f" with --db {work_dir}"
        assumed = f"simulated at {board.clock_mhz:g} MHz, {board.read_latency} cycles of memory latency"
        tuned, untuned = (measurer.network(chosen) / board.clock_mhz / 1e3 for chosen in (measurer.chosen, {}))
        lines = [
            progress.final_text(state, f"each after the layer before it, {assumed}"),
            f"The network takes {tuned:.4g} ms as a whole, {untuned:.4g} untuned.",
            f"{folder}: `tvmflow build` uses these records{hint}.",
        ]
        return "\n".join(lines), {**summary(state, store), "network_ms": tuned, "network_untuned_ms": untuned}


def _session(
    tasks: Sequence[Task],
    target: Target,
    store: Store,
    measurer: SimulatedMeasurer,
    options: Options,
    watch: Callable[[Any], None],
    started: float,
) -> SimulatedSession:
    given: Any = tasks
    return SimulatedSession(given, target, store, measurer, options, watch, started=started, check=interrupt.check)


def select(tasks: Sequence[Task], names: str | None) -> tuple[Task, ...]:
    """The tasks with one of these names, given with commas; * stands for anything. Raises UserError."""
    from fnmatch import fnmatch

    if names is None:
        return tuple(tasks)
    patterns = [name.strip() for name in names.split(",") if name.strip()]
    for pattern in patterns:
        if not any(fnmatch(task.name, pattern) for task in tasks):
            raise UserError(f"There is no task {pattern!r}; the tasks are {', '.join(task.name for task in tasks)}.")
    return tuple(task for task in tasks if any(fnmatch(task.name, pattern) for pattern in patterns))
