"""Commands that put reports together, compare them, and estimate what a board would do."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli import calls
from tvmflow.cli.options import Cycles, InputShapes, Json, ModelName, Threads, boards_like, check_folder, output_path
from tvmflow.cli.outcome import show
from tvmflow.spec import UserError, VerificationError

log = logging.getLogger("tvmflow.cli")


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE|REPORT.json|RECORDS…",
            help="Bundles, what --json of other commands or `report` wrote, or work dirs of `tvmflow tune`.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="<path>",
            help="A folder for report.html, .json, .md and .csv, or one such file; new/ makes the folder.",
        ),
    ],
    threads: Threads = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to time steady runs.")] = 3.0,
    cycles: Cycles = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            parser=output_path,
            metavar="<path>",
            help="Also write the layers' times, and what VTA's queues did, for Perfetto and Chrome: trace.json.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Verify bundles, time those that this computer can run, and write a report for people and programs.

    Reports that were made elsewhere, as by `deploy` on a board, are put beside them as they are; records of `tvmflow
    tune` are shown as the course of the search. Several networks are compared board by board, where what `tvmflow
    estimate --json` wrote stands in for what wasn't built or timed. What this computer can't show, because something
    isn't installed, is said of each board and, with the command that brings it, at the end.
    """
    from tvmflow.report import Report, collect, networks, not_shown, read_document, write_texts
    from tvmflow.report.render import FORMATS, report_text
    from tvmflow.report.search import search_of
    from tvmflow.report.survey import survey
    from tvmflow.report.trace import trace as events
    from tvmflow.system.text import to_json
    from tvmflow.tune.store import Store, find_stores

    place, whole = output_path(out), out.endswith(("/", os.sep))
    if whole:
        check_folder(place)
    elif not place.is_dir() and (place.suffix not in FORMATS or not place.parent.is_dir()):
        suffixes = ", ".join(FORMATS)
        raise UserError(
            f"There is no folder {place} for the report, nor does it name a file of {suffixes} in one; "
            f"{place}/ would make the folder."
        )
    whole = whole or place.is_dir()
    if trace is not None and (trace.is_dir() or not trace.parent.is_dir()):
        raise UserError(f"{trace} can't be written: --trace takes a file in a folder that is there.")
    reports: list[Report] = []
    surveyed: list[Report] = []
    searches, estimates = [], []
    for path in sources:
        if path.suffix == ".json":
            given, modelled = read_document(path)
            reports += given
            estimates += modelled
        elif records := list(find_stores(path)):
            searches += [search_of(Store(folder)) for folder in records]
            continue
        else:
            log.info(f"Surveying {path}")
            surveyed.append(survey(path, threads=threads, seconds=seconds, must_run=False, cycles=cycles))
            reports.append(surveyed[-1])
    document = collect(reports, searches, estimates)
    files = {place / f"report{suffix}": write for suffix, write in FORMATS.items()}
    if networks.tables(document):
        files[place / "networks.csv"] = networks.to_csv
    texts = {file: write(document) for file, write in (files if whole else {place: FORMATS[place.suffix]}).items()}
    if trace is not None:
        texts[trace] = to_json(events(document["reports"])) + "\n"
    if whole:
        place.mkdir(parents=True, exist_ok=True)
    write_texts(texts)
    shown = [f"{report_text(row, layers=False)}\n" for row in document["reports"]]
    show("\n".join([*shown, *map(str, texts), *not_shown(surveyed)]), document, json)
    failed = [row["target"]["name"] for row in reports if row["verify"]["passed"] is False]
    if failed:
        raise VerificationError(f"The bundles for {', '.join(failed)} don't compute what the network computes.")


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A report of --json, or a report.json of `report`.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The one that came after it.")],
    fail_over: Annotated[
        str | None,
        typer.Option(
            "--fail-over", help="End with 6 if B is surely slower by more than that, 5% say, with 9 if noise hides it."
        ),
    ] = None,
    any_basis: Annotated[
        bool, typer.Option("--any-basis", help="Compare, say, a measured latency with a simulated one.")
    ] = False,
    json: Json = None,
) -> None:
    """Say what changed from one report to another, in which layers, and whether it is more than noise."""
    from tvmflow.report import compare, read_reports

    threshold = compare.parse_share(fail_over) if fail_over is not None else None
    found = [
        compare.compare(*pair, any_basis=any_basis) for pair in compare.pairs(read_reports(before), read_reports(after))
    ]
    show("\n\n".join(map(compare.text, found)), found, json)
    if broken := [row["target"] for row in found if row["verify"]["after"] is False]:
        raise VerificationError(f"In {after}, wrong answers come from {', '.join(broken)}.")
    if threshold is not None:
        compare.judge(found, threshold)


def estimate(
    board: Annotated[
        list[str] | None,
        typer.Option(
            "--board",
            help="A board of `tvmflow boards`, or a board's .toml file; several if given again.",
            autocompletion=boards_like,
        ),
    ] = None,
    model: ModelName = "dilated-net",
    input_shape: InputShapes = None,
    json: Json = None,
) -> None:
    """Say what a network takes at least on boards, by its graph and their data sheets; nothing is built or run."""
    found = calls.estimate(model, input_shape, board=board)
    show(found.text, found.document, json)
