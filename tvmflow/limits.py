"""How large the file of a network may be. Every limit is stated here, and checked before the memory is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tvmflow.spec import UserError

FILE_BYTES = 8 << 30
"""Of a file of a network, and of an ONNX file together with its external data."""
GRAPH_BYTES = 256 << 20
"""Of the text that describes a .pt2 file's graph."""
DEPTH = 100
"""Of lists and dicts in one another, and of an ONNX file's graphs in graphs."""
TEXT = 20_000
"""Characters of one name or text of a graph."""
NODES = 1_000_000
"""Of an ONNX graph, with its functions in place of the nodes that call them."""
EXPRESSION = 4096
"""Characters of an expression for a dimension that was left open."""
INPUT_ELEMENTS = 1 << 25
"""Of all inputs of a run together: 128 MiB of float32, more than an image of 4K in colour; a dozen vectors are made."""
TENSOR_ELEMENTS = 1 << 28
"""Of one weight and of one result of an operator: 1 GiB of float32."""


def check_file_size(size: int, path: object) -> None:
    """`size` in bytes. Raises UserError."""
    if size > FILE_BYTES:
        raise UserError(f"{path} has {size:,} bytes; a network's file and its data have at most {FILE_BYTES:,}.")


def check_inputs(shapes: Mapping[str, Sequence[object]], source: str) -> None:
    """Shapes in elements by the inputs' names; dimensions that aren't numbers count as 1. Raises UserError."""
    total = sum(_elements(shape) for shape in shapes.values())
    if total > INPUT_ELEMENTS:
        largest = max(shapes, key=lambda name: _elements(shapes[name]))
        raise UserError(
            f"{source}: an input {largest!r} of {_shown(shapes[largest])} is too large; "
            f"all inputs together have at most {INPUT_ELEMENTS:,} elements."
        )


def check_tensor(shape: Sequence[object], what: str) -> None:
    """For weights and results of operators, as `check_inputs`."""
    if _elements(shape) > TENSOR_ELEMENTS:
        raise UserError(
            f"{what} of {_shown(shape)} has {_elements(shape):,} elements; a tensor has at most {TENSOR_ELEMENTS:,}."
        )


def _elements(shape: Sequence[object]) -> int:
    return math.prod(max(dim, 0) for dim in shape if isinstance(dim, int))


def _shown(shape: Sequence[object]) -> str:
    return "×".join(map(str, shape))
