"""Reports for people: text for a terminal, HTML for a browser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.measure.latency import text as modelled_text
from tvmflow.report import Report, networks, not_shown, views
from tvmflow.report.answers import answers, repeat
from tvmflow.report.details import cells_of, header_of
from tvmflow.report.estimate import origin
from tvmflow.report.search import convergence
from tvmflow.system.text import text_table, to_json
from tvmflow.system.untrusted import printable_document

if TYPE_CHECKING:
    import jinja2

TEMPLATE = Path(__file__).with_name("report.html.j2")


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """What a verification found, in one line."""
    if verdict["passed"] is None:
        return f"not verified: {verdict['reason']}"
    words = [f"largest error {_number(verdict['max_abs_error'])}", f"relative {_number(verdict['max_rel_error'])}"]
    if verdict["argmax_agreement"] is not None:
        words.append(f"same class on {verdict['argmax_agreement']:.0%}")
    for place in verdict.get("constant_outputs", ()):
        words.append(f"output {place} is the same in all vectors, so little is known of it")
    if verdict.get("same_bits") is not None:
        words.append(f"{'the same bits as' if verdict['same_bits'] else 'other bits than'} by TVM's runtime")
    if verdict.get("left_out"):
        words.append(f"unlike the original on {' and '.join(verdict['left_out'])}")
    count = len(verdict["vectors"])
    return f"{'passed' if verdict['passed'] else 'FAILED'} ({verdict['method']}, {count} vectors): {', '.join(words)}"


def _number(value: float | None) -> str:
    """JSON has null for what is infinite."""
    return "infinite" if value is None else f"{value:.2g}"


def latency_text(report: Report) -> str:
    """Latency with its basis, or why there is none."""
    figures = report["latency"]
    if figures is None and (modelled := views.modelled_latency(report)):
        return f"{modelled_text(modelled)}, for {report['latency_note']}"
    if figures is None:
        return f"no latency: {report['latency_note']}"
    if figures["basis"] == "simulated":
        return simulation_text(figures)
    lines = [
        f"{figures['p50']:.3f} ms p50 ({figures['basis']}, {figures['threads']} "
        f"thread{'s' if figures['threads'] > 1 else ''}, {figures['repeats']} runs)",
        f"p90 {figures['p90']:.3f}, p99 {figures['p99']:.3f}, mean {figures['mean']:.3f}, min {figures['min']:.3f} ms"
        + (
            f"; the median is within {interval[0]:.3f}–{interval[1]:.3f}"
            if (interval := figures.get("interval"))
            else ""
        ),
        f"set-up {figures['setup']:.1f}, first {figures['first']:.3f}"
        + (f", warm {figures['warm']:.3f} ms" if figures["warm"] is not None else " ms"),
    ]
    if windows := figures.get("windows"):
        lines.append(windows_text(windows))
    return "\n".join([*lines, *(f"warning: {warning}" for warning in figures["warnings"])])


def simulation_text(figures: Mapping[str, Any]) -> str:
    """A simulated latency, and what was assumed."""
    known = figures["simulation"]
    low, high = known["band_ms"]
    fast, slow = known["band_latency_cycles"]
    split = ""
    if known.get("band_burst_beats", [0])[-1] < known.get("band_burst_beats", [0])[0]:
        split = ", and splits bursts of {} beats into {} in the worse case".format(*known["band_burst_beats"])
    return (
        f"{figures['p50']:.3f} ms (simulated: {known['cycles']:,} cycles at {known['clock_mhz']:g} MHz, "
        f"{known['memory_latency_cycles']} cycles of memory latency)\n"
        f"{low:.3f} to {high:.3f} ms where memory takes {fast} to {slow} cycles{split}; all of this on VTA's Chisel "
        "core.\n"
        f"{known['hls_ms']:.3f} ms on VTA's HLS core, of which the published bitstreams are made; the model of that "
        "core follows its source, and was held against nothing."
    )


def windows_text(windows: Sequence[Mapping[str, Any]]) -> str:
    """How a board fared over a sustained run, in one line."""
    words = [
        f"p50 {_range([row['p50'] for row in windows], 3)} ms",
        f"p99 to {max(row['p99'] for row in windows):.3f} ms",
    ]
    for key, unit in (("temperature_c", "°C"), ("clock_mhz", "MHz")):
        if known := [row[key] for row in windows if key in row]:
            words.append(f"{_range(known, 0)} {unit}")
    return f"sustained over {len(windows)} windows: {', '.join(words)}"


def _range(values: Sequence[float], digits: int) -> str:
    lowest, highest = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return lowest if lowest == highest else f"{lowest}–{highest}"


def memory_text(memory: Mapping[str, int]) -> str:
    """Memory in KiB, or bytes where it is less, in the order of the report, and of how much, where that is known."""
    words = []
    for key, value in memory.items():
        name = key.removesuffix("_bytes")
        if not name.endswith("_available"):
            shown = f"{value / 1024:,.0f} KiB" if value >= 1024 or not value else f"{value} B"
            available = memory.get(f"{name}_available_bytes")
            of = f" of {available / 1024:,.0f} KiB" if available else ""
            words.append(f"{name.replace('_', ' ')} {shown}{of}")
    return ", ".join(words)


def layers_text(report: Report) -> str:
    """The layers by module name; times where the report has them."""
    layers = report["layers"]
    timed = [row["latency"]["p50"] if row["latency"] else None for row in layers]
    total = sum(time for time in timed if time is not None)
    rows = []
    for layer, time in zip(layers, timed, strict=True):
        names = layer["modules"]
        row: list[Any] = [names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else layer["kernel"]]
        row += [layer["schedule"], f"{layer['macs'] / 1e6:.2f}", f"{layer['bytes'] / 1024:.0f}"]
        row += cells_of(layer, layers)
        if total:
            row += ["", ""] if time is None else [f"{time:.1f}", f"{time / total:.1%}"]
        rows.append(row)
    header = ["layer", "schedule", "M multiply-adds", "KiB touched", *header_of(layers)]
    if total:
        basis = next(layer["latency"]["basis"] for layer in layers if layer["latency"])
        header += [f"µs ({basis})", "share"]
    return text_table(header, rows)


def schedules_text(layers: Sequence[Mapping[str, Any]]) -> str:
    """By whom the layers' schedules are: how many, and what share of the layers' time if that was measured."""
    words = []
    timed = all(layer.get("latency") for layer in layers)
    total = sum(layer["latency"]["p50"] for layer in layers) if timed else 0
    modelled = any(_by_whom(layer["schedule"]) == "by a model" for layer in layers)
    for name in ("searched", *(("by a model",) if modelled else ()), "by rules", "default"):
        chosen = [layer for layer in layers if _by_whom(layer["schedule"]) == name]
        share = f" ({sum(layer['latency']['p50'] for layer in chosen) / total:.0%} of their time)" if total else ""
        words.append(f"{len(chosen)} {name}{share}")
    return f"{', '.join(words)} of {len(layers)} layers"


NAMED = ("plain", "processor", "TVM's default")
"""Rules whose layers are named: the one for everything, none of an accelerator's, and none of ours."""


