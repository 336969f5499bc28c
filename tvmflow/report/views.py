"""Reports as tables and plots: what is written as HTML, Markdown or CSV is made of these, and says the same."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvmflow.report import GAPS, Report
from tvmflow.report.details import cells_of, header_of
from tvmflow.report.estimate import origin
from tvmflow.system.untrusted import printable

WIDTH, HEIGHT = 480.0, 220.0
"""Of a plot, in its own units; y goes down."""
ROW = 30
"""The height of a bar with what is around it."""
AT_LEAST = "lower bound"
"""The basis of a bar that is no latency: what the layers take at least, modelled by the board's figures."""
DECADES = 0.3
"""How far, in powers of ten, axes of a roofline go beyond what is drawn."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: `key` of its cells, heading, and whether it holds numbers."""

    key: str
    heading: str
    numeric: bool = False


Row = dict[str, Any]

OVERHEAD = 5.0
"""Times its bound above which a layer is bound by something else: starting the kernel, threads, a poor schedule."""

DEVICES = (
    Column(key="model", heading="Network"),
    Column(key="target", heading="Board"),
    Column(key="arithmetic", heading="Arithmetic"),
    Column(key="latency_ms", heading="Latency p50, ms", numeric=True),
    Column(key="basis", heading="Basis"),
    Column(key="spread", heading="p90 ÷ p50", numeric=True),
    Column(key="verified", heading="Verified"),
    Column(key="processor", heading="Processor"),
    Column(key="parameters", heading="Parameters", numeric=True),
    Column(key="mmacs", heading="M multiply-adds", numeric=True),
    Column(key="module_kib", heading="Module, KiB", numeric=True),
    Column(key="weights_kib", heading="Weights, KiB", numeric=True),
    Column(key="activations_kib", heading="Activations, KiB", numeric=True),
    Column(key="note", heading="Notes"),
)

LAYERS = (
    Column(key="place", heading="#", numeric=True),
    Column(key="modules", heading="Modules"),
)
WORK = (
    Column(key="mmacs", heading="M multiply-adds", numeric=True),
    Column(key="kib", heading="KiB touched", numeric=True),
)
SCHEDULE = Column(key="schedule", heading="Schedule")
BOUND = (
    Column(key="by", heading="Bound by"),
    Column(key="least_us", heading="At least, µs", numeric=True),
)
TIMES_BOUND = Column(key="times_bound", heading="× bound", numeric=True)
LEAST_SHARE = Column(key="least_share", heading="Share of bounds", numeric=True)

TIMES = (
    Column(key="us", heading="µs", numeric=True),
    Column(key="share", heading="Share", numeric=True),
    Column(key="cumulative", heading="Cumulative", numeric=True),
    Column(key="gflops", heading="GFLOP/s", numeric=True),
)


def processor(target: Mapping[str, Any]) -> str:
    """What the network is computed on."""
    if gpu := target.get("gpu"):
        return f"{gpu['model']}, {gpu['architecture']}, {gpu['sms']} SM{'s' if gpu['sms'] > 1 else ''}"
    return target["cpu"]["model"]


def devices(reports: Sequence[Report]) -> list[Row]:
    """A row for each report: what the network is, what it takes there, and on what basis that is known."""
    rows = []
    for report in reports:
        memory, latency, verify = report["memory"], report["latency"], report["verify"]
        outcome = {True: "passed", False: "failed", None: "not verified"}[verify["passed"]]
        known = latency or modelled_latency(report)
        rows.append(
            {
                "model": report["model"]["name"],
                "target": report["target"]["name"],
                "processor": processor(report["target"]),
                "arithmetic": report["target"].get("arithmetic", "float32"),
                "parameters": report["model"]["parameters"],
                "mmacs": report["model"]["macs"] / 1e6,
                "module_kib": _kib(memory.get("library_bytes")),
                "weights_kib": _kib(memory.get("weights_bytes")),
                "activations_kib": _kib(memory.get("activations_bytes")),
                "verified": f"{outcome} ({verify['method']})" if verify["method"] else outcome,
                "latency_ms": known and known["p50"],
                "basis": known and _basis(known),
                "spread": latency and latency["spread"],
                "note": " ".join(latency["warnings"]) if latency else report["latency_note"],
            }
        )
    return rows


