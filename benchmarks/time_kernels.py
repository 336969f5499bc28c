"""The process that times the kernels of a library one by one.

`python -m benchmarks.time_kernels LIBRARY KERNELS INPUT…` runs one inference and, before each of KERNELS (JSON),
repeats it on the tensors that it is about to get, with warm caches. Beside each it measures the core's clock, by
additions of which each waits for the one before. It prints JSON: [kernel, µs, MHz] of each in the order of the calls.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvmflow.measure.worker import Network  # keeps torch away: before tvm

import numpy as np  # isort: skip
import tvm  # isort: skip

REPEATS, MOST_SECONDS = 15, 0.3
ADDITIONS = 1_000_000
CHAIN = """
void chain(long rounds) {
  long sum = 1;
  for (long round = 0; round < rounds; ++round)
    __asm__ volatile(".rept 100\\n add %0, %0\\n .endr" : "+r"(sum));
}
"""


def main(library: str, kernels: str, *inputs: str) -> None:
    wanted = set(json.loads(kernels))
    network = Network(library)
    (module,) = tvm.runtime.load_module(library).imports
    chain = compile_chain()
    rows: list[tuple[str, float, float]] = []

    def instrument(func: Any, name: str, before_run: bool, result: Any, *tensors: Any) -> int:
        if before_run and name in wanted:
            before = clock_mhz(chain)
            us = fastest_us(functools.partial(module.time_evaluator, name, network.device, number=1), tensors)
            rows.append((name, us, max(before, clock_mhz(chain))))
        return 0

    network.vm.set_instrument(instrument)
    network.main(*(tvm.runtime.tensor(np.load(path), network.device) for path in inputs))
    print(json.dumps(rows))


def fastest_us(evaluator: Callable[..., Any], tensors: Sequence[Any]) -> float:
    """The shortest of REPEATS times, or fewer if it is slow, each the mean of as many calls as a millisecond takes."""
    once = min(evaluator(repeat=1)(*tensors).results)
    repeats = max(3, min(REPEATS, int(MOST_SECONDS / once)))
    return 1e6 * min(evaluator(repeat=repeats, min_repeat_ms=1)(*tensors).results)


def compile_chain() -> Any:
    from tvmflow.system import toolchain
    from tvmflow.targets import TARGETS

    folder = Path(tempfile.mkdtemp(prefix="tvmflow-"))
    (folder / "chain.c").write_text(CHAIN)
    linker = toolchain.select_linker(TARGETS["host"])
    toolchain.link(linker, folder / "chain.so", [folder / "chain.c"], ("-O2", "-shared", "-fPIC"))
    return ctypes.CDLL(str(folder / "chain.so")).chain


def clock_mhz(chain: Any) -> float:
    """Of the fastest of three chains: what interrupts one makes it slower, nothing faster."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        chain(ctypes.c_long(ADDITIONS // 100))
        best = min(best, time.perf_counter() - started)
    return ADDITIONS / best / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
