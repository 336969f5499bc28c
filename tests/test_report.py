"""Reports keep to their schema, and no latency is without its basis."""

from __future__ import annotations

import csv
import html
import io
import json
from dataclasses import replace

import jsonschema
import pytest
from conftest import ROOT

from tvmflow import report as reports
from tvmflow.bundles.bundle import open_bundle
from tvmflow.report import views
from tvmflow.report.answers import answers, repeat
from tvmflow.report.estimate import bounds, raise_roof
from tvmflow.report.render import render_html, render_markdown, report_text
from tvmflow.report.search import convergence
from tvmflow.report.survey import survey
from tvmflow.report.trace import trace
from tvmflow.spec import Measurement, Roof, UserError
from tvmflow.system.text import text_table
from tvmflow.targets.kind import Timing, layer_rows
from tvmflow.targets.search import Identity
from tvmflow.tune.store import Store

MEASUREMENT = Measurement(
    basis="measured",
    samples_ms=tuple(float(value) for value in range(1, 101)),
    threads=2,
    setup_ms=20.0,
    first_ms=5.0,
    warmup_ms=(3.0, 1.0, 2.0),
    warnings=("The machine was <busy>.",),
)


@pytest.fixture(scope="module")
def schema():
    return json.loads((ROOT / "docs" / "report.schema.json").read_text())


@pytest.fixture(scope="module")
def surveyed(host_bundle):
    return survey(host_bundle, repeats=5)


def foreign(report):
    """The same report as of a board that wasn't there."""
    verdict = {"passed": None, "method": None, "reason": "No emulator."}
    layers = [{**layer, "latency": None} for layer in report["layers"]]
    return {**report, "verify": verdict, "latency": None, "latency_note": "No board.", "layers": layers}


def test_figures():
    figures = reports.latency(MEASUREMENT)
    assert figures["p50"] == 50.5
    assert figures["p90"] == pytest.approx(90.1)
    assert figures["p99"] == pytest.approx(99.01)
    assert (figures["mean"], figures["min"], figures["max"]) == (50.5, 1, 100)
    assert (figures["repeats"], figures["threads"], figures["unit"]) == (100, 2, "ms")
    assert (figures["setup"], figures["first"], figures["warm"]) == (20, 5, 2)


def test_reports_keep_to_the_schema(surveyed, schema):
    for report in (surveyed, foreign(surveyed)):
        jsonschema.validate(json.loads(reports.to_json(report)), schema)
    jsonschema.validate(json.loads(reports.to_json(reports.collect([surveyed, foreign(surveyed)]))), schema)


@pytest.mark.parametrize(
    "damage",
    [
        lambda report: report["latency"].pop("basis"),
        lambda report: report["latency"].update(basis="emulated"),
        lambda report: report["latency"].update(unit="s"),
        lambda report: report.pop("verify"),
        lambda report: report["layers"][0].update(latency={"p50": 1.0}),
        lambda report: report.update(schema_version="2.0"),
    ],
)
def test_the_schema_refuses(surveyed, schema, damage):
    report = json.loads(reports.to_json(surveyed))
    damage(report)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, schema)


def test_survey_knows_everything_about_a_bundle_that_runs_here(surveyed):
    assert surveyed["verify"]["passed"] is True
    assert surveyed["latency"]["basis"] == "measured"
    assert surveyed["latency"]["repeats"] == 5
    assert all(layer["latency"]["basis"] == "measured" for layer in surveyed["layers"])
    assert surveyed["memory"]["peak_bytes"] >= 0


def test_text(surveyed):
    text = report_text({**surveyed, "latency": reports.latency(MEASUREMENT)})
    assert "50.500 ms p50 (measured, 2 threads, 100 runs)" in text
    assert "joint.0.dilated" in text
    text = report_text(foreign(surveyed))
    assert "no latency: No board." in text
    assert "not verified: No emulator." in text
    assert "measured" not in text


def test_html_is_complete_and_escaped(surveyed):
    document = reports.collect([{**surveyed, "latency": reports.latency(MEASUREMENT)}, foreign(surveyed)])
    page = render_html(document)
    assert "The machine was &lt;busy&gt;." in page
    assert "p50 50.500, p90" in page
    assert "No board." in page
    assert "http" not in page, "the page needs no network"
    assert len(page.encode()) < 1.5e6


