"""The process that runs a library on a board over RPC: `python -m tvmflow.remote.rpc_worker JOB.json RESULT.json`.

TVM's client has no time-outs of its own and goes down with a connection that breaks in the middle, so it does so here.
A result is {"before": facts, "after": facts, "times": {"samples_ms": […], …}}, with null for the times of an emulated
board, or {"error": step, "message": …} with the step that failed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvmflow.system.without_compiler  # noqa: F401

# isort: split
import numpy as np
import tvm
from tvm import rpc
from tvm.runtime.vm import VirtualMachine

from tvmflow.remote import peers
from tvmflow.remote.deploy import facts_after, parse_facts, why_incompatible
from tvmflow.remote.handshake import session_key
from tvmflow.report import summarize
from tvmflow.spec import DeviceError
from tvmflow.system.limits import PEER
from tvmflow.system.tensors import load

WARMUP_SECONDS = 0.5
WARMUP_RUNS = 10
CALL_SECONDS = 0.1
"""How long a call to the board times within a window: the way there takes much less."""
MOST_SAMPLES = 1 << 20
ENTRY = "invoke_stateful"
"""Runs what `set_input` was given: results stay on the board, for a tuple of them can't be sent (TVM 0.27)."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    step = "auth"
    peers.limit_memory()
    try:
        key = session_key(job["port"], job["token"], server_port=job["server_port"], name=job["name"])
        session = rpc.connect(peers.LOOPBACK, job["port"], key=key, session_timeout=job["session_seconds"])
        step = "facts"
        facts = session.get_function("tvmflow.facts")
        before = _facts(facts)
        if reason := why_incompatible(tuple(job["elf"]), before, job["name"]):
            return {"error": "incompatible", "message": reason}
        threads = job["threads"] or int(before.get("cores", 1))
        step = "upload"
        session.upload(job["library"], target="model.so")
        if session.get_function("tvmflow.digest")("model.so") != _sha256(job["library"]):  # TVM doesn't look
            return {"error": "upload", "message": "what arrived isn't what was sent; is its disk full?"}
        if job["profile"]:
            return _profile(job, session, before, threads)
        step = "load"
        started = time.perf_counter_ns()
        device = session.device(job["device"], 0)
        if not device.exist:
            return {"error": "load", "message": f"TVM on the board finds no {job['device']} device"}
        machine = VirtualMachine(session.load_module("model.so"), device)
        setup_ms = (time.perf_counter_ns() - started) / 1e6
        session.get_function("runtime.config_threadpool")(1, threads)  # 1: the fastest cores
        step = "run"
        stacks = [load(path) for path in job["inputs"]]
        collected: list[list[np.ndarray]] = []
        first_ms = 0.0
        for index in range(len(stacks[0])):
            tensors = [tvm.runtime.tensor(np.asarray(stack[index], order="C"), device) for stack in stacks]
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
        times = None
        if "emulator" not in before:
            warmup: list[float] = []
            started = time.perf_counter_ns()
            while not warmup or time.perf_counter_ns() - started < 1e9 * WARMUP_SECONDS:
                warmup += _time(machine, device, WARMUP_RUNS)
            pace_ms = float(np.median(warmup))
            samples, windows = _time_steady(job, pace_ms, lambda runs: _time(machine, device, runs), facts)
            times = {
                "setup_ms": setup_ms,
                "first_ms": first_ms,
                "warmup_ms": warmup,
                "samples_ms": samples,
                "windows": windows,
                "threads": threads,
            }
        return {"before": before, "after": facts_after(lambda: _facts(facts)), "times": times}
    except DeviceError as error:
        return {"error": "proof", "kind": error.kind, "message": str(error)}
    except Exception as error:  # TVM's client raises several kinds, and what they say is all there is
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": step, "message": f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"}


def _facts(ask: Callable[[], str]) -> dict[str, Any]:
    """Raises ValueError where the board says more than it may."""
    try:
        said = ask()
    except Exception as error:  # TVM's client raises several kinds
        raise ValueError(str(error).strip().splitlines()[-1] if str(error).strip() else "no message") from error
    if not isinstance(said, str) or len(said) > PEER.bytes:
        raise ValueError(f"the board says more than {PEER.bytes:,} bytes of itself")
    return parse_facts(said)


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _profile(job: dict[str, Any], session: rpc.RPCSession, before: dict[str, Any], threads: int) -> dict[str, Any]:
    """Times of the kernels inside inferences, which the board takes by itself: the network would be timed with them."""
    for index, path in enumerate(job["inputs"]):
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "first.npy"), load(path)[0])
            session.upload(str(Path(folder, "first.npy")), target=f"input-{index}.npy")
    session.get_function("runtime.config_threadpool")(1, threads)
    inputs = [f"input-{index}.npy" for index in range(len(job["inputs"]))]
    described = {"library": "model.so", "inputs": inputs, **job["profile"]}
    return {"before": before, **json.loads(session.get_function("tvmflow.profile")(json.dumps(described)))}


def _time_steady(
    job: dict[str, Any], pace_ms: float, time_runs: Callable[[int], list[float]], facts: Callable[[], str]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Times of steady runs in ms for the job's seconds, and windows of them if it is a sustained run."""
    if job["window_seconds"] is None:
        return time_runs(max(1, round(1e3 * job["seconds"] / pace_ms))), []
    samples: list[float] = []
    windows: list[dict[str, Any]] = []
    started = time.perf_counter()
    while not windows or time.perf_counter() - started < job["seconds"]:
        at_s = time.perf_counter() - started
        found: list[float] = []
        while not found or time.perf_counter() - started < at_s + job["window_seconds"]:
            found += time_runs(max(1, round(1e3 * CALL_SECONDS / pace_ms)))
        said = facts_after(lambda: _facts(facts))
        told: dict[str, Any] = {key: said[key] for key in ("temperature_c", "clock_mhz", "throttled") if key in said}
        windows.append({"at_s": at_s, **summarize(found), **told})
        samples += found
    every = 1 + len(samples) // MOST_SAMPLES
    return samples[::every], windows


def _time(machine: VirtualMachine, device: tvm.runtime.Device, runs: int) -> list[float]:
    """Times of single inferences in ms, taken on the board."""
    evaluated = machine.time_evaluator(ENTRY, device, number=1, repeat=runs)("main")
    return [1e3 * seconds for seconds in evaluated.results]


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(run(job)))
