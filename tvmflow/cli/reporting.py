"""Commands that put reports together, compare them, and estimate what a board would do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli.options import Json, Threads
from tvmflow.cli.outcome import show
from tvmflow.spec import RegressionError, UserError, VerificationError

log = logging.getLogger("tvmflow.cli")


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE|REPORT.json|RECORDS…",
            help="Bundles, reports that --json wrote, or work dirs of `tvmflow tune`.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for report.json and report.html.")],
    threads: Threads = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to time steady runs.")] = 3.0,
) -> None:
    """Verify bundles, time those that this computer can run, and write report.json and report.html.

    Reports that were made elsewhere, as by `deploy` on a board, are put beside them as they are; records of `tvmflow
    tune` are shown as the course of the search.
    """
    from tvmflow.report import collect, read_report, slower_than_float, write_json, write_text
    from tvmflow.report.render import render_html, report_text
    from tvmflow.report.search import search_of
    from tvmflow.survey import survey
    from tvmflow.tune.store import Store, find_stores

    if not out.is_dir():
        raise UserError(f"There is no folder {out} for the report.")
    reports, searches = [], []
    for path in sources:
        if path.suffix == ".json":
            reports.append(read_report(path))
        elif records := list(find_stores(path)):
            searches += [search_of(Store(folder)) for folder in records]
            continue
        else:
            log.info(f"Surveying {path}")
            reports.append(survey(path, threads=threads, seconds=seconds, must_run=False))
        print(report_text(reports[-1], layers=False), end="\n\n")
    document = collect(reports, searches)
    write_json(out / "report.json", document)
    write_text(out / "report.html", render_html(document))
    for sentence in slower_than_float(reports).values():
        print(f"warning: {sentence}")
    print(f"{out / 'report.json'}\n{out / 'report.html'}")
    failed = [row["target"]["name"] for row in reports if row["verify"]["passed"] is False]
    if failed:
        raise VerificationError(f"The bundles for {', '.join(failed)} don't compute what the network computes.")


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A report of --json, or a report.json of `report`.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The one that came after it.")],
    fail_over: Annotated[
        str | None, typer.Option("--fail-over", help="End with 6 if B is slower by more than that, 5% say, and noise.")
    ] = None,
    any_basis: Annotated[
        bool, typer.Option("--any-basis", help="Compare, say, a measured latency with a simulated one.")
    ] = False,
    json: Json = None,
) -> None:
    """Say what changed from one report to another, in which layers, and whether it is more than noise."""
    from tvmflow.report import compare

    threshold = compare.parse_share(fail_over) if fail_over is not None else None
    found = [
        compare.compare(*pair, any_basis=any_basis)
        for pair in compare.pairs(compare.read_reports(before), compare.read_reports(after))
    ]
    show("\n\n".join(map(compare.text, found)), found, json)
    if broken := [row["target"] for row in found if row["verify"]["after"] is False]:
        raise VerificationError(f"In {after}, wrong answers come from {', '.join(broken)}.")
    if threshold is not None and (slower := compare.regressions(found, threshold)):
        raise RegressionError(f"{'; '.join(slower)}, where {threshold:.3g} more was allowed.")
