"""Several networks on several boards as tables: each figure is the report's, with its basis; nothing is made up."""

from __future__ import annotations

import copy
import csv
import io
import json

import jsonschema
import pytest
from conftest import ROOT

from tvmflow import report as reports
from tvmflow.bundles.bundle import open_bundle
from tvmflow.report import networks
from tvmflow.report.render import render_html, render_markdown
from tvmflow.spec import Measurement
from tvmflow.targets.kind import Timing

CIFAR10 = {"value": 0.8649, "images": 10_000, "data": "JPEG <images>", "arithmetic": "float32"}


@pytest.fixture(scope="module")
def measured(host_bundle):
    """`dilated-net` with made-up figures, timed on this computer."""
    with open_bundle(host_bundle) as bundle:
        facts = {"peak_bytes": 2048 * 1024}
        times = Measurement(
            basis="measured", samples_ms=(1.5, 1.5), threads=2, setup_ms=1, first_ms=1, warmup_ms=(1,), facts=facts
        )
        report = reports.assemble(bundle, bundle.manifest["verify"], Timing(measurement=times))
    model = {"name": "dilated-net", "source": "tvmflow.models:dilated-net", "parameters": 3_000_000, "macs": 84_000_000}
    return {**report, "model": {**model, "accuracy": CIFAR10}}


def elsewhere(report, **model):
    """The same of another network on a board that was emulated."""
    changed = copy.deepcopy(report)
    changed["target"]["name"] = "raspberry-pi-4b"
    changed["verify"]["method"] = "emulated"
    changed["model"].update(model)
    del changed["model"]["accuracy"], changed["memory"]["peak_bytes"]
    return {**changed, "latency": None, "latency_note": "No board."}


def estimated(report, *boards, **changes):
    """What `tvmflow estimate --json` writes for a network on boards."""
    row = {
        "kind": "arm_cpu",
        "arithmetic": "float32",
        "memory": {"weights_bytes": 3 * 1024, "activations_bytes": 1024},
        "fits": {"fits": True, "parts": {}},
        "basis": "modelled",
        "meaning": "lower bound",
        "latency_ms": 0.25,
        "note": "",
        "roof": None,
        "layers": [],
        **changes,
    }
    known = {key: report["model"][key] for key in ("name", "source", "parameters")}
    return {"model": known, "estimates": [{"target": board, **row} for board in boards]}


@pytest.fixture(scope="module")
def document(measured):
    vgg = elsewhere(measured, name="vgg<16>", source="tvmflow.models:vgg16", parameters=15_000_000)
    estimates = [estimated(measured, "raspberry-pi-4b", "jetson-nano"), estimated(vgg, "raspberry-pi-4b")]
    return reports.collect([measured, elsewhere(measured), vgg], estimates=estimates)


def test_every_figure_has_its_basis(document):
    latency, module, peak = networks.tables(document)
    assert [column.heading for column in latency.columns[4:]] == ["host, 2 threads", "raspberry-pi-4b", "jetson-nano"]
    first, second = latency.rows
    assert (first["accuracy"].shown, first["accuracy"].basis) == ("86.49%", "measured; 84.25% quoted")
    assert (second["accuracy"].shown, second["accuracy"].basis) == ("–", "")
    assert (first["host, 2 threads"].shown, first["host, 2 threads"].basis) == ("1.500", "measured")
    assert (first["raspberry-pi-4b"].shown, first["raspberry-pi-4b"].basis) == ("≥ 0.250", "modelled")
    assert "host, 2 threads" not in second
    assert module.rows[1]["raspberry-pi-4b"].basis == "built; passed, emulated"
    assert (peak.rows[0]["host, 2 threads"].shown, peak.rows[0]["host, 2 threads"].basis) == ("2,048", "measured")
    assert peak.rows[0]["raspberry-pi-4b"].basis == "planned"
    assert (peak.rows[0]["jetson-nano"].shown, peak.rows[0]["jetson-nano"].basis) == ("4", "modelled")


def test_all_forms_say_the_same(document):
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    jsonschema.validate(json.loads(reports.to_json(document)), schema)
    rows = list(csv.DictReader(io.StringIO(networks.to_csv(document))))
    assert [(row["model"], row["target"], row["latency_ms"], row["latency_basis"]) for row in rows] == [
        ("dilated-net", "host", "1.5", "measured"),
        ("dilated-net", "raspberry-pi-4b", "0.25", "modelled"),
        ("vgg<16>", "raspberry-pi-4b", "0.25", "modelled"),
        ("dilated-net", "jetson-nano", "0.25", "modelled"),
    ]
    text, page = render_markdown(document), render_html(document)
    assert "| 86.49% (measured; 84.25% quoted) | 1.500 (measured) | ≥ 0.250 (modelled) |" in text
    assert "| – | – | ≥ 0.250 (modelled) | – |" in text
    assert "2 networks: what they are" in page
    assert "vgg&lt;16&gt;" in page
    assert "10,000 test images (JPEG &lt;images&gt;)" in page
    assert '≥ 0.250<br><span class="basis">modelled</span>' in page


def test_a_measurement_is_never_replaced(measured):
    """Nor does a network that computes something else get a bound of its time."""
    wrong = elsewhere(measured, name="other")
    wrong["verify"]["passed"] = False
    given = reports.collect(
        [measured, wrong], estimates=[estimated(measured, "host"), estimated(wrong, wrong["target"]["name"])]
    )
    (first, second) = networks.entries(given)
    assert (first["latency_ms"], first["latency_least"]) == (1.5, False)
    assert (second["latency_ms"], second["verified"]) == (None, "failed, emulated")


def test_what_does_not_fit_has_no_latency(measured):
    large = estimated(measured, "mps3-an547", fits={"fits": False, "parts": {}}, kind="cortex_m", arithmetic="int8")
    (row,) = networks.entries(reports.collect([], estimates=[large]))
    assert (row["latency_ms"], row["verified"]) == (None, "doesn't fit")
    assert (row["module_kib"], row["peak_kib"]) == (3, 1), "a microcontroller's weights stay in flash"


def test_accuracy_is_of_the_arithmetic_that_it_was_measured_in(measured):
    narrow = {**measured, "target": {**measured["target"], "arithmetic": "float16"}}
    (row,) = networks.entries(reports.collect([narrow]))
    assert row["accuracy"] is None


def test_one_network_needs_no_table(measured):
    given = reports.collect([measured, elsewhere(measured)])
    assert networks.tables(given) == []
    assert "Peak memory, KiB" not in render_markdown(given)


def test_command(tvmflow, document, measured, tmp_path):
    reports.write_json(tmp_path / "a.json", document)
    reports.write_json(tmp_path / "b.json", estimated(measured, "jetson-nano", "t4"))
    done = tvmflow("report", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path)
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "report.json").read_text())
    assert [row["target"] for network in written["estimates"] for row in network["estimates"]][-1] == "t4"
    assert (tmp_path / "networks.csv").read_text().count("\n") == 6
