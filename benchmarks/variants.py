"""What dilation, clipped dilation and the merged reading of the joint module cost on this computer, in one run.

`python -m benchmarks.variants` builds every variant of the experiments (`benchmarks.experiments.VARIANTS`) with the
paper's widths and random weights, and times them in turns. It writes benchmarks/results/variants.json;
`python -m benchmarks.experiments page` puts it into docs/experiments.md, beside the accuracies.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks import peers, runners
from benchmarks.convert import host


def main() -> None:
    from benchmarks.experiment_page import LATENCIES
    from benchmarks.experiments import VARIANTS
    from tvmflow.report import environment, write_json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=0.6, help="timed seconds of a turn")
    parser.add_argument("--output", type=Path, default=LATENCIES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folders = {variant: Path(name) / variant for variant in VARIANTS}
        for variant, folder in folders.items():
            prepare(variant, folder)
        rows = [
            {"threads": threads, "variants": compare(folders, threads, options.rounds, options.seconds)}
            for threads in sorted({1, len(os.sched_getaffinity(0))})
        ]
    document = {
        "basis": "measured",
        "unit": "ms",
        "environment": environment({}),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "load_after": round(os.getloadavg()[0], 2),
        "rows": rows,
    }
    write_json(options.output, document)
    for row in rows:
        for variant, rounds in row["variants"].items():
            print(f"{row['threads']} threads, {variant:8} {peers.spread(rounds, 3)} ms")


def prepare(variant: str, folder: Path) -> None:
    """The variant in `folder`, as `benchmarks.runners` takes it."""
    from benchmarks.experiments import VARIANTS
    from tvmflow.bundles.build import build
    from tvmflow.models.dilated_net import DilatedNet
    from tvmflow.network.frontend import from_module

    folder.mkdir()
    program = from_module(
        DilatedNet(VARIANTS[variant]).eval(), variant, f"benchmarks.variants:{variant}", [(1, 3, 32, 32)]
    )
    np.save(folder / "input.npy", program.vectors[0].inputs[0])
    np.save(folder / "expected.npy", program.vectors[0].outputs[0])
    build(program, host(None), folder / "bundle")


def compare(folders: dict[str, Path], threads: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Each variant's median latency in each round, in ms. Raises SystemExit if one's answer is wrong."""
    with ExitStack() as stack:
        contestants = {}
        for variant, folder in folders.items():
            contestant = peers.Contestant(variant, stack.enter_context(peers.process("tvmflow", folder, threads)))
            if "error" not in (said := contestant.hear()) or said["error"] > runners.tolerance("tvmflow"):
                raise SystemExit(f"{variant} can't be timed: {said}")
            contestants[variant] = contestant
        medians: dict[str, list[float]] = {variant: [] for variant in contestants}
        for _ in range(rounds):
            for variant, contestant in contestants.items():
                medians[variant].append(contestant.turn(seconds))
    return medians


if __name__ == "__main__":
    main()
