"""Timing candidates: whose turn it is on this computer, and which runner a board has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tvmflow.schedules import UNSCHEDULED
from tvmflow.spec import MissingDependencyError, Target, UserError
from tvmflow.system import children
from tvmflow.targets.search import Result, candidates_of
from tvmflow.tune.builders import Builders, start_process
from tvmflow.tune.processes import WorkerError

RUN_LIMIT_S = 20.0
SHORTEST_MS = 1.0
"""A timed sample lasts at least this long."""
REPEATS = 10


class LocalMeasurer:
    """One runner on this computer, which is otherwise idle meanwhile.

    Candidates of a batch are built side by side and timed one after the other, never both at once.
    """

    name = "local"

    def __init__(self, target: Target, builders: Builders, *, check: Callable[[], None] = lambda: None) -> None:
        self.builders = builders
        self.check = check  # asked several times a second while it waits; what it raises passes
        self.run_seconds = 0.0
        lent = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        threads = min(target.cpu.cores, len(lent) or os.cpu_count() or 1)
        # the last cores: interrupts and other programs prefer the first
        settings = {
            "shortest_ms": SHORTEST_MS,
            "cpus": lent[-threads:],
            "device": device(target),
        }
        environment = {**children.environment(), "TVM_NUM_THREADS": str(threads)}
        self.runner = start_process("run", settings, environment, RUN_LIMIT_S)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent so far by kind: "build" and "run"."""
        return {"build": self.builders.seconds, "run": self.run_seconds}

    def measure(self, task: Any, candidates: Sequence[Any], best_ms: float | None) -> Iterator[Result]:
        """Build them all, then give one result after the other."""
        failures = self.builders.build(task, candidates)
        for candidate in candidates:
            if candidate.text in failures:
                yield failures[candidate.text]
            else:
                yield self._run(task, candidate, best_ms)

    def compare(self, task: Any, candidates: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
        """Times in ms of candidates that were measured before, in turns; empty if one of them failed."""
        if self.builders.build(task, candidates):
            return []
        try:
            answer = self._ask(task, candidates, None, rounds)
        except WorkerError:
            return []
        return [tuple(times) for times in answer["ms"]] if answer["outcome"] == "ok" else []

    def _run(self, task: Any, candidate: Any, best_ms: float | None) -> Result:
        try:
            answer = self._ask(task, [candidate], best_ms, REPEATS)
        except WorkerError as error:
            return Result(outcome=error.outcome, message=str(error))
        if answer["outcome"] != "ok":
            outcome = "wrong" if answer["outcome"] == "wrong" else "crashed"
            return Result(outcome=outcome, message=answer["message"])
        return Result(outcome="ok", ms=tuple(answer["ms"][0]))

    def _ask(self, task: Any, candidates: Sequence[Any], best_ms: float | None, repeats: int) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            self.runner.send(
                {
                    "libraries": [str(self.builders.library(task, candidate.text)) for candidate in candidates],
                    "reference": str(self.builders.library(task, UNSCHEDULED)),
                    "arguments": task.arguments,
                    "best_ms": best_ms,
                    "repeats": repeats,
                }
            )
            return self.runner.receive(self.check)
        finally:
            self.run_seconds += time.perf_counter() - started

    def close(self) -> None:
        """End the runner."""
        self.runner.close()


def device(target: Target) -> str:
    """TVM's name of what candidates for a board run on."""
    return target.facts.DEVICE


RUNNERS = ("auto", "local", "rpc", "modelled")


def choose_runner(choice: str, target: Target, boards: Sequence[str] = ()) -> tuple[str, str]:
    """The runner for a board and the reason for it; `boards` are those that were named.

    Raises MissingDependencyError, UserError.
    """
    from tvmflow.system.host import COMPUTER

    if choice not in RUNNERS:
        raise UserError(f"There is no runner {choice!r}; the runners are {', '.join(RUNNERS)}.")
    if boards and choice in ("auto", "rpc"):
        return "rpc", f"it is timed on {', '.join(boards)}"
    if boards:
        raise UserError(f"--runner {choice} needs no board over the network; leave out --ssh and --host.")
    if choice == "rpc":
        raise UserError("--runner rpc needs a board: --ssh user@host, or --host 127.0.0.1:PORT with --token-file.")
    if (own := candidates_of(target)) is not None:
        return own.choose_runner(choice, target)
    native = target.kind == "llvm" and target.elf == COMPUTER.elf
    if choice in ("auto", "local") and native:
        return "local", f"{target.name} is this computer"
    if choice == "local":
        raise MissingDependencyError(
            f"--runner local times on this computer, and {target.name} is another ({target.cpu.model}); "
            "say which board to time on: --ssh user@host, where `tvmflow serve` runs."
        )
    if choice == "auto":
        raise MissingDependencyError(
            f"{target.name} ({target.cpu.model}) isn't this computer; say which board to time on: --ssh user@host, "
            "where `tvmflow serve` runs."
        )
    raise MissingDependencyError(
        f"--runner {choice} ranks candidates for GPUs only; for {target.name}, `tvmflow profile --cycles` models the "
        "cycles of a bundle, where there is a model of its core."
    )
