"""What the calls of `import tvmflow` return: values with types, which show themselves in a terminal and a notebook.

Each is made of what the commands write as JSON, which it keeps as `document`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.spec import UserError

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork


@dataclass(frozen=True, kw_only=True, repr=False)
class Verdict:
    """Whether a compiled network gives what the original gives, on the golden vectors of its bundle.

    `method` says how it was run: "native", "emulated", "simulated", … . `passed` is None where it couldn't be run, and
    `reason` says why. Errors are the largest over all outputs; of a network with classes, `same_class` is the share of
    vectors on which the largest output is the same.
    """

    passed: bool | None
    method: str | None
    vectors: int
    max_abs_error: float | None
    max_rel_error: float | None
    same_class: float | None
    reason: str
    document: Mapping[str, Any] = field(compare=False)

    def __bool__(self) -> bool:
        return self.passed is True

    def __repr__(self) -> str:
        from tvmflow.report.render import verdict_text

        return verdict_text(self.document)

    def _repr_html_(self) -> str:
        rows = [
            [row["name"], "passed" if row["passed"] else "FAILED", f"{row['max_abs_error']:.2e}"]
            for row in self.document.get("vectors", ())
        ]
        return _html([repr(self)], ["vector", "verdict", "largest error"], rows)


def verdict_of(found: Mapping[str, Any]) -> Verdict:
    """Of a verdict as bundles and reports have it."""
    return Verdict(
        passed=found["passed"],
        method=found["method"],
        vectors=len(found.get("vectors", ())),
        max_abs_error=found.get("max_abs_error"),
        max_rel_error=found.get("max_rel_error"),
        same_class=found.get("argmax_agreement"),
        reason=found.get("reason", ""),
        document=found,
    )


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of one inference in ms, on a `basis`: "measured" on the device, or "simulated".

    Percentiles are those of `runs` steady runs. `interval_ms` holds the median with 95 % confidence. `setup_ms` is what
    loading takes, `first_ms` the first inference and `warm_ms` the median of those after it, before the steady runs.
    `warnings` say what disturbed the measurement.
    """

    basis: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    interval_ms: tuple[float, float] | None
    runs: int
    threads: int
    setup_ms: float
    first_ms: float
    warm_ms: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One kernel of a compiled network: the modules whose work it does, how it was scheduled, and what it takes.

    `us` is its time on a `basis`, None where it wasn't timed. `details` is what only one kind of target knows, such as
    "instructions"; docs/report.md has the names.
    """

    modules: tuple[str, ...]
    schedule: str
    macs: int
    bytes: int
    us: float | None
    basis: str | None
    details: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class Costs:
    """What a compiled network costs on a board: the report that the commands show, with types.

    `latency` is None where nothing stands behind one, and `latency_note` says why. `memory` is in bytes by what it is
    for. `document` is the whole report, in the form of docs/report.schema.json.
    """

    model: str
    board: str
    verdict: Verdict
    latency: Latency | None
    latency_note: str
    layers: tuple[LayerCost, ...]
    memory: Mapping[str, int]
    document: Mapping[str, Any] = field(compare=False)

    def save(self, path: str | Path) -> None:
        """Write the report: as .html, .md or .csv for people, or as .json for `tvmflow report`. Raises UserError."""
        from tvmflow.report import collect, write_json, write_text
        from tvmflow.report.render import FORMATS

        path = Path(path)
        if path.suffix == ".json":
            write_json(path, self.document)
        elif path.suffix in FORMATS:
            write_text(path, FORMATS[path.suffix](collect([dict(self.document)])))
        else:
            raise UserError(f"A report is written as {', '.join(FORMATS)}, which {path} is none of.")

    def __repr__(self) -> str:
        from tvmflow.report.render import report_text

        return report_text(dict(self.document), layers=self._timed())

    def _repr_html_(self) -> str:
        from tvmflow.report.render import report_text

        lines = report_text(dict(self.document), layers=False).splitlines()
        timed = self._timed()
        rows = [
            [
                ", ".join(layer.modules),
                layer.schedule,
                f"{layer.macs / 1e6:.2f}",
                f"{layer.bytes / 1024:.0f}",
                *([f"{layer.us:.1f}" if layer.us is not None else ""] if timed else []),
            ]
            for layer in self.layers
        ]
        basis = next((layer.basis for layer in self.layers if layer.basis), "")
        header = ["layer", "schedule", "M multiply-adds", "KiB touched", *([f"µs ({basis})"] if timed else [])]
        return _html(lines, header, rows)

    def _timed(self) -> bool:
        return any(layer.us is not None for layer in self.layers)


def costs_of(report: Mapping[str, Any]) -> Costs:
    """Of a report on one bundle."""
    found = report["latency"]
    return Costs(
        model=report["model"]["name"],
        board=report["target"]["name"],
        verdict=verdict_of(report["verify"]),
        latency=None if found is None else _latency_of(found),
        latency_note=report["latency_note"],
        layers=tuple(
            LayerCost(
                modules=tuple(layer["modules"]),
                schedule=layer["schedule"],
                macs=layer["macs"],
                bytes=layer["bytes"],
                us=layer["latency"]["p50"] if layer["latency"] else None,
                basis=layer["latency"]["basis"] if layer["latency"] else None,
                details=layer["details"],
            )
            for layer in report["layers"]
        ),
        memory=report["memory"],
        document=report,
    )


def _latency_of(found: Mapping[str, Any]) -> Latency:
    interval = found.get("interval")
    return Latency(
        basis=found["basis"],
        p50_ms=found["p50"],
        p90_ms=found["p90"],
        p99_ms=found["p99"],
        mean_ms=found["mean"],
        min_ms=found["min"],
        max_ms=found["max"],
        interval_ms=(interval[0], interval[1]) if interval else None,
        runs=found["repeats"],
        threads=found["threads"],
        setup_ms=found["setup"],
        first_ms=found["first"],
        warm_ms=found["warm"],
        warnings=tuple(found["warnings"]),
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a network takes at least on one board, by its graph and the board's data sheet.

    `fits` says whether its memories are large enough, and `reason` why it can't be built where `can_be_built` is
    False. `least_ms` is a lower bound that no program reaches, modelled; None where the board's figures aren't known.
    """

    board: str
    arithmetic: str
    weights_bytes: int
    activations_bytes: int
    fits: bool
    can_be_built: bool
    reason: str
    least_ms: float | None
    document: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimates(Sequence[Estimate]):
    """Estimates of one network, one for each board in the order in which they were asked for."""

    model: str
    rows: tuple[Estimate, ...]
    text: str
    document: Mapping[str, Any] = field(compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Estimate]:
        return iter(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place]

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from tvmflow.report.estimate import least_text

        rows = [
            [
                row.board,
                row.arithmetic,
                f"{row.weights_bytes / 1024:,.0f}",
                f"{row.activations_bytes / 1024:,.0f}",
                "yes" if row.fits else "no",
                "yes" if row.can_be_built else "no",
                least_text(row.least_ms),
            ]
            for row in self.rows
        ]
        header = ["board", "arithmetic", "weights KiB", "activations KiB", "fits", "can be built", "ms at least"]
        return _html([self.text.splitlines()[0]], header, rows)


