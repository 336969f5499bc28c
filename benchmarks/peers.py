"""Whole networks on this computer: tvmflow beside ONNX Runtime and PyTorch, in one run.

`python -m benchmarks.peers` (or `make bench`) builds the paper's network, checks that all three compute the same, times
single inferences with one thread and with all, and writes the medians and their ratios to benchmarks/results/peers.json
and .md. The three take turns, so that a machine that changes its pace changes it for all. Beside each layer stands what
part it reaches of this computer's own limits, which are measured in the same run. `--models` takes several networks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import roofline
from benchmarks.runners import RUNNERS

if TYPE_CHECKING:
    from tvmflow.bundle import Bundle

RESULTS = Path(__file__).parent / "results" / "peers.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["dilated-net"], help="networks of the registry")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds of a turn")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    from tvmflow.report import environment, write_json

    limits = roofline.limits()
    networks = [measure(model, limits, options.rounds, options.seconds) for model in options.models]
    versions = {name: version for network in networks for name, version in network.pop("versions").items()}
    document = {
        "basis": "measured",
        "unit": "ms",
        "environment": environment(versions),
        "load_after": round(os.getloadavg()[0], 2),
        "limits": limits,
        "networks": networks,
    }
    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, document)
    text = markdown(document)
    options.output.with_suffix(".md").write_text(text)
    print(text)


def measure(model: str, limits: dict[str, float], rounds: int, seconds: float) -> dict[str, Any]:
    """One network: rows of latencies by threads, and its layers on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        layers = roofline.layers(prepare(model, Path(folder)), limits)
        cores = len(os.sched_getaffinity(0))
        rows = [compare(Path(folder), threads, rounds, seconds) for threads in sorted({1, cores})]
    versions = {name: version for row in rows for name, version in row.pop("versions").items()}
    return {"model": model, "rows": rows, "layers": layers, "versions": versions}


def prepare(model: str, folder: Path) -> Bundle:
    """Put the network into `folder` as each runner takes it, with one input and the expected output."""
    import numpy as np
    import torch

    from tvmflow.build import build
    from tvmflow.frontend import import_model
    from tvmflow.models import MODELS
    from tvmflow.targets import TARGETS

    program = import_model(model)
    bundle = build(program, TARGETS["host"], folder / "bundle")
    np.save(folder / "input.npy", program.vectors[0].inputs[0])
    np.save(folder / "expected.npy", program.vectors[0].outputs[0])
    example = torch.from_numpy(program.vectors[0].inputs[0])
    torch.onnx.export(MODELS[model](), (example,), folder / "model.onnx", dynamo=True, verbose=False)
    (folder / "model").write_text(model)
    return bundle


def compare(folder: Path, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over rounds of each runner's median latency, and how many times as long as tvmflow each takes."""
    medians: dict[str, list[float]] = {name: [] for name in RUNNERS}
    versions = {}
    for _ in range(rounds):
        for name in RUNNERS:
            result = turn(name, folder, threads, seconds)
            medians[name].append(result["p50"])
            versions[name] = result["version"]
    figures = {name: sorted(values)[len(values) // 2] for name, values in medians.items()}
    ratios = {
        name: [peer / ours for peer, ours in zip(values, medians["tvmflow"], strict=True)]
        for name, values in medians.items()
        if name != "tvmflow"
    }
    return {
        "threads": threads,
        "p50": figures,
        "all_rounds": medians,
        "times_tvmflow": {name: figures[name] / figures["tvmflow"] for name in figures if name != "tvmflow"},
        "ratio_range": {name: [min(values), max(values)] for name, values in ratios.items()},
        "versions": versions,
    }


def turn(name: str, folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """One runner in a process of its own: thread pools and allocators start anew."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.runners", name, str(folder), str(threads), str(seconds)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode != 0:
        raise SystemExit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def markdown(document: dict[str, Any]) -> str:
    """The document as tables: latencies by network and threads, then each network's layers."""
    limits, around = document["limits"], document["environment"]
    peers = [name for name in RUNNERS if name != "tvmflow"]
    lines = [
        "# Whole networks beside other libraries",
        "",
        f"{around['cpu']}, {around['cores']} cores, {around['date']}, load {document['load_after']}; "
        + ", ".join(f"{name} {version}" for name, version in around["versions"].items())
        + ". Medians over rounds of the median latency; in brackets the lowest and highest ratio of a round.",
        "",
        "| network | threads | "
        + " | ".join(f"{name}, ms" for name in RUNNERS)
        + " | "
        + " | ".join(f"{name} ÷ tvmflow" for name in peers)
        + " |",
        "|---" * (2 + len(RUNNERS) + len(peers)) + "|",
    ]
    for network in document["networks"]:
        for row in network["rows"]:
            ratios = [
                f"{row['times_tvmflow'][name]:.2f} ({low:.2f}–{high:.2f})"
                for name in peers
                for low, high in [row["ratio_range"][name]]
            ]
            figures = [f"{row['p50'][name]:.3f}" for name in RUNNERS]
            lines.append(f"| {network['model']} | {row['threads']} | " + " | ".join([*figures, *ratios]) + " |")
    lines += [
        "",
        f"One core does {limits['gflops']:.0f} GFLOP/s of fused multiply-adds and reads {limits['gbps']:.0f} GB/s from "
        "behind its L2 cache. Layers on one thread, instrumented; bytes are counted once for each tensor.",
    ]
    for network in document["networks"]:
        lines += [
            "",
            f"## {network['model']}",
            "",
            "| modules | rule | µs | GFLOP/s | of peak | GB/s | of read limit |",
        ]
        lines.append("|---" * 7 + "|")
        for layer in network["layers"]:
            lines.append(
                f"| {', '.join(layer['modules'])} | {layer['schedule']} | {layer['us']:.1f} | {layer['gflops']:.1f} "
                f"| {layer['of_peak']:.0%} | {layer['gbps']:.1f} | {layer['of_bandwidth']:.0%} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