def test_reports_from_a_board_are_taken_as_they_are(surveyed, tmp_path):
    facts = {"model": "Raspberry <Pi>", "temperature_c": 51.5}
    device = {"host": "pi", "folder": "net", "before": facts, "after": facts}
    reports.write_json(tmp_path / "pi.json", {**surveyed, "device": device})
    page = render_html(reports.collect([reports.read_report(tmp_path / "pi.json")]))
    assert "Raspberry &lt;Pi&gt;" in page
    assert "temperature c 51.5" in page


def test_what_a_kind_of_target_knows_of_layers_has_columns(surveyed):
    details = {"bound": "memory <1>", "times_bound": 1.5, "instructions": 1200}
    first, *others = surveyed["layers"]
    report = {**surveyed, "layers": [{**first, "details": details}, *others]}
    columns, rows = views.layers(report)
    headings = {column.heading: column for column in columns}
    assert rows[0][headings["Instructions (emulated)"].key] == "1,200"
    assert headings["Instructions (emulated)"].numeric
    assert not headings["Bound"].numeric
    assert rows[-1]["cumulative"] == pytest.approx(1)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    page = render_html(reports.collect([report]))
    assert "memory &lt;1&gt;" in page
    assert 'data-value="1200.0"' in page


def test_markdown_and_csv_say_the_same(surveyed):
    other = foreign(surveyed)
    named = {**other, "model": {**other["model"], "name": "=a|b"}}
    document = reports.collect([{**surveyed, "latency": reports.latency(MEASUREMENT)}, named])
    text = views.to_markdown(document)
    assert "| tiny | host |" in text
    assert "50.500 | measured, 2 threads |" in text
    assert "=a\\|b" in text
    rows = list(csv.DictReader(io.StringIO(views.to_csv(document))))
    assert len(rows) == 2 * len(surveyed["layers"])
    assert float(rows[0]["latency_ms"]) == 50.5
    assert rows[0]["layer_basis"] == "measured"
    assert (rows[-1]["model"], rows[-1]["latency_ms"], rows[-1]["layer.us"]) == ("'=a|b", "", "")
    assert rows[0]["layer.modules"] == ", ".join(surveyed["layers"][0]["modules"])


def test_layers_are_held_against_their_bounds(surveyed):
    """This computer's roof was measured just before; a layer's bound is by its multiply-adds that meet the input."""
    roof, layers = surveyed["target"]["roof"], surveyed["layers"]
    assert roof["basis"] == "measured"
    for layer in layers:
        if layer["live_macs"]:
            assert layer["live_macs"] <= layer["macs"]
            assert layer["bound"]["us"] >= 2e-3 * layer["live_macs"] / roof["gflops"] * (1 - 1e-9)
    _, rows = views.layers(surveyed)
    assert rows[0]["times_bound"] == pytest.approx(layers[0]["latency"]["p50"] / layers[0]["bound"]["us"])
    _, rows = views.layers(foreign(surveyed))
    assert sum(row.get("least_share", 0) for row in rows) == pytest.approx(1)


def test_memory_over_time_has_its_peak(surveyed):
    live = [layer["live_bytes"] for layer in surveyed["layers"]]
    plot = views.memory_over_time(surveyed)
    assert plot["peak_kib"] == max(live) / 1024 <= plot["planned_kib"]
    assert plot["bars"][plot["peak_place"] - 1]["peak"]
    assert [bar["height"] for bar in plot["bars"]] == pytest.approx(
        [views.HEIGHT * count / max(*live, surveyed["memory"]["activations_bytes"]) for count in live], abs=0.1
    )
    old = {**surveyed, "layers": [{**layer, "live_bytes": None} for layer in surveyed["layers"]]}
    assert views.memory_over_time(old) is None
    parts = views.memory_split(surveyed["memory"])
    assert [part["name"] for part in parts] == ["weights", "activations", "code"]
    assert sum(part["share"] for part in parts) == pytest.approx(1)


