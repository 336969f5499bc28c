"""What this computer can do at most, measured: the roof that its layers are held against."""

from __future__ import annotations

import ctypes
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tvmflow.spec import Cpu, MissingDependencyError, Roof, UserError

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
OPTIONS = ("-shared", "-fPIC", "-O3", "-march=native", "-ffp-contract=fast")
RUNS, SECONDS = 3, 0.2
"""Of each figure the best of as many runs as there is time for, so many at least."""
RUN_SECONDS = 2e-3
"""What a run takes at least: short, so that on a busy machine some are left alone."""
CHAINS = 12
"""Independent sums, as in the C source."""
VECTORS = CHAINS * 16
"""`read_memory` takes a multiple of that many floats: as many vectors of 64 bytes."""


def measure_roof(cpu: Cpu, arithmetic: str, threads: int, working_set: int) -> Roof | None:
    """Multiply-adds in registers, and reading as many bytes as an inference touches, by that many threads at once.

    `working_set` are the bytes of weights and activations: what comes from the same caches, or from memory, as they do.
    Takes half a second. None where it can't be measured, with the reason in the log, and for arithmetic other than
    float32, whose fastest instructions differ from CPU to CPU.
    """
    if arithmetic != "float32":
        return None
    try:
        library = _library()
    except (MissingDependencyError, UserError, OSError) as error:
        log.info(f"This computer's roof isn't measured: {error}")
        return None
    parts = [np.ones(-(-working_set // (4 * threads * VECTORS)) * VECTORS, np.float32) for _ in range(threads)]
    results = [np.zeros(3 + CHAINS, np.float32) for _ in range(threads)]

    def compute(thread: int, rounds: int) -> int:
        return library.multiply_add(rounds, results[thread].ctypes.data)

    def read(thread: int, rounds: int) -> int:
        part = parts[thread]
        return library.read_memory(rounds, part.ctypes.data, part.size, results[thread].ctypes.data)

    with ThreadPoolExecutor(threads) as pool:
        operations, read_bytes = (_best_rate(pool, threads, work) for work in (compute, read))
    return Roof(
        macs_per_s=operations / 2,
        bytes_per_s=read_bytes,
        cache_bytes=cpu.l2_bytes * threads,  # what was read comes from beyond: it is more than this, or is counted as 0
        source=f"{cpu.model}, {threads} thread{'s' if threads > 1 else ''}, the best of many runs of "
        f"{1e3 * RUN_SECONDS:g} ms: multiply-adds in registers; "
        f"reading {working_set / 2**20:.1f} MiB, as many as weights and activations are",
        basis="measured",
    )


def _best_rate(pool: ThreadPoolExecutor, threads: int, work: Callable[[int, int], int]) -> float:
    """What `work(thread, rounds)` says it did, a second, by all threads together."""
    rounds, best, runs, began = 1, 0.0, 0, time.perf_counter()
    while runs < RUNS or time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        done = sum(pool.map(lambda thread: work(thread, rounds), range(threads)))  # noqa: B023 - it ends here
        seconds = time.perf_counter() - started
        if seconds < RUN_SECONDS:
            rounds *= 2
            continue
        best, runs = max(best, done / seconds), runs + 1
    return best


@functools.cache
def _library() -> ctypes.CDLL:
    from tvmflow.system.toolchain import native_library

    library = ctypes.CDLL(str(native_library(SOURCE, OPTIONS)))
    library.multiply_add.restype = ctypes.c_int64
    library.multiply_add.argtypes = (ctypes.c_int64, ctypes.c_void_p)
    library.read_memory.restype = ctypes.c_int64
    library.read_memory.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    return library
