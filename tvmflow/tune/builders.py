"""From candidates to libraries, compiled side by side: on this computer's cores, or on those of a Dask cluster."""

from __future__ import annotations

import importlib.metadata
import json
import os
import selectors
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tvmflow import __version__
from tvmflow.schedules import UNSCHEDULED
from tvmflow.spec import DeviceError, MissingDependencyError, Target, UserError, VerificationError
from tvmflow.system import children, toolchain
from tvmflow.targets import KINDS
from tvmflow.targets.search import Result, candidates_of
from tvmflow.tune.processes import CHECK_S, Worker, WorkerError

BUILD_LIMIT_S = 20.0
"""A good kernel compiles in a tenth of a second; unrolled beyond measure, one can take LLVM minutes."""
POLL_S = 0.02
CLUSTER_LIMIT_S = 15.0
"""How long a cluster may take to answer, and how long it may be without workers."""

Job = tuple[str, Path]
"""A scheduled module as TVM's JSON, and where its library goes."""


class Pool(Protocol):
    """What compiles: one result for each job, in their order. `check` is asked several times a second meanwhile."""

    def compile(self, jobs: Sequence[Job], check: Callable[[], None]) -> list[Result]: ...

    def close(self) -> None: ...


class Builders:
    """The libraries of a search, in a folder of their own. Nothing is compiled twice."""

    def __init__(self, pool: Pool, *, check: Callable[[], None] = lambda: None) -> None:
        self.pool, self.check = pool, check
        self.seconds = 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="tvmflow-tune-")
        self.folder = Path(self._folder.name)
        self._libraries: dict[tuple[str, str], Path] = {}

    def build(self, task: Any, candidates: Sequence[Any]) -> dict[str, Result]:
        """Compile candidates and the unscheduled kernel, the reference for them; the failures by candidate's text.

        Raises VerificationError if the reference can't be compiled, and what the pool and `check` raise.
        """
        started = time.perf_counter()
        modules = {UNSCHEDULED: task.module, **{row.text: row.module for row in candidates if row.text != UNSCHEDULED}}
        texts = [text for text in modules if (task.key, text) not in self._libraries]
        count = len(self._libraries)
        outputs = [self.folder / f"{count + place}-{time.monotonic_ns()}.so" for place in range(len(texts))]
        jobs = [(json_of(modules[text]), output) for text, output in zip(texts, outputs, strict=True)]
        try:
            results = self.pool.compile(jobs, self.check)
        finally:
            self.seconds += time.perf_counter() - started
        failures = {text: result for text, result in zip(texts, results, strict=True) if result.outcome != "ok"}
        for text, output in zip(texts, outputs, strict=True):
            if text not in failures:
                self._libraries[task.key, text] = output
        if UNSCHEDULED in failures:
            raise VerificationError(
                f"The kernel {task.name} can't be compiled unscheduled: {failures[UNSCHEDULED].message}."
            )
        return failures

    def library(self, task: Any, text: str) -> Path:
        """What `build` has compiled."""
        return self._libraries[task.key, text]

    def close(self) -> None:
        """End the pool and remove what it has built."""
        self.pool.close()
        self._folder.cleanup()


def json_of(module: Any) -> str:
    """A scheduled module in the form of a Job."""
    import tvm

    return str(tvm.ir.save_json(module))


def settings_for(target: Target, tvm_target: Mapping[str, Any]) -> dict[str, Any]:
    """What a builder's process has to know. Raises MissingDependencyError without a linker."""
    return {
        "target": dict(tvm_target),
        "linker": toolchain.select_linker(target).command,
        "triple": target.tvm.get("mtriple", target.triple),
        "candidates": KINDS[target.kind].candidates,
    }


def environment_for(target: Target) -> dict[str, str]:
    """A builder's variables."""
    own = candidates_of(target)
    return children.environment() if own is None else own.environment(target)


def start_process(kind: str, settings: Mapping[str, Any], environment: dict[str, str], limit_s: float) -> Worker:
    """A process of `tvmflow.tune.worker`."""
    return Worker(lambda: children.python("tvmflow.tune.worker", kind, json.dumps(settings)), environment, limit_s)