def rules_text(layers: Sequence[Mapping[str, Any]]) -> str:
    """Of an int8 network: how many layers and what share of the multiply-adds each rule serves, the most first.

    Layers of some rules are named.
    """
    total = sum(layer["macs"] for layer in layers)
    by_rule: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        name = layer["schedule"].partition(",")[0].partition("(")[0].removeprefix("integer ")
        by_rule.setdefault("TVM's default" if name == "default" else name, []).append(layer)
    words = []
    for name, served in sorted(by_rule.items(), key=lambda item: -sum(layer["macs"] for layer in item[1])):
        macs = sum(layer["macs"] for layer in served)
        share = f"{macs / total:.1%}" if total else "0%"
        counted = f"{name} {len(served)} layer{'s' * (len(served) > 1)} ({share} of multiply-adds)"
        named = [(layer["modules"] or [layer["kernel"]])[0] for layer in served]
        words.append(counted + (f": {', '.join(named)}" if name in NAMED else ""))
    return "; ".join(words) + ("" if "TVM's default" in by_rule else "; TVM's default schedules none")


def _by_whom(schedule: str) -> str:
    if schedule == "default":
        return "default"
    if schedule.endswith("modelled choice"):
        return "by a model"
    return "searched" if schedule.endswith("searched") else "by rules"


def report_text(report: Report, *, layers: bool = True) -> str:
    """A whole report for a terminal."""
    report = printable_document(report)
    model, target = report["model"], report["target"]
    parts = [
        f"{model['name']} ({model['parameters']:,} parameters, {model['macs'] / 1e6:.1f} M multiply-adds) "
        f"on {target['name']}, {views.processor(target)}, {target.get('arithmetic', 'float32')}",
        f"verify   {verdict_text(report['verify'])}",
        "latency  " + latency_text(report).replace("\n", "\n         "),
        f"memory   {memory_text(report['memory'])}",
        f"layers   {schedules_text(report['layers'])}",
    ]
    if layers:
        parts += ["", layers_text(report)]
        parts += ["", f"In all, {total}."] if (total := views.layers_sum(report)) else []
    return "\n".join(parts)


def render_html(document: Mapping[str, Any]) -> str:
    """A collection of reports as one HTML page that needs no network."""
    template = _environment().get_template(TEMPLATE.name)
    reports = [{"device": None, "timeline": None, **report} for report in document["reports"]]
    return template.render(
        {
            **document,
            "reports": reports,
            "device_columns": views.page_columns(reports),
            "networks": networks.tables(document),
            "network_notes": networks.notes(document),
            "not_shown": not_shown(reports),
            "nothing": networks.NOTHING,
            "overhead": f"{views.OVERHEAD:g}",
        }
    )


@functools.cache
def _environment() -> jinja2.Environment:
    """What templates may use. It keeps those that it has read."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        verdict=verdict_text,
        windows=windows_text,
        simulation=simulation_text,
        memory=memory_text,
        schedules=schedules_text,
        convergence=convergence,
        devices=views.devices,
        layers=views.layers,
        layer_basis=views.layer_basis,
        modelled=views.modelled_latency,
        modelled_text=modelled_text,
        distribution=views.distribution,
        roofline=views.roofline,
        sustained=views.sustained,
        memory_over_time=views.memory_over_time,
        memory_split=views.memory_split,
        timeline=views.timeline,
        across=views.across,
        when=views.when,
        answers=answers,
        repeat=repeat,
        largest=views.largest,
        show=views.show,
        number=views.number,
        processor=views.processor,
        layers_sum=views.layers_sum,
        origin=origin,
    )
    return environment


def render_markdown(document: Mapping[str, Any]) -> str:
    """A collection of reports as Markdown."""

    def answered(report: Report) -> list[tuple[str, str]]:
        return [*answers(report), ("How to repeat it", f"`{repeat(report)}`")]

    return views.to_markdown(document, networks.to_markdown(document), answered)


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    ".html": render_html,
    ".json": lambda document: to_json(document) + "\n",
    ".md": render_markdown,
    ".csv": views.to_csv,
}
"""How a collection of reports is written, by the file's suffix."""
