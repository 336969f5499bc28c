"""Converters of PyTorch's operators (aten) to Relax, where TVM's importer has none or one that means something else.

Each file is about one kind of operators and has a registry of its own; `OPERATORS` is all of them. They take part after
PyTorch's exporter has decomposed a network into its core operators; those in `WHOLE` are kept from that, for they would
come out as gathers by computed indices, or as hundreds of operators.
"""

from __future__ import annotations

from tvmflow.network.aten import (
    activations,
    arithmetic,
    indexing,
    norms,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    sampling,
)
from tvmflow.network.aten.call import Call, Converter

__all__ = ["OPERATORS", "WHOLE", "Call", "Converter"]

OPERATORS: dict[str, Converter] = {
    **arithmetic.OPERATORS,
    **activations.OPERATORS,
    **products.OPERATORS,
    **norms.OPERATORS,
    **pooling.OPERATORS,
    **resizing.OPERATORS,
    **sampling.OPERATORS,
    **reductions.OPERATORS,
    **indexing.OPERATORS,
    **recurrent.OPERATORS,
}
"""What an operator is called in an exported graph, such as "avg_pool2d.default" → its converter."""

WHOLE: tuple[str, ...] = (
    *recurrent.OPERATORS,
    *resizing.OPERATORS,
    "im2col.default",
    "col2im.default",
    "roll.default",
    "pad.default",
    "logsumexp.default",
    "atan2.default",
)
"""Operators that stay as they are, for there is a converter of each."""
