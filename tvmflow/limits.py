"""How large the file of a network may be. Every limit is stated here, and checked before the memory is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmflow.spec import UserError

FILE_BYTES = 8 << 30
"""Of a file of a network, and of an ONNX file together with its external data."""
GRAPH_BYTES = 256 << 20
"""Of the text that describes a .pt2 file's graph."""
DEPTH = 100
"""Of lists and dicts in one another, and of an ONNX file's graphs in graphs."""
TEXT = 20_000
"""Characters of one name or text of a graph."""
EXPRESSION = 4096
"""Characters of an expression for a dimension that was left open."""
INPUT_ELEMENTS = 1 << 26
"""Of one input: 256 MiB of float32, more than two images of 4K in colour."""
TENSOR_ELEMENTS = 1 << 28
"""Of one weight and of one result of an operator: 1 GiB of float32."""


def check_file_size(size: int, path: object) -> None:
    """`size` in bytes. Raises UserError."""
    if size > FILE_BYTES:
        raise UserError(f"{path} has {size:,} bytes; a network's file and its data have at most {FILE_BYTES:,}.")


def check_input(shape: Sequence[object], what: str) -> None:
    """`shape` in elements; dimensions that aren't numbers count as 1. Raises UserError."""
    _check(shape, what, INPUT_ELEMENTS, "an input")


def check_tensor(shape: Sequence[object], what: str) -> None:
    """As `check_input`, for weights and results of operators."""
    _check(shape, what, TENSOR_ELEMENTS, "a tensor")


def _check(shape: Sequence[object], what: str, limit: int, kind: str) -> None:
    elements = math.prod(max(dim, 0) for dim in shape if isinstance(dim, int))
    if elements > limit:
        shown = "×".join(map(str, shape))
        raise UserError(f"{what} of {shown} has {elements:,} elements; {kind} has at most {limit:,}.")