def estimates_of(model: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], text: str) -> Estimates:
    """Of what `tvmflow estimate` writes, and how it prints it."""
    return Estimates(
        model=model["name"],
        rows=tuple(
            Estimate(
                board=row["target"],
                arithmetic=row["arithmetic"],
                weights_bytes=row["memory"]["weights_bytes"],
                activations_bytes=row["memory"]["activations_bytes"],
                fits=row["fits"]["fits"],
                can_be_built=row["build"]["possible"],
                reason=row["build"].get("reason") or "",
                least_ms=row["latency_ms"],
                document=row,
            )
            for row in rows
        ),
        text=text,
        document={"model": model, "estimates": list(rows)},
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class QuantisedNetwork:
    """A network in int8, which `tvmflow.compile` takes as it takes others.

    `agreement` is the share of inputs that calibrated nothing on which the float network chooses the same class;
    `output_snr_db` the signal to quantisation noise of its output, and `layer_snr_db` that of each layer with the noise
    of all before it, in dB. `document` has all facts.
    """

    network: IntegerNetwork
    document: Mapping[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def scheme(self) -> str:
        return self.network.scheme

    @property
    def agreement(self) -> float:
        return self.document["agreement"]

    @property
    def output_snr_db(self) -> float:
        return self.document["output_sqnr_db"]

    @property
    def layer_snr_db(self) -> Mapping[str, float]:
        return self.document["sqnr_db"]

    def save(self, folder: str | Path, command: str = "tvmflow.quantize") -> Path:
        """Write a .safetensors file, its facts as .json and a model card as .md into a folder; returns the first.

        The file can be given to `tvmflow.compile` and to `--model` of the commands. `command` is kept as what made it.
        """
        from tvmflow.models import int8

        return int8.export(self.network, Path(folder), command)

    def save_onnx(self, path: str | Path) -> None:
        """Write it with QuantizeLinear and DequantizeLinear, for other runtimes. Raises UserError."""
        from tvmflow.integer import qdq

        qdq.write(self.network, Path(path))

    def lines(self) -> list[str]:
        """What quantising cost, layer by layer, as the command prints it."""
        facts = self.document
        kept = facts.get("keep_float", ())
        found = [f"{name:40}{ratio:6.1f} dB{' float32' * (name in kept)}" for name, ratio in facts["sqnr_db"].items()]
        return [*found, f"{'output, against the original network':40}{facts['output_sqnr_db']:6.1f} dB"]

    def __repr__(self) -> str:
        return "\n".join([f"{self.name} in int8, {self.scheme}: {self.summary()}", *self.lines()])

    def summary(self) -> str:
        """How often it gives the float network's answer."""
        facts = self.document
        return (
            f"the float network's answer on {facts['agreement']:.2%} of {facts['images']} "
            f"{facts.get('inputs', 'training images')} that calibrated nothing"
        )

    def _repr_html_(self) -> str:
        kept = self.document.get("keep_float", ())
        rows = [[name, f"{ratio:.1f}", "float32" * (name in kept)] for name, ratio in self.layer_snr_db.items()]
        rows.append(["output, against the original network", f"{self.output_snr_db:.1f}", ""])
        return _html(repr(self).splitlines()[:1], ["layer", "signal to noise, dB", ""], rows)


def _html(lines: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines as they stand, and a table below them."""
    text = "<pre>" + html.escape("\n".join(lines)) + "</pre>" if lines else ""
    if not rows:
        return f"<div>{text}</div>"

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<div>{text}<table><thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table></div>"
