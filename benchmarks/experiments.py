"""The paper's experiments: a list of training runs, what each left, and the page made from that.

    python -m benchmarks.experiments list
    python -m benchmarks.experiments run --data cifar10.tar.xz [NAME…]
    python -m benchmarks.experiments page

`run` trains those that have no result yet, in the order of `EXPERIMENTS`; stopped, it goes on where it was. Several may
work at once on one work directory: each takes the next run that no other has.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tvmflow import __version__
from tvmflow.models import train
from tvmflow.models.data import load_cifar10
from tvmflow.models.dilated_net import DilatedNetConfig
from tvmflow.spec import UserError
from tvmflow.system.host import cpu_name

RESULTS = Path(__file__).parents[1] / "docs" / "experiments"
PAGE = RESULTS.with_suffix(".md")

SEEDS = (0, 1)
EPOCHS = 8

WIDTHS = {
    name: tuple(width // divisor for width in DilatedNetConfig().widths)
    for name, divisor in (("quarter", 4), ("half", 2), ("full", 1))
}
"""Groups of runs: the paper's network with all its widths divided, which trains in less time, and as it is."""

VARIANTS = {
    "delta2": DilatedNetConfig(delta=2),
    "delta0": DilatedNetConfig(delta=0),
    "delta1": DilatedNetConfig(delta=1),
    "delta3": DilatedNetConfig(delta=3),
    "clipped": DilatedNetConfig(delta=2, clipped_for=32),
    "merged": DilatedNetConfig(delta=2, joint="merged"),
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run; its result is the file `name`.json."""

    group: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.group}-{self.variant}-seed{self.seed}"

    @property
    def config(self) -> train.TrainConfig:
        network = dataclasses.replace(VARIANTS[self.variant], widths=WIDTHS[self.group])
        return train.TrainConfig(network=network, epochs=EPOCHS, seed=self.seed)


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(group=group, variant=variant, seed=seed)
        for group in WIDTHS
        for seed in SEEDS
        for variant in VARIANTS
    )
}
"""All runs, those first which say most for their time."""


def run(experiment: Experiment, data_path: Path, work_dir: Path, results: Path) -> None:
    """Train, or go on, and leave the result. Raises UserError."""
    data = load_cifar10(data_path)
    finished = train.train(experiment.config, data, work_dir)
    facts = {
        "name": experiment.name,
        "accuracy": train.accuracy_of(finished.network, data.test),
        "images": len(data.test.labels),
        "data": data.note,
        "data_sha256": data.sha256,
        "parameters": sum(parameter.numel() for parameter in finished.network.parameters()),
        "config": dataclasses.asdict(finished.config),
        "minutes": round(sum(row.seconds for row in finished.curve) / 60, 1),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "versions": {"tvmflow": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "curve": [dataclasses.asdict(row) for row in finished.curve],
    }
    results.mkdir(parents=True, exist_ok=True)
    train.write_text(results / f"{experiment.name}.json", json.dumps(facts, indent=1) + "\n")


def run_all(names: list[str], data_path: Path, work_dir: Path, results: Path) -> None:
    """Do the named runs, or all, that have no result and that no other process is doing. Raises UserError."""
    for name in names or EXPERIMENTS:
        with _alone(work_dir / name) as alone:
            if alone and not (results / f"{name}.json").exists():
                print(name, file=sys.stderr)
                run(_experiment(name), data_path, work_dir / name, results)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process works in `folder`; until the end none will. A process that dies lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _experiment(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        raise UserError(f"There is no run {name!r}; there are {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--results", type=Path, default=RESULTS, help="folder of the results")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="runs, and the accuracy of those that have a result")
    running = commands.add_parser("run", help="train what has no result yet")
    running.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    running.add_argument("--data", type=Path, required=True, help="CIFAR-10: an archive or folder, or its batches")
    running.add_argument("--work-dir", type=Path, default=Path("runs/experiments"), help="checkpoints")
    running.add_argument("--threads", type=int, help="of PyTorch; all CPUs by default")
    commands.add_parser("page", help=f"write {PAGE.name} and its curves from the results")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            if options.threads:
                torch.set_num_threads(options.threads)
            run_all([_experiment(name).name for name in options.names], options.data, options.work_dir, options.results)
        elif options.command == "page":
            from benchmarks import experiment_page

            experiment_page.write(options.results, PAGE)
        else:
            for name in EXPERIMENTS:
                path = options.results / f"{name}.json"
                print(f"{name:24}", f"{json.loads(path.read_text())['accuracy']:.2%}" if path.exists() else "–")
    except UserError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