TIMELINE = {
    "basis": "simulated",
    "unit": "cycles",
    "end": 100,
    "queues": {"load": {"load wgt": [1000, 0]}, "compute": {"gemm": [0, 400], "alu": [0, 100]}},
    "layers": [{"begin": 0, "end": 50}, {"begin": 40, "end": 100}],
}


def test_queues_over_time(surveyed, schema):
    report = {**surveyed, "timeline": TIMELINE}
    jsonschema.validate(json.loads(reports.to_json(report)), schema)
    plot = views.timeline(report)
    load, compute = plot["queues"]
    assert (load["busy"], compute["busy"]) == (0.5, 0.25)
    assert load["paths"] == [("load-wgt", "M0,0h1v1000h-1z")]
    assert compute["paths"] == [("gemm", "M1,600h1v400h-1z"), ("alu", "M1,500h1v100h-1z")]
    assert [layer["share"] for layer in plot["layers"]] == [0.5, 0.5]
    assert views.timeline(surveyed) is None


def test_answers(surveyed):
    first, *others = surveyed["layers"]
    slow = {**first, "latency": {**first["latency"], "p50": 1e6}, "bound": {"us": 5e5, "by": "memory"}}
    found = dict(answers({**surveyed, "layers": [slow, *others]}))
    assert found["Where the time goes"].startswith(f"1 of {1 + len(others)} layers take half of the time (measured)")
    assert "memory 100%" in found["What bounds it"]
    assert "measured, and p90 is" in found["How sure that is"]
    found = dict(answers(foreign(surveyed)))
    assert "modelled; figures: measured here" in found["Where the time goes"]
    assert "no time was taken: No board." in found["How sure that is"]
    stated = {**surveyed["target"], "roof": {**surveyed["target"]["roof"], "basis": "stated"}}
    found = dict(answers({**foreign(surveyed), "target": stated}))
    assert "modelled; figures: data sheet)" in found["Where the time goes"]
    stated["roof"] |= {"unverified": ["memory_gbps"]}
    found = dict(answers({**foreign(surveyed), "target": stated}))
    assert "figures: data sheet, but memory_gbps assumed)" in found["Where the time goes"]
    assert "--board host --dtype float32" in repeat(surveyed)
    assert "--cycles" not in repeat(surveyed)
    assert repeat({**foreign(surveyed), "cycles": {"total": 1}}).endswith("report.html --cycles")
    counted = {**first, "latency": None, "details": {"instructions": 2 * surveyed["model"]["macs"]}}
    assert "2.00 instructions" in dict(answers({**surveyed, "layers": [counted]}))["What bounds it"]


def test_far_over_its_bound_a_layer_is_bound_by_overhead(surveyed):
    first, *others = surveyed["layers"]
    slow = {**first, "latency": {**first["latency"], "p50": 1e6}}
    for times, by in ((4.0, "compute"), (122.0, "overhead")):
        bounded = {**slow, "bound": {"us": 1e6 / times, "by": "compute"}}
        report = {**surveyed, "layers": [bounded, *others]}
        _, rows = views.layers(report)
        assert (rows[0]["by"], rows[0]["times_bound"]) == (by, pytest.approx(times))
        assert f"by {by} 100%" in dict(answers(report))["What bounds it"]


def test_a_layer_faster_than_its_bound_is_a_fault_of_the_roof(host_bundle):
    """A measured roof is raised to what the layer did; one of a data sheet is contradicted. Both are said."""
    with open_bundle(host_bundle) as bundle:
        layers = bundle.layers
        slow = Roof(macs_per_s=1e6, bytes_per_s=1e3, cache_bytes=16, source="x", basis="measured")
        wanted = [bound["us"] if bound else 1.0 for bound in bounds(layers, slow)]
        times = [0.68 * us for us in wanted]
        report = reports.assemble(
            bundle, bundle.manifest["verify"], Timing(layers=layer_rows([[t] for t in times]), roof=slow)
        )
        raised, stated = (raise_roof(roof, layers, times) for roof in (slow, replace(slow, basis="stated")))
    for layer, us in zip(report["layers"], times, strict=True):
        assert layer["bound"] is None or layer["bound"]["us"] <= us * (1 + 1e-9)
    assert report["target"]["roof"]["gbps"] == pytest.approx(1e-6 / 0.68)
    assert "1.47 times" in report["target"]["roof"]["note"]
    assert report["target"]["roof"]["note"] in dict(answers(report))["What bounds it"]
    assert report["target"]["roof"]["note"] in html.unescape(render_html(reports.collect([report])))
    assert (stated.bytes_per_s, raised.note.startswith("Layers were faster than what was measured")) == (1e3, True)
    assert stated.note.startswith("Layers were faster than these figures allow, for")
    assert raise_roof(slow, layers, wanted).note == ""


