"""Documents with all that they can have in them, and every way of damaging one place of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

REPLACEMENTS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1 << 62,
    1e308,
    5e-324,
    "",
    "\x1b[31m=<b>",
    [],
    [None],
    [[0]],
    {},
    {"a": None},
)

TIME = {"basis": "measured", "unit": "us", "p50": 10.0, "min": 9.0, "interval": [9.5, 10.5]}
FACTS = {"model": "Board", "kernel": "6.1", "governor": "performance", "temperature_c": 50.5, "cores": 4}
ACCURACY = {"value": 0.9, "images": 10_000, "data": "the test set", "arithmetic": "float32"}
ROOF = {"gflops": 48.0, "gbps": 4.0, "source": "sheet", "basis": "stated", "unverified": ["l2_bytes"], "note": ""}
WINDOW = {"at_s": 1.0, "p50": 1.0, "p90": 1.1, "p99": 1.2, "mean": 1.0, "min": 0.9, "max": 1.3, "repeats": 20}

REPORT: dict[str, Any] = {
    "schema_version": "1.3",
    "model": {"name": "net", "source": "net.pt2", "parameters": 1000, "macs": 3000, "accuracy": ACCURACY},
    "target": {
        "name": "board",
        "kind": "arm_cpu",
        "description": "A board",
        "cpu": {"model": "A72", "cores": 4, "clock_mhz": 1500},
        "datasheet": "its sheet",
        "arithmetic": "float32",
        "roof": ROOF,
    },
    "verify": {
        "passed": True,
        "method": "device",
        "max_abs_error": 1e-6,
        "max_rel_error": 1e-6,
        "argmax_agreement": 1.0,
        "constant_outputs": [1],
        "tolerance": {"float32": 1e-5},
        "vectors": [{"name": "a", "passed": True, "max_abs_error": 1e-6, "max_rel_error": 1e-6, "same_class": True}],
    },
    "latency": {
        "basis": "measured",
        "unit": "ms",
        **{key: value for key, value in WINDOW.items() if key != "at_s"},
        "spread": 1.1,
        "threads": 4,
        "setup": 5.0,
        "first": 2.0,
        "warm": 1.0,
        "warmup_repeats": 3,
        "interval": [0.95, 1.05],
        "attempts": 1,
        "warnings": ["It was warm."],
        "histogram": {"edges": [0.9, 1.0, 1.1], "counts": [10, 9], "beyond": 1},
        "windows": [{**WINDOW, "temperature_c": 50.0, "clock_mhz": 1500, "throttled": "0x0"}, {**WINDOW, "at_s": 2.0}],
    },
    "latency_note": "",
    "not_shown": [{"what": "cycles", "reason": "no llvm-mca.", "packages": ["llvm"]}],
    "cycles": {
        "basis": "modelled",
        "cycles": 1000,
        "instructions": 900,
        "threads": 1,
        "core": "cortex-a72",
        "core_note": "",
        "model": "llvm-mca 19",
        "validation": {"cpu": "znver3", "kernels": 20, "spearman": 0.9, "band": [0.5, 2.0]},
        "latency": {
            "basis": "modelled",
            "unit": "ms",
            "p50": 2.0,
            "interval": [1.5, 3.0],
            "confidence": 0.9,
            "threads": 1,
            "clock_mhz": 1500,
            "court": {"rows": 45, "networks": 23, "boards": ["A", "B"], "median_error": 0.1, "coverage": 0.9},
        },
    },
    "layers": [
        {
            "kernel": "conv",
            "modules": ["a.0", "a.1", "a.2"],
            "macs": 2000,
            "bytes": 4096,
            "schedule": "direct(), searched",
            "latency": TIME,
            "live_macs": 1900,
            "weight_bytes": 1024,
            "live_bytes": 2048,
            "bound": {"us": 5.0, "by": "compute"},
            "details": {
                "kernels": [
                    {"name": "k", "blocks": 8, "threads": 64, "registers": 32, "shared_bytes": 1024}
                    | {"spill_bytes": 0, "occupancy": 0.5}
                ],
                "instructions": 500,
                "modelled_cycles": 400,
                "sqnr_db": 40.0,
            },
        },
        {
            "kernel": "dense",
            "modules": [],
            "macs": 1000,
            "bytes": 1024,
            "schedule": "default",
            "latency": {**TIME, "p50": 1.0},
            "bound": None,
            "details": {"bound": "memory", "bound_cycles": 10, "cycles": 20, "times_bound": 2.0},
        },
    ],
    "timeline": {
        "basis": "simulated",
        "unit": "cycles",
        "end": 100,
        "queues": {"compute": {"gemm": [500, 200], "alu": [100, 0]}},
        "layers": [{"begin": 0, "end": 60}, {"begin": 60, "end": 100}],
    },
    "memory": {
        "weights_bytes": 4000,
        "activations_bytes": 2048,
        "code_bytes": 1000,
        "library_bytes": 9000,
        "peak_bytes": 9000,
    },
    "device": {"host": "pi", "folder": "net", "basis": "measured", "before": FACTS, "after": FACTS},
    "environment": {
        "date": "2026-01-01",
        "os": "Linux",
        "machine": "x86_64",
        "cpu": "A72",
        "cores": 4,
        "python": "3.11",
        "versions": {"tvmflow": "0.1", "tvm": "0.27"},
    },
}

GPU = {"model": "Orin", "architecture": "sm_87", "sms": 8, "clock_mhz": 900, "dram_gbps": 100, "unverified": []}
SIMULATED: dict[str, Any] = {
    **REPORT,
    "target": {**REPORT["target"], "name": "fpga", "kind": "vta", "arithmetic": "int8", "gpu": GPU},
    "latency": {
        **{key: value for key, value in REPORT["latency"].items() if key not in ("windows", "histogram")},
        "basis": "simulated",
        "simulation": {
            "cycles": 1000,
            "clock_mhz": 100,
            "memory_latency_cycles": 60,
            "band_latency_cycles": [30, 90],
            "band_burst_beats": [256, 16],
            "band_ms": [0.9, 1.1],
            "core": "chisel",
            "hls_ms": 1.5,
            "accelerator_share": 0.9,
        },
    },
}
"""A report with what measured ones lack."""

SEARCH: dict[str, Any] = {
    "board": "board",
    "cpu": "A72",
    "tvm": "0.27",
    "rules": "12345678",
    "basis": "measured",
    "unit": "ms",
    "trials": 3,
    "seconds": 10.0,
    "failures": {"crashed": 1},
    "tasks": [
        {
            "name": "conv",
            "key": "00",
            "untuned_ms": 2.0,
            "winner": {"candidate": "a", "ms": 1.0, "default_ms": 2.0, "compared": True},
            "trials": [
                {"candidate": "b", "outcome": "crashed", "ms": None},
                {"candidate": "c", "outcome": "ok", "ms": 2.0},
                {"candidate": "a", "outcome": "ok", "ms": 1.0},
            ],
        }
    ],
}

ESTIMATE: dict[str, Any] = {
    "model": {"name": "net", "source": "net.pt2", "parameters": 1000, "accuracy": ACCURACY},
    "estimates": [
        {
            "target": "other",
            "kind": "arm_cpu",
            "arithmetic": "float32",
            "memory": {"weights_bytes": 4000, "activations_bytes": 2048},
            "fits": {"fits": True, "parts": {"memory": {"needed_bytes": 6048, "available_bytes": 1 << 30}}},
            "build": {"possible": True, "reason": ""},
            "basis": "modelled",
            "meaning": "lower bound",
            "latency_ms": 0.5,
            "note": "",
            "figures": "data sheet",
            "roof": ROOF,
            "layers": [
                {"modules": ["a.0"], "macs": 2000, "live_macs": 1900, "bytes": 4096, "us": 5.0, "bound": "compute"}
            ],
        }
    ],
}

COLLECTION: dict[str, Any] = {
    "schema_version": "1.3",
    "generator": "tvmflow 0.1",
    "reports": [REPORT, SIMULATED],
    "searches": [SEARCH],
    "estimates": [ESTIMATE],
}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document but its own."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutations(content: Any, replacements: tuple[Any, ...] = REPLACEMENTS) -> Iterator[tuple[str, Any]]:
    """The document with each value left out or replaced, and in words what was done."""
    packed = pickle.dumps(content)  # read again, it is a copy in a fifth of deepcopy's time
    for path in places(content):
        for number in range(len(replacements) + 1):
            changed = pickle.loads(packed)
            holder = changed
            for step in path[:-1]:
                holder = holder[step]
            if number == len(replacements):
                del holder[path[-1]]
                yield f"{path} left out", changed
            else:
                holder[path[-1]] = copy.deepcopy(replacements[number])
                yield f"{path} = {replacements[number]!r}", changed
