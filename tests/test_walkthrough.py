"""docs/walkthrough.md, command by command, on an emulated board."""

from __future__ import annotations

import json

import jsonschema
import networks
import pytest
import torch
from conftest import ROOT

pytestmark = [pytest.mark.emulated, pytest.mark.slow]


def test_from_an_empty_board_to_a_verified_network(emulated):
    exported = torch.export.export(networks.tiny(), (torch.zeros(1, 3, 9, 7),))
    torch.export.save(exported, emulated.checkout / "mynet.pt2")
    built, deployed, _ = emulated.walk("Deploy and measure")
    assert "passed (emulated, 12 vectors)" in built
    assert "passed (emulated, 12 vectors)" in deployed
    assert "no latency: raspberrypi is emulated (qemu-aarch64-static)" in deployed
    assert (emulated.checkout / "report.html").is_file()
    (by_rpc,) = emulated.walk("Deploy over RPC")
    assert "passed (emulated, 12 vectors)" in by_rpc
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    for name in ("pi.json", "rpc.json"):
        report = json.loads((emulated.checkout / name).read_text())
        jsonschema.validate(report, schema)
        assert report["latency"] is None
        assert report["device"]["basis"] == "emulated"
        assert report["device"]["before"]["machine"] == "aarch64"
