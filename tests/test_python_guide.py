"""Python as it stands in the guide and in the README: each block prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, needs_emulator
from test_tutorial import same_words

from tvmflow.targets import TARGETS

pytestmark = [pytest.mark.emulated, pytest.mark.slow]

BLOCK = re.compile(r"^(```python\n(.*?)```\n\n```text\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
END = "--- end of a block ---"
PATHS = re.compile(r"\S*/tvmflow-\S+/bundle")


def printed(blocks: list[str], folder: Path) -> list[str]:
    """What each block prints, all run in one program."""
    script = folder / "guide.py"
    script.write_text(f"\nprint({END!r})\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [PATHS.sub("BUNDLE", part).strip("\n") + "\n" for part in done.stdout.split(END)]


@pytest.mark.parametrize("name", ["docs/python.md", "README.md"])
def test_each_block_prints_what_stands_below_it(name, tmp_path, request):
    needs_emulator(TARGETS["raspberry-pi-4b"])
    page = (ROOT / name).read_text(encoding="utf-8")
    found = BLOCK.findall(page)
    assert len(found) == page.count("```python") > 0
    outputs = printed([code for _, code, _ in found], tmp_path)
    assert len(outputs) == len(found)
    if request.config.getoption("--update-golden"):
        made = iter(outputs)
        (ROOT / name).write_text(BLOCK.sub(lambda block: block[1] + next(made), page), encoding="utf-8")
        return
    for (_, code, stands), output in zip(found, outputs, strict=True):
        assert same_words(output) == same_words(stands), code
