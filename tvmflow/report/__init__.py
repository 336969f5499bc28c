"""Reports: what a compiled network is, whether it is right, and what it costs, with the basis of every figure.

A report is plain data in the form of docs/report.schema.json; several make a collection, which is what
`tvmflow report` writes as JSON and HTML.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow import __version__
from tvmflow.bundles.bundle import Bundle
from tvmflow.measure.noise import median_interval
from tvmflow.report.estimate import bounds, describe, raise_roof, roof_of
from tvmflow.spec import Measurement, UserError, install_sentence
from tvmflow.system import interrupt, limits, scratch, untrusted
from tvmflow.system.host import COMPUTER
from tvmflow.system.text import to_json
from tvmflow.system.untrusted import MalformedError, UnusableFileError
from tvmflow.targets.kind import Gap, Timing

SCHEMA_VERSION = "1.3"
BINS = 40
"""Of a latency's histogram."""

APART, BETWEEN_MS = 0.3, 0.01
"""By how much of p50, or else for each layer, the sum of layers may differ from p50 before that is a doubt."""

Report = dict[str, Any]


def assemble(
    bundle: Bundle,
    verdict: Mapping[str, Any],
    timing: Timing,
) -> Report:
    """The report on a bundle. `verdict` comes from `verify`, `timing` from the backend or from the device.

    Without a measurement, `latency` is null and `latency_note` says why.
    """
    manifest, measurement = bundle.manifest, timing.measurement
    roof = timing.roof or roof_of(bundle.target)
    if roof is not None and timing.layers:
        roof = raise_roof(roof, bundle.layers, [row["p50"] for row in timing.layers])
    if measurement is not None and timing.layers:
        doubts = layers_against_whole(float(np.median(measurement.samples_ms)), timing.layers)
        measurement = replace(measurement, warnings=(*measurement.warnings, *doubts))
    gaps = list(timing.gaps)
    if verdict["passed"] is None:
        gaps.insert(0, Gap(what="answers", reason=verdict["reason"], packages=verdict.get("packages", ())))
    measured_bytes = {key: value for key, value in (measurement.facts if measurement else {}).items() if "bytes" in key}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": dict(manifest["model"]),
        "target": {
            **{key: manifest["target"][key] for key in ("name", "kind", "description", "cpu", "datasheet")},
            "arithmetic": bundle.target.arithmetic,
            "roof": describe(roof),
            **({"gpu": manifest["target"]["gpu"]} if manifest["target"].get("gpu") else {}),
        },
        "verify": dict(verdict),
        "latency": latency(measurement) if measurement else None,
        "latency_note": timing.note,
        "not_shown": [{**asdict(gap), "packages": list(gap.packages)} for gap in gaps],
        **({"cycles": dict(timing.cycles)} if timing.cycles else {}),
        "layers": [
            {
                **asdict(layer),
                "modules": list(layer.modules),
                "latency": dict(timing.layers[index]) if timing.layers else None,
                "bound": bound,
                "details": {**layer.details, **(timing.details[index] if timing.details else {})},
            }
            for index, (layer, bound) in enumerate(zip(bundle.layers, bounds(bundle.layers, roof), strict=True))
        ],
        "timeline": timing.timeline,
        "memory": {**manifest["memory"], **measured_bytes},
        "environment": environment(manifest["versions"]),
    }


