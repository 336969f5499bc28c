"""Compiling without a bundle: what tests need that look at a library, and at nothing that a build adds."""

from __future__ import annotations

from pathlib import Path

from tvmflow.pipeline import run_stages
from tvmflow.spec import Program, Target
from tvmflow.targets import kind
from tvmflow.targets.kind import Artifacts


def compiled(program: Program, target: Target, folder: Path, dump_dir: Path | None = None) -> Artifacts:
    """What the board's kind makes of a network in `folder`."""
    backend = kind.of(target)
    return backend.compile(
        program, target, folder, linker=backend.check(target), run_stages=run_stages, dump_dir=dump_dir
    )
