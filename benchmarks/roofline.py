"""What one core of this computer can do at most, measured, and how near each layer of a network comes to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmflow.bundles.bundle import Bundle

SUMS = 16  # vectors of independent sums: latency 4 × 2 units × 2
PRODUCTS = 1 << 14
READ_BYTES = 12 << 20  # the paper's network has as many bytes of weights: behind L2, within L3 where there is one
MEMORY_BYTES = 256 << 20  # more than any cache that this core has for itself
SECONDS = 1.0


def limits() -> dict[str, float]:
    """What one core reaches: GFLOP/s of fused multiply-adds in registers, and GB/s of reading.

    `gbps_l2` is of what is in the L2 cache, `gbps` of what isn't any more, `gbps_memory` of what is in no cache.
    """
    import numpy as np
    import tvm
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    from tvmflow.schedules.convolutions import vectors_of
    from tvmflow.system.toolchain import tvm_target_dict
    from tvmflow.targets import TARGETS

    host = TARGETS["host"]
    lanes = vectors_of(host).lanes
    bytes_read = {"gbps_l2": (host.cpu.l2_bytes or 1 << 19) // 2, "gbps": READ_BYTES, "gbps_memory": MEMORY_BYTES}

    def kernel(name: str, steps: int, length: int, term: Callable[..., Any]) -> tirx.PrimFunc:
        """Adds `term(buffer, step, sum, lane, total)` to some vectors, over and over, and stores their sums."""
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True})
            data = T.arg("data", T.Buffer((length,), "float32"))
            output = T.arg("output", T.Buffer((SUMS * lanes,), "float32"))
            totals = [T.sblock_alloc_buffer((lanes,), "float32") for _ in range(SUMS)]
            for place, total in enumerate(totals):
                with T.vectorized(0, lanes) as lane:
                    T.buffer_store(total, data[place * lanes + lane], [lane])
            with T.serial(0, steps) as step:
                for place, total in enumerate(totals):
                    with T.vectorized(0, lanes) as lane:
                        T.buffer_store(total, term(data, step, place, lane, total[lane]), [lane])
            for place, total in enumerate(totals):
                with T.vectorized(0, lanes) as lane:
                    T.buffer_store(output, total[lane], [place * lanes + lane])
        return builder.get().with_attr("global_symbol", name)

    library = tvm.compile(
        tvm.IRModule(
            {
                "multiply": kernel(
                    "multiply", PRODUCTS, SUMS * lanes, lambda data, step, place, lane, total: total * data[0] + data[1]
                ),
                **{
                    name: kernel(
                        name,
                        size // (4 * SUMS * lanes),
                        size // 4,
                        lambda data, step, place, lane, total: total + data[(step * SUMS + place) * lanes + lane],
                    )
                    for name, size in bytes_read.items()
                },
            }
        ),
        target=tvm.target.Target(tvm_target_dict(host)),
    )

    def fastest(name: str, length: int) -> float:
        arguments = [tvm.runtime.tensor(np.full(size, 0.5, "float32")) for size in (length, SUMS * lanes)]
        run, best, until = library[name], float("inf"), time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            started = time.perf_counter()
            run(*arguments)
            best = min(best, time.perf_counter() - started)
        return best

    return {
        "gflops": 2e-9 * PRODUCTS * SUMS * lanes / fastest("multiply", SUMS * lanes),
        **{name: 1e-9 * size / fastest(name, size // 4) for name, size in bytes_read.items()},
    }


def layers(bundle: Bundle, limits: dict[str, float]) -> list[dict[str, Any]]:
    """Each layer of a bundle on one thread: time, arithmetic and traffic, and their parts of the limits."""
    from tvmflow.measure.local import profile_library

    samples = profile_library(bundle.library, bundle.vectors()[0].inputs, bundle.layers, threads=1, repeats=200)
    times = map(statistics.median, samples)
    rows = []
    for layer, us in zip(bundle.layers, times, strict=True):
        gflops, gbps = 2e-3 * layer.macs / us, 1e-3 * layer.bytes / us
        rows.append(
            {
                "modules": list(layer.modules),
                "schedule": layer.schedule,
                "us": us,
                "intensity": 2 * layer.macs / layer.bytes,
                "gflops": gflops,
                "of_peak": gflops / limits["gflops"],
                "gbps": gbps,
                "of_bandwidth": gbps / limits["gbps"],
            }
        )
    return rows