class LocalPool:
    """Processes on this computer, one for each core that it lends."""

    def __init__(self, target: Target, tvm_target: Mapping[str, Any], count: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings, environment = settings_for(target, tvm_target), environment_for(target)
        self.processes = [start_process("build", settings, environment, BUILD_LIMIT_S) for _ in range(count or cores)]

    def compile(self, jobs: Sequence[Job], check: Callable[[], None]) -> list[Result]:
        return side_by_side(self.processes, [_message(job) for job in jobs], outcome_of, check)

    def close(self) -> None:
        for process in self.processes:
            process.close()


Outcome = TypeVar("Outcome")


def side_by_side(
    processes: Sequence[Worker],
    messages: Sequence[dict[str, Any]],
    outcome: Callable[[Callable[[], dict[str, Any] | None]], Outcome | None],
    check: Callable[[], None],
) -> list[Outcome]:
    """What comes of jobs, in their order, each process having one at a time.

    `outcome` makes it of a process's `poll`, or None if there is no answer yet.
    """
    results: dict[int, Outcome] = {}
    waiting = list(reversed(range(len(messages))))
    busy: dict[Worker, int] = {}
    while waiting or busy:
        for process in processes:
            if waiting and process not in busy:
                busy[process] = waiting.pop()
                process.send(messages[busy[process]])
        with selectors.DefaultSelector() as selector:
            for process in busy:
                selector.register(process, selectors.EVENT_READ)
            left = min(process.deadline for process in busy) - time.monotonic()
            selector.select(min(CHECK_S, max(0.0, left) + 0.01))
        check()
        for process, place in list(busy.items()):
            answer = outcome(process.poll)
            if answer is not None:
                results[place] = answer
                del busy[process]
    return [results[place] for place in range(len(messages))]


def _message(job: Job) -> dict[str, str]:
    return {"module": job[0], "output": str(job[1])}


def outcome_of(answer_of: Callable[[], dict[str, Any] | None]) -> Result | None:
    """A process's answer on a candidate as a result, None if there is none yet; a model's "us" are its time."""
    try:
        answer = answer_of()
    except WorkerError as error:
        return Result(outcome="build hung" if error.outcome == "hung" else "build failed", message=str(error))
    if answer is None:
        return None
    if answer["outcome"] != "ok":
        return _failed(answer["message"])
    return Result(outcome="ok", ms=(answer["us"] / 1e3,) if "us" in answer else ())


def _failed(message: str) -> Result:
    return Result(outcome="build failed", message=message)


class ClusterPool:
    """The workers of a Dask cluster, each of which keeps a builder's process of its own.

    Dask and not Ray: it is Python alone, so it also installs on ARM boards, and its scheduler already takes a job to
    another worker when one is lost. Workers need tvmflow and TVM of the same version, and a linker for the board.
    """

    def __init__(self, address: str, target: Target, tvm_target: Mapping[str, Any]) -> None:
        """Raises MissingDependencyError, DeviceError if no cluster answers, UserError if it has other versions."""
        try:
            import distributed
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "--builders needs Dask: install tvmflow with its extra, `pip install 'tvmflow[cluster]'`."
            ) from error
        self._target, self._tvm_target = target, dict(tvm_target)
        self.address = address
        try:
            self._client = distributed.Client(address, timeout=CLUSTER_LIMIT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"No Dask scheduler answers at {address}; --builders takes an address such as tcp://host:8786.",
                "unreachable",
            ) from error
        try:
            self._check_versions()
        except BaseException:
            self.close()
            raise

    def _check_versions(self) -> None:
        self._wait_for_workers()
        mine = versions()
        for worker, found in self._client.run(versions, on_error="return").items():
            if found != mine:
                theirs = f"{type(found).__name__}: {found}" if isinstance(found, BaseException) else found
                raise UserError(f"The builder {worker} has {theirs} where this computer has {mine}; install the same.")

    def _wait_for_workers(self) -> None:
        until = time.monotonic() + CLUSTER_LIMIT_S
        while not self._client.nthreads():
            if time.monotonic() > until:
                raise DeviceError(f"The Dask cluster at {self.address} has no workers; start one there.", "lost")
            time.sleep(CHECK_S)

    def compile(self, jobs: Sequence[Job], check: Callable[[], None]) -> list[Result]:
        futures = [
            self._client.submit(compile_on_worker, self._target, self._tvm_target, module, pure=False)
            for module, _ in jobs
        ]
        asked = time.monotonic()
        try:
            while not all(future.done() for future in futures):
                time.sleep(POLL_S)
                check()
                if time.monotonic() > asked + CHECK_S:  # without workers jobs would wait for ever
                    self._wait_for_workers()
                    asked = time.monotonic()
        finally:
            self._client.cancel([future for future in futures if not future.done()])
        results = []
        for future, (_, output) in zip(futures, jobs, strict=True):
            error = future.exception()
            if error is not None:
                results.append(_failed(f"{type(error).__name__}: {error}".splitlines()[0]))
                continue
            result, library = future.result()
            output.write_bytes(library)
            results.append(result)
        return results

    def close(self) -> None:
        self._client.close()


def versions() -> dict[str, str]:
    """What has to be the same wherever candidates of one search are compiled."""
    found = {name: importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")}
    return {"tvmflow": __version__, **found}


def compile_on_worker(target: Target, tvm_target: Mapping[str, Any], module: str) -> tuple[Result, bytes]:
    """On a worker of a cluster: a module's library, compiled by a process that lives as long as the worker."""
    import distributed

    worker: Any = distributed.get_worker()
    process = getattr(worker, "tvmflow_builder", None)
    if process is None:
        settings = settings_for(target, tvm_target)
        process = start_process("build", settings, environment_for(target), BUILD_LIMIT_S)
        worker.tvmflow_builder = process
    with tempfile.TemporaryDirectory(prefix="tvmflow-tune-") as folder:
        output = Path(folder, "kernel.so")
        process.send(_message((module, output)))
        result = outcome_of(lambda: process.receive(lambda: None))
        assert result is not None
        return result, output.read_bytes() if result.outcome == "ok" else b""
