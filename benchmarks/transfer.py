"""What records of other networks save: a search on held-out kernels, with lessons from them and without.

`python -m benchmarks.transfer` times the choices of the rules for the kernels of some networks, once. Then it replays
searches over the held-out network's kernels, whose times are known now: the same tuner decides, with a cost model that
starts from the other networks' times and with one that starts from nothing, several seeds each. What counts is how many
trials it takes until the network's kernels are within a percent of the best that any choice gives. MetaSchedule's own
space isn't replayed, since it has no end. Results go to benchmarks/results/transfer.json and .md.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

RESULTS = Path(__file__).parent / "results" / "transfer.json"
WITHIN = (1.05, 1.02, 1.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learn", nargs="+", default=["mobilenet-v1", "small-vgg"], help="networks to learn from")
    parser.add_argument("--held-out", default="squeezenet", help="the network to tune")
    parser.add_argument("--most", type=int, default=40, help="choices of one kernel that are timed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    from tvmflow.network.frontend import import_model
    from tvmflow.report import environment, write_json
    from tvmflow.targets import TARGETS
    from tvmflow.tune.builders import Builders, LocalPool
    from tvmflow.tune.measure import LocalMeasurer
    from tvmflow.tune.space import CostModel, Space
    from tvmflow.tune.tasks import extract, identity
    from tvmflow.tune.transfer import MOST, MOST_OF_TASK, Lesson

    host = TARGETS["host"]
    held_out = extract(import_model(options.held_out), host)
    known = {task.key for task in held_out}
    others = {task.key: task for name in options.learn for task in extract(import_model(name), host)}
    with (
        closing(Builders(LocalPool(host, identity(host).target))) as builders,
        closing(LocalMeasurer(host, builders)) as measurer,
    ):

        def timed(task: Any) -> list[tuple[Any, float]]:
            space = Space(task, host, CostModel(), seed=0, batch=8, population=16)
            choices = [space.default, *random.Random(0).sample(space.choices, min(options.most, len(space.choices)))]
            results = measurer.measure(task, choices, None)
            return [
                (choice, min(result.ms))
                for choice, result in zip(choices, results, strict=True)
                if result.outcome == "ok"
            ]

        taught = {key: timed(task) for key, task in others.items() if key not in known}
        times = {task.key: timed(task) for task in held_out}

    lessons, left = [], MOST
    for key, measured in taught.items():
        if len(measured) > 1 and left > 0:
            chosen = sorted(measured, key=lambda row: row[1])[:: -(-len(measured) // min(left, MOST_OF_TASK))]
            lessons.append(Lesson(source="other networks", task=others[key], measured=tuple(chosen)))
            left -= len(chosen)
    tasks = [task for task in held_out if len(times[task.key]) > 1]
    possible = sum(task.calls * min(ms for _, ms in times[task.key]) for task in tasks)
    curves = {
        name: [replay(tasks, times, seed, given) for seed in range(options.seeds)]
        for name, given in {"without lessons": [], "with lessons": lessons}.items()
    }
    document = {
        "basis": "measured, then replayed",
        "environment": environment({}),
        "load": os.getloadavg()[0],
        "learnt_from": {"networks": options.learn, "kernels": len(lessons), "trials": MOST - left},
        "held_out": {
            "network": options.held_out,
            "kernels": len(tasks),
            "choices": sum(len(times[task.key]) for task in tasks),
        },
        "untuned_over_best": curves["without lessons"][0][0][1] / possible,
        "trials_until_within": {
            name: {f"{limit:g}": [trials_until(curve, limit * possible) for curve in found] for limit in WITHIN}
            for name, found in curves.items()
        },
        "curves": {
            name: [[[n, ms / possible] for n, ms in curve] for curve in found] for name, found in curves.items()
        },
    }
    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, document)
    text = markdown(document)
    options.output.with_suffix(".md").write_text(text)
    print(text)


class Replayed:
    """A measurer that has measured everything before."""

    name = "replayed"

    def __init__(self, times: dict[str, dict[str, float]]) -> None:
        self.times = times
        self.seconds = {"build": 0.0, "run": 0.0}

    def measure(self, task: Any, candidates: Sequence[Any], best_ms: float | None) -> Iterator[Any]:
        from tvmflow.targets.search import Result

        for candidate in candidates:
            ms = self.times[task.key].get(candidate.text)
            yield Result(outcome="ok", ms=(ms,)) if ms else Result(outcome="crashed")

    def compare(self, task: Any, candidates: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
        return []

    def close(self) -> None:
        pass


def replay(tasks: Sequence[Any], times: dict[str, Any], seed: int, lessons: Sequence[Any]) -> list[tuple[int, float]]:
    """(trials, ms of the network's kernels by the best of them) after each batch of a search."""
    from tvmflow.targets import TARGETS
    from tvmflow.targets.search import Options
    from tvmflow.tune.kernels import Kernels
    from tvmflow.tune.session import Session
    from tvmflow.tune.space import Space
    from tvmflow.tune.store import Store
    from tvmflow.tune.tasks import identity

    host, curve = TARGETS["host"], list[tuple[int, float]]()
    known = {key: {choice.text: ms for choice, ms in rows} for key, rows in times.items()}
    settings = Options(trials=100_000, budget_s=1e6, seed=seed, min_gain=0.0)

    def watch(state: Any) -> None:
        if all(row.default_ms for row in state.rows):
            curve.append((state.spent, state.best_ms))

    class Listed(Space):
        """The choices of the rules that were timed, and no more."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.choices = [choice for choice in self.choices if choice.text in known[self.task.key]]

        def _search(self, count: int, tried: Any) -> list[Any]:
            return []

    with (
        patch("tvmflow.tune.space.Space", Listed),
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder), identity(host), writable=True) as store,
    ):
        kernels = Kernels(tasks=tasks, target=host, measurer=Replayed(known), lessons=lessons)
        Session(kernels, store, settings, watch).run()
    return curve


def trials_until(curve: Sequence[tuple[int, float]], limit_ms: float) -> int | None:
    """Trials after which the kernels take no more than that."""
    return next((trials for trials, ms in curve if ms <= limit_ms), None)


def markdown(document: dict[str, Any]) -> str:
    learnt, held, around = document["learnt_from"], document["held_out"], document["environment"]
    lines = [
        "# What records of other networks save a search",
        "",
        f"{around['cpu']}, {around['cores']} cores, {around['date']}. The cost model learnt from {learnt['trials']} "
        f"trials of {learnt['kernels']} kernels of {', '.join(learnt['networks'])}; searched were {held['choices']} "
        f"choices for {held['kernels']} kernels of {held['network']}, none of them among those. Untuned they take "
        f"{document['untuned_over_best']:.2f} times as long as by the best choices. Medians over seeds, the lowest and "
        "highest in brackets; times measured once and replayed.",
        "",
        "| the network's kernels within | trials without lessons | with lessons |",
        "|---|---|---|",
    ]
    for limit in WITHIN:
        cells = []
        for name in ("without lessons", "with lessons"):
            found = [trials for trials in document["trials_until_within"][name][f"{limit:g}"] if trials is not None]
            cells.append(f"{statistics.median(found):g} ({min(found)}–{max(found)})" if found else "never")
        lines.append(f"| {100 * (limit - 1):.0f} % of the best | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
