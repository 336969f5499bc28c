"""Shapes that the user gives for a network's inputs, and dtypes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tvmflow.spec import TensorSpec, UserError

Shape = tuple[int, ...]

DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("int8", "int16", "int32", "int64", "uint8", "bool"),
)
"""What an input may hold."""

SCALAR = "scalar"


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """A shape the user gave: for the input of that name, or, without one, for the next input in order.

    `dtype` is None where none was given.
    """

    name: str | None
    shape: Shape
    dtype: str | None = None

    def __str__(self) -> str:
        dims = "x".join(map(str, self.shape)) or SCALAR
        return f"{self.name}={dims}" if self.name else dims


def parse_input_shape(text: str) -> InputShape:
    """Read `1x3x32x32`, `1,3,32,32` or `scalar`, with `name=` before and `:dtype` after it. Raises UserError."""
    name, _, rest = text.rpartition("=")
    dims, colon, dtype = rest.partition(":")
    if dims != SCALAR and not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", dims):
        raise UserError(
            "--input-shape takes positive whole numbers such as 1x3x32x32 or x=1x3x32x32 "
            f"(ids=1x16:int64 says the dtype as well), not {text!r}."
        )
    if colon and dtype not in DTYPES:
        raise UserError(f"--input-shape {text}: an input is {', '.join(DTYPES)}; {dtype!r} is none of them.")
    shape = () if dims == SCALAR else tuple(int(dim) for dim in re.split("[x,]", dims))
    return InputShape(name=name or None, shape=shape, dtype=dtype or None)


def assign(given: Sequence[InputShape], inputs: Sequence[TensorSpec], source: str) -> dict[str, InputShape]:
    """Which of the inputs each shape is for: that of its name, or else the next that none names. Raises UserError."""
    names = [spec.name for spec in inputs]
    found: dict[str, InputShape] = {}
    for entry in (entry for entry in given if entry.name):
        if entry.name not in names:
            raise UserError(f"{source} has no input {entry.name!r}; its inputs are {', '.join(names)}.")
        if entry.name in found:
            raise UserError(f"--input-shape gives the input {entry.name!r} of {source} twice.")
        found[entry.name] = entry
    unnamed = [entry for entry in given if not entry.name]
    left = [name for name in names if name not in found]
    if len(unnamed) > len(left):
        raise UserError(
            f"{source} has {len(names)} {'input' if len(names) == 1 else 'inputs'} ({', '.join(names)}), "
            f"and --input-shape was given {len(given)} times."
        )
    return {**found, **dict(zip(left, unnamed, strict=False))}


def shown(shape: Sequence[object]) -> str:
    """A shape for a sentence: `1×3×32×32`."""
    return "×".join(map(str, shape)) or SCALAR
