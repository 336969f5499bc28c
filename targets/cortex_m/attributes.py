"""What a microcontroller's functions carry in their attributes; `stages` says what each is."""

from __future__ import annotations

LAYERS, READS, RESULT, OUTPUT, CONSTANTS, SCRATCH, IN_PLACE, ARGUMENTS = (
    f"tvmflow.{name}"
    for name in ("layers", "reads", "result", "output", "constants", "scratch", "in_place", "arguments")
)
NOTHING = -1
"""In place of a number: none."""
