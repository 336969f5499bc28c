"""Shapes that the user gives for a network's inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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


def assign_shapes(given: Sequence[InputShape], names: Sequence[str], source: str) -> Mapping[str, Shape]:
    """The shapes of a network's inputs by their names: those with a name first, the others to what is left in order.

    Raises UserError for a name that no input has or that is given twice, and if there are more shapes than inputs.
    """
    listed = ", ".join(names) or "none that has a name"
    if len(given) > len(names):
        inputs = f"{len(names)} input{'s' * (len(names) != 1)}"
        raise UserError(f"--input-shape is given {len(given)} times, and {source} has {inputs}: {listed}.")
    found: dict[str, Shape] = {}
    for entry in given:
        if entry.name is None:
            continue
        if entry.name not in names:
            raise UserError(f"{source} has no input {entry.name!r}; its inputs are {listed}.")
        if entry.name in found:
            raise UserError(f"--input-shape is given twice for the input {entry.name!r} of {source}.")
        found[entry.name] = entry.shape
    left = (name for name in names if name not in found)
    return found | dict(zip(left, (entry.shape for entry in given if entry.name is None), strict=False))
