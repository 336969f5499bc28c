"""Reports as a trace of events that Chrome's `about:tracing`, Perfetto and Speedscope open.

The format is Chrome's Trace Event Format, whose times are in µs. Each report is a process. Its layers, whose times were
taken one by one, lie end to end; what an accelerator's queues did are counters over the cycles of its simulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvmflow.report import Report
from tvmflow.report.views import name_of
from tvmflow.spec import UserError

NOTE = "Layers lie end to end by their median times, each of which was taken over many runs: no single run is shown."


def trace(reports: Sequence[Report]) -> dict[str, Any]:
    """The events of all reports whose layers have times, or whose queues are known. Raises UserError if none have."""
    events = [event for number, report in enumerate(reports, 1) for event in _events(number, report)]
    if not any(event["ph"] != "M" for event in events):
        raise UserError(
            "--trace shows when layers ran, and no bundle or report here has times of its layers: `profile` and "
            "`report` take them where the bundle can be timed."
        )
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"note": NOTE}}


def _events(number: int, report: Report) -> Iterator[dict[str, Any]]:
    title = f"{report['model']['name']} on {report['target']['name']}, {report['target'].get('arithmetic', 'float32')}"
    timed = [layer for layer in report["layers"] if layer["latency"]]
    if not timed and not report.get("timeline"):
        return
    yield {"ph": "M", "pid": number, "name": "process_name", "args": {"name": title}}
    if timed:
        basis = timed[0]["latency"]["basis"]
        yield {"ph": "M", "pid": number, "tid": 1, "name": "thread_name", "args": {"name": f"layers ({basis})"}}
    start = 0.0
    for layer in timed:
        time_us = float(layer["latency"]["p50"])
        details: dict[str, Any] = {
            "modules": list(layer["modules"]),
            "kernel": layer["kernel"],
            "schedule": layer["schedule"],
            "multiply-adds": layer["macs"],
            "bytes": layer["bytes"],
            "basis": layer["latency"]["basis"],
        }
        yield {
            "ph": "X",
            "pid": number,
            "tid": 1,
            "name": name_of(layer),
            "cat": "layer",
            "ts": round(start, 3),
            "dur": round(time_us, 3),
            "args": details,
        }
        start += time_us
    if found := report.get("timeline"):
        yield from _queues(number, report, found)


def _queues(number: int, report: Report, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Counters of what each queue did, in per cent of a slice, over time at the clock of the simulation.

    Where a report doesn't say which clock that is, a cycle stands for a µs, and the counter's name says so.
    """
    mhz = ((report["latency"] or {}).get("simulation") or {}).get("clock_mhz")
    scale = "" if mhz else "; 1 µs stands for 1 cycle"
    for name, kinds in found["queues"].items():
        slices = len(next(iter(kinds.values()), ()))
        for place in range(slices):
            yield {
                "ph": "C",
                "pid": number,
                "name": f"{name} queue, % busy ({found['basis']}{scale})",
                "ts": round(found["end"] * place / slices / (mhz or 1.0), 3),
                "args": {kind: shares[place] / 10 for kind, shares in kinds.items()},
            }
