"""What a reader of a report asks first: where the time goes, what bounds it, how sure that is, how to repeat it."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tvmflow.report import Report
from tvmflow.report.estimate import origin
from tvmflow.report.views import OVERHEAD, layer_basis, layers_sum, least_us, limited_by, name_of

COUNTS = {
    "modelled_cycles": "of the cycles (modelled)",
    "instructions": "of the instructions (counted under emulation)",
}
"""Of the details of layers, what stands in for times where there are none."""
NAMED = 3
"""Layers that are named in a sentence."""


def answers(report: Report) -> list[tuple[str, str]]:
    """Questions and their answers."""
    return [
        ("Where the time goes", _where(report)),
        ("What bounds it", _bound(report)),
        ("How sure that is", _sure(report)),
    ]


def repeat(report: Report) -> str:
    """The commands that make the report again; a file or a factory of the user's is given by its name."""
    model, target, latency = report["model"], report["target"], report["latency"]
    name = model["source"].removeprefix("tvmflow.models:")
    build = ["tvmflow", "build", "--model", name, "--board", target["name"]]
    build += ["--dtype", target.get("arithmetic", "float32"), "-o", "OUT"]
    again = ["tvmflow", "report", "OUT", "-o", "report.html"]
    if report.get("device"):
        again = ["tvmflow", "deploy", "OUT", "--ssh", "BOARD", "--json", "report.json"]
    elif latency and latency["basis"] == "measured":
        again += ["--threads", str(latency["threads"])]
    elif report.get("cycles"):
        again.append("--cycles")
    return f"{shlex.join(build)} && {shlex.join(again)}"


def _weights(report: Report) -> tuple[str, list[float]]:
    """By what layers are compared, in words, and their figures."""
    layers = report["layers"]
    if any(layer["latency"] for layer in layers):
        return f"of the time ({layer_basis(report)})", [_time(layer) or 0.0 for layer in layers]
    for key, what in COUNTS.items():
        if any(key in layer["details"] for layer in layers):
            return what, [float(layer["details"].get(key, 0)) for layer in layers]
    bounds = [(layer.get("bound") or {}).get("us", 0.0) for layer in layers]
    return f"of what the layers take at least (modelled; figures: {origin(report['target'].get('roof'))})", bounds


def _where(report: Report) -> str:
    what, figures = _weights(report)
    total = sum(figures)
    if not total:
        return f"That isn't known: {report['latency_note'] or 'layers were not timed.'}"
    order = sorted(range(len(figures)), key=lambda place: -figures[place])
    half, taken = 0, 0.0
    while taken < total / 2:
        taken += figures[order[half]]
        half += 1
    named = ", ".join(
        f"{_short(report['layers'][place])} ({figures[place] / total:.0%})" for place in order[: min(half, NAMED)]
    )
    return f"{half} of {len(figures)} layers take half {what}; the largest are {named}."


def _bound(report: Report) -> str:
    layers, macs = report["layers"], report["model"]["macs"]
    by = [limited_by(layer) for layer in layers]
    _, figures = _weights(report)
    instructions = sum(layer["details"].get("instructions", 0) for layer in layers)
    if instructions and macs and not any(layer["latency"] for layer in layers):
        return f"Each multiply-add takes {instructions / macs:.2f} instructions; what memory adds to that isn't known."
    if not any(by):
        return (
            f"That isn't known: there is no roof of this processor in {report['target'].get('arithmetic', 'float32')}."
        )
    shares: defaultdict[str, float] = defaultdict(float)
    for name, figure in zip(by, figures, strict=True):
        if name:
            shares[name] += figure
    total = sum(figures) or 1.0
    known = sorted(((share / total, name) for name, share in shares.items()), reverse=True)
    words = ", ".join(f"by {name} {share:.0%}" for share, name in known if share >= 0.005)
    sentence = f"The layers are bound {words} (shares of the whole)."
    if ratio := _times_bound(layers):
        sentence += f" All layers together take {ratio:.2f} times their lower bound (modelled)."
    if "overhead" in by:
        sentence += f" Overhead is what takes over {OVERHEAD:g} times its bound."
    if note := (report["target"].get("roof") or {}).get("note"):
        sentence += f" {note}"
    if report["target"].get("gpu") and not any(layer["latency"] for layer in layers):
        sentence += " Launches, which a bound leaves out, may take longer than these kernels."
    return sentence


def _times_bound(layers: Sequence[Mapping[str, Any]]) -> float | None:
    timed = [(_time(layer), least_us(layer)) for layer in layers]
    known = [(time, least) for time, least in timed if time and least]
    return sum(time for time, _ in known) / sum(least for _, least in known) if known else None


def _time(layer: Mapping[str, Any]) -> float | None:
    return layer["latency"]["p50"] if layer["latency"] else None


def _sure(report: Report) -> str:
    latency, verify = report["latency"], report["verify"]
    checked = {True: "The answers were checked", False: "The answers are wrong", None: "The answers weren't checked"}
    how = f" ({verify['method']})" if verify["method"] else ""
    if latency is None:
        return f"{checked[verify['passed']]}{how}; no time was taken: {report['latency_note']}"
    if latency["basis"] == "simulated":
        known = latency["simulation"]
        low, high = known["band_ms"]
        return (
            f"{checked[verify['passed']]}{how}; the time is simulated, from {low:.2f} to {high:.2f} ms over the likely "
            "latencies of memory. Nobody has measured these on a board."
        )
    noise = f", and p90 is {latency['spread']:.2f} times p50 over {latency['repeats']:,} runs"
    if interval := latency.get("interval"):
        noise += f", whose median is between {interval[0]:.3f} and {interval[1]:.3f} ms"
    if total := layers_sum(report):
        noise += f"; {total}"
    noise *= latency["basis"] == "measured"
    doubts = " Doubts: " + " ".join(latency["warnings"]) if latency["warnings"] else ""
    return f"{checked[verify['passed']]}{how}; the time is {latency['basis']}{noise}.{doubts}"


def _short(layer: Mapping[str, Any]) -> str:
    """Of many modules the first and the last."""
    names = layer["modules"]
    return f"{names[0]} … {names[-1]}" if len(names) > 2 else name_of(layer)
