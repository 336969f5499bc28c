"""Two reports beside each other: what changed, in which layers, and whether that is more than noise.

A median lies in an interval (`tvmflow.measure.noise`), so the ratio of two does, too. What changed is slower or faster
if the whole interval of the ratio is on one side of 1. Reports that have no intervals, as those of formats before 1.3,
get the widest that their figures leave: from the fastest inference to p90, or to the slowest of few.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvmflow.report import Report
from tvmflow.spec import InconclusiveError, RegressionError, UserError
from tvmflow.system.text import text_table
from tvmflow.system.untrusted import printable_document

Comparison = dict[str, Any]

IDENTITY = ("model.source", "model.parameters", "model.macs", "target.name", "target.arithmetic", "target.cpu.model")
CONDITIONS = ("device.before.model", "device.before.kernel", "device.before.governor", "environment.cpu")
"""What of a report says what was measured, and where; versions and threads beside it."""
SLOWER, FASTER, NOISE, SAME, UNKNOWN = "slower", "faster", "within the noise", "the same", "noise unknown"
MANY = 50
"""Inferences of which no more than a tenth can be slower than the median by chance: their p90 is beyond it."""


def pairs(before: Sequence[Report], after: Sequence[Report]) -> list[tuple[Report, Report]]:
    """Reports to compare: the only ones, or those of the same network and board. Raises UserError if there are none."""
    if len(before) == len(after) == 1:
        return [(before[0], after[0])]
    known = {_whose(report): report for report in before}
    found = [(known[_whose(report)], report) for report in after if _whose(report) in known]
    if not found:
        raise UserError("The two have no network and board in common, so there is nothing to compare.")
    return found


def compare(before: Report, after: Report, *, any_basis: bool = False) -> Comparison:
    """What changed from one report to the other.

    Raises UserError if their latencies are of different bases, unless `any_basis`: a measured millisecond is no
    simulated one.
    """
    first, second = before["latency"], after["latency"]
    if first and second and first["basis"] != second["basis"] and not any_basis:
        raise UserError(
            f"{_name(before)} is {first['basis']} and {_name(after)} {second['basis']}: these can't be compared, "
            "unless --any-basis says so."
        )
    return {
        "model": after["model"]["name"],
        "target": after["target"]["name"],
        "differences": _differences(before, after),
        "verify": {"before": before["verify"]["passed"], "after": after["verify"]["passed"]},
        "latency": _change(first, second) if first and second else None,
        "latency_note": "" if first and second else _why_none(before, after),
        "memory": {
            key: {"before": before["memory"].get(key), "after": after["memory"].get(key)}
            for key in (*before["memory"], *(key for key in after["memory"] if key not in before["memory"]))
            if before["memory"].get(key) != after["memory"].get(key)
        },
        "layers": _layers(before["layers"], after["layers"]),
    }


def judge(comparisons: Sequence[Comparison], threshold: float) -> None:
    """Accept that nothing became slower than by `threshold` (0.05 is 5 %), by more than noise.

    Raises RegressionError for what surely did, InconclusiveError for what may have, and UserError for what can't be
    judged: a pair without latencies, or of different bases.
    """
    slower, unclear = [], []
    for row in comparisons:
        name, change = f"{row['model']} on {row['target']}", row["latency"]
        if change is None:
            raise UserError(f"{name} can't be judged: {row['latency_note']}")
        if change["interval"] is None:
            raise UserError(f"{name} can't be judged: the latencies are of different bases.")
        low, high = change["interval"]
        sentence = f"{name} takes {change['ratio']:.3f} times as long ({low:.3f} to {high:.3f})"
        if low > 1 + threshold:
            slower.append(sentence)
        elif high > 1 + threshold:
            unclear.append(sentence)
    if slower:
        raise RegressionError(f"{'; '.join(slower)}, where {threshold:.3g} more was allowed.")
    if unclear:
        raise InconclusiveError(
            f"{'; '.join(unclear)}, so it can't be said whether that is more than the {threshold:.3g} that was "
            "allowed: measure both again, for longer or on a calmer machine."
        )


def parse_share(text: str) -> float:
    """0.05 from "5%" or "0.05". Raises UserError."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 100:
        raise UserError(f"--fail-over is a share such as 5% or 0.05, not {text!r}.")
    return share


