"""A machine without compilers, emulators or other system packages: all else is done, and what is lacking is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from integer_networks import conv, random_network

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.cli.doctor import examine
from tvmflow.integer.frontend import integer_program
from tvmflow.report import assemble, not_shown
from tvmflow.report.render import render_html, render_markdown
from tvmflow.report.survey import survey
from tvmflow.targets import TARGETS
from tvmflow.targets import kind as backends

pytestmark = pytest.mark.packages

BARE = ROOT / "tools" / "on-a-bare-machine.sh"
PI, MICROCONTROLLER = TARGETS["raspberry-pi-4b"], TARGETS["mps2-an500"]
PACKAGES = {
    "answers": [
        *("qemu-user-static", "libc6-arm64-cross", "libstdc++6-arm64-cross"),
        "qemu-system-arm",
    ],
    "instructions": ["qemu-system-arm"],
    "cycles": ["llvm-22", "qemu-user", "qemu-system-arm"],
}


@pytest.fixture(scope="module")
def bundles(tiny, host_bundle, tmp_path_factory) -> dict[str, Path]:
    """One for each board, built where nothing but Python's packages is found."""
    folder = tmp_path_factory.mktemp("bare")
    network = random_network(np.random.default_rng(7), "per-channel", shapes=(conv(5, relu=False),))
    found = {"host": host_bundle}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda *arguments, **options: None)
        for board, program in ((PI, tiny), (MICROCONTROLLER, integer_program(network))):
            found[board.name] = folder / board.name
            build(program, board, found[board.name])
    return found


def test_a_report_is_made_of_what_can_be_shown(bundles, tvmflow, tmp_path):
    done = tvmflow("report", *bundles.values(), "--cycles", "--seconds", "0.1", "-o", tmp_path, PATH="/nowhere")
    assert done.code == 0, done.err
    lacking, remedy = done.out.splitlines()[-2:]
    boards = f"{PI.name}, {MICROCONTROLLER.name}"
    assert lacking == (
        f"Not shown: whether the answers are right ({boards}); modelled cycles ({boards}); "
        f"instructions ({MICROCONTROLLER.name})."
    )
    packages = remedy.removeprefix("`apt-get install --no-install-recommends ").partition("`")[0].split()
    assert sorted(packages) == sorted({name for names in PACKAGES.values() for name in names})
    document = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(document, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    host, pi, mcu = document["reports"]
    assert (host["verify"]["passed"], host["latency"]["basis"], host["not_shown"]) == (True, "measured", [])
    assert [gap["what"] for gap in pi["not_shown"]] == ["answers", "cycles"]
    assert [gap["what"] for gap in mcu["not_shown"]] == ["answers", "instructions", "cycles"]
    for report in (pi, mcu):
        for gap in report["not_shown"]:
            assert set(gap["packages"]) <= set(PACKAGES[gap["what"]])
            assert gap["reason"].startswith(("Running", "Modelling"))
            assert gap["reason"] in render_markdown(document)
    assert lacking in render_html(document)


def test_what_a_single_command_was_asked_for_and_is_not_there_is_a_failure(bundles, tvmflow):
    tvmflow("verify", bundles[MICROCONTROLLER.name], PATH="/nowhere").failed_with(5, "apt-get install")
    tvmflow("profile", bundles[PI.name], "--cycles", PATH="/nowhere").failed_with(5, "apt-get install")


def test_instructions_are_shown_without_the_model_of_cycles(bundles, tvmflow, tmp_path, monkeypatch):
    conftest.needs_commands("qemu-system-arm")
    (tmp_path / "qemu-system-arm").symlink_to(str(shutil.which("qemu-system-arm")))
    bundle = bundles[MICROCONTROLLER.name]
    done = tvmflow("profile", bundle, "--cycles", "--json", tmp_path / "mcu.json", PATH=str(tmp_path))
    done.failed_with(5, "shown without cycles", "llvm-22")
    assert "instructions (emulated)" in done.out
    report = json.loads((tmp_path / "mcu.json").read_text())
    assert [gap["what"] for gap in report["not_shown"]] == ["cycles"]
    assert all(layer["details"]["instructions"] > 0 for layer in report["layers"])


def test_nothing_is_said_where_nothing_lacks(host_bundle):
    report = survey(host_bundle, timed=False, repeats=1)
    assert (report["not_shown"], not_shown([report])) == ([], [])


def test_what_no_package_brings_is_said_too(host_bundle):
    report = survey(host_bundle, timed=False, profiled=False)
    verdict = {"passed": None, "method": None, "reason": "There is no emulator."}
    with open_bundle(host_bundle) as opened:
        lacking = assemble(opened, verdict, backends.Timing(note="no board."))
    assert not_shown([report, lacking])[0] == "Not shown: whether the answers are right (host)."
    assert "apt-get" not in not_shown([lacking])[1]


def test_doctor_names_the_packages_that_the_script_installs(monkeypatch, tmp_path, tvmflow):
    listed = subprocess.run([ROOT / "tools" / "install-system-packages.sh", "--list"], capture_output=True, text=True)
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    monkeypatch.setattr("tvmflow.measure.emulate._holds", lambda root, name: False)
    findings = examine()
    assert {package for finding in findings for package in finding.packages} == set(listed.stdout.split())
    assert all(finding.remedy for finding in findings if finding.packages)
    assert [finding.name for finding in findings if finding.status == "problem"] == []
    done = tvmflow("doctor", PATH="/nowhere")
    assert done.code == 0
    last = done.out.splitlines()[-1]
    assert last.startswith(
        "All that Debian has of it at once: `apt-get install --no-install-recommends qemu-user-static"
    )
    assert last.count("qemu-user-static") == 1


def test_skipped_tests_are_summed_up_in_two_lines():
    skipped = [SimpleNamespace(nodeid=f"tests/test_{name}.py::test") for name in ("one", "two", "one")]
    lines: list[str] = []
    list(conftest.pytest_terminal_summary(SimpleNamespace(stats={"skipped": skipped}, write_line=lines.append)))
    assert lines == [
        "Not shown: what 3 skipped tests look at (2 of test_one, 1 of test_two).",
        "`tools/install-system-packages.sh --tests` brings what they lack, but for what is said otherwise above.",
    ]
    lines.clear()
    list(conftest.pytest_terminal_summary(SimpleNamespace(stats={}, write_line=lines.append)))
    assert lines == []


# ------------------------------------------------------------------------------------------------- the bare machine


def bare(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([BARE, *command], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    return done


def test_packages_are_hidden_from_the_command_alone():
    listed = subprocess.run(
        [ROOT / "tools" / "install-system-packages.sh", "--tests", "--list"], capture_output=True, text=True, check=True
    )
    shown = subprocess.run(
        ["dpkg-query", "--listfiles", *listed.stdout.split()], capture_output=True, text=True, check=False
    )
    files = [line for line in shown.stdout.splitlines() if line.startswith("/usr/") and Path(line).is_file()]
    script = "import os, sys; print(*filter(os.path.exists, sys.stdin.read().splitlines()), sep='\\n')"
    done = subprocess.run([BARE, sys.executable, "-c", script], input="\n".join(files), capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stdout.strip()) == (0, "")
    assert all(map(os.path.exists, files)), "outside, they are still there"
    done = bare("sh", "-c", "make --version && python3 --version && exit 5")
    assert done.returncode == 5, done.stderr


def test_its_usage():
    done = subprocess.run([BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Say what to run" in done.stderr