def test_an_accelerators_layers_are_held_against_all_the_time_they_are_at_work(surveyed):
    """What overlaps with the layer before doesn't make one faster than its bound."""
    details = {"bound": "memory", "bound_cycles": 100, "cycles": 68, "span_cycles": 150, "times_bound": 1.5}
    layer = {**surveyed["layers"][0], "details": details}
    layer["latency"] = {"basis": "simulated", "unit": "us", "p50": 6.8}
    assert views.least_us(layer) == pytest.approx(10.0)
    assert views.limited_by(layer) == "memory"
    layer["details"] = {**details, "cycles": 5100, "times_bound": 51.0}
    layer["latency"] = {**layer["latency"], "p50": 510.0}
    assert views.limited_by(layer) == "overhead"


def test_layers_that_contradict_the_whole_are_a_doubt(surveyed):
    rows = layer_rows([[113.0]] * 10)
    assert "add up to 1.130 ms, 0.32 times p50" in reports.layers_against_whole(3.57, rows)[0]
    assert reports.layers_against_whole(1.3, rows) == reports.layers_against_whole(1.05, rows) == []
    assert reports.layers_against_whole(0.02, layer_rows([[1.0]] * 4)) == []  # what starting kernels takes
    simulated = [{**row, "basis": "simulated"} for row in rows]
    assert reports.layers_against_whole(3.57, simulated) == []
    found = views.layers_sum(surveyed)
    assert found in report_text(surveyed)
    assert found in render_html(reports.collect([surveyed]))


def test_reports_of_earlier_formats_are_shown(surveyed):
    old = json.loads(reports.to_json({**surveyed, "schema_version": "1.2"}))
    for key in ("interval", "attempts"):
        old["latency"].pop(key)
    for key in ("note", "unverified"):
        old["target"]["roof"].pop(key)
    old["verify"].pop("constant_outputs")
    for layer in old["layers"]:
        layer["latency"] = {key: layer["latency"][key] for key in ("basis", "unit", "p50")}
    document = reports.collect([old])
    assert "median within" not in render_html(document)
    assert report_text(old)


def test_no_layer_is_shown_faster_than_its_operations(surveyed):
    """GFLOP/s are of the multiply-adds that meet the input, as the bound is: no border makes a layer look faster."""
    layer = {**surveyed["layers"][0], "macs": 10**6, "live_macs": 10**5}
    layer["latency"] = {**layer["latency"], "p50": 100.0}
    _, rows = views.layers({**surveyed, "layers": [layer]})
    assert rows[0]["gflops"] == pytest.approx(2.0)


def test_histogram_counts_every_run():
    found = reports.histogram([1.0] * 50 + [2.0] * 49 + [9.0])
    assert sum(found["counts"]) + found["beyond"] == 100
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert reports.histogram([1.0, 1.0]) is None


def test_points_lie_under_their_roof(surveyed):
    layer = {**surveyed["layers"][0], "macs": 500_000, "live_macs": None, "bytes": 1000}
    layer["latency"] = {"basis": "measured", "unit": "us", "p50": 100.0}
    roof = {"gflops": 20.0, "gbps": 2.0, "source": "a data sheet"}
    target = {**surveyed["target"], "roof": roof}
    plot = views.roofline({**surveyed, "layers": [layer], "target": target})
    ((x, y, label),) = plot["points"]
    (_, foot), (_, ridge), (right, edge) = plot["roof"]
    assert "10 GFLOP/s" in label
    assert foot > ridge == edge < y
    assert 0 < x <= right == views.WIDTH
    assert views.roofline(foreign(surveyed)) is None


