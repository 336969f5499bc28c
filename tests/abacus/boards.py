"""One board, which is this computer by another name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tvmflow.spec import Facts
from tvmflow.targets.about import Kind
from tvmflow.targets.cpu.boards import HOST


@dataclass(frozen=True, kw_only=True)
class Rods(Facts):
    NAME: ClassVar[str] = "frame"

    rods: int


ABACUS = replace(
    HOST,
    name="abacus-1",
    kind="abacus",
    description="beads on rods",
    datasheet="a shop's window",
    facts=Rods(rods=13),
)

KIND = Kind(name="abacus", backend="abacus.backend", boards="frames", default_board="abacus-1", facts=Rods)

BOARDS = (ABACUS,)
