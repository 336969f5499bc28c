"""Networks side by side: what each is, and what it takes on each board, every figure with its basis.

It is the paper's Table 1 with the columns that it lacks. What no bundle's report knows of a network on a board may come
from `tvmflow estimate`, and says so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvmflow.models import MODELS
from tvmflow.report.views import Column, Row, interval_text, markdown_table, modelled_latency, plain, show
from tvmflow.targets import KINDS

ENTRIES = (
    "model",
    "parameters",
    "mmacs",
    "accuracy",
    "accuracy_images",
    "quoted_accuracy",
    "target",
    "arithmetic",
    "verified",
    "module_kib",
    "module_basis",
    "peak_kib",
    "peak_basis",
    "latency_ms",
    "latency_least",
    "latency_basis",
    "latency_figures",
    "threads",
)
"""What is known of a network on a board: a row of the CSV."""


FIGURES = {"latency": "Latency of one inference, ms", "module": "Module, KiB", "peak": "Peak memory, KiB"}
"""What there is a table of, with a column for each board."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number for people, what it is sorted by, and how it is known."""

    shown: str
    number: float | None = None
    basis: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Networks by boards: columns, and for each network a figure for the columns it has one for."""

    heading: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Figure], ...]


NOTHING = Figure(shown="–")
NETWORK = Column(key="model", heading="Network")
FACTS = (
    Column(key="parameters", heading="Parameters", numeric=True),
    Column(key="mmacs", heading="M multiply-adds", numeric=True),
    Column(key="accuracy", heading="Accuracy", numeric=True),
)


def entries(document: Mapping[str, Any]) -> list[Row]:
    """A row for each network on each board, with the keys of ENTRIES, in the order of the document.

    Of several reports on the same the first stands, unless they are of different numbers of threads. An estimate is a
    row if there is no report on that, and gives one its latency that was verified but has none.
    """
    found: dict[tuple[str, ...], list[Row]] = {}

    def whose(row: Row) -> tuple[str, ...]:
        return row["model"], row["target"], row["arithmetic"]

    for row in map(_of_report, document["reports"]):
        known = found.setdefault(whose(row), [])
        if row["threads"] not in [other["threads"] for other in known]:
            known.append(row)
    for network in document.get("estimates", ()):
        for estimate in network["estimates"]:
            row = _of_estimate(network["model"], estimate)
            known = found.setdefault(whose(row), [row])
            if [other["latency_ms"] for other in known] == [None] and known[0]["verified"].startswith("passed"):
                known[0] |= {key: row[key] for key in row if key.startswith("latency")}
    return [row for rows in found.values() for row in rows]


def tables(document: Mapping[str, Any]) -> list[Table]:
    """The networks with their latencies, then each other of FIGURES; none for a single network without estimates."""
    rows = entries(document)
    networks = {name: [row for row in rows if row["model"] == name] for name in dict.fromkeys(r["model"] for r in rows)}
    if len(networks) < 2 and not document.get("estimates"):
        return []
    boards = [Column(key=title, heading=title, numeric=True) for title in dict.fromkeys(map(_title, rows))]
    return [
        Table(
            heading=heading,
            columns=(NETWORK, *(FACTS if key == "latency" else ()), *boards),
            rows=tuple(
                {**_facts(network), **{_title(row): _figure(row, key) for row in network}}
                for network in networks.values()
            ),
        )
        for key, heading in FIGURES.items()
    ]


def to_markdown(document: Mapping[str, Any]) -> list[str]:
    """The tables as lines of Markdown; none where there are none."""
    lines = []
    for table in tables(document):
        lines += ["", f"## {table.heading}", ""]
        rows = [{key: _text(figure) for key, figure in row.items()} for row in table.rows]
        lines += markdown_table(table.columns, rows)
    return [*lines, *(line for note in notes(document) for line in ("", note))] if lines else []


def to_csv(document: Mapping[str, Any]) -> str:
    """A row for each network on each board."""
    written = io.StringIO()
    writer = csv.DictWriter(written, ENTRIES, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in row.items()} for row in entries(document))
    return written.getvalue()


def notes(document: Mapping[str, Any]) -> list[str]:
    """What has to be said beside the tables, as paragraphs."""
    paragraphs = [
        "A latency is of one inference. Peak memory is measured where the network ran, beyond the runtime; else it is "
        "what was planned: weights and activations, on a microcontroller activations and stack. What is modelled comes "
        "from the graph and the figures that are named, and such a latency is a lower bound that no program reaches; "
        "or it has an interval, and comes from the code and a model of the board's core."
    ]
    known = [report["model"].get("accuracy") for report in document["reports"]]
    for about in dict.fromkeys(f"{row['images']:,} test images ({row['data']})" for row in known if row):
        paragraphs.append(f"Accuracy was measured on {about}; what is quoted is the paper's, of its own training.")
    return paragraphs


def _of_report(report: Mapping[str, Any]) -> Row:
    memory, verify = report["memory"], report["verify"]
    latency = report["latency"] or modelled_latency(report)
    outcome = {True: "passed", False: "failed", None: "not verified"}[verify["passed"]]
    return {
        **_of_model(report["model"], report["model"]["macs"], report["target"].get("arithmetic", "float32")),
        "target": report["target"]["name"],
        "verified": f"{outcome}, {verify['method']}" if verify["method"] else outcome,
        "module_kib": memory["library_bytes"] / 1024,
        "module_basis": "built",
        "peak_kib": memory.get("peak_bytes", _planned(memory, report["target"]["kind"])) / 1024,
        "peak_basis": "measured" if "peak_bytes" in memory else "planned",
        "latency_ms": latency and latency["p50"],
        "latency_least": False,
        "latency_basis": latency and latency["basis"],
        "latency_figures": (interval_text(latency) or None) if latency else None,
        "threads": latency and latency["threads"],
    }


def _of_estimate(model: Mapping[str, Any], estimate: Mapping[str, Any]) -> Row:
    memory, fits = estimate["memory"], estimate["fits"]["fits"]
    possible = estimate.get("build", {"possible": True})["possible"]
    latency = estimate["latency_ms"] if fits and possible else None
    return {
        **_of_model(model, sum(layer["macs"] for layer in estimate["layers"]), estimate["arithmetic"]),
        "target": estimate["target"],
        "verified": "can't be built" if not possible else "not built" if fits else "doesn't fit",
        "module_kib": memory["weights_bytes"] / 1024,
        "module_basis": "modelled",
        "peak_kib": _planned(memory, estimate["kind"]) / 1024,
        "peak_basis": "modelled",
        "latency_ms": latency,
        "latency_least": latency is not None,
        "latency_basis": estimate["basis"] if latency is not None else None,
        "latency_figures": estimate.get("figures") if latency is not None else None,
        "threads": None,
    }


def _of_model(model: Mapping[str, Any], macs: int, arithmetic: str) -> Row:
    accuracy = model.get("accuracy")
    if accuracy and accuracy["arithmetic"] != arithmetic:
        accuracy = None
    registered = MODELS.get(model["name"]) if model["source"].startswith("tvmflow.models:") else None
    return {
        "model": model["name"],
        "parameters": model["parameters"],
        "mmacs": macs / 1e6,
        "accuracy": accuracy and accuracy["value"],
        "accuracy_images": accuracy and accuracy["images"],
        "quoted_accuracy": registered and registered.quoted_accuracy,
        "arithmetic": arithmetic,
    }


def _planned(memory: Mapping[str, int], kind: str) -> int:
    """Bytes of RAM."""
    kept = memory["activations_bytes"] + memory.get("stack_bytes", 0)
    in_flash = kind in KINDS and KINDS[kind].weights_in_flash  # a report may be of a newer version's kind
    return kept if in_flash else kept + memory["weights_bytes"]


def _title(row: Row) -> str:
    """A board, the arithmetic if it isn't float32, and with how many threads a latency is of it."""
    parts = [row["target"]]
    if row["arithmetic"] != "float32":
        parts.append(row["arithmetic"])
    if row["threads"]:
        parts.append(f"{row['threads']} thread{'s' * (row['threads'] > 1)}")
    return ", ".join(parts)