def modelled_latency(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a model of the core gives where no latency was measured or simulated: `cycles.latency` of a report."""
    return None if report["latency"] else (report.get("cycles") or {}).get("latency")


def page_columns(reports: Sequence[Report]) -> list[Column]:
    """Those of DEVICES that the page's first table has room for: notes are told further down, a single name above."""
    hidden = {"note"} | ({"model"} if len({report["model"]["name"] for report in reports}) == 1 else set())
    return [column for column in DEVICES if column.key not in hidden]


def layers(report: Report) -> tuple[list[Column], list[Row]]:
    """Columns and rows of a report's layers: their times where there are some, and what its kind of target knows.

    Shares are of the layers' times, cumulative ones in the order in which they run; GFLOP/s counts two operations for
    each multiply-add that meets the input, as bounds do. What a layer takes at least is by `target.roof`, but for an
    accelerator that has bounds of its own in its details.
    """
    times = [layer["latency"]["p50"] if layer["latency"] else None for layer in report["layers"]]
    total = sum(time for time in times if time is not None)
    bounds = [None if "times_bound" in layer["details"] else layer.get("bound") for layer in report["layers"]]
    least = sum(bound["us"] for bound in bounds if bound)
    rows, cumulative = [], 0.0
    for place, (layer, time, bound) in enumerate(zip(report["layers"], times, bounds, strict=True), 1):
        row: Row = {
            "place": place,
            "modules": name_of(layer),
            "schedule": layer["schedule"],
            "mmacs": layer["macs"] / 1e6,
            "kib": layer["bytes"] / 1024,
            **{f"details.{place}": cell for place, cell in enumerate(cells_of(layer, report["layers"]))},
        }
        if bound:
            row |= {
                "by": limited_by(layer),
                "least_us": bound["us"],
                "least_share": bound["us"] / least if least else None,
            }
        if time is not None:
            cumulative += time
            row |= {
                "us": time,
                "share": time / total if total else None,
                "cumulative": cumulative / total if total else None,
                "gflops": 2e-3 * live_macs(layer) / time if time else None,
                "times_bound": time / bound["us"] if bound and bound["us"] else None,
            }
        rows.append(row)
    more = [
        Column(
            key=key,
            heading=name[0].upper() + name[1:],
            numeric=all(number(row[key]) is not None for row in rows if row[key]),
        )
        for key, name in ((f"details.{place}", name) for place, name in enumerate(header_of(report["layers"])))
    ]
    bounded = (*BOUND, TIMES_BOUND if total else LEAST_SHARE) if least else ()
    return [*LAYERS, *(TIMES if total else ()), *bounded, *WORK, *more, SCHEDULE], rows


def largest(rows: Sequence[Row], key: str) -> float:
    """The largest number in a column, or 1 where there is none: what its bars are drawn against."""
    return max((row[key] for row in rows if row.get(key)), default=1.0)


def name_of(layer: Mapping[str, Any]) -> str:
    """A layer by its modules."""
    return ", ".join(layer["modules"]) or layer["kernel"]


def live_macs(layer: Mapping[str, Any]) -> int:
    """A layer's multiply-adds that meet the input, or all where that isn't known."""
    return layer["macs"] if layer.get("live_macs") is None else layer["live_macs"]


def least_us(layer: Mapping[str, Any]) -> float | None:
    """What a layer takes at least; of an accelerator by its own bounds."""
    details = layer["details"]
    if "bound_cycles" in details and details.get("cycles"):
        return layer["latency"]["p50"] * details["bound_cycles"] / details["cycles"] if layer["latency"] else None
    return (layer.get("bound") or {}).get("us")


def limited_by(layer: Mapping[str, Any]) -> str | None:
    """What bounds a layer; "overhead" if it takes so many times its bound that this can't be what it spends time on."""
    by = layer["details"].get("bound") or (layer.get("bound") or {}).get("by")
    least = least_us(layer)
    slow = by and least and layer["latency"] and layer["latency"]["p50"] > OVERHEAD * least
    return "overhead" if slow else by


def layers_sum(report: Report) -> str:
    """What the layers add up to, beside the whole; "" where either has no time."""
    latency, times = report["latency"], [layer["latency"]["p50"] for layer in report["layers"] if layer["latency"]]
    if not latency or len(times) < len(report["layers"]) or not latency["p50"]:
        return ""
    total = sum(times) / 1e3
    return f"the layers add up to {total:.3f} ms, {total / latency['p50']:.2f} times the latency"


def layer_basis(report: Report) -> str:
    """What the layers' times are: "measured", say; "" where there are none."""
    return " and ".join(sorted({layer["latency"]["basis"] for layer in report["layers"] if layer["latency"]}))


def number(value: Any) -> float | None:
    """What a cell is sorted by: its number, also where it is text such as "1,200" or "75%"."""
    if isinstance(value, str):
        try:
            return float(value.replace(",", "").removesuffix("%"))
        except ValueError:
            return None
    return None if value is None else float(value)


def show(value: Any, key: str = "") -> str:
    """A cell as text."""
    if value is None:
        return "–"
    if isinstance(value, float):
        if key in ("share", "cumulative", "least_share"):
            return f"{value:.1%}"
        digits = 3 if key in ("latency_ms",) else 2 if key in ("mmacs", "spread") or abs(value) < 10 else 1
        return f"{value:,.{0 if key.endswith('kib') else digits}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def distribution(latency: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bars of a latency's histogram: x, width, height and y in the plot, and what each stands for."""
    found = latency.get("histogram")
    if not found or not any(found["counts"]):
        return []
    highest, width = max(found["counts"]), WIDTH / len(found["counts"])
    return [
        {
            "x": round(width * place, 1),
            "width": round(width - 1, 1),
            "y": round(HEIGHT * (1 - count / highest), 1),
            "height": round(HEIGHT * count / highest, 1),
            "label": f"{found['edges'][place]:.3f} to {found['edges'][place + 1]:.3f} ms: {count} runs",
        }
        for place, count in enumerate(found["counts"])
    ]


def across(reports: Sequence[Report]) -> dict[str, Any] | None:
    """One bar for each report, on a logarithmic axis of ms, by what is known of the time of one inference.

    That is its latency, modelled if none was taken, or, where there is none, the lower bound that its layers have
    together; None where fewer than two reports have either.
    """
    found = []
    for number, report in enumerate(reports, 1):
        bounds = [layer["bound"]["us"] for layer in report["layers"] if layer.get("bound")]
        figures = report["latency"] or modelled_latency(report)
        if figures is not None:
            found.append((number, report, figures["p50"], figures["basis"]))
        elif bounds and len(bounds) == len(report["layers"]) and sum(bounds) > 0:
            found.append((number, report, sum(bounds) / 1e3, AT_LEAST))
    if len(found) < 2:
        return None
    several = len({report["model"]["name"] for report in reports}) > 1
    low = math.floor(math.log10(min(ms for _, _, ms, _ in found)) - 0.3)
    high = math.ceil(math.log10(max(ms for _, _, ms, _ in found)) + 0.01)

    def place(exponent: float) -> float:
        return round(WIDTH * (exponent - low) / (high - low), 1)

    rows = []
    for row, (number, report, ms, basis) in enumerate(found):
        network, arithmetic = report["model"]["name"], report["target"].get("arithmetic", "float32")
        rows.append(
            {
                "number": number,
                "name": f"{f'{network} on ' if several else ''}{report['target']['name']}, {arithmetic}",
                "y": ROW * row,
                "width": place(math.log10(ms)),
                "basis": basis,
                "kind": basis.replace(" ", "-"),
                "ms": f"{ms:.3g} ms" if basis != AT_LEAST else f"at least {ms:.3g} ms",
            }
        )
    kinds = dict.fromkeys((row["kind"], row["basis"]) for row in rows)
    ticks = [(place(tick), f"{10.0**tick:g}") for tick in range(low, high + 1)]
    return {"rows": rows, "height": ROW * len(rows), "ticks": ticks, "kinds": list(kinds)}


def when(reports: Sequence[Report]) -> str:
    """The day on which reports were made, or the first and the last; "" where they don't say."""
    days = sorted(str(report["environment"].get("date", ""))[:10] for report in reports)
    days = [day for day in days if day]
    return "" if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def roofline(report: Report) -> dict[str, Any] | None:
    """Points and roofs of the layers that have a time and do arithmetic, on logarithmic axes; None if there are none.

    The roofs are `target.roof` where it is known; multiply-adds that only meet padding aren't counted.
    """
    points = []
    for layer in report["layers"]:
        macs = live_macs(layer)
        if layer["latency"] and layer["latency"]["p50"] and macs and layer["bytes"]:
            points.append((2 * macs / layer["bytes"], 2e-3 * macs / layer["latency"]["p50"], name_of(layer)))
    points = [point for point in points if all(0 < value < math.inf for value in point[:2])]
    if not points:
        return None
    roof = report["target"].get("roof")
    xs = [math.log10(x) for x, _, _ in points]
    ys = [math.log10(y) for _, y, _ in points] + ([math.log10(roof["gflops"])] if roof else [])
    left, right, low, high = min(xs) - DECADES, max(xs) + DECADES, min(ys) - DECADES, max(ys) + DECADES
    if roof:
        ridge = math.log10(roof["gflops"] / roof["gbps"])
        left, right = min(left, ridge - DECADES), max(right, ridge + DECADES)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(WIDTH * (x - left) / (right - left), 1), round(HEIGHT * (high - y) / (high - low), 1)

    lines = []
    if roof:
        start = max(left, low - math.log10(roof["gbps"]))  # where the memory's line enters from below
        lines = [place(x, min(math.log10(roof["gflops"]), x + math.log10(roof["gbps"]))) for x in (start, ridge, right)]
    return {
        "points": [(*place(math.log10(x), math.log10(y)), f"{label}: {y:.3g} GFLOP/s") for x, y, label in points],
        "roof": lines,
        "source": roof["source"] if roof else "",
        "basis": roof.get("basis", "stated") if roof else "",
        "origin": origin(roof),
        "above": bool(roof) and any(y > roof["gbps"] * x for x, y, _ in points),
        "x_ticks": [(place(tick, low)[0], f"{10.0**tick:g}") for tick in _ticks(left, right)],
        "y_ticks": [(place(left, tick)[1], f"{10.0**tick:g}") for tick in _ticks(low, high)],
    }


def memory_over_time(report: Report) -> dict[str, Any] | None:
    """Bars of the bytes that each layer needs of the planned activations, the plan and the peak; None if unknown."""
    live = [layer.get("live_bytes") for layer in report["layers"]]
    if not live or None in live:
        return None
    planned, peak = report["memory"]["activations_bytes"], max(live)
    highest, width = max(planned, peak) or 1, WIDTH / len(live)
    return {
        "bars": [
            {
                "x": round(width * place, 1),
                "width": round(0.85 * width, 1),
                "y": round(HEIGHT * (1 - count / highest), 1),
                "height": round(HEIGHT * count / highest, 1),
                "peak": count == peak,
                "label": f"{place + 1}: {name_of(layer)}: {count / 1024:,.1f} KiB",
            }
            for place, (layer, count) in enumerate(zip(report["layers"], live, strict=True))
        ],
        "peak_kib": peak / 1024,
        "peak_place": live.index(peak) + 1,
        "peak_layer": name_of(report["layers"][live.index(peak)]),
        "peak_y": round(HEIGHT * (1 - peak / highest), 1),
        "planned_kib": planned / 1024,
        "apart": planned > 1.1 * peak,
        "planned_y": round(HEIGHT * (1 - planned / highest), 1),
    }


PARTS = ("weights", "activations", "code", "stack")


def memory_split(memory: Mapping[str, int]) -> list[dict[str, Any]]:
    """What a network's memory is for, where it is known from the build: name, KiB and share."""
    known = [(name, memory[f"{name}_bytes"]) for name in PARTS if memory.get(f"{name}_bytes")]
    total = sum(count for _, count in known)
    return [{"name": name, "kib": count / 1024, "share": count / total} for name, count in known]


def timeline(report: Report) -> dict[str, Any] | None:
    """An accelerator's queues over time: for each a path of every kind of work, and the layers; None without any.

    A path lies in a plot as wide as there are slices and 1000 high; the kinds of a queue lie on top of each other.
    """
    found = report.get("timeline")
    if not found:
        return None
    queues = []
    for name, kinds in found["queues"].items():
        floor, paths = [0] * len(next(iter(kinds.values()), ())), []
        for kind, shares in kinds.items():
            bars = [
                f"M{place},{1000 - low - share}h1v{share}h-1z"
                for place, (low, share) in enumerate(zip(floor, shares, strict=True))
                if share
            ]
            floor = [low + share for low, share in zip(floor, shares, strict=True)]
            paths.append((kind.replace(" ", "-"), "".join(bars)))
        busy = sum(floor) / (1000 * len(floor)) if floor else 0.0
        queues.append({"name": name, "busy": busy, "paths": paths, "slices": len(floor)})
    ends = [0, *(layer["end"] for layer in found["layers"])]
    layers = [
        {"place": place, "name": name_of(layer), "share": max(0, end - before) / found["end"]}
        for place, (layer, before, end) in enumerate(zip(report["layers"], ends, ends[1:], strict=False), 1)
    ]
    kinds_seen = dict.fromkeys(kind for kinds in found["queues"].values() for kind in kinds)
    return {"queues": queues, "layers": layers, "kinds": [(kind.replace(" ", "-"), kind) for kind in kinds_seen]}


def sustained(windows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The line of p50 over a sustained run, from zero up; empty for a single window."""
    if len(windows) < 2:
        return []
    last, highest = windows[-1]["at_s"] or 1.0, max(window["p50"] for window in windows)
    return [
        (round(WIDTH * window["at_s"] / last, 1), round(HEIGHT * (1 - 0.9 * window["p50"] / highest), 1))
        for window in windows
    ]


def to_markdown(
    document: Mapping[str, Any],
    networks: Sequence[str] = (),
    answered: Callable[[Report], Sequence[tuple[str, str]]] = lambda report: (),
) -> str:
    """A collection as Markdown: the table of devices, the lines on its networks, then each report's answers and layers.

    `answered` gives the questions and answers of a report (`tvmflow.report.answers`).
    """
    reports = document["reports"]
    names = ", ".join(dict.fromkeys(report["model"]["name"] for report in reports))
    made = "; ".join(filter(None, (markdown(names), when(reports), document["generator"])))
    lines = ["# Latency report", "", f"{made}.", "", *markdown_table(DEVICES, devices(reports)), *networks]
    for report in reports:
        columns, rows = layers(report)
        basis = layer_basis(report)
        times = f" Times of layers are {basis}{', in a run of their own' * (basis == 'measured')}." if basis else ""
        lines += ["", markdown(f"## {report['model']['name']} on {report['target']['name']}"), ""]
        lines += [markdown(f"{report['target']['description']}; {report['target']['datasheet']}.{times}"), ""]
        lines += [f"- **{question}:** {markdown(answer)}" for question, answer in answered(report)]
        lines += [""] if answered(report) else []
        lines += [f"Not shown: {GAPS[gap['what']]}. {markdown(gap['reason'])}\n" for gap in report.get("not_shown", ())]
        lines += markdown_table(columns, rows)
    return "\n".join([*lines, "", f"{document['generator']}, report format {document['schema_version']}.", ""])


def to_csv(document: Mapping[str, Any]) -> str:
    """A collection as CSV: a row for each layer of each report, with what the report says of the whole before it."""
    whole = [column.key for column in DEVICES if column.key != "note"]
    found: list[Row] = []
    for report, row in zip(document["reports"], devices(document["reports"]), strict=True):
        _, rows = layers(report)
        basis = layer_basis(report)
        found += [
            {**{key: row[key] for key in whole}, "layer_basis": basis, **{f"layer.{key}": row_[key] for key in row_}}
            for row_ in rows
        ]
    written = io.StringIO()
    header = dict.fromkeys([*whole, "layer_basis", *(key for row in found for key in row)])
    writer = csv.DictWriter(written, list(header), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in row.items()} for row in found)
    return written.getvalue()


def markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Lines of a table."""
    lines = [_markdown_row([column.heading for column in columns])]
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in columns) + "|")
    for row in rows:
        lines.append(_markdown_row([show(row.get(column.key), column.key) for column in columns]))
    return lines


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(markdown(cell.replace(chr(10), ' ')).replace('|', chr(92) + '|') for cell in cells)} |"


def markdown(text: str) -> str:
    """Text on one line of Markdown that is no HTML, no link and no picture there."""
    return printable(text).replace("<", "&lt;").replace("](", "]\\(")


def plain(value: Any) -> Any:
    """What no spreadsheet takes for a formula, and no terminal for a command."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@") or value[:1] in tuple("\t\r\n") else text


def _basis(latency: Mapping[str, Any]) -> str:
    count, within = latency["threads"], interval_text(latency)
    return f"{latency['basis']}{within and ', '}{within}, {count} thread{'s' if count > 1 else ''}"


def interval_text(latency: Mapping[str, Any]) -> str:
    """Where a modelled latency's share of latencies is; nothing of others, whose interval is the median's."""
    low, high = latency.get("interval") or (0.0, 0.0)
    share = latency.get("confidence")
    return f"{share:.0%} within {low:.3g}–{high:.3g} ms".replace("%", " %") if share else ""


def _kib(count: int | None) -> float | None:
    return None if count is None else count / 1024


def _ticks(low: float, high: float) -> range:
    return range(math.ceil(low), math.floor(high) + 1)