def layers_against_whole(p50_ms: float, layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The doubt, if there is one, that measured layers add up to another time than the whole takes.

    Between kernels there is time that no layer has, and the instrument adds some to each.
    """
    total_ms = sum(row["p50"] for row in layers) / 1e3
    apart = abs(total_ms - p50_ms)
    if any(row["basis"] != "measured" for row in layers) or apart <= max(APART * p50_ms, BETWEEN_MS * len(layers)):
        return []
    return [
        f"The layers, timed in a run of their own, add up to {total_ms:.3f} ms, {total_ms / p50_ms:.2f} times p50: the "
        "machine had another pace in one of the two runs."
    ]


def summarize(samples_ms: Sequence[float]) -> dict[str, Any]:
    """Percentiles, mean and extremes of times in ms."""
    samples = np.asarray(samples_ms)
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": float(samples.mean()),
        "min": float(samples.min()),
        "max": float(samples.max()),
        "repeats": len(samples),
    }


def histogram(samples_ms: Sequence[float]) -> dict[str, Any] | None:
    """Counts between BINS + 1 edges in ms, from the fastest run to the 99th percentile; None if all are alike.

    `beyond` is how many are slower than that.
    """
    samples = np.asarray(samples_ms)
    lowest, highest = float(samples.min()), float(np.percentile(samples, 99))
    if lowest == highest:
        return None
    counts, edges = np.histogram(samples, BINS, (lowest, highest))
    return {"edges": edges.tolist(), "counts": counts.tolist(), "beyond": int((samples > highest).sum())}


def latency(measurement: Measurement) -> dict[str, Any]:
    """Figures of a measurement, in ms: percentiles of the steady runs; set-up, first and warm-up runs apart.

    `interval` is the one of the median (`tvmflow.measure.noise`), and no wider than a point where every run would take
    the same. Where a run was so long that its samples were thinned, the extremes are those of all.
    """
    figures = summarize(measurement.samples_ms)
    windows = [dict(window) for window in measurement.windows]
    if windows:
        figures["min"] = min(window["min"] for window in windows)
        figures["max"] = max(window["max"] for window in windows)
    return {
        "basis": measurement.basis,
        "unit": "ms",
        **figures,
        "interval": [figures["p50"]] * 2
        if measurement.basis == "simulated"
        else median_interval(measurement.samples_ms),
        "histogram": histogram(measurement.samples_ms),
        "spread": figures["p90"] / figures["p50"],
        "threads": measurement.threads,
        "setup": measurement.setup_ms,
        "first": measurement.first_ms,
        "warm": float(np.median(measurement.warmup_ms)) if measurement.warmup_ms else None,
        "warmup_repeats": len(measurement.warmup_ms),
        "warnings": list(measurement.warnings),
        **({"windows": windows} if windows else {}),
        **{key: value for key, value in measurement.facts.items() if key in ("simulation", "attempts")},
    }


def environment(versions: Mapping[str, str]) -> dict[str, Any]:
    """This computer, and the versions that the library was made with."""
    host = COMPUTER.cpu
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": host.model,
        "cores": host.cores,
        "memory_bytes": COMPUTER.memory_bytes,
        "python": platform.python_version(),
        "versions": dict(versions),
    }


def collect(
    reports: Sequence[Report],
    searches: Sequence[Mapping[str, Any]] = (),
    estimates: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Several reports, the searches behind their schedules, and estimates of what wasn't built, as one document.

    What takes longer in int8 than in float32 gets a warning that says so.
    """
    warned = list(reports)
    for index, sentence in slower_than_float(reports).items():
        figures = warned[index]["latency"]
        warnings = dict.fromkeys([*figures["warnings"], sentence])  # a collection that is read again has it already
        warned[index] = {**warned[index], "latency": {**figures, "warnings": list(warnings)}}
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": f"tvmflow {__version__}",
        "reports": warned,
        "searches": list(searches),
        "estimates": list(estimates),
    }


GAPS = {"answers": "whether the answers are right", "instructions": "instructions", "cycles": "modelled cycles"}
"""What `not_shown` of a report lacks, in words."""


def not_shown(reports: Sequence[Report]) -> list[str]:
    """Two lines, or none: what these reports lack, of which boards, and the one command that brings it."""
    boards: dict[str, list[str]] = {}
    packages: dict[str, None] = {}
    for report in reports:
        for gap in report.get("not_shown", ()):
            boards.setdefault(gap["what"], []).append(report["target"]["name"])
            packages.update(dict.fromkeys(gap["packages"]))
    if not boards:
        return []
    lacking = "; ".join(f"{GAPS[what]} ({', '.join(dict.fromkeys(names))})" for what, names in boards.items())
    remedy = install_sentence(tuple(packages)) if packages else "No package brings that; each board's lines say why."
    return [f"Not shown: {lacking}.", remedy]


def slower_than_float(reports: Sequence[Report]) -> dict[int, str]:
    """Which reports on int8 were measured to take longer than float32 on the same board, and a sentence on each."""
    found = {}
    for index, report in enumerate(reports):
        if report["target"].get("arithmetic") != "int8" or not _is_measured(report):
            continue
        for other in reports:
            if other["target"].get("arithmetic") != "float32" or not _is_measured(other):
                continue
            mine, figures = report["latency"], other["latency"]
            alike = (other["model"]["name"], other["target"]["name"], figures["threads"]) == (
                report["model"]["name"],
                report["target"]["name"],
                mine["threads"],
            )
            if alike and mine["p50"] > figures["p50"]:
                found[index] = (
                    f"int8 is slower than float32 here: {mine['p50']:.3f} ms against {figures['p50']:.3f} ms "
                    f"on {report['target']['name']}."
                )
    return found


def _is_measured(report: Report) -> bool:
    return report["latency"] is not None and report["latency"]["basis"] == "measured"


SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
REPORT = untrusted.Schema(lambda: _part("report"))
COLLECTION = untrusted.Schema(lambda: _part("collection"))
ESTIMATE = untrusted.Schema(lambda: _part("estimate"))


