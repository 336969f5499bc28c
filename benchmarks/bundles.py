"""Bundles of this computer beside each other, in one run: what a change of tvmflow does to a network's speed.

`python -m benchmarks.bundles BEFORE AFTER` times single inferences of bundles that two checkouts built, or two boards
or options, with one thread and with all. They take turns as the libraries of `benchmarks.peers` do, so that a machine
that changes its pace changes it for both, and each has to give its own golden output. `--layers` adds the least time of
each kernel.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.peers import Contestant, process, spread
from benchmarks.runners import INT8, tolerance
from tvmflow.bundles.bundle import Bundle, open_bundle

REPEATS = 200
"""Inferences in which the least time of a kernel is looked for, in each turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, help="the first is what the others are compared with")
    parser.add_argument("--rounds", type=int, default=9, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds of a turn")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--layers", action="store_true", help="the kernels' times as well")
    options = parser.parse_args()
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in options.bundles]
        for threads in options.threads:
            medians = take_turns(bundles, threads, options.rounds, options.seconds)
            print(f"\n{threads} threads, ms: the median of rounds, and the lowest and the highest\n")
            for path, values in zip(options.bundles, medians, strict=True):
                ratios = [value / first for value, first in zip(values, medians[0], strict=True)]
                print(f"{spread(values, 4):26} × {spread(ratios, 3):24} {path}")
            if options.layers:
                for path, bundle, times in zip(options.bundles, bundles, layers(bundles, threads, 3), strict=True):
                    print(f"\n{path}: {sum(times):.1f} µs in kernels")
                    for layer, microseconds in zip(bundle.layers, times, strict=True):
                        print(f"{microseconds:9.1f}  {layer.schedule:26} {', '.join(layer.modules)}")


def take_turns(bundles: list[Bundle], threads: int, rounds: int, seconds: float) -> list[list[float]]:
    """Of each bundle, the median latency of each round in ms."""
    with ExitStack() as stack:
        contestants = []
        for bundle in bundles:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvmflow-")))
            name = lay_out(bundle, folder)
            contestant = Contestant(str(bundle.path), stack.enter_context(process(name, folder, threads)))
            said = contestant.hear()
            if reason := said.get("absent"):
                raise SystemExit(f"{bundle.path} can't be timed: {reason}")
            if said["error"] > tolerance(name):
                raise SystemExit(f"{bundle.path} gives another output than its golden one, off by {said['error']:.2g}.")
            contestants.append(contestant)
        turns = [[contestant.turn(seconds) for contestant in contestants] for _ in range(rounds)]
    return [list(values) for values in zip(*turns, strict=True)]


def lay_out(bundle: Bundle, folder: Path) -> str:
    """Put it into `folder` as `benchmarks.runners` takes it; returns the runner's name."""
    vector = bundle.vectors()[0]
    if len(vector.inputs) != 1 or len(vector.outputs) != 1:
        raise SystemExit(f"{bundle.path} has several inputs or outputs, which the runner doesn't take.")
    name = "tvmflow" if bundle.quantization is None else f"tvmflow{INT8}"
    inside = folder / "int8" if name.endswith(INT8) else folder
    inside.mkdir(exist_ok=True)
    np.save(inside / "input.npy", vector.inputs[0])
    np.save(inside / "expected.npy", vector.outputs[0])
    (inside / "bundle").symlink_to(bundle.path.resolve())
    return name


def layers(bundles: list[Bundle], threads: int, rounds: int) -> list[list[float]]:
    """Of each bundle, the least time of each kernel in µs, over turns."""
    from tvmflow.measure.local import profile_library

    found: list[list[list[float]]] = [[] for _ in bundles]
    for _ in range(rounds):
        for bundle, rows in zip(bundles, found, strict=True):
            inputs = bundle.vectors()[0].inputs
            samples = profile_library(bundle.library, inputs, bundle.layers, threads=threads, repeats=REPEATS)
            rows.append([min(times) for times in samples])
    return [[min(times) for times in zip(*rows, strict=True)] for rows in found]


if __name__ == "__main__":
    main()
