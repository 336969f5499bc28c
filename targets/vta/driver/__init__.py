"""The board's side of VTA: drivers in Python and C, and a fake board on which they run without one."""

from __future__ import annotations

import shutil
from pathlib import Path

from tvmflow.targets.vta import selftest
from tvmflow.targets.vta.config import Config

SOURCES = ("vta_driver.h", "vta_driver.c", "vta_linux.c", "vta_run.c")


def make_runner(folder: Path, config: Config) -> Path:
    """Make the folder "runner" of a bundle in `folder`: `run`, the driver in C, and the self-test. Returns it."""
    runner = folder / "runner"
    runner.mkdir(parents=True)
    here = Path(__file__).parent
    shutil.copy(here / "vta_driver.py", runner / "run")
    (runner / "run").chmod(0o755)
    for name in SOURCES:
        shutil.copy(here / name, runner / name)
    selftest.save(config, runner / "selftest")
    return runner
