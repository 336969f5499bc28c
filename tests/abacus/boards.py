"""One board, which is this computer by another name."""

from __future__ import annotations

from dataclasses import replace

from tvmflow.targets.about import Kind
from tvmflow.targets.cpu.boards import HOST

ABACUS = replace(HOST, name="abacus-1", kind="abacus", description="beads on rods", datasheet="a shop's window")

KIND = Kind(name="abacus", backend="abacus.backend", boards="beads on rods", default_board="abacus-1")

BOARDS = (ABACUS,)
