"""The paper's network on this computer: tvmflow beside ONNX Runtime and PyTorch, in one run.

`python -m benchmarks.peers` (or `make bench`) builds the network, checks that all three compute the same, times single
inferences with one thread and with all, and writes the medians and their ratios to benchmarks/results/peers.json. The
three take turns, so that a machine that changes its pace changes it for all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runners import RUNNERS

RESULTS = Path(__file__).parent / "results" / "peers.json"
REFERENCE = "onnxruntime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dilated-net", help="a network of the registry")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds of a turn")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    from tvmflow.report import environment, write_json

    with tempfile.TemporaryDirectory() as folder:
        prepare(options.model, Path(folder))
        cores = len(os.sched_getaffinity(0))
        rows = [compare(Path(folder), threads, options.rounds, options.seconds) for threads in sorted({1, cores})]
    versions = {name: version for row in rows for name, version in row.pop("versions").items()}
    document = {
        "model": options.model,
        "basis": "measured",
        "unit": "ms",
        "environment": environment(versions),
        "rows": rows,
    }
    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, document)
    print(table(rows))


def prepare(model: str, folder: Path) -> None:
    """Put the network into `folder` as each runner takes it, with one input and the expected output."""
    import numpy as np
    import torch

    from tvmflow.build import build
    from tvmflow.frontend import import_model
    from tvmflow.models import MODELS
    from tvmflow.targets import TARGETS

    program = import_model(model)
    build(program, TARGETS["host"], folder / "bundle")
    np.save(folder / "input.npy", program.vectors[0].inputs[0])
    np.save(folder / "expected.npy", program.vectors[0].outputs[0])
    example = torch.from_numpy(program.vectors[0].inputs[0])
    torch.onnx.export(MODELS[model](), (example,), folder / "model.onnx", dynamo=True, verbose=False)
    (folder / "model").write_text(model)


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
    ratios = [peer / ours for peer, ours in zip(medians[REFERENCE], medians["tvmflow"], strict=True)]
    return {
        "threads": threads,
        "p50": figures,
        "all_rounds": medians,
        "times_tvmflow": {name: figures[name] / figures["tvmflow"] for name in figures if name != "tvmflow"},
        f"{REFERENCE}_ratio_range": [min(ratios), max(ratios)],
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


def table(rows: list[dict[str, Any]]) -> str:
    from tvmflow.report.render import text_table

    return text_table(
        ["threads", *RUNNERS, *(f"{name} / tvmflow" for name in RUNNERS if name != "tvmflow")],
        [
            [row["threads"], *(f"{row['p50'][name]:.3f} ms" for name in RUNNERS)]
            + [f"{ratio:.2f}" for ratio in row["times_tvmflow"].values()]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
