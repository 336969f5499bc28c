"""The report in a real browser: it sorts, fits a phone, and asks for nothing from anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import INSTALL
from test_report import MEASUREMENT, TIMELINE, foreign, searched

from tvmflow import report as reports
from tvmflow.bundles.bundle import open_bundle
from tvmflow.report.render import render_html
from tvmflow.targets.kind import Timing, layer_rows

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page_file(host_bundle, tmp_path_factory) -> Path:
    """A report with everything in it: two boards, roofline, memory, queues, details, a sustained run and a search."""
    with open_bundle(host_bundle) as bundle:
        rows = layer_rows([[30.0 / place] for place in range(1, len(bundle.layers) + 1)])
        details = [{"instructions": 7}] * len(rows)
        timing = Timing(measurement=MEASUREMENT, layers=rows, details=details, timeline=TIMELINE)
        report = reports.assemble(bundle, bundle.manifest["verify"], timing)
    report["target"]["roof"] = {"gflops": 50.0, "gbps": 10.0, "source": "a data sheet"}
    report["layers"][0]["bound"] = {"us": 20.0, "by": "compute"}
    report["latency"]["windows"] = [{**report["latency"], "at_s": at_s} for at_s in (0.0, 30.0)]
    search = {
        **dict.fromkeys(("board", "cpu", "tvm", "rules"), "x"),
        "basis": "measured",
        "unit": "ms",
        "trials": 3,
        "seconds": 1.0,
        "failures": {},
        "tasks": [searched(2.0, 4.0, 1.0)],
    }
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(reports.collect([report, foreign(report)], [search])))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip(f"not installed: chromium; {INSTALL} brings what is needed")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI is root
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_report_in_a_browser(browser, page_file, tmp_path, size, scheme):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables scroll sideways"

    layers = page.locator("table.sortable").nth(1)
    cells = layers.locator("tbody tr td:nth-child(3)")
    times = [float(text) for text in cells.all_inner_texts()]
    assert times == sorted(times, reverse=True)
    heading = layers.locator("th:nth-child(3)")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in cells.all_inner_texts()] == sorted(times)
    heading.locator("button").click()
    assert [float(text) for text in cells.all_inner_texts()] == times

    boards = page.locator("table.sortable").first
    boards.locator("th", has_text="Latency").locator("button").click()
    assert boards.locator("tbody tr").last.inner_text().count("not verified"), "what is unknown comes last"
    page.locator("summary", has_text="Environment").first.click()
    for words in ("Distribution", "Roofline", "Pace", "Memory", "Convergence", "Queues"):
        drawn = page.locator(f"[aria-label^={words}]").first.bounding_box()
        assert drawn["width"] > 200, words
        assert drawn["x"] + drawn["width"] <= width, words
    assert page.locator("dt", has_text="What bounds it").count() == 2
    page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_printed_it_is_whole(browser, page_file, tmp_path):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert page.locator("details:not([open])").count() == 0
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.close()