def searched(*times: float | None, untuned: str = "rule()") -> dict:
    """A search's only task, whose trials took these ms or failed."""
    rows = [{"candidate": f"c{place}", "outcome": "ok" if ms else "wrong", "ms": ms} for place, ms in enumerate(times)]
    winner = {"candidate": "rule(tile=<3>)", "ms": 1.0, "default_ms": 2.0, "compared": False}
    return {"name": "conv<1>", "key": "0" * 16, "untuned_ms": times[0], "winner": winner, "trials": rows}


def test_convergence_is_of_the_fastest_so_far():
    plot = convergence(searched(2.0, None, 4.0, 1.0, 3.0))
    assert (plot["fastest_us"], plot["slowest_us"], plot["beyond"]) == (1000, 3000, 1)
    assert plot["failures"] == [60]
    assert plot["untuned"] == 40
    assert plot["best"] == [(0, 40), (60, 40), (120, 40), (180, 40), (180, 80), (240, 80)]
    assert plot["trials"] == [(0, 40), (120, 0), (180, 80), (240, 0)]


@pytest.mark.parametrize("times", [(2.0,), (None, 2.0), (2.0, 2.0), (None,)])
def test_convergence_of_few_trials(times):
    plot = convergence(searched(*times))
    assert (plot is None) == (times == (None,))
    if plot is not None:
        assert all(0 <= y <= 80 for _, y in plot["best"] + plot["trials"])


def test_report_shows_searches(tvmflow, tmp_path, schema):
    whose = Identity(board="host", cpu="Some <CPU>", target={"kind": "llvm"}, tvm="0.27", rules="12345678")
    key = f"{7:016x}"
    trial = {"kind": "trial", "run": 1, "task": key, "message": ""}
    good = [[[], []], [0.001], {"kind": "llvm"}, []]
    with Store(tmp_path / "work" / whose.folder, whose, writable=True) as store:
        store.append(
            [
                {"kind": "task", "task": key, "name": "conv<1>", "default": "rule()", "workload": ["7", "bm8="]},
                {**trial, "candidate": "rule()", "outcome": "ok", "ms": [2.0], "record": good},
                {**trial, "candidate": "a", "outcome": "crashed", "ms": []},
                {**trial, "candidate": "b", "outcome": "ok", "ms": [1.0], "record": good},
            ]
        )
    done = tvmflow("report", tmp_path / "work", "-o", tmp_path)
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(document, schema)
    (search,) = document["searches"]
    assert (search["trials"], search["failures"]) == (3, {"crashed": 1})
    assert [trial["ms"] for trial in search["tasks"][0]["trials"]] == [2.0, None, 1.0]
    page = (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.glob("report.*")} == {
        "report.html",
        "report.json",
        "report.md",
        "report.csv",
    }
    assert "Some &lt;CPU&gt;" in page
    assert "conv&lt;1&gt;<br>1000 to 2000 µs, 3 trials" in page
    assert page.count("<polyline") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no report that can be read"), ("[]", "no report"), ('{"reports": []}', "no report"), ("null", "no report")],
)
def test_files_that_are_no_reports(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=words):
        reports.read_report(tmp_path / "x.json")


def test_reports_of_another_major_version(surveyed, tmp_path):
    reports.write_json(tmp_path / "x.json", {**surveyed, "schema_version": "2.0"})
    with pytest.raises(UserError, match=r"format 2\.0"):
        reports.read_report(tmp_path / "x.json")


def test_what_is_not_finite_becomes_null():
    assert json.loads(reports.to_json({"a": [float("inf"), float("nan"), 1.5]})) == {"a": [None, None, 1.5]}


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    reports.write_json(path, {"old": 1})

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports.os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        reports.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_table():
    assert text_table(["name", "n"], [["a", 1], ["bcd", 20]]) == "name   n\na      1\nbcd   20"


def test_one_sample_is_enough():
    assert reports.latency(replace(MEASUREMENT, samples_ms=(2.0,), warmup_ms=()))["p99"] == 2


