"""What TVM's runtime costs: networks as C libraries beside the same kernels as modules, by the C runners of both.

`python -m benchmarks.library_calls NETWORK…` builds each network for this computer in both forms, and the runners take
turns, each turn in a new process, with one thread and with all. Networks are those of tests/strangers.py, of
benchmarks/networks.py, and files. The medians over rounds of the rounds' medians go to
benchmarks/results/library_calls.json, and to library_calls.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import libraries
from benchmarks.networks import NETWORKS
from benchmarks.networks import program_of as network_of
from benchmarks.peers import spread
from benchmarks.strangers import zoo
from tvmflow.report import environment

RESULTS = Path(__file__).parent / "results" / "library_calls.json"
FORMS = ("module", "library")
KERNELS = "kernels"
RUNS = 500
"""Inferences in which kernels are timed, in each round."""
HEAD = "head"
SMALL = (HEAD, "lenet", "resnet-8", "ds_cnn", "autoencoder", "har", "tcn", "squeezenet")
"""Networks that a microcontroller could run as well, where calls weigh most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=list(SMALL), help="names, or files")
    parser.add_argument("--rounds", type=int, default=9, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=0.3, help="timed seconds of a turn, behind half a second")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for network in options.networks:
        with tempfile.TemporaryDirectory(prefix="calls-") as folder:
            rows.append(measure(network, Path(folder), options))
        document = {"basis": "measured", "unit": "us", "networks": rows, "environment": environment({})}
        options.output.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        options.output.with_suffix(".md").write_text(page(document))
    print(options.output.with_suffix(".md").read_text())


def measure(network: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both forms of a network, built and timed."""
    from tvmflow import targets
    from tvmflow.bundles.build import build

    program = program_of(network)
    board = targets.TARGETS["host"]
    if program.integer is not None:
        board = targets.compute_in(board, "int8")
    module = build(program, targets.deliver_as(board, "module"), folder / "module", runner=True)
    library = build(program, targets.deliver_as(board, "library"), folder / "library")
    facts = library.manifest["c_library"]
    row: dict[str, Any] = {
        "network": Path(network).name,
        "kernels": len(module.layers),
        "same_bits": library.manifest["verify"].get("same_bits"),
        "serial_loops": facts["serial_loops"],
        "rounds": options.rounds,
        "seconds": options.seconds,
        "threads": {},
    }
    for threads in options.threads:
        found: dict[str, list[float]] = {form: [] for form in (*FORMS, KERNELS)}
        for place in range(options.rounds):
            for form in FORMS if place % 2 else reversed(FORMS):
                found[form].append(1e3 * _ask(folder / form, threads, "--bench", str(options.seconds))["p50"])
            kernels = _ask(folder / "library", threads, "--profile", str(RUNS))["kernels"]
            found[KERNELS].append(sum(kernel["p50"] for kernel in kernels))
        row["threads"][threads] = found
    row["load_after"] = round(os.getloadavg()[0], 2)
    return row


def program_of(network: str) -> Any:
    """A network by its name or its file."""
    if network == HEAD:
        from tvmflow.network.frontend import import_model, parse_input_shape

        return import_model("benchmarks.library_calls:head", [parse_input_shape("1x64")])
    if network in NETWORKS and network not in zoo():
        return network_of(network)
    return libraries.program_of(network)


def head() -> Any:
    """Two linear layers, the least that anybody calls a network."""
    import torch
    from torch import nn

    torch.manual_seed(20)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


def _ask(bundle: Path, threads: int, *words: str) -> dict[str, Any]:
    """What the bundle's runner says to these words."""
    around = {**os.environ, "TVM_NUM_THREADS": str(threads)}
    command = [str(bundle / "runner" / "run"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=around)
    return json.loads(done.stdout)


def page(document: dict[str, Any]) -> str:
    around, rows = document["environment"], document["networks"]
    counts = list(rows[0]["threads"])
    lines = [
        "# What calls cost: libraries beside modules",
        "",
        f"{around['cpu']}, {around['cores']} cores, {around['date']}; *measured*, in µs: the median over rounds of "
        "each round's median, and in brackets the lowest and the highest round; × is how many times as long the "
        f"module takes, by the same rule over the ratios of each round. {rows[0]['rounds']} rounds of "
        f"{rows[0]['seconds']} s, the C runners of both in turns. *Kernels alone* is the sum of their medians in the "
        "library, a reading of the clock in each. Made by `python -m benchmarks.library_calls`.",
        "",
        "| network | kernels | "
        + " | ".join(f"module, {count} thr. | library | × | kernels alone" for count in counts)
        + " | load after |",
        "|---" * (3 + 4 * len(counts)) + "|",
    ]
    for row in rows:
        cells = []
        for found in row["threads"].values():
            ratios = [module / library for module, library in zip(found["module"], found["library"], strict=True)]
            cells += [spread(found["module"], 2), spread(found["library"], 2), spread(ratios, 2)]
            cells.append(f"{statistics.median(found[KERNELS]):.2f}")
        lines.append(f"| {row['network']} | {row['kernels']} | " + " | ".join(cells) + f" | {row['load_after']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
