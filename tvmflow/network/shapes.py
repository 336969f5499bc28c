"""Shapes that the user gives for a network's inputs, and dtypes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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


def assign(given: Sequence[InputShape], names: Sequence[str], source: str) -> Mapping[str, InputShape]:
    """What the user gave for each input, by their names: those with a name first, the others to what is left in order.

    Raises UserError for a name that no input has or that is given twice, and if there are more shapes than inputs.
    """
    listed = ", ".join(names) or "none that has a name"
    if len(given) > len(names):
        inputs = f"{len(names)} input{'s' * (len(names) != 1)}"
        raise UserError(f"--input-shape is given {len(given)} times, and {source} has {inputs}: {listed}.")
    found: dict[str, InputShape] = {}
    for entry in given:
        if entry.name is None:
            continue
        if entry.name not in names:
            raise UserError(f"{source} has no input {entry.name!r}; its inputs are {listed}.")
        if entry.name in found:
            raise UserError(f"--input-shape is given twice for the input {entry.name!r} of {source}.")
        found[entry.name] = entry
    left = (name for name in names if name not in found)
    return found | dict(zip(left, (entry for entry in given if entry.name is None), strict=False))


def assign_shapes(given: Sequence[InputShape], names: Sequence[str], source: str) -> Mapping[str, Shape]:
    """The shapes alone of `assign`."""
    return {name: entry.shape for name, entry in assign(given, names, source).items()}


def check_dtypes(given: Sequence[InputShape], inputs: Sequence[TensorSpec], source: str) -> None:
    """Raises UserError where the user gives an input another dtype than it has."""
    found = assign(given, [spec.name for spec in inputs], source)
    for spec in inputs:
        if spec.name in found and found[spec.name].dtype not in (None, spec.dtype):
            raise UserError(f"{source} takes {spec.dtype} for its input {spec.name!r}, not {found[spec.name].dtype}.")


def shown(shape: Sequence[object]) -> str:
    """A shape for a sentence: `1×3×32×32`."""
    return "×".join(map(str, shape)) or SCALAR
