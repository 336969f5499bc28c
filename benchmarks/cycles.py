"""How good modelled cycles are (`tvmflow.measure.cycles`), found on this computer, where the truth can be measured.

`python -m benchmarks.cycles` builds four networks in three ways, models the cycles of each kernel as `tvmflow profile
--cycles` does for ARM boards, with qemu for x86-64 and llvm-mca's model of this CPU, and then times the same kernels
one by one on one thread, on the network's own tensors. A measured time becomes cycles by the core's clock, which is
measured beside it. Building takes a while and times must be taken on an idle computer, so with `--folder F` all is
kept: the same command again only measures, and a kernel's fewest cycles count. It takes a CPU without AVX-512, which
qemu doesn't have.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvmflow.measure.emulate import Emulator

RESULTS = Path(__file__).parent / "results" / "cycles.json"
MODELS = ("dilated-net", "mobilenet-v1", "squeezenet", "small-vgg")
WAYS: dict[str, tuple[str, ...] | None] = {
    "blocks": None,
    "NCHW": ("pointwise_nchw", "depthwise_rows", "depthwise_nchw", "direct_nchw", "dense", "products", "lanes"),
    "TVM's loops": (),
}
"""Rules that shape the kernels; None: this computer's own."""
TOLERANCE, DIFFERENT = 0.25, 1.1
LEAST_US = 1.0
"""Below that, calling a kernel is too much of its time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--folder", type=Path, help="where what is built and modelled is kept, or found")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    from benchmarks.roofline import limits
    from tvmflow.measure import cycles
    from tvmflow.report import environment, write_json

    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        folder = options.folder or Path(scratch)
        pairs = [(model, way) for model in options.models for way in WAYS]
        for model, way in pairs:
            prepare(model, way, folder)
        kernels = [row for model, way in pairs for row in measure(model, way, folder)]
    document = {
        "core": host_core(),
        "model": cycles.version(),
        "gbps": limits()["gbps"],
        "environment": environment({name: version(name) for name in ("tvmflow", "apache-tvm")}),
        "kernels": kernels,
    }
    document["summary"] = summaries(document)
    write_json(options.output, document)
    options.output.with_suffix(".md").write_text(markdown(document))
    print(markdown(document))


def place(model: str, way: str, folder: Path) -> Path:
    return folder / f"{model}-{list(WAYS).index(way)}"


def prepare(model: str, way: str, folder: Path) -> None:
    """Build, and model the cycles of each layer, unless that was done already."""
    from tvmflow import targets
    from tvmflow.bundles.build import build
    from tvmflow.bundles.bundle import open_bundle
    from tvmflow.measure import cycles, emulate
    from tvmflow.network.frontend import import_model

    root = place(model, way, folder)
    if (root / "modelled.json").exists():
        return
    host = targets.TARGETS["host"]
    rules = WAYS[way]
    target = host if rules is None else replace(host, schedules=rules)
    if not (root / "bundle").exists():
        root.mkdir(parents=True, exist_ok=True)
        build(import_model(model), target, root / "bundle")
    with open_bundle(root / "bundle") as bundle:
        traced = emulate.trace_calls(bundle, emulator())
        found = cycles.model(traced, cycles.Core(mcpu=host_core()), host.tvm.get("mtriple", host.triple))
        rows = [
            {
                "kernel": layer.kernel,
                "modules": list(layer.modules),
                "schedule": layer.schedule,
                "macs": layer.macs,
                "bytes": layer.bytes,
                "instructions": row.instructions,
                "cycles": row.cycles,
            }
            for layer, row in zip(bundle.layers, found, strict=True)
        ]
    (root / "modelled.json").write_text(json.dumps(rows, indent=1))


def measure(model: str, way: str, folder: Path) -> list[dict[str, Any]]:
    """What was modelled of each kernel that takes LEAST_US or more, with its time in µs and the core's clock."""
    from tvmflow.bundles.bundle import open_bundle

    root = place(model, way, folder)
    modelled = {row["kernel"]: row for row in json.loads((root / "modelled.json").read_text())}
    with open_bundle(root / "bundle") as bundle:
        files = [root / f"input-{index}.npy" for index in range(len(bundle.inputs))]
        for file, array in zip(files, bundle.vectors()[0].inputs, strict=True):
            np.save(file, array)
        command = [sys.executable, "-m", "benchmarks.time_kernels", str(bundle.library), json.dumps(list(modelled))]
        environment = {**os.environ, "TVM_NUM_THREADS": "1"}
        done = subprocess.run([*command, *map(str, files)], env=environment, capture_output=True, text=True, check=True)
    timed = json.loads((root / "timed.json").read_text()) if (root / "timed.json").exists() else {}
    for kernel, us, mhz in json.loads(done.stdout):
        timed[kernel] = min((us, mhz), timed.get(kernel, (us, mhz)), key=math.prod)
    (root / "timed.json").write_text(json.dumps(timed))
    return [
        {"model": model, "way": way, **row, "us": timed[kernel][0], "mhz": timed[kernel][1]}
        for kernel, row in modelled.items()
        if timed[kernel][0] >= LEAST_US
    ]


