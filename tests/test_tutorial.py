"""docs/tutorial.md, command by command: each prints what stands there, but for what differs from run to run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, needs_emulator

from tvmflow.targets import TARGETS

pytestmark = [pytest.mark.emulated, pytest.mark.slow]

PAGE = ROOT / "docs" / "tutorial.md"
FILE = re.compile(r"^`([\w.]+)`:\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(```sh\n(.*?)\n```\n\n```text\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
VARIES = (
    (r"(?m)^ *warning: .*\n", ""),
    (r"(?<=on host, ).*(?=, float32)", "#"),
    (r"\d[\d,]*\.\d+(e[-+]\d+)?|\de[-+]\d+", "#"),
    (r"(?<=error )\d|(?<=relative )\d", "#"),
    (r"\d[\d,]*(?= (KiB|runs|thread))", "#"),
    (r" +", " "),
)
"""Times, errors, sizes and counts of runs; and with them, how wide columns are."""


def same_words(output: str) -> str:
    for pattern, shown in VARIES:
        output = re.sub(pattern, shown, output)
    return output


def test_each_command_prints_what_stands_there(tvmflow, tmp_path, request):
    needs_emulator(TARGETS["raspberry-pi-4b"])
    page = PAGE.read_text(encoding="utf-8")
    for name, content in FILE.findall(page):
        (tmp_path / name).write_text(content)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(command: str) -> str:
        program, *arguments = shlex.split(command)
        if program == "tvmflow" and not set(command) & set("|&;<>$`*?\n"):
            called = tvmflow(*arguments, cwd=tmp_path)
            assert called.code == 0, f"{command}\n{called.out}{called.err}"
            return called.out.rstrip() + "\n"
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.rstrip() + "\n"

    steps = [(command, stands, run(command)) for _, command, stands in COMMAND.findall(page)]
    assert len(steps) == page.count("```sh")
    if request.config.getoption("--update-golden"):
        printed = iter([output for _, _, output in steps])
        PAGE.write_text(COMMAND.sub(lambda found: found[1] + next(printed), page), encoding="utf-8")
        return
    for command, stands, output in steps:
        assert same_words(output) == same_words(stands), command
