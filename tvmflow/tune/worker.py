"""The processes of a search: `python -m tvmflow.tune.worker KIND SETTINGS`, jobs as JSON lines in, answers out.

They import what they need once and live as long as the search. A builder compiles a kernel into a library; a runner
loads one, checks what it computes and times it. Whatever a candidate does to its process, the search goes on.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi would import it: 2 s and 250 MB for nothing
if sys.argv[1:2] in (["run"], ["remote"]):
    import tvmflow.system.without_compiler  # noqa: F401

import numpy as np  # noqa: E402
import tvm  # noqa: E402

from tvmflow.network.agreement import within_tolerance  # noqa: E402

Answer = dict[str, Any]

SLOW = 8
"""A candidate that takes this many times as long as the best of its task is timed once and no more."""
MOST_CALLS = 10_000
STEADY, MOST_ROUNDS = 1.1, 3
"""Times whose quartiles are further apart are taken again, this often at most: something else was running."""


class Builder:
    """Compiles {"module", "output"}: a TensorIR module as TVM's JSON, and where its library goes.

    Kinds of target may have a way of their own with it: `candidates` is a module with `compile_kernel`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from tvmflow.passes.elementary_functions import with_arithmetic
        from tvmflow.system import toolchain

        self.finish = with_arithmetic
        self.target = tvm.target.Target(settings["target"])
        linker = toolchain.Linker(name="", command=tuple(settings["linker"]), version="")
        self.candidates = settings["candidates"]
        self.compiler = toolchain.fcompile(linker, settings["triple"])

    def __call__(self, job: dict[str, Any]) -> Answer:
        module = tvm.ir.load_json(job["module"])
        if self.candidates is None:
            functions = {name: self.finish(function) for name, function in module.functions.items()}
            library = tvm.compile(tvm.IRModule(functions, attrs=module.attrs), target=self.target)
        else:
            library = import_module(self.candidates).compile_kernel(module, self.target)
        library.export_library(job["output"], fcompile=self.compiler)
        return {"outcome": "ok"}


class Runner:
    """Times {"library", "reference", "arguments", "best_ms", "repeats"}, or several libraries in turn.

    Every buffer is filled with noise; those that the reference changes are outputs. A candidate must leave the same in
    all of them. The reference runs on the CPU, candidates on the `device` of the settings.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.cpu = tvm.cpu()
        self.device = tvm.device(settings["device"], 0)
        self.shortest_ms = settings["shortest_ms"]
        self.reference: tuple[str, list[np.ndarray], list[np.ndarray]] = ("", [], [])

    def __call__(self, job: dict[str, Any]) -> Answer:
        if job["reference"] != self.reference[0]:
            self.reference = (job["reference"], *self._reference(job))
        _, before, after = self.reference
        libraries = [self.load(path) for path in job["libraries"]]
        for library in libraries:
            tensors = [
                # an element that isn't written stays what no kernel computes
                tvm.runtime.tensor(given if given is wanted else np.full_like(given, _stale(given.dtype)), self.device)
                for given, wanted in zip(before, after, strict=True)
            ]
            library["main"](*tensors)
            for tensor, wanted in zip(tensors, after, strict=True):
                if not within_tolerance(wanted, tensor.numpy()):
                    return {"outcome": "wrong", "message": "it computes something else than the unscheduled kernel"}
        return {"outcome": "ok", "ms": self._time(libraries, tensors, job)}

    def load(self, path: str) -> Any:
        return tvm.runtime.load_module(path)

    def _time(self, libraries: list[Any], tensors: list[Any], job: dict[str, Any]) -> list[list[float]]:
        """Times of each library in ms: in turns, so that a machine that changes its pace changes it for all."""
        timers: list[Callable[[], float]] = []
        for library in libraries:
            shortest = 1e3 * min(library.time_evaluator("main", self.device, number=1, repeat=2)(*tensors).results)
            if job["best_ms"] and shortest > SLOW * job["best_ms"]:
                return [[shortest]]
            number = max(1, min(MOST_CALLS, round(self.shortest_ms / max(shortest, 1e-6))))
            evaluator = library.time_evaluator("main", self.device, number=number, repeat=1)
            timers.append(functools.partial(_milliseconds, evaluator, tensors))
        samples: list[list[float]] = [[] for _ in timers]
        for _ in range(MOST_ROUNDS):
            for _ in range(job["repeats"]):
                for found, timer in zip(samples, timers, strict=True):
                    found.append(timer())
            if all(_spread(found) < STEADY for found in samples):
                break
        return samples

    def _reference(self, job: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Every buffer before and after the reference has run; inputs are the same arrays in both."""
        generator = np.random.default_rng(0)
        before = [_noise(generator, shape, dtype) for dtype, shape in job["arguments"]]
        tensors = [tvm.runtime.tensor(array, self.cpu) for array in before]
        self.load(job["reference"])["main"](*tensors)
        after = [tensor.numpy() for tensor in tensors]
        return before, [
            given if np.array_equal(given, left, equal_nan=given.dtype.kind == "f") else left
            for given, left in zip(before, after, strict=True)
        ]