def summaries(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Agreement of groups of kernels, with cycles alone and with memory."""
    kernels = document["kernels"]
    multiplying = [row for row in kernels if row["macs"]]
    groups = {
        "all": kernels,
        "that multiply": multiplying,
        "that multiply, by tvmflow's rules": ours(document),
        **{f"that multiply, {way}": [row for row in multiplying if row["way"] == way] for way in WAYS},
    }
    return [
        {"kernels": name, "memory": memory, **agreement(rows, document["gbps"] if memory else math.inf)}
        for memory in (False, True)
        for name, rows in groups.items()
    ]


def ours(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernels that reports are about: those that multiply, and that our rules have shaped."""
    return [row for row in document["kernels"] if row["macs"] and row["schedule"] != "default"]


def agreement(rows: Sequence[dict[str, Any]], gbps: float) -> dict[str, float]:
    """How modelled and measured cycles of kernels go together."""
    from scipy import stats

    measured = np.array([row["us"] * row["mhz"] for row in rows])
    modelled = np.array([max(row["cycles"], memory_cycles(row, gbps)) for row in rows])
    ratios = measured / modelled
    quantiles = np.quantile(ratios, [0.025, 0.1, 0.5, 0.9, 0.975])
    return {
        "count": len(rows),
        "spearman": float(stats.spearmanr(measured, modelled).statistic),
        "kendall": float(stats.kendalltau(measured, modelled).statistic),
        "geometric_mean": float(stats.gmean(ratios)),
        "quantiles": quantiles.tolist(),
    }


def choices(document: dict[str, Any]) -> tuple[int, int]:
    """Pairs of kernels that do the same layer and whose times differ by DIFFERENT or more, and those ordered right."""
    layers: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in document["kernels"]:
        layer = (row["model"], *row["modules"], row["macs"])
        layers.setdefault(layer, []).append((row["us"] * row["mhz"], row["cycles"]))
    pairs = [
        (first, second)
        for rows in layers.values()
        for first, second in itertools.combinations(sorted(rows), 2)
        if second[0] >= DIFFERENT * first[0]
    ]
    return len(pairs), sum(first[1] < second[1] for first, second in pairs)


def memory_cycles(row: dict[str, Any], gbps: float) -> float:
    """What reading a kernel's operands takes, if they are more than the L2 cache holds."""
    from tvmflow.targets import TARGETS

    return row["bytes"] / gbps / 1e3 * row["mhz"] if row["bytes"] > TARGETS["host"].cpu.l2_bytes else 0.0


def host_core() -> str:
    from tvm.target import codegen

    return codegen.llvm_get_system_cpu()


def emulator() -> Emulator:
    """qemu for this computer's own kind of CPU, with the installed runtime."""
    from tvmflow.measure import emulate
    from tvmflow.system import runtime
    from tvmflow.targets import TARGETS

    host = TARGETS["host"]
    for library in runtime.fetch(host.elf):
        link = runtime.folder(host.elf) / library.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(library)
    return replace(
        emulate.AARCH64,
        machine="x86-64",
        commands=("qemu-x86_64",),
        packages=("qemu-user",),
        root=Path("/"),
        libraries=(),
        triple="x86_64-linux-gnu",
    )


def markdown(document: dict[str, Any]) -> str:
    around, kernels = document["environment"], document["kernels"]
    lines = [
        "# Modelled cycles beside measured ones",
        "",
        f"{len(kernels)} kernels of four networks, shaped in three ways, batch 1, one thread of {around['cpu']} "
        f"({document['core']}). *Modelled*: the instructions that one inference executes, by qemu's x86-64 emulator, "
        f"through {document['model']}, as `tvmflow profile --cycles` does for ARM boards and microcontrollers. "
        "*Measured*: the shortest of 3 to 15 times, in a run or several, of each kernel alone, with warm caches, "
        f"times the clock, which was measured beside it ({min(row['mhz'] for row in kernels):.0f} to "
        f"{max(row['mhz'] for row in kernels):.0f} MHz). Kernels of less than {LEAST_US:g} µs are left out. "
        f"Made by `python -m benchmarks.cycles` on {around['date'][:10]}.",
        "",
        "The ratios are measured ÷ modelled cycles. *With memory*, a kernel whose operands are more than the L2 cache "
        f"holds takes at least as long as reading them at {document['gbps']:.1f} GB/s, which was measured as well. "
        "Kernels that multiply are convolutions and matrix products; of the others, concatenation is hardly more than "
        "calls of memcpy, which isn't part of the library and isn't modelled.",
        "",
        "| kernels | model | number | Spearman's ρ | Kendall's τ | geometric mean of ratios | median | 80 % within "
        "| 95 % within |",
        "|---" * 9 + "|",
    ]
    for row in document["summary"]:
        low, lower, median, upper, high = row["quantiles"]
        lines.append(
            f"| {row['kernels']} | {'with memory' if row['memory'] else 'cycles alone'} | {row['count']} "
            f"| {row['spearman']:.3f} | {row['kendall']:.3f} | {row['geometric_mean']:.2f} | {median:.2f} "
            f"| {lower:.2f}–{upper:.2f} | {low:.2f}–{high:.2f} |"
        )
    pairs, right = choices(document)
    lines += [
        "",
        f"Kernels of all sizes are easier to put in order than choices for one layer. Of {pairs} pairs of kernels that "
        f"do the same layer and whose times differ by {100 * (DIFFERENT - 1):.0f} % or more, cycles alone put {right} "
        f"in the right order ({100 * right / pairs:.0f} %).",
        "",
        verdict(document),
        "",
    ]
    lines += [
        "| network | shaped by | kernel | schedule | KiB touched | instructions | modelled cycles | measured | ratio |",
        "|---" * 9 + "|",
    ]
    for row in kernels:
        measured = row["us"] * row["mhz"]
        lines.append(
            f"| {row['model']} | {row['way']} | {row['kernel']} | {row['schedule']} | {row['bytes'] / 1024:.0f} "
            f"| {row['instructions']:,} | {row['cycles']:,.0f} | {measured:,.0f} | {measured / row['cycles']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def verdict(document: dict[str, Any]) -> str:
    """Whether modelled cycles may become milliseconds, by a rule that was set before."""
    row = validation(document)
    low, high = row["band"]
    good = low >= 1 - TOLERANCE and high <= 1 + TOLERANCE
    return (
        "Modelled cycles become milliseconds in a report if 95 % of the kernels that multiply, by tvmflow's rules, "
        f"take within ±{100 * TOLERANCE:.0f} % of them. They take {low:.2f} to {high:.2f} times as many: "
        + ("they do." if good else "they don't, and reports have cycles, and the order that these give, alone.")
    )


def validation(document: dict[str, Any]) -> dict[str, Any]:
    """What `tvmflow.measure.cycles.VALIDATION` says, which is of cycles alone."""
    found = agreement(ours(document), math.inf)
    quantiles = found["quantiles"]
    return {
        "cpu": document["core"],
        "kernels": found["count"],
        "spearman": round(found["spearman"], 3),
        "band": (round(quantiles[0], 2), round(quantiles[-1], 2)),
    }


if __name__ == "__main__":
    main()
