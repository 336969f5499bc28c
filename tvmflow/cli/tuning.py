"""`tvmflow tune`, and `tvmflow db` for its records."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from tvmflow.cli.options import Board, InputShapes, Json, Key, ModelName, Target, Tracker, output_path
from tvmflow.cli.outcome import show
from tvmflow.network.forms import check_model


def tune(
    target: Target = None,
    board: Board = None,
    model: ModelName = "dilated-net",
    input_shape: InputShapes = None,
    dtype: Annotated[
        Literal["float32", "int8"] | None,
        typer.Option("--dtype", help="What the network is computed in: what the target's search is of."),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Schedules to try, those of earlier runs included.")
    ] = 320,
    time_budget: Annotated[
        str, typer.Option("--time-budget", help="90s, 30m or 2h of searching, earlier runs included.")
    ] = "30m",
    runner: Annotated[str, typer.Option("--runner", help="auto, local, rpc or modelled.")] = "auto",
    ssh: Annotated[
        list[str] | None, typer.Option("--ssh", help="A board where `tvmflow serve` runs; several if given again.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="127.0.0.1:PORT that leads to one; several if given again.")
    ] = None,
    tracker: Tracker = None,
    key: Key = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="The servers' token, for --host and --tracker.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Of `tvmflow serve`, for --ssh.")] = 9090,
    ssh_config: Annotated[Path | None, typer.Option("--ssh-config", help="In place of ~/.ssh/config.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="'list' shows them; names with commas (and *) tune these alone.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", help="Where records are kept; where `build` looks by default.")
    ] = None,
    min_gain: Annotated[
        float, typer.Option("--min-gain", min=0, help="Stop when a minute saves less than this percentage.")
    ] = 0.5,
    builders: Annotated[
        str | None,
        typer.Option("--builders", help="A Dask cluster that builds candidates: its scheduler's address."),
    ] = None,
    transfer: Annotated[
        bool, typer.Option("--transfer/--no-transfer", help="Let the cost model start from earlier searches' records.")
    ] = True,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="With --runner modelled: the constants that benchmarks/cuda.py measured."),
    ] = None,
    json: Json = None,
) -> None:
    """Search better schedules for a network on a board. The same command again goes on where it stopped."""
    from tvmflow import targets
    from tvmflow.network.shapes import parse_input_shape
    from tvmflow.targets.search import Where
    from tvmflow.tune import command as tuning
    from tvmflow.tune.remote import listed

    check_model(model, also=(".safetensors",))
    found = targets.find(target, board)
    found = targets.compute_in(found, dtype or found.arithmetic)
    tuning.check(found, runner, elsewhere=bool(ssh or host or tracker or builders))
    shapes = [parse_input_shape(text) for text in input_shape or []]
    if tasks == "list":
        show(*tuning.list_tasks(found, model, shapes), json)
        return
    tracked = partial(listed, tracker, key, token_file) if tracker is not None else None
    plan = tuning.prepare(
        found,
        model,
        shapes,
        trials=trials,
        time_budget=time_budget,
        runner=runner,
        seed=seed,
        work_dir=work_dir,
        min_gain=min_gain,
        builders=builders,
        transfer=transfer,
        calibration=calibration,
        boards=[
            *(Where(name=name, arguments={"ssh": name, "ssh_config": ssh_config, "port": port}) for name in ssh or []),
            *(Where(name=name, arguments={"address": name, "token_file": token_file}) for name in host or []),
            *(tracked() if tracked else []),
        ],
        listed=tracked,
    )
    show(*tuning.tune(plan, tasks), json)


Records = Annotated[Path, typer.Argument(metavar="DIR", help="A --work-dir of `tvmflow tune`, or one board's folder.")]


def show_records(folder: Records, json: Json = None) -> None:
    """List tasks, trials and best schedules."""
    from tvmflow.tune import database

    text, content = database.show(folder)
    show(text, content, json)


def merge(
    folder: Records,
    sources: Annotated[list[Path], typer.Argument(metavar="FROM…", help="Records, or a database of MetaSchedule.")],
    json: Json = None,
) -> None:
    """Add records of the same board from elsewhere."""
    from tvmflow.tune import database

    _show_done(folder, database.merge(folder, sources), json)


def export(
    folder: Records,
    out: Annotated[
        Path, typer.Option("-o", "--output", parser=output_path, metavar="<path>", help="An empty or new folder.")
    ],
    better: Annotated[bool, typer.Option("--better", help="Only what beats the untuned kernel.")] = False,
    json: Json = None,
) -> None:
    """Copy each task's best record alone, for another computer or for schedules/tuned/."""
    from tvmflow.tune import database

    _show_done(out, database.export(folder, out, better=better), json)


def prune(
    folder: Records,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Records to keep of each task, the fastest.")] = 5,
    json: Json = None,
) -> None:
    """Forget slow records; the trials they cost stay counted."""
    from tvmflow.tune import database

    _show_done(folder, database.prune(folder, keep), json)


def _show_done(folder: Path, done: str, json: Path | None) -> None:
    show(done, {"folder": str(folder), "done": done.splitlines()}, json)
