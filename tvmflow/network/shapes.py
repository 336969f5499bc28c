"""Shapes that the user gives for a network's inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvmflow.spec import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """A shape the user gave: for the input of that name, or, without one, for the next input in order."""

    name: str | None
    shape: Shape


def parse_input_shape(text: str) -> InputShape:
    """Read `1x3x32x32`, `1,3,32,32` or `name=1x3x32x32`. Raises UserError."""
    name, _, dims = text.rpartition("=")
    if not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", dims):
        raise UserError(f"--input-shape takes positive whole numbers such as 1x3x32x32 or x=1x3x32x32, not {text!r}.")
    return InputShape(name=name or None, shape=tuple(int(dim) for dim in re.split("[x,]", dims)))
