"""`tvmflow tune` beside MetaSchedule as it comes, in one run: trials a second, and the network that each one finds.

`python -m benchmarks.tuner` gives both the same trials on this computer, each in a process of its own whose clock
starts before its imports, then builds the network with each one's records and times the builds in turns. MetaSchedule
gets one repair, without which nearly all its builds run into their time-out: its import of tensor intrinsics asks
Python's `inspect.stack` for one frame thousands of times, which takes half a minute, and a plain walk takes five
seconds. It runs twice: with its own default of 64 trials at a time, of which 320 reach five kernels and leave the
others as TVM made them, and with as many at a time as tvmflow, so that every kernel gets its share. tvmflow learns
nothing from earlier records here. It needs the `bench` extra. Results go to benchmarks/results/tuner.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "tuner.json"
BAR_S = 150.0
STOCK = (64, 8)
"""Trials at a time: MetaSchedule's default, and tvmflow's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dilated-net", help="a network of the registry")
    parser.add_argument("--trials", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5, help="how often each build is timed")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds of a turn")
    parser.add_argument("--stock", type=int, nargs="+", default=STOCK, help="trials at a time of each MetaSchedule run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--stock-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--at-a-time", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stock_in is not None:
        search_stock(options.model, options.trials, options.at_a_time, options.stock_in)
        return

    from tvmflow.report import environment, write_json

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shared = ["--model", options.model, "--trials", str(options.trials)]
        records = ["--work-dir", str(root / "ours"), "--json", str(root / "ours.json")]
        ours = timed(["tvmflow", "tune", *shared, *records, "--min-gain", "0", "--no-transfer"])
        stock = {
            number: timed(
                ["benchmarks.tuner", *shared, "--stock-in", f"{root / str(number)}", "--at-a-time", f"{number}"]
            )
            for number in options.stock
        }
        found = json.loads((root / "ours.json").read_text())
        rows = {
            "tvmflow": {
                "seconds": ours,
                "trials": found["trials"],
                "failed": sum(found["failures"].values()),
                "seconds_by_kind": found["seconds"],
            },
            **{name_of(number): {"seconds": seconds, **count(root / f"{number}")} for number, seconds in stock.items()},
        }
        networks = compare(options.model, root, options.stock, options.rounds, options.seconds)
        versions = networks.pop("versions")
    for name, row in rows.items():
        row |= {"trials_per_second": row["trials"] / row["seconds"], "network_ms": networks[name]}
    rows["untuned"] = {"network_ms": networks["untuned"]}
    document = {
        "model": options.model,
        "basis": "measured",
        "unit": "ms",
        "threads": len(os.sched_getaffinity(0)),
        "environment": environment(versions),
        "rows": rows,
    }
    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, document)
    text = markdown(document, options.trials)
    options.output.with_suffix(".md").write_text(text)
    print(text)
    print(f"{options.trials} trials in {ours:.0f} s; the bar is {BAR_S:.0f} s for 320 on two cores")


def timed(command: list[str]) -> float:
    """Seconds that `python -m …` takes. Its progress is shown."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def repair_import() -> None:
    """Import TVM's tensor intrinsics with an `inspect.stack` that doesn't look for every frame's source."""
    import inspect

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        frames, frame = [], sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
            frame = frame.f_back  # type: ignore[assignment]
        return frames

    original, inspect.stack = inspect.stack, stack
    try:
        import tvm.s_tir.tensor_intrin  # noqa: F401
    finally:
        inspect.stack = original


def name_of(at_a_time: int) -> str:
    return f"MetaSchedule, {at_a_time} at a time"


def search_stock(model: str, trials: int, at_a_time: int, out: Path) -> None:
    """MetaSchedule, but for `at_a_time` with its own defaults, on the kernels that `tvmflow tune` would tune."""
    repair_import()
    from tvm.s_tir import meta_schedule

    from tvmflow.network.frontend import import_model
    from tvmflow.targets import TARGETS
    from tvmflow.tune.tasks import extract, tvm_target

    target = TARGETS["host"]
    tasks = extract(import_model(model), target)
    contexts = [
        meta_schedule.TuneContext(
            mod=task.module,
            target=tvm_target(target),
            space_generator="post-order-apply",
            search_strategy="evolutionary",
            task_name=task.name,
            rand_state=1,
        )
        for task in tasks
    ]
    out.mkdir()
    meta_schedule.tune.tune_tasks(
        tasks=contexts,
        task_weights=[float(task.calls) for task in tasks],
        work_dir=str(out),
        max_trials_global=trials,
        num_trials_per_iter=at_a_time,
        builder=meta_schedule.builder.LocalBuilder(initializer=repair_import),
    )


def count(folder: Path) -> dict[str, int]:
    """Trials and failures in MetaSchedule's own files, which have an hour-like time for a failure."""
    records = [json.loads(line)[1] for line in (folder / "database_tuning_record.json").read_text().splitlines()]
    return {"trials": len(records), "failed": sum(min(record[1], default=1e10) >= 1e9 for record in records)}


def compare(model: str, root: Path, stock: Sequence[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Median latency in ms of the network by the records of each, and with none, built and timed in turns."""
    from dataclasses import replace

    from tvmflow.bundles.build import build
    from tvmflow.measure.local import time_library
    from tvmflow.network.frontend import import_model
    from tvmflow.targets import TARGETS
    from tvmflow.tune import exchange
    from tvmflow.tune.apply import find_records
    from tvmflow.tune.store import Store
    from tvmflow.tune.tasks import identity

    target = TARGETS["host"]
    program = import_model(model)
    without_rules = replace(target, schedules=())
    builds = {
        "tvmflow": build(program, target, root / "ours-net", records=find_records(target, root / "ours")),
        "untuned": build(program, target, root / "untuned-net"),
    }
    for number in stock:
        with Store(root / f"merged-{number}", identity(target), writable=True) as merged:
            exchange.merge(merged, root / f"{number}")
            foreign = {key: best for key in merged.tasks if (best := merged.best(key))}
        builds[name_of(number)] = build(program, without_rules, root / f"net-{number}", records=foreign)
    times: dict[str, list[float]] = {name: [] for name in builds}
    for _ in range(rounds):
        for name, built in builds.items():
            measured = time_library(built.library, program.vectors[0].inputs, seconds=seconds)
            times[name].append(statistics.median(measured.samples_ms))
    return {
        **{name: statistics.median(values) for name, values in times.items()},
        "versions": builds["tvmflow"].manifest["versions"],
    }


def markdown(document: dict[str, Any], trials: int) -> str:
    around, rows = document["environment"], document["rows"]
    lines = [
        f"# {trials} trials of tvmflow tune and of MetaSchedule",
        "",
        f"{document['model']} on {around['cpu']}, {document['threads']} threads, {around['date']}, TVM "
        f"{around['versions']['tvm']}. Seconds from start to end, imports included; the network's latency is the "
        "median over rounds in turns.",
        "",
        "| | seconds | trials | failed | trials a second | network, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        figures = ["", "", "", ""]
        if "seconds" in row:
            pace = f"{row['trials_per_second']:.2f}"
            figures = [f"{row['seconds']:.0f}", str(row["trials"]), str(row["failed"]), pace]
        lines.append(f"| {name} | {' | '.join(figures)} | {row['network_ms']:.3f} |")
    times = rows["tvmflow"]["seconds_by_kind"]
    spent = ", ".join(f"{kind} {seconds:.0f} s" for kind, seconds in times.items())
    return "\n".join([*lines, "", f"Where tvmflow's time goes: {spent}.", ""])


if __name__ == "__main__":
    main()
