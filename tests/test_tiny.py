"""The whole product on a network of two layers: every board without a GPU, from PyTorch to a report."""

from __future__ import annotations

import json

import jsonschema
import pytest
from conftest import ROOT, needs_emulator

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.report import collect
from tvmflow.report.render import render_html
from tvmflow.report.survey import survey
from tvmflow.system.text import to_json
from tvmflow.targets import TARGETS

CPUS = [name for name, board in TARGETS.items() if board.kind in ("llvm", "arm_cpu")]
NATIVE = ("host", "musl-x64")
METHODS = (
    dict.fromkeys(CPUS, "emulated") | dict.fromkeys(NATIVE, "native") | {"raspberry-pi-3b-32bit": "emulated kernels"}
)


@pytest.mark.emulated
@pytest.mark.parametrize("name", CPUS)
def test_tiny(tiny, tmp_path, name):
    board = TARGETS[name]
    if name not in NATIVE:
        needs_emulator(board)
    built = build(tiny, board, tmp_path / "tiny.tar")
    assert built.manifest["verify"]["passed"] is True
    assert built.manifest["verify"]["method"] == METHODS[name]
    with open_bundle(tmp_path / "tiny.tar") as bundle:
        assert bundle.target.elf == board.elf
    report = survey(tmp_path / "tiny.tar", repeats=2, must_run=False)
    assert report["verify"]["passed"] is True
    assert (report["latency"] is not None) is (name in NATIVE), "only what ran on its own device has a latency"
    document = collect([report])
    jsonschema.validate(json.loads(to_json(document)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    assert name in render_html(document)
