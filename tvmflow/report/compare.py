"""Two reports beside each other: what changed, in which layers, and whether that is more than noise.

A latency's noise is how far its slow runs are from its median, p90 ÷ p50. A change is beyond the noise if it is larger
than that of both reports together. Layers have no spread of their own, so theirs is taken from the whole network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tvmflow.report import Report
from tvmflow.report.render import text_table
from tvmflow.spec import UserError

Comparison = dict[str, Any]

IDENTITY = ("model.source", "model.parameters", "model.macs", "target.name", "target.arithmetic", "target.cpu.model")
CONDITIONS = ("device.before.model", "device.before.kernel", "device.before.governor", "environment.cpu")
"""What of a report says what was measured, and where; versions and threads beside it."""
SLOWER, FASTER, NOISE, SAME, UNKNOWN = "slower", "faster", "within the noise", "the same", "noise unknown"


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
    noise = None
    if first and second:
        if first["basis"] != second["basis"] and not any_basis:
            raise UserError(
                f"{_name(before)} is {first['basis']} and {_name(after)} {second['basis']}: these can't be compared, "
                "unless --any-basis says so."
            )
        noise = (first["spread"] - 1) + (second["spread"] - 1) if first["basis"] == second["basis"] else None
    return {
        "model": after["model"]["name"],
        "target": after["target"]["name"],
        "differences": _differences(before, after),
        "verify": {"before": before["verify"]["passed"], "after": after["verify"]["passed"]},
        "latency": _change(first, second, noise) if first and second else None,
        "latency_note": "" if first and second else _why_none(before, after),
        "memory": {
            key: {"before": before["memory"].get(key), "after": after["memory"].get(key)}
            for key in (*before["memory"], *(key for key in after["memory"] if key not in before["memory"]))
            if before["memory"].get(key) != after["memory"].get(key)
        },
        "layers": _layers(before["layers"], after["layers"], noise),
    }


def regressions(comparisons: Sequence[Comparison], threshold: float) -> list[str]:
    """Sentences on what became slower than by `threshold` (0.05 is 5 %), beyond the noise. Raises UserError if that
    can't be said of one."""
    found = []
    for row in comparisons:
        if row["latency"] is None:
            raise UserError(f"{row['model']} on {row['target']} can't be judged: {row['latency_note']}")
        if row["latency"]["verdict"] == UNKNOWN:
            raise UserError(f"{row['model']} on {row['target']} can't be judged: the latencies are of different bases.")
        if row["latency"]["verdict"] == SLOWER and row["latency"]["ratio"] > 1 + threshold:
            found.append(f"{row['model']} on {row['target']} takes {row['latency']['ratio']:.3f} times as long")
    return found


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


def _change(before: Mapping[str, Any], after: Mapping[str, Any], noise: float | None) -> dict[str, Any]:
    ratio = after["p50"] / before["p50"] if before["p50"] else None
    return {
        "basis": [before["basis"], after["basis"]],
        "unit": after["unit"],
        "before": before["p50"],
        "after": after["p50"],
        "ratio": ratio,
        "noise": noise,
        "verdict": _verdict(ratio, noise),
    }


def _verdict(ratio: float | None, noise: float | None) -> str:
    if ratio == 1:
        return SAME
    if ratio is None or noise is None:
        return UNKNOWN
    if ratio > 1 + noise:
        return SLOWER
    return FASTER if ratio < 1 / (1 + noise) else NOISE


def _layers(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], noise: float | None) -> list[Any]:
    """A row for each layer of either; one that is the work of the same modules is the same."""
    first, second = _by_modules(before), _by_modules(after)
    rows = []
    for key in dict.fromkeys([*second, *first]):
        old, new = first.get(key), second.get(key)
        known = new or old
        assert known is not None
        rows.append(
            {
                "modules": list(known["modules"]),
                "kernel": known["kernel"],
                "in": "both" if old and new else "before" if old else "after",
                "schedule": {"before": old and old["schedule"], "after": new and new["schedule"]},
                "macs": {"before": old and old["macs"], "after": new and new["macs"]},
                "bytes": {"before": old and old["bytes"], "after": new and new["bytes"]},
                "latency": _layer_change(old and old["latency"], new and new["latency"], noise),
            }
        )
    return rows


def _layer_change(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, noise: float | None
) -> dict[str, Any] | None:
    if not before or not after or before["unit"] != after["unit"]:
        return None
    return _change(before, after, noise if before["basis"] == after["basis"] else None)


def _by_modules(layers: Sequence[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    seen: Counter[Any] = Counter()
    found = {}
    for layer in layers:
        key = tuple(layer["modules"]) or layer["kernel"]
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
    noise = f"noise {change['noise']:.1%}" if change["noise"] is not None else "of different bases"
    return f"{before} → {after}{ratio}: {change['verdict']} ({noise})"


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