def _facts(rows: Sequence[Row]) -> dict[str, Figure]:
    """What a network is, in float32 where that is known."""
    first = min(rows, key=lambda row: row["arithmetic"] != "float32")
    figures = {key: Figure(shown=show(first[key], key), number=first[key]) for key in ("parameters", "mmacs")}
    return {"model": Figure(shown=first["model"]), **figures, "accuracy": _accuracy(first)}


def _accuracy(row: Row) -> Figure:
    ours, quoted = row["accuracy"], row["quoted_accuracy"]
    if ours is None:
        return Figure(shown=f"{quoted:.2%}", number=quoted, basis="quoted") if quoted else NOTHING
    return Figure(shown=f"{ours:.2%}", number=ours, basis=f"measured; {quoted:.2%} quoted" if quoted else "measured")


def _figure(row: Row, key: str) -> Figure:
    """One of FIGURES."""
    if key == "latency":
        if row["latency_ms"] is None:
            return Figure(shown="–", basis=row["verified"])
        shown = f"{'≥ ' * row['latency_least']}{show(row['latency_ms'], 'latency_ms')}"
        words = [row["latency_basis"], *([row["latency_figures"]] if row["latency_figures"] else [])]
        return Figure(shown=shown, number=row["latency_ms"], basis="; ".join(words))
    value, basis = row[f"{key}_kib"], row[f"{key}_basis"]
    if basis == "built":
        basis = f"built; {row['verified']}"
    return Figure(shown=show(value, "kib"), number=value, basis=basis)


def _text(figure: Figure) -> str:
    return f"{figure.shown} ({figure.basis})" if figure.basis else figure.shown
