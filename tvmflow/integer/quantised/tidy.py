"""Fewer layers of the same integers: limits and tables go into the layer before, and nobody's layers are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tvmflow.integer.layers import RANGES, AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.network import Port
from tvmflow.integer.operators import (
    AveragePool,
    Concat,
    Function,
    Gather,
    MatMul,
    MaxPool,
    Product,
    Resample,
    Sum,
)

CLIPPED = (Sum, Product, MatMul, MaxPool, AveragePool, Concat, Gather, Resample)
"""Operators whose results are clipped at last."""


def tidied(layers: Sequence[AnyIntegerLayer], outputs: Sequence[Port]) -> tuple[AnyIntegerLayer, ...]:
    """Those that outputs come from, with tables merged into what only they read. Outputs keep their sources."""
    kept, wanted = [], {port.source for port in outputs}
    for layer in reversed(layers):
        if layer.name in wanted:
            wanted |= set(layer.inputs)
            kept.append(layer)
    found: dict[str, AnyIntegerLayer] = {}
    readers = Counter(name for layer in kept for name in layer.inputs) + Counter(port.source for port in outputs)
    stands: dict[str, str] = {}
    for layer in reversed(kept):
        layer = replace(layer, inputs=tuple(stands.get(name, name) for name in layer.inputs))
        before = found.get(layer.inputs[0])
        merged = None
        if before is not None and readers[before.name] == 1 and isinstance(layer, IntegerNode):
            merged = _merged(before, layer)
        if merged is None:
            found[layer.name] = layer
            continue
        # what has the table's name is read, so that outputs find it
        del found[layer.inputs[0]]
        found[layer.name] = replace(merged, name=layer.name, modules=(*before.modules, *layer.modules))  # type: ignore[union-attr]
        if not any(port.source == layer.name for port in outputs):
            found[before.name] = replace(found.pop(layer.name), name=before.name)  # type: ignore[union-attr]
            stands[layer.name] = before.name  # type: ignore[union-attr]
            readers[before.name] = readers[layer.name]  # type: ignore[union-attr]
    return tuple(found.values())


def _merged(before: AnyIntegerLayer, layer: IntegerNode) -> AnyIntegerLayer | None:
    """A layer with the function of a table that is behind it, or None if that can't be."""
    if not isinstance(layer.operator, Function) or layer.table is None:
        return None
    if isinstance(before, IntegerNode) and isinstance(before.operator, Function):
        assert before.table is not None
        first = np.atleast_2d(before.table)
        second = np.broadcast_to(np.atleast_2d(layer.table), (max(len(first), layer.table.size // 256), 256))
        first = np.broadcast_to(first, second.shape)
        table = np.take_along_axis(second, first & 255, 1)
        if before.table.ndim == layer.table.ndim == 1:
            table = table[0]
        low, high = int(table.min()), int(table.max())
        if low == high:
            low, high = layer.minimum, layer.maximum
        return replace(
            layer,
            inputs=before.inputs,
            input_shapes=before.input_shapes,
            table=np.ascontiguousarray(table),
            minimum=low,
            maximum=high,
        )
    if isinstance(before, IntegerNode) and not isinstance(before.operator, CLIPPED):
        return None
    alike = (layer.dtype, layer.scale, layer.zero_point) == (before.dtype, before.scale, before.zero_point)
    if not alike or layer.table.ndim > 1:
        return None
    numbers = np.arange(256).astype(layer.dtype).astype(np.int64)
    low, high = int(layer.table.min()), int(layer.table.max())
    if not np.array_equal(layer.table, numbers.clip(low, high)):
        return None
    low, high = max(low, before.minimum), min(high, before.maximum)
    return replace(before, minimum=low, maximum=high) if low < high else None


def retyped(layer: AnyIntegerLayer, more: int, dtype: str) -> AnyIntegerLayer | None:
    """A layer whose results are all `more`, in another type; None if its operator can't give that."""
    moved = {
        "dtype": dtype,
        "zero_point": layer.zero_point + more,
        "minimum": layer.minimum + more,
        "maximum": layer.maximum + more,
    }
    low, high = RANGES[dtype]
    if not low <= moved["minimum"] < moved["maximum"] <= high:  # type: ignore[operator]
        return None
    if isinstance(layer, IntegerLayer):
        return replace(layer, **moved)  # type: ignore[arg-type]
    if isinstance(layer.operator, Function) and layer.table is not None:
        return replace(layer, table=layer.table + np.int32(more), **moved)  # type: ignore[arg-type]
    if isinstance(layer.operator, Sum | Product) and layer.factors is not None and layer.factors.ndim == 2:
        factors = layer.factors.copy()
        factors[-1, 0] += more
        return replace(layer, factors=factors, **moved)  # type: ignore[arg-type]
    return None
