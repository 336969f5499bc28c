"""A program as text, for `tvmflow vta disasm`."""

from __future__ import annotations

import itertools
from pathlib import Path

from tvmflow.targets.vta import isa, program


def sections(folder: Path) -> dict[str, list[str]]:
    """The instructions of the program in a folder, layer by layer, each with its number; ends belong to none.

    Of a layer of the board's processor there is the name of its function.
    """
    executable = program.read(folder)
    marks = iter(executable.layers)
    shown: dict[str, list[str]] = {}
    for number, step in enumerate(executable.sequence):
        parts = {mark.name: range(mark.first, mark.last) for mark in itertools.islice(marks, step.layers)}
        end = max((part.stop for part in parts.values()), default=step.first)
        if step.function:
            shown |= {name: [f"        {step.function} of the processor"] for name in parts}
            continue
        last = number == len(executable.sequence) - 1
        parts["(end)" if last else f"(end of part {number + 1})"] = range(end, step.last)
        for name, numbers in parts.items():
            shown[name] = [f"{index:6}  {isa.text(executable.instructions[index])}" for index in numbers]
    return shown
