"""One board, which is this computer by another name."""

from __future__ import annotations

from dataclasses import replace

from tvmflow.targets.cpu.boards import HOST

ABACUS = replace(HOST, name="abacus-1", kind="abacus", description="beads on rods", datasheet="a shop's window")

BOARDS = (ABACUS,)
