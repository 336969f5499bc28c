"""The process that runs a library on a board over RPC: `python -m tvmflow.measure.rpc_worker JOB.json RESULT.json`.

TVM's client has no time-outs of its own and goes down with a connection that breaks in the middle, so it does so here.
A result is {"before": facts, "samples_ms": […], …}, or {"error": step, "message": …} with the step that failed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

# tvm_ffi imports torch wherever it is installed, which costs 2 s and 250 MB; running a library needs none of it.
sys.modules["torch"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import tvm  # noqa: E402
from tvm import relax, rpc  # noqa: E402

from tvmflow.deploy import parse_facts, why_incompatible  # noqa: E402

WARMUP_SECONDS = 0.5
WARMUP_RUNS = 10
ENTRY = "invoke_stateful"
"""Runs what `set_input` was given: results stay on the board, for a tuple of them can't be sent (TVM 0.27)."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    step = "auth"
    try:
        session = rpc.connect(job["host"], job["port"], key=job["token"], session_timeout=job["session_seconds"])
        step = "facts"
        facts = session.get_function("tvmflow.facts")
        before = parse_facts(facts())
        if reason := why_incompatible(tuple(job["elf"]), before, job["name"]):
            return {"error": "incompatible", "message": reason}
        threads = job["threads"] or int(before.get("cores", 1))
        step = "upload"
        session.upload(job["library"], target="model.so")
        step = "load"
        started = time.perf_counter_ns()
        device = session.cpu(0)
        machine = relax.VirtualMachine(session.load_module("model.so"), device)
        setup_ms = (time.perf_counter_ns() - started) / 1e6
        session.get_function("runtime.config_threadpool")(1, threads)  # 1: the fastest cores
        step = "run"
        stacks = [np.load(path) for path in job["inputs"]]
        collected: list[list[np.ndarray]] = []
        first_ms = 0.0
        for index in range(len(stacks[0])):
            tensors = [tvm.runtime.tensor(np.ascontiguousarray(stack[index]), device) for stack in stacks]
            machine.set_input("main", *tensors)
            if index == 0:
                first_ms = _time(machine, device, 1)[0]
            else:
                machine.invoke_stateful("main")
            result = machine.get_outputs("main")
            results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
            collected.append([tensor.numpy() for tensor in results])
        for path, outputs in zip(job["outputs"], zip(*collected, strict=True), strict=True):
            np.save(path, np.stack(outputs))
        warmup = _time(machine, device, WARMUP_RUNS)
        while sum(warmup) < 1e3 * WARMUP_SECONDS:
            warmup += _time(machine, device, WARMUP_RUNS)
        runs = max(1, round(1e3 * job["seconds"] / float(np.median(warmup))))
        samples = _time(machine, device, runs)
        return {
            "before": before,
            "after": parse_facts(facts()),
            "setup_ms": setup_ms,
            "first_ms": first_ms,
            "warmup_ms": warmup,
            "samples_ms": samples,
            "threads": threads,
        }
    except Exception as error:  # TVM's client raises several kinds, and what they say is all there is
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": step, "message": f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"}


def _time(machine: relax.VirtualMachine, device: tvm.runtime.Device, runs: int) -> list[float]:
    """Times of single inferences in ms, taken on the board."""
    evaluated = machine.time_evaluator(ENTRY, device, number=1, repeat=runs)("main")
    return [1e3 * seconds for seconds in evaluated.results]


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(run(job)))