def text(comparison: Comparison) -> str:
    """A comparison for a terminal."""
    comparison = printable_document(comparison)
    lines = [f"{comparison['model']} on {comparison['target']}"]
    for row in comparison["differences"]:
        lines.append(f"  {row['what']}: {_shown(row['before'])} → {_shown(row['after'])}")
    if comparison["verify"]["before"] != comparison["verify"]["after"]:
        words = {True: "passed", False: "FAILED", None: "not verified"}
        lines.append(f"verify   {words[comparison['verify']['before']]} → {words[comparison['verify']['after']]}")
    change = comparison["latency"]
    lines.append(f"latency  {_change_text(change) if change else comparison['latency_note']}")
    for key, row in comparison["memory"].items():
        sizes = ["–" if row[side] is None else f"{row[side] / 1024:,.0f} KiB" for side in ("before", "after")]
        lines.append(f"memory   {key.removesuffix('_bytes')} {sizes[0]} → {sizes[1]}")
    changed = [row for row in comparison["layers"] if _is_news(row)]
    lines.append(f"layers   {len(changed)} of {len(comparison['layers'])} changed")
    if changed:
        header = ["layer", "before", "after", "×", "verdict", "schedule"]
        lines += ["", text_table(header, [_layer_cells(row) for row in changed])]
    return "\n".join(lines)


def _whose(report: Report) -> tuple[str, str]:
    return report["model"]["name"], report["target"]["name"]


def _name(report: Report) -> str:
    return f"{report['model']['name']} on {report['target']['name']}"


def _why_none(before: Report, after: Report) -> str:
    notes = [
        f"{when}, there is no latency ({report['latency_note'] or 'no reason is given'})"
        for when, report in (("before", before), ("after", after))
        if not report["latency"]
    ]
    return f"{'; '.join(notes)}.".capitalize()


def _get(report: Mapping[str, Any], path: str) -> Any:
    value: Any = report
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _differences(before: Report, after: Report) -> list[dict[str, Any]]:
    sides = [
        {
            **{path: _get(report, path) for path in (*IDENTITY, *CONDITIONS)},
            "threads": _get(report, "latency.threads"),
            "basis": _get(report, "latency.basis"),
            **{f"version of {name}": number for name, number in report["environment"].get("versions", {}).items()},
        }
        for report in (before, after)
    ]
    return [
        {"what": what, "before": sides[0].get(what), "after": sides[1].get(what)}
        for what in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(what) != sides[1].get(what)
    ]


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """`interval` is that of the ratio; None where the times are of different bases or nothing is known of them."""
    ratio = after["p50"] / before["p50"] if before["p50"] else None
    first, second = _interval(before), _interval(after)
    known = ratio is not None and first and second and min(first) > 0 and before["basis"] == after["basis"]
    interval = [second[0] / first[1], second[1] / first[0]] if known and first and second else None
    return {
        "basis": [before["basis"], after["basis"]],
        "unit": after["unit"],
        "before": before["p50"],
        "after": after["p50"],
        "ratio": ratio,
        "min": {"before": before.get("min"), "after": after.get("min")},
        "interval": interval,
        "verdict": _verdict(ratio, interval),
    }


def _interval(figures: Mapping[str, Any]) -> Sequence[float] | None:
    """Where a median surely lies."""
    if figures.get("interval"):
        return figures["interval"]
    if figures["basis"] == "simulated":
        return figures["p50"], figures["p50"]
    if "max" not in figures:
        return None
    return figures["min"], figures["p90"] if figures["repeats"] >= MANY else figures["max"]


def _verdict(ratio: float | None, interval: Sequence[float] | None) -> str:
    if ratio == 1:
        return SAME
    if interval is None:
        return UNKNOWN
    return SLOWER if interval[0] > 1 else FASTER if interval[1] < 1 else NOISE


