"""How good modelled cycles are (`tvmflow.cycles`), found on this computer, where the truth can be measured.

`python -m benchmarks.cycles` builds four networks in three ways, models the cycles of each kernel as `tvmflow profile
--cycles` does for ARM boards, with qemu for x86-64 and llvm-mca's model of this CPU, and then times the same kernels
one by one on one thread, on the network's own tensors. A measured time becomes cycles by the core's clock, which is
measured beside it. Building takes a while and times must be taken on an idle computer, so with `--folder F` all but the
times is kept: the same command again only measures. It takes a CPU without AVX-512, which qemu doesn't have.
"""

from __future__ import annotations

import argparse
import json
import math
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
    from tvmflow.emulate import Emulator

RESULTS = Path(__file__).parent / "results" / "cycles.json"
MODELS = ("dilated-net", "mobilenet-v1", "squeezenet", "small-vgg")
WAYS: dict[str, tuple[str, ...] | None] = {
    "blocks": None,
    "NCHW": ("pointwise_nchw", "depthwise_rows", "depthwise_nchw", "direct_nchw", "dense", "lanes"),
    "TVM's loops": (),
}
"""Rules that shape the kernels; None: this computer's own."""
LEAST_US = 1.0
"""Below that, calling a kernel is too much of its time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--folder", type=Path, help="where what is built and modelled is kept, or found")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    from benchmarks.roofline import limits
    from tvmflow import cycles
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
    from tvmflow import backends, cycles, emulate, targets
    from tvmflow.bundle import open_bundle
    from tvmflow.frontend import import_model

    root = place(model, way, folder)
    if (root / "modelled.json").exists():
        return
    host = targets.TARGETS["host"]
    rules = WAYS[way]
    target = host if rules is None else replace(host, schedules=rules)
    if not (root / "bundle").exists():
        root.mkdir(parents=True, exist_ok=True)
        backends.of(target).build(import_model(model), target, root / "bundle")
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
    from tvmflow.bundle import open_bundle
    from tvmflow.toolchain import python_environment

    root = place(model, way, folder)
    modelled = {row["kernel"]: row for row in json.loads((root / "modelled.json").read_text())}
    with open_bundle(root / "bundle") as bundle:
        files = [root / f"input-{index}.npy" for index in range(len(bundle.inputs))]
        for file, array in zip(files, bundle.vectors()[0].inputs, strict=True):
            np.save(file, array)
        command = [sys.executable, "-m", "benchmarks.time_kernels", str(bundle.library), json.dumps(list(modelled))]
        environment = {**python_environment(), "TVM_NUM_THREADS": "1"}
        done = subprocess.run([*command, *map(str, files)], env=environment, capture_output=True, text=True, check=True)
    timed = {kernel: (us, mhz) for kernel, us, mhz in json.loads(done.stdout)}
    return [
        {"model": model, "way": way, **row, "us": timed[kernel][0], "mhz": timed[kernel][1]}
        for kernel, row in modelled.items()
        if timed[kernel][0] >= LEAST_US
    ]


def summaries(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all kernels and of each way's, with cycles alone and with memory."""
    kernels = document["kernels"]
    groups = {"all": kernels, **{way: [row for row in kernels if row["way"] == way] for way in WAYS}}
    return [
        {"kernels": name, "memory": memory, **agreement(rows, document["gbps"] if memory else math.inf)}
        for memory in (False, True)
        for name, rows in groups.items()
    ]


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


def memory_cycles(row: dict[str, Any], gbps: float) -> float:
    """What reading a kernel's operands takes, if they are more than the L2 cache holds."""
    from tvmflow.targets import TARGETS

    return row["bytes"] / gbps / 1e3 * row["mhz"] if row["bytes"] > TARGETS["host"].cpu.l2_bytes else 0.0


def host_core() -> str:
    from tvm.target import codegen

    return codegen.llvm_get_system_cpu()


def emulator() -> Emulator:
    """qemu for this computer's own kind of CPU, with the installed runtime."""
    from tvmflow import emulate, runtime
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
    return json.dumps(document["summary"], indent=1)


if __name__ == "__main__":
    main()
