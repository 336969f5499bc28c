"""A program as text, for `tvmflow vta disasm`."""

from __future__ import annotations

from pathlib import Path

from tvmflow.targets.vta import isa, program


def sections(folder: Path) -> dict[str, list[str]]:
    """The instructions of the program in a folder, layer by layer, each with its number; "(end)" belongs to none."""
    executable = program.read(folder)
    parts = {mark.name: range(mark.first, mark.last) for mark in executable.layers}
    covered = max((part.stop for part in parts.values()), default=0)
    parts["(end)"] = range(covered, len(executable.instructions))
    return {
        name: [f"{number:6}  {isa.text(executable.instructions[number])}" for number in numbers]
        for name, numbers in parts.items()
    }