def _layers(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A row for each layer of either; one that is the work of the same modules is the same, whatever its kernel.

    Where modules were fused otherwise, layers that share some are taken together, and their times are added.
    """
    rows = []
    for old, new in _matched(before, after):
        known = new or old
        rows.append(
            {
                "modules": list(dict.fromkeys(name for layer in known for name in layer["modules"])),
                "kernel": ", ".join(layer["kernel"] for layer in known),
                "in": "both" if old and new else "before" if old else "after",
                "schedule": {"before": _schedules(old), "after": _schedules(new)},
                "macs": {"before": _sum(old, "macs"), "after": _sum(new, "macs")},
                "bytes": {"before": _sum(old, "bytes"), "after": _sum(new, "bytes")},
                "latency": _layer_change(old, new),
            }
        )
    return rows


Layers = Sequence[Mapping[str, Any]]


def _matched(before: Layers, after: Layers) -> list[tuple[Layers, Layers]]:
    """Layers of either that are the same work, in the order of `after`, then what is only in `before`."""
    first, second = _by(_modules, before), _by(_modules, after)
    pairs: list[tuple[Layers, Layers]] = []
    for key in [key for key in second if key in first]:
        pairs.append(([first.pop(key)], [second.pop(key)]))
    # what has no modules is the same if it is as much work
    unnamed, others = ([layer for layer in known.values() if not layer["modules"]] for known in (first, second))
    of_before, of_after = _by(_work, unnamed), _by(_work, others)
    pairs += [([of_before[key]], [of_after[key]]) for key in of_after if key in of_before]
    taken = {id(layer) for pair in pairs for side in pair for layer in side}
    groups: list[tuple[set[str], Layers, Layers]] = []
    for side, layers in enumerate((before, after)):
        for layer in layers:
            if id(layer) in taken:
                continue
            alone: tuple[Layers, Layers] = ([layer], []) if side == 0 else ([], [layer])
            names, (old, new) = set(layer["modules"]), alone
            for group in [group for group in groups if group[0] & names]:
                groups.remove(group)
                names, old, new = names | group[0], [*group[1], *old], [*group[2], *new]
            groups.append((names, old, new))
    pairs += [(old, new) for _, old, new in groups]
    places = {id(layer): place for place, layer in enumerate([*after, *before])}
    return sorted(pairs, key=lambda pair: min(places[id(layer)] for layer in (pair[1] or pair[0])))


def _schedules(layers: Layers) -> str | None:
    return ", ".join(dict.fromkeys(layer["schedule"] for layer in layers)) or None


def _sum(layers: Layers, key: str) -> int | None:
    return sum(layer[key] for layer in layers) if layers else None


def _layer_change(before: Layers, after: Layers) -> dict[str, Any] | None:
    """Of several layers the sum of their medians, in an interval that is the sum of theirs."""
    first, second = (_added([layer["latency"] for layer in layers]) for layers in (before, after))
    if not first or not second or first["unit"] != second["unit"]:
        return None
    return _change(first, second)


def _added(figures: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    known = [row for row in figures if row]
    if not known or len(known) < len(figures) or len({(row["basis"], row["unit"]) for row in known}) > 1:
        return None
    intervals = [row.get("interval") for row in known]
    least = [row.get("min") for row in known]
    return {
        **known[0],
        "p50": sum(row["p50"] for row in known),
        "min": None if None in least else sum(least),
        "interval": None if None in intervals else [sum(ends) for ends in zip(*intervals, strict=True)],
    }


def _modules(layer: Mapping[str, Any]) -> Any:
    return tuple(layer["modules"]) or layer["kernel"]


def _work(layer: Mapping[str, Any]) -> Any:
    return layer["macs"], layer["bytes"]


def _by(key_of: Callable[[Mapping[str, Any]], Any], layers: Layers) -> dict[Any, Mapping[str, Any]]:
    """Layers by a key, and by a running number where several have the same."""
    seen: Counter[Any] = Counter()
    found = {}
    for layer in layers:
        key = key_of(layer)
        found[key, seen[key]] = layer
        seen[key] += 1
    return found


def _is_news(row: Mapping[str, Any]) -> bool:
    differs = any(row[key]["before"] != row[key]["after"] for key in ("schedule", "macs", "bytes"))
    return row["in"] != "both" or differs or bool(row["latency"] and row["latency"]["verdict"] in (SLOWER, FASTER))


def _layer_cells(row: Mapping[str, Any]) -> list[str]:
    names, change, schedule = row["modules"], row["latency"], row["schedule"]
    label = (names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")) if names else row["kernel"]
    only = "" if row["in"] == "both" else f"only {row['in']}"
    rules = schedule["after"] or schedule["before"]
    if row["in"] == "both" and schedule["before"] != schedule["after"]:
        rules = f"{schedule['before']} → {schedule['after']}"
    if change is None:
        return [label, "", "", "", only, rules]
    return [
        label,
        f"{change['before']:.1f} {change['unit']}",
        f"{change['after']:.1f} {change['unit']}",
        f"{change['ratio']:.3f}" if change["ratio"] else "",
        only or change["verdict"],
        rules,
    ]


def _change_text(change: Mapping[str, Any]) -> str:
    bases = change["basis"]
    before = f"{change['before']:.3f} {change['unit']} ({bases[0]})"
    after = f"{change['after']:.3f} {change['unit']} ({bases[1]})"
    ratio = f", × {change['ratio']:.3f}" if change["ratio"] else ""
    least = [change["min"][side] for side in ("before", "after")]
    fastest = "" if None in least else f"; fastest {least[0]:.3f} → {least[1]:.3f}"
    interval = change["interval"]
    if interval:
        sure = f"{interval[0]:.3f} to {interval[1]:.3f}"
    else:
        sure = "of different bases" if bases[0] != bases[1] else "no spread is known"
    return f"{before} → {after}{ratio}: {change['verdict']} ({sure}{fastest})"


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
