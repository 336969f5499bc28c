"""Building and timing candidates in processes of their own, on this computer."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from tvmflow.spec import MissingDependencyError, Target, UserError, VerificationError
from tvmflow.tune.store import are_latencies

BUILD_LIMIT_S = 60.0
RUN_LIMIT_S = 20.0
START_LIMIT_S = 120.0
SHORTEST_MS = 1.0
"""A timed sample lasts at least this long."""
REPEATS = 10
CHECK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a candidate: a class of `store.OUTCOMES`, and its times in ms if it is "ok"."""

    outcome: str
    ms: tuple[float, ...] = ()
    message: str = ""


class Measurer(Protocol):
    """Where candidates are built and timed."""

    name: str
    seconds: dict[str, float]
    """Seconds spent so far by kind: "build" and "run"."""

    def measure(self, task: Any, candidates: Sequence[Any], best_ms: float | None) -> Iterator[Result]:
        """Build them all, then give one result after the other."""

    def compare(self, task: Any, candidates: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
        """Times in ms of candidates that were measured before, in turns; empty if one of them failed."""

    def close(self) -> None:
        """End its processes."""


class WorkerError(Exception):
    """A worker ended ("crashed") or took too long ("hung") over its job; another has taken its place."""

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Worker:
    """A process that answers jobs, started again when it ends or has to be ended."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], limit_s: float, log: IO[str]) -> None:
        self.command, self.environment, self.limit_s, self.log = list(command), environment, limit_s, log
        self.deadline = 0.0
        self.restarts = -1
        self._start()

    def _start(self) -> None:
        self.restarts += 1
        self._fresh = True
        self._buffer = b""
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=self.environment,
            start_new_session=True,  # Ctrl-C is for the search, which ends its workers itself
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, job: dict[str, Any]) -> None:
        """Give it a job; `receive` or `poll` has the answer."""
        assert self._process.stdin is not None
        self.deadline = time.monotonic() + self.limit_s + (START_LIMIT_S if self._fresh else 0)
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it ended while it was idle, or at its start; poll says so
            pass

    def poll(self) -> dict[str, Any] | None:
        """Its answer if there is one. Raises WorkerError."""
        try:
            chunk = os.read(self.fileno(), 1 << 20)
        except BlockingIOError:
            chunk = None
        if chunk == b"":
            code = self._end()
            self._start()
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WorkerError("crashed", f"its process ended with {what}")
        self._buffer += chunk or b""
        if b"\n" in self._buffer:
            line, self._buffer = self._buffer.split(b"\n", 1)
            self._fresh = False
            return json.loads(line)
        if time.monotonic() > self.deadline:
            self._end()
            self._start()
            raise WorkerError("hung", f"it took longer than {self.limit_s:g} s")
        return None

    def receive(self, check: Callable[[], None]) -> dict[str, Any]:
        """Wait for its answer. Raises WorkerError, and what `check` raises."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while True:
                selector.select(min(CHECK_S, max(0.0, self.deadline - time.monotonic()) + 0.01))
                check()
                answer = self.poll()
                if answer is not None:
                    return answer

    def _end(self) -> int:
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code

    def close(self) -> None:
        """End it for good."""
        self._end()


class LocalMeasurer:
    """Builders for every core of this computer, then one runner on a machine that is otherwise idle.

    Candidates of a batch are built side by side and timed one after the other, never both at once.
    """

    name = "local"

    def __init__(
        self,
        target: Target,
        tvm_target: dict[str, Any],
        *,
        builders: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        from tvmflow import toolchain

        self.check = check  # asked several times a second while it waits; what it raises passes
        self.seconds = {"build": 0.0, "run": 0.0}
        self._folder = tempfile.TemporaryDirectory(prefix="tvmflow-tune-")
        self.folder = Path(self._folder.name)
        self._log = (self.folder / "workers.log").open("w", encoding="utf-8")
        self._libraries: dict[tuple[str, str], Path] = {}
        lent = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        threads = min(target.cpu.cores, len(lent) or os.cpu_count() or 1)
        linker = toolchain.select_linker(target)
        shared = {"parent": os.getpid()}
        self._builder_settings = {
            **shared,
            "target": tvm_target,
            "linker": linker.command,
            "triple": target.tvm.get("mtriple", target.triple),
        }
        # the last cores: interrupts and other programs prefer the first
        self._runner_settings = {**shared, "shortest_ms": SHORTEST_MS, "cpus": lent[-threads:]}
        self._environment = {**toolchain.python_environment(), "TVM_NUM_THREADS": str(threads)}
        self.builders = [self._worker("build", BUILD_LIMIT_S) for _ in range(builders or max(1, len(lent)))]
        self.runner = self._worker("run", RUN_LIMIT_S)

    def _worker(self, kind: str, limit_s: float) -> Worker:
        settings = self._builder_settings if kind == "build" else self._runner_settings
        command = [sys.executable, "-m", "tvmflow.tune.worker", kind, json.dumps(settings)]
        return Worker(command, self._environment, limit_s, self._log)

    def measure(self, task: Any, candidates: Sequence[Any], best_ms: float | None) -> Iterator[Result]:
        """Build them all, then give one result after the other."""
        failures = self._build_with_reference(task, candidates)
        for candidate in candidates:
            if candidate.text in failures:
                yield failures[candidate.text]
            else:
                yield self._run(task, candidate, best_ms)

    def compare(self, task: Any, candidates: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
        """Times in ms of candidates that were measured before, in turns; empty if one of them failed."""
        if self._build_with_reference(task, candidates):
            return []
        started = time.perf_counter()
        try:
            self.runner.send(self._job(task, candidates, None, rounds))
            answer = self.runner.receive(self.check)
        except WorkerError:
            return []
        finally:
            self.seconds["run"] += time.perf_counter() - started
        return [tuple(times) for times in answer["ms"]] if answer["outcome"] == "ok" else []

    def _run(self, task: Any, candidate: Any, best_ms: float | None) -> Result:
        started = time.perf_counter()
        try:
            self.runner.send(self._job(task, [candidate], best_ms, REPEATS))
            answer = self.runner.receive(self.check)
        except WorkerError as error:
            return Result(outcome=error.outcome, message=str(error))
        finally:
            self.seconds["run"] += time.perf_counter() - started
        if answer["outcome"] != "ok":
            outcome = "wrong" if answer["outcome"] == "wrong" else "crashed"
            return Result(outcome=outcome, message=answer["message"])
        return Result(outcome="ok", ms=tuple(answer["ms"][0]))

    def _job(self, task: Any, candidates: Sequence[Any], best_ms: float | None, repeats: int) -> dict[str, Any]:
        from tvmflow.tune.space import UNSCHEDULED

        return {
            "libraries": [str(self._libraries[task.key, candidate.text]) for candidate in candidates],
            "reference": str(self._libraries[task.key, UNSCHEDULED]),
            "arguments": task.arguments,
            "best_ms": best_ms,
            "repeats": repeats,
        }

    def _build_with_reference(self, task: Any, candidates: Sequence[Any]) -> dict[str, Result]:
        from tvmflow.tune.space import UNSCHEDULED, Candidate

        unscheduled = Candidate(task=task.key, text=UNSCHEDULED, module=task.module, record=[])
        others = [candidate for candidate in candidates if candidate.text != UNSCHEDULED]
        failures = self._build(task, [unscheduled, *others])
        if UNSCHEDULED in failures:
            raise VerificationError(
                f"The kernel {task.name} can't be compiled unscheduled: {failures[UNSCHEDULED].message}."
            )
        return failures

    def _build(self, task: Any, candidates: Sequence[Any]) -> dict[str, Result]:
        """Compile those that aren't yet, side by side; the failures by candidate."""
        import tvm

        started = time.perf_counter()
        failures: dict[str, Result] = {}
        waiting = [row for row in reversed(candidates) if (task.key, row.text) not in self._libraries]
        busy: dict[Worker, tuple[Any, Path]] = {}
        while waiting or busy:
            for worker in self.builders:
                if waiting and worker not in busy:
                    candidate = waiting.pop()
                    output = self.folder / f"{len(self._libraries) + len(busy)}-{time.monotonic_ns()}.so"
                    busy[worker] = (candidate, output)
                    worker.send({"module": tvm.ir.save_json(candidate.module), "output": str(output)})
            with selectors.DefaultSelector() as selector:
                for worker in busy:
                    selector.register(worker, selectors.EVENT_READ)
                left = min(worker.deadline for worker in busy) - time.monotonic()
                selector.select(min(CHECK_S, max(0.0, left) + 0.01))
            self.check()
            for worker, (candidate, output) in list(busy.items()):
                try:
                    answer = worker.poll()
                except WorkerError as error:
                    outcome = "build hung" if error.outcome == "hung" else "build failed"
                    answer = {"outcome": outcome, "message": str(error)}
                if answer is None:
                    continue
                del busy[worker]
                if answer["outcome"] == "ok":
                    self._libraries[task.key, candidate.text] = output
                else:
                    outcome = answer["outcome"] if answer["outcome"] == "build hung" else "build failed"
                    failures[candidate.text] = Result(outcome=outcome, message=answer["message"])
        self.seconds["build"] += time.perf_counter() - started
        return failures

    def close(self) -> None:
        """End its processes and remove what they built."""
        for worker in (*self.builders, self.runner):
            worker.close()
        self._log.close()
        self._folder.cleanup()


def classified(result: Result) -> Result:
    """`result`, if its times can be times; a runner that lies doesn't win."""
    if result.outcome == "ok" and not are_latencies(result.ms):
        return Result(outcome="bad time", message=f"it was timed as {', '.join(map(str, result.ms)) or 'nothing'}")
    return result


RUNNERS = ("auto", "local", "rpc", "modelled")


def choose_runner(choice: str, target: Target) -> tuple[str, str]:
    """The runner for a board and the reason for it. Raises MissingDependencyError, UserError."""
    from tvmflow.targets import TARGETS

    if choice not in RUNNERS:
        raise UserError(f"There is no runner {choice!r}; the runners are {', '.join(RUNNERS)}.")
    native = target.kind == "llvm" and target.elf == TARGETS["host"].elf
    if choice in ("auto", "local") and native:
        return "local", f"{target.name} is this computer"
    if choice == "local":
        raise MissingDependencyError(
            f"--runner local times on this computer, and {target.name} is another ({target.cpu.model}); "
            f"run `tvmflow tune --target llvm` on the board itself."
        )
    if choice == "auto":
        raise MissingDependencyError(
            f"{target.name} ({target.cpu.model}) isn't this computer, and this version of tvmflow can't reach a board "
            "over the network yet; run `tvmflow tune --target llvm` on the board itself."
        )
    missing = {
        "rpc": "a connection to the board over the network",
        "modelled": f"a model of the latency of {target.name}",
    }[choice]
    raise MissingDependencyError(f"--runner {choice} needs {missing}, which this version of tvmflow doesn't have yet.")