def _part(name: str) -> dict[str, Any]:
    """The published schema, of one of the kinds of documents."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return {"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}


def read_report(path: Path) -> Report:
    """A report that `--json` wrote. Raises UserError if it is none, or of another major version."""
    return check_report(read_json(path), path)


def read_reports(path: Path) -> list[Report]:
    """The reports of a file that `--json` or `tvmflow report` wrote. Raises UserError."""
    reports, _ = read_document(path)
    if not reports:
        raise UnusableFileError(path, "holds no report on a bundle")
    return reports


def read_document(path: Path) -> tuple[list[Report], list[dict[str, Any]]]:
    """The reports of a file, and the estimates that `tvmflow estimate` wrote or `report` kept. Raises UserError."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("reports"), list):
        _check_version(content, path)
        _check_schema(COLLECTION, content, path)
        for report in content["reports"]:
            _check_sense(report, path)
        return content["reports"], content.get("estimates", [])
    if isinstance(content, dict) and isinstance(content.get("estimates"), list):
        _check_schema(ESTIMATE, content, path)
        return [], [content]
    return [check_report(content, path)], []


def read_json(path: Path) -> Any:
    """What a file holds. Raises UserError.

    Names that are no UTF-8 were written as halves of surrogate pairs, so these are taken.
    """
    return untrusted.read_json(path, limits.REPORT, what="report", surrogates=True)


def check_report(content: Any, path: Path) -> Report:
    """`content` of `path` if it is a report on one bundle. Raises UserError."""
    needed = {"model", "target", "verify", "latency", "latency_note", "layers", "memory", "environment"}
    if not isinstance(content, dict) or not needed <= set(content):
        raise UnusableFileError(
            path, "is no report on one bundle, as `--json` of build, bench, profile and deploy writes it"
        )
    _check_version(content, path)
    _check_schema(REPORT, content, path)
    _check_sense(content, path)
    return content


def _check_version(content: Mapping[str, Any], path: Path) -> None:
    version = content.get("schema_version")
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        seen = untrusted.printable(version) if isinstance(version, str) else untrusted.shown(version)
        raise UnusableFileError(path, f"is a report of format {seen}", "this tvmflow reads 1.x")


def _check_schema(schema: untrusted.Schema, content: Any, path: Path) -> None:
    try:
        schema.check(content)
    except MalformedError as error:
        raise UnusableFileError(
            path, f"is no report that can be read: {error}", "docs/report.schema.json has the format"
        ) from error


def _check_sense(report: Report, path: Path) -> None:
    """What no schema says: lists that belong together are as long as each other."""
    histogram = (report["latency"] or {}).get("histogram")
    queues = (report.get("timeline") or {}).get("queues", {})
    problem = ""
    if histogram and len(histogram["edges"]) != len(histogram["counts"]) + 1:
        problem = "latency.histogram has not one edge more than counts"
    if len({len(row) for kinds in queues.values() for row in kinds.values()}) > 1:
        problem = "timeline.queues has rows of different lengths"
    if problem:
        raise UnusableFileError(path, f"is no report that can be read: {problem}", "make it again")
    for layer in report["layers"]:  # formats before 1.1 may have none
        layer.setdefault("details", {})


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON. Raises UserError; the file is whole or as it was before."""
    write_text(path, to_json(content) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file for the user. Raises UserError; the file is whole or as it was before."""
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write files for the user: all of them, or all are as they were before. Raises UserError."""
    current = Path()
    try:
        with contextlib.ExitStack() as stack:
            made: list[tuple[Path, Path, Path]] = []
            for current, text in texts.items():
                content = text.encode(
                    "utf-8", "backslashreplace"
                )  # of a name that is no UTF-8, JSON reads that as well
                if current.exists() and not current.is_file():
                    current.write_bytes(content)  # a device or a pipe, which nothing may replace
                    continue
                path = Path(os.path.realpath(current))  # a link stays, and leads to the new file
                new, old = (stack.enter_context(scratch.beside(path)) for _ in range(2))
                new.write_bytes(content)
                made.append((path, new, old))
            with interrupt.deferred():
                _exchange(made)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise UserError(f"{current} can't be written: {reason}.") from error


def _exchange(made: Sequence[tuple[Path, Path, Path]]) -> None:
    """Have `new` at `path` for each (path, new, old); if that fails, what was there before is there again."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for path, new, old in made:
            replaced = len(made) > 1 and path.exists()
            if replaced:
                os.rename(path, old)
            if len(made) > 1:
                done.append((path, old if replaced else None))
            os.replace(new, path)
    except BaseException:
        for path, kept in done:
            if kept is not None:
                os.replace(kept, path)
            else:
                path.unlink(missing_ok=True)
        raise