class RemoteRunner(Runner):
    """The same on a board, in sessions of its `tvmflow serve`, of which {"connect": …} begins one.

    "connect" has the "port", the "server_port" and the "token" of an `rpc.Place`.

    A job whose session has ended is answered with "ended", unless this process goes down with it.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.threads, self.device_name = settings["threads"], settings["device"]
        self.session: Any = None
        self.sent: set[str] = set()

    def __call__(self, job: dict[str, Any]) -> Answer:
        if "connect" in job:
            return self._connect(**job["connect"])
        try:
            return super().__call__(job)
        except Exception as error:
            try:
                self.session.get_function("tvmflow.facts")
            except Exception:
                return {"outcome": "ended", "message": f"it ended its session on the board: {_last_line(error)}"}
            raise

    def _connect(self, port: int, server_port: int | None, token: str) -> Answer:
        from tvm import rpc

        from tvmflow.remote import peers
        from tvmflow.remote.deploy import parse_facts
        from tvmflow.remote.handshake import session_key

        peers.limit_memory()
        self.session = rpc.connect(peers.LOOPBACK, port, key=session_key(port, token, server_port=server_port))
        facts = parse_facts(self.session.get_function("tvmflow.facts")())
        self.session.get_function("runtime.config_threadpool")(1, min(self.threads, int(facts.get("cores", 1))))
        self.cpu = self.session.cpu(0)
        self.device = self.session.device(self.device_name, 0)
        return {"outcome": "ok", "facts": facts}

    def load(self, path: str) -> Any:
        name = os.path.basename(path)
        if name not in self.sent:  # a library that is loaded would change under the board's feet
            self.session.upload(path, target=name)
            self.sent.add(name)
        return self.session.load_module(name)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"[:500]


def _milliseconds(evaluator: Any, tensors: list[Any]) -> float:
    return 1e3 * evaluator(*tensors).mean


def _spread(samples: list[float]) -> float:
    """Upper quartile over lower quartile."""
    ordered = sorted(samples)
    return ordered[-1 - len(ordered) // 4] / max(ordered[len(ordered) // 4], 1e-9)


def _noise(generator: np.random.Generator, shape: list[int], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)  # an index of that size is in every table


def _stale(dtype: np.dtype) -> float:
    return float("nan") if dtype.kind == "f" else 77


def _model(settings: dict[str, Any]) -> Callable[[dict[str, Any]], Answer]:
    """What a kind answers with where nothing runs."""
    serve: Callable[[dict[str, Any]], Answer] = import_module(settings["candidates"]).model(settings)
    return serve


KINDS: dict[str, Any] = {"build": Builder, "run": Runner, "remote": RemoteRunner, "model": _model}


def main() -> None:
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a linker or a kernel prints is no answer
    if settings.get("cpus") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, settings["cpus"])
    serve: Callable[[dict[str, Any]], Answer] = KINDS[kind](settings)
    for line in sys.stdin:
        started = time.perf_counter()
        try:
            answer = serve(json.loads(line))
        except Exception as error:
            answer = {"outcome": "failed", "message": _last_line(error)}
        answer["seconds"] = time.perf_counter() - started
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