def test_int8_that_is_slower_than_float_is_told(surveyed, schema):
    """By measurements of the same network on the same board with as many threads, and by nothing else."""
    slow = {**surveyed, "target": {**surveyed["target"], "arithmetic": "int8"}}
    slow["latency"] = {**surveyed["latency"], "p50": 2 * surveyed["latency"]["p50"]}
    document = reports.collect([surveyed, slow, foreign(surveyed)])
    jsonschema.validate(json.loads(reports.to_json(document)), schema)
    assert document["reports"][0] == surveyed
    assert "slower than float32" in document["reports"][1]["latency"]["warnings"][-1]
    assert "slower than float32" in render_html(document)
    elsewhere = {**slow, "target": {**slow["target"], "name": "another"}}
    fast = {**slow, "latency": {**slow["latency"], "p50": surveyed["latency"]["p50"] / 2}}
    alone = {**slow, "latency": {**slow["latency"], "threads": 7}}
    assert reports.slower_than_float([surveyed, elsewhere, fast, alone]) == {}


# ---------------------------------------------------------------------------------------- across boards, and as a trace


def bounded(report: dict, us: float) -> dict:
    """A report without a latency, whose layers have lower bounds."""
    layers = [{**layer, "bound": {"us": us, "by": "compute"}} for layer in report["layers"]]
    return {**report, "latency": None, "latency_note": "no board.", "layers": layers}


@pytest.fixture
def timed(host_bundle) -> dict:
    with open_bundle(host_bundle) as bundle:
        rows = layer_rows([[30.0 / place] for place in range(1, len(bundle.layers) + 1)])
        return reports.assemble(
            bundle, bundle.manifest["verify"], Timing(measurement=MEASUREMENT, layers=rows, timeline=TIMELINE)
        )


def test_boards_are_compared_by_latency_and_by_lower_bounds(timed):
    other = bounded(foreign(timed), 1000.0)
    chart = views.across([timed, other])
    assert [(row["basis"], row["ms"]) for row in chart["rows"]] == [
        ("measured", "50.5 ms"),
        (views.AT_LEAST, f"at least {len(timed['layers'])} ms"),
    ]
    assert chart["rows"][0]["width"] > chart["rows"][1]["width"] > 0
    page = render_html(reports.collect([timed, other]))
    assert "time of one inference, ms (logarithmic)" in page
    assert page.index("time of one inference") < page.index("Click a heading")


def test_one_board_alone_has_no_chart_nor_what_is_not_known(timed):
    assert views.across([timed]) is None
    unknown = {**bounded(timed, 1.0), "layers": [{**layer, "bound": None} for layer in timed["layers"]]}
    assert views.across([timed, unknown]) is None


def test_a_report_says_at_its_top_when_and_by_what_it_was_made(timed):
    day = timed["environment"]["date"][:10]
    page, text = render_html(reports.collect([timed])), render_markdown(reports.collect([timed]))
    for shown in (page, text):
        assert f"tiny; {day}; tvmflow " in shown
    older = {**timed, "environment": {**timed["environment"], "date": "2020-01-02T00:00:00+00:00"}}
    assert views.when([timed, older]) == f"2020-01-02 to {day}"


def test_markdown_has_the_four_answers(timed):
    text = render_markdown(reports.collect([timed]))
    for question in ("Where the time goes", "What bounds it", "How sure that is", "How to repeat it"):
        assert f"- **{question}:** " in text


def test_a_trace_has_each_layer_and_each_queue(timed):
    found = trace([timed])
    layers = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert [event["dur"] for event in layers] == [round(row["latency"]["p50"], 3) for row in timed["layers"]]
    assert all(event["args"]["basis"] == "measured" for event in layers)
    ends = [round(event["ts"] + event["dur"], 3) for event in layers]
    assert [event["ts"] for event in layers[1:]] == pytest.approx(ends[:-1], abs=2e-3)
    queues = {event["name"].split()[0] for event in found["traceEvents"] if event["ph"] == "C"}
    assert queues == set(TIMELINE["queues"])
    with pytest.raises(UserError, match="no bundle or report here has times"):
        trace([{**timed, "timeline": None, "layers": [{**layer, "latency": None} for layer in timed["layers"]]}])
